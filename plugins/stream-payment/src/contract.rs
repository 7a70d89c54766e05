//! What the payment contract understands and answers: its ABI, and what the answers mean. Pure.
//!
//! An answer in another shape is another contract: a mistake in the settings, and no evidence against any stream.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{Panic, Revert, SolCall, SolError, SolEvent};
use golem_provider_sdk::{
    Error, Result,
    evm::RpcError,
    payment_verifier::{Call, Event, Payment, Payout, Standing},
};
use serde_json::Value;

use self::abi::{
    Halted, StreamCreated, Terminated, ToppedUp, Withdraw, streamsCall, terminateCall, withdrawCall,
};

// The macro makes a function of all the values of an event.
#[allow(clippy::too_many_arguments)]
mod abi {
    alloy_sol_types::sol! {
        function streams(uint256 streamId) external view returns (
            address token, address sender, address recipient, uint128 startTime, uint128 stopTime,
            uint128 ratePerSecond, uint256 deposit, uint256 withdrawn, bool halted
        );
        function withdraw(uint256 streamId) external;
        function terminate(uint256 streamId) external;

        event StreamCreated(
            uint256 indexed streamId, address indexed sender, address indexed recipient, address token,
            uint256 deposit, uint256 ratePerSecond, uint256 startTime, uint256 stopTime
        );
        event Withdraw(uint256 indexed streamId, address indexed recipient, uint256 amount);
        event Terminated(uint256 indexed streamId, uint256 senderRefund, uint256 recipientPayout);
        event Halted(uint256 indexed streamId);
        event ToppedUp(uint256 indexed streamId, uint256 amount, uint128 newStopTime);
    }
}

/// Nine words. Other versions of the contract answer with more.
const ANSWER_BYTES: usize = 288;

/// A withdrawal was measured at 70,000, that of a plain token at 93,000; what a token does on top of that is bounded by this.
const WITHDRAW_GAS: u64 = 180_000;
/// Pays both sides, of which the payer may be a contract.
const TERMINATE_GAS: u64 = 250_000;

/// More than this of what a contract says is not shown.
const REASON_CHARS: usize = 200;

/// A node's code for a call that reverted, where it has one.
const REVERTED: i64 = 3;

/// Everything that happens to a stream. The stream's id is the first indexed value of each.
pub const EVENTS: [B256; 5] = [
    StreamCreated::SIGNATURE_HASH,
    Withdraw::SIGNATURE_HASH,
    Terminated::SIGNATURE_HASH,
    Halted::SIGNATURE_HASH,
    ToppedUp::SIGNATURE_HASH,
];

/// The number of a stream, in the decimal digits that requestors are told by the contract.
///
/// # Errors
/// [`Error::InvalidArgument`], with what it should look like.
pub fn stream_id(reference: &str) -> Result<U256> {
    let digits = !reference.is_empty() && reference.bytes().all(|byte| byte.is_ascii_digit());
    let short = reference.len() <= 100;
    let id = (digits && short).then(|| U256::from_str_radix(reference, 10).ok()).flatten();
    id.ok_or_else(|| {
        let shown: String = reference.chars().take(100).collect();
        Error::InvalidArgument(format!(
            "a payment is named by the number of its stream, such as 17, and `{shown}` is none"
        ))
    })
}

/// The question for a stream.
pub fn question(id: U256) -> Bytes {
    streamsCall { streamId: id }.abi_encode().into()
}

/// The call by which the recipient takes what has run up.
pub fn withdrawal(id: U256) -> Call {
    let data = withdrawCall { streamId: id }.abi_encode();
    Call { data, gas_limit: WITHDRAW_GAS }
}

/// The call by which either side ends a stream.
pub fn termination(id: U256) -> Call {
    let data = terminateCall { streamId: id }.abi_encode();
    Call { data, gas_limit: TERMINATE_GAS }
}

