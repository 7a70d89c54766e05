//! The values the VM service speaks in: what a VM is, what a requestor may ask for, what a job is.
//!
//! Plain data without locks or I/O. Whatever comes from a requestor has a type whose constructor checks it
//! ([`VmName`], [`Resources`], [`SshPublicKey`]), so that the service never sees an unchecked value. `api` makes them,
//! `store` writes them down, everything may read them.

use std::fmt;

use jiff::Timestamp;
use ssh_key::{Algorithm, PublicKey, public::KeyData};
use uuid::Uuid;

pub use super::ownership::Ownership;
pub use crate::plugins::vm_backend::Progress;
use crate::{payments::streams::Ticket, resources::Amounts};

/// The present time as records keep it: in whole milliseconds, since clients in other languages cannot read nine digits.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    // Every present time in milliseconds is within what a timestamp can hold.
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// A VM as the provider knows it. A snapshot: the service replaces it as a whole, nobody changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The instance id, `golem-NAME-YYYYmmdd-HHMMSS`, with `-N` behind it where that was taken. What the backend and
    /// the host's files know the machine by. Never issued twice.
    pub id: String,
    /// The requestor's name for it. Unique among the VMs there are.
    pub name: String,
    /// The backend that made it and owns it for its whole life.
    pub backend: String,
    pub phase: Phase,
    pub resources: Resources,
    /// An alias out of the backend's images.
    pub image: String,
    /// Whom it belongs to, for its whole life.
    pub ownership: Ownership,
    /// The port its SSH is forwarded at. Held from admission to deletion; absent once a create has failed.
    pub ssh_port: Option<u16>,
    /// The machine's own address, for people; known while it runs.
    pub ip_address: Option<String>,
    pub created_at: Timestamp,
    /// When phase, address or error last changed.
    pub updated_at: Timestamp,
    /// What went wrong, for the requestor. Gone once the VM runs again.
    pub error_message: Option<String>,
    /// While something is under way: how far it has come. In memory only.
    pub progress: Option<Progress>,
}

/// Where a VM is in its life. The edges are drawn in [`crate::vms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Admitted; the backend makes it and boots it for the first time.
    Creating,
    /// SSH has answered and no end of the machine has been seen since.
    Running,
    Stopping,
    /// Does not run; disk, port and resources are kept.
    Stopped,
    Starting,
    /// Being removed. There is no way back from here.
    Deleting,
    /// The create failed. Holds nothing once the backend has confirmed that nothing is left.
    Failed,
}

impl Phase {
    pub const ALL: [Phase; 7] = [
        Phase::Creating,
        Phase::Running,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Starting,
        Phase::Deleting,
        Phase::Failed,
    ];

    /// The word for it in the API. The statuses that clients know have no word for a start under way or a deletion:
    /// a machine that is being started is still `stopped`, one that is being deleted is `stopping`.
    pub fn status(self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Running => "running",
            Phase::Stopping | Phase::Deleting => "stopping",
            Phase::Stopped | Phase::Starting => "stopped",
            Phase::Failed => "error",
        }
    }

    /// The phase's own name, as the store keeps it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Running => "running",
            Phase::Stopping => "stopping",
            Phase::Stopped => "stopped",
            Phase::Starting => "starting",
            Phase::Deleting => "deleting",
            Phase::Failed => "failed",
        }
    }

    /// The phase of that name.
    pub fn from_name(name: &str) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.name() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a VM is given, and what its requestor pays for. A GB is 1024³ bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resources {
    pub cpu_cores: u32,
    pub memory_gb: u32,
    pub storage_gb: u32,
}

/// The sizes that have names; the first one is that of a VM of which none is asked for.
pub const NAMED_SIZES: [(&str, Resources); 4] = [
    ("small", Resources { cpu_cores: 1, memory_gb: 1, storage_gb: 10 }),
    ("medium", Resources { cpu_cores: 2, memory_gb: 4, storage_gb: 20 }),
    ("large", Resources { cpu_cores: 4, memory_gb: 8, storage_gb: 40 }),
    ("xlarge", Resources { cpu_cores: 8, memory_gb: 16, storage_gb: 80 }),
];

/// The sizes that can be asked for.
pub const CPU_CORES: [u32; 5] = [1, 2, 4, 8, 16];
pub const MEMORY_GB: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
pub const MIN_STORAGE_GB: u32 = 10;
/// Above this no machine of ours could serve it; what a provider really has is the tracker's matter.
pub const MAX_STORAGE_GB: u32 = 65_536;

