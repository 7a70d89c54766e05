//! Plugins as an operator handles them: installed, granted, switched off and on, replaced, side by side, all while the provider
//! runs. Machines are on paper.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{
    Client, Ended, Paper, Provider, Requests, Setup, StandIn, component, wait,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn provider(ssh: &StandIn) -> Result<Provider> {
    let setup = Setup::new()?
        .with_paper_backend(&Paper::with_ssh_at(ssh.address()))?
        .with("RATE_LIMIT_PER_MINUTE", 0)
        .with("CPU_THRESHOLD", 100)
        .with("MEMORY_THRESHOLD", 100);
    setup.start().await
}

fn body(name: &str) -> Value {
    json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 })
}

async fn create(client: &Client, name: &str) -> Result<u16> {
    let made = client.post("/vms", &body(name)).await?.expect(201)?;
    Ok(u16::try_from(made["ssh_port"].as_u64().context("no port")?)?)
}

/// A command that succeeds; what it printed.
async fn run(provider: &Provider, arguments: &[&str]) -> Result<String> {
    let ended = provider.command(arguments).await?;
    ensure!(ended.status.success(), "{arguments:?}: {:?} {}", ended.status, ended.stderr);
    Ok(ended.stdout)
}

/// A command that fails; what it said.
async fn failing(provider: &Provider, arguments: &[&str], code: i32) -> Result<String> {
    let Ended { status, stderr, .. } = provider.command(arguments).await?;
    ensure!(status.code() == Some(code), "{arguments:?}: {status:?} {stderr}");
    Ok(stderr)
}

async fn listed(provider: &Provider, name: &str) -> Result<Value> {
    let list: Value = serde_json::from_str(&run(provider, &["plugin", "list", "--json"]).await?)?;
    let all = list.as_array().context("no list")?;
    let found = all.iter().find(|plugin| plugin["name"] == name);
    found.cloned().with_context(|| format!("{name} is not in {list}"))
}

