//! Transactions on a chain in memory, in simulated time.

use std::{
    collections::{HashMap, VecDeque},
    sync::MutexGuard,
};

use alloy::{consensus::TxEnvelope, eips::eip2718::Decodable2718, primitives::hex};
use async_trait::async_trait;
use serde_json::{Value, value::RawValue};

use super::*;

const GWEI: u128 = 1_000_000_000;
const CAP_WEI: u128 = 200 * GWEI;
const WAITS: Duration = Duration::from_secs(60);

/// A chain as one node tells it.
struct State {
    chain_id: u64,
    nonce: u64,
    balance_wei: u128,
    base_wei: u128,
    block: u64,
    /// Whether each transaction is mined at once.
    mines: bool,
    is_down: bool,
    pool: Option<(B256, TxEip1559)>,
    mined: HashMap<B256, TxEip1559>,
    order: Vec<TxEip1559>,
    /// What the next transactions are refused with.
    refusals: VecDeque<&'static str>,
    /// What happens before the next transaction arrives.
    before_next: Option<fn(&mut State)>,
}

impl State {
    fn mine(&mut self) {
        self.block += 1;
        let affordable = |(_, tx): &mut (B256, TxEip1559)| tx.max_fee_per_gas >= self.base_wei;
        if let Some((hash, tx)) = self.pool.take_if(affordable) {
            assert_eq!(tx.nonce, self.nonce);
            self.nonce += 1;
            self.mined.insert(hash, tx.clone());
            self.order.push(tx);
        }
    }

    fn take(&mut self, raw: &[u8]) -> Result<B256, String> {
        let Ok(TxEnvelope::Eip1559(signed)) = TxEnvelope::decode_2718(&mut &raw[..]) else {
            return Err("it is no transaction".into());
        };
        let (hash, tx) = (*signed.hash(), signed.tx().clone());
        if let Some(change) = self.before_next.take() {
            change(self);
        }
        if let Some(refusal) = self.refusals.pop_front() {
            return Err(refusal.into());
        }
        if tx.chain_id != self.chain_id {
            return Err("invalid chain id".into());
        }
        if tx.nonce != self.nonce {
            let high = tx.nonce > self.nonce;
            return Err(if high { "nonce too high" } else { "nonce too low" }.into());
        }
        if let Some((known, other)) = &self.pool {
            if *known == hash {
                return Err("already known".into());
            }
            let outbids = |new: u128, old: u128| new * 10 >= old * 11;
            if !outbids(tx.max_fee_per_gas, other.max_fee_per_gas)
                || !outbids(tx.max_priority_fee_per_gas, other.max_priority_fee_per_gas)
            {
                return Err("replacement transaction underpriced".into());
            }
        }
        self.pool = Some((hash, tx));
        if self.mines {
            self.mine();
        }
        Ok(hash)
    }

    fn answer(&mut self, method: &str, params: &Value) -> Result<Value, String> {
        Ok(match method {
            "eth_chainId" => json!(U64::from(self.chain_id)),
            "eth_getTransactionCount" => json!(U64::from(self.nonce)),
            "eth_getBalance" => json!(U256::from(self.balance_wei)),
            "eth_maxPriorityFeePerGas" => json!(U256::from(GWEI)),
            "eth_estimateGas" => json!(U64::from(100_000)),
            "eth_getBlockByNumber" => {
                let (number, base) = (U64::from(self.block), U256::from(self.base_wei));
                json!({ "number": number, "baseFeePerGas": base, "hash": "0x00" })
            }
            "eth_getTransactionReceipt" => {
                let hash: B256 = serde_json::from_value(params[0].clone()).unwrap();
                match self.mined.get(&hash) {
                    None => Value::Null,
                    Some(_) => json!({
                        "transactionHash": hash, "blockNumber": U64::from(self.block), "status": "0x1",
                        "gasUsed": "0x5208", "logs": [], "type": "0x2", "effectiveGasPrice": "0x3",
                    }),
                }
            }
            "eth_sendRawTransaction" => {
                json!(self.take(&hex::decode(params[0].as_str().unwrap()).unwrap())?)
            }
            other => panic!("{other} is asked"),
        })
    }
}

