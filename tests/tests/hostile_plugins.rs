//! A plugin that does what no plugin must do, in a provider that has VMs of another one and requestors who ask all the time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Client, Paper, Provider, Requests, Setup, StandIn, wait};
use serde_json::{Value, json};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(10);
/// Nobody has to wait longer for an answer that needs no plugin, also on a machine that does other things beside this.
const LONGEST: Duration = Duration::from_secs(1);
/// What the provider may have more when all is over: buffers that are kept, and pages of the pool of instances.
const KEPT_BYTES: u64 = 64 << 20;
const LOG_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_plugin_does_other_vms_and_all_requests_go_on() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_plugin("misbehaving", "[settings]\ninspect-all = \"loop\"\n")?
        .with("RATE_LIMIT_PER_MINUTE", 1_000_000)
        // Machines on paper take nothing, so all that this computer has may be given away.
        .with("CPU_THRESHOLD", 100)
        .with("MEMORY_THRESHOLD", 100)
        .with("STORAGE_THRESHOLD", 100);
    let mut provider = setup.start().await?;
    let made = provider.client().post("/vms", &body("my-vm")).await?.expect(201)?;
    let port = u16::try_from(made["ssh_port"].as_u64().context("no port")?)?;
    assert_eq!(provider.terminate().await?, 0);
    provider.set("VM_BACKEND", "misbehaving");
    provider.set("DEFAULT_VM_IMAGE", "hostile");
    provider.start_again().await?;
    let before_bytes = provider.resident_bytes()?;
    let requests = Requests::begin(provider.client().clone(), EVERY);
    let client = provider.client();

    for (deed, reason) in [
        ("trap", "it broke off: wasm trap: wasm `unreachable` instruction executed"),
        ("panic", "the disk of panic is on fire"),
        ("overflow", "it broke off: wasm trap"),
        ("allocate", "bytes of memory, which is more than the 128 MiB"),
        ("write-megabytes", "it handed over more than 8 MiB at once"),
        ("long-error", "wrong wrong"),
        (
            "program",
            "running `sh` is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving programs sh",
        ),
    ] {
        let failed = failed_create(client, deed).await?;
        ensure!(failed.contains(reason), "{deed}: {failed}");
        ensure!(failed.len() < 6000, "{deed}: {} bytes", failed.len());
    }
    failed_create(client, "flood").await?;

    // A call that would never end is given up as soon as somebody wants it, whether it waits or computes.
    for (deed, pause) in [("sleep", 300), ("loop", 2000)] {
        client.post("/vms?async=true", &body(deed)).await?.expect(202)?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let path = format!("/vms/{deed}");
        let deleted = wait::within("a delete", Duration::from_secs(10), client.delete(&path));
        deleted.await??.expect(200)?;
    }

    // The other plugin's VM lives on all the while.
    StandIn::assert_reached_through(port).await?;
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    StandIn::assert_reached_through(port).await?;

    let (count, longest) = requests.end().await?;
    eprintln!("{count} requests, the longest took {} ms", longest.as_millis());
    ensure!(count > 100, "only {count} requests were made");
    ensure!(longest < LONGEST, "a request took {longest:?}");
    assert_what_is_left(&provider, before_bytes)
}

fn assert_what_is_left(provider: &Provider, before_bytes: u64) -> Result<()> {
    let log = provider.log()?;
    for line in [
        "`inspect-all` of the plugin misbehaving failed: it computed for more than 2 s without an end and was stopped; if this goes on, update the plugin or report it to its author",
        "`create` of the plugin misbehaving failed: it panicked: ",
        "the plugin misbehaving logs too much; ",
    ] {
        ensure!(log.contains(line), "not in the log: {line}");
    }
    ensure!(log.len() < LOG_BYTES, "{} bytes were logged", log.len());
    let after_bytes = provider.resident_bytes()?;
    eprintln!("resident: {} MiB before, {} MiB after", before_bytes >> 20, after_bytes >> 20);
    ensure!(after_bytes < before_bytes + KEPT_BYTES, "{before_bytes} bytes, now {after_bytes}");
    Ok(())
}

fn body(name: &str) -> Value {
    json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 })
}

/// Makes a VM that comes to nothing, and answers what its record says of that.
async fn failed_create(client: &Client, name: &str) -> Result<String> {
    client.post("/vms?async=true", &body(name)).await?.expect(202)?;
    let path = format!("/vms/{name}");
    let (deadline, pause) = (Duration::from_secs(20), Duration::from_millis(50));
    let reason = wait::until(name, deadline, pause, async || {
        let vm = client.get(&path).await?.expect(200)?;
        ensure!(vm["status"] != "running", "{vm}");
        let reason = vm["error_message"].as_str().map(str::to_owned);
        Ok(reason.filter(|_| vm["status"] == "error"))
    })
    .await?;
    client.delete(&path).await?.expect(200)?;
    Ok(reason)
}
