//! Nodes of all sorts, made of recorded answers.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use golem_provider_sdk::payment_verifier::Standing;

use super::*;

const CONTRACT: Address = Address::repeat_byte(0xcc);

type Answer = core::result::Result<Value, RpcError>;

/// A node with a chain of blocks, each ten seconds after the one before it.
struct Node {
    height: Cell<u64>,
    /// By number, as they are in the contract from this block on.
    streams: BTreeMap<u64, (u64, Value)>,
    logs: Vec<Value>,
    knows_hashes: bool,
    most_blocks_of_logs: u64,
    /// Answers everything that is asked of the contract.
    contract_says: Option<Answer>,
    deployed_at: u64,
    /// From this question on, blocks have other hashes.
    reorganised_at: Option<usize>,
    asked: RefCell<Vec<(String, Value)>>,
    batches: Cell<usize>,
}

impl Node {
    fn new(height: u64) -> Node {
        Node {
            height: Cell::new(height),
            streams: BTreeMap::new(),
            logs: Vec::new(),
            knows_hashes: true,
            most_blocks_of_logs: 10_000,
            contract_says: None,
            deployed_at: 0,
            reorganised_at: None,
            asked: RefCell::default(),
            batches: Cell::new(0),
        }
    }

    /// With a recorded stream, made in this block.
    fn with(mut self, id: u64, since: u64, case: usize) -> Node {
        let states: Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/stream_states.json"))
                .unwrap();
        self.streams.insert(id, (since, states["cases"][case]["raw"].clone()));
        self
    }

    fn hash(&self, number: u64) -> B256 {
        let turned = self.reorganised_at.is_some_and(|at| self.asked.borrow().len() > at);
        B256::from(U256::from(number + if turned { 1 << 40 } else { 1 << 32 }))
    }

    fn block(&self, which: &Value) -> Value {
        let number = match which.as_str() {
            Some("latest") => self.height.get(),
            _ => serde_json::from_value::<U64>(which.clone()).unwrap().to(),
        };
        if number > self.height.get() {
            return Value::Null;
        }
        let time = 1_700_000_000 + 10 * number;
        json!({ "number": U64::from(number), "hash": self.hash(number), "timestamp": U64::from(time), "more": [] })
    }

    fn call(&self, call: &Value, at: &Value) -> Answer {
        let number = if let Some(hash) = at.get("blockHash") {
            if !self.knows_hashes {
                return Err(refusal(-32602, "invalid argument 1: cannot unmarshal object"));
            }
            let hash: B256 = serde_json::from_value(hash.clone()).unwrap();
            (0..=self.height.get())
                .find(|number| self.hash(*number) == hash)
                .ok_or_else(|| refusal(-32000, "header for hash not found"))?
        } else {
            serde_json::from_value::<U64>(at.clone()).unwrap().to()
        };
        assert_eq!(call["to"], json!(CONTRACT));
        if let Some(says) = &self.contract_says {
            return says.clone();
        }
        if number < self.deployed_at {
            return Ok(json!("0x"));
        }
        let data: Bytes = serde_json::from_value(call["data"].clone()).unwrap();
        let id = U256::from_be_slice(&data[4..]);
        let stream = self.streams.iter().find(|(known, _)| U256::from(**known) == id);
        let stream = stream.filter(|(_, (since, _))| *since <= number);
        Ok(stream.map_or_else(|| json!(Bytes::from(vec![0; 288])), |(_, (_, raw))| raw.clone()))
    }

    fn logs(&self, filter: &Value) -> Answer {
        let number = |at: &str| serde_json::from_value::<U64>(filter[at].clone()).unwrap().to();
        let (first, last): (u64, u64) = (number("fromBlock"), number("toBlock"));
        assert_eq!(filter["address"], json!(CONTRACT));
        assert_eq!(filter["topics"][0].as_array().unwrap().len(), 5);
        if last - first + 1 > self.most_blocks_of_logs {
            return Err(refusal(-32602, "the range of blocks is too large"));
        }
        if self.most_blocks_of_logs == 0 {
            return Err(refusal(NO_SUCH_METHOD, "the method eth_getLogs does not exist"));
        }
        let within = |log: &&Value| {
            let at: u64 = serde_json::from_value::<U64>(log["blockNumber"].clone()).unwrap().to();
            (first..=last).contains(&at)
        };
        Ok(self.logs.iter().filter(within).cloned().collect())
    }

    fn methods(&self) -> Vec<String> {
        self.asked.borrow().iter().map(|(method, _)| method.clone()).collect()
    }
}

