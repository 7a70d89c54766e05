//! The whole of being rented, on loopback: found in both places, reached, asked for a machine by what the advertisement says.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Background, Client, DiscoveryServer, GolemBase, Image, Key, KeyKind, Setup, Ssh,
    anvil::ACCOUNTS, program, wait,
};
use serde_json::{Value, json};

use crate::checks::{Steps, machine, ssh_port};

const SOON: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(250);

/// A port checker of our own, which may look at this computer.
async fn port_checker() -> Result<(Background, String)> {
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program()?);
    command.args(["port-checker", "--allow-private", "--listen", &address]);
    let checker = Background::start("the port checker", &mut command)?;
    let url = format!("http://{address}");
    let client = Client::new(port)?;
    wait::until("the port checker", SOON, PAUSE, async || {
        Ok(client.get("/../../health").await.ok().filter(|answer| answer.status < 500).map(drop))
    })
    .await?;
    Ok((checker, url))
}

/// Storage, which nothing but machines takes, as both places tell it.
async fn offered(server: &DiscoveryServer, golem_base: &GolemBase) -> Result<[Option<u64>; 2]> {
    let central = server.search("cpu=1&memory=1&storage=10").await?;
    let central = central.first().and_then(|entry| entry["resources"]["storage"].as_u64());
    let entities = golem_base.entities().await?;
    let on_chain = entities.first().and_then(|entity| entity["numbers"]["golem_storage"].as_u64());
    Ok([central, on_chain])
}

async fn until_offered(
    server: &DiscoveryServer,
    golem_base: &GolemBase,
    what: &str,
    is: impl Fn([Option<u64>; 2]) -> bool,
) -> Result<[Option<u64>; 2]> {
    wait::until(what, SOON, PAUSE, async || {
        Ok(Some(offered(server, golem_base).await?).filter(|offered| is(*offered)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_finds_the_provider_in_both_places_and_rents_a_machine_that_then_is_not_offered()
-> Result<()> {
    let _turn = machine().await?;
    let steps = Steps::begin();
    let server = DiscoveryServer::start().await?;
    let golem_base = GolemBase::start().await?;
    let (_checker, checker_url) = port_checker().await?;
    steps.next("starting");
    let mut provider = Setup::new()?
        .in_production("127.0.0.1")
        .with_command(&["start"])
        .with_images(&[Image::for_tests()?])?
        .with("PORT_CHECK_SERVERS", checker_url)
        .with("ETHEREUM_PRIVATE_KEY", ACCOUNTS[1].1)
        .with("ADVERTISER_TYPE", "both")
        .with("DISCOVERY_URL", server.url())
        .with("GOLEM_BASE_RPC_URL", golem_base.url())
        .with("PLUGIN_GOLEM_BASE__MINIMUM_GAP_MS", 500)
        .start()
        .await?;

    steps.next("being found");
    let both = |offered: [Option<u64>; 2]| offered.iter().all(Option::is_some);
    let before = until_offered(&server, &golem_base, "both places list it", both).await?;
    ensure!(before[0] == before[1], "{before:?}");
    let entry = server.search("cpu=1").await?.remove(0);
    ensure!(entry["ip_address"] == "127.0.0.1", "{entry}");
    let visible = wait::until("it sees itself in both", SOON, PAUSE, async || {
        let ended = provider.command(&["status", "--json"]).await?;
        let status: Value = serde_json::from_str(&ended.stdout).context(ended.stderr)?;
        let advertisers = status["network"]["advertisers"].as_array().cloned().unwrap_or_default();
        let visible = |one: &&Value| one["seen"]["visibility"] == "visible";
        Ok((advertisers.iter().filter(visible).count() == 2).then_some(status))
    });
    let status = visible.await?;
    ensure!(status["network"]["reachability"]["status"] == "verified", "{status:#}");

    steps.next("renting");
    let key = Key::generate(KeyKind::Ed25519).await?;
    // A requestor knows the address from the entry, and that the API is on a port that all providers have; here it is another.
    let requestor = Client::new(provider.api_port())?;
    let info = requestor.get("/provider/info").await?.expect(200)?;
    ensure!(info["provider_id"] == entry["provider_id"], "{info} {entry}");
    let request = json!({
        "name": "rented", "resources": { "cpu": 1, "memory": 1, "storage": 10 }, "ssh_key": key.public,
    });
    let made = requestor.post("/vms", &request).await?;
    ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
    let port = ssh_port(&made.json()?)?;
    ensure!(Ssh::to(port)?.run(&key, "hostname").await?.trim() == "rented");
    let less = |offered: [Option<u64>; 2]| {
        offered.iter().zip(before).all(|(now, before)| *now < before && now.is_some())
    };
    until_offered(&server, &golem_base, "both places offer less", less).await?;

    steps.next("giving back");
    requestor.delete("/vms/rented").await?.expect(200)?;
    let again = |offered: [Option<u64>; 2]| {
        offered.iter().zip(before).all(|(now, before)| nearly(*now, before))
    };
    until_offered(&server, &golem_base, "both places offer it again", again).await?;
    provider.terminate().await?;
    ensure!(offered(&server, &golem_base).await? == [None, None], "it is still listed");
    Ok(())
}

/// What is free on the disk moves by itself, with whatever else is on this computer.
fn nearly(one: Option<u64>, other: Option<u64>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one.abs_diff(other) <= 5)
}
