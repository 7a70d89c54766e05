//! The seed disk: what cloud-init in the guest reads at its first boot (data source NoCloud).
//!
//! Documents are written by a serializer: JSON is YAML, and no value can break out of its place. They are put on a FAT
//! file system in memory, labelled `CIDATA`, which is what cloud-init looks for. Pure.

use std::io::{self, Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Value, json};

use crate::{record::VmRecord, ssh_keys};

/// A disk image with all that the machine has to know.
///
/// # Errors
/// What the file system says; it has nothing but memory to fail at.
pub fn image(record: &VmRecord) -> io::Result<Vec<u8>> {
    let account = record.boot.as_ref().and_then(|boot| boot.account.as_deref());
    let files = [
        ("meta-data", meta_data(record).to_string()),
        ("user-data", format!("#cloud-config\n{}\n", user_data(record, account))),
        ("network-config", network_config(record).to_string()),
    ];
    let contents: usize = files.iter().map(|(_, text)| text.len()).sum();
    // Room for the file system's own tables and for rounding up.
    let size = (contents + 256 * 1024).next_multiple_of(64 * 1024);
    let mut disk = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_sector(512)
        .volume_label(*b"CIDATA     ")
        .volume_id(0x60_1e_37_05);
    fatfs::format_volume(&mut disk, options)?;
    {
        let file_system = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, text) in &files {
            let mut file = file_system.root_dir().create_file(name)?;
            file.truncate()?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        file_system.unmount()?;
    }
    Ok(disk.into_inner())
}

/// An operating system keeps what is written in memory for half a minute. A machine that is cut off in that time finds
/// host keys, authorized keys and cloud-init's own notes that are there and empty, and nobody can ever log in again. So
/// during the first boot, writes go to the disk within seconds.
const HURRY: &str = "[ -e /var/lib/cloud/instance/boot-finished ] || { \
    echo 100 >/proc/sys/vm/dirty_expire_centisecs; \
    echo 100 >/proc/sys/vm/dirty_writeback_centisecs; }";
/// The end of that: the kernel's defaults.
const SETTLE: &str = "sync; \
    echo 3000 >/proc/sys/vm/dirty_expire_centisecs; \
    echo 500 >/proc/sys/vm/dirty_writeback_centisecs";

fn meta_data(record: &VmRecord) -> Value {
    json!({ "instance-id": record.uuid, "local-hostname": record.spec.hostname })
}

fn user_data(record: &VmRecord, account: Option<&str>) -> Value {
    let keys = record.ssh_keys();
    let mut users = vec![json!({ "name": "root", "ssh_authorized_keys": keys })];
    if let Some(account) = account {
        users.push(json!({
            "name": account,
            "ssh_authorized_keys": keys,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "shell": "/bin/bash",
            "lock_passwd": true
        }));
    }
    json!({
        "hostname": record.spec.hostname,
        "disable_root": false,
        "users": users,
        // One kind of host key that every client knows; each further kind costs an emulated guest seconds.
        "ssh_genkeytypes": ["ed25519"],
        "growpart": { "mode": "auto", "devices": ["/"] },
        "resize_rootfs": true,
        "package_update": false,
        "package_upgrade": false,
        "bootcmd": [HURRY],
        "runcmd": [SETTLE, ["bash", "-c", ssh_keys::installer()]]
    })
}

/// Only IPv4: waiting for routers that are not there would delay every boot.
fn network_config(record: &VmRecord) -> Value {
    json!({
        "version": 2,
        "ethernets": {
            "primary": { "match": { "macaddress": record.mac }, "dhcp4": true, "dhcp6": false }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Read;

    use super::*;
    use crate::record::{self, Boot};

    fn read(image: &[u8], name: &str) -> String {
        let mut disk = Cursor::new(image.to_vec());
        let file_system = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
        let mut text = String::new();
        file_system.root_dir().open_file(name).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn cloud_init_finds_the_seed_by_its_label_and_all_documents_on_it() {
        let record = record::tests::example();
        let image = image(&record).unwrap();
        let file_system = FileSystem::new(Cursor::new(image.clone()), FsOptions::new()).unwrap();
        assert_eq!(file_system.volume_label(), "CIDATA");
        assert_eq!(
            file_system.read_volume_label_from_root_dir().unwrap().as_deref(),
            Some("CIDATA")
        );
        let meta: Value = serde_json::from_str(&read(&image, "meta-data")).unwrap();
        assert_eq!(meta["local-hostname"], "web");
        assert_eq!(meta["instance-id"], record.uuid);
        let network: Value = serde_json::from_str(&read(&image, "network-config")).unwrap();
        assert_eq!(network["ethernets"]["primary"]["match"]["macaddress"], record.mac);
    }

    #[test]
    fn root_logs_in_by_every_key_that_was_given_or_added() {
        let mut record = record::tests::example();
        record.added_ssh_keys.push("ssh-rsa BBBB b".into());
        record.boot =
            Some(Boot { image: String::new(), direct: None, account: Some("ops".into()) });
        let user_data = read(&image(&record).unwrap(), "user-data");
        let json = user_data.strip_prefix("#cloud-config\n").unwrap();
        let data: Value = serde_json::from_str(json).unwrap();
        assert_eq!(data["disable_root"], false);
        for (user, name) in [(0, "root"), (1, "ops")] {
            assert_eq!(data["users"][user]["name"], name);
            assert_eq!(
                data["users"][user]["ssh_authorized_keys"],
                json!(["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"])
            );
        }
    }

    #[test]
    fn nothing_that_a_requestor_sends_becomes_part_of_the_document_around_it() {
        let mut record = record::tests::example();
        record.spec.hostname = "x\", \"runcmd\": [\"reboot\"], \"y\": \"\n- z: 1".into();
        record.spec.ssh_authorized_keys = vec!["k\"]}\n#".into()];
        let user_data = read(&image(&record).unwrap(), "user-data");
        let data: Value =
            serde_json::from_str(user_data.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        assert_eq!(data["hostname"], record.spec.hostname.as_str());
        assert_eq!(data["users"][0]["ssh_authorized_keys"][0], "k\"]}\n#");
    }

    #[test]
    fn a_seed_grows_with_what_it_has_to_hold() {
        let mut record = record::tests::example();
        record.added_ssh_keys =
            (0..500).map(|n| format!("ssh-rsa {} {n}", "A".repeat(700))).collect();
        let image = image(&record).unwrap();
        assert!(read(&image, "user-data").contains("AAAA 499"));
    }
}
