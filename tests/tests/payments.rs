//! Rentals for money: machines on paper, streams on a real chain, read by the bundled verifier.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Answer, Client, Paper, Provider, Setup, StandIn, Wire,
    anvil::ACCOUNTS,
    contracts::{NewStream, account},
    market::{self, Market, PROVIDER, REQUESTOR},
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const HOUR: u64 = 3600;

/// A provider with machines on paper, paid on a market, over a wire that can be cut.
struct Rental {
    market: Market,
    wire: Wire,
    provider: Provider,
    rate: u128,
    _ssh: StandIn,
}

impl Rental {
    async fn begin() -> Result<Rental> {
        Rental::begin_with(|setup| setup).await
    }

    async fn begin_with(change: impl FnOnce(Setup) -> Setup) -> Result<Rental> {
        let market = Market::open().await?;
        let wire = Wire::to(market.chain.port()).await?;
        let ssh = StandIn::start().await?;
        let setup = Setup::new()?
            .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
            .paid_on(&market, &wire.url())
            .with("CPU_THRESHOLD", 100);
        let provider = change(setup).start().await?;
        let client = provider.client();
        wait::until("a price of GLM", SOON, PAUSE, async || {
            let summary = client.get("/summary").await?.expect(200)?;
            Ok((!summary["pricing"]["glm_per_core_month"].is_null()).then_some(()))
        })
        .await?;
        let rate = market::rate(client, 1, 1, 10).await?;
        Ok(Rental { market, wire, provider, rate, _ssh: ssh })
    }

    fn client(&self) -> &Client {
        self.provider.client()
    }

    /// A stream that pays what the smallest machine costs.
    async fn stream(&self, seconds: u64) -> Result<U256> {
        self.market.stream(self.rate, seconds).await
    }

    async fn ask(&self, name: &str, stream: Option<U256>) -> Result<Answer> {
        let mut body = json!({
            "name": name, "resources": { "cpu": 1, "memory": 1, "storage": 10 },
        });
        if let Some(stream) = stream {
            body["stream_id"] = json!(u64::try_from(stream)?);
        }
        self.client().post("/vms", &body).await
    }

    async fn rent(&self, name: &str, seconds: u64) -> Result<U256> {
        let stream = self.stream(seconds).await?;
        let made = self.ask(name, Some(stream)).await?;
        ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
        Ok(stream)
    }

    /// Waits until the machine is so, with its payment in this state.
    async fn until(&self, name: &str, status: &str, payment: &str) -> Result<Value> {
        let what = format!("{name} is {status} and {payment}");
        let mut last = Value::Null;
        let found = wait::until(&what, SOON, PAUSE, async || {
            last = self.client().get(&format!("/vms/{name}")).await?.expect(200)?;
            let is = last["status"] == status && last["payment"]["state"] == payment;
            Ok(is.then(|| last.clone()))
        })
        .await;
        found.with_context(|| format!("it is {last:#}"))
    }

