//! What is remembered of a machine, and where its files are.
//!
//! ```text
//! vms/<id>/vm.json      what the machine is and what it was last asked to be; written before anything else is made
//! vms/<id>/run.json     what is known of its present QEMU process; worthless once that process is gone
//! vms/<id>/disk.qcow2   its disk: what it wrote, over the image
//! vms/<id>/seed.img     what cloud-init reads at the first boot
//! vms/<id>/console.log  its serial console since it was last started
//! vms/<id>/booted       exists once SSH has answered for the first time
//! vms/<id>/qemu.log     what QEMU itself had to say
//! vms/<id>/qemu.pid     QEMU's lock against a second one; its path among QEMU's arguments is how a process is recognised
//! sockets/<hash>.*      QEMU's sockets, under short names because socket addresses are short
//! trash/<id>            a machine whose deletion has begun
//! ```
//! The types and [`Paths`] are pure; [`load`] and [`save`] use the plugin's files. `machine.rs` decides when.

use golem_provider_sdk::{Error, Result, files, vm_backend::SpecRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// The form of `vm.json`. A higher one was written by a newer plugin and is not touched.
const VERSION: u32 = 1;

/// `vm.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmRecord {
    pub version: u32,
    pub spec: SpecRecord,
    /// The machine's identity towards its operating system and cloud-init.
    pub uuid: String,
    pub mac: String,
    /// Present once disk and seed are made.
    pub boot: Option<Boot>,
    /// Keys that were added after it was made.
    pub added_ssh_keys: Vec<String>,
    /// Has it been started at least once? Until then, `create` has not finished.
    pub created: bool,
    pub wanted: Wanted,
    /// How often a start was begun.
    pub launches: u32,
}

/// What it boots from, as paths in the plugin's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Boot {
    /// The read-only image under the machine's disk.
    pub image: String,
    /// Absent where the disk's own boot loader is used.
    pub direct: Option<DirectKernel>,
    /// An account beside root that the keys log in to.
    pub account: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirectKernel {
    pub kernel: String,
    pub initrd: String,
    pub append: String,
}

/// What the machine was last asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    Running,
    Stopped,
}

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunRecord {
    /// Which process this is about: a process id alone comes back.
    pub pid: u32,
    pub launch: u32,
    /// The port on 127.0.0.1 that leads to the machine's SSH server.
    pub ssh_port: u16,
    pub accelerator: crate::accelerator::Accelerator,
    /// Has SSH answered since this process was started?
    pub ssh_answered: bool,
}

impl VmRecord {
    /// A machine of which nothing is made yet. The random bytes become its identity.
    pub fn new(spec: SpecRecord, random: [u8; 19]) -> Self {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&random[..16]);
        // Version 4, variant 1 of RFC 9562.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let hex = hex::encode(uuid);
        let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        // 52:54:00 is the locally administered range that QEMU uses by custom.
        let mac = format!("52:54:00:{:02x}:{:02x}:{:02x}", random[16], random[17], random[18]);
        Self {
            version: VERSION,
            spec,
            uuid,
            mac,
            boot: None,
            added_ssh_keys: Vec::new(),
            created: false,
            wanted: Wanted::Running,
            launches: 0,
        }
    }

    /// All keys that may log in.
    pub fn ssh_keys(&self) -> Vec<&str> {
        self.spec
            .ssh_authorized_keys
            .iter()
            .chain(&self.added_ssh_keys)
            .map(String::as_str)
            .collect()
    }
}

/// Where a machine's files are in the plugin's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    id: String,
}