struct Paper(std::sync::Mutex<State>);

#[async_trait]
impl AskChain for Paper {
    fn name(&self) -> &str {
        "golem-base"
    }

    async fn request(&self, method: &str, params: &RawValue) -> Result<Box<RawValue>, ChainError> {
        let mut state = self.0.lock().unwrap();
        if state.is_down {
            return Err(ChainError::Unreachable {
                chain: "golem-base".into(),
                reasons: "down".into(),
            });
        }
        let params = serde_json::from_str(params.get()).unwrap();
        match state.answer(method, &params) {
            Ok(answer) => Ok(serde_json::value::to_raw_value(&answer).unwrap()),
            Err(message) => {
                Err(ChainError::Refused(RpcError { code: -32000, message, data: None }))
            }
        }
    }
}

struct Fixture {
    paper: Arc<Paper>,
    signer: PrivateKeySigner,
    notes: Arc<Notes>,
    sequence: Sequence,
}

/// What was written down.
#[derive(Default)]
struct Notes {
    text: std::sync::Mutex<Option<String>>,
    is_full: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl Memory for Notes {
    async fn recall(&self, _: &str) -> Result<Option<String>, MemoryError> {
        Ok(self.text.lock().unwrap().clone())
    }

    async fn remember(&self, _: &str, text: String) -> Result<(), MemoryError> {
        if self.is_full.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(MemoryError("the disk is full".into()));
        }
        *self.text.lock().unwrap() = Some(text);
        Ok(())
    }
}

impl Fixture {
    fn new() -> Fixture {
        let state = State {
            chain_id: 1337,
            nonce: 0,
            balance_wei: 10_u128.pow(18),
            base_wei: GWEI,
            block: 100,
            mines: true,
            is_down: false,
            pool: None,
            mined: HashMap::new(),
            order: Vec::new(),
            refusals: VecDeque::new(),
            before_next: None,
        };
        Fixture {
            paper: Arc::new(Paper(state.into())),
            signer: PrivateKeySigner::from_bytes(&B256::repeat_byte(0x17)).unwrap(),
            sequence: Sequence::new(Arc::<Notes>::default()),
            notes: Arc::default(),
        }
        .with_memory()
    }

    fn with_memory(mut self) -> Fixture {
        self.restart();
        self
    }

    /// What was only known to the process is gone.
    fn restart(&mut self) {
        self.sequence = Sequence::new(Arc::<Notes>::clone(&self.notes));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.paper.0.lock().unwrap()
    }

    /// What was mined, by the first byte of its data.
    fn mined(&self) -> Vec<u8> {
        self.state().order.iter().map(|tx| tx.input[0]).collect()
    }

    async fn send(&self, what: u8) -> Result<Receipt, ChainError> {
        self.sender().send(call(what, None), WAITS).await
    }

    async fn send_once(&self, what: u8, key: &str) -> Result<Receipt, ChainError> {
        self.sender().send(call(what, Some(key)), WAITS).await
    }

    fn sender(&self) -> Sender<'_> {
        Sender {
            chain: Arc::<Paper>::clone(&self.paper),
            sequence: &self.sequence,
            signer: &self.signer,
            max_gas_price_wei: CAP_WEI,
        }
    }

    async fn has_under_way(&self, key: &str) -> bool {
        self.sequence.has_under_way("golem-base", key).await.unwrap()
    }
}

fn call(what: u8, key: Option<&str>) -> Call {
    Call {
        to: Address::repeat_byte(0x60),
        data: Bytes::from(vec![what]),
        value_wei: U256::ZERO,
        gas_limit: None,
        key: key.map(str::to_owned),
    }
}

