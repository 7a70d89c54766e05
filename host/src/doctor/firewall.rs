//! Firewalls of this computer that may keep requestors out. Whether the ports can really be reached is seen from outside only.

use std::{fs, ops::RangeInclusive, sync::Arc};

use super::{Check, output_of};
use crate::settings::Settings;

const NAME: &str = "firewall";

pub(super) async fn checks(settings: Arc<Settings>) -> Vec<Check> {
    if settings.api.bind.ip().is_loopback() {
        return vec![Check::skipped(NAME, "ports listen on this computer alone")];
    }
    let range = settings.ports.range.start..=settings.ports.range.end - 1;
    vec![judge(&look(settings.api.bind.port(), &range).await, settings.api.bind.port(), &range)]
}

/// What there is to see of firewalls.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// ufw is on, and lets these in.
    Ufw(Vec<RangeInclusive<u16>>),
    /// firewalld is on; whether it lets in the API, and the range.
    Firewalld {
        api: bool,
        range: bool,
    },
    /// A table of nftables that drops what it does not know.
    Nftables(String),
    Nothing,
    /// Only root may look.
    Unknown,
}

async fn look(api: u16, range: &RangeInclusive<u16>) -> Seen {
    let ufw = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    if ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")) {
        // Root's alone to read; without it nothing is known to be let in.
        return Seen::Ufw(ufw_lets_in(
            &fs::read_to_string("/etc/ufw/user.rules").unwrap_or_default(),
        ));
    }
    if matches!(output_of("firewall-cmd", &["--state"]).await, Some((true, _))) {
        let lets_in = async |ports: String| {
            let query = format!("--query-port={ports}/tcp");
            matches!(output_of("firewall-cmd", &[&query]).await, Some((true, _)))
        };
        return Seen::Firewalld {
            api: lets_in(api.to_string()).await,
            range: lets_in(format!("{}-{}", range.start(), range.end())).await,
        };
    }
    match output_of("nft", &["-j", "list", "chains"]).await {
        Some((true, chains)) => match dropping_table(&chains) {
            Some(table) => Seen::Nftables(table),
            None => Seen::Nothing,
        },
        Some((false, _)) => Seen::Unknown,
        None => Seen::Nothing,
    }
}

/// The ports of lines such as `### tuple ### allow tcp 50800:50899 0.0.0.0/0 any 0.0.0.0/0 in`.
fn ufw_lets_in(rules: &str) -> Vec<RangeInclusive<u16>> {
    let ports = rules.lines().filter_map(|line| {
        let mut words = line.strip_prefix("### tuple ### allow ")?.split_whitespace();
        let protocol = words.next()?;
        let ports = words.next()?;
        matches!(protocol, "tcp" | "any").then_some(ports)
    });
    ports
        .flat_map(|ports| ports.split(','))
        .filter_map(|part| {
            let (first, last) = part.split_once(':').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// The first table but our own with a chain for incoming packets that drops by default, in what `nft -j list chains` prints.
fn dropping_table(chains: &str) -> Option<String> {
    let chains: serde_json::Value = serde_json::from_str(chains).ok()?;
    chains["nftables"].as_array()?.iter().find_map(|item| {
        let chain = &item["chain"];
        let table = chain["table"].as_str()?;
        let drops =
            chain["hook"] == "input" && chain["policy"] == "drop" && table != "golem_provider";
        drops.then(|| format!("{} {table}", chain["family"].as_str().unwrap_or_default()))
    })
}

fn judge(seen: &Seen, api: u16, range: &RangeInclusive<u16>) -> Check {
    let (first, last) = (range.start(), range.end());
    let closed = |what: &str, api_open: bool, range_open: bool| {
        let missing = match (api_open, range_open) {
            (true, true) => return Check::ok(NAME, format!("{what} lets the ports in")),
            (false, true) => format!("port {api}"),
            (true, false) => format!("ports {first} to {last}"),
            (false, false) => format!("port {api} and ports {first} to {last}"),
        };
        let remedy = match what {
            "ufw" => format!("as root: ufw allow {api}/tcp && ufw allow {first}:{last}/tcp"),
            _ => format!(
                "as root: firewall-cmd --permanent --add-port={api}/tcp --add-port={first}-{last}/tcp && firewall-cmd --reload"
            ),
        };
        Check::warn(NAME, format!("{what} is on and is not known to let in {missing}"), remedy)
    };
    match seen {
        Seen::Ufw(open) => {
            let is_open = |port: u16| open.iter().any(|ports| ports.contains(&port));
            closed("ufw", is_open(api), range.clone().all(is_open))
        }
        Seen::Firewalld { api, range } => closed("firewalld", *api, *range),
        Seen::Nftables(table) => Check::ok(
            NAME,
            format!(
                "the nftables table `{table}` drops what it does not know; see that it lets in port {api} and {first} to {last}"
            ),
        ),
        Seen::Nothing => Check::ok(
            NAME,
            format!(
                "none is on here; a router or the data centre may have one of its own in front of port {api} and {first} to {last}"
            ),
        ),
        Seen::Unknown => {
            Check::skipped(NAME, "only root can see whether nftables lets the ports in")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn what_ufw_lets_in_is_read_from_its_rules() {
        let rules = "*filter\n### tuple ### allow tcp 7466 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### allow any 22,50800:50899 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### deny tcp 80 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### allow udp 53 0.0.0.0/0 any 0.0.0.0/0 in\n";
        assert_eq!(ufw_lets_in(rules), [7466..=7466, 22..=22, 50800..=50899]);
    }

    #[test]
    fn a_table_that_drops_by_default_is_found_unless_it_is_our_own() {
        let chain = |table: &str, policy: &str| {
            format!(
                r#"{{"nftables": [{{"metainfo": {{}}}}, {{"chain": {{"family": "inet", "table": "{table}", "hook": "input", "policy": "{policy}"}}}}]}}"#
            )
        };
        assert_eq!(dropping_table(&chain("filter", "drop")).as_deref(), Some("inet filter"));
        assert_eq!(dropping_table(&chain("filter", "accept")), None);
        assert_eq!(dropping_table(&chain("golem_provider", "drop")), None);
        assert_eq!(dropping_table("nonsense"), None);
    }

    #[test]
    fn a_firewall_that_keeps_requestors_out_comes_with_the_command_that_opens_it() {
        let range = 50800..=50899;
        let judged = |seen| judge(&seen, 7466, &range);
        assert_eq!(judged(Seen::Ufw(vec![7466..=7466, 50000..=51000])).state, State::Ok);
        let half = judged(Seen::Ufw(vec![50800..=50899]));
        assert_eq!(half.state, State::Warn);
        assert!(half.sentence.ends_with("port 7466") && half.remedy.unwrap().contains("ufw allow"));
        let closed = judged(Seen::Firewalld { api: true, range: false });
        assert!(closed.sentence.contains("50800 to 50899"), "{}", closed.sentence);
        assert!(closed.remedy.unwrap().contains("firewall-cmd"));
        assert_eq!(judged(Seen::Firewalld { api: true, range: true }).state, State::Ok);
        assert_eq!(judged(Seen::Unknown).state, State::Skipped);
    }
}
