//! What is wrong, and what to do about it: a function of the sections, with a table of tests.

use serde::{Deserialize, Serialize};

use super::{
    NetworkSection, PaymentsSection, PluginState, PluginsSection, ResourcesSection, Sections,
    StartSection, VmsSection,
};
use crate::{
    discovery::{AdvertiserState, Visibility},
    ports::verification::{PortState, VerificationStatus, ranges},
    vms::Phase,
};

/// Something that the operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    pub severity: Severity,
    /// One word for programs, such as `vm-failed`.
    pub code: String,
    /// What is wrong, in one sentence.
    pub sentence: String,
    /// What to do about it.
    pub remedy: String,
}

/// How bad it is. The worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Something does not work as it should.
    Warning,
    /// The provider does not do what it is for.
    Critical,
}

/// Everything that is wrong, the worst first.
pub(super) fn issues(sections: &Sections) -> Vec<Issue> {
    let Sections {
        provider: _,
        resources,
        vms,
        plugins,
        network,
        prices: _,
        payments,
        proxy: _,
        start,
    } = sections;
    let mut found = Vec::new();
    match start {
        Some(start) => of_start(start, vms, &mut found),
        None => {
            of_plugins(plugins, vms, &mut found);
            of_vms(vms, plugins, &mut found);
            if let Some(resources) = resources {
                of_resources(resources, &mut found);
            }
            if let Some(network) = network {
                of_reachability(network, &mut found);
                of_advertisers(network, &mut found);
            }
            if let Some(payments) = payments {
                of_payments(payments, &mut found);
            }
        }
    }
    found.sort_by_key(|issue| std::cmp::Reverse(issue.severity));
    found
}

fn issue(
    severity: Severity,
    code: &str,
    sentence: impl Into<String>,
    remedy: impl Into<String>,
) -> Issue {
    Issue { severity, code: code.to_owned(), sentence: sentence.into(), remedy: remedy.into() }
}

fn of_start(start: &StartSection, vms: &VmsSection, found: &mut Vec<Issue>) {
    let running = vms.list.iter().filter(|vm| vm.is(Phase::Running)).count();
    let unreachable = match running {
        0 => String::new(),
        1 => "; a machine that ran when it ended cannot be reached".to_owned(),
        many => format!("; {many} machines that ran when it ended cannot be reached"),
    };
    match start.silent_pid {
        Some(pid) => found.push(issue(
            Severity::Critical,
            "silent",
            format!("a provider has the data directory (process {pid}) and does not answer{unreachable}"),
            format!(
                "it may be starting: look again in a minute, and at `golem-provider logs`; if it stays so, end process {pid} and start again"
            ),
        )),
        None => found.push(issue(
            Severity::Critical,
            "down",
            format!("the provider does not run{unreachable}"),
            "golem-provider start --daemon",
        )),
    }
    if let Some(problem) = &start.data_dir_problem {
        found.push(issue(
            Severity::Critical,
            "data-dir",
            problem,
            "see what `golem-provider doctor` says of the data directory",
        ));
    }
    if let Some(problem) = &start.address_problem {
        found.push(issue(
            Severity::Critical,
            "address",
            format!("the API could not listen on {problem}"),
            "`ss -ltnp` shows who has the port; end that, or choose another one with GOLEM_PROVIDER_HOST and GOLEM_PROVIDER_PORT",
        ));
    }
}

fn of_plugins(plugins: &PluginsSection, vms: &VmsSection, found: &mut Vec<Issue>) {
    if let Some(reason) = &plugins.no_backend {
        found.push(issue(
            Severity::Critical,
            "no-backend",
            format!("no machine can be made: {reason}"),
            "`golem-provider doctor` tries every plugin and says what each needs",
        ));
    }
    for plugin in &plugins.list {
        let name = &plugin.name;
        let has_vms = vms.list.iter().any(|vm| vm.backend == *name);
        match plugin.state {
            PluginState::Working | PluginState::Idle => {}
            PluginState::Degraded => {
                let functions: Vec<String> = plugin
                    .failing
                    .iter()
                    .map(|failing| format!("`{}` ({} times in a row)", failing.function, failing.failures))
                    .collect();
                found.push(issue(
                    Severity::Warning,
                    "plugin-degraded",
                    format!("the plugin {name} fails at {}", functions.join(", ")),
                    format!("`golem-provider logs` says why; it is tried again by itself, or replace it: golem-provider plugin install {name}.wasm"),
                ));
            }
            PluginState::Unusable => {
                let reason = plugin.problem.as_deref().unwrap_or("it cannot work on this machine");
                // A bundled plugin that does not fit this machine is no fault as long as another one makes the machines.
                let severity = if has_vms || plugin.origin != "bundled" || plugin.problem.is_some() {
                    Severity::Warning
                } else {
                    Severity::Note
                };
                found.push(issue(
                    severity,
                    "plugin-unusable",
                    format!("the plugin {name} is not used: {reason}"),
                    format!("`golem-provider doctor` says what it needs; without it: golem-provider plugin disable {name}"),
                ));
            }
            PluginState::Disabled if has_vms => found.push(issue(
                Severity::Warning,
                "plugin-disabled",
                format!("the plugin {name} is switched off, and there are machines that only it can manage"),
                format!("golem-provider plugin enable {name}"),
            )),
            PluginState::Disabled => {}
        }
    }
}