impl Paths {
    /// # Errors
    /// [`Error::InvalidArgument`] unless the id is one that the contract allows: it becomes part of paths.
    pub fn of(id: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if id.is_empty() || id.len() > 100 || !id.bytes().all(allowed) {
            return Err(Error::InvalidArgument(format!(
                "`{id}` cannot name a machine: 1 to 100 of a-z, 0-9 and -"
            )));
        }
        Ok(Self { id: id.to_owned() })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn directory(&self) -> String {
        format!("{VMS}/{}", self.id)
    }

    pub fn trash(&self) -> String {
        format!("trash/{}", self.id)
    }

    fn file(&self, name: &str) -> String {
        format!("{VMS}/{}/{name}", self.id)
    }

    pub fn vm_record(&self) -> String {
        self.file("vm.json")
    }

    pub fn run_record(&self) -> String {
        self.file("run.json")
    }

    pub fn disk(&self) -> String {
        self.file("disk.qcow2")
    }

    /// A disk that is being made.
    pub fn unfinished_disk(&self) -> String {
        self.file("disk.qcow2.new")
    }

    pub fn seed(&self) -> String {
        self.file("seed.img")
    }

    pub fn console(&self) -> String {
        self.file("console.log")
    }

    /// A file of its own, because it is written beside calls that change the record.
    pub fn booted(&self) -> String {
        self.file("booted")
    }

    pub fn qemu_log(&self) -> String {
        self.file("qemu.log")
    }

    pub fn pid_file(&self) -> String {
        self.file("qemu.pid")
    }

    /// QEMU's control socket.
    pub fn qmp(&self) -> String {
        self.socket("qmp")
    }

    /// The guest agent's socket.
    pub fn agent(&self) -> String {
        self.socket("agent")
    }

    /// The socket to the plugin's own helper in the guest.
    pub fn keys(&self) -> String {
        self.socket("keys")
    }

    pub fn sockets(&self) -> [String; 3] {
        [self.qmp(), self.agent(), self.keys()]
    }

    /// A socket's address has room for 107 bytes, an id alone takes up to 100.
    fn socket(&self, kind: &str) -> String {
        let hash = Sha256::digest(self.id.as_bytes());
        format!("{SOCKETS}/{}.{kind}", hex::encode(&hash[..8]))
    }
}

/// The directory with one directory per machine.
pub const VMS: &str = "vms";
/// The directory of QEMU's sockets.
pub const SOCKETS: &str = "sockets";

/// The record of a machine; absent if there is none.
///
/// # Errors
/// [`Error::Internal`] if it cannot be understood: a machine is never taken for gone because of that.
pub fn load(paths: &Paths) -> Result<Option<VmRecord>> {
    let path = paths.vm_record();
    let Some(text) = files::read_to_string(&path)? else { return Ok(None) };
    parse(&text).map(Some).map_err(|wrong| Error::Internal(format!("{path}: {wrong}")))
}

fn parse(text: &str) -> core::result::Result<VmRecord, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!(
            "written by a newer plugin (form {version}, this one knows {VERSION}); install that one again"
        ));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Keeps the record of a machine.
pub fn save(paths: &Paths, record: &VmRecord) -> Result<()> {
    write_json(&paths.vm_record(), record)
}

/// What is known of the machine's process; absent if nothing is.
pub fn load_run(paths: &Paths) -> Result<Option<RunRecord>> {
    read_json(&paths.run_record())
}

/// Keeps what is known of the machine's process.
pub fn save_run(paths: &Paths, run: &RunRecord) -> Result<()> {
    write_json(&paths.run_record(), run)
}

/// A file that can be found out anew reads as absent when it makes no sense.
fn read_json<T: DeserializeOwned>(path: &str) -> Result<Option<T>> {
    Ok(files::read_to_string(path)?.and_then(|text| serde_json::from_str(&text).ok()))
}

fn write_json<T: Serialize>(path: &str, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Internal(format!("cannot write {path} as JSON: {error}")))?;
    files::write(path, &text)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn example() -> VmRecord {
        let spec = SpecRecord {
            id: "golem-web-1".into(),
            hostname: "web".into(),
            cpu_cores: 2,
            memory_mib: 2048,
            storage_mib: 20_480,
            image: "24.04".into(),
            ssh_authorized_keys: vec!["ssh-ed25519 AAAA a".into()],
        };
        VmRecord::new(spec, core::array::from_fn(|at| u8::try_from(at).unwrap() | 0xc0))
    }

    #[test]
    fn an_identity_is_a_random_uuid_and_a_locally_administered_address() {
        let record = example();
        assert_eq!(record.uuid, "c0c1c2c3-c4c5-46c7-88c9-cacbcccdcecf");
        assert_eq!(record.mac, "52:54:00:d0:d1:d2");
        let first = u8::from_str_radix(&record.mac[..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10, "locally administered, for one receiver");
    }

    #[test]
    fn a_record_survives_being_written_and_read() {
        let mut record = example();
        record.boot = Some(Boot { image: "images/ab".into(), direct: None, account: None });
        assert_eq!(parse(&serde_json::to_string(&record).unwrap()).unwrap(), record);
    }

    #[test]
    fn a_record_of_a_newer_plugin_is_refused_and_says_so() {
        let error = parse(r#"{"version": 2, "something": "new"}"#).unwrap_err();
        assert!(error.contains("newer plugin"), "{error}");
    }

    #[test]
    fn an_id_that_would_leave_the_directory_is_refused() {
        for wrong in ["", "..", "a/b", "A", "a.b", "a b", &"a".repeat(101)] {
            assert!(Paths::of(wrong).is_err(), "{wrong}");
        }
        assert!(Paths::of(&"a".repeat(100)).is_ok());
    }

    #[test]
    fn socket_addresses_are_short_and_differ_between_machines() {
        let (one, other) = (Paths::of(&"a".repeat(100)).unwrap(), Paths::of("b").unwrap());
        assert!(one.sockets().iter().all(|path| path.len() < 40));
        assert!(one.sockets().iter().all(|path| !other.sockets().contains(path)));
    }
}
