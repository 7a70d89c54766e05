//! Money out: what streams on a real chain owe is collected to the wei, once, whatever happens in between; and what an operator
//! sees of it. Machines are on paper.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use anyhow::{Context, Result, ensure};
use golem_provider::faults::FaultPoint;
use golem_provider_tests::{
    Paper, Provider, Setup, StandIn,
    contracts::{abi, account},
    market::{self, Market, PROVIDER, REQUESTOR},
    wait,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);
const HOUR: u64 = 3600;

/// A provider with machines on paper that is paid on a market.
struct Rental {
    market: Market,
    provider: Provider,
    rate: u128,
    _ssh: StandIn,
}

impl Rental {
    async fn begin(change: impl FnOnce(Setup) -> Setup) -> Result<Rental> {
        let market = Market::open().await?;
        let ssh = StandIn::start().await?;
        let setup = Setup::new()?
            .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
            .paid_on(&market, &market.chain.url())
            .with("STREAM_WITHDRAW_INTERVAL_SECONDS", 1)
            .with("CPU_THRESHOLD", 100);
        let provider = change(setup).start().await?;
        wait::until("a price of GLM", SOON, PAUSE, async || {
            let summary = provider.client().get("/summary").await?.expect(200)?;
            Ok((!summary["pricing"]["glm_per_core_month"].is_null()).then_some(()))
        })
        .await?;
        let rate = market::rate(provider.client(), 1, 1, 10).await?;
        Ok(Rental { market, provider, rate, _ssh: ssh })
    }

    async fn rent_on(&self, name: &str, stream: U256) -> Result<()> {
        let body = json!({
            "name": name, "resources": { "cpu": 1, "memory": 1, "storage": 10 },
            "stream_id": u64::try_from(stream)?,
        });
        let made = self.provider.client().post("/vms", &body).await?;
        ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
        Ok(())
    }

    async fn rent(&self, name: &str) -> Result<U256> {
        let stream = self.market.stream(self.rate, 4 * HOUR).await?;
        self.rent_on(name, stream).await?;
        Ok(stream)
    }

    async fn has(&self, who: usize) -> Result<U256> {
        self.market.contract.token_balance(&self.market.chain, account(who)).await
    }

    /// Transactions with the provider's key up to now: each costs gas.
    async fn nonce(&self) -> Result<u64> {
        let us = account(PROVIDER);
        let count = self.market.chain.rpc("eth_getTransactionCount", json!([us, "latest"])).await?;
        let digits = count.as_str().and_then(|text| text.strip_prefix("0x")).context("no count")?;
        Ok(u64::from_str_radix(digits, 16)?)
    }

    /// The ledger's stream of this number.
    async fn told(&self, stream: U256) -> Result<Value> {
        let list = self.provider.command(&["streams", "list", "--json"]).await?.json(0)?;
        let list = list.as_array().context("no list")?;
        let number = stream.to_string();
        list.iter().find(|one| one["stream_id"] == number).cloned().context("not in the ledger")
    }

    async fn until(&self, stream: U256, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait::until(what, SOON, PAUSE, async || {
            last = self.told(stream).await?;
            Ok(is(&last).then(|| last.clone()))
        })
        .await;
        found.with_context(|| format!("it is {last:#}"))
    }
}

fn mined(stream: &Value) -> Vec<&Value> {
    let all = stream["transactions"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|one| one["state"] == "mined").collect()
}

