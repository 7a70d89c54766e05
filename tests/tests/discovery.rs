//! Being found through the central discovery server, which is the published one, on loopback. Machines are on paper.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, sync::Arc, time::Duration};

use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, ensure};
use golem_provider::{
    chains::{Chains, NoMemory, Nodes},
    plugins::{conformance, harness::Harness},
};
use golem_provider_tests::{
    DiscoveryServer, Paper, Provider, Setup, StandIn, anvil::ACCOUNTS, component, wait,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PUBLIC_IP: &str = "203.0.113.5";
const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Advertised with this server, looked up every five seconds.
async fn setup(url: &str, paper: &Paper) -> Result<Setup> {
    Ok(Setup::new()?
        .in_production(PUBLIC_IP)
        .with_paper_backend(paper)?
        .with("ADVERTISER_TYPE", "discovery_server")
        .with("DISCOVERY_URL", url)
        .with("DISCOVERY_ADVERTISEMENT_INTERVAL", 10))
}

/// How the advertiser is, as the operator is told.
async fn advertiser(provider: &Provider) -> Result<Value> {
    let ended = provider.command(&["status", "--json"]).await?;
    let status: Value = serde_json::from_str(&ended.stdout)
        .with_context(|| format!("{} {}", ended.stdout, ended.stderr))?;
    Ok(status["network"]["advertisers"][0].clone())
}

async fn listed(server: &DiscoveryServer) -> Result<Option<Value>> {
    Ok(server.search("cpu=1").await?.into_iter().next())
}

async fn until_listed(
    server: &DiscoveryServer,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait::until(what, SOON, PAUSE, async || Ok(listed(server).await?.filter(&is))).await
}

async fn provider_id(provider: &Provider) -> Result<String> {
    let info = provider.client().get("/provider/info").await?.expect(200)?;
    Ok(info["provider_id"].as_str().context("no id")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_keeps_every_promise_of_an_advertiser() -> Result<()> {
    let server = DiscoveryServer::start().await?;
    let file = component("discovery-server")?;
    let signer: PrivateKeySigner = ACCOUNTS[1].1.parse()?;
    let no_nodes = Nodes::new(&BTreeMap::new())?;
    let harness = Harness::new(fs::read(&file)?)?
        .compiled_in(file.with_file_name("compiled").join("plugins"))
        .settings(json!({ "url": server.url() }))
        .ethereum(Arc::new(Chains::new(no_nodes, signer, 0, Arc::new(NoMemory))));
    let never = CancellationToken::new();
    let report = conformance::run_advertiser(&harness, Arc::new(|_| {}), &never).await;
    ensure!(report.passed(), "{:#?}", report.outcomes);
    ensure!(server.search("cpu=1").await?.is_empty(), "something is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_listed_with_what_is_free_and_not_any_more_when_it_has_ended() -> Result<()> {
    let ssh = StandIn::start().await?;
    let server = DiscoveryServer::start().await?;
    let mut provider =
        setup(&server.url(), &Paper::with_ssh_at(ssh.address())).await?.start().await?;
    let client = provider.client();

    let first = until_listed(&server, "the provider is listed", |_| true).await?;
    ensure!(first["ip_address"] == PUBLIC_IP && first["country"] == "SE", "{first}");
    ensure!(first["provider_id"] == provider_id(&provider).await?.as_str(), "{first}");
    ensure!(first["pricing"]["usd_per_core_month"] == 5.0, "{first}");
    ensure!(
        first["pricing"]["glm_per_core_month"].is_null(),
        "an unknown price is not free: {first}"
    );
    let visible = wait::until("it sees itself", SOON, PAUSE, async || {
        let report = advertiser(&provider).await?;
        Ok((report["seen"]["visibility"] == "visible").then_some(report))
    });
    let visible = visible.await?;
    ensure!(visible["state"] == "published" && !visible["expires"].is_null(), "{visible}");

    let storage = first["resources"]["storage"].as_u64().context("no storage")?;
    let vm = json!({ "name": "web", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
    client.post("/vms", &vm).await?.expect(201)?;
    let less = |entry: &Value| entry["resources"]["storage"].as_u64() == Some(storage - 10);
    until_listed(&server, "a machine less is offered", less).await?;
    client.delete("/vms/web").await?.expect(200)?;
    let again = |entry: &Value| entry["resources"]["storage"].as_u64() == Some(storage);
    until_listed(&server, "the room is offered again", again).await?;

    provider.terminate().await?;
    ensure!(listed(&server).await?.is_none(), "it is still listed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_database_and_a_stranger_who_wrote_over_the_entry_are_noticed()
-> Result<()> {
    let ssh = StandIn::start().await?;
    let server = DiscoveryServer::start().await?;
    let port = server.port();
    let provider = setup(&server.url(), &Paper::with_ssh_at(ssh.address())).await?.start().await?;
    until_listed(&server, "the provider is listed", |_| true).await?;

    drop(server);
    let server = DiscoveryServer::start_at(port).await?;
    ensure!(listed(&server).await?.is_none(), "its database should be empty");
    let ours = until_listed(&server, "it is listed anew", |_| true).await?;

    let mut strangers = ours.clone();
    strangers["ip_address"] = "198.51.100.66".into();
    let status = server.post_as(&provider_id(&provider).await?, &strangers).await?;
    ensure!(status < 300, "{status}");
    wait::until("it is put right", SOON, PAUSE, async || {
        Ok(listed(&server).await?.filter(|entry| entry["ip_address"] == PUBLIC_IP))
    })
    .await?;
    let log = provider.log()?;
    ensure!(log.contains("overwritten by a stranger"), "{log}");
    ensure!(log.contains("not found"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discovery_server_that_is_down_holds_nothing_up_and_is_found_when_it_is_back()
-> Result<()> {
    let ssh = StandIn::start().await?;
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = silent.local_addr()?.port();
    let url = format!("http://127.0.0.1:{port}");
    let provider = setup(&url, &Paper::with_ssh_at(ssh.address())).await?.start().await?;
    silent.accept()?;
    let vm = json!({ "name": "web", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
    provider.client().post("/vms", &vm).await?.expect(201)?;
    ensure!(advertiser(&provider).await?["state"] != "listed");
    drop(silent);
    let failing = wait::until("the status says so", SOON, PAUSE, async || {
        let report = advertiser(&provider).await?;
        Ok((report["state"] == "failing").then_some(report))
    });
    let failing = failing.await?;
    ensure!(failing["reason"].as_str().is_some_and(|text| !text.is_empty()), "{failing}");

    let server = DiscoveryServer::start_at(port).await?;
    until_listed(&server, "the provider is listed", |_| true).await?;

    // Its hundred-and-first request within a minute answers 500, in plain text.
    wait::until("the server has had enough", SOON, Duration::from_millis(1), async || {
        Ok(server.search("cpu=1").await.is_err().then_some(()))
    })
    .await?;
    wait::until("the status says so", SOON, PAUSE, async || {
        let report = advertiser(&provider).await?;
        let reason = report["reason"].as_str().unwrap_or_default();
        Ok((report["state"] == "failing" && reason.contains("too many requests")).then_some(()))
    })
    .await?;
    provider.client().delete("/vms/web").await?.expect(200)?;
    Ok(())
}