fn of_vms(vms: &VmsSection, plugins: &PluginsSection, found: &mut Vec<Issue>) {
    for vm in &vms.list {
        let name = &vm.name;
        if !plugins.list.iter().any(|plugin| plugin.name == vm.backend) {
            found.push(issue(
                Severity::Warning,
                "backend-gone",
                format!(
                    "the machine {name} was made by the plugin {}, which is not there",
                    vm.backend
                ),
                format!("golem-provider plugin install {}.wasm", vm.backend),
            ));
        }
        if vm.is(Phase::Failed) {
            let reason = vm.error.as_deref().unwrap_or("no reason is known");
            found.push(issue(
                Severity::Warning,
                "vm-failed",
                format!("the machine {name} could not be made: {reason}"),
                "its requestor can delete it or ask again; `golem-provider doctor --boot` shows whether machines boot here",
            ));
        } else if let Some(error) = &vm.error {
            found.push(issue(
                Severity::Warning,
                "vm-error",
                format!("the machine {name} ({}): {error}", vm.state),
                "`golem-provider logs` tells what led to it; it is tried again by itself where that helps",
            ));
        }
        if let (true, Some(port), None) = (vm.is(Phase::Running), vm.ssh_port, vm.traffic) {
            found.push(issue(
                Severity::Warning,
                "port-closed",
                format!("the machine {name} runs, but its port {port} is not open"),
                format!("another program may have it: `ss -ltnp sport = :{port}`; it is opened as soon as it is free"),
            ));
        }
    }
}

const PORTS_REMEDY: &str = "forward the port on your router to this computer and let it through its firewall; README has more under \"Ports that cannot be reached\"";

fn of_reachability(section: &NetworkSection, found: &mut Vec<Issue>) {
    let reached = &section.reachability;
    let port = reached.provider_port.port;
    let nobody_asked =
        matches!(reached.status, VerificationStatus::Pending | VerificationStatus::Skipped);
    if reached.address.is_none() && reached.status != VerificationStatus::Pending {
        found.push(issue(
            Severity::Critical,
            "no-address",
            "the public address of this computer is not known",
            "set GOLEM_PROVIDER_PUBLIC_IP to the one that requestors reach it by",
        ));
    }
    match reached.provider_port.external {
        PortState::Closed | PortState::Misdirected | PortState::Occupied => found.push(issue(
            Severity::Critical,
            "provider-port-closed",
            format!("requestors cannot reach the API: port {port} is closed from outside"),
            PORTS_REMEDY,
        )),
        PortState::Unverified if !nobody_asked => found.push(issue(
            Severity::Warning,
            "ports-unverified",
            format!("nobody could say whether port {port} can be reached from outside"),
            "see which servers failed in `golem-provider status --json`; others can be set with GOLEM_PROVIDER_PORT_CHECK_SERVERS, and GOLEM_PROVIDER_UNVERIFIED_PORTS=trust goes on without",
        )),
        PortState::Unverified | PortState::Open | PortState::Skipped => {}
    }
    let ssh = &reached.ssh_ports;
    if ssh.usable.is_empty() && reached.status == VerificationStatus::Verified {
        found.push(issue(
            Severity::Critical,
            "no-ssh-port",
            format!(
                "no port for SSH to machines can be reached ({}-{})",
                ssh.from,
                ssh.to.saturating_sub(1)
            ),
            PORTS_REMEDY,
        ));
    }
    if !ssh.vms_cut_off.is_empty() {
        found.push(issue(
            Severity::Warning,
            "vms-cut-off",
            format!("requestors cannot reach their machines on ports {}", ranges(&ssh.vms_cut_off)),
            PORTS_REMEDY,
        ));
    }
}

