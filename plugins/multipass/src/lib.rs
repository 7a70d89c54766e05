//! The VM backend for machines by Canonical's Multipass, through its command line.
//!
//! A component without state: every call reads the plugin's records and asks `multipass`. Modules, from the inside out:
//!
//! | Module | What it decides or does |
//! |---|---|
//! | `settings` | what an operator can set |
//! | `name` | what a machine is called in Multipass |
//! | `record` | what is remembered of a machine |
//! | `user_data` | what cloud-init in a machine is told |
//! | `answers` | what Multipass' JSON, exit statuses and messages mean |
//! | `client` | running `multipass`, one function per command |
//! | `ssh_keys` | adding a key to a machine that runs |
//! | `machine` | a machine's life |
//!
//! Decisions are functions of values and are tested natively; only thin layers around them call the provider.

mod answers;
mod client;
mod machine;
mod name;
mod record;
mod settings;
mod ssh_keys;
mod user_data;

use core::time::Duration;

use golem_provider_sdk::{
    Description, Error, Finding, Plugin, Result, VmBackend, process,
    vm_backend::{BootLimits, Image, Instance, Spec},
};

use crate::answers::Versions;

/// The backend.
pub struct Multipass;

impl Plugin for Multipass {
    fn describe() -> Description {
        Description {
            name: "multipass".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "Virtual machines by Canonical's Multipass".to_owned(),
            license: env!("CARGO_PKG_LICENSE").to_owned(),
            settings_schema: settings::schema(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        if let Err(error) = settings::load() {
            return Ok(vec![Finding::blocking(
                error.message(),
                "correct the settings of the plugin multipass",
            )]);
        }
        match process::find(client::PROGRAM) {
            Ok(_) => {}
            Err(Error::NotFound(_)) => return Ok(vec![not_installed()]),
            Err(error) => return Err(error),
        }
        Ok(vec![version_finding(client::versions())])
    }
}

impl VmBackend for Multipass {
    fn images() -> Result<Vec<Image>> {
        let catalog = settings::load()?.catalog();
        Ok(catalog
            .into_iter()
            .map(|(alias, entry)| Image { alias, description: entry.description })
            .collect())
    }

    fn limits() -> Result<BootLimits> {
        Ok(BootLimits {
            parallel_boots: settings::load()?.parallel_boots,
            boot_timeout_ms: u32::try_from(machine::BOOT_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        })
    }

    fn create(spec: Spec) -> Result<Instance> {
        machine::create(spec.into(), &settings::load()?)
    }

    fn start(id: String) -> Result<Instance> {
        machine::start(&id)
    }

    fn await_ready(id: String) -> Result<Instance> {
        machine::await_ready(&id)
    }

    fn stop(id: String, grace: Duration) -> Result<Instance> {
        machine::stop(&id, grace)
    }

    fn delete(id: String) -> Result<()> {
        machine::delete(&id)
    }

    fn inspect(id: String) -> Result<Instance> {
        machine::inspect(&id)
    }

    fn inspect_all() -> Result<Vec<Instance>> {
        machine::inspect_all()
    }

    fn add_ssh_key(id: String, key: String) -> Result<()> {
        machine::add_ssh_key(&id, &key)
    }
}

fn not_installed() -> Finding {
    Finding::blocking(
        "multipass is not installed, or not where programs are looked for",
        "snap install multipass (Linux) · brew install --cask multipass (macOS); if it is installed, start the provider with its directory, such as /snap/bin, in PATH",
    )
}

/// A daemon that does not answer is a warning only: at the start of the computer it may come up after the provider, and a plugin
/// that is blocked is not asked again.
fn version_finding(versions: Result<Versions>) -> Finding {
    const RESTART: &str = "start its daemon: snap restart multipass (Linux), or sudo launchctl kickstart -k system/com.canonical.multipassd (macOS)";
    match versions {
        Ok(Versions { client, .. }) if answers::is_too_old(&client) => Finding::blocking(
            format!("Multipass {client} is too old: it cannot switch a machine off (1.14 can)"),
            "snap refresh multipass · brew upgrade --cask multipass",
        ),
        Ok(Versions { client, daemon: None }) => Finding::warning(
            format!(
                "Multipass {client} is installed and its daemon does not answer: no machine can be made until it does"
            ),
            RESTART,
        ),
        Ok(Versions { daemon: Some(daemon), .. }) => {
            Finding::info(format!("machines are made by Multipass {daemon}"))
        }
        Err(error) => Finding::warning(
            format!("Multipass does not say which version it is: {}", error.message()),
            RESTART,
        ),
    }
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_vm_backend!(Multipass);

#[cfg(test)]
mod tests {
    use golem_provider_sdk::Severity;

    use super::*;

    fn versions(client: &str, daemon: Option<&str>) -> Result<Versions> {
        Ok(Versions { client: client.to_owned(), daemon: daemon.map(str::to_owned) })
    }

    #[test]
    fn the_description_needs_nothing_of_the_provider() {
        assert_eq!(Multipass::describe().name, "multipass");
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let missing = not_installed();
        assert_eq!(missing.severity, Severity::Blocking);
        assert!(missing.remedy.is_some_and(|remedy| remedy.contains("snap install multipass")));
        let old = version_finding(versions("1.13.1", Some("1.13.1")));
        assert_eq!(old.severity, Severity::Blocking);
        assert!(old.remedy.is_some_and(|remedy| remedy.contains("snap refresh")));
    }

    #[test]
    fn a_daemon_that_is_down_blocks_nothing_since_it_may_come_up() {
        for down in [versions("1.16.3", None), Err(Error::Unavailable("no answer".into()))] {
            let finding = version_finding(down);
            assert_eq!(finding.severity, Severity::Warning);
            assert!(finding.remedy.is_some_and(|remedy| remedy.contains("restart multipass")));
        }
        let up = version_finding(versions("1.16.3", Some("1.16.3")));
        assert_eq!(up.severity, Severity::Info);
    }
}
