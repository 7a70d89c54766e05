//! What the operator decides about VMs, and every time limit of this module in one place.

use std::time::Duration;

/// What the service goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmServiceConfig {
    /// The image of a VM whose requestor names none.
    pub default_image: String,
    /// VMs at a time, running or not; failed creates do not count.
    pub max_vms: u32,
    /// How long a machine may take to shut down before it is switched off.
    pub stop_grace: Duration,
    pub deadlines: Deadlines,
    /// How often records and machines are compared.
    pub reconcile_every: Duration,
    /// How soon something is tried again that failed in the background, such as a delete the backend refused.
    pub retry_every: Duration,
    /// How long a job is kept after its end.
    pub job_retention: Duration,
}

impl Default for VmServiceConfig {
    fn default() -> Self {
        VmServiceConfig {
            default_image: "24.04".to_owned(),
            max_vms: 10,
            stop_grace: Duration::from_secs(60),
            deadlines: Deadlines::default(),
            reconcile_every: Duration::from_secs(30),
            retry_every: Duration::from_secs(5),
            job_retention: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// After these the service gives a call to a backend up, whatever deadlines the backend has itself. A boot ends earlier if
/// the backend says that it may take less on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Making a machine, an image download included.
    pub create: Duration,
    /// Starting a machine, without its boot.
    pub start: Duration,
    /// A boot, whatever longer time the backend would allow.
    pub boot: Duration,
    /// Beyond what a boot may take by the backend's own word.
    pub boot_slack: Duration,
    /// Beyond the grace that the machine is given.
    pub stop_slack: Duration,
    pub delete: Duration,
    /// Anything that only asks: state, images, limits.
    pub ask: Duration,
    pub add_key: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Deadlines {
            create: Duration::from_secs(60 * 60),
            start: Duration::from_secs(60),
            boot: Duration::from_secs(300),
            boot_slack: Duration::from_secs(5),
            stop_slack: Duration::from_secs(30),
            delete: Duration::from_secs(120),
            ask: Duration::from_secs(10),
            add_key: Duration::from_secs(30),
        }
    }
}
