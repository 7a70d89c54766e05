//! A status as text: a function of the status, the time and the width.

use std::time::Duration;

use console::style;
use jiff::Timestamp;
use rust_decimal::Decimal;

use crate::{
    cli::print::{bytes, duration, shortened, table, wrapped},
    discovery::{AdvertiserReport, AdvertiserState},
    payments::pricing::{MonthlyPrices, Prices},
    plugins::Kind,
    ports::verification::ranges,
    resources::Amounts,
    status::{
        Health, Issue, NetworkSection, PaymentsSection, PluginLine, PluginState, PluginsSection,
        ProviderSection, ProxySection, ResourcesSection, Severity, Status, VmLine, VmsSection,
    },
    telemetry::LogTarget,
};

/// The screen.
pub fn of(status: &Status, now: Timestamp, width: usize) -> String {
    let sections = &status.sections;
    let mut parts = vec![provider(status.health, &sections.provider, now)];
    parts.extend(sections.resources.as_ref().map(resources));
    parts.extend(sections.network.as_ref().map(|section| network(section, now, width)));
    parts.extend(sections.prices.as_ref().map(|section| prices(section, now, width)));
    parts.extend(sections.payments.as_ref().map(|section| payments(section, width)));
    parts.push(vms(&sections.vms, now, width));
    parts.push(plugins(&sections.plugins, now, width));
    parts.extend(sections.proxy.as_ref().map(|section| proxy(section, width)));
    parts.push(issues(&status.issues, width));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn heading(text: &str) -> String {
    style(text).bold().to_string()
}

fn since(then: Timestamp, now: Timestamp) -> String {
    duration(Duration::try_from(now.duration_since(then)).unwrap_or_default())
}

fn until(then: Timestamp, now: Timestamp) -> String {
    duration(Duration::try_from(then.duration_since(now)).unwrap_or_default())
}

fn provider(health: Health, section: &ProviderSection, now: Timestamp) -> String {
    let word = match health {
        Health::Healthy => style("healthy").green(),
        Health::Issues => style("running, with issues").yellow(),
        Health::Down => style("not running").red(),
    };
    let mut text =
        format!("{} {}\n", heading(&format!("golem-provider {}:", section.version)), word.bold());
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push(vec![format!("  {name}"), value]);
    if let Some(running) = &section.running {
        row("process", format!("{}, for {}", running.pid, since(running.since, now)));
    }
    row("environment", section.environment.as_str().to_owned());
    row("API", format!("http://{}", section.api));
    row("data", section.data_dir.display().to_string());
    match section.running.as_ref().map(|running| &running.log) {
        Some(LogTarget::File { path }) => row("log", path.display().to_string()),
        Some(LogTarget::Journal) => row("log", "the system's journal".to_owned()),
        Some(LogTarget::StandardError) => row("log", "where it was started".to_owned()),
        None => {}
    }
    text += &table(&rows);
    text
}

fn resources(section: &ResourcesSection) -> String {
    let amounts = &section.amounts;
    let columns = [
        ("LET", amounts.allocated),
        ("OF", amounts.allocatable),
        ("FREE NOW", amounts.available),
        ("THERE ARE", amounts.total),
    ];
    let mut rows =
        ["RESOURCES", "cores", "memory, GB", "storage, GB"].map(|name| vec![name.to_owned()]);
    for (head, Amounts { cpu_cores, memory_gb, storage_gb }) in columns {
        let cells =
            [head.to_owned(), cpu_cores.to_string(), memory_gb.to_string(), storage_gb.to_string()];
        let width = cells.iter().map(String::len).max().unwrap_or_default();
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.push(format!("{cell:>width$}"));
        }
    }
    headed(&rows)
}

/// A table whose first row is its heading.
fn headed(rows: &[Vec<String>]) -> String {
    let text = table(rows);
    match text.split_once('\n') {
        Some((head, rest)) => format!("{}\n{rest}", heading(head)),
        None => text,
    }
}

