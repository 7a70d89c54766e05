//! The kind of plugin that makes and runs virtual machines.

pub use crate::bindings::vm_backend::exports::golem::provider::vms::{
    BootLimits, Endpoint, Image, Instance, PowerState, Spec,
};

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Plugin, Result};

/// A hypervisor, as the provider uses it. `wit/vms.wit` has the whole contract, with a drawing of a machine's states;
/// `golem-provider plugin test` tries all of it.
///
/// The provider chooses each instance's id, and never runs two changing calls for one id at a time; `inspect`,
/// `await_ready` and calls for other ids run beside them, each in an instance of its own. Any call may be cut off anywhere
/// (its deadline, its caller, a crash of the provider), so every change has to be safe to repeat.
///
/// An id that was never made or was deleted is [`Error::NotFound`], unless the function says otherwise. A backend that cannot be
/// asked is [`Error::Unavailable`]: never `NotFound`, and never an empty list.
pub trait VmBackend: Plugin {
    /// The images that [`create`](Self::create) accepts, each alias once. Does not ask the network; at most 10 s.
    fn images() -> Result<Vec<Image>>;

    /// How many machines may boot at once, and how long a boot may take here. Asked before every boot; at most 10 s.
    fn limits() -> Result<BootLimits>;

    /// Makes the machine and starts it, without waiting for it to boot. May fetch an image; report
    /// [`progress`](crate::progress). At most an hour.
    ///
    /// Repeated for the same id and spec, it finishes what an interrupted call left undone and answers what is there.
    /// With another spec it is [`Error::AlreadyExists`], and nothing changes; an unknown image is [`Error::InvalidArgument`]. Ids,
    /// sizes and keys were checked already: see [`check_spec`].
    fn create(spec: Spec) -> Result<Instance>;

    /// Starts a stopped or crashed machine, without waiting for it to boot. A running one stays as it is, with the same endpoint.
    /// [`Error::FailedPrecondition`] for one that is still stopping or was never finished. At most 60 s.
    fn start(id: String) -> Result<Instance>;

    /// Waits until SSH answers, and answers the machine as [`PowerState::Running`] with its endpoint. An error as soon as it is
    /// clear that it never will: [`Error::FailedPrecondition`] for a machine that does not run, or is stopped meanwhile. Gives
    /// up by itself within the boot timeout that [`limits`](Self::limits) answers. Waits with
    /// [`clock::sleep`](crate::clock::sleep), in pieces.
    fn await_ready(id: String) -> Result<Instance>;

    /// Shuts the machine down, and switches it off if that takes longer than `grace`: ends with [`PowerState::Stopped`]. A stopped
    /// one stays as it is, and its disk is kept. At most 30 s on top of the grace.
    fn stop(id: String, grace: Duration) -> Result<Instance>;

    /// Removes everything that was made for the machine, running or not: files, values, processes. An unknown id is a
    /// success. At most 120 s.
    fn delete(id: String) -> Result<()>;

    /// What the machine is doing. Changes nothing. [`Error::NotFound`] only if that is certain. At most 10 s.
    fn inspect(id: String) -> Result<Instance>;

    /// Every machine made here and not deleted, also unfinished ones, each once. One that is made or deleted meanwhile must not
    /// make it fail. At most 10 s.
    fn inspect_all() -> Result<Vec<Instance>>;

    /// Lets one more OpenSSH public key log in as root, now and after later starts; one that is there already is a
    /// success. [`Error::FailedPrecondition`] unless the machine runs. The key was checked already: see
    /// [`check_ssh_key`]. At most 30 s.
    fn add_ssh_key(id: String, key: String) -> Result<()>;
}

/// A [`Spec`] as plugins write it down: what a machine was made to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SpecRecord {
    pub id: String,
    pub hostname: String,
    pub cpu_cores: u32,
    pub memory_mib: u64,
    pub storage_mib: u64,
    pub image: String,
    pub ssh_authorized_keys: Vec<String>,
}

impl From<Spec> for SpecRecord {
    fn from(spec: Spec) -> Self {
        let Spec { id, hostname, cpu_cores, memory_mib, storage_mib, image, ssh_authorized_keys } =
            spec;
        Self { id, hostname, cpu_cores, memory_mib, storage_mib, image, ssh_authorized_keys }
    }
}

/// Refuses an id that the contract does not allow: it becomes part of paths and of command lines.
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if id.is_empty() || id.len() > 100 || !id.bytes().all(allowed) {
        return Err(Error::InvalidArgument(format!(
            "`{id}` cannot name a machine: 1 to 100 of a-z, 0-9 and -"
        )));
    }
    Ok(())
}

/// Longer than any key that OpenSSH makes.
const MAX_SSH_KEY_BYTES: usize = 16 * 1024;