/// What an answer to [`question`] means; none for a stream that never was.
///
/// # Errors
/// [`Error::FailedPrecondition`]: another contract answered.
pub fn payment(contract: Address, answer: &[u8]) -> Result<Option<Payment>> {
    if answer.len() != ANSWER_BYTES {
        return Err(another(
            contract,
            &format!("it answers with {} bytes, where {ANSWER_BYTES} are due", answer.len()),
        ));
    }
    let stream = streamsCall::abi_decode_returns_validate(answer)
        .map_err(|error| another(contract, &format!("its answer makes no sense: {error}")))?;
    // Whoever opens a stream is its sender for good.
    if stream.sender.is_zero() {
        return if answer.iter().all(|byte| *byte == 0) {
            Ok(None)
        } else {
            Err(another(contract, "it answers with a stream that nobody has opened"))
        };
    }
    let standing = if stream.recipient.is_zero() {
        Standing::Closed
    } else if stream.halted {
        Standing::Halted
    } else {
        Standing::Open
    };
    Ok(Some(Payment {
        standing,
        token: stream.token.to_checksum(None),
        payer: stream.sender.to_checksum(None),
        payee: stream.recipient.to_checksum(None),
        rate_per_second: stream.ratePerSecond.to_string(),
        start_time: stream.startTime.to_string(),
        stop_time: stream.stopTime.to_string(),
        deposit: stream.deposit.to_string(),
        withdrawn: stream.withdrawn.to_string(),
    }))
}

/// What the recipients of streams got, by the events of one transaction.
///
/// # Errors
/// [`Error::FailedPrecondition`]: the contract tells of it in another way.
pub fn payouts(contract: Address, events: &[Event]) -> Result<Vec<Payout>> {
    let mut payouts = Vec::new();
    for event in events {
        let of_contract = event.address.parse().is_ok_and(|address: Address| address == contract);
        let topics: Option<Vec<B256>> =
            event.topics.iter().map(|topic| B256::try_from(topic.as_slice()).ok()).collect();
        let Some(topics) = topics.filter(|_| of_contract) else { continue };
        let strange = |error: alloy_sol_types::Error| {
            another(contract, &format!("it tells of a payout in another way: {error}"))
        };
        let (id, amount) = match topics.first() {
            Some(&Withdraw::SIGNATURE_HASH) => {
                let told =
                    Withdraw::decode_raw_log_validate(topics, &event.data).map_err(strange)?;
                (told.streamId, told.amount)
            }
            Some(&Terminated::SIGNATURE_HASH) => {
                let told =
                    Terminated::decode_raw_log_validate(topics, &event.data).map_err(strange)?;
                (told.streamId, told.recipientPayout)
            }
            _ => continue,
        };
        if !amount.is_zero() {
            payouts.push(Payout { reference: id.to_string(), amount: amount.to_string() });
        }
    }
    Ok(payouts)
}

/// Where there is no contract at all.
pub fn nobody(contract: Address) -> Error {
    Error::FailedPrecondition(format!(
        "there is no contract at {contract} on the chain that requestors pay on: correct GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS, or the nodes of that chain"
    ))
}

/// Where there is one that is not ours.
pub fn another(contract: Address, what: &str) -> Error {
    Error::FailedPrecondition(format!(
        "the contract at {contract} is not the payment contract that this plugin knows ({what}): correct GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS"
    ))
}

/// Why a call reverted, if it is a revert that the node tells of. Nodes agree on neither code nor shape: some answer code 3
/// with the contract's words in hexadecimal, others −32603 with an object that has them somewhere.
pub fn revert(refusal: &RpcError) -> Option<String> {
    let data: Option<Value> =
        refusal.data.as_deref().and_then(|data| serde_json::from_str(data).ok());
    let words = data.as_ref().and_then(|data| revert_words(data, 0));
    let says_so = refusal.message.to_ascii_lowercase().contains("revert");
    if refusal.code != REVERTED && !says_so && !words.as_ref().is_some_and(|words| is_reason(words))
    {
        return None;
    }
    Some(words.as_deref().and_then(reason).unwrap_or_else(|| "without a reason".to_owned()))
}

/// The first bytes in hexadecimal that are a reason, else the first that are none.
fn revert_words(data: &Value, depth: u32) -> Option<Vec<u8>> {
    const DEEPEST: u32 = 4;
    match data {
        Value::String(text) => {
            // Some put a word in front of it, and a hash of a transaction is no reason.
            let hexadecimal = text.strip_prefix("Reverted ").unwrap_or(text);
            let bytes: Bytes =
                hexadecimal.starts_with("0x").then(|| hexadecimal.parse().ok())??;
            Some(bytes.into())
        }
        Value::Object(fields) if depth < DEEPEST => {
            let found: Vec<Vec<u8>> =
                fields.values().filter_map(|value| revert_words(value, depth + 1)).collect();
            let best = found.iter().position(|words| is_reason(words)).unwrap_or(0);
            found.into_iter().nth(best)
        }
        _ => None,
    }
}

