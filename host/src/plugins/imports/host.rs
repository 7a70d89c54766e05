//! `host`: the machine that the provider runs on. Found out once, at start.

use crate::plugins::{bindings::golem::provider::host::Host, call::CallState};

/// Facts of the machine that do not change while the provider runs.
#[derive(Debug, Clone)]
pub struct Machine {
    pub architecture: &'static str,
    pub cpu_cores: u32,
    pub boot_id: String,
    pub privileged: bool,
}

impl Machine {
    /// Asks the operating system.
    pub fn this() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            architecture: std::env::consts::ARCH,
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(
                // Where there is none, the time of the boot tells one from another.
                |_| sysinfo::System::boot_time().map_or_else(|_| "unknown".into(), |time| time.to_string()),
                |id| id.trim().to_owned(),
            ),
            privileged: rustix::process::geteuid().is_root(),
        }
    }
}

impl Host for CallState {
    fn architecture(&mut self) -> String {
        self.plugin.services.machine.architecture.to_owned()
    }

    fn cpu_cores(&mut self) -> u32 {
        self.plugin.services.machine.cpu_cores
    }

    fn boot_id(&mut self) -> String {
        self.plugin.services.machine.boot_id.clone()
    }

    fn is_privileged(&mut self) -> bool {
        self.plugin.services.machine.privileged
    }
}
