//! The whole of renting for money, on a chain and a machine of its own: from the advertised price to the last wei.

use std::time::Duration;

use alloy::primitives::U256;
use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Image, Key, KeyKind, NewStream, Setup, Ssh,
    contracts::account,
    market::{self, Market, PROVIDER, REQUESTOR},
    wait,
};
use serde_json::{Value, json};

use crate::checks::{Steps, machine, ssh_port};

const SOON: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(250);
const HOUR: u64 = 3600;

#[tokio::test(flavor = "multi_thread")]
async fn a_requestor_pays_for_a_machine_by_the_second_and_the_provider_gets_every_wei() -> Result<()>
{
    let _turn = machine().await?;
    let steps = Steps::begin();
    let market = Market::open().await?;
    let (chain, contract) = (&market.chain, &market.contract);
    steps.next("starting");
    let provider = Setup::new()?
        .paid_on(&market, &chain.url())
        .with("STREAM_WITHDRAW_INTERVAL_SECONDS", 1)
        .with_images(&[Image::for_tests()?])?
        .start()
        .await?;
    let requestor = provider.client();
    let balance = async |who: usize| contract.token_balance(chain, account(who)).await;
    let (provider_had, requestor_had) = (balance(PROVIDER).await?, balance(REQUESTOR).await?);

    steps.next("paying");
    let (payee, payments, token) = market::whom_to_pay(requestor).await?;
    ensure!(payments == contract.address && payee == account(PROVIDER));
    wait::until("a price of GLM", SOON, PAUSE, async || {
        let summary = requestor.get("/summary").await?.expect(200)?;
        Ok((!summary["pricing"]["glm_per_core_month"].is_null()).then_some(()))
    })
    .await?;
    let rate = market::rate(requestor, 1, 1, 10).await?;
    let hours = |hours: u64| U256::from(rate) * U256::from(hours * HOUR);
    let stream = NewStream {
        sender: account(REQUESTOR),
        recipient: payee,
        token,
        deposit_wei: hours(8),
        wei_per_second: rate,
    };
    let stream = contract.create(chain, &stream).await?;

    steps.next("renting");
    let key = Key::generate(KeyKind::Ed25519).await?;
    let request = json!({
        "name": "paid", "resources": { "cpu": 1, "memory": 1, "storage": 10 },
        "ssh_key": key.public, "stream_id": u64::try_from(stream)?,
    });
    let made = requestor.post("/vms", &request).await?;
    ensure!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
    let ssh = Ssh::to(ssh_port(&made.json()?)?)?;
    ssh.run(&key, "echo kept > /root/note && sync").await?;

    steps.next("earning");
    let told = async || requestor.get("/vms/paid/stream").await?.expect(200);
    let vested = |told: &Value| {
        told["computed"]["vested_wei_str"].as_str().and_then(|wei| wei.parse::<U256>().ok())
    };
    let before = vested(&told().await?).context("nothing is said to have vested")?;
    chain.pass_time(Duration::from_secs(HOUR)).await?;
    let after = told().await?;
    ensure!(vested(&after).is_some_and(|after| after >= before + hours(1)), "{after:#}");
    let earned = provider.command(&["streams", "earnings", "--json"]).await?.json(0)?;
    ensure!(earned["earnings"][0]["earned"]["usd"].is_string(), "{earned:#}");
    contract.top_up(chain, stream, hours(1)).await?;

    steps.next("running out");
    let until = async |status: &str, state: &str| -> Result<Value> {
        wait::until(&format!("it is {status} and {state}"), SOON, PAUSE, async || {
            let vm = requestor.get("/vms/paid").await?.expect(200)?;
            Ok((vm["status"] == status && vm["payment"]["state"] == state).then_some(vm))
        })
        .await
    };
    until("running", "funded").await?;
    chain.pass_time(Duration::from_secs(8 * HOUR + 60)).await?;
    let vm = until("stopped", "ran_out").await?;
    ensure!(vm["payment"]["deleted_at"].is_string(), "{vm:#}");
    let refused = requestor.post_nothing("/vms/paid/start").await?.refusal(400)?;
    ensure!(refused.contains("top it up"), "{refused}");

    steps.next("paying again");
    contract.top_up(chain, stream, hours(3)).await?;
    requestor.post_nothing("/vms/paid/start").await?.expect(200)?;
    ensure!(ssh.run(&key, "cat /root/note").await?.trim() == "kept");

    steps.next("giving back");
    requestor.delete("/vms/paid").await?.expect(200)?;
    let closed = wait::until("the stream is settled", SOON, PAUSE, async || {
        let now = contract.stream(chain, stream).await?;
        Ok(now.recipient.is_zero().then_some(now))
    })
    .await?;
    let settled = wait::until("the ledger knows it", SOON, PAUSE, async || {
        let list = provider.command(&["streams", "list", "--json"]).await?.json(0)?;
        let number = stream.to_string();
        let one = list.as_array().and_then(|list| {
            list.iter().find(|one| one["stream_id"] == number && one["state"] == "settled").cloned()
        });
        Ok(one)
    })
    .await?;
    // From its start to the block that ended it, and not a wei more or less.
    let paid_in = closed.deposit;
    ensure!(paid_in == hours(8) + hours(1) + hours(3));
    let earned = balance(PROVIDER).await? - provider_had;
    let spent = requestor_had - balance(REQUESTOR).await?;
    ensure!(earned == spent, "{earned} {spent}");
    let left_in_the_contract = contract.token_balance(chain, contract.address).await?;
    ensure!(left_in_the_contract.is_zero(), "{left_in_the_contract} are left in the contract");
    let ended_at = chain.block_time().await?;
    let seconds = U256::from(ended_at) - U256::from(closed.startTime);
    ensure!(earned <= U256::from(rate) * seconds && earned >= hours(9), "{earned}");
    let withdrawn = settled["withdrawn"]["wei"].as_str().and_then(|wei| wei.parse::<U256>().ok());
    ensure!(withdrawn == Some(earned), "{settled:#} {earned}");
    Ok(())
}
