//! Transactions on a real chain, and the plugin for Golem Base in the real engine, before a node of it on loopback. What comes
//! of it is read by the published client.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, Bytes, U256},
    signers::local::PrivateKeySigner,
};
use anyhow::{Context, Result, ensure};
use golem_provider::{
    chains::{Call, ChainError, Chains, NoMemory, Nodes},
    plugins::{
        Advertiser, FailureKind,
        advertiser::{Advertisement, Change, Prices, Query, Resources},
        conformance,
        harness::{AdvertiserComponent, Harness, Loaded},
    },
    settings::Secret,
};
use golem_provider_tests::{
    Anvil, GolemBase, Paper, Provider, Setup, anvil::ACCOUNTS, component, wait,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The provider, and somebody else.
const US: (&str, &str) = ACCOUNTS[1];
const STRANGER: (&str, &str) = ACCOUNTS[2];

const MAX_GAS_PRICE_WEI: u128 = 200_000_000_000;
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(300);
/// So that an entity lasts 40 blocks, and is prolonged when it has less than 12.
const INTERVAL_SECONDS: u32 = 20;

fn chains(urls: &[String]) -> Result<Chains> {
    let urls = urls.iter().map(Secret::new).collect();
    let nodes = Nodes::new(&BTreeMap::from([("golem-base".to_owned(), urls)]))?;
    let signer: PrivateKeySigner = US.1.parse()?;
    Ok(Chains::new(nodes, signer, MAX_GAS_PRICE_WEI, Arc::new(NoMemory)))
}

/// The plugin, with the provider's own way to chains.
fn harness(urls: &[String]) -> Result<Harness> {
    Ok(Harness::new(fs::read(component("golem-base")?)?)?
        .settings(json!({ "interval-seconds": INTERVAL_SECONDS, "minimum-gap-ms": 100 }))
        .compiled_in(component("golem-base")?.with_file_name("compiled"))
        .ethereum(Arc::new(chains(urls)?)))
}

async fn advertiser(urls: &[String]) -> Result<Loaded<AdvertiserComponent>> {
    Ok(harness(urls)?.load_advertiser().await?)
}

fn advertisement(cpu_cores: u32) -> Result<Advertisement> {
    Ok(Advertisement {
        provider_id: US.0.into(),
        name: "the \"best\" żółw".into(),
        ip_address: [203, 0, 113, 5].into(),
        country: Some("SE".into()),
        platform: "x86_64".into(),
        network: "mainnet".into(),
        payments_network: "l2.holesky".into(),
        available: Resources { cpu_cores, memory_gb: 8, storage_gb: 100 },
        usd: Prices {
            per_core_month: 5.into(),
            per_gb_ram_month: 2.into(),
            per_gb_storage_month: "0.1".parse()?,
        },
        glm: None,
    })
}

fn ours(entities: &[Value]) -> Vec<&Value> {
    let by_us = |entity: &&Value| {
        entity["owner"].as_str().is_some_and(|owner| owner.eq_ignore_ascii_case(US.0))
    };
    entities.iter().filter(by_us).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_entry_is_made_changed_prolonged_and_taken_away() -> Result<()> {
    let golem_base = GolemBase::start().await?;
    let plugin = advertiser(&[golem_base.url()]).await?;
    assert_eq!(plugin.schedule().await?.interval, Duration::from_secs(INTERVAL_SECONDS.into()));
    plugin.withdraw(US.0).await?;
    assert!(plugin.look_up(US.0).await?.is_empty());

    let made = plugin.publish(&advertisement(4)?).await?;
    assert_eq!(made.change, Change::Created);
    assert_eq!(made.expires_in, Some(Duration::from_secs(80)));
    let entities = golem_base.entities().await?;
    let [entity] = &entities[..] else { anyhow::bail!("{entities:?}") };
    assert_eq!(made.reference.as_deref(), entity["key"].as_str());
    let block = golem_base.chain()?.block_number().await?;
    assert_eq!(entity["expires_at_block"], json!(block as u64 + 40));
    assert_eq!(
        entity["strings"],
        json!({
            "golem_type": "provider", "golem_network": "mainnet", "golem_payments_network": "l2.holesky",
            "golem_provider_id": US.0, "golem_ip_address": "203.0.113.5", "golem_country": "SE",
            "golem_provider_name": "the \"best\" żółw", "golem_platform": "x86_64", "golem_price_currency": "USD/GLM",
            "golem_price_usd_core_month": "5", "golem_price_usd_ram_gb_month": "2", "golem_price_usd_storage_gb_month": "0.1",
        })
    );
    assert_eq!(
        entity["numbers"],
        json!({ "golem_cpu": 4, "golem_memory": 8, "golem_storage": 100 })
    );

    assert_eq!(plugin.publish(&advertisement(4)?).await?.change, Change::Unchanged);
    assert_eq!(golem_base.chain()?.block_number().await?, block, "that costs nothing");

    let changed = plugin.publish(&advertisement(2)?).await?;
    assert_eq!((changed.change, &changed.reference), (Change::Updated, &made.reference));
    let seen = plugin.look_up(US.0).await?;
    assert_eq!((seen.len(), seen[0].available.cpu_cores), (1, 2));
    assert_eq!(seen[0].owner.as_ref().map(|owner| owner.eq_ignore_ascii_case(US.0)), Some(true));

    golem_base.chain()?.rpc("anvil_mine", json!(["0x1e"])).await?;
    assert_eq!(plugin.publish(&advertisement(2)?).await?.change, Change::Renewed);
    let entities = golem_base.entities().await?;
    let block = golem_base.chain()?.block_number().await? as u64;
    let expires = entities[0]["expires_at_block"].as_u64().context("no end")?;
    ensure!((block + 38..=block + 40).contains(&expires), "{expires} at {block}");

    let query = |min_cpu_cores, network: &str| Query {
        min_cpu_cores: Some(min_cpu_cores),
        network: Some(network.into()),
        limit: 10,
        ..Query::default()
    };
    assert_eq!(plugin.search(&query(2, "mainnet")).await?.len(), 1);
    assert!(plugin.search(&query(3, "mainnet")).await?.is_empty());
    assert!(plugin.search(&query(1, "mainnet\" || golem_type = \"provider")).await?.is_empty());

    plugin.withdraw(US.0).await?;
    assert!(golem_base.entities().await?.is_empty());
    plugin.withdraw(US.0).await?;

    // One that was sent a moment ago, and is not mined yet, is not left to be mined later.
    golem_base.chain()?.rpc("evm_setAutomine", json!([false])).await?;
    let said = advertisement(4)?;
    let cut_off = tokio::time::timeout(Duration::from_secs(3), plugin.publish(&said)).await;
    ensure!(cut_off.is_err(), "{cut_off:?}");
    let mining = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        golem_base.chain()?.rpc("evm_mine", json!([])).await
    };
    let (withdrawn, mined) = tokio::join!(plugin.withdraw(US.0), mining);
    withdrawn?;
    mined?;
    assert!(golem_base.entities().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_keeps_every_promise_of_an_advertiser() -> Result<()> {
    let golem_base = GolemBase::start().await?;
    let never = CancellationToken::new();
    let harness = harness(&[golem_base.url()])?;
    let report = conformance::run_advertiser(&harness, Arc::new(|_| {}), &never).await;
    ensure!(report.passed(), "{:#?}", report.outcomes);
    assert!(golem_base.entities().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_entries_become_one_and_strangers_entries_with_our_id_are_left_alone() -> Result<()>
{
    let golem_base = GolemBase::start().await?;
    let forged = json!({
        "btl": 500,
        "strings": { "golem_type": "provider", "golem_provider_id": US.0, "golem_network": "mainnet",
            "golem_ip_address": "198.51.100.66" },
        "numbers": { "golem_cpu": 64, "golem_memory": 64, "golem_storage": 1000 },
    });
    golem_base.create_as(STRANGER.1, &forged).await?;
    golem_base.create_as(US.1, &forged).await?;
    golem_base.create_as(US.1, &forged).await?;
    let plugin = advertiser(&[golem_base.url()]).await?;
    assert_eq!(plugin.publish(&advertisement(4)?).await?.change, Change::Created);

    let entities = golem_base.entities().await?;
    let ours = ours(&entities);
    assert_eq!((entities.len(), ours.len()), (2, 1), "{entities:?}");
    assert_eq!(ours[0]["strings"]["golem_ip_address"], "203.0.113.5");
    // A requestor is shown both under our id, with who made them, and finds only ours.
    let seen = plugin.look_up(US.0).await?;
    let addresses: Vec<_> = seen.iter().map(|listing| listing.ip_address.as_str()).collect();
    assert_eq!(addresses, ["203.0.113.5", "198.51.100.66"]);
    let found = plugin.search(&Query { limit: 10, ..Query::default() }).await?;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].ip_address, "203.0.113.5");

    plugin.withdraw(US.0).await?;
    let left = golem_base.entities().await?;
    assert_eq!((left.len(), self::ours(&left).len()), (1, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_a_chain_that_was_reset_and_an_empty_purse_are_told_and_survived()
-> Result<()> {
    let mut golem_base = GolemBase::start().await?;
    let url = golem_base.url();
    let plugin = advertiser(std::slice::from_ref(&url)).await?;
    golem_base.chain()?.set_balance_wei(US.0, 1000).await?;
    let poor = plugin.publish(&advertisement(4)?).await.unwrap_err();
    assert_eq!(poor.kind, FailureKind::FailedPrecondition);
    for part in [US.0, "0.000000000000001 ETH", "wallet faucet"] {
        ensure!(poor.message.contains(part), "{poor}");
    }
    golem_base.chain()?.set_balance_wei(US.0, 10_u128.pow(18)).await?;
    assert_eq!(plugin.publish(&advertisement(4)?).await?.change, Change::Created);

    golem_base.stop_node();
    let down = plugin.publish(&advertisement(3)?).await.unwrap_err();
    assert_eq!(down.kind, FailureKind::Unavailable);
    golem_base.start_node().await?;
    assert_eq!(plugin.publish(&advertisement(3)?).await?.change, Change::Updated);

    golem_base.reset().await?;
    assert!(plugin.look_up(US.0).await?.is_empty());
    assert_eq!(plugin.publish(&advertisement(3)?).await?.change, Change::Created);
    assert_eq!(ours(&golem_base.entities().await?).len(), 1);

    // Another node takes over; one of another chain is told from one of Golem Base.
    let plugin = advertiser(&["http://127.0.0.1:1/?key=a-secret".to_owned(), url]).await?;
    assert_eq!(plugin.publish(&advertisement(3)?).await?.change, Change::Unchanged);
    let plugin = advertiser(&[golem_base.chain()?.url()]).await?;
    let other = plugin.publish(&advertisement(3)?).await.unwrap_err();
    ensure!(other.message.contains("GOLEM_BASE_RPC_URL"), "{other}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_on_a_real_chain_is_replaced_and_never_doubled() -> Result<()> {
    let chain = Anvil::start().await?;
    let chains = chains(&[chain.url()])?;
    let send = |what: u8, seconds| {
        let call = Call {
            to: Address::repeat_byte(0x60),
            data: Bytes::from(vec![what]),
            value_wei: U256::ZERO,
            gas_limit: None,
            key: None,
        };
        chains.send_transaction("golem-base", call, Duration::from_secs(seconds))
    };
    let first = send(1, 60).await?;
    ensure!(first.succeeded(), "{first:?}");

    chain.rpc("evm_setAutomine", json!([false])).await?;
    let hung = send(2, 2).await.unwrap_err();
    let ChainError::NotMined { hash, .. } = hung else { anyhow::bail!("{hung}") };
    let mining = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        chain.rpc("evm_mine", json!([])).await
    };
    let (second, mined) = tokio::join!(send(3, 60), mining);
    mined?;
    let block = chain.rpc("eth_getBlockByNumber", json!(["latest", false])).await?;
    assert_eq!(block["transactions"], json!([second?.transaction_hash]));
    assert_eq!(chain.rpc("eth_getTransactionReceipt", json!([hash])).await?, Value::Null);

    // The same again, after it was mined late.
    let hung = send(4, 2).await.unwrap_err();
    chain.rpc("evm_mine", json!([])).await?;
    let ChainError::NotMined { hash, .. } = hung else { anyhow::bail!("{hung}") };
    assert_eq!(send(4, 60).await?.transaction_hash, hash);
    let sent = chain.rpc("eth_getTransactionCount", json!([US.0, "pending"])).await?;
    assert_eq!(sent, json!("0x3"));
    Ok(())
}

async fn listed(golem_base: &GolemBase, what: &str, is: impl Fn(&[&Value]) -> bool) -> Result<()> {
    wait::until(what, DEADLINE, PAUSE, async || {
        let entities = golem_base.entities().await?;
        Ok(is(&ours(&entities)).then_some(()))
    })
    .await
}

async fn logged(provider: &Provider, text: &str) -> Result<()> {
    let look = async || Ok(provider.log()?.contains(text).then_some(()));
    wait::until(&format!("`{text}` in the log"), DEADLINE, PAUSE, look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_listed_shrinks_with_its_machines_and_is_gone_when_it_ends() -> Result<()> {
    let golem_base = GolemBase::start().await?;
    golem_base.chain()?.set_balance_wei(US.0, 0).await?;
    let ssh = golem_provider_tests::StandIn::start().await?;
    let mut provider = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_command(&["start"])
        .with("HOST", "127.0.0.1")
        .with("PUBLIC_IP", "203.0.113.5")
        .with("SKIP_PORT_VERIFICATION", true)
        .with("PRICING_UPDATE_ENABLED", false)
        .with("MIN_STORAGE_GB", 0)
        .with("ETHEREUM_PRIVATE_KEY", US.1)
        .with("ADVERTISER_TYPE", "golem_base")
        .with("GOLEM_BASE_RPC_URL", golem_base.url())
        .with("PLUGIN_GOLEM_BASE_MINIMUM_GAP_MS", 500)
        .start()
        .await?;
    logged(&provider, "wallet faucet").await?;
    assert!(golem_base.entities().await?.is_empty());
    golem_base.chain()?.set_balance_wei(US.0, 10_u128.pow(18)).await?;
    listed(&golem_base, "an entry", |ours| ours.len() == 1).await?;
    let cores = |ours: &[&Value]| ours.first().and_then(|one| one["numbers"]["golem_cpu"].as_u64());
    let before = cores(&ours(&golem_base.entities().await?)).context("no cores")?;
    logged(&provider, "requestors see this provider").await?;

    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
    let vm =
        json!({ "name": "mine", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": key });
    let made = provider.client().post("/vms", &vm).await?;
    ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
    // A provider that has nothing left is not listed.
    listed(&golem_base, "a smaller entry, or none", |ours| {
        cores(ours).is_none_or(|now| now == before - 1)
    })
    .await?;
    provider.client().delete("/vms/mine").await?.expect(200)?;
    listed(&golem_base, "the entry as it was", |ours| cores(ours) == Some(before)).await?;

    assert_eq!(provider.terminate().await?, 0);
    assert!(golem_base.entities().await?.is_empty(), "it is withdrawn");
    Ok(())
}