fn of_payments(section: &PaymentsSection, found: &mut Vec<Issue>) {
    if let Some(reason) = &section.blocked {
        found.push(issue(
            Severity::Critical,
            "payments-unreadable",
            format!("no machine can be made that has to be paid for: {reason}"),
            "look at GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS, GOLEM_PROVIDER_POLYGON_RPC_URL and `golem-provider plugin list`, and start the provider again",
        ));
    } else if let Some(reason) = &section.silent {
        found.push(issue(
            Severity::Warning,
            "chain-silent",
            format!("streams cannot be read: {reason}"),
            "machines go on as long as was paid by the last answer, and none is made meanwhile; a further node can be set with GOLEM_PROVIDER_POLYGON_RPC_URL",
        ));
    }
    if !section.unpaid.is_empty() && !section.monitor_enabled {
        found.push(issue(
            Severity::Warning,
            "unpaid-machines",
            format!("nobody pays any more for {}", section.unpaid.join(", ")),
            "golem-provider config monitor --enable stops such machines",
        ));
    }
}

fn of_advertisers(section: &NetworkSection, found: &mut Vec<Issue>) {
    for name in &section.missing_advertisers {
        found.push(issue(
            Severity::Warning,
            "advertiser-missing",
            format!("the provider should be listed by {name}, which is no plugin that can be used"),
            format!("golem-provider plugin list; or choose others: golem-provider plugin use discovery-advertiser NAME (without {name})"),
        ));
    }
    for advertiser in &section.advertisers {
        let name = &advertiser.name;
        let reason = advertiser.reason.as_deref().unwrap_or("no reason is known");
        match advertiser.state {
            AdvertiserState::Failing => found.push(issue(
                Severity::Warning,
                "advertiser-failing",
                format!("{name}: {reason}"),
                "it is tried again by itself; `golem-provider doctor` looks whether the server can be reached",
            )),
            AdvertiserState::Withheld => found.push(issue(
                Severity::Note,
                "not-advertised",
                format!("nothing is advertised with {name}: {reason}"),
                "nothing has to be done if that is as it should be",
            )),
            AdvertiserState::Starting | AdvertiserState::Published => {}
        }
        if let Some(seen) = &advertiser.seen
            && advertiser.state == AdvertiserState::Published
        {
            let phrase = match seen.visibility {
                Visibility::Visible => continue,
                other => other.phrase(),
            };
            found.push(issue(
                Severity::Warning,
                "not-visible",
                format!("our entry with {name} is {phrase}"),
                "it is published again by itself; if this goes on, somebody else may be using the same id",
            ));
        }
    }
}

/// Says so when the rest of the computer leaves no room that could be let; that machines fill it is what it is for.
fn of_resources(section: &ResourcesSection, found: &mut Vec<Issue>) {
    let ResourcesSection { amounts, minimums } = section;
    let unlet = amounts.allocatable.less(amounts.allocated);
    let each = [
        ("memory", unlet.memory_gb, amounts.available.memory_gb, minimums.memory_gb),
        ("storage", unlet.storage_gb, amounts.available.storage_gb, minimums.storage_gb),
    ];
    for (what, unlet, available, minimum) in each {
        let minimum = u64::from(minimum);
        if unlet >= minimum && available < minimum {
            found.push(issue(
                Severity::Warning,
                "no-room",
                format!("other things fill this computer's {what}: {unlet} GB could be let, and {available} GB are free"),
                format!("free some {what}; the smallest machine takes {minimum} GB"),
            ));
        }
    }
    let allocatable = amounts.allocatable;
    let too_small = allocatable.cpu_cores < u64::from(minimums.cpu_cores)
        || allocatable.memory_gb < u64::from(minimums.memory_gb)
        || allocatable.storage_gb < u64::from(minimums.storage_gb);
    if too_small {
        found.push(issue(
            Severity::Critical,
            "too-small",
            format!(
                "nothing can be let: {} cores, {} GB of memory and {} GB of storage may be, and the smallest machine takes {}, {} and {}",
                allocatable.cpu_cores,
                allocatable.memory_gb,
                allocatable.storage_gb,
                minimums.cpu_cores,
                minimums.memory_gb,
                minimums.storage_gb
            ),
            "raise GOLEM_PROVIDER_CPU_THRESHOLD, MEMORY_THRESHOLD or STORAGE_THRESHOLD, lower the minimums, or add to the computer",
        ));
    }
}

#[cfg(test)]
mod tests;