fn network(section: &NetworkSection, now: Timestamp, width: usize) -> String {
    let reached = &section.reachability;
    let ssh = &reached.ssh_ports;
    let place = match (section.advertisable_at, &section.not_advertisable) {
        (Some(address), _) => format!("at {address}"),
        (None, Some(reason)) => format!("no: {reason}"),
        (None, None) => "not known".to_owned(),
    };
    let mut sentence = format!(
        "{place}; API port {} {}; {} SSH ports usable",
        reached.provider_port.port,
        reached.provider_port.external.phrase(),
        ssh.usable.len()
    );
    if !ssh.usable.is_empty() {
        sentence += &format!(" ({})", ranges(&ssh.usable));
    }
    if reached.checking {
        sentence += "; being checked now";
    } else if let Some(checked) = reached.checked_at {
        sentence += &format!("; checked {} ago", since(checked, now));
    }
    if let Some(next) = reached.next_check_at {
        sentence += &format!(", again in {}", until(next, now));
    }
    let mut text = wrapped(&format!("{} ", heading("REACHABLE")), &sentence, width);
    if section.advertisers.is_empty() {
        text += &wrapped(&format!("{}   ", heading("VISIBLE")), "advertised nowhere", width);
        return text;
    }
    for (index, advertiser) in section.advertisers.iter().enumerate() {
        let head = match index {
            0 => format!("{}   {}: ", heading("VISIBLE"), advertiser.name),
            _ => format!("          {}: ", advertiser.name),
        };
        text += &wrapped(&head, &listed(advertiser, now), width);
    }
    text
}

/// How an advertiser is doing, in one sentence.
fn listed(advertiser: &AdvertiserReport, now: Timestamp) -> String {
    let reason = advertiser.reason.as_deref().unwrap_or("no reason is known");
    let mut sentence = match advertiser.state {
        AdvertiserState::Starting => match &advertiser.reason {
            Some(reason) => format!("not yet: {reason}"),
            None => "being advertised for the first time".to_owned(),
        },
        AdvertiserState::Withheld => format!("nothing is advertised: {reason}"),
        AdvertiserState::Failing => format!("failing: {reason}"),
        AdvertiserState::Published => match &advertiser.seen {
            Some(seen) => {
                format!("{}, looked up {} ago", seen.visibility.phrase(), since(seen.at, now))
            }
            None => "published".to_owned(),
        },
    };
    if let Some(success) = advertiser.last_success {
        sentence += &format!("; published {} ago", since(success, now));
    }
    if let Some(expires) = advertiser.expires {
        sentence += &format!(", for another {}", until(expires, now));
    }
    if let Some(next) = advertiser.next.filter(|_| advertiser.state == AdvertiserState::Failing) {
        sentence += &format!("; tried again in {}", until(next, now));
    }
    sentence
}

fn payments(section: &PaymentsSection, width: usize) -> String {
    let counted = section.machines.iter();
    let counted: Vec<String> = counted
        .map(|(state, count)| format!("{count} {}", state.name().replace('_', " ")))
        .collect();
    let streams = if counted.is_empty() { "none".to_owned() } else { counted.join(", ") };
    let monitor = match section.monitor_enabled {
        true => "machines stop when nobody pays",
        false => "machines go on when nobody pays",
    };
    let sentence = format!("streams of running machines: {streams}; {monitor}");
    wrapped(&format!("{}  ", heading("PAYMENTS")), &sentence, width)
}

fn prices(section: &Prices, now: Timestamp, width: usize) -> String {
    let each = |prices: &MonthlyPrices| {
        let price = |amount: Decimal| amount.round_sf(4).unwrap_or(amount).normalize();
        format!(
            "{} a core, {} a GB of memory, {} a GB of storage",
            price(prices.per_core),
            price(prices.per_gb_ram),
            price(prices.per_gb_storage)
        )
    };
    let mut sentence = format!("a month in USD: {}", each(&section.usd));
    match (&section.glm, &section.rate) {
        (Some(glm), Some(rate)) => {
            sentence += &format!(
                "; in GLM: {} (1 GLM is {} USD, as of {} ago)",
                each(glm),
                rate.usd_per_glm.normalize(),
                since(rate.at, now)
            );
        }
        _ => sentence += "; none in GLM, as nobody has told what it is worth",
    }
    wrapped(&format!("{}    ", heading("PRICES")), &sentence, width)
}

