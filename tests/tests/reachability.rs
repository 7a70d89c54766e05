//! Whether a provider finds out where it is reached and which of its ports are: with a router before it, and with servers that
//! tell the truth, lie, hang or talk nonsense. VMs are on paper.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    ops::Range,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Behaviour, CheckServer, Paper, PortChecker, Provider, Setup, StandIn,
    network::{self, Network, OTHER_PUBLIC, PUBLIC, Rule, host},
    program, wait,
};
use serde_json::{Value, json};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";

/// A check of ports that nobody answers takes a server nine seconds.
const DEADLINE: Duration = Duration::from_secs(90);

fn outside(number: u8) -> SocketAddr {
    (host(number), 9000).into()
}

/// A provider that offers machines to the world, which is asked for by `servers`.
async fn production(servers: &[&str]) -> Result<(Setup, StandIn)> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_command(&["start"])
        .with("PUBLIC_IP", PUBLIC)
        .with("RATE_LIMIT_PER_MINUTE", 0)
        .with("PORT_CHECK_SERVERS", servers.join(","));
    Ok((setup, ssh))
}

async fn reachability(provider: &Provider) -> Result<Value> {
    Ok(provider.client().get("/summary").await?.expect(200)?["reachability"].clone())
}

/// What is known once `enough` says so.
async fn once(provider: &Provider, what: &str, enough: impl Fn(&Value) -> bool) -> Result<Value> {
    let pause = Duration::from_millis(200);
    wait::until(what, DEADLINE, pause, async || {
        Ok(Some(reachability(provider).await?).filter(|known| enough(known)))
    })
    .await
}

/// What is known when a check has ended.
async fn verified(provider: &Provider) -> Result<Value> {
    let is_done = |known: &Value| known["status"] != "pending" && known["checking"] == false;
    once(provider, "the end of the check", is_done).await
}

fn list(known: &Value, key: &str) -> Vec<u16> {
    let text = known["ssh_ports"][key].as_str().unwrap_or_default();
    let ranges = text.split(", ").filter_map(|range| {
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        Some(start.parse::<u16>().ok()?..=end.parse().ok()?)
    });
    ranges.flatten().collect()
}

fn health<'a>(known: &'a Value, url: &str) -> &'a Value {
    let servers = known["servers"].as_array();
    servers
        .and_then(|servers| servers.iter().find(|server| server["url"] == url))
        .map_or(&Value::Null, |server| &server["health"])
}

fn all(range: Range<u16>) -> Vec<u16> {
    range.collect()
}

async fn create(provider: &Provider, name: &str) -> Result<u16> {
    let body =
        json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": KEY });
    let vm = provider.client().post("/vms", &body).await?;
    ensure!(matches!(vm.status, 200 | 201), "{} {}", vm.status, vm.text);
    Ok(u16::try_from(vm.json()?["ssh_port"].as_u64().context("no port")?)?)
}

fn with_network(test: impl AsyncFnOnce(&Network) -> Result<()> + Send) -> Result<()> {
    if !network::are_allowed() {
        return Ok(());
    }
    // Built, if need be, before this thread is cut off from the world.
    program()?;
    let network = Network::new()?;
    network.as_provider(async || test(&network).await)
}