fn wei(amount: &Value) -> Result<U256> {
    amount["wei"].as_str().and_then(|text| text.parse().ok()).with_context(|| format!("{amount}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn earnings_are_shown_and_withdrawn_by_hand_to_the_wei() -> Result<()> {
    let mut rental = Rental::begin(|setup| setup).await?;
    let nothing = rental.provider.command(&["streams", "earnings"]).await?;
    ensure!(nothing.code(0)?.stdout.contains("No machine was ever paid"), "{nothing:?}");
    let stream = rental.rent("mine").await?;
    rental.market.chain.pass_time(Duration::from_secs(1000)).await?;
    let list = rental.provider.command(&["streams", "list"]).await?;
    ensure!(list.code(0)?.stdout.contains("running"), "{list:?}");
    let unknown = rental.provider.command(&["streams", "show", "another"]).await?;
    unknown.code(1)?;

    let before = rental.has(PROVIDER).await?;
    let done =
        rental.provider.command(&["streams", "withdraw", "--vm-id", "mine", "--json"]).await?;
    let done = done.json(0)?;
    let one = &done["withdrawals"][0];
    ensure!(one["outcome"] == "collected" && one["kind"] == "withdraw", "{done:#}");
    let came = rental.has(PROVIDER).await? - before;
    ensure!(wei(&one["amount"])? == came && came >= U256::from(rental.rate) * U256::from(1000));
    ensure!(done["withdrawals"].as_array().map(Vec::len) == Some(1), "{done:#}");
    let told = rental.told(stream).await?;
    ensure!(wei(&told["withdrawn"])? == came, "{told:#}");
    let on_chain = rental.market.contract.stream(&rental.market.chain, stream).await?;
    ensure!(on_chain.withdrawn == came, "{on_chain:?}");
    let shown = rental.provider.command(&["streams", "show", "mine"]).await?;
    let hash = one["transaction"].as_str().context("no transaction")?;
    ensure!(shown.code(0)?.stdout.contains(hash), "{shown:?}");

    let earnings = rental.provider.command(&["streams", "earnings", "--json"]).await?.json(0)?;
    let sum = &earnings["earnings"][0];
    ensure!(sum["withdrawn"]["usd"].is_string() && earnings["usd_per_glm"] == "0.25");
    ensure!(sum["gas_wei"] == one["gas_wei"], "{earnings:#}");

    // At rest it is the same, and nobody withdraws.
    rental.provider.terminate().await?;
    let at_rest = rental.provider.command(&["streams", "earnings", "--json"]).await?.json(0)?;
    ensure!(at_rest["earnings"][0]["withdrawn"] == sum["withdrawn"], "{at_rest:#}");
    rental.provider.command(&["streams", "withdraw", "--all"]).await?.code(2)?;
    rental.provider.command(&["streams", "withdraw"]).await?.code(2)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawals_begin_when_the_operator_says_so_and_a_deleted_machine_is_settled() -> Result<()>
{
    let mut rental = Rental::begin(|setup| setup).await?;
    let stream = rental.rent("mine").await?;
    rental.market.chain.pass_time(Duration::from_secs(1000)).await?;
    let set = ["config", "withdraw", "--enable", "--interval", "1", "--min-wei", "0", "--json"];
    let rules = rental.provider.command(&set).await?.json(0)?;
    ensure!(rules["running"] == true && rules["withdraw_enabled"] == true, "{rules:#}");
    rental.until(stream, "a withdrawal by itself", |told| !mined(told).is_empty()).await?;
    let off = ["config", "withdraw", "--disable"];
    let off = rental.provider.command(&off).await?;
    ensure!(off.code(0)?.stdout.contains("only by"), "{off:?}");
    let monitor = ["config", "monitor", "--interval", "2", "--retention", "7", "--json"];
    let rules = rental.provider.command(&monitor).await?.json(0)?;
    ensure!(rules["monitor_interval_seconds"] == 2 && rules["monitor_enabled"] == true);
    for wrong in [["--interval", "0"], ["--min-remaining", "-1"], ["--enable", "--disable"]] {
        let all = [&["config", "monitor"][..], &wrong].concat();
        rental.provider.command(&all).await?.code(2)?;
    }
    rental.provider.command(&["config", "withdraw"]).await?.code(2)?;

    // Ended in one transaction: what is earned comes, and the requestor has the rest back.
    let (ours, theirs) = (rental.has(PROVIDER).await?, rental.has(REQUESTOR).await?);
    rental.market.chain.pass_time(Duration::from_secs(500)).await?;
    rental.provider.client().delete("/vms/mine").await?.expect(200)?;
    let told = rental.until(stream, "settled", |told| told["state"] == "settled").await?;
    let ended = mined(&told).last().copied().cloned().context("no transaction")?;
    ensure!(ended["kind"] == "terminate", "{told:#}");
    let came = rental.has(PROVIDER).await? - ours;
    ensure!(wei(&ended["amount"])? == came && !came.is_zero(), "{ended:#}");
    let deposit = U256::from(rental.rate) * U256::from(4 * HOUR);
    let back = rental.has(REQUESTOR).await? - theirs;
    ensure!(wei(&told["withdrawn"])? + back == deposit, "{told:#}");
    let on_chain = rental.market.contract.stream(&rental.market.chain, stream).await?;
    ensure!(on_chain.recipient.is_zero());

    // The rules are written down, too.
    rental.provider.terminate().await?;
    let env = std::fs::read_to_string(rental.provider.data_dir().join(".env"))?;
    ensure!(env.contains("GOLEM_PROVIDER_STREAM_WITHDRAW_ENABLED=false\n"), "{env}");
    ensure!(env.contains("GOLEM_PROVIDER_STREAM_RETENTION_SECONDS=7\n"), "{env}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_anywhere_in_a_withdrawal_pays_gas_once() -> Result<()> {
    let mut rental = Rental::begin(|setup| setup).await?;
    let stream = rental.rent("mine").await?;
    let mut count = rental.nonce().await?;
    for point in [
        FaultPoint::PayoutPlanned,
        FaultPoint::TransactionWritten,
        FaultPoint::TransactionSent,
        FaultPoint::TransactionMined,
        FaultPoint::PayoutUnwritten,
        FaultPoint::PayoutWritten,
    ] {
        rental.market.chain.pass_time(Duration::from_secs(100)).await?;
        let before = rental.has(PROVIDER).await?;
        rental.provider.arm(&[(point, 1)])?;
        let asked = rental.provider.command(&["streams", "withdraw", "--all"]).await?;
        ensure!(asked.status.code() == Some(1), "{point:?}: {asked:?}");
        let died = rental.provider.death().await?;
        ensure!(died == point, "it died at {died:?} and not at {point:?}");
        rental.provider.disarm()?;
        rental.provider.start_again().await?;
        let is_clear = |told: &Value| {
            let all = told["transactions"].as_array().map(Vec::as_slice).unwrap_or_default();
            !all.is_empty() && all.iter().all(|one| one["state"] == "mined")
        };
        let told = rental.until(stream, "what was planned is mined", is_clear).await?;
        count += 1;
        ensure!(rental.nonce().await? == count, "{point:?}: gas was paid twice: {told:#}");
        let came = rental.has(PROVIDER).await? - before;
        let last = mined(&told).last().copied().cloned().context("no transaction")?;
        ensure!(wei(&last["amount"])? == came && !came.is_zero(), "{point:?}: {last:#}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawal_that_hangs_when_the_provider_is_killed_is_mined_once_after_the_next_start()
-> Result<()> {
    let mut rental = Rental::begin(|setup| setup).await?;
    let stream = rental.rent("mine").await?;
    rental.market.chain.pass_time(Duration::from_secs(1000)).await?;
    let (count, before) = (rental.nonce().await?, rental.has(PROVIDER).await?);
    rental.market.chain.rpc("evm_setAutomine", json!([false])).await?;
    rental.provider.arm(&[(FaultPoint::TransactionSent, 1)])?;
    let _ = rental.provider.command(&["streams", "withdraw", "--all"]).await?;
    rental.provider.death().await?;
    rental.provider.disarm()?;
    // Gas has become dearer meanwhile: what hangs has to be offered more for.
    let dear = format!("{:#x}", 30_000_000_000_u64);
    rental.market.chain.rpc("anvil_setNextBlockBaseFeePerGas", json!([dear])).await?;
    rental.provider.start_again().await?;
    let mining = async {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            rental.market.chain.rpc("evm_mine", json!([])).await?;
        }
        #[allow(unreachable_code)]
        Ok::<(), anyhow::Error>(())
    };
    let told = tokio::select! {
        told = rental.until(stream, "it is mined", |told| !mined(told).is_empty()) => told?,
        failed = mining => return failed.context("mining"),
    };
    ensure!(rental.nonce().await? == count + 1, "{told:#}");
    let came = rental.has(PROVIDER).await? - before;
    ensure!(mined(&told).len() == 1 && wei(&mined(&told)[0]["amount"])? == came, "{told:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_that_takes_nothing_back_does_not_keep_the_provider_from_its_money()
-> Result<()> {
    let rental = Rental::begin(|setup| setup).await?;
    let chain = &rental.market.chain;
    let grumpy = chain.deploy(account(REQUESTOR), "GrumpySender", &[]).await?;
    let payee = account(PROVIDER);
    let open = abi::GrumpySender::openCall {
        payments: rental.market.contract.address,
        recipient: payee,
        ratePerSecond: rental.rate,
    };
    let deposit = U256::from(rental.rate) * U256::from(4 * HOUR);
    for (name, mood) in [("rejects", 0), ("burns", 1)] {
        let set = abi::GrumpySender::setMoodCall { to: mood };
        chain.send(account(REQUESTOR), grumpy, &set, U256::ZERO).await?;
        let receipt = chain.send(account(REQUESTOR), grumpy, &open, deposit).await?;
        let created = rental.market.contract.events::<abi::StreamPayment::StreamCreated>(&receipt);
        let stream = created.first().context("no stream")?.streamId;
        rental.rent_on(name, stream).await?;
        // Enough to be worth the gas.
        chain.pass_time(Duration::from_secs(2 * HOUR)).await?;
        rental.provider.client().delete(&format!("/vms/{name}")).await?.expect(200)?;
        let told = rental.until(stream, "a withdrawal", |told| !mined(told).is_empty()).await?;
        let all = told["transactions"].as_array().context("none")?;
        ensure!(all[0]["kind"] == "terminate" && all[0]["state"] == "failed", "{told:#}");
        ensure!(all[0]["gas_wei"].is_null(), "nothing was sent to no end: {told:#}");
        ensure!(mined(&told)[0]["kind"] == "withdraw" && told["state"] == "owed", "{told:#}");
        let on_chain = rental.market.contract.stream(chain, stream).await?;
        ensure!(wei(&mined(&told)[0]["amount"])? == on_chain.withdrawn, "{told:#}");
        // What is left is collected when it has run up.
        chain.pass_time(Duration::from_secs(3 * HOUR)).await?;
        let asked = rental.provider.command(&["streams", "withdraw", "--vm-id", name]).await?;
        asked.code(0)?;
        let told = rental.until(stream, "settled", |told| told["state"] == "settled").await?;
        ensure!(wei(&told["withdrawn"])? == deposit, "{told:#}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_accepted_any_more_is_left_alone() -> Result<()> {
    let mut rental = Rental::begin(|setup| setup).await?;
    let stream = rental.rent("mine").await?;
    rental.market.chain.pass_time(Duration::from_secs(1000)).await?;
    rental.provider.terminate().await?;
    let other = Address::repeat_byte(0x22).to_checksum(None);
    rental.provider.set("GLM_TOKEN_ADDRESS", other);
    rental.provider.start_again().await?;
    let count = rental.nonce().await?;
    let done =
        rental.provider.command(&["streams", "withdraw", "--all", "--json"]).await?.json(1)?;
    let one = &done["withdrawals"][0];
    ensure!(one["outcome"] == "failed", "{done:#}");
    let reason = one["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("GOLEM_PROVIDER_GLM_TOKEN_ADDRESS"), "{done:#}");
    ensure!(rental.nonce().await? == count && mined(&rental.told(stream).await?).is_empty());
    Ok(())
}
