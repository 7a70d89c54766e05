//! Questions to the chain's nodes, transactions, and what their errors mean. Whatever a node answers is checked.

use core::time::Duration;
use std::collections::BTreeMap;

use golem_provider_sdk::{
    Error, Result,
    evm::{self, Failure, GOLEM_BASE, RpcError},
    signer::{self, Transaction},
};
use serde::Deserialize;

use crate::operations::{CONTRACT, CREATED, Key, Operations};

/// Of one answer. A provider's key has one entity of ours, and perhaps some of the operator's own.
const KEYS: usize = 2000;

/// A node's code for a method that it does not know.
const NO_SUCH_METHOD: i64 = -32601;
/// And for whatever has no code of its own, such as an entity that is not there.
const REFUSED: i64 = -32000;

/// An entity, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    pub key: Key,
    /// Who made it, as an address in hex.
    pub owner: String,
    pub expires_at_block: u64,
    pub strings: BTreeMap<String, String>,
    pub numbers: BTreeMap<String, u64>,
}

/// What a transaction has done.
#[derive(Debug)]
pub struct Done {
    /// The entities that it made.
    pub created: Vec<Key>,
}

#[derive(Deserialize)]
struct Found {
    key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetaData {
    expires_at_block: u64,
    string_annotations: Option<Vec<Annotation<String>>>,
    numeric_annotations: Option<Vec<Annotation<u64>>>,
    owner: String,
}

#[derive(Deserialize)]
struct Annotation<T> {
    key: String,
    value: T,
}

/// The latest block.
pub fn block_number() -> Result<u64> {
    number("eth_blockNumber", [(); 0])
}

/// Was something sent from this address that is not mined yet?
pub fn is_transaction_under_way(address: &str) -> Result<bool> {
    let count = |at| number("eth_getTransactionCount", [address, at]);
    let confirmed = count("latest")?;
    Ok(count("pending")? > confirmed)
}

fn number(method: &str, params: impl serde::Serialize) -> Result<u64> {
    let number: String = ask(method, params).map_err(refused)?;
    let digits = number.strip_prefix("0x").unwrap_or_default();
    u64::from_str_radix(digits, 16).map_err(|_| nonsense(method))
}

/// The entities that fit a query, whoever made them.
///
/// # Errors
/// [`Error::Unsupported`] for a query that the node does not understand.
pub fn entities(query: &str) -> Result<Vec<Key>> {
    const METHOD: &str = "golembase_queryEntities";
    let found: Option<Vec<Found>> = match ask(METHOD, [query]) {
        Ok(found) => found,
        Err(Failure::Rpc(RpcError { code, message, .. })) if code != NO_SUCH_METHOD => {
            let text =
                format!("the node does not understand the question: {message} (code {code})");
            return Err(Error::Unsupported(text));
        }
        Err(failure) => return Err(refused(failure)),
    };
    let found = found.unwrap_or_default();
    found.iter().take(KEYS).map(|found| key(&found.key, METHOD)).collect()
}

/// The entities that an address has made.
pub fn owned_by(address: &str) -> Result<Vec<Key>> {
    const METHOD: &str = "golembase_getEntitiesOfOwner";
    let keys: Option<Vec<String>> = ask(METHOD, [address]).map_err(refused)?;
    keys.unwrap_or_default().iter().take(KEYS).map(|text| key(text, METHOD)).collect()
}

/// What there is to know of an entity; none if it is not there.
pub fn entity(key: &Key) -> Result<Option<Entity>> {
    let asked = [format!("0x{}", hex::encode(key))];
    let meta_data: MetaData = match ask("golembase_getEntityMetaData", asked) {
        Ok(meta_data) => meta_data,
        Err(Failure::Rpc(RpcError { code: REFUSED, .. })) => return Ok(None),
        Err(failure) => return Err(refused(failure)),
    };
    Ok(Some(meta_data.entity(*key)))
}

/// Does all of it, or nothing.
///
/// # Errors
/// After [`Error::DeadlineExceeded`] and [`Error::Unavailable`] it may have been done, or may still be.
pub fn apply(operations: &Operations, waits: Duration) -> Result<Done> {
    let transaction = Transaction::call(CONTRACT, operations.encoded());
    let receipt = signer::send_transaction(GOLEM_BASE, &transaction, waits).map_err(refused)?;
    let hash = hex::encode(&receipt.transaction_hash);
    if !receipt.succeeded {
        return Err(Error::Unavailable(format!(
            "transaction 0x{hash} was mined and changed nothing, since the chain had changed before it"
        )));
    }
    let created = operations.created_keys(&receipt.transaction_hash);
    let told = |key: &Key| {
        receipt.events.iter().any(|event| {
            event.address.eq_ignore_ascii_case(CONTRACT)
                && matches!(&event.topics[..], [what, of, ..] if what[..] == CREATED && of[..] == *key)
        })
    };
    if !created.iter().all(told) {
        return Err(Error::Unavailable(format!(
            "transaction 0x{hash} was mined, and its receipt tells of no new entity"
        )));
    }
    Ok(Done { created })
}

fn ask<T: serde::de::DeserializeOwned>(
    method: &str,
    params: impl serde::Serialize,
) -> core::result::Result<T, Failure> {
    evm::request(GOLEM_BASE, method, params)
}

fn key(text: &str, method: &str) -> Result<Key> {
    let mut key = [0; 32];
    let digits = text.strip_prefix("0x").unwrap_or_default();
    hex::decode_to_slice(digits, &mut key).map_err(|_| nonsense(method))?;
    Ok(key)
}

fn nonsense(method: &str) -> Error {
    Error::Unavailable(format!("the node of Golem Base answers {method} with something else"))
}

impl MetaData {
    fn entity(self, key: Key) -> Entity {
        // Those that begin with a dollar are the node's own.
        fn map<T>(list: Option<Vec<Annotation<T>>>) -> BTreeMap<String, T> {
            let all = list.unwrap_or_default().into_iter();
            let written = all.filter(|annotation| !annotation.key.starts_with('$'));
            written.map(|annotation| (annotation.key, annotation.value)).collect()
        }
        Entity {
            key,
            owner: self.owner,
            expires_at_block: self.expires_at_block,
            strings: map(self.string_annotations),
            numbers: map(self.numeric_annotations),
        }
    }
}

/// What it means for the operator.
fn refused(failure: Failure) -> Error {
    let Failure::Rpc(RpcError { code, message, .. }) = failure else { return failure.into() };
    let said = message.to_ascii_lowercase();
    let says = |text: &str| said.contains(text);
    if code == NO_SUCH_METHOD {
        Error::FailedPrecondition(format!(
            "the node is none of Golem Base ({message}): set GOLEM_PROVIDER_GOLEM_BASE_RPC_URL to one that is"
        ))
    } else if says("insufficient funds") || says("insufficient balance") {
        Error::FailedPrecondition(format!(
            "{} cannot pay for the gas ({message}): send it some of Golem Base's coin; on a testnet, golem-provider wallet faucet asks for it",
            signer::address()
        ))
    } else if says("exceeds allowance") || says("exceeds block gas limit") {
        Error::FailedPrecondition(format!(
            "the transaction needs more gas than the address can pay for or the node allows ({message}): send {} some of Golem Base's coin, or use another node",
            signer::address()
        ))
    } else if says("not the owner") || says("not found") {
        Error::Unavailable(format!(
            "an entity changed on the chain in the same moment ({message}); it is looked at again"
        ))
    } else {
        Error::Unavailable(format!("the node refuses: {message} (code {code})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_is_read_as_nodes_write_it() {
        let text = r#"{"expiresAtBlock": 12, "stringAnnotations": [{"key": "a", "value": "b"}, {"key": "$owner", "value": "x"}],
            "numericAnnotations": null, "owner": "0xab", "more": 1}"#;
        let meta_data: MetaData = serde_json::from_str(text).unwrap();
        let entity = meta_data.entity([7; 32]);
        assert_eq!((entity.expires_at_block, entity.owner.as_str()), (12, "0xab"));
        assert_eq!(entity.strings, BTreeMap::from([("a".into(), "b".into())]));
        assert!(entity.numbers.is_empty());
        assert!(key("0x12", "m").is_err() && key(&"1".repeat(64), "m").is_err());
    }

    #[test]
    fn refusals_are_told_by_what_can_be_done_about_them() {
        let rpc = |code, message: &str| {
            refused(Failure::Rpc(RpcError { code, message: message.into(), data: None }))
        };
        let wrong_node = rpc(NO_SUCH_METHOD, "the method golembase_queryEntities does not exist");
        assert!(matches!(wrong_node, Error::FailedPrecondition(text) if text.contains("RPC_URL")));
        let race = rpc(REFUSED, "failed to update entity 0x01: 0x02 is not the owner");
        assert!(matches!(race, Error::Unavailable(text) if text.contains("looked at again")));
        assert!(matches!(rpc(-1, "no"), Error::Unavailable(text) if text.contains("code -1")));
        let ours = Error::FailedPrecondition("no node".into());
        assert_eq!(refused(Failure::Provider(ours.clone())), ours);
    }
}