#[test]
fn a_provider_whose_ports_are_forwarded_is_ready_and_its_machines_are_reached_from_outside()
-> Result<()> {
    with_network(async |network| {
        let checker = PortChecker::start(network, outside(0)).await?;
        let source = |number: u8, text: &str| {
            let listener = network.listen_outside((host(number), 8000).into())?;
            CheckServer::start(listener, Behaviour::Says(text.to_owned()))
        };
        let sources = [
            source(1, &format!("{PUBLIC}\n"))?,
            source(2, &json!({ "ip": PUBLIC }).to_string())?,
            source(3, "45.67.89.77")?,
            source(4, "who knows")?,
        ];
        let urls: Vec<&str> = sources.iter().map(CheckServer::url).collect();
        let (setup, _ssh) = production(&[checker.url()]).await?;
        let setup = setup.with("PUBLIC_IP", "auto").with("PUBLIC_IP_SOURCES", urls.join(","));
        let setup = setup.with("PORT_CHECK_INTERVAL_SECONDS", 5);
        let provider = setup
            .start_with(|api, ssh| {
                network.set_rules(
                    PUBLIC,
                    &[Rule::Forward(api, api), Rule::Forward(ssh.start, ssh.end - 1)],
                )
            })
            .await?;
        let known = verified(&provider).await?;
        let range = provider.ssh_ports();
        assert_eq!(known["status"], "verified", "{known}");
        assert_eq!(known["address"], json!({ "address": PUBLIC, "origin": "sources" }));
        let port = &known["provider_port"];
        assert_eq!((&port["internal"], &port["external"]), (&json!(true), &json!("open")));
        assert_eq!(list(&known, "usable"), all(range.clone()));
        assert_eq!(
            (&known["max_vms"], health(&known, checker.url())),
            (&json!(10), &json!("good"))
        );

        let (api, last) = (provider.api_port(), range.end - 1);
        let log = provider.log()?;
        let block = format!(
            "🌟 Port Verification Status\n==========================\n[✅] Provider Port {api}: External ✓ | Internal ✓\n\
             [✅] VM Access Ports: 15 ports available ({}-{last})\n[✅] Overall Status: Provider Ready\n\
             └─ Can handle up to 10 concurrent VMs\n",
            range.start
        );
        assert!(log.contains(&block), "no such block in the log:\n{block}");

        let ssh_port = create(&provider, "my-vm").await?;
        let info = provider.client().get("/provider/info").await?.expect(200)?;
        let access = provider.client().get("/vms/my-vm/access").await?.expect(200)?;
        assert_eq!((&info["ip_address"], &access["ssh_host"]), (&json!(PUBLIC), &json!(PUBLIC)));
        network.outside(|| {
            TcpStream::connect((PUBLIC, ssh_port)).context("reaching the machine from outside")
        })?;

        // The next check finds the machine's port as it is, and leaves it alone.
        let first = known["checked_at"].clone();
        let is_next = |known: &Value| known["checked_at"] != first && known["checking"] == false;
        let known = once(&provider, "the next check", is_next).await?;
        assert_eq!(list(&known, "usable"), all(range), "{known}");
        StandIn::assert_reached_through(ssh_port).await
    })
}

#[test]
fn a_firewalled_provider_says_so_and_hands_out_no_port() -> Result<()> {
    with_network(async |network| {
        let checker = PortChecker::start(network, outside(0)).await?;
        let (setup, _ssh) = production(&[checker.url()]).await?;
        let provider = setup
            .start_with(|api, ssh| network.set_rules(PUBLIC, &[Rule::Drop(api, ssh.end - 1)]))
            .await?;
        let known = verified(&provider).await?;
        assert_eq!((&known["status"], &known["max_vms"]), (&json!("verified"), &json!(0)));
        assert_eq!(known["provider_port"]["external"], "closed");
        assert_eq!(known["provider_port"]["internal"], true);
        assert_eq!(list(&known, "closed"), all(provider.ssh_ports()));
        let refusal = create(&provider, "my-vm").await.unwrap_err().to_string();
        assert!(refusal.contains("503") && refusal.contains("ports_not_verified"), "{refusal}");
        let log = provider.log()?;
        let api = provider.api_port();
        for line in [
            &format!("[❌] Provider Port {api}: External ✗ | Internal ✓"),
            "[❌] Overall Status: Issues Detected",
            "Quick Fixes:",
            "Troubleshooting: ",
        ] {
            assert!(log.contains(line), "{line}");
        }
        Ok(())
    })
}

#[test]
fn with_half_the_range_closed_machines_get_ports_of_the_other_half() -> Result<()> {
    with_network(async |network| {
        let checker = PortChecker::start(network, outside(0)).await?;
        let (setup, _ssh) = production(&[checker.url()]).await?;
        let provider = setup
            .start_with(|api, ssh| {
                let half = ssh.start + 8;
                network
                    .set_rules(PUBLIC, &[Rule::Forward(api, api), Rule::Forward(half, ssh.end - 1)])
            })
            .await?;
        let known = verified(&provider).await?;
        let range = provider.ssh_ports();
        let half = range.start + 8;
        assert_eq!(list(&known, "usable"), all(half..range.end), "{known}");
        assert_eq!(list(&known, "closed"), all(range.start..half));
        assert_eq!(known["max_vms"], 7);
        assert_eq!(create(&provider, "first").await?, half);
        assert_eq!(create(&provider, "second").await?, half + 1);
        let line =
            format!("[⚠️] VM Access Ports: 7 of 15 ports available ({half}-{})", range.end - 1);
        assert!(provider.log()?.contains(&line), "{line}");
        Ok(())
    })
}

