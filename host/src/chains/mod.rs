//! The Ethereum chains that the operator configured: questions to their nodes ([`Nodes`]), and transactions with the provider's
//! key ([`Chains`]).
//!
//! What is under way is written down before it is sent, in whatever the composition root gives as [`Memory`], and outlives the process.
//!
//! A chain is known by a name (`golem-base`, `payments`) and by the URLs of its nodes, which are asked in turn. URLs carry the
//! operator's keys, so no error and no log line holds more of one than its host. Calls nothing of the provider but
//! `settings` and `http_client`; called by `cli`, by the composition root and, through that, by plugins.

mod amount;
mod error;
mod fees;
mod nodes;
mod refusal;
mod revert;
mod transactions;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy::{
    primitives::Address,
    signers::{Signer, local::PrivateKeySigner},
};
use serde_json::value::RawValue;

pub use self::{
    amount::in_whole,
    error::{ChainError, RpcError},
    nodes::Nodes,
    transactions::{Call, Event, Memory, MemoryError, NoMemory, Quote, Receipt},
};
use self::{
    nodes::AskChain,
    transactions::{Sender, Sequence},
};

/// All chains, and the key that signs for them. Clones are the same.
#[derive(Clone)]
pub struct Chains(Arc<Inner>);

struct Inner {
    nodes: Nodes,
    signer: PrivateKeySigner,
    max_gas_price_wei: u128,
    /// By the name of the chain.
    sequences: BTreeMap<String, Sequence>,
}

impl Chains {
    /// Nothing is sent that costs more than `max_gas_price_wei` for a unit of gas.
    pub fn new(
        nodes: Nodes,
        signer: PrivateKeySigner,
        max_gas_price_wei: u128,
        memory: Arc<dyn Memory>,
    ) -> Chains {
        let sequence = |name: &str| (name.to_owned(), Sequence::new(Arc::clone(&memory)));
        let sequences = nodes.names().map(sequence).collect();
        Chains(Arc::new(Inner { nodes, signer, max_gas_price_wei, sequences }))
    }

    pub fn address(&self) -> Address {
        self.0.signer.address()
    }

    pub fn nodes(&self) -> &Nodes {
        &self.0.nodes
    }

    /// An EIP-191 signature: r, s, and 27 or 28.
    ///
    /// # Errors
    /// The key cannot sign.
    pub async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], ChainError> {
        let signed = self.0.signer.sign_message(message).await;
        Ok(signed.map_err(|error| ChainError::Signing(error.to_string()))?.as_bytes())
    }

    /// Asks the nodes of a chain in turn, until one answers. `params` and the answer are JSON.
    ///
    /// # Errors
    /// None answers, or one refuses.
    pub async fn request(
        &self,
        chain: &str,
        method: &str,
        params: &RawValue,
    ) -> Result<Box<RawValue>, ChainError> {
        self.0.nodes.chain(chain)?.request(method, params).await
    }

    /// Signs a transaction, sends it, and waits until it is mined. Transactions of one chain go one after the other.
    ///
    /// # Errors
    /// It was refused, or was not mined within `waits`: after [`ChainError::NotMined`] and [`ChainError::Unreachable`] it may
    /// still be.
    pub async fn send_transaction(
        &self,
        chain: &str,
        call: Call,
        waits: Duration,
    ) -> Result<Receipt, ChainError> {
        self.sender(chain)?.send(call, waits).await
    }

    /// What a call would cost if it was sent now; a limit of gas that it has counts.
    ///
    /// # Errors
    /// It would fail, or take more gas than it may, or no node answers.
    pub async fn quote(&self, chain: &str, call: &Call) -> Result<Quote, ChainError> {
        self.sender(chain)?.quote(call).await
    }

    /// Was a call with this key signed, in this run or an earlier one, and not forgotten since? Then sending it again gives its
    /// receipt, or waits for it, and pays no gas twice.
    ///
    /// # Errors
    /// Somebody else sends for long, or what is under way cannot be read back.
    pub async fn has_under_way(&self, chain: &str, key: &str) -> Result<bool, ChainError> {
        self.sender(chain)?.sequence.has_under_way(chain, key).await
    }

    /// What came of the call with this key was written down by its caller.
    pub async fn forget(&self, chain: &str, key: &str) {
        if let Ok(sender) = self.sender(chain) {
            sender.sequence.forget(chain, key).await;
        }
    }

    fn sender(&self, chain: &str) -> Result<Sender<'_>, ChainError> {
        let asked = self.0.nodes.chain(chain)?;
        let sequence = self.0.sequences.get(chain);
        let sequence =
            sequence.ok_or_else(|| ChainError::NotConfigured { chain: chain.to_owned() })?;
        Ok(Sender {
            chain: Arc::<nodes::Chain>::clone(asked),
            sequence,
            signer: &self.0.signer,
            max_gas_price_wei: self.0.max_gas_price_wei,
        })
    }
}