#[tokio::test(start_paused = true)]
async fn transactions_go_one_after_the_other_with_room_for_gas() {
    let fixture = Fixture::new();
    let (one, two, three) = tokio::join!(fixture.send(1), fixture.send(2), fixture.send(3));
    assert!(one.unwrap().succeeded() && two.is_ok() && three.is_ok());
    assert_eq!(fixture.mined(), [1, 2, 3]);
    let state = fixture.state();
    let tx = &state.order[2];
    assert_eq!((tx.nonce, tx.gas_limit, tx.chain_id), (2, 120_000, 1337));
    assert_eq!((tx.max_fee_per_gas, tx.max_priority_fee_per_gas), (3 * GWEI, GWEI));
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_replaced_by_the_next_and_never_mined_beside_it() {
    let fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(matches!(fixture.send(1).await, Err(ChainError::NotMined { .. })));
    let hung = fixture.state().pool.clone().unwrap().1;
    fixture.state().mines = true;
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [2]);
    let state = fixture.state();
    assert!(state.order[0].max_fee_per_gas > hung.max_fee_per_gas && state.order[0].nonce == 0);
}

#[tokio::test(start_paused = true)]
async fn the_same_again_is_not_sent_twice_when_the_first_was_mined_after_all() {
    let fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send(1).await.is_err());
    // Cut off in the middle of its wait, as a call of a plugin is.
    assert!(tokio::time::timeout(Duration::from_secs(3), fixture.send(1)).await.is_err());
    fixture.state().mine();
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.mined(), [1]);
    fixture.state().mines = true;
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.mined(), [1, 1], "what was asked for anew is done anew");
}

#[tokio::test(start_paused = true)]
async fn one_that_blocks_pass_over_is_offered_more_for_and_one_on_a_chain_that_stands_still_is_not()
{
    let fixture = Fixture::new();
    fixture.state().mines = false;
    let still = fixture.send(1).await;
    assert!(matches!(still, Err(ChainError::NotMined { .. })));
    assert_eq!(fixture.state().pool.as_ref().unwrap().1.max_fee_per_gas, 3 * GWEI);
    let blocks = async {
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut state = fixture.state();
            state.base_wei = 5 * GWEI;
            state.mine();
        }
    };
    let (sent, ()) = tokio::join!(fixture.send(1), blocks);
    sent.unwrap();
    assert_eq!(fixture.mined(), [1]);
    assert!(fixture.state().order[0].max_fee_per_gas >= 5 * GWEI);
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_remembers_is_outbid() {
    let mut fixture = Fixture::new();
    fixture.state().mines = false;
    fixture.state().base_wei = 30 * GWEI;
    assert!(fixture.send(1).await.is_err());
    *fixture.notes.text.lock().unwrap() = None;
    fixture.restart();
    fixture.state().base_wei = GWEI;
    fixture.state().mines = true;
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [2]);
}

