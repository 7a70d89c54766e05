//! What plugins may have of Ethereum: chains to ask, and a key to sign with. The trait that the provider gives them, behind
//! the interfaces `evm` and `signer`; grants are checked there.

use async_trait::async_trait;

use crate::plugins::failure::{Failure, FailureKind};

/// The configured chains and the provider's key.
#[async_trait]
pub trait Ethereum: Send + Sync + 'static {
    /// The provider's address, with the checksum of EIP-55.
    fn address(&self) -> String;

    /// An EIP-191 signature: r, s, and 27 or 28.
    async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], Failure>;

    /// Asks a node of the chain. `params` is a JSON array; so is the answer JSON.
    async fn request(
        &self,
        chain: &str,
        method: &str,
        params: &str,
    ) -> Result<String, ChainFailure>;

    /// Asks one node of the chain several things at once; answers come in the order of the questions, each a method and its
    /// parameters.
    async fn request_all(
        &self,
        chain: &str,
        requests: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure>;

    /// Signs, sends, and waits until it is mined.
    async fn send_transaction(
        &self,
        chain: &str,
        transaction: Transaction,
        timeout: std::time::Duration,
    ) -> Result<Receipt, ChainFailure>;
}

/// A call of a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub to: [u8; 20],
    pub data: Vec<u8>,
    pub value_wei: u128,
    /// What the node estimates, and some more, where it is absent.
    pub gas_limit: Option<u64>,
}

/// A transaction that was mined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub transaction_hash: [u8; 32],
    pub block_number: u64,
    pub succeeded: bool,
    pub gas_used: u64,
    pub events: Vec<Event>,
}

/// What a contract wrote down about a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub address: [u8; 20],
    pub topics: Vec<[u8; 32]>,
    pub data: Vec<u8>,
}

/// Why a chain gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainFailure {
    /// A node refused.
    Rpc(RpcRefusal),
    /// No node answered, or none was asked.
    Provider(Failure),
}

/// What a node answered in place of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcRefusal {
    pub code: i64,
    pub message: String,
    /// JSON.
    pub data: Option<String>,
}

/// Where there is neither chain nor key: in commands that only look at a plugin.
pub struct NoEthereum;

impl NoEthereum {
    fn failure() -> Failure {
        Failure::new(
            FailureKind::FailedPrecondition,
            "there is no chain and no key here: the plugin is only being looked at",
        )
    }
}

#[async_trait]
impl Ethereum for NoEthereum {
    fn address(&self) -> String {
        // Nobody's: what a plugin makes of it is thrown away.
        crate::settings::keys::NO_ADDRESS.to_owned()
    }

    async fn sign_message(&self, _: &[u8]) -> Result<[u8; 65], Failure> {
        Err(Self::failure())
    }

    async fn request(&self, _: &str, _: &str, _: &str) -> Result<String, ChainFailure> {
        Err(ChainFailure::Provider(Self::failure()))
    }

    async fn request_all(
        &self,
        _: &str,
        _: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure> {
        Err(Self::failure())
    }

    async fn send_transaction(
        &self,
        _: &str,
        _: Transaction,
        _: std::time::Duration,
    ) -> Result<Receipt, ChainFailure> {
        Err(ChainFailure::Provider(Self::failure()))
    }
}