/// The component of the machines on paper, as other bytes: with another custom section at its end.
fn variant(directory: &Path, number: u8) -> Result<PathBuf> {
    let mut bytes = fs::read(component("paper")?)?;
    bytes.extend([0, 3, 1, b'x', number]);
    let file = directory.join(format!("paper-{number}.wasm"));
    fs::write(&file, bytes)?;
    Ok(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_is_switched_off_and_on_and_removed_while_the_provider_runs() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = provider(&ssh).await?;
    let client = provider.client();
    let port = create(client, "my-vm").await?;
    let paper = listed(&provider, "paper").await?;
    ensure!(paper["state"] == "working" && paper["in_use"] == true, "{paper}");
    ensure!(listed(&provider, "qemu").await?["origin"] == "bundled");
    let table = run(&provider, &["plugin", "list"]).await?;
    ensure!(table.contains("working, in use") && table.starts_with("NAME"), "{table}");

    run(&provider, &["plugin", "disable", "paper"]).await?;
    let refusal = client.post("/vms", &body("late")).await?.refusal(503)?;
    ensure!(refusal.contains("golem-provider plugin enable paper"), "{refusal}");
    ensure!(listed(&provider, "paper").await?["state"] == "disabled");
    let vm = client.get("/vms/my-vm").await?.expect(200)?;
    ensure!(vm["status"] == "running", "{vm}");
    StandIn::assert_reached_through(port).await?;
    client.post_nothing("/vms/my-vm/stop").await?.refusal(503)?;

    run(&provider, &["plugin", "enable", "paper"]).await?;
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    StandIn::assert_reached_through(port).await?;

    let bundled = failing(&provider, &["plugin", "remove", "qemu"], 1).await?;
    ensure!(bundled.contains("plugin disable qemu"), "{bundled}");
    run(&provider, &["plugin", "remove", "paper"]).await?;
    client.post_nothing("/vms/my-vm/stop").await?.refusal(503)?;
    ensure!(client.get("/vms/my-vm").await?.expect(200)?["status"] == "running");
    let file = component("paper")?;
    run(&provider, &["plugin", "install", &file.to_string_lossy()]).await?;
    client.delete("/vms/my-vm").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_asks_for_is_shown_and_granted_only_with_consent() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = provider(&ssh).await?;
    let misbehaving = component("misbehaving")?;
    let file = misbehaving.to_string_lossy();
    let about: Value =
        serde_json::from_str(&run(&provider, &["plugin", "inspect", &file, "--json"]).await?)?;
    ensure!(about["name"] == "misbehaving" && about["kind"] == "vm-backend", "{about}");
    let asks = about["asks"].as_array().context("no asks")?;
    ensure!(!asks.is_empty() && asks.iter().all(|ask| ask["reason"].is_string()), "{about}");
    ensure!(about["missing"] == about["asks"], "{about}");

    let refused = failing(&provider, &["plugin", "install", &file], 2).await?;
    ensure!(refused.contains("--yes"), "{refused}");
    ensure!(
        asks.iter().all(|ask| refused.contains(ask["reason"].as_str().unwrap_or("?"))),
        "{refused}"
    );
    ensure!(!provider.data_dir().join("plugins/misbehaving.wasm").exists());

    run(&provider, &["plugin", "install", &file, "--yes"]).await?;
    ensure!(listed(&provider, "misbehaving").await?["not_granted"] == json!([]));
    // What was granted is not asked for again.
    run(&provider, &["plugin", "install", &file]).await?;
    run(&provider, &["plugin", "revoke", "misbehaving", "programs", "sh"]).await?;
    run(&provider, &["plugin", "grant", "misbehaving", "programs", "/bin/sh"]).await?;
    let configuration = fs::read_to_string(provider.data_dir().join("plugins/misbehaving.toml"))?;
    ensure!(configuration.contains("inode"), "not granted as a file: {configuration}");
    let unknown =
        failing(&provider, &["plugin", "grant", "nobody", "http", "https://a.example"], 1);
    ensure!(unknown.await?.contains("there is no plugin `nobody`"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_plugin_directory_takes_over_and_a_broken_one_does_not() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = provider(&ssh).await?;
    let client = provider.client();
    create(client, "my-vm").await?;
    let target = provider.data_dir().join("plugins/paper.wasm");
    let sha256 = listed(&provider, "paper").await?["sha256"].clone();
    let directory = tempfile::tempdir()?;
    let (deadline, pause) = (Duration::from_secs(30), Duration::from_millis(200));

    fs::copy(variant(directory.path(), 1)?, &target)?;
    wait::until("the dropped file to take over", deadline, pause, async || {
        Ok(provider.log()?.contains("takes the calls from now on").then_some(()))
    })
    .await?;
    ensure!(listed(&provider, "paper").await?["sha256"] != sha256);
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;

    fs::write(&target, "no component")?;
    wait::until("the broken file to be told", deadline, pause, async || {
        Ok(provider.log()?.contains("is not taken over, what was loaded goes on").then_some(()))
    })
    .await?;
    client.post_nothing("/vms/my-vm/start").await?.expect(200)?;
    let broken = directory.path().join("broken.wasm");
    fs::write(&broken, "no component")?;
    failing(&provider, &["plugin", "install", &broken.to_string_lossy()], 1).await?;
    client.delete("/vms/my-vm").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_name_its_backend_and_each_vm_stays_with_its_own() -> Result<()> {
    let ssh = StandIn::start().await?;
    let provider = provider(&ssh).await?;
    let client = provider.client();
    let info = client.get("/provider/info").await?.expect(200)?;
    ensure!(info["backends"] == json!(["paper", "qemu"]), "{info}");
    ensure!(info["default_backend"] == "paper", "{info}");
    ensure!(client.get("/summary").await?.expect(200)?["backends"] == info["backends"]);

    run(&provider, &["plugin", "use", "vm-backend", "qemu"]).await?;
    let info = client.get("/provider/info").await?.expect(200)?;
    ensure!(info["default_backend"] == "qemu", "{info}");
    let mut request = body("my-vm");
    request["backend"] = json!("paper");
    let made = client.post("/vms", &request).await?.expect(201)?;
    ensure!(made["backend"] == "paper", "{made}");
    request["name"] = json!("another");
    request["backend"] = json!("xen");
    let refusal = client.post("/vms", &request).await?.refusal(400)?;
    ensure!(refusal.contains("paper, qemu"), "{refusal}");
    client.post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    client.delete("/vms/my-vm").await?.expect(200)?;
    let nobody = failing(&provider, &["plugin", "use", "vm-backend", "xen"], 1).await?;
    ensure!(nobody.contains("paper, qemu"), "{nobody}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_under_load_fail_no_request_and_break_no_byte() -> Result<()> {
    const SWAPS: usize = 50;
    const KEPT_BYTES: u64 = 48 << 20;
    let ssh = StandIn::start().await?;
    let provider = provider(&ssh).await?;
    let client = provider.client().clone();
    let port = create(&client, "my-vm").await?;
    let directory = tempfile::tempdir()?;
    let files = [variant(directory.path(), 1)?, variant(directory.path(), 2)?];
    // Both are compiled before it is looked at how much memory there is.
    for file in &files {
        run(&provider, &["plugin", "install", &file.to_string_lossy()]).await?;
    }
    let before_bytes = provider.resident_bytes()?;

    let requests = Requests::begin(client.clone(), Duration::from_millis(5));
    let transfer = tokio::spawn(transfer(port));
    let life = tokio::spawn(lives(client.clone()));
    for swap in 0..SWAPS {
        let file = files[swap % 2].to_string_lossy().into_owned();
        run(&provider, &["plugin", "install", &file]).await?;
    }
    transfer.abort();
    let (count, longest) = requests.end().await?;
    life.abort();
    match life.await {
        Err(error) if error.is_cancelled() => {}
        other => other??,
    }
    match transfer.await {
        Err(error) if error.is_cancelled() => {}
        other => other??,
    }
    eprintln!("{count} requests during {SWAPS} swaps, the longest took {} ms", longest.as_millis());
    ensure!(count > 200, "only {count} requests were made");
    let log = provider.log()?;
    ensure!(log.matches("takes the calls from now on").count() >= SWAPS);
    let after_bytes = provider.resident_bytes()?;
    eprintln!("resident: {} MiB before, {} MiB after", before_bytes >> 20, after_bytes >> 20);
    ensure!(after_bytes < before_bytes + KEPT_BYTES, "{before_bytes} bytes, now {after_bytes}");
    Ok(())
}

/// Sends through a VM's port and gets everything back, for ever.
async fn transfer(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut greeting = vec![0; golem_provider_tests::GREETING.len()];
    stream.read_exact(&mut greeting).await?;
    let sent: Vec<u8> = (0..64 * 1024_u32).map(|number| ((number * 31) >> 3) as u8).collect();
    let mut back = vec![0; sent.len()];
    loop {
        stream.write_all(&sent).await?;
        stream.read_exact(&mut back).await?;
        ensure!(back == sent, "bytes have changed");
    }
}

/// VMs that are made, stopped, started and deleted, for ever.
async fn lives(client: Client) -> Result<()> {
    loop {
        create(&client, "passing").await?;
        for change in ["stop", "start"] {
            client.post_nothing(&format!("/vms/passing/{change}")).await?.expect(200)?;
        }
        client.delete("/vms/passing").await?.expect(200)?;
    }
}