#[test]
fn ports_that_a_router_leads_to_other_ports_are_not_taken_for_open() -> Result<()> {
    with_network(async |network| {
        let checker = PortChecker::start(network, outside(0)).await?;
        let (setup, _ssh) = production(&[checker.url()]).await?;
        let provider = setup
            .start_with(|api, ssh| {
                let half = ssh.start + 8;
                network.set_rules(
                    PUBLIC,
                    &[
                        Rule::Forward(api, api),
                        Rule::Forward(ssh.start, half - 1),
                        // Something answers there, but it is not what listens on the port.
                        Rule::ForwardAllTo(half, ssh.end - 1, api),
                    ],
                )
            })
            .await?;
        let known = verified(&provider).await?;
        let range = provider.ssh_ports();
        let half = range.start + 8;
        assert_eq!(list(&known, "usable"), all(range.start..half), "{known}");
        assert_eq!(list(&known, "misdirected"), all(half..range.end));
        assert!(provider.log()?.contains("that lead somewhere else"));
        Ok(())
    })
}

#[test]
fn servers_that_lie_hang_limit_or_talk_nonsense_decide_nothing_while_others_answer() -> Result<()> {
    with_network(async |network| {
        let mut honest = Vec::new();
        for number in 0..3 {
            honest.push(PortChecker::start(network, outside(number)).await?);
        }
        let odd = |number: u8, behaviour| {
            CheckServer::start(network.listen_outside(outside(number))?, behaviour)
        };
        let liar = odd(3, Behaviour::SaysOpen)?;
        let hanging = odd(4, Behaviour::Hangs)?;
        let limiting = odd(5, Behaviour::Limits)?;
        let confused = odd(6, Behaviour::Nonsense)?;
        let endless = odd(7, Behaviour::Endless)?;
        let down = format!("http://{}", outside(8));
        let mut servers: Vec<&str> = honest.iter().map(PortChecker::url).collect();
        servers.extend([&liar, &hanging, &limiting, &confused, &endless].map(CheckServer::url));
        servers.push(&down);
        let (setup, _ssh) = production(&servers).await?;
        let setup = setup.with("PORT_CHECK_INTERVAL_SECONDS", 5);
        let provider = setup
            .start_with(|api, ssh| {
                let half = ssh.start + 3;
                network.set_rules(
                    PUBLIC,
                    &[Rule::Forward(api, api), Rule::Forward(ssh.start, half - 1)],
                )
            })
            .await?;
        let known = verified(&provider).await?;
        let range = provider.ssh_ports();
        let half = range.start + 3;
        assert_eq!(list(&known, "usable"), all(range.start..half), "{known}");
        assert_eq!(list(&known, "closed"), all(half..range.end));
        for (url, expected) in [
            (honest[0].url(), "good"),
            (honest[1].url(), "good"),
            (honest[2].url(), "good"),
            (liar.url(), "outvoted"),
            (hanging.url(), "slow"),
            (limiting.url(), "rate_limited"),
            (confused.url(), "nonsense"),
            (endless.url(), "nonsense"),
            (&down, "down"),
        ] {
            assert_eq!(health(&known, url), expected, "{url} in {known}");
        }

        // The other lie.
        liar.set(Behaviour::SaysClosed);
        let first = known["checked_at"].clone();
        let is_next = |known: &Value| known["checked_at"] != first && known["checking"] == false;
        let known = once(&provider, "the next check", is_next).await?;
        assert_eq!(list(&known, "usable"), all(range.start..half), "{known}");
        Ok(())
    })
}

#[test]
fn when_nobody_answers_the_setting_decides_and_nothing_is_called_closed() -> Result<()> {
    with_network(async |network| {
        let nobody = format!("http://{}", outside(0));
        let confused =
            CheckServer::start(network.listen_outside(outside(1))?, Behaviour::Nonsense)?;
        let servers = [nobody.as_str(), confused.url()];

        let (setup, _ssh) = production(&servers).await?;
        let provider = setup.start().await?;
        let known = verified(&provider).await?;
        assert_eq!((&known["status"], &known["max_vms"]), (&json!("unverified"), &json!(0)));
        assert_eq!(known["provider_port"]["external"], "unverified");
        assert_eq!(list(&known, "unverified"), all(provider.ssh_ports()));
        assert!(list(&known, "closed").is_empty());
        assert!(provider.log()?.contains("[⚠️] Overall Status: Could Not Be Verified"));
        let refusal = create(&provider, "my-vm").await.unwrap_err().to_string();
        assert!(refusal.contains("503"), "{refusal}");

        let (setup, _ssh) = production(&servers).await?;
        let provider = setup.with("UNVERIFIED_PORTS", "trust").start().await?;
        let known = verified(&provider).await?;
        assert_eq!((&known["status"], &known["max_vms"]), (&json!("unverified"), &json!(10)));
        assert_eq!(create(&provider, "my-vm").await?, provider.ssh_ports().start);

        let (setup, _ssh) = production(&servers).await?;
        let ended = setup.with("UNVERIFIED_PORTS", "refuse").run_to_the_end().await?;
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        let told = &ended.stderr;
        assert!(told.contains("GOLEM_PROVIDER_UNVERIFIED_PORTS is `refuse`"), "{told}");
        assert!(told.contains(&nobody), "{told}");

        let (setup, _ssh) = production(&servers).await?;
        let provider = setup.with_command(&["start", "--no-verify-port"]).start().await?;
        let known = verified(&provider).await?;
        assert_eq!((&known["status"], &known["max_vms"]), (&json!("skipped"), &json!(10)));
        Ok(())
    })
}

