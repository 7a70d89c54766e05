//! `port-checker`: checks ports for providers, so that none of them depends on somebody else's server.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;
use ipnet::IpNet;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    api::port_check::{self, PortCheckRules},
    settings::{LogFormat, LogSettings},
    telemetry,
};

pub const ABOUT: &str = "\
Serves POST /check-ports and GET /health until SIGTERM or SIGINT (Ctrl-C). A provider that has this server among its \
GOLEM_PROVIDER_PORT_CHECK_SERVERS asks it which of its ports can be reached from here.

It checks nobody but who asks: the address in the request has to be the one that the request comes from. Private and loopback \
addresses are refused unless --allow-private is given, which is for networks of your own. It needs no data directory, no \
settings and no root.";

pub const AFTER: &str = "\
Examples:
  golem-provider port-checker
  golem-provider port-checker --listen '[::]:9000'
  golem-provider port-checker --listen 10.0.0.1:9000 --allow-private    for providers of a private network
  golem-provider port-checker --trusted-proxy 127.0.0.1                 behind a reverse proxy that ends TLS

Try it from a provider with the public address 203.0.113.5:
  curl -s http://ports.example:9000/check-ports -d '{\"provider_ip\": \"203.0.113.5\", \"ports\": [7466]}'

Exit status: 0 it was told to end, 1 it cannot listen there, 2 the command line is wrong.";

#[derive(Debug, Args)]
pub struct PortChecker {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9000")]
    listen: SocketAddr,
    /// Check callers at private and loopback addresses too
    #[arg(long)]
    allow_private: bool,
    /// Ports that one request may name
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    max_ports: u16,
    /// Requests a minute that one caller may make; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 30)]
    requests_per_minute: u32,
    /// A network whose X-Forwarded-For is believed; may be given several times
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    trusted_proxy: Vec<IpNet>,
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| {
        "an address or a network is needed, such as 127.0.0.1 or 10.0.0.0/8".to_owned()
    })
}

impl PortChecker {
    /// Serves until a signal.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn run(self) -> anyhow::Result<()> {
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
        telemetry::init(&LogSettings { format: LogFormat::Human, filter, file: None })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(self.listen).await.with_context(|| {
            format!("cannot listen on {}; choose another address with --listen", self.listen)
        })?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let rules = PortCheckRules {
            allow_private: self.allow_private,
            max_ports: self.max_ports.into(),
            requests_per_minute: self.requests_per_minute,
        };
        let address = listener.local_addr().unwrap_or(self.listen);
        tracing::info!(
            max_ports = rules.max_ports,
            requests_per_minute = rules.requests_per_minute,
            private_addresses = if rules.allow_private { "checked" } else { "refused" },
            "checking ports for those who ask, on http://{address}"
        );
        port_check::serve(listener, rules, self.trusted_proxy, async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        tracing::info!("ended");
        Ok(())
    }
}