impl Resources {
    /// # Errors
    /// Every field that is out of what can be asked for, each with a message for the requestor.
    pub fn new(
        cpu_cores: u32,
        memory_gb: u32,
        storage_gb: u32,
    ) -> Result<Resources, Vec<InvalidSize>> {
        let mut problems = Vec::new();
        if !CPU_CORES.contains(&cpu_cores) {
            problems.push(InvalidSize {
                field: SizeField::Cpu,
                message: format!(
                    "cpu has to be one of {} cores, not {cpu_cores}",
                    list(&CPU_CORES)
                ),
            });
        }
        if !MEMORY_GB.contains(&memory_gb) {
            problems.push(InvalidSize {
                field: SizeField::Memory,
                message: format!(
                    "memory has to be one of {} GB, not {memory_gb}",
                    list(&MEMORY_GB)
                ),
            });
        }
        if !(MIN_STORAGE_GB..=MAX_STORAGE_GB).contains(&storage_gb) {
            problems.push(InvalidSize {
                field: SizeField::Storage,
                message: format!(
                    "storage has to be {MIN_STORAGE_GB} to {MAX_STORAGE_GB} GB, not {storage_gb}"
                ),
            });
        }
        if problems.is_empty() {
            Ok(Resources { cpu_cores, memory_gb, storage_gb })
        } else {
            Err(problems)
        }
    }
}

impl From<Resources> for Amounts {
    fn from(resources: Resources) -> Amounts {
        Amounts {
            cpu_cores: resources.cpu_cores.into(),
            memory_gb: resources.memory_gb.into(),
            storage_gb: resources.storage_gb.into(),
        }
    }
}

fn list(sizes: &[u32]) -> String {
    sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// A size that cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidSize {
    pub field: SizeField,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeField {
    Cpu,
    Memory,
    Storage,
}

/// What to make, checked as far as that can be done without knowing the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    pub name: VmName,
    pub resources: Resources,
    /// `None` is the provider's default backend.
    pub backend: Option<String>,
    /// `None` is the provider's default image.
    pub image: Option<String>,
    /// Logs in as root. Without one, a key has to be added later.
    pub ssh_key: Option<SshPublicKey>,
    /// What pays for it: a stream that was found good. Bound to the VM when it is admitted, and to no other ever after.
    pub payment: Option<Ticket>,
    /// Whom it is to belong to.
    pub ownership: Ownership,
}

/// A requestor's name for a VM: 3 to 64 of `a-z`, `0-9` and `-`, no `-` at either end, no two in a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmName(String);

/// A name that a VM cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a VM's name has 3 to 64 characters, lower-case letters, digits and single hyphens, and begins and ends with a letter or digit"
)]
pub struct InvalidName;

impl VmName {
    /// # Errors
    /// When it breaks one of the rules.
    pub fn parse(name: &str) -> Result<VmName, InvalidName> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good = (3..=64).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.contains("--");
        if good { Ok(VmName(name.to_owned())) } else { Err(InvalidName) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An OpenSSH public key that a guest's SSH server accepts. Displays as one canonical line without options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshPublicKey(PublicKey);

/// Why a text is not a public key that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSshKey {
    #[error(
        "an SSH public key is one line of at most {MAX_KEY_LENGTH} characters without control characters"
    )]
    NotOneLine,
    #[error(
        "that is not an OpenSSH public key ({0}); it reads like `ssh-ed25519 AAAA… comment`, as in the file that ends in .pub"
    )]
    NotAKey(String),
    #[error("SSH servers no longer accept {0} keys; make one with `ssh-keygen -t ed25519`")]
    Refused(String),
}

/// The longest key line accepted: an RSA key of 16,384 bits with a long comment fits.
const MAX_KEY_LENGTH: usize = 8192;
/// What OpenSSH's servers ask of an RSA key.
const MIN_RSA_BITS: usize = 1024;

impl SshPublicKey {
    /// # Errors
    /// When it is no key, of a kind that SSH servers refuse, or more than one line.
    pub fn parse(text: &str) -> Result<SshPublicKey, InvalidSshKey> {
        let line = text.trim();
        if line.len() > MAX_KEY_LENGTH || line.chars().any(char::is_control) {
            return Err(InvalidSshKey::NotOneLine);
        }
        let key = PublicKey::from_openssh(line)
            .map_err(|error| InvalidSshKey::NotAKey(error.to_string()))?;
        match (key.algorithm(), key.key_data()) {
            (Algorithm::Dsa, _) => Err(InvalidSshKey::Refused("DSA".to_owned())),
            (Algorithm::Other(name), _) => Err(InvalidSshKey::Refused(name.as_str().to_owned())),
            (_, KeyData::Rsa(rsa)) if modulus_bits(rsa) < MIN_RSA_BITS => {
                Err(InvalidSshKey::Refused(format!("RSA below {MIN_RSA_BITS} bits as")))
            }
            _ => Ok(SshPublicKey(key)),
        }
    }
}