impl Nodes for Node {
    fn ask(&self, questions: &[Question]) -> Result<Vec<Answer>> {
        assert!((1..=500).contains(&questions.len()), "{} at once", questions.len());
        self.batches.set(self.batches.get() + 1);
        let answer = |(method, params): &Question| {
            self.asked.borrow_mut().push(((*method).to_owned(), params.clone()));
            match *method {
                "eth_getBlockByNumber" => Ok(self.block(&params[0])),
                "eth_blockNumber" => Ok(json!(U64::from(self.height.get()))),
                "eth_call" => self.call(&params[0], &params[1]),
                "eth_getCode" => {
                    Ok(json!(if self.contract_says.is_some() { "0x" } else { "0x60" }))
                }
                "eth_getLogs" => self.logs(&params[0]),
                other => panic!("{other}"),
            }
        };
        Ok(questions.iter().map(answer).collect())
    }
}

fn refusal(code: i64, message: &str) -> RpcError {
    RpcError { code, message: message.to_owned(), data: None }
}

fn ids(ids: impl IntoIterator<Item = u64>) -> Vec<U256> {
    ids.into_iter().map(U256::from).collect()
}

fn log(block: u64, id: u64) -> Value {
    json!({
        "address": CONTRACT, "topics": [contract::EVENTS[4], B256::from(U256::from(id))],
        "data": "0x", "blockNumber": U64::from(block), "removed": false,
    })
}

#[test]
fn all_streams_are_asked_at_once_at_the_hash_of_one_block() {
    let node = Node::new(20).with(1, 5, 4).with(6, 19, 16).with(2, 20, 13);
    let read = snapshot(&node, CONTRACT, &ids([6, 1, 99, 2]), 1).unwrap();
    let standings: Vec<_> =
        read.payments.iter().map(|one| one.as_ref().map(|one| one.standing)).collect();
    let (open, halted, closed) = (Standing::Open, Standing::Halted, Standing::Closed);
    assert_eq!(standings, [Some(halted), Some(open), None, Some(closed)]);
    assert_eq!((read.at.number, read.at.time, read.latest.number), (20, 1_700_000_200, 20));
    assert_eq!(node.batches.get(), 2);
    for (_, params) in node.asked.borrow().iter().filter(|(method, _)| method == "eth_call") {
        assert_eq!(params[1], json!({ "blockHash": read.at.hash, "requireCanonical": true }));
    }

    // Two blocks back, one of them was not halted, as it was not there.
    let read = snapshot(&node, CONTRACT, &ids([6, 1, 2]), 3).unwrap();
    assert_eq!((read.at.number, read.latest.number), (18, 20));
    assert!(read.payments[0].is_none() && read.payments[1].is_some() && read.payments[2].is_none());
    // And on a chain that is shorter than that, its first block.
    assert_eq!(snapshot(&node, CONTRACT, &ids([1]), 100).unwrap().at.number, 0);
    let many = snapshot(&node, CONTRACT, &ids(0..500), 1).unwrap();
    assert_eq!(many.payments.len(), 500);
    assert!(snapshot(&node, CONTRACT, &ids(0..501), 1).is_err());
}

#[test]
fn a_node_that_knows_no_hashes_is_asked_by_number_and_the_block_is_compared() {
    let node = Node { knows_hashes: false, ..Node::new(20).with(1, 5, 4) };
    let read = snapshot(&node, CONTRACT, &ids([1]), 1).unwrap();
    assert!(read.payments[0].is_some());
    let last = node.asked.borrow().last().cloned().unwrap();
    assert_eq!((last.0.as_str(), &last.1[0]), ("eth_getBlockByNumber", &json!("0x14")));
    assert_eq!(snapshot(&node, CONTRACT, &ids(0..500), 1).unwrap().payments.len(), 500);

    // Reorganised after the hash was known, whichever way it is asked.
    for knows_hashes in [false, true] {
        let node = Node { knows_hashes, reorganised_at: Some(1), ..Node::new(20).with(1, 5, 4) };
        let error = snapshot(&node, CONTRACT, &ids([1]), 1).unwrap_err();
        assert!(matches!(&error, Error::Unavailable(text) if text.contains("reorganised")));
    }
}

#[test]
fn another_contract_or_none_is_a_mistake_in_the_settings() {
    let recorded: Value =
        serde_json::from_str(include_str!("../../../../tests/vectors/stream_states.json")).unwrap();
    let revert =
        RpcError { data: Some(json!("0x").to_string()), ..refusal(3, "execution reverted") };
    assert_eq!(recorded["notes"][5]["streams(1) on other contract (MockGLM)"]["code"], 3);
    let hardhat = RpcError {
        data: Some(json!({ "message": "reverted", "data": "0x" }).to_string()),
        ..refusal(-32603, "Error: Transaction reverted: function selector was not recognized")
    };
    for (says, named) in [
        (Ok(json!("0x")), "there is no contract"),
        (Ok(json!(Bytes::from(vec![0; 32 * 14]))), "448 bytes"),
        (Ok(json!(Bytes::from(vec![0; 32]))), "32 bytes"),
        (Err(revert), "refuses to tell"),
        (Err(hardhat), "refuses to tell"),
    ] {
        let node = Node { contract_says: Some(says), ..Node::new(20) };
        // Without any stream to read as well.
        for ids in [ids([1, 2]), ids([])] {
            for confirmations in [1, 3] {
                let error = snapshot(&node, CONTRACT, &ids, confirmations).unwrap_err();
                let Error::FailedPrecondition(text) = error else { panic!("{error:?}") };
                assert!(text.contains(named) && text.contains(&CONTRACT.to_string()), "{text}");
            }
        }
    }
    let node = Node::new(20);
    assert!(snapshot(&node, CONTRACT, &[], 1).unwrap().payments.is_empty());
    // One that was put there a block ago had no streams before.
    let young = Node { deployed_at: 20, ..Node::new(20).with(1, 20, 4) };
    assert_eq!(snapshot(&young, CONTRACT, &ids([1]), 3).unwrap().payments, [None]);
    assert!(snapshot(&young, CONTRACT, &ids([1]), 1).unwrap().payments[0].is_some());
}

