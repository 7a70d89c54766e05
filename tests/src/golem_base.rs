//! Golem Base on loopback: a chain of its own behind `tests/programs/fake_golembase.py`, which answers as such a node does, and
//! the published client, which says what requestors see.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Anvil, Background, ports, tools, wait};

const START_DEADLINE: Duration = Duration::from_secs(60);
const CLIENT_DEADLINE: Duration = Duration::from_secs(60);

/// A running chain with its node. Both end with this value.
#[derive(Debug)]
pub struct GolemBase {
    chain: Option<Anvil>,
    node: Option<Background>,
    port: u16,
}

impl GolemBase {
    /// On free ports of 127.0.0.1.
    ///
    /// # Errors
    /// When something is not installed, or does not start.
    pub async fn start() -> Result<GolemBase> {
        let port = ports::free_block()?.api;
        let mut golem_base = GolemBase { chain: Some(Anvil::start().await?), node: None, port };
        golem_base.start_node().await?;
        Ok(golem_base)
    }

    /// Where its node answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The chain behind the node.
    ///
    /// # Errors
    /// There is none at the moment.
    pub fn chain(&self) -> Result<&Anvil> {
        self.chain.as_ref().context("there is no chain")
    }

    /// The node is down from now on.
    pub fn stop_node(&mut self) {
        self.node = None;
    }

    /// Up again, where it was; it reads the whole chain anew.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_node(&mut self) -> Result<()> {
        let mut command = Command::new(tools::golem_base()?.join("python"));
        command
            .arg("-u")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/fake_golembase.py"))
            .args([self.port.to_string(), self.chain()?.url()]);
        let mut node = Background::start("the node of Golem Base", &mut command)?;
        node.printed(START_DEADLINE, |line| line.starts_with("fake golembase on").then_some(()))
            .await?;
        self.node = Some(node);
        Ok(())
    }

    /// Another chain in its place, with nothing on it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn reset(&mut self) -> Result<()> {
        self.stop_node();
        let port = self.chain()?.port();
        self.chain = None;
        self.chain = Some(Anvil::start_with(port, &[]).await?);
        self.start_node().await
    }

    /// Every entity of a provider, as the published client reads it: `key`, `owner`, `expires_at_block`, `strings`, `numbers`.
    ///
    /// # Errors
    /// When the client fails.
    pub async fn entities(&self) -> Result<Vec<Value>> {
        let found = self.client(&["read", &self.url()]).await?;
        found.as_array().cloned().context("the client prints no list")
    }

    /// Makes an entity with the published client.
    ///
    /// # Errors
    /// When the client fails.
    pub async fn create_as(&self, private_key: &str, entity: &Value) -> Result<()> {
        let websocket = format!("ws://127.0.0.1:{}/ws", self.port);
        let arguments = ["create", &self.url(), &websocket, private_key, &entity.to_string()];
        self.client(&arguments).await.map(drop)
    }

    async fn client(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = tokio::process::Command::new(tools::golem_base()?.join("python"));
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/golem_base_client.py"))
            .args(arguments)
            .kill_on_drop(true);
        let output = wait::within("the client of Golem Base", CLIENT_DEADLINE, command.output());
        let output = output.await?.context("starting the client of Golem Base")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the client of Golem Base failed: {complaint}");
        serde_json::from_slice(&output.stdout).context("reading what the client printed")
    }
}