fn modulus_bits(key: &ssh_key::public::RsaPublicKey) -> usize {
    key.n.as_positive_bytes().map_or(0, |bytes| {
        let leading = bytes.first().map_or(0, |byte| byte.leading_zeros() as usize);
        bytes.len() * 8 - leading
    })
}

impl fmt::Display for SshPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Writing out a key that was read cannot fail; if it ever did, this is an error of formatting.
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}

/// A create, as the one who asked for it follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: Uuid,
    /// The requestor's name of the VM.
    pub vm_name: String,
    /// Whom the VM belongs to.
    pub ownership: Ownership,
    pub status: JobStatus,
    /// Why it failed; the same text as the VM's `error_message`.
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    Creating,
    Ready,
    Failed,
}

impl JobStatus {
    /// The word for it in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            JobStatus::Creating => "creating",
            JobStatus::Ready => "ready",
            JobStatus::Failed => "failed",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<JobStatus> {
        [JobStatus::Creating, JobStatus::Ready, JobStatus::Failed]
            .into_iter()
            .find(|status| status.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio alice@example.org";

    #[test]
    fn names_follow_the_rules_clients_were_promised() {
        for good in ["abc", "a-b", "my-webserver", "007", "jobs", &"a".repeat(64)] {
            assert!(VmName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "ab",
            "-abc",
            "abc-",
            "a--b",
            "Abc",
            "a_b",
            "a.b",
            "ab ",
            "äbc",
            "a/b",
            &"a".repeat(65),
        ] {
            assert_eq!(VmName::parse(bad), Err(InvalidName), "{bad}");
        }
    }

    #[test]
    fn every_bad_size_is_named_at_once() {
        let problems = Resources::new(3, 5, 9).unwrap_err();
        let fields: Vec<_> = problems.iter().map(|problem| problem.field).collect();
        assert_eq!(fields, [SizeField::Cpu, SizeField::Memory, SizeField::Storage]);
        assert!(problems[1].message.contains("1, 2, 4, 8, 16, 32, 64 GB, not 5"));
        assert!(Resources::new(16, 64, MIN_STORAGE_GB).is_ok());
        assert!(Resources::new(0, 0, u32::MAX).is_err());
    }

    #[test]
    fn a_key_keeps_its_comment_and_loses_white_space_around_it() {
        let key = SshPublicKey::parse(&format!("  {ED25519}\n")).unwrap();
        assert_eq!(key.to_string(), ED25519);
    }

    #[test]
    fn a_key_cannot_carry_a_second_line_or_options() {
        assert_eq!(
            SshPublicKey::parse(&format!("{ED25519}\nssh-ed25519 AAAA evil")),
            Err(InvalidSshKey::NotOneLine)
        );
        assert!(matches!(
            SshPublicKey::parse(&format!("command=\"/bin/sh\" {ED25519}")),
            Err(InvalidSshKey::NotAKey(_))
        ));
        assert!(matches!(
            SshPublicKey::parse("ssh-ed25519 AAAAnonsense"),
            Err(InvalidSshKey::NotAKey(_))
        ));
        assert!(matches!(SshPublicKey::parse(""), Err(InvalidSshKey::NotAKey(_))));
    }

    #[test]
    fn phases_and_job_statuses_are_found_again_by_their_names() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_name(phase.name()), Some(phase));
        }
        for status in [JobStatus::Creating, JobStatus::Ready, JobStatus::Failed] {
            assert_eq!(JobStatus::from_name(status.as_str()), Some(status));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_name_exactly_when_the_documented_pattern_says_so(text in "[a-zA-Z0-9_.-]{0,70}") {
            let bytes = text.as_bytes();
            let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let pattern = bytes.len() >= 3
                && bytes.len() <= 64
                && bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
                && !bytes.windows(2).any(|pair| pair == b"--");
            prop_assert_eq!(VmName::parse(&text).is_ok(), pattern);
        }

        #[test]
        fn a_key_line_is_read_back_as_the_same_key_or_refused(text in "\\PC{0,200}") {
            if let Ok(key) = SshPublicKey::parse(&text) {
                prop_assert_eq!(SshPublicKey::parse(&key.to_string()), Ok(key));
            }
        }
    }
}
