//! From the start of the process to the first answer, on an empty data directory and on one that holds the compiled
//! plugins; and the memory of a provider that has nothing to do. Beside a bare axum server. And what plugins cost a provider
//! that runs: the memory of one that nobody calls, and the time that it takes to put another version in its place.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use axum::{Router, routing::get};
use golem_provider::admin::{AdminClient, InstallRequest};
use golem_provider_benches::{
    Options, http, plugin,
    processes::{Role, Running, in_role, provider_binary},
    progress,
    rows::Row,
};
use golem_provider_tests::{Client, Requests};
use tempfile::TempDir;

/// The longest start with compiled plugins.
const TARGET_MS: f64 = 150.0;
/// The most memory of a provider that idles.
const TARGET_MIB: f64 = 40.0;

const PATH: &str = "/api/v1/health";

/// Until memory is looked at: what a start leaves behind has been given back by then.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    if let Some(role) = Role::of_this_process()? {
        return bare(role.argument(0)?);
    }
    let options = Options::read()?;
    let (cold_rounds, warm_rounds) = options.choose((1, 3), (5, 15));

    let mut cold = Vec::new();
    let mut bare_cold = Vec::new();
    for round in 1..=cold_rounds {
        progress(format!("start without compiled plugins, round {round} of {cold_rounds}"));
        let home = tempfile::tempdir().context("making a directory")?;
        cold.push(start(&mut provider(home.path())?)?.0);
        bare_cold.push(start(&mut bare_server()?)?.0);
    }
    Row::of("start → first answer, nothing compiled yet", "ms", &cold)
        .beside("bare axum", &bare_cold)
        .print();

    let home = tempfile::tempdir().context("making a directory")?;
    start(&mut provider(home.path())?)?;
    let (mut warm, mut bare_warm) = (Vec::new(), Vec::new());
    for round in 1..=warm_rounds {
        progress(format!("start with compiled plugins, round {round} of {warm_rounds}"));
        warm.push(start(&mut provider(home.path())?)?.0);
        bare_warm.push(start(&mut bare_server()?)?.0);
    }
    Row::of("start → first answer, plugins compiled", "ms", &warm)
        .beside("bare axum", &bare_warm)
        .at_most(TARGET_MS)
        .print();

    let (mut memory, mut bare_memory) = (Vec::new(), Vec::new());
    for round in 1..=options.choose(1, 3) {
        progress(format!("memory while idle, round {round}"));
        let (_, ours) = start(&mut provider(home.path())?)?;
        let (_, other) = start(&mut bare_server()?)?;
        std::thread::sleep(SETTLE);
        memory.push(ours.resident_kib()? / 1024.0);
        bare_memory.push(other.resident_kib()? / 1024.0);
    }
    Row::of("resident memory, idle, plugins loaded", "MiB", &memory)
        .beside("bare axum", &bare_memory)
        .at_most(TARGET_MIB)
        .print();
    idle_plugins(&options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(swaps(&options))
}

/// What each of many plugins adds to a provider in which nobody calls them.
fn idle_plugins(options: &Options) -> Result<()> {
    const COPIES: usize = 16;
    let (mut many, mut none) = (Vec::new(), Vec::new());
    for round in 1..=options.choose(1, 3) {
        progress(format!("memory of idle plugins, round {round}"));
        let (empty, full) = (home_with(0)?, home_with(COPIES)?);
        for home in [&empty, &full] {
            // The first start compiles them.
            start(&mut provider(home.path())?)?;
        }
        let (_, without) = start(&mut provider(empty.path())?)?;
        let (_, with) = start(&mut provider(full.path())?)?;
        std::thread::sleep(SETTLE);
        let (with, without) = (with.resident_kib()?, without.resident_kib()?);
        many.push((with - without).max(0.0) / COPIES as f64);
        none.push(without);
    }
    Row::of(format!("resident memory, one more idle plugin (of {COPIES})"), "KiB", &many)
        .beside("the provider without them", &none)
        .print();
    Ok(())
}

/// A directory with so many plugins in it that make machines on paper, each under a name of its own.
fn home_with(plugins: usize) -> Result<TempDir> {
    let home = tempfile::tempdir().context("making a directory")?;
    let directory = home.path().join("data/plugins");
    std::fs::create_dir_all(&directory).context("making the plugin directory")?;
    for number in 0..plugins {
        let name = format!("pap{number:02}");
        std::fs::write(directory.join(format!("{name}.wasm")), plugin::paper_called(&name)?)?;
        std::fs::write(directory.join(format!("{name}.toml")), plugin::PAPER_SETTINGS)?;
    }
    Ok(home)
}

