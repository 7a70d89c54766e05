//! A chain of its own on loopback: anvil, which `cargo xtask network` installs.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{background::Background, tools};

/// Of every chain that is started here, unless other arguments say so.
pub const CHAIN_ID: u64 = 1337;

/// A busy machine takes its time to start a program of 40 MB.
const START_DEADLINE: Duration = Duration::from_secs(60);
const AMD64: &str = "anvil/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";
const ARM64: &str = "anvil/node_modules/@foundry-rs/anvil-linux-arm64/bin/anvil";
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The first accounts of the mnemonic that all test chains have in common: address, private key. Each has 10,000 ETH.
pub const ACCOUNTS: [(&str, &str); 4] = [
    (
        "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    ),
    (
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    ),
    (
        "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    ),
    (
        "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
        "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    ),
];

/// A running chain. It ends with this value.
#[derive(Debug)]
pub struct Anvil {
    process: Background,
    http: reqwest::Client,
    port: u16,
}

impl Anvil {
    /// A new chain on a free port of 127.0.0.1; a block for each transaction.
    ///
    /// # Errors
    /// When anvil is not installed, or does not start.
    pub async fn start() -> Result<Anvil> {
        Anvil::start_with(0, &[]).await
    }

    /// A new chain on this port (0 for a free one), with further arguments, such as `--slots-in-an-epoch 1`.
    ///
    /// # Errors
    /// When anvil is not installed, or does not start.
    pub async fn start_with(port: u16, arguments: &[&str]) -> Result<Anvil> {
        let program = tools::find(
            "GOLEM_TEST_ANVIL",
            if cfg!(target_arch = "aarch64") { ARM64 } else { AMD64 },
            "network",
        )?;
        let mut command = Command::new(program);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        if !arguments.contains(&"--chain-id") {
            command.args(["--chain-id", &CHAIN_ID.to_string()]);
        }
        let mut process = Background::start("anvil", command.args(arguments))?;
        let port = process
            .printed(START_DEADLINE, |line| {
                line.strip_prefix("Listening on 127.0.0.1:")?.trim().parse().ok()
            })
            .await?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(ANSWER_DEADLINE)
            .build()
            .context("making an HTTP client")?;
        Ok(Anvil { process, http, port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Calls a method of the node, such as `evm_mine` or `anvil_setBalance`.
    ///
    /// # Errors
    /// When the node answers an error, or nothing.
    pub async fn rpc(&self, method: &str, parameters: Value) -> Result<Value> {
        match self.ask(method, parameters).await? {
            Ok(result) => Ok(result),
            Err(error) => bail!("{method} failed: {error}"),
        }
    }

    /// The same, where an error of the node is an answer too: an object with `code`, `message` and perhaps `data`.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn ask(
        &self,
        method: &str,
        parameters: Value,
    ) -> Result<std::result::Result<Value, Value>> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters });
        let request = self
            .http
            .post(self.url())
            .header("content-type", "application/json")
            .body(request.to_string());
        let answer = request.send().await.with_context(|| method.to_owned())?.text().await?;
        let mut answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{method} answered no JSON: {answer}"))?;
        Ok(match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer["result"].take()),
        })
    }

    /// What an address has, in wei.
    ///
    /// # Errors
    /// When the node does not answer, or more than 128 bits.
    pub async fn balance_wei(&self, address: &str) -> Result<u128> {
        quantity(&self.rpc("eth_getBalance", json!([address, "latest"])).await?)
    }

    /// Gives an address so many wei, no more and no less.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn set_balance_wei(&self, address: &str, wei: u128) -> Result<()> {
        self.rpc("anvil_setBalance", json!([address, format!("{wei:#x}")])).await.map(drop)
    }

    /// The number of the latest block.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn block_number(&self) -> Result<u128> {
        quantity(&self.rpc("eth_blockNumber", json!([])).await?)
    }
}

/// Reads `0x1f`.
fn quantity(value: &Value) -> Result<u128> {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    u128::from_str_radix(digits.with_context(|| format!("{value} is no quantity"))?, 16)
        .with_context(|| format!("{value} is no quantity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chain_has_rich_accounts_and_can_be_started_anew_on_its_port() -> Result<()> {
        let chain = Anvil::start().await?;
        for (address, _) in ACCOUNTS {
            assert_eq!(chain.balance_wei(address).await?, 10_000 * 10_u128.pow(18));
        }
        chain.set_balance_wei(ACCOUNTS[0].0, 7).await?;
        assert_eq!(chain.balance_wei(ACCOUNTS[0].0).await?, 7);
        chain.rpc("evm_mine", json!([])).await?;
        assert_eq!(chain.block_number().await?, 1);
        assert!(chain.rpc("no_such_method", json!([])).await.is_err());
        let port = chain.port();
        drop(chain);
        let reset = Anvil::start_with(port, &[]).await?;
        assert_eq!((reset.port(), reset.block_number().await?), (port, 0));
        Ok(())
    }
}
