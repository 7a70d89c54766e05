//! The Ethereum chains that the operator configured: questions to their nodes, and transactions with the provider's key.
//!
//! A chain is known by a name (`golem-base`, `payments`) and by the URLs of its nodes, which are asked in turn. URLs carry the
//! operator's keys, so no error and no log line holds more of one than its host. Calls nothing of the provider but
//! `settings`; called by `payments` and, for plugins, by the composition root.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use alloy::{
    primitives::Address,
    rpc::{client::RpcClient, json_rpc::RpcError},
    signers::{Signer, local::PrivateKeySigner},
    transports::{TransportError, TransportErrorKind},
};
use serde_json::value::RawValue;
use tokio::time::timeout;
use url::Url;

use crate::settings::Secret;

/// How long one node may take to answer before the next one is asked.
const ONE_NODE: Duration = Duration::from_secs(10);

/// All chains, and the key that signs for them. Clones are the same.
#[derive(Clone)]
pub struct Chains(Arc<Inner>);

struct Inner {
    signer: PrivateKeySigner,
    by_name: BTreeMap<String, Chain>,
}

/// One chain.
struct Chain {
    nodes: Vec<Node>,
}

struct Node {
    /// For people: without path and query, which may be secret.
    host: String,
    client: RpcClient,
}

/// A chain gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("there is no node for the chain {chain}; set {setting}")]
    NotConfigured { chain: String, setting: &'static str },
    #[error("no node of the chain {chain} answers: {reasons}")]
    Unreachable { chain: String, reasons: String },
    /// A node answered with an error, which another node would repeat.
    #[error("the node of the chain refuses: {message} (code {code})")]
    Refused {
        code: i64,
        message: String,
        /// JSON.
        data: Option<String>,
    },
    #[error("{0}")]
    Signing(String),
}

impl Chains {
    /// URLs that are none were refused with the settings.
    pub fn new(nodes: &BTreeMap<String, Vec<Secret>>, signer: PrivateKeySigner) -> Chains {
        let node = |url: &Secret| {
            let url = Url::parse(url.expose()).ok()?;
            let host = url.host_str().unwrap_or("a node").to_owned();
            Some(Node { host, client: RpcClient::new_http(url) })
        };
        let chain = |urls: &Vec<Secret>| Chain { nodes: urls.iter().filter_map(node).collect() };
        let by_name = nodes.iter().map(|(name, urls)| (name.clone(), chain(urls))).collect();
        Chains(Arc::new(Inner { signer, by_name }))
    }

    pub fn address(&self) -> Address {
        self.0.signer.address()
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
        let mut reasons = Vec::new();
        for node in &self.chain(chain)?.nodes {
            let call =
                node.client.request::<_, Box<RawValue>>(method.to_owned(), params.to_owned());
            let reason = match timeout(ONE_NODE, call).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => match refusal(&error) {
                    Some(refused) => return Err(refused),
                    None => transport_error(&error),
                },
                Err(_) => format!("no answer within {} s", ONE_NODE.as_secs()),
            };
            reasons.push(format!("{}: {reason}", node.host));
        }
        Err(ChainError::Unreachable { chain: chain.to_owned(), reasons: reasons.join("; ") })
    }

    fn chain(&self, name: &str) -> Result<&Chain, ChainError> {
        self.0.by_name.get(name).filter(|chain| !chain.nodes.is_empty()).ok_or_else(|| {
            ChainError::NotConfigured {
                chain: name.to_owned(),
                setting: match name {
                    "payments" => "GOLEM_PROVIDER_POLYGON_RPC_URL",
                    _ => "GOLEM_PROVIDER_GOLEM_BASE_RPC_URL",
                },
            }
        })
    }
}

/// What a node answered in place of a result, where it did.
fn refusal(error: &TransportError) -> Option<ChainError> {
    let RpcError::ErrorResp(payload) = error else { return None };
    Some(ChainError::Refused {
        code: payload.code,
        message: payload.message.to_string(),
        data: payload.data.as_ref().map(|data| data.get().to_owned()),
    })
}

/// Without the URL, which the client's own text has in it.
fn transport_error(error: &TransportError) -> String {
    match error {
        RpcError::Transport(TransportErrorKind::HttpError(error)) => {
            format!("HTTP status {}", error.status)
        }
        RpcError::DeserError { .. } => "its answer is no JSON-RPC".to_owned(),
        RpcError::NullResp => "its answer is empty".to_owned(),
        _ => "it cannot be reached".to_owned(),
    }
}