#[test]
fn a_new_public_address_is_noticed_verified_and_told() -> Result<()> {
    with_network(async |network| {
        let checker = PortChecker::start(network, outside(0)).await?;
        let says = |address: Ipv4Addr| Behaviour::Says(address.to_string());
        let source = |number: u8| {
            let listener = network.listen_outside((host(number), 8000).into())?;
            CheckServer::start(listener, says(PUBLIC))
        };
        let sources = [source(1)?, source(2)?];
        let urls: Vec<&str> = sources.iter().map(CheckServer::url).collect();
        let (setup, _ssh) = production(&[checker.url()]).await?;
        let setup = setup
            .with("PUBLIC_IP", "auto")
            .with("PUBLIC_IP_SOURCES", urls.join(","))
            .with("PORT_CHECK_INTERVAL_SECONDS", 5);
        let provider = setup
            .start_with(|api, ssh| network.set_rules(PUBLIC, &[Rule::Forward(api, ssh.end - 1)]))
            .await?;
        let is_at = |known: &Value, address: Ipv4Addr| {
            known["address"]["address"] == json!(address)
                && known["status"] == "verified"
                && known["checking"] == false
        };
        once(&provider, "the first address", |known| is_at(known, PUBLIC)).await?;

        // One that says so alone moves nobody.
        let (api, end) = (provider.api_port(), provider.ssh_ports().end);
        sources[0].set(says(OTHER_PUBLIC));
        let first = reachability(&provider).await?["checked_at"].clone();
        once(&provider, "another check", |known| known["checked_at"] != first).await?;
        assert!(is_at(&verified(&provider).await?, PUBLIC));

        sources[1].set(says(OTHER_PUBLIC));
        network.set_rules(OTHER_PUBLIC, &[Rule::Forward(api, end - 1)])?;
        let known =
            once(&provider, "the other address", |known| is_at(known, OTHER_PUBLIC)).await?;
        assert_eq!(list(&known, "usable"), all(provider.ssh_ports()), "{known}");
        let info = provider.client().get("/provider/info").await?.expect(200)?;
        assert_eq!(info["ip_address"], json!(OTHER_PUBLIC));
        Ok(())
    })
}

#[test]
fn a_provider_checks_ports_for_others_only_where_its_operator_wants_and_only_theirs() -> Result<()>
{
    with_network(async |network| {
        let (setup, _ssh) = production(&[]).await?;
        let setup = setup
            .with_command(&["start", "--no-verify-port"])
            .with("PORT_CHECK_PEERS_ENABLED", true);
        let mut provider = setup
            .start_with(|api, ssh| network.set_rules(PUBLIC, &[Rule::Forward(api, ssh.end - 1)]))
            .await?;
        let api = provider.api_port();
        let ask = |address: Ipv4Addr, ports: &[u16]| {
            let body = json!({ "provider_ip": address, "ports": ports });
            network.outside(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let http = reqwest::Client::builder()
                        .no_proxy()
                        .local_address(Some(host(0).into()))
                        .build()?;
                    let url = format!("http://{PUBLIC}:{api}/check-ports");
                    let answer = http.post(url).body(body.to_string()).send().await?;
                    Ok((answer.status().as_u16(), answer.json::<Value>().await?))
                })
            })
        };
        let open = network.listen_outside((host(0), 5000).into())?;
        let (status, answer) = ask(host(0), &[5000, 5001])?;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["results"]["5000"]["accessible"], true, "{answer}");
        assert_eq!(answer["results"]["5001"]["accessible"], false, "{answer}");
        drop(open);
        for somebody_else in [host(1), PUBLIC, Ipv4Addr::LOCALHOST, Ipv4Addr::new(192, 168, 77, 2)]
        {
            let (status, answer) = ask(somebody_else, &[api])?;
            assert_eq!((status, &answer["code"]), (403, &json!("not_your_address")));
        }
        let too_many: Vec<u16> = (1..=101).collect();
        assert_eq!(ask(host(0), &too_many)?.0, 400);

        provider.terminate().await?;
        provider.set("PORT_CHECK_PEERS_ENABLED", false);
        provider.start_again().await?;
        assert_eq!(ask(host(0), &[5000])?.0, 404);
        Ok(())
    })
}
