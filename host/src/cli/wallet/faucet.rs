//! `wallet faucet`: test money, with a bar while the faucet's puzzles are solved.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{ChainName, Outcome};
use crate::{
    chains::{ChainError, Nodes, in_whole},
    cli::{on_runtime, print},
    payments::{
        faucet::{ENOUGH_WEI, Faucet, Progress},
        wallet::custody,
    },
    settings::Settings,
};

/// Testnets make a block every few seconds; faucets queue.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(90);
const ARRIVAL_PAUSE: Duration = Duration::from_secs(1);

/// What came of it.
enum Money {
    /// There is enough, so nobody was asked.
    Enough { has: U256 },
    Sent {
        transaction: String,
        /// What there is now, where that is known to be more than before.
        has: Option<U256>,
    },
}

/// # Errors
/// There is no key, or no money.
pub fn run(
    settings: &Settings,
    chain: ChainName,
    force: bool,
    as_json: bool,
) -> anyhow::Result<Outcome> {
    let faucets = &settings.faucets;
    let (url, key) = match chain {
        ChainName::GolemBase => (&faucets.golem_base_url, "GOLEM_PROVIDER_FAUCET_URL"),
        ChainName::Payments => (&faucets.payments_url, "GOLEM_PROVIDER_L2_FAUCET_URL"),
    };
    let missing: Vec<&str> = [
        (key, url.is_some()),
        ("GOLEM_PROVIDER_CAPTCHA_URL", faucets.captcha_url.is_some()),
        ("GOLEM_PROVIDER_CAPTCHA_API_KEY", faucets.captcha_api_key.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, is_set)| (!is_set).then_some(key))
    .collect();
    let (Some(url), Some(captcha)) = (url, &faucets.captcha_url) else {
        return Ok(not_set(chain, &missing));
    };
    if !missing.is_empty() {
        return Ok(not_set(chain, &missing));
    }
    let wallet = custody::present(&settings.wallet)?;
    let faucet = Faucet::new(url, captcha, faucets.captcha_api_key.as_ref())?;
    let nodes = Nodes::new(&settings.chains.nodes)?;
    let node = nodes.chain(chain.as_str()).is_ok().then_some(Balance {
        nodes: &nodes,
        chain,
        address: wallet.address(),
    });
    let money = on_runtime(ask(&faucet, node.as_ref(), wallet.address(), force))??;
    let address = wallet.provider_id();
    if as_json {
        let (asked, transaction, has) = match &money {
            Money::Enough { has } => (false, None, Some(has)),
            Money::Sent { transaction, has } => (true, Some(transaction), has.as_ref()),
        };
        print::print_json(&json!({
            "address": address, "chain": chain.as_str(), "asked": asked, "transaction": transaction,
            "balance_wei": has.map(U256::to_string),
        }))?;
    } else {
        let text = match money {
            Money::Enough { has } => format!(
                "{address} has {} ETH, which is enough; --force asks for more all the same",
                in_whole(has)
            ),
            Money::Sent { transaction, has: Some(has) } => {
                format!("{address} has {} ETH now (transaction {transaction})", in_whole(has))
            }
            Money::Sent { transaction, has: None } => {
                format!("the faucet sends money to {address}, in transaction {transaction}")
            }
        };
        print::print(&format!("{text}\n"))?;
    }
    Ok(Outcome::Done)
}

/// What the address has, where a node is known that can be asked.
struct Balance<'a> {
    nodes: &'a Nodes,
    chain: ChainName,
    address: Address,
}

impl Balance<'_> {
    async fn wei(&self) -> Result<U256, ChainError> {
        self.nodes.balance_wei(self.chain.as_str(), self.address).await
    }
}

fn not_set(chain: ChainName, missing: &[&str]) -> Outcome {
    eprintln!(
        "golem-provider: no faucet is known for the chain {}; set {}",
        chain.as_str(),
        missing.join(", ")
    );
    Outcome::NotAsked
}

async fn ask(
    faucet: &Faucet,
    node: Option<&Balance<'_>>,
    address: Address,
    force: bool,
) -> anyhow::Result<Money> {
    let before = match node {
        Some(node) => Some(node.wei().await?),
        None => None,
    };
    if let Some(has) = before.filter(|has| *has > ENOUGH_WEI && !force) {
        return Ok(Money::Enough { has });
    }
    let bar = ProgressBar::no_length();
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if bar.is_hidden() {
        eprintln!("Solving the faucet's puzzles, which takes some seconds …");
    }
    let moving = bar.clone();
    let transaction = faucet
        .request(address, move |progress| match progress {
            Progress::Puzzles(count) => {
                moving.set_message("Solving puzzles");
                moving.set_length(count as u64);
            }
            Progress::Solved => moving.inc(1),
            Progress::Asking => moving.set_message("Asking the faucet"),
        })
        .await;
    bar.finish_and_clear();
    let transaction = transaction?;
    let (Some(node), Some(before)) = (node, before) else {
        return Ok(Money::Sent { transaction, has: None });
    };
    let waiting = ProgressBar::new_spinner().with_message("Waiting for the money to arrive");
    waiting.enable_steady_tick(Duration::from_millis(200));
    let arrival = async {
        loop {
            // A node that fails once is asked again; the money is on its way all the same.
            if let Ok(has) = node.wei().await
                && has > before
            {
                return has;
            }
            tokio::time::sleep(ARRIVAL_PAUSE).await;
        }
    };
    let has = tokio::time::timeout(ARRIVAL_DEADLINE, arrival).await.ok();
    waiting.finish_and_clear();
    Ok(Money::Sent { transaction, has })
}
