//! From the start of the process to the first answer, on an empty data directory and on one that holds the compiled
//! plugins; and the memory of a provider that has nothing to do. Beside a bare axum server.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use axum::{Router, routing::get};
use golem_provider_benches::{
    Options, http,
    processes::{Role, Running, in_role, provider_binary},
    progress,
    rows::Row,
};

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
