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
                |_| {
                    sysinfo::System::boot_time()
                        .map_or_else(|_| "unknown".into(), |time| time.to_string())
                },
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

    fn name_servers(&mut self) -> Vec<String> {
        // Read at each call: a laptop changes networks. A small file that the system keeps in memory, so not off the runtime.
        std::fs::read_to_string("/etc/resolv.conf")
            .map_or_else(|_| Vec::new(), |text| name_servers(&text))
    }
}

/// The addresses behind `nameserver` in the text of a `resolv.conf`.
fn name_servers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next())
        .filter(|address| {
            address.split('%').next().is_some_and(|ip| ip.parse::<std::net::IpAddr>().is_ok())
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_of_resolv_conf() {
        let text = "# made by hand\nsearch example.org\nnameserver 10.0.0.53\n nameserver fe80::1%eth0\nnameserver nonsense\n";
        assert_eq!(name_servers(text), ["10.0.0.53", "fe80::1%eth0"]);
    }
}
