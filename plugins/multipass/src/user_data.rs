//! What cloud-init in a new machine is told, through Multipass (`launch --cloud-init -`).
//!
//! Multipass has a document of its own beside it: it adds its key to the image's usual account, grows the file system and
//! keeps `/etc/hosts`. That account has to stay (`default`), since Multipass logs in to it to see that the machine is up. The
//! document is written by a serializer: JSON is YAML, and no value can break out of its place. Pure.

use golem_provider_sdk::vm_backend::SpecRecord;
use serde_json::json;

/// The document, with the line in front that says what it is.
pub fn document(spec: &SpecRecord) -> String {
    let data = json!({
        "hostname": spec.hostname,
        "disable_root": false,
        "users": ["default", { "name": "root", "ssh_authorized_keys": spec.ssh_authorized_keys }],
        "package_update": false,
        "package_upgrade": false
    });
    format!("#cloud-config\n{data}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::record;

    fn parsed(spec: &SpecRecord) -> serde_json::Value {
        let text = document(spec);
        serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap()
    }

    #[test]
    fn root_logs_in_by_the_keys_and_the_account_of_multipass_stays() {
        let spec = record::tests::example().spec;
        let data = parsed(&spec);
        assert_eq!(data["hostname"], "web");
        assert_eq!(data["disable_root"], false);
        assert_eq!(data["users"][0], "default");
        assert_eq!(
            data["users"][1],
            json!({ "name": "root", "ssh_authorized_keys": ["ssh-ed25519 AAAA a"] })
        );
    }

    #[test]
    fn nothing_that_a_requestor_sends_becomes_part_of_the_document_around_it() {
        let mut spec = record::tests::example().spec;
        spec.hostname = "x\", \"runcmd\": [\"reboot\"], \"y\": \"\n- z: 1".into();
        spec.ssh_authorized_keys = vec!["k\"]}\n#".into()];
        let data = parsed(&spec);
        assert_eq!(data["hostname"], spec.hostname.as_str());
        assert_eq!(data["users"][1]["ssh_authorized_keys"][0], "k\"]}\n#");
        assert!(data.get("runcmd").is_none());
    }
}
