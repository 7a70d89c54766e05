//! What is asked of the chain's nodes, and what their answers come to. Whatever a node answers is checked.
//!
//! Streams are read at one block. It is named by its hash, so that an answer is of that block or is none. Nodes that know no
//! such names (EIP-1898) are asked by its number, with the block itself beside the streams: has it another hash by then, the
//! chain was reorganised in between, and nothing was read.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, U64, U256};
use golem_provider_sdk::{
    Error, Result,
    evm::{self, PAYMENTS, RpcError},
    payment_verifier::{Changes, Moment, Payment, Snapshot},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::contract;

/// Streams that are read at once, as the contract of verifiers has it.
pub const MOST_STREAMS: usize = 500;

/// Blocks that are searched for events at once. Nodes that refuse so many take fewer.
const SPANS: [u64; 3] = [1000, 100, 10];

/// Streams that are named at once, unless more changed in a single block.
const MOST_CHANGES: usize = 1000;

/// Streams in one exchange where the block stands beside them.
const BY_NUMBER: usize = 400;

/// A node's code for a method that it does not know.
const NO_SUCH_METHOD: i64 = -32601;

/// A method and its parameters.
pub type Question = (&'static str, Value);

/// What answers questions, each batch by one node.
pub trait Nodes {
    /// Answers in the order of the questions.
    ///
    /// # Errors
    /// No node answers.
    fn ask(&self, questions: &[Question]) -> Result<Vec<core::result::Result<Value, RpcError>>>;
}

/// The nodes of the chain that is paid on, as the operator configured them.
pub struct Configured;

impl Nodes for Configured {
    fn ask(&self, questions: &[Question]) -> Result<Vec<core::result::Result<Value, RpcError>>> {
        evm::request_all(PAYMENTS, questions)
    }
}

#[derive(Deserialize)]
struct Block {
    number: U64,
    hash: B256,
    timestamp: U64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    address: Address,
    topics: Vec<B256>,
    block_number: U64,
    /// By a reorganisation.
    #[serde(default)]
    removed: bool,
}

impl Block {
    fn moment(&self) -> Moment {
        Moment { number: self.number.to(), hash: self.hash.to_string(), time: self.timestamp.to() }
    }
}

/// Streams as they are at the newest block with so many confirmations. Without ids the contract is looked at all the same.
///
/// # Errors
/// [`Error::Unavailable`] when nodes do not answer as they should, [`Error::FailedPrecondition`] when it is not our contract.
pub fn snapshot(
    nodes: &impl Nodes,
    contract: Address,
    ids: &[U256],
    confirmations: u32,
) -> Result<Snapshot> {
    if ids.len() > MOST_STREAMS {
        return Err(Error::InvalidArgument(format!(
            "{} streams were to be read at once, and {MOST_STREAMS} can be",
            ids.len()
        )));
    }
    let latest = block(nodes, json!("latest"))?;
    let depth = u64::from(confirmations.max(1) - 1);
    let number = latest.number.to::<u64>().saturating_sub(depth);
    let pinned = if depth == 0 { None } else { Some(block(nodes, json!(U64::from(number)))?) };
    let at = pinned.as_ref().unwrap_or(&latest);
    if at.number.to::<u64>() != number {
        return Err(nonsense("eth_getBlockByNumber"));
    }

    let asked = if ids.is_empty() { &[U256::ZERO] } else { ids };
    let answers = match by_hash(nodes, contract, asked, at)? {
        Some(answers) => answers,
        None => by_number(nodes, contract, asked, at)?,
    };
    // Before it was put on the chain, a contract has no streams.
    let is_young = answers.iter().all(|answer| answer.is_empty());
    if is_young && (depth == 0 || !is_there(nodes, contract)?) {
        return Err(contract::nobody(contract));
    }
    let read = |answer: &Bytes| match is_young {
        true => Ok(None),
        false => contract::payment(contract, answer),
    };
    let mut payments: Vec<Option<Payment>> = answers.iter().map(read).collect::<Result<_>>()?;
    payments.truncate(ids.len());
    Ok(Snapshot { at: at.moment(), latest: latest.moment(), payments })
}

/// Streams that something happened to after this block.
///
/// # Errors
/// [`Error::Unsupported`] where nodes know no events, [`Error::Unavailable`] when they do not answer as they should.
pub fn changes(nodes: &impl Nodes, contract: Address, block: u64) -> Result<Changes> {
    let latest: U64 = one(nodes, ("eth_blockNumber", json!([])))?;
    let latest = latest.to::<u64>();
    if latest <= block {
        return Ok(Changes { up_to_block: latest, references: Vec::new() });
    }
    let first = block + 1;
    let mut refusal = None;
    for span in SPANS {
        let last = latest.min(block.saturating_add(span));
        let filter = json!({
            "address": contract, "topics": [contract::EVENTS],
            "fromBlock": U64::from(first), "toBlock": U64::from(last),
        });
        // Another node than before may answer, which has not come so far: then it has not seen all there is.
        let questions = [("eth_getLogs", json!([filter])), ("eth_blockNumber", json!([]))];
        let mut answers = nodes.ask(&questions)?.into_iter();
        let (Some(logs), Some(seen)) = (answers.next(), answers.next()) else {
            return Err(nonsense("eth_getLogs"));
        };
        match logs {
            Ok(logs) => {
                let seen: U64 = answer("eth_blockNumber", seen.map_err(refused)?)?;
                let logs: Vec<Log> = answer("eth_getLogs", logs)?;
                return Ok(summed_up(contract, &logs, first, last.min(seen.to())));
            }
            Err(error) if knows_no_events(&error) => {
                return Err(Error::Unsupported(format!(
                    "the nodes of the chain that is paid on tell of no events: {}",
                    error.message
                )));
            }
            // Perhaps of so many blocks at once.
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or_else(|| nonsense("eth_getLogs"), refused))
}

/// Whole blocks, as many as there is room for.
fn summed_up(contract: Address, logs: &[Log], first: u64, last: u64) -> Changes {
    let mut changed: Vec<(u64, U256)> = logs
        .iter()
        .filter(|log| !log.removed && log.address == contract)
        .filter_map(|log| {
            let [kind, id, ..] = log.topics.as_slice() else { return None };
            let ours = contract::EVENTS.contains(kind);
            ours.then(|| (log.block_number.to(), U256::from_be_bytes(id.0)))
        })
        .filter(|(block, _)| (first..=last).contains(block))
        .collect();
    changed.sort_unstable();
    let mut up_to_block = last.max(first.saturating_sub(1));
    let mut ids = BTreeSet::new();
    for block in changed.chunk_by(|one, other| one.0 == other.0) {
        let more = block.iter().filter(|(_, id)| !ids.contains(id)).count();
        if !ids.is_empty() && ids.len() + more > MOST_CHANGES {
            up_to_block = block[0].0 - 1;
            break;
        }
        ids.extend(block.iter().map(|(_, id)| *id));
    }
    Changes { up_to_block, references: ids.iter().map(ToString::to_string).collect() }
}

/// Absent where nodes refuse to be asked in this way.
fn by_hash(
    nodes: &impl Nodes,
    contract: Address,
    ids: &[U256],
    at: &Block,
) -> Result<Option<Vec<Bytes>>> {
    let block = json!({ "blockHash": at.hash, "requireCanonical": true });
    let answers = nodes.ask(&questions(contract, ids, &block))?;
    if answers.len() != ids.len() {
        return Err(nonsense("eth_call"));
    }
    let refused_otherwise = |refusal: &RpcError| contract::revert(refusal).is_none();
    if answers.iter().any(|answer| answer.as_ref().is_err_and(refused_otherwise)) {
        return Ok(None);
    }
    answers.into_iter().map(|answer| said(contract, answer)).collect::<Result<_>>().map(Some)
}

fn by_number(
    nodes: &impl Nodes,
    contract: Address,
    ids: &[U256],
    at: &Block,
) -> Result<Vec<Bytes>> {
    let mut said_of = Vec::with_capacity(ids.len());
    for ids in ids.chunks(BY_NUMBER) {
        let mut questions = questions(contract, ids, &json!(at.number));
        questions.push(("eth_getBlockByNumber", json!([at.number, false])));
        let mut answers = nodes.ask(&questions)?;
        let block = answers.pop().filter(|_| answers.len() == ids.len());
        let block = block.ok_or_else(|| nonsense("eth_call"))?.map_err(refused)?;
        let block: Option<Block> = answer("eth_getBlockByNumber", block)?;
        if block.is_none_or(|block| block.hash != at.hash) {
            return Err(Error::Unavailable(format!(
                "block {} changed while it was read, as the chain was reorganised; it is read again",
                at.number
            )));
        }
        for answer in answers {
            said_of.push(said(contract, answer)?);
        }
    }
    Ok(said_of)
}

fn questions(contract: Address, ids: &[U256], block: &Value) -> Vec<Question> {
    let question = |id: &U256| {
        let call = json!({ "to": contract, "data": contract::question(*id) });
        ("eth_call", json!([call, block]))
    };
    ids.iter().map(question).collect()
}

/// What the contract answers.
fn said(contract: Address, said: core::result::Result<Value, RpcError>) -> Result<Bytes> {
    match said {
        Ok(said) => answer("eth_call", said),
        Err(refusal) => Err(match contract::revert(&refusal) {
            Some(reason) => {
                contract::another(contract, &format!("it refuses to tell of streams: {reason}"))
            }
            None => refused(refusal),
        }),
    }
}

/// Is there a contract now?
fn is_there(nodes: &impl Nodes, contract: Address) -> Result<bool> {
    let code: Bytes = one(nodes, ("eth_getCode", json!([contract, "latest"])))?;
    Ok(!code.is_empty())
}

fn block(nodes: &impl Nodes, which: Value) -> Result<Block> {
    let block: Option<Block> = one(nodes, ("eth_getBlockByNumber", json!([which, false])))?;
    // One node may be behind another.
    block.ok_or_else(|| Error::Unavailable(format!("the node does not have block {which} yet")))
}

fn one<T: serde::de::DeserializeOwned>(nodes: &impl Nodes, question: Question) -> Result<T> {
    let method = question.0;
    let said = nodes.ask(&[question])?.pop().ok_or_else(|| nonsense(method))?;
    answer(method, said.map_err(refused)?)
}

fn answer<T: serde::de::DeserializeOwned>(method: &str, answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|_| nonsense(method))
}

fn nonsense(method: &str) -> Error {
    Error::Unavailable(format!(
        "the node of the chain that is paid on answers {method} with something else"
    ))
}

fn refused(refusal: RpcError) -> Error {
    Error::Unavailable(format!(
        "the node of the chain that is paid on refuses: {} (code {})",
        refusal.message, refusal.code
    ))
}

fn knows_no_events(refusal: &RpcError) -> bool {
    let said = refusal.message.to_ascii_lowercase();
    refusal.code == NO_SUCH_METHOD
        || ["not supported", "unsupported", "does not exist", "not available"]
            .iter()
            .any(|text| said.contains(text))
}

#[cfg(test)]
mod tests;
