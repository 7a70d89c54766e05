//! A plugin that does what no plugin must do, in a provider that has VMs of another one and requestors who ask all the time.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Client, Paper, Provider, Requests, Setup, StandIn, component, wait};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(10);
/// Of a hundred, with a few that are on their way at either end.
const AT_LEAST_PER_SECOND: f64 = 95.0;
/// Nobody has to wait longer for an answer that needs no plugin, also on a machine that does other things beside this.
const LONGEST: Duration = Duration::from_secs(1);
/// What the provider may have more when all is over: buffers that are kept, and pages of the pool of instances.
const KEPT_BYTES: u64 = 64 << 20;
const LOG_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_plugin_does_other_vms_and_all_requests_go_on() -> Result<()> {
    let ssh = StandIn::start().await?;
    let (granted, _redirecting) = redirecting_server("http://192.0.2.2/").await?;
    let configuration = format!(
        "[settings]\ninspect-all = \"loop\"\nurl = \"http://{granted}/\"\n[grants]\nhttp = [\"http://{granted}\"]\n"
    );
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with_plugin("misbehaving", &configuration)?
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
    std::os::unix::fs::symlink("/etc/passwd", provider.data_dir().join("vms/misbehaving/link"))?;
    let before_bytes = provider.resident_bytes()?;
    let begun = Instant::now();
    let requests = Requests::begin(provider.client().clone(), EVERY);
    let client = provider.client();

    for (deed, reason) in [
        ("trap", "it broke off: wasm trap: wasm `unreachable` instruction executed"),
        ("panic", "the disk of panic is on fire"),
        ("overflow", "it broke off: wasm trap"),
        ("allocate", "bytes of memory, which is more than the 128 MiB"),
        ("megabytes", "it handed over more than 8 MiB at once"),
        ("write-megabytes", "it handed over more than 8 MiB at once"),
        ("long-error", "wrong wrong"),
        (
            "program",
            "running `sh` is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving programs sh",
        ),
        (
            "host",
            "fetching from http://192.0.2.1 is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving http http://192.0.2.1",
        ),
        (
            "redirect",
            "fetching from http://192.0.2.2 is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving http http://192.0.2.2",
        ),
        (
            "socket",
            "connecting to /run/ungranted.sock is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving sockets /run/ungranted.sock",
        ),
        (
            "file",
            "reading /etc/passwd is not granted to the plugin misbehaving; to allow it: golem-provider plugin grant misbehaving files /etc/passwd",
        ),
        ("absolute", "/etc/passwd leads out of the plugin's directory"),
        ("dotdot", "../provider.db leads out of the plugin's directory"),
        ("symlink", "cannot read link: a path led outside"),
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

    assert_unfit_components_are_refused(&provider).await?;

    // The other plugin's VM lives on all the while.
    StandIn::assert_reached_through(port).await?;
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    StandIn::assert_reached_through(port).await?;

    let elapsed = begun.elapsed();
    let (count, longest) = requests.end().await?;
    eprintln!("{count} requests in {elapsed:?}, the longest took {} ms", longest.as_millis());
    let least = AT_LEAST_PER_SECOND * elapsed.as_secs_f64();
    ensure!(count as f64 >= least, "only {count} requests were made in {elapsed:?}");
    ensure!(longest < LONGEST, "a request took {longest:?}");
    assert_what_is_left(&provider, before_bytes)
}

/// Components that this provider cannot load, and what an operator reads who wants to install them.
async fn assert_unfit_components_are_refused(provider: &Provider) -> Result<()> {
    let (ours, newer) = ("golem:provider/vms@0.1.0", "golem:provider/vms@9.1.0");
    let mut for_newer = fs::read(component("misbehaving")?)?;
    let places: Vec<usize> =
        (0..for_newer.len()).filter(|at| for_newer[*at..].starts_with(ours.as_bytes())).collect();
    ensure!(!places.is_empty());
    for at in places {
        for_newer[at..at + newer.len()].copy_from_slice(newer.as_bytes());
    }
    // A component's first eight bytes and nothing more: valid, and without any export.
    let without_exports = b"\0asm\x0d\0\x01\0".to_vec();
    let directory = tempfile::tempdir()?;
    for (name, bytes, told) in [
        (
            "newer",
            for_newer,
            "it was made for golem:provider@9.1.0, and this provider offers golem:provider@0.1.0",
        ),
        ("empty", without_exports, "it exports no interface that makes it a plugin"),
    ] {
        let file = directory.path().join(format!("{name}.wasm"));
        fs::write(&file, bytes)?;
        let ended =
            provider.command(&["plugin", "install", &file.to_string_lossy(), "--yes"]).await?;
        ensure!(!ended.status.success() && ended.stderr.contains(told), "{name}: {ended:?}");
        ensure!(!provider.data_dir().join(format!("plugins/{name}.wasm")).exists());
    }
    Ok(())
}

/// A server that sends everybody elsewhere.
async fn redirecting_server(elsewhere: &str) -> Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok((address, serving))
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
