//! Keeping guests away from the machine they run on.
//!
//! QEMU's user networking makes a guest's connections the QEMU process's own: to the gateway's address they
//! end at the machine's loopback, and to any other address they go out as if the operator had made them. So QEMU runs as
//! a user of its own, and the kernel's firewall decides by that user what may go out: name resolution, and whatever is
//! neither this machine nor a private network. Answers to connections that come in, such as SSH, are always allowed.
//!
//! The rules are put in place, in one transaction, and read back before every start. Where that fails, or where the
//! provider is not root, a machine starts without any way out, which leaves SSH. Text and judgement are pure;
//! [`establish`], [`expect`] and [`restore`] act.

use core::time::Duration;
use std::net::Ipv4Addr;

use golem_provider_sdk::{Error, Finding, Result, clock, host, log, process::Command};
use serde_json::Value;

use crate::settings::{Internet, Network, Settings};

/// Whom QEMU runs as.
const USER: &str = "golem-vm";
/// Whom it runs as where that user cannot be made.
const FALLBACK_USER: &str = "nobody";
/// The table of the firewall that holds the rules; nothing else is ever touched.
const TABLE: &str = "inet golem_provider";

/// Networks that no guest has business with: this host, private, shared, link-local, documentation, benchmarking, multicast and
/// reserved ones.
const REFUSED: [&str; 13] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];

/// How a machine may be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Isolation {
    /// May the guest open connections of its own?
    pub outgoing: bool,
    /// Whom QEMU becomes; absent where it stays who the provider is.
    pub run_as: Option<&'static str>,
    pub state: State,
}

/// What could be set up, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The internet, and nothing of this machine.
    Protected,
    /// No way out, because the operator said so.
    Off,
    /// The internet and this machine, because the operator said so.
    Unprotected,
    /// No way out, because the rules could not be set.
    Failed { reason: String, remedy: String },
}

/// What [`establish`] will come to. Sets things up only if they are not as it would leave them, so that this is quick.
pub fn expect(settings: &Settings) -> Isolation {
    let in_place = settings.internet == Internet::Auto
        && host::is_privileged()
        && matches!(rules_hold(settings), Ok(true));
    if in_place {
        Isolation { outgoing: true, run_as: Some(USER), state: State::Protected }
    } else {
        establish(settings)
    }
}

/// Sets up what keeps guests away from the machine, as far as that goes.
pub fn establish(settings: &Settings) -> Isolation {
    let run_as = host::is_privileged().then(|| match ensure_user() {
        Ok(()) => USER,
        Err(error) => {
            log::warn!("{}; QEMU runs as {FALLBACK_USER}", error.message());
            FALLBACK_USER
        }
    });
    let (outgoing, state) = match settings.internet {
        Internet::Off => (false, State::Off),
        Internet::Unprotected => (true, State::Unprotected),
        Internet::Auto => match protect(settings, run_as) {
            Ok(()) => (true, State::Protected),
            Err((reason, remedy)) => (false, State::Failed { reason, remedy }),
        },
    };
    Isolation { outgoing, run_as, state }
}

/// Puts the rules back if something took them away, such as a firewall that was loaded anew, while machines run.
pub fn restore(settings: &Settings) {
    if settings.internet != Internet::Auto || !host::is_privileged() {
        return;
    }
    match rules_hold(settings) {
        Ok(true) => {}
        Ok(false) | Err(_) => match protect(settings, Some(USER)) {
            Ok(()) => log::warn!(
                "the firewall rules that keep machines away from this host were gone; they are back"
            ),
            Err((reason, remedy)) => log::error!(
                "running machines may reach this host's own services: {reason}. {remedy}"
            ),
        },
    }
}

impl Isolation {
    /// What the operator should know.
    pub fn finding(&self) -> Finding {
        match &self.state {
            State::Protected => Finding::info(
                "machines have the internet and no way to this host's services or private networks",
            ),
            State::Off => {
                Finding::info("machines have no internet: the setting `internet` is `off`")
            }
            State::Unprotected => Finding::warning(
                "machines reach this host's own services and networks: the setting `internet` is `unprotected`",
                "set `internet` to `auto`",
            ),
            State::Failed { reason, remedy } => Finding::warning(
                format!("machines have no internet, only SSH from outside: {reason}"),
                remedy.clone(),
            ),
        }
    }
}

