//! Reads of the API beside a bare axum handler that answers the same bytes, on the same runtime, over connections that are
//! kept. Server and load have a core each.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{Router, body::Bytes, http::header, routing::get};
use golem_provider::api::Server;
use golem_provider_benches::{
    Options, http, network,
    processes::{Role, Running, in_role, line_of},
    progress,
    provider::{INFO_PATH, Provider, VM, VM_PATH, VM_REQUEST},
    rows::Row,
};

/// The smallest share of what a bare handler reaches.
const TARGET: f64 = 0.8;

const CONNECTIONS: usize = 32;

/// The cores of the server and of the load.
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;

fn main() -> Result<()> {
    if let Some(role) = Role::of_this_process()? {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        return runtime.block_on(async {
            match role.name.as_str() {
                "provider" => serve_provider(role.argument(0)?).await,
                "bare" => serve_bare(role.argument(0)?, &role.argument::<PathBuf>(1)?).await,
                "load" => {
                    let time = Duration::from_millis(role.argument(2)?);
                    let path: String = role.argument(1)?;
                    println!("{}", http::load(role.argument(0)?, &path, CONNECTIONS, time).await?);
                    Ok(())
                }
                other => bail!("there is no role {other}"),
            }
        });
    }
    network::enter_own()?;
    let options = Options::read()?;
    let rounds = options.choose(3, 9);
    let time = Duration::from_millis(options.choose(700, 2000));

    let ours = Target::start("provider", |port| vec![port])?;
    http::ask(ours.port, "POST", "/api/v1/vms", VM_REQUEST)
        .with_context(|| format!("making the VM {VM}"))?;
    let directory = tempfile::tempdir().context("making a directory")?;
    for (name, path) in [("GET /vms/{id}", VM_PATH), ("GET /provider/info", INFO_PATH)] {
        let body = http::ask(ours.port, "GET", path, "")?;
        let file = directory.path().join("body.json");
        fs::write(&file, &body).context("writing the answer's body")?;
        let bare = Target::start("bare", |port| vec![port, file.display().to_string()])?;
        if http::ask(bare.port, "GET", path, "")? != body {
            bail!("the two servers answer {path} differently");
        }
        let mut measured: [Vec<Measured>; 2] = Default::default();
        for round in 0..=rounds {
            progress(format!("{name}, round {round} of {rounds}"));
            for (server, measured) in [&ours, &bare].into_iter().zip(&mut measured) {
                let one = server.load(path, time)?;
                // The first one warms up.
                if round > 0 {
                    measured.push(one);
                }
            }
        }
        let [ours, bare] = measured;
        let of = |measured: &[Measured], value: fn(&Measured) -> f64| -> Vec<f64> {
            measured.iter().map(value).collect()
        };
        Row::of(format!("{name}, requests"), "/s", &of(&ours, |one| one.per_second))
            .beside("bare axum", &of(&bare, |one| one.per_second))
            .at_least_times(TARGET)
            .print();
        Row::of(format!("{name}, requests"), "/CPU s", &of(&ours, |one| one.per_cpu_second))
            .beside("bare axum", &of(&bare, |one| one.per_cpu_second))
            .at_least_times(TARGET)
            .print();
    }
    Ok(())
}

/// A server that is measured.
struct Target {
    process: Running,
    port: u16,
}

struct Measured {
    per_second: f64,
    per_cpu_second: f64,
}

impl Target {
    fn start(role: &str, arguments: impl FnOnce(String) -> Vec<String>) -> Result<Target> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = in_role(role, arguments(port.to_string()), Some(SERVER_CORE))?;
        let mut process = Running::start(format!("the server `{role}`"), &mut command)?;
        process.listens_on(port)?;
        Ok(Target { process, port })
    }

    fn load(&self, path: &str, time: Duration) -> Result<Measured> {
        let before = self.process.cpu_seconds()?;
        let millis = time.as_millis().to_string();
        let arguments = [self.port.to_string(), path.to_owned(), millis];
        let line = line_of("the load", &mut in_role("load", arguments, Some(LOAD_CORE))?)?;
        let answers: f64 = line.parse().with_context(|| format!("the load said {line:?}"))?;
        let used = self.process.cpu_seconds()? - before;
        Ok(Measured { per_second: answers / time.as_secs_f64(), per_cpu_second: answers / used })
    }
}

async fn serve_provider(port: u16) -> Result<()> {
    let provider = Provider::start().await?;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    Server::default().serve(listener, provider.api, std::future::pending()).await;
    bail!("the server has ended")
}

async fn serve_bare(port: u16, body: &Path) -> Result<()> {
    let body = Bytes::from(fs::read(body).context("reading the answer's body")?);
    let answer = async move || ([(header::CONTENT_TYPE, "application/json")], body);
    let router =
        Router::new().route("/api/v1/vms/{id}", get(answer.clone())).route(INFO_PATH, get(answer));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    use axum::serve::ListenerExt;
    let listener = listener.tap_io(|stream| {
        // As the provider does; failing costs only speed.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await?;
    bail!("the server has ended")
}
