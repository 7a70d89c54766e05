//! `golem-provider plugin test`, as an author runs it. The suite itself is tested where it is; these are about the command.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use anyhow::{Result, ensure};
use golem_provider_tests::{
    Anvil, Conformance, Multipass, NewStream, Setup, StandIn, StreamContract, conformance,
    contracts::account,
};

const DEADLINE: Duration = Duration::from_secs(120);

async fn run(plugin: &str, configuration: &str, arguments: &[&str]) -> Result<Conformance> {
    let setup = Setup::new()?.with_plugin(plugin, configuration)?;
    conformance(&setup, plugin, arguments, DEADLINE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_keeps_its_promises_has_a_line_for_each_and_status_0() -> Result<()> {
    let ssh = StandIn::start().await?;
    let settings = format!("[settings]\nssh = \"{}\"\nboot-ms = 300\n", ssh.address());
    let run = run("paper", &settings, &[]).await?;
    ensure!(run.status == 0, "{}\n{}\n{}", run.status, run.stdout, run.stderr);
    ensure!(run.stdout.lines().filter(|line| line.starts_with("passed  ")).count() > 35);
    let last = run.stdout.lines().last().unwrap_or_default();
    ensure!(last.starts_with("paper ") && last.contains(" keeps what a VM backend promises: "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_breaks_them_fails_with_reasons_and_status_1() -> Result<()> {
    let run = run("misbehaving", "", &["--json", "--grant-all"]).await?;
    ensure!(run.status == 1, "{}\n{}\n{}", run.status, run.stdout, run.stderr);
    ensure!(run.stderr.contains("to see whether it is refused"), "{}", run.stderr);
    ensure!(run.report["passed"] == false && run.report["plugin"]["name"] == "misbehaving");
    let failed = run.with_verdict("failed");
    ensure!(failed.len() > 10, "{failed:?}");
    ensure!(failed.iter().all(|check| !check.ends_with("null")), "{failed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_tried_with_grants_that_nobody_gave() -> Result<()> {
    let run = run("misbehaving", "", &["--json"]).await?;
    ensure!(run.status == 2 && run.stdout.is_empty(), "{run:?}");
    ensure!(run.stderr.contains("--grant-all"), "{run:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_multipass_backend_keeps_what_the_contract_promises() -> Result<()> {
    let multipass = Multipass::on_paper();
    // Every start of a machine gets the next address.
    let mut servers = Vec::new();
    for number in 1..=20 {
        servers
            .push(StandIn::start_at(format!("{}:22", multipass.address(number)).parse()?).await?);
    }
    let setup = Setup::new()?.with_multipass(&multipass)?;
    let run = conformance(&setup, "multipass", &["--json", "--grant-all"], DEADLINE).await?;
    ensure!(run.status == 0, "{}: {:#?}\n{}", run.status, run.with_verdict("failed"), run.stderr);
    ensure!(run.with_verdict("passed").len() > 35);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertiser_is_tried_by_the_suite_of_its_own_kind() -> Result<()> {
    let away = run("blackboard", "[settings]\nfault = \"unavailable\"\n", &["--json"]).await?;
    ensure!(away.status == 1 && away.report["kind"] == "discovery-advertiser", "{away:?}");
    ensure!(away.with_verdict("failed").is_empty() && away.with_verdict("passed").len() > 8);
    let reasons = away.with_verdict("not-applicable").join("\n");
    ensure!(reasons.contains("the blackboard has been taken away"), "{reasons}");
    Ok(())
}

/// A chain with streams of all sorts: running, topped up, drawn from, halted, terminated, and one of a token.
async fn streams(chain: &Anvil) -> Result<StreamContract> {
    let streams = StreamContract::deploy(chain).await?;
    let (requestor, provider) = (account(1), account(2));
    let of = |token| NewStream {
        sender: requestor,
        recipient: provider,
        token,
        deposit_wei: U256::from(3_600_000),
        wei_per_second: 1000,
    };
    let mut coins = Vec::new();
    for _ in 0..5 {
        coins.push(streams.create(chain, &of(Address::ZERO)).await?);
    }
    streams.fund(chain, requestor, U256::from(10_000_000)).await?;
    streams.create(chain, &of(streams.token)).await?;
    chain.pass_time(Duration::from_secs(600)).await?;
    streams.top_up(chain, coins[1], U256::from(500_000)).await?;
    streams.withdraw(chain, provider, coins[2]).await?;
    streams.halt(chain, coins[3]).await?;
    streams.terminate(chain, requestor, coins[4]).await?;
    Ok(streams)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verifier_of_streams_keeps_what_the_contract_promises() -> Result<()> {
    let chain = Anvil::start().await?;
    let streams = streams(&chain).await?;
    let node = format!("payments={}", chain.url());
    let arguments = ["--json", "--grant-all", "--chain", &node];
    let settings = |contract| {
        format!("[settings]\ncontract = \"{contract}\"\nglm-token = \"{}\"\n", streams.token)
    };
    let right = run("stream-payment", &settings(streams.address), &arguments).await?;
    let missed = [right.with_verdict("failed"), right.with_verdict("not-applicable")].concat();
    ensure!(right.status == 0, "{}: {missed:#?}\n{}", right.status, right.stderr);
    ensure!(right.with_verdict("passed").len() > 30);

    // With the token in its place, it is the settings that are wrong.
    let wrong = run("stream-payment", &settings(streams.token), &arguments).await?;
    ensure!(wrong.status == 1 && wrong.with_verdict("failed").is_empty(), "{wrong:?}");
    let reasons = wrong.with_verdict("not-applicable").join("\n");
    ensure!(reasons.contains("is not the payment contract"), "{reasons}");
    Ok(())
}