/// Refuses what is no key as `authorized_keys` has them, one line with a type and a value: it becomes a line of a file, and
/// another line would be another key.
pub fn check_ssh_key(key: &str) -> Result<()> {
    let wrong = |reason: &str| Err(Error::InvalidArgument(format!("the SSH key {reason}")));
    if key.chars().any(char::is_control) {
        return wrong("has more than one line, or characters that are no text");
    }
    if key.trim() != key || key.is_empty() || key.starts_with('#') {
        return wrong("is empty, a comment, or has blanks around it");
    }
    if key.len() > MAX_SSH_KEY_BYTES {
        return wrong("is longer than 16 KiB");
    }
    if key.split_whitespace().count() < 2 {
        return wrong("has to have a type and a value, such as `ssh-ed25519 AAAA…`");
    }
    Ok(())
}

/// Refuses what no backend makes: a wrong id or key, no processor, no memory. [`export_vm_backend`](crate::export_vm_backend)
/// calls it before [`VmBackend::create`].
pub fn check_spec(spec: &Spec) -> Result<()> {
    check_id(&spec.id)?;
    if spec.cpu_cores == 0 || spec.memory_mib == 0 {
        return Err(Error::InvalidArgument("a machine needs a processor and memory".to_owned()));
    }
    spec.ssh_authorized_keys.iter().try_for_each(|key| check_ssh_key(key))
}

/// Exports a type that implements [`VmBackend`] as this component's plugin. Once per crate.
#[macro_export]
macro_rules! export_vm_backend {
    ($backend:ty) => {
        #[doc(hidden)]
        mod golem_provider_export {
            use super::*;
            use $crate::bindings::vm_backend::exports::golem::provider::vms;

            $crate::__export_plugin!($backend);

            impl vms::Guest for Export {
                fn images() -> $crate::Result<Vec<vms::Image>> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::images()
                }
                fn limits() -> $crate::Result<vms::BootLimits> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::limits()
                }
                fn create(spec: vms::Spec) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    $crate::vm_backend::check_spec(&spec)?;
                    <$backend as $crate::VmBackend>::create(spec)
                }
                fn start(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::start(id)
                }
                fn await_ready(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::await_ready(id)
                }
                fn stop(id: String, grace_ms: u32) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    let grace = ::core::time::Duration::from_millis(grace_ms.into());
                    <$backend as $crate::VmBackend>::stop(id, grace)
                }
                fn delete(id: String) -> $crate::Result<()> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::delete(id)
                }
                fn inspect(id: String) -> $crate::Result<vms::Instance> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::inspect(id)
                }
                fn inspect_all() -> $crate::Result<Vec<vms::Instance>> {
                    $crate::log::report_panics();
                    <$backend as $crate::VmBackend>::inspect_all()
                }
                fn add_ssh_key(id: String, key: String) -> $crate::Result<()> {
                    $crate::log::report_panics();
                    // Blanks around it mean nothing; whatever else is around it does.
                    let key = key.trim_matches(' ').to_owned();
                    $crate::vm_backend::check_ssh_key(&key)?;
                    <$backend as $crate::VmBackend>::add_ssh_key(id, key)
                }
            }

            $crate::bindings::vm_backend::export_vm_backend_bindings!(
                Export with_types_in $crate::bindings::vm_backend
            );
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            id: "golem-web-1".into(),
            hostname: "web".into(),
            cpu_cores: 1,
            memory_mib: 1024,
            storage_mib: 10_240,
            image: "24.04".into(),
            ssh_authorized_keys: vec!["ssh-ed25519 AAAA a".into()],
        }
    }

    #[test]
    fn what_no_backend_makes_is_refused_before_it_is_asked() {
        assert!(check_spec(&spec()).is_ok());
        assert!(check_spec(&Spec { ssh_authorized_keys: Vec::new(), ..spec() }).is_ok());
        for wrong in ["", "..", "a/b", "A", "a.b", "a b", &"a".repeat(101)] {
            assert!(check_spec(&Spec { id: wrong.into(), ..spec() }).is_err(), "{wrong}");
        }
        assert!(check_spec(&Spec { cpu_cores: 0, ..spec() }).is_err());
        assert!(check_spec(&Spec { memory_mib: 0, ..spec() }).is_err());
        let two_lines = vec!["ssh-ed25519 AAAA a\nssh-ed25519 BBBB b".into()];
        assert!(check_spec(&Spec { ssh_authorized_keys: two_lines, ..spec() }).is_err());
    }

    #[test]
    fn a_key_is_one_line_with_a_type_and_a_value() {
        for right in ["ssh-ed25519 AAAA", "ssh-rsa AAAA me@home with words"] {
            assert!(check_ssh_key(right).is_ok(), "{right:?}");
        }
        for wrong in [
            "",
            "ssh-ed25519",
            "ssh-rsa AAAA\nssh-rsa BBBB",
            "ssh-rsa AAAA\r",
            "# x y",
            " ssh-rsa A",
            "a\0 b",
        ] {
            assert!(check_ssh_key(wrong).is_err(), "{wrong:?}");
        }
        assert!(check_ssh_key(&format!("ssh-rsa {}", "A".repeat(20_000))).is_err());
    }
}