fn is_reason(words: &[u8]) -> bool {
    words.starts_with(&Revert::SELECTOR) || words.starts_with(&Panic::SELECTOR)
}

fn reason(words: &[u8]) -> Option<String> {
    let text = if let Ok(revert) = Revert::abi_decode(words) {
        revert.reason
    } else if let Ok(panic) = Panic::abi_decode(words) {
        format!("panic {:#x}", panic.code)
    } else {
        return None;
    };
    Some(text.chars().filter(|c| !c.is_control()).take(REASON_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn states() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/stream_states.json")).unwrap()
    }

    fn calls() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/stream_calls.json")).unwrap()
    }

    fn contract() -> Address {
        states()["addresses"]["StreamPayment"].as_str().unwrap().parse().unwrap()
    }

    fn bytes(value: &Value) -> Bytes {
        value.as_str().unwrap().parse().unwrap()
    }

    /// Small numbers are recorded as such, others as text.
    fn digits(value: &Value) -> String {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    }

    #[test]
    fn every_recorded_answer_is_read_as_it_was_meant() {
        let states = states();
        let cases = states["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 42);
        for case in cases {
            let (name, decoded) = (&case["case"], &case["decoded"]);
            let read = payment(contract(), &bytes(&case["raw"])).unwrap();
            let Some(read) = read else {
                assert!(name.as_str().unwrap().starts_with("unknown id"), "{name}");
                continue;
            };
            let standing = match (decoded["recipient"].as_str(), decoded["halted"].as_bool()) {
                (Some("0x0000000000000000000000000000000000000000"), _) => Standing::Closed,
                (_, Some(true)) => Standing::Halted,
                _ => Standing::Open,
            };
            let expected = Payment {
                standing,
                token: digits(&decoded["token"]),
                payer: digits(&decoded["sender"]),
                payee: digits(&decoded["recipient"]),
                rate_per_second: digits(&decoded["ratePerSecond"]),
                start_time: digits(&decoded["startTime"]),
                stop_time: digits(&decoded["stopTime"]),
                deposit: digits(&decoded["deposit"]),
                withdrawn: digits(&decoded["withdrawn"]),
            };
            assert_eq!(read, expected, "{name}");
        }
    }

    #[test]
    fn an_answer_of_another_shape_is_another_contract_and_names_it() {
        let good = bytes(&states()["cases"][3]["raw"]).to_vec();
        let words = calls()["return_words"].as_object().unwrap().clone();
        let other_sizes =
            words.values().map(|words| usize::try_from(words.as_u64().unwrap()).unwrap() * 32);
        for size in other_sizes.filter(|size| *size != ANSWER_BYTES).chain([0, 32, 287, 289]) {
            let mut answer = good.clone();
            answer.resize(size, 0);
            let error = payment(contract(), &answer).unwrap_err();
            let Error::FailedPrecondition(text) = error else { panic!("{error:?}") };
            assert!(text.contains(&contract().to_string()), "{text}");
            assert!(text.contains(&format!("{size} bytes")), "{text}");
        }
        // An address of 21 bytes, a time of 17, a truth that is neither.
        for (word, byte) in [(0, 11), (1, 0), (3, 15), (5, 0), (8, 30), (8, 31)] {
            let mut answer = good.clone();
            answer[word * 32 + byte] = 2;
            assert!(matches!(payment(contract(), &answer), Err(Error::FailedPrecondition(_))));
        }
        let mut without_sender = good;
        without_sender[32..64].fill(0);
        assert!(payment(contract(), &without_sender).is_err());
    }

    #[test]
    fn calls_and_topics_are_the_recorded_ones() {
        let calls = calls();
        let data = |name: &str| bytes(&calls["calls"][name]["calldata"]);
        let one = U256::from(1);
        assert_eq!(question(one), data("streams(uint256)"));
        assert_eq!(withdrawal(one).data, data("withdraw(uint256)"));
        assert_eq!(termination(one).data, data("terminate(uint256)"));
        let topics = calls["topics"].as_object().unwrap();
        assert_eq!(topics.len(), EVENTS.len());
        for (event, topic) in topics {
            let topic: B256 = topic.as_str().unwrap().parse().unwrap();
            assert!(EVENTS.contains(&topic), "{event}");
        }
    }

    #[test]
    fn a_stream_has_one_spelling() {
        for (spelling, id) in [("0", "0"), ("17", "17"), ("0017", "17")] {
            assert_eq!(stream_id(spelling).unwrap().to_string(), id);
        }
        let most = U256::MAX.to_string();
        assert_eq!(stream_id(&most).unwrap(), U256::MAX);
        let too_much = format!("{}6", &most[..most.len() - 1]);
        for wrong in
            ["", " ", "-1", "+1", "1.0", "1e3", "0x11", "1_000", "١٧", "seven", "1 ", &too_much]
        {
            assert!(matches!(stream_id(wrong), Err(Error::InvalidArgument(_))), "{wrong}");
        }
        let long = stream_id(&"1".repeat(1_000_000)).unwrap_err();
        assert!(long.message().len() < 300);
    }

    fn events(receipt: &str) -> Vec<Event> {
        let states = states();
        let logs = states[receipt]["logs"].as_array().unwrap();
        let event = |log: &Value| Event {
            address: log["address"].as_str().unwrap().to_owned(),
            topics: log["topics"].as_array().unwrap().iter().map(|t| bytes(t).to_vec()).collect(),
            data: bytes(&log["data"]).to_vec(),
        };
        logs.iter().map(event).collect()
    }

    #[test]
    fn payouts_are_what_the_contract_says_of_withdrawals_and_ends() {
        let paid = |receipt: &str| payouts(contract(), &events(receipt)).unwrap();
        let payout = |reference: &str, amount: &str| {
            vec![Payout { reference: reference.into(), amount: amount.into() }]
        };
        assert_eq!(paid("withdraw_receipt"), payout("1", "601000000000000"));
        assert_eq!(paid("terminate_receipt"), payout("2", "100000000000000"));
        for nothing in ["createStream_receipt", "createStream_erc20_receipt", "halt_receipt"] {
            assert_eq!(paid(nothing), []);
        }
        // Another contract may say whatever it likes.
        assert_eq!(payouts(Address::ZERO, &events("withdraw_receipt")).unwrap(), []);
        let mut cut = events("withdraw_receipt");
        cut[0].data.pop();
        assert!(matches!(payouts(contract(), &cut), Err(Error::FailedPrecondition(_))));
        cut[0].topics[0].pop();
        assert_eq!(payouts(contract(), &cut).unwrap(), []);
    }

    #[test]
    fn both_shapes_of_reverts_are_read_and_other_refusals_are_none() {
        let refusal = |code, message: &str, data: Value| RpcError {
            code,
            message: message.to_owned(),
            data: (!data.is_null()).then(|| data.to_string()),
        };
        let states = states();
        for recorded in states["reverts"].as_array().unwrap() {
            let error = &recorded["jsonrpc_error"];
            let data = error["data"].clone();
            let message = error["message"].as_str().unwrap();
            let expected = match message.strip_prefix("execution reverted: ") {
                Some("panic: arithmetic underflow or overflow (0x11)") => "panic 0x11",
                Some(reason) => reason,
                None => "without a reason",
            };
            let first = refusal(error["code"].as_i64().unwrap(), message, data.clone());
            assert_eq!(revert(&first).as_deref(), Some(expected), "{recorded}");
            let inner = json!({ "message": message, "data": data, "txHash": "0x1234" });
            let second = refusal(-32603, "Error: VM Exception while processing", inner.clone());
            let known = expected != "without a reason";
            assert_eq!(revert(&second).is_some(), known, "{recorded}");
            let third = refusal(-32603, "execution reverted", json!({ "originalError": inner }));
            assert_eq!(revert(&third).as_deref(), Some(expected), "{recorded}");
        }
        for (code, message) in [
            (-32000, "header not found"),
            (-32601, "the method eth_call does not exist"),
            (-32603, "internal error"),
            (-32005, "limit exceeded"),
        ] {
            assert_eq!(revert(&refusal(code, message, Value::Null)), None, "{message}");
            assert_eq!(revert(&refusal(code, message, json!("0x"))), None, "{message}");
        }
        let control = Revert { reason: "a\n\u{1b}[31mb".repeat(100) }.abi_encode();
        let shown = revert(&refusal(3, "", json!(Bytes::from(control)))).unwrap();
        assert!(shown.chars().count() <= REASON_CHARS && !shown.contains('\n'), "{shown}");
    }
}