    async fn start(&self, name: &str) -> Result<Answer> {
        self.client().post_nothing(&format!("/vms/{name}/start")).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_only_on_a_stream_that_pays_for_it() -> Result<()> {
    let no_coin = |setup: Setup| setup.with("PLUGIN_STREAM_PAYMENT__ACCEPT_COIN", "false");
    let rental = Rental::begin_with(no_coin).await?;
    let Rental { market, rate, .. } = &rental;
    let (payee, contract, token) = market::whom_to_pay(rental.client()).await?;
    ensure!(payee == account(PROVIDER) && contract == market.contract.address);
    ensure!(token == market.contract.token);
    let good = NewStream {
        sender: account(REQUESTOR),
        recipient: payee,
        token,
        deposit_wei: U256::from(*rate) * U256::from(HOUR),
        wei_per_second: *rate,
    };
    let open = async |stream: NewStream| market.contract.create(&market.chain, &stream).await;
    let cheap = open(NewStream { wei_per_second: rate - 3, ..good }).await?;
    let elsewhere = open(NewStream { recipient: account(0), ..good }).await?;
    let coin = open(NewStream { token: Address::ZERO, ..good }).await?;
    let short =
        open(NewStream { deposit_wei: U256::from(*rate) * U256::from(600), ..good }).await?;
    let halted = open(good).await?;
    market.contract.halt(&market.chain, halted).await?;
    let ended = open(good).await?;
    market.contract.terminate(&market.chain, account(REQUESTOR), ended).await?;

    for (stream, code, part) in [
        (None, "stream_needed", rate.to_string()),
        (Some(U256::from(999)), "stream_unknown", payee.to_string()),
        (Some(cheap), "stream_rate_too_low", rate.to_string()),
        (Some(elsewhere), "stream_recipient_mismatch", payee.to_string()),
        (Some(coin), "stream_token_not_accepted", token.to_string()),
        (Some(short), "stream_too_short", "3300 s are needed".to_owned()),
        (Some(halted), "stream_halted", "halted".to_owned()),
        (Some(ended), "stream_terminated", "terminated".to_owned()),
    ] {
        let answer = rental.ask("refused", stream).await?;
        let text = answer.refusal(400)?;
        ensure!(answer.json()?["code"] == code && text.contains(&part), "{}", answer.text);
    }
    let bad = json!({ "name": "refused", "size": "small", "stream_id": "seven" });
    let bad = rental.client().post("/vms", &bad).await?;
    ensure!(bad.json()?["code"] == "stream_bad_reference", "{}", bad.text);
    ensure!(rental.client().get("/vms").await?.expect(200)? == json!([]));

    // One that would do for a small machine does not for a larger one; and it buys one machine.
    let stream = open(good).await?;
    let larger = json!({ "name": "larger", "size": "medium", "stream_id": u64::try_from(stream)? });
    let larger = rental.client().post("/vms", &larger).await?.refusal(400)?;
    ensure!(larger.contains("a machine of this size costs"), "{larger}");
    let (one, other) =
        tokio::try_join!(rental.ask("twin-a", Some(stream)), rental.ask("twin-b", Some(stream)))?;
    let mut codes = [one.status, other.status];
    codes.sort_unstable();
    ensure!(codes[0] / 100 == 2 && codes[1] == 400, "{} {}", one.text, other.text);
    let there = if one.status == 400 { "twin-b" } else { "twin-a" };
    let vm = rental.client().get(&format!("/vms/{there}")).await?.expect(200)?;
    ensure!(vm["owner"] == account(REQUESTOR).to_checksum(None), "{vm:#}");
    ensure!(vm["needs_signature"] == false, "{vm:#}");
    rental.client().delete(&format!("/vms/{there}")).await?.expect(200)?;
    let again = rental.ask("again", Some(stream)).await?.refusal(400)?;
    ensure!(again.contains("has paid, for another machine"), "{again}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_stops_its_machine_and_money_brings_it_back() -> Result<()> {
    let rental = Rental::begin().await?;
    let Rental { market, rate, .. } = &rental;
    let stream = rental.rent("mine", 4 * HOUR).await?;
    let vm = rental.until("mine", "running", "funded").await?;
    ensure!(vm["payment"]["stream_id"] == stream.to_string(), "{vm:#}");
    let told = rental.client().get("/vms/mine/stream").await?.expect(200)?;
    ensure!(told["verified"] == true && told["reason"] == "ok", "{told:#}");
    ensure!(told["chain"]["ratePerSecond"].as_u64() == u64::try_from(*rate).ok(), "{told:#}");
    let deposit = (U256::from(*rate) * U256::from(4 * HOUR)).to_string();
    ensure!(told["chain"]["deposit_str"] == deposit, "{told:#}");
    let all = rental.client().get("/payments/streams").await?.expect(200)?;
    ensure!(all[0]["stream_id"] == told["stream_id"] && all[0]["vm_id"] == "mine", "{all:#}");

    // Three of the four hours are gone, and some.
    market.chain.pass_time(Duration::from_secs(3 * HOUR + 60)).await?;
    let vm = rental.until("mine", "stopped", "running_low").await?;
    ensure!(vm["payment"]["warning"].is_string() && vm["payment"]["deleted_at"].is_string());
    let refused = rental.start("mine").await?.refusal(400)?;
    ensure!(refused.contains("top it up"), "{refused}");

    let more = U256::from(*rate) * U256::from(4 * HOUR);
    market.contract.top_up(&market.chain, stream, more).await?;
    rental.start("mine").await?.expect(200)?;
    rental.until("mine", "running", "funded").await?;
    let told = rental.client().get("/vms/mine/stream").await?.expect(200)?;
    let left = told["computed"]["remaining_seconds"].as_u64().context("none left")?;
    ensure!((4 * HOUR..5 * HOUR).contains(&left), "{told:#}");

    // Past its end: what comes then pays for the gap first.
    market.chain.pass_time(Duration::from_secs(6 * HOUR)).await?;
    rental.until("mine", "stopped", "ran_out").await?;
    market.contract.top_up(&market.chain, stream, U256::from(*rate) * U256::from(600)).await?;
    let refused = rental.start("mine").await?.refusal(400)?;
    ensure!(refused.contains("run out"), "{refused}");
    rental.client().delete("/vms/mine").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_halted_or_terminated_stops_soon_and_goes_after_its_time() -> Result<()> {
    // The interval is long: it is the contract's events that are reacted to.
    let rental = Rental::begin_with(|setup| {
        setup.with("STREAM_MONITOR_INTERVAL_SECONDS", 15).with("STREAM_RETENTION_SECONDS", 10)
    })
    .await?;
    let Rental { market, .. } = &rental;
    let halted = rental.rent("halted", 4 * HOUR).await?;
    let ended = rental.rent("ended", 4 * HOUR).await?;
    for name in ["halted", "ended"] {
        rental.until(name, "running", "funded").await?;
    }
    market.contract.halt(&market.chain, halted).await?;
    rental.until("halted", "stopped", "halted").await?;
    market.contract.terminate(&market.chain, account(REQUESTOR), ended).await?;
    rental.until("ended", "stopped", "terminated").await?;
    let refused = rental.start("ended").await?.refusal(400)?;
    ensure!(refused.contains("terminated"), "{refused}");
    // Whoever pays again has it again.
    let another = rental.stream(4 * HOUR).await?;
    let body = json!({ "stream_id": u64::try_from(another)? });
    rental.client().post("/vms/ended/start", &body).await?.expect(200)?;
    rental.until("ended", "running", "funded").await?;
    market.contract.terminate(&market.chain, account(REQUESTOR), another).await?;
    rental.until("ended", "stopped", "terminated").await?;
    wait::until("both are deleted", Duration::from_secs(120), PAUSE, async || {
        let left = rental.client().get("/vms").await?.expect(200)?;
        Ok((left == json!([])).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_is_away_stops_only_what_is_not_paid_any_more_and_makes_nothing() -> Result<()>
{
    let mut rental = Rental::begin_with(|setup| {
        setup.with("STREAM_MIN_REMAINING_SECONDS", 0).with("STREAM_RETENTION_SECONDS", 0)
    })
    .await?;
    rental.rent("long", 4 * HOUR).await?;
    rental.until("long", "running", "funded").await?;
    rental.rent("short", 25).await?;
    rental.until("short", "running", "funded").await?;
    rental.wire.cut();
    let unpaid = rental.stream(4 * HOUR).await?;
    let refused = rental.ask("new", Some(unpaid)).await?;
    ensure!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    ensure!(refused.refusal(503)?.contains("stream lookup failed"), "{}", refused.text);
    let lookup = rental.client().get("/vms/long/stream").await?.refusal(502)?;
    ensure!(lookup.contains("stream lookup failed"), "{lookup}");
    // A provider that starts while nobody answers knows what it knew.
    rental.provider.terminate().await?;
    rental.provider.start_again().await?;
    let vm = rental.until("short", "stopped", "ran_out").await?;
    ensure!(vm["payment"]["chain_reachable"] == false, "{vm:#}");
    // Whatever the retention says: it is not deleted for what nobody could look up.
    tokio::time::sleep(Duration::from_secs(3)).await;
    rental.until("short", "stopped", "ran_out").await?;
    rental.until("long", "running", "funded").await?;
    rental.wire.mend();
    // Blocks went on meanwhile.
    rental.market.chain.rpc("evm_mine", json!([])).await?;
    wait::until("the short one is deleted", SOON, PAUSE, async || {
        Ok((rental.client().get("/vms/short").await?.status == 404).then_some(()))
    })
    .await?;
    let vm = rental.until("long", "running", "funded").await?;
    ensure!(vm["payment"]["chain_reachable"] == true, "{vm:#}");
    // The stream that was refused was not used up.
    let made = rental.ask("new", Some(unpaid)).await?;
    ensure!(matches!(made.status, 200 | 201), "{}", made.text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_reorganisation_takes_away_for_a_moment_stops_nothing() -> Result<()> {
    let rental = Rental::begin().await?;
    let Rental { market, .. } = &rental;
    let stream = rental.rent("mine", 4 * HOUR).await?;
    rental.until("mine", "running", "funded").await?;
    market.chain.rpc("anvil_reorg", json!([1, []])).await?;
    market.chain.rpc("anvil_mine", json!([2])).await?;
    let gone = market.contract.stream(&market.chain, stream).await?;
    ensure!(gone.sender.is_zero(), "the reorganisation left the stream where it was");
    tokio::time::sleep(Duration::from_secs(4)).await;
    rental.until("mine", "running", "funded").await?;
    // It is mined again.
    let again = rental.stream(4 * HOUR).await?;
    ensure!(again == stream);
    wait::until("the stream is seen again", SOON, PAUSE, async || {
        let told = rental.client().get("/vms/mine/stream").await?.expect(200)?;
        Ok((told["verified"] == true).then_some(()))
    })
    .await?;
    rental.until("mine", "running", "funded").await?;
    // One that stays away is gone in the end.
    market.chain.rpc("anvil_reorg", json!([1, []])).await?;
    market.chain.rpc("anvil_mine", json!([1])).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    market.chain.rpc("anvil_mine", json!([64])).await?;
    rental.until("mine", "stopped", "missing").await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_that_is_none_is_found_at_the_start_and_makes_no_machine() -> Result<()> {
    let none = Address::repeat_byte(0x22);
    // Contracts have the same addresses on every new chain: the second one of this account is the token.
    let another = account(0).create(1);
    for (address, part) in [(none, "0x2222"), (another, "not the payment contract")] {
        let address = address.to_checksum(None);
        let rental =
            Rental::begin_with(|setup| setup.with("STREAM_PAYMENT_ADDRESS", address)).await?;
        let stream = rental.stream(4 * HOUR).await?;
        let refused = rental.ask("mine", Some(stream)).await?.refusal(503)?;
        ensure!(refused.contains(part), "{refused}");
        let issue = wait::until("status says so", SOON, PAUSE, async || {
            let status = rental.provider.command(&["status", "--json"]).await?.json(1)?;
            let issues = status["issues"].as_array().cloned().unwrap_or_default();
            Ok(issues.into_iter().find(|issue| issue["code"] == "payments-unreadable"))
        })
        .await?;
        ensure!(issue["sentence"].as_str().is_some_and(|text| text.contains(part)), "{issue}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_own_machines_need_no_stream() -> Result<()> {
    let rental = Rental::begin().await?;
    let body = json!({ "name": "mine", "size": "small" }).to_string();
    let file = rental.provider.data_dir().join("body.json");
    std::fs::write(&file, &body)?;
    let file = file.to_string_lossy();
    let key = rental.provider.data_dir().join("own.key");
    std::fs::write(&key, ACCOUNTS[PROVIDER].1)?;
    let (key, provider) = (key.to_string_lossy(), account(PROVIDER).to_checksum(None));
    let sign = async |method: &str, path: &str, body: &[&str]| -> Result<String> {
        let command = [
            "sign-request",
            "--json",
            "--method",
            method,
            "--path",
            path,
            "--provider",
            &provider,
            "--key-file",
            &key,
        ];
        let signed = rental.provider.command(&[&command[..], body].concat()).await?.json(0)?;
        Ok(signed["authorization"].as_str().context("no line")?.to_owned())
    };
    let line = sign("POST", "/api/v1/vms", &["--body", &file]).await?;
    let made = rental.client().signed(&line, Method::POST, "/api/v1/vms", Some(body)).await?;
    ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
    ensure!(made.json()?["payment"].is_null(), "{}", made.text);
    let line = sign("GET", "/api/v1/vms/mine/stream", &[]).await?;
    let none = rental.client().signed(&line, Method::GET, "/api/v1/vms/mine/stream", None).await?;
    ensure!(none.refusal(404)?.contains("no stream mapped"), "{}", none.text);
    Ok(())
}