#[tokio::test(start_paused = true)]
async fn when_the_hanging_one_is_mined_in_the_last_moment_another_is_not_sent_after_it() {
    let fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send(1).await.is_err());
    fixture.state().before_next = Some(State::mine);
    assert!(matches!(fixture.send(2).await, Err(ChainError::Superseded { .. })));
    assert_eq!(fixture.mined(), [1]);
    fixture.state().mines = true;
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_number_that_somebody_else_took_and_a_base_fee_that_rose_are_only_steps() {
    let fixture = Fixture::new();
    fixture.state().before_next = Some(|state| state.nonce = 7);
    fixture.state().refusals = ["max fee per gas less than block base fee"].into();
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.state().order[0].nonce, 7);
    fixture.state().refusals = ["already known"].into();
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [1, 2], "what a node only thought it knew is sent again");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_pay_and_what_costs_too_much_sends_nothing_and_says_what_to_do() {
    let fixture = Fixture::new();
    fixture.state().balance_wei = 5;
    let text = fixture.send(1).await.unwrap_err().to_string();
    let address = fixture.signer.address().to_string();
    for part in [&address, "0.000000000000000005 ETH", "0.00036", "wallet faucet"] {
        assert!(text.contains(part), "{text}");
    }
    fixture.state().balance_wei = 10_u128.pow(18);
    fixture.state().base_wei = 2 * CAP_WEI;
    let text = fixture.send(1).await.unwrap_err().to_string();
    assert!(
        text.contains("costs 401 gwei") && text.contains("MAX_GAS_PRICE_GWEI allows 200"),
        "{text}"
    );
    fixture.state().base_wei = GWEI;
    fixture.state().refusals = ["insufficient funds for gas * price + value"].into();
    assert!(matches!(fixture.send(1).await, Err(ChainError::InsufficientBalance { .. })));
    fixture.state().refusals = ["intrinsic gas too low"].into();
    assert!(matches!(fixture.send(1).await, Err(ChainError::Refused(_))));
    assert!(fixture.state().pool.is_none());
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.mined(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_was_reset_or_is_another_one_is_begun_anew() {
    let fixture = Fixture::new();
    fixture.state().nonce = 5;
    fixture.state().mines = false;
    assert!(fixture.send(1).await.is_err());
    for (chain_id, nonce) in [(1337, 0), (42, 0)] {
        {
            let mut state = fixture.state();
            (state.chain_id, state.nonce, state.block) = (chain_id, nonce, 0);
            (state.pool, state.mines) = (None, true);
            state.mined.clear();
        }
        fixture.send(2).await.unwrap();
    }
    assert_eq!(fixture.mined(), [2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_goes_away_after_the_transaction_was_sent_is_waited_for() {
    let fixture = Fixture::new();
    fixture.state().mines = false;
    let outage = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fixture.state().is_down = true;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let mut state = fixture.state();
        state.is_down = false;
        // It has lost what was not mined.
        state.pool = None;
        state.mines = true;
    };
    let (sent, ()) = tokio::join!(fixture.send(1), outage);
    sent.unwrap();
    assert_eq!(fixture.mined(), [1]);
    fixture.state().is_down = true;
    assert!(matches!(fixture.send(2).await, Err(ChainError::Unreachable { .. })));
}

#[tokio::test(start_paused = true)]
async fn one_that_was_mined_while_the_provider_was_down_is_not_sent_again() {
    let mut fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send(1).await.is_err());
    fixture.restart();
    fixture.state().mine();
    fixture.state().mines = true;
    let receipt = fixture.send(1).await.unwrap();
    assert_eq!(receipt.cost_wei(), Some(U256::from(3 * 21_000)));
    assert_eq!(fixture.mined(), [1]);
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.mined(), [1, 1], "what was asked for anew is done anew");
}

#[tokio::test(start_paused = true)]
async fn one_that_was_signed_before_a_crash_goes_out_with_its_number() {
    let mut fixture = Fixture::new();
    fixture.state().mines = false;
    // Cut off between the writing and the sending: the node never sees it.
    fixture.state().refusals = ["internal error"].into();
    assert!(fixture.send(1).await.is_err());
    fixture.state().is_down = false;
    assert!(fixture.send(1).await.is_err());
    fixture.restart();
    assert!(tokio::time::timeout(Duration::from_secs(3), fixture.send(1)).await.is_err());
    let offered = fixture.state().pool.clone().unwrap().1;
    assert_eq!((offered.nonce, offered.max_fee_per_gas), (0, 3 * GWEI), "as it was signed");
    fixture.restart();
    fixture.state().mines = true;
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [2], "the next call takes its place");
}

#[tokio::test(start_paused = true)]
async fn a_call_with_a_key_is_done_once_until_its_caller_is_done_with_it() {
    let mut fixture = Fixture::new();
    let first = fixture.send_once(1, "a").await.unwrap();
    // Its caller died before it could write that down.
    fixture.restart();
    assert!(fixture.has_under_way("a").await && !fixture.has_under_way("b").await);
    assert_eq!(fixture.send_once(1, "a").await.unwrap(), first);
    // The same data for another reason is another call, and does not get in its way.
    assert_ne!(fixture.send_once(1, "b").await.unwrap(), first);
    fixture.restart();
    assert_eq!(fixture.send_once(1, "a").await.unwrap(), first);
    assert_eq!(fixture.mined(), [1, 1]);
    fixture.sequence.forget("golem-base", "a").await;
    fixture.restart();
    assert!(!fixture.has_under_way("a").await && fixture.has_under_way("b").await);
    // On another chain nothing was done.
    fixture.state().chain_id = 42;
    fixture.send_once(1, "b").await.unwrap();
    assert_eq!(fixture.mined(), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_mined_although_another_was_to_take_its_place_is_remembered() {
    let mut fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send_once(1, "a").await.is_err());
    let first = fixture.state().pool.clone();
    assert!(fixture.send(2).await.is_err());
    // A miner that had not heard of the better offer took the first.
    fixture.state().pool = first;
    fixture.restart();
    fixture.state().mine();
    fixture.state().mines = true;
    fixture.send(3).await.unwrap();
    assert!(fixture.has_under_way("a").await);
    fixture.send_once(1, "a").await.unwrap();
    fixture.send(2).await.unwrap();
    assert_eq!(fixture.mined(), [1, 3, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_sent() {
    let fixture = Fixture::new();
    let full = |is_full| fixture.notes.is_full.store(is_full, std::sync::atomic::Ordering::Relaxed);
    full(true);
    let refused = fixture.send(1).await.unwrap_err();
    assert!(matches!(&refused, ChainError::Memory { .. }), "{refused}");
    assert!(fixture.state().pool.is_none() && fixture.mined().is_empty());
    full(false);
    fixture.send(1).await.unwrap();
    assert_eq!(fixture.mined(), [1]);
}

#[tokio::test(start_paused = true)]
async fn what_another_key_left_is_not_taken_for_ours() {
    let mut fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send_once(1, "a").await.is_err());
    fixture.signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(0x18)).unwrap();
    fixture.restart();
    fixture.state().pool = None;
    fixture.state().mines = true;
    fixture.send_once(1, "a").await.unwrap();
    assert_eq!(fixture.mined(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lags_behind_does_not_make_anything_happen_twice() {
    let fixture = Fixture::new();
    fixture.state().mines = false;
    assert!(fixture.send(1).await.is_err());
    // The number is taken, and its receipt comes a moment later.
    fixture.state().nonce = 1;
    let late = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut state = fixture.state();
        let (hash, tx) = state.pool.take().unwrap();
        state.order.push(tx.clone());
        state.mined.insert(hash, tx);
    };
    let (sent, ()) = tokio::join!(fixture.send(1), late);
    sent.unwrap();
    assert_eq!(fixture.mined(), [1]);
}

#[tokio::test(start_paused = true)]
async fn what_a_call_would_cost_is_told_without_sending_it() {
    let fixture = Fixture::new();
    let quote = fixture.sender().quote(&call(1, None)).await.unwrap();
    assert_eq!(quote, Quote { gas: 100_000, price_wei: 2 * GWEI });
    assert_eq!(quote.cost_wei(), U256::from(200_000 * GWEI));
    assert!(fixture.mined().is_empty() && fixture.state().pool.is_none());
}

#[test]
fn transactions_are_signed_as_those_of_the_published_client() {
    let vectors = include_str!("../../../../tests/vectors/golembase_vectors.json");
    let vectors: Value = serde_json::from_str(vectors).unwrap();
    let signer: PrivateKeySigner = vectors["signer"]["key"].as_str().unwrap().parse().unwrap();
    let list = vectors["vectors"].as_array().unwrap();
    assert_eq!(list.len(), 11);
    for vector in list {
        let signed = &vector["signed_eip1559"];
        let number = |key: &str| signed[key].as_u64().unwrap();
        let mut transaction = TxEip1559 {
            chain_id: number("chainId"),
            nonce: number("nonce"),
            gas_limit: number("gas"),
            max_fee_per_gas: number("maxFeePerGas").into(),
            max_priority_fee_per_gas: number("maxPriorityFeePerGas").into(),
            to: TxKind::Call(vectors["to"].as_str().unwrap().parse().unwrap()),
            input: vector["rlp"].as_str().unwrap().parse().unwrap(),
            ..TxEip1559::default()
        };
        let (raw, hash) = sign(&mut transaction, &signer).unwrap();
        assert_eq!(raw.to_string(), signed["raw"].as_str().unwrap(), "{}", vector["name"]);
        assert_eq!(hash.to_string(), signed["txHash"].as_str().unwrap());
    }
}