#[test]
fn what_nodes_cannot_say_is_unavailable_and_never_an_absent_stream() {
    for says in [
        Err(refusal(-32000, "missing trie node")),
        Err(refusal(-32603, "internal error")),
        Ok(json!(17)),
        Ok(json!("0xzz")),
        Ok(Value::Null),
    ] {
        let node = Node { contract_says: Some(says.clone()), ..Node::new(20) };
        let read = snapshot(&node, CONTRACT, &ids([1]), 1);
        assert!(matches!(read, Err(Error::Unavailable(_))), "{says:?}: {read:?}");
    }
}

#[test]
fn what_changed_is_named_once_and_up_to_where_it_was_looked() {
    let mut node = Node::new(5000);
    node.logs = vec![log(101, 7), log(150, 9), log(150, 7), log(1101, 3)];
    node.logs.push(json!({ "address": CONTRACT, "topics": [contract::EVENTS[0], B256::ZERO],
        "data": "0x", "blockNumber": "0x97", "removed": true }));
    node.logs.push(json!({ "address": Address::ZERO, "topics": [contract::EVENTS[0], B256::ZERO],
        "data": "0x", "blockNumber": "0x98" }));
    let changed = changes(&node, CONTRACT, 100).unwrap();
    assert_eq!((changed.up_to_block, changed.references), (1100, vec!["7".into(), "9".into()]));
    let next = changes(&node, CONTRACT, 1100).unwrap();
    assert_eq!((next.up_to_block, next.references), (2100, vec!["3".into()]));
    assert_eq!(changes(&node, CONTRACT, 4990).unwrap().up_to_block, 5000);
    // Nothing is new; and a chain that has become shorter is told as it is.
    for (since, up_to_block) in [(5000, 5000), (5001, 5000), (u64::MAX, 5000)] {
        let none = Changes { up_to_block, references: Vec::new() };
        assert_eq!(changes(&node, CONTRACT, since).unwrap(), none);
    }
}

#[test]
fn nodes_that_take_fewer_blocks_are_asked_for_fewer_and_those_without_events_are_told() {
    let mut node = Node { most_blocks_of_logs: 100, ..Node::new(5000) };
    node.logs = vec![log(120, 7), log(250, 9)];
    let changed = changes(&node, CONTRACT, 100).unwrap();
    assert_eq!((changed.up_to_block, changed.references), (200, vec!["7".to_owned()]));
    node.most_blocks_of_logs = 5;
    assert!(matches!(changes(&node, CONTRACT, 100), Err(Error::Unavailable(_))));
    assert_eq!(node.methods().iter().filter(|method| *method == "eth_getLogs").count(), 5);

    struct WithoutEvents(Node);
    impl Nodes for WithoutEvents {
        fn ask(&self, questions: &[Question]) -> Result<Vec<Answer>> {
            let mut answers = self.0.ask(questions)?;
            for (question, answer) in questions.iter().zip(&mut answers) {
                if question.0 == "eth_getLogs" {
                    *answer = Err(refusal(NO_SUCH_METHOD, "no such method"));
                }
            }
            Ok(answers)
        }
    }
    let without = WithoutEvents(Node::new(5000));
    assert!(matches!(changes(&without, CONTRACT, 100), Err(Error::Unsupported(_))));
}

#[test]
fn more_changes_than_there_is_room_for_are_told_block_by_block() {
    let mut node = Node::new(5000);
    node.logs = (0..3000).map(|id| log(101 + id / 600, id)).collect();
    let first = changes(&node, CONTRACT, 100).unwrap();
    assert_eq!((first.up_to_block, first.references.len()), (101, 600));
    // A block with more than that is told whole.
    node.logs = (0..1500).map(|id| log(101, id)).chain([log(102, 1)]).collect();
    let whole = changes(&node, CONTRACT, 100).unwrap();
    assert_eq!((whole.up_to_block, whole.references.len()), (101, 1500));
}
