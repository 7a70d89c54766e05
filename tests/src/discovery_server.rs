//! The published central discovery server, on loopback. `cargo xtask network` installs it.

use std::{net::Ipv4Addr, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{background::Background, tools, wait};

/// A busy machine takes its time to start Python.
const START_DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// A running server. It ends with this value.
#[derive(Debug)]
pub struct DiscoveryServer {
    process: Background,
    port: u16,
    http: reqwest::Client,
    _database: TempDir,
}

impl DiscoveryServer {
    /// With an empty database, on a free port.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub async fn start() -> Result<DiscoveryServer> {
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        DiscoveryServer::start_at(port).await
    }

    /// The same on this port.
    ///
    /// # Errors
    /// When it is not installed, or does not start.
    pub async fn start_at(port: u16) -> Result<DiscoveryServer> {
        let database = tempfile::Builder::new().prefix("golem-discovery-").tempdir()?;
        let mut command = Command::new(tools::discovery()?.join("golem-discovery"));
        command
            .env("GOLEM_DISCOVERY_HOST", "127.0.0.1")
            .env("GOLEM_DISCOVERY_PORT", port.to_string())
            .env("GOLEM_DISCOVERY_DATABASE_DIR", database.path())
            .current_dir(database.path());
        let process = Background::start("golem-discovery", &mut command)?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let server = DiscoveryServer { process, port, http, _database: database };
        let health = format!("{}/health", server.url());
        let up = wait::until("the discovery server", START_DEADLINE, PAUSE, async || {
            let answer = server.http.get(&health).send().await;
            Ok(answer.ok().filter(|answer| answer.status().is_success()).map(drop))
        });
        up.await.with_context(|| server.process.output().unwrap_or_default())?;
        Ok(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The providers that a requestor finds who wants as much.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn search(&self, query: &str) -> Result<Vec<Value>> {
        let url = format!("{}/api/v1/advertisements?{query}", self.url());
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// Posts an advertisement under anybody's id, as the server lets everybody do. Answers the status.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn post_as(&self, provider_id: &str, advertisement: &Value) -> Result<u16> {
        let url = format!("{}/api/v1/advertisements", self.url());
        let request = self
            .http
            .post(url)
            .header("X-Provider-ID", provider_id)
            .header("X-Provider-Signature", "signed")
            .header("content-type", "application/json")
            .body(advertisement.to_string());
        Ok(request.send().await?.status().as_u16())
    }
}
