//! A hypervisor as the rest of the provider sees it: the trait [`VmBackend`] and the values it speaks in.
//!
//! They mirror `wit/vms.wit`, which says what each call promises; here is what the caller has to know. The components that
//! implement it are behind `vm_component.rs`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{failure::Failure, health::Degraded};

/// Makes and runs virtual machines.
///
/// Every call ends by itself within a deadline of its own. Dropping a call's future ends the call; what it had begun stays
/// begun, and repeating the call (or `delete`) is safe. Callers serialise changing calls for one instance.
#[async_trait]
pub trait VmBackend: Send + Sync + 'static {
    /// The name that VMs remember their backend by.
    fn name(&self) -> &str;

    /// Functions of it that have failed too often in a row. Never waits.
    fn degraded(&self) -> Vec<Degraded> {
        Vec::new()
    }

    /// What `create` accepts now.
    async fn images(&self) -> Result<Vec<Image>, Failure>;

    /// How boots have to be rationed on this machine.
    async fn limits(&self) -> Result<BootLimits, Failure>;

    /// Makes the machine and starts it, without waiting for it to boot. May take minutes when an image has to be fetched.
    async fn create(
        &self,
        spec: &InstanceSpec,
        progress: ProgressSink,
    ) -> Result<Instance, Failure>;

    /// Starts a stopped machine, without waiting for it to boot.
    async fn start(&self, id: &str, progress: ProgressSink) -> Result<Instance, Failure>;

    /// Waits until SSH answers in the machine.
    async fn await_ready(&self, id: &str, progress: ProgressSink) -> Result<Instance, Failure>;

    /// Shuts down within `grace`, else switches off.
    async fn stop(&self, id: &str, grace: Duration) -> Result<Instance, Failure>;

    /// Removes everything that was made for the machine. Unknown ids are a success.
    async fn delete(&self, id: &str) -> Result<(), Failure>;

    /// What the machine is doing.
    async fn inspect(&self, id: &str) -> Result<Instance, Failure>;

    /// Everything this backend made and has not deleted.
    async fn inspect_all(&self) -> Result<Vec<Instance>, Failure>;

    /// Lets one more key log in as root.
    async fn add_ssh_key(&self, id: &str, key: &str) -> Result<(), Failure>;
}

/// Where a call says how far it has come. Cheap to call; never blocks.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// How far a long call has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// A short phrase, such as `downloading image`.
    pub stage: String,
    /// Within the stage, 0 to 100.
    pub percent: Option<u8>,
}

/// An image that `create` accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub alias: String,
    pub description: String,
}

/// How boots have to be rationed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootLimits {
    /// At least 1.
    pub parallel_boots: usize,
    /// After this, a boot counts as failed.
    pub boot_timeout: Duration,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    pub id: String,
    pub hostname: String,
    pub cpu_cores: u32,
    pub memory_mib: u64,
    pub storage_mib: u64,
    pub image: String,
    pub ssh_authorized_keys: Vec<String>,
}

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub power: PowerState,
    /// Where its SSH server is reached; may change with every start.
    pub ssh: Option<SocketAddr>,
    /// The machine's own address, for people.
    pub ip_address: Option<String>,
    /// What people should know of this state.
    pub detail: Option<String>,
}

/// See `power-state` in `wit/vms.wit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    Starting,
    Running,
    Stopping,
    Stopped,
    Crashed,
}

impl PowerState {
    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }
}
