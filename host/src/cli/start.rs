//! `start` and `dev`: run the provider. They differ in the environment they choose.

use clap::Args;

use crate::settings::Overrides;

pub const START: &str = "\
Starts the provider and stays in the foreground until SIGTERM or SIGINT (Ctrl-C), unless --daemon is given.

Machines that run go on running when the provider ends, and are found again, with the same SSH ports, when it \
starts again. With --stop-vms-on-exit they are stopped instead.

Servers on the internet are asked whether the API's port and the SSH ports can be reached, at the start and every hour; \
only ports that can be are given to machines. How that went is shown when it is known, with what to do about it.

With --daemon it goes to the background and this waits until it answers: `golem-provider status` shows how it is then, `logs` what it writes into <data dir>/logs/provider.log, and `stop` ends it. `golem-provider service install` makes it a service of systemd.";

pub const DEV: &str = "\
Starts the provider in the development environment, for trying things out on this computer: API and SSH ports \
listen on 127.0.0.1 unless GOLEM_PROVIDER_HOST says otherwise, nothing is advertised, no payments are taken and no \
ports are verified. Apart from that it is the same program, with real machines.";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Stop all machines when the provider ends
    #[arg(long, conflicts_with = "keep_vms_on_exit")]
    stop_vms_on_exit: bool,
    /// Leave all machines running when the provider ends, whatever the settings say
    #[arg(long)]
    keep_vms_on_exit: bool,
    /// Start it in the background, and wait until it answers
    #[arg(long)]
    pub daemon: bool,
    /// What the one in the background is started with
    #[arg(long, hide = true, conflicts_with = "daemon")]
    pub detached: bool,
    /// Do not ask others whether the ports can be reached; take all of them as reachable
    #[arg(long)]
    no_verify_port: bool,
}

impl Arguments {
    /// What they say about settings.
    pub fn overrides(&self, development: bool) -> Overrides {
        let stop_vms_on_exit = match (self.stop_vms_on_exit, self.keep_vms_on_exit) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        Overrides { development, stop_vms_on_exit, skip_port_verification: self.no_verify_port }
    }
}
