//! Why a chain gave no answer, or took no transaction.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};

use super::amount::{in_gwei, in_whole};

/// A chain gave no answer, or took no transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("there is no node for the chain {chain}; set {}", setting(chain))]
    NotConfigured { chain: String },
    #[error("no node of the chain {chain} answers: {reasons}")]
    Unreachable { chain: String, reasons: String },
    /// A node answered with an error, which another node would repeat.
    #[error("the node of the chain refuses: {0}")]
    Refused(RpcError),
    #[error("the node of the chain {chain} answers {method} with something else")]
    Malformed { chain: String, method: String },
    #[error("there is no token at {token} on the chain {chain}")]
    NoToken { chain: String, token: Address },
    #[error("the key cannot sign: {0}")]
    Signing(String),
    /// Nothing was sent.
    #[error(
        "what is under way on the chain {chain} cannot be kept, so nothing is sent there: {reason}"
    )]
    Memory { chain: String, reason: String },
    /// Nothing was sent.
    #[error(
        "gas on the chain {chain} costs {} gwei now, and GOLEM_PROVIDER_MAX_GAS_PRICE_GWEI allows {}; wait until it is cheaper, or allow more",
        in_gwei(*price_wei),
        in_gwei(*most_wei)
    )]
    GasTooExpensive { chain: String, price_wei: u128, most_wei: u128 },
    /// Nothing was sent.
    #[error(
        "{address} has {} ETH on the chain {chain}, and a transaction may cost up to {}: send it some; on a testnet, golem-provider {} asks for test money",
        in_whole(*has_wei),
        in_whole(*needed_wei),
        faucet(chain)
    )]
    InsufficientBalance { chain: String, address: Address, has_wei: U256, needed_wei: U256 },
    /// Nothing was sent.
    #[error("the chain {chain} was not ready to take a transaction within {} s", waited.as_secs())]
    Late { chain: String, waited: Duration },
    /// It may still be mined.
    #[error("transaction {hash} was not mined on the chain {chain} within {} s{}", waited.as_secs(), because(lately))]
    NotMined {
        chain: String,
        hash: B256,
        waited: Duration,
        /// What the nodes said last, where that was no answer.
        lately: Option<String>,
    },
    /// Another transaction of the same key was mined with this one's number, so that this one never will be.
    #[error("another transaction with the provider's key was mined first on the chain {chain}")]
    Superseded { chain: String },
}

/// What a node answered in place of a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    pub code: i64,
    /// One line.
    pub message: String,
    /// JSON.
    pub data: Option<String>,
}

fn setting(chain: &str) -> &'static str {
    match chain {
        "payments" => "GOLEM_PROVIDER_POLYGON_RPC_URL",
        _ => "GOLEM_PROVIDER_GOLEM_BASE_RPC_URL",
    }
}

fn faucet(chain: &str) -> &'static str {
    match chain {
        "payments" => "wallet faucet-l2",
        _ => "wallet faucet",
    }
}

fn because(lately: &Option<String>) -> String {
    lately.as_ref().map(|reason| format!("; {reason}")).unwrap_or_default()
}