fn protect(
    settings: &Settings,
    run_as: Option<&str>,
) -> core::result::Result<(), (String, String)> {
    match run_as {
        None => Err((
            "keeping them away from this host needs root".into(),
            "run the provider as root, or set `internet` to `unprotected` if guests are trusted".into(),
        )),
        Some(USER) => apply(settings).map_err(|error| {
            let remedy = match error {
                Error::NotFound(_) => "apt install nftables (dnf, pacman: nftables)",
                _ => "see what `nft list ruleset` says; the kernel needs nf_tables with `meta skuid` and `fib`",
            };
            (error.message().to_owned(), remedy.to_owned())
        }),
        Some(_) => Err((
            format!("there is no user {USER}"),
            format!("useradd --system --no-create-home --shell /usr/sbin/nologin {USER}"),
        )),
    }
}

/// Makes the user that QEMU runs as, unless it is there.
fn ensure_user() -> Result<()> {
    if user_id().is_ok() {
        return Ok(());
    }
    let made = Command::new("useradd")
        .args(["--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER])
        .run_checked();
    // Somebody else may have made it in between.
    match user_id() {
        Ok(_) => Ok(()),
        Err(error) => made
            .and(Err(error))
            .map_err(|error| error.context(format_args!("the user {USER} cannot be made"))),
    }
}

fn user_id() -> Result<u32> {
    let output = Command::new("id").args(["-u", USER]).run_checked()?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .map_err(|_| Error::Internal(format!("`id -u {USER}` answered no number")))
}

fn apply(settings: &Settings) -> Result<()> {
    let user_id = user_id()?;
    let rules = ruleset(user_id, &name_servers(), &settings.allow_networks);
    let mut tries_left = 3;
    loop {
        let outcome = Command::new("nft").args(["-f", "-"]).stdin(rules.clone()).run_checked();
        // Two changes at the same moment make one of them fail, which is no fault of either.
        match outcome.and_then(|_| rules_hold(settings)) {
            Ok(true) => return Ok(()),
            Err(error @ Error::NotFound(_)) => return Err(error),
            other if tries_left == 0 => {
                return other.and(Err(Error::Internal(
                    "the firewall took the rules and does not show them".into(),
                )));
            }
            _ => {}
        }
        tries_left -= 1;
        clock::sleep(Duration::from_millis(100));
    }
}

fn rules_hold(settings: &Settings) -> Result<bool> {
    let mut list = Command::new("nft").args(["-j", "list", "table"]);
    list = list.args(TABLE.split(' '));
    let output = list.run()?;
    let Ok(listed) = serde_json::from_slice(&output.stdout) else { return Ok(false) };
    let rules = guest_rules(&name_servers(), &settings.allow_networks).len();
    Ok(holds(&listed, user_id()?, rules))
}

/// The machine's DNS servers, as far as a guest's questions can be passed on to them.
fn name_servers() -> Vec<Ipv4Addr> {
    host::name_servers().iter().filter_map(|address| address.parse().ok()).collect()
}

/// The rules for what a guest sends, in order; what none of them takes goes out.
fn guest_rules(name_servers: &[Ipv4Addr], allowed: &[Network]) -> Vec<String> {
    let mut rules = vec!["ct state established,related accept".to_owned()];
    if !name_servers.is_empty() {
        let servers = join(name_servers);
        rules.push(format!(
            "ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
        ));
    }
    // Guests have no IPv6, so what carries it is none of theirs.
    rules.push("meta nfproto ipv6 goto refuse".to_owned());
    // This machine's own addresses come before the exceptions: those are for networks.
    rules.push("fib daddr type { local, broadcast, anycast, multicast } goto refuse".to_owned());
    // One rule each, because intervals of one set must not overlap.
    rules.extend(allowed.iter().map(|network| format!("ip daddr {network} accept")));
    rules.push(format!("ip daddr {{ {} }} goto refuse", REFUSED.join(", ")));
    rules
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The whole table, for `nft -f`: it replaces what is there in one transaction.
fn ruleset(user_id: u32, name_servers: &[Ipv4Addr], allowed: &[Network]) -> String {
    let guest = guest_rules(name_servers, allowed).join("\n    ");
    format!(
        "add table {TABLE}
delete table {TABLE}
table {TABLE} {{
  chain output {{
    type filter hook output priority filter; policy accept;
    meta skuid {user_id} goto guest
  }}
  chain guest {{
    {guest}
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
}}
"
    )
}

/// Is the table, as `nft -j` lists it, the one that [`ruleset`] makes?
fn holds(listed: &Value, user_id: u32, guest_rules: usize) -> bool {
    let Some(items) = listed["nftables"].as_array() else { return false };
    let hooked = items.iter().map(|item| &item["chain"]).any(|chain| {
        chain["name"] == "output" && chain["type"] == "filter" && chain["hook"] == "output"
    });
    let rules = |chain: &str| -> Vec<&Value> {
        items
            .iter()
            .map(|item| &item["rule"])
            .filter(|rule| rule["chain"] == chain)
            .map(|rule| &rule["expr"])
            .collect()
    };
    let [output] = rules("output")[..] else { return false };
    let matches_user = output[0]["match"]["left"]["meta"]["key"] == "skuid"
        && output[0]["match"]["right"] == user_id;
    hooked
        && matches_user
        && output[1]["goto"]["target"] == "guest"
        && rules("guest").len() == guest_rules
        && rules("refuse").len() == 2
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);

    #[test]
    fn only_name_resolution_and_what_was_allowed_is_accepted_before_private_networks_are_refused() {
        let rules = guest_rules(&[SERVER], &["192.168.7.0/24".parse().unwrap()]);
        let refused = rules.iter().position(|rule| rule.contains("192.168.0.0/16")).unwrap();
        assert_eq!(refused, rules.len() - 1);
        let accepted: Vec<&str> =
            rules.iter().filter(|rule| rule.ends_with("accept")).map(String::as_str).collect();
        assert_eq!(
            accepted,
            [
                "ct state established,related accept",
                "ip daddr { 127.0.0.53 } meta l4proto { tcp, udp } th dport 53 accept",
                "ip daddr 192.168.7.0/24 accept",
            ]
        );
    }

    #[test]
    fn an_allowed_network_never_opens_this_machines_own_addresses() {
        let rules = guest_rules(&[], &["0.0.0.0/0".parse().unwrap()]);
        let local = rules.iter().position(|rule| rule.contains("local")).unwrap();
        let allowed = rules.iter().position(|rule| rule.contains("0.0.0.0/0")).unwrap();
        assert!(local < allowed);
    }

    #[test]
    fn the_table_replaces_itself_and_touches_no_other() {
        let text = ruleset(999, &[SERVER], &[]);
        assert!(
            text.starts_with("add table inet golem_provider\ndelete table inet golem_provider\n")
        );
        assert!(text.contains("meta skuid 999 goto guest"));
        assert_eq!(text.matches("table ").count(), 3);
    }

    #[test]
    fn rules_that_are_missing_or_for_somebody_else_are_noticed() {
        let rule = |chain: &str, expr: Value| json!({ "rule": { "chain": chain, "expr": expr } });
        let jump = json!([
            { "match": { "op": "==", "left": { "meta": { "key": "skuid" } }, "right": 999 } },
            { "goto": { "target": "guest" } }
        ]);
        let listed = |rules: Vec<Value>| {
            let mut items =
                vec![json!({ "chain": { "name": "output", "type": "filter", "hook": "output" } })];
            items.extend(rules);
            json!({ "nftables": items })
        };
        let refuse = || [rule("refuse", json!([])), rule("refuse", json!([]))];
        let mut all =
            vec![rule("output", jump), rule("guest", json!([])), rule("guest", json!([]))];
        all.extend(refuse());
        assert!(holds(&listed(all.clone()), 999, 2));
        assert!(!holds(&listed(all.clone()), 1000, 2), "another user");
        assert!(!holds(&listed(all.clone()), 999, 3), "a rule is missing");
        assert!(!holds(&listed(all[1..].to_vec()), 999, 2), "nothing leads to the rules");
        assert!(!holds(&json!({ "nftables": [] }), 999, 2));
        assert!(!holds(&json!({}), 999, 2));
    }
}
