//! `wallet balance`: what the provider has on its chains.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use anyhow::Context;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::{ChainName, Outcome};
use crate::{
    chains::{ChainError, Nodes, in_whole},
    cli::{on_runtime, print},
    payments::wallet::custody,
    settings::Settings,
};

/// What one chain answered.
struct Holding {
    chain: ChainName,
    number: Result<u64, ChainError>,
    coin: Result<U256, ChainError>,
    /// Absent where the chain has none.
    glm: Option<Result<U256, ChainError>>,
}

/// # Errors
/// There is no key, or nothing can be printed.
pub fn run(settings: &Settings, as_json: bool) -> anyhow::Result<Outcome> {
    let wallet = custody::present(&settings.wallet)?;
    let chains = [ChainName::GolemBase, ChainName::Payments];
    let nodes = Nodes::new(&settings.chains.nodes)?;
    let is_known = |chain: &ChainName| nodes.chain(chain.as_str()).is_ok();
    let known: Vec<ChainName> = chains.into_iter().filter(is_known).collect();
    if known.is_empty() {
        let keys = chains.map(ChainName::rpc_key).join(" or ");
        eprintln!("golem-provider: no chain is known; set {keys} to the URL of a node");
        return Ok(Outcome::NotAsked);
    }
    let token = settings.chains.glm_token.as_deref().map(str::parse::<Address>).transpose();
    let token = token.context("GOLEM_PROVIDER_GLM_TOKEN_ADDRESS is no address")?;
    let waiting = ProgressBar::new_spinner().with_message("Asking the nodes");
    waiting.enable_steady_tick(Duration::from_millis(200));
    let holdings = on_runtime(async {
        let asking = known.into_iter().map(|chain| {
            let token = token.filter(|_| chain == ChainName::Payments);
            holding(&nodes, chain, wallet.address(), token)
        });
        futures_util::future::join_all(asking).await
    })?;
    waiting.finish_and_clear();
    if as_json {
        let chains: Vec<Value> = holdings.iter().map(Holding::json).collect();
        print::print_json(&json!({ "address": wallet.provider_id(), "chains": chains }))?;
    } else {
        let mut rows = vec![["CHAIN", "ID", "COIN", "GLM"].map(str::to_owned).to_vec()];
        rows.extend(holdings.iter().map(Holding::row));
        print::print(&format!("{}\n{}", wallet.provider_id(), print::table(&rows)))?;
        for holding in &holdings {
            if let Some(error) = holding.error() {
                eprintln!("golem-provider: {}: {error}", holding.chain.as_str());
            }
        }
    }
    match holdings.iter().any(|holding| holding.error().is_some()) {
        true => Ok(Outcome::Incomplete),
        false => Ok(Outcome::Done),
    }
}

async fn holding(
    nodes: &Nodes,
    chain: ChainName,
    address: Address,
    token: Option<Address>,
) -> Holding {
    let name = chain.as_str();
    let glm = async {
        match token {
            Some(token) => Some(nodes.token_balance_wei(name, token, address).await),
            None => None,
        }
    };
    let (number, coin, glm) = tokio::join!(nodes.id(name), nodes.balance_wei(name, address), glm);
    Holding { chain, number, coin, glm }
}

impl Holding {
    fn error(&self) -> Option<&ChainError> {
        let glm = self.glm.as_ref().and_then(|glm| glm.as_ref().err());
        self.number.as_ref().err().or(self.coin.as_ref().err()).or(glm)
    }

    fn row(&self) -> Vec<String> {
        let amount = |amount: &Result<U256, ChainError>| match amount {
            Ok(wei) => in_whole(*wei),
            Err(_) => "?".to_owned(),
        };
        vec![
            self.chain.as_str().to_owned(),
            self.number.as_ref().map_or_else(|_| "?".to_owned(), u64::to_string),
            amount(&self.coin),
            self.glm.as_ref().map_or_else(|| "-".to_owned(), amount),
        ]
    }

    fn json(&self) -> Value {
        let wei = |amount: Option<&Result<U256, ChainError>>| -> Value {
            amount.and_then(|amount| amount.as_ref().ok()).map(U256::to_string).into()
        };
        json!({
            "chain": self.chain.as_str(),
            "chain_id": self.number.as_ref().ok(),
            "balance_wei": wei(Some(&self.coin)),
            "glm_wei": wei(self.glm.as_ref()),
            "error": self.error().map(ToString::to_string),
        })
    }
}
