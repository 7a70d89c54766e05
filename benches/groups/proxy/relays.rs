//! The relays that are compared: the provider's proxy, HAProxy, and two loops that show what is possible and what is usual.
//!
//! Each has as many threads as there are cores.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use golem_provider::proxy::{Proxy, ProxyConfig};
use golem_provider_benches::processes::{Role, Running, cores, in_role};
use tempfile::TempDir;

use crate::splice;

/// More than any of the work needs.
const MAX_CONNECTIONS: usize = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    HaProxy,
    Splice,
    Copy,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "ours",
            Kind::HaProxy => "HAProxy",
            Kind::Splice => "splice loop",
            Kind::Copy => "tokio copy",
        }
    }
}

/// Those that can be measured here, ours first.
pub fn available() -> Vec<Kind> {
    let mut version = Command::new("haproxy");
    version.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
    let haproxy = version.status().is_ok_and(|status| status.success());
    let mut kinds = vec![Kind::Ours, Kind::HaProxy, Kind::Splice, Kind::Copy];
    kinds.retain(|kind| *kind != Kind::HaProxy || haproxy);
    kinds
}

/// A relay that runs, until this value is dropped.
pub struct Relay {
    pub process: Running,
    port: u16,
    _configuration: Option<TempDir>,
}

impl Relay {
    /// Starts it and waits until it listens.
    pub fn start(kind: Kind, target: SocketAddr) -> Result<Relay> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let (mut command, configuration) = match kind {
            Kind::HaProxy => haproxy(port, target)?,
            _ => (in_role(kind.name(), [port.to_string(), target.to_string()], None)?, None),
        };
        let mut process = Running::start(kind.name(), &mut command)?;
        process.listens_on(port)?;
        Ok(Relay { process, port, _configuration: configuration })
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// In TCP mode, with nothing changed that is a matter of taste.
fn haproxy(port: u16, target: SocketAddr) -> Result<(Command, Option<TempDir>)> {
    let directory = tempfile::tempdir().context("making a directory")?;
    let file = directory.path().join("haproxy.cfg");
    let configuration = format!(
        "global\n  maxconn {MAX_CONNECTIONS}\n  nbthread {threads}\n\
         defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 1h\n  timeout server 1h\n\
         listen relay\n  bind 127.0.0.1:{port}\n  server machine {target}\n",
        threads = cores()
    );
    fs::write(&file, configuration).context("writing HAProxy's configuration")?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stderr(Stdio::null());
    Ok((command, Some(directory)))
}

/// A relay, in a process of its own.
pub fn run(role: &Role) -> Result<()> {
    let (port, target) = (role.argument(0)?, role.argument(1)?);
    if role.name == Kind::Splice.name() {
        return splice::run(port, target);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        if role.name == Kind::Ours.name() {
            return ours(port, target).await;
        }
        if role.name == Kind::Copy.name() {
            return copy_loop(port, target).await;
        }
        bail!("there is no relay {}", role.name)
    })
}

async fn ours(port: u16, target: SocketAddr) -> Result<()> {
    let proxy = Proxy::new(ProxyConfig {
        bind: Ipv4Addr::LOCALHOST.into(),
        max_connections_per_vm: MAX_CONNECTIONS,
        ..ProxyConfig::default()
    });
    proxy.open(port, Some(target)).await?;
    std::future::pending::<()>().await;
    drop(proxy);
    Ok(())
}

async fn copy_loop(port: u16, target: SocketAddr) -> Result<()> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    let listener = socket.listen(4096)?;
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut machine = tokio::net::TcpStream::connect(target).await?;
            client.set_nodelay(true)?;
            machine.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut machine).await
        });
    }
}
