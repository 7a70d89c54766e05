//! A network of its own for a program that opens connections by the ten thousand: the machine's connection tracking, which
//! counts connections to itself too, would fill up and become what is measured.

use std::{os::unix::process::CommandExt, process::Command, process::Stdio};

use anyhow::{Context, Result};

use crate::rows;

/// Set in a program that has its own network.
const INSIDE: &str = "GOLEM_BENCH_OWN_NETWORK";

/// Many ports, and few of them kept back after the end of their connections: looking for a free one would take longer and
/// longer.
const PREPARE: &str = "\
ip link set lo up || exit 1
echo '10000 65000' > /proc/sys/net/ipv4/ip_local_port_range
echo 1000 > /proc/sys/net/ipv4/tcp_max_tw_buckets
exec \"$0\" \"$@\"";

/// Starts this program again in a network that holds nothing but a loopback interface, or says in the table that this could
/// not be done. To be called before anything else is.
///
/// # Errors
/// When this program cannot be started again.
pub fn enter_own() -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let namespaces: [&[&str]; 2] = [&["--net"], &["--net", "--map-root-user"]];
    let possible = namespaces.iter().find(|options| {
        let mut trial = Command::new("unshare");
        trial.args(**options).args(["ip", "link", "set", "lo", "up"]);
        trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    let Some(options) = possible else {
        rows::note(
            "measured in the machine's own network: making another one takes root, `unshare` and `ip`",
        );
        return Ok(());
    };
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new("unshare");
    command.args(*options).args(["sh", "-c", PREPARE]).arg(program);
    command.args(std::env::args_os().skip(1)).env(INSIDE, "yes");
    Err(command.exec()).context("starting this program in a network of its own")
}