fn vms(section: &VmsSection, now: Timestamp, width: usize) -> String {
    let VmsSection { max, list } = section;
    if list.is_empty() {
        return format!("{} none of {max}\n", heading("MACHINES"));
    }
    let row = |vm: &VmLine| {
        vec![
            vm.name.clone(),
            vm.state.clone(),
            vm.ssh_port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
            format!("{}/{}/{}", vm.cpu_cores, vm.memory_gb, vm.storage_gb),
            since(vm.created_at, now),
            vm.traffic
                .map_or_else(|| "-".to_owned(), |traffic| traffic.connections_open.to_string()),
            vm.backend.clone(),
            vm.id.clone(),
        ]
    };
    let head = ["NAME", "STATE", "PORT", "SIZE", "AGE", "CONN.", "BACKEND", "ID"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(list.iter().map(row));
    fit(&mut rows, width);
    let mut text = format!("{} {} of {max}\n{}", heading("MACHINES"), list.len(), headed(&rows));
    for vm in list {
        if let Some(progress) = &vm.progress {
            text += &wrapped(&format!("  {}: ", vm.name), progress, width);
        }
    }
    text
}

/// Lets a table of machines fit: without the ids where there is no room for them, and with shorter names.
fn fit(rows: &mut [Vec<String>], width: usize) {
    const NAME: usize = 0;
    const SHORTEST_NAME: usize = 12;
    let columns = |rows: &[Vec<String>]| rows.first().map_or(0, Vec::len);
    let longest = |rows: &[Vec<String>], column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let needed = |rows: &[Vec<String>]| {
        (0..columns(rows)).map(|column| longest(rows, column) + 2).sum::<usize>().saturating_sub(2)
    };
    if needed(rows) > width {
        rows.iter_mut().for_each(|row| drop(row.pop()));
    }
    let too_much = needed(rows).saturating_sub(width);
    if too_much > 0 {
        let most = longest(rows, NAME).saturating_sub(too_much).max(SHORTEST_NAME);
        rows.iter_mut().for_each(|row| row[NAME] = shortened(&row[NAME], most));
    }
}

fn plugins(section: &PluginsSection, now: Timestamp, width: usize) -> String {
    if section.list.is_empty() {
        return String::new();
    }
    let state = |plugin: &PluginLine| {
        let word = match plugin.state {
            PluginState::Working => "working",
            PluginState::Degraded => "degraded",
            PluginState::Disabled => "disabled",
            PluginState::Unusable => "unusable",
            PluginState::Idle => "not running",
        };
        match (plugin.in_use, plugin.kind) {
            (true, Some(Kind::VmBackend)) => format!("{word}, makes new machines"),
            (true, _) => format!("{word}, in use"),
            (false, _) => word.to_owned(),
        }
    };
    let row = |plugin: &PluginLine| {
        let version = plugin.version.clone().unwrap_or_else(|| "-".to_owned());
        vec![plugin.name.clone(), version, state(plugin), plugin.origin.clone()]
    };
    let mut rows = vec![["PLUGIN", "VERSION", "STATE", "FROM"].map(str::to_owned).to_vec()];
    rows.extend(section.list.iter().map(row));
    let mut text = headed(&rows);
    for plugin in &section.list {
        for failing in &plugin.failing {
            let sentence = format!(
                "`{}` has failed {} times in a row; degraded for {}, tried again in {}",
                failing.function,
                failing.failures,
                since(failing.since, now),
                until(failing.next_try, now)
            );
            text += &wrapped(&format!("  {}: ", plugin.name), &sentence, width);
        }
    }
    text
}

fn proxy(section: &ProxySection, width: usize) -> String {
    let ProxySection { ports_open, traffic } = section;
    let sentence = format!(
        "{} open on {ports_open} ports; {} in all, {} of them refused; {} to machines, {} from them",
        traffic.connections_open,
        traffic.connections_total,
        traffic.connections_refused,
        bytes(traffic.bytes_to_vms),
        bytes(traffic.bytes_from_vms)
    );
    wrapped(&format!("{} ", heading("CONNECTIONS")), &sentence, width)
}

fn issues(issues: &[Issue], width: usize) -> String {
    if issues.is_empty() {
        return format!("{}\n", style("Nothing is wrong.").green());
    }
    let mut text = format!("{}\n", heading("ISSUES"));
    for issue in issues {
        let word = match issue.severity {
            Severity::Critical => style("critical").red().bold(),
            Severity::Warning => style("warning ").yellow().bold(),
            Severity::Note => style("note    ").bold(),
        };
        text += &wrapped(&format!("  {word}  "), &issue.sentence, width);
        text += &wrapped("            → ", &issue.remedy, width);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resources::{Minimums, ResourceReport},
        settings::Environment,
        status::{Running, Sections, Traffic},
    };

    fn status(names: &[&str]) -> Status {
        let vm = |name: &&str| VmLine {
            id: format!("golem-{name}-20261123-040000"),
            name: (*name).to_owned(),
            state: "running".to_owned(),
            backend: "qemu".to_owned(),
            image: "24.04".to_owned(),
            owner: None,
            cpu_cores: 1,
            memory_gb: 2,
            storage_gb: 10,
            ssh_port: Some(50_800),
            created_at: Timestamp::UNIX_EPOCH,
            error: None,
            progress: None,
            traffic: Some(Traffic { connections_open: 3, ..Traffic::default() }),
        };
        let amounts = Amounts { cpu_cores: 4, memory_gb: 8, storage_gb: 100 };
        Status::of(Sections {
            provider: ProviderSection {
                version: "0.1.0".to_owned(),
                environment: Environment::Production,
                data_dir: "/data".into(),
                api: ([127, 0, 0, 1], 7466).into(),
                running: Some(Running {
                    pid: 4711,
                    since: Timestamp::UNIX_EPOCH,
                    log: LogTarget::File { path: "/data/logs/provider.log".into() },
                }),
            },
            resources: Some(ResourcesSection {
                amounts: ResourceReport {
                    total: amounts,
                    allocatable: amounts,
                    allocated: Amounts { cpu_cores: 1, memory_gb: 2, storage_gb: 10 },
                    available: Amounts { cpu_cores: 3, memory_gb: 6, storage_gb: 90 },
                },
                minimums: Minimums::default(),
            }),
            vms: VmsSection { max: 10, list: names.iter().map(vm).collect() },
            plugins: PluginsSection {
                default_backend: None,
                no_backend: Some("the processor cannot virtualise, and emulation is switched off by its settings".into()),
                list: vec![PluginLine {
                    name: "qemu".into(),
                    version: Some("0.1.0".into()),
                    kind: None,
                    origin: "bundled".into(),
                    state: PluginState::Working,
                    in_use: false,
                    problem: None,
                    failing: vec![],
                }],
            },
            network: None,
            prices: None,
            payments: None,
            proxy: Some(ProxySection::default()),
            start: None,
        })
    }

    #[test]
    fn the_screen_answers_what_an_operator_asks_and_fits_into_eighty_columns() {
        let now = Timestamp::from_second(7800).unwrap();
        let name = "a-name-that-is-as-long-as-a-requestor-may-make-it-0123456789-end";
        let text = of(&status(&["web", name]), now, 80);
        for part in [
            "running, with issues",
            "4711, for 2 h 10 min",
            "/data/logs/provider.log",
            "memory, GB     2    8         6          8\n",
            "2 of 10",
            "web",
            "50800",
            "qemu    0.1.0    working",
            "CONNECTIONS 0 open",
            "critical  no machine can be made",
            "→ `golem-provider doctor`",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(!text.contains('\u{1b}'), "no terminal, no colours");
        assert!(of(&status(&["web"]), now, 120).contains("golem-web-20261123-040000"));
    }
}