/// Two versions of a backend in turn, while requestors ask, and while nobody does.
async fn swaps(options: &Options) -> Result<()> {
    let home = tempfile::tempdir().context("making a directory")?;
    let directory = home.path().join("data/plugins");
    std::fs::create_dir_all(&directory).context("making the plugin directory")?;
    let component = plugin::component(plugin::PAPER)?;
    std::fs::write(directory.join("paper.wasm"), &component)?;
    std::fs::write(directory.join("paper.toml"), plugin::PAPER_SETTINGS)?;
    let versions = [1, 2].map(|number| {
        let file = home.path().join(format!("paper-{number}.wasm"));
        std::fs::write(&file, plugin::variant(&component, number)).map(|()| file)
    });
    let versions = versions.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    let mut server = provider(home.path())?;
    server
        .command
        .env("GOLEM_PROVIDER_VM_BACKEND", plugin::PAPER)
        .env("GOLEM_PROVIDER_DEFAULT_VM_IMAGE", plugin::PAPER)
        .env("GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTE", "0")
        .env("GOLEM_PROVIDER_CPU_THRESHOLD", "100")
        .env("GOLEM_PROVIDER_MEMORY_THRESHOLD", "100")
        .env("GOLEM_PROVIDER_STORAGE_THRESHOLD", "100");
    let (_, mut running) = start(&mut server)?;
    let client = Client::new(server.port)?;
    let machine =
        serde_json::json!({ "name": "my-vm", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
    client.post("/vms", &machine).await?.expect(201)?;
    let admin = AdminClient::connect(&home.path().join("data")).await?;
    let admin = admin.context("the provider has no admin socket")?;
    let requests = versions.into_iter().map(|file| {
        let component = std::fs::read(&file)?;
        let sha256 = golem_provider::plugins::installation::sha256_of(&component);
        Ok(InstallRequest { file, sha256, grants: Vec::new() })
    });
    let requests = requests.collect::<std::io::Result<Vec<_>>>()?;
    // Each is compiled once.
    for request in &requests {
        admin.install(request).await?;
    }
    let (mut loaded, mut quiet) = (Vec::new(), Vec::new());
    for round in 0..options.choose(20, 60) {
        progress(format!("swapping a backend, round {}", round + 1));
        running.check_alive()?;
        let begun = Instant::now();
        admin.install(&requests[0]).await?;
        quiet.push(begun.elapsed().as_secs_f64() * 1e3);
        let asking = Requests::begin(client.clone(), Duration::from_millis(5));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        admin.install(&requests[1]).await?;
        loaded.push(begun.elapsed().as_secs_f64() * 1e3);
        // None of them may have failed.
        asking.end().await?;
    }
    Row::of("swapping a backend under 200 requests/s", "ms", &loaded)
        .beside("without requests", &quiet)
        .print();
    Ok(())
}

/// A command and the port that it is going to answer on.
struct Server {
    command: Command,
    port: u16,
}

fn provider(home: &Path) -> Result<Server> {
    let port = free_port()?;
    let mut command = Command::new(provider_binary()?);
    command
        .arg("dev")
        .env_clear()
        // Plugins look for programs there.
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("GOLEM_PROVIDER_DATA_DIR", home.join("data"))
        .env("GOLEM_PROVIDER_PORT", port.to_string())
        .current_dir(home)
        .stderr(Stdio::null());
    Ok(Server { command, port })
}

fn bare_server() -> Result<Server> {
    let port = free_port()?;
    Ok(Server { command: in_role("bare", [port.to_string()], None)?, port })
}

fn start(server: &mut Server) -> Result<(f64, Running)> {
    let begun = Instant::now();
    let mut running = Running::start("a server", &mut server.command)?;
    http::first_answer(server.port, PATH, || running.check_alive())?;
    Ok((begun.elapsed().as_secs_f64() * 1e3, running))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a port")?;
    Ok(listener.local_addr()?.port())
}

fn bare(port: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let router = Router::new().route(PATH, get(async || r#"{"status":"healthy"}"#));
        axum::serve(listener, router).await?;
        bail!("the server has ended")
    })
}
