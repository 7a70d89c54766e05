//! Why a call failed, out of what a node refused it with. Nodes disagree: some put the contract's answer as hex into `data`, some
//! an object that has it somewhere inside. Pure.

use alloy::primitives::{U256, hex};
use serde_json::Value;

use super::error::RpcError;

/// `Error(string)` and `Panic(uint256)`.
const ERROR: [u8; 4] = [0x08, 0xc3, 0x79, 0xa0];
const PANIC: [u8; 4] = [0x4e, 0x48, 0x7b, 0x71];

/// EIP-1474 and geth's for a call that failed.
const REVERTED: i64 = 3;

/// In lower case: what nodes say of a call that fails whatever is paid for it.
const TEXTS: [&str; 5] =
    ["revert", "out of gas", "gas required exceeds", "invalid opcode", "invalid jump"];

/// The words of a contract are its author's, who may be anybody.
const MOST_CHARACTERS: usize = 200;

impl RpcError {
    /// Why the call fails, if this says that it would, whoever else is asked.
    pub fn failed_call(&self) -> Option<String> {
        let data = self.data.as_deref().and_then(|data| serde_json::from_str(data).ok());
        let reason = data.as_ref().and_then(|data: &Value| said_in(data, 4));
        let message = self.message.to_ascii_lowercase();
        let fails = reason.is_some()
            || self.code == REVERTED
            || TEXTS.iter().any(|text| message.contains(text));
        fails.then(|| reason.unwrap_or_else(|| printable(&self.message)))
    }
}

/// The first hex text in here that a contract answers a failed call with.
fn said_in(data: &Value, depth: u8) -> Option<String> {
    match data {
        Value::String(text) => {
            let hex = text.strip_prefix("Reverted ").unwrap_or(text);
            said(&hex::decode(hex.strip_prefix("0x")?).ok()?)
        }
        Value::Object(fields) if depth > 0 => {
            fields.values().find_map(|field| said_in(field, depth - 1))
        }
        _ => None,
    }
}

/// What a contract said.
fn said(answer: &[u8]) -> Option<String> {
    let (selector, rest) = answer.split_first_chunk::<4>()?;
    let word = |index: usize| rest.get(index * 32..index * 32 + 32).map(U256::from_be_slice);
    match *selector {
        ERROR => {
            let start = usize::try_from(word(0)?).ok()?;
            let text = start.checked_add(32)?;
            let length = usize::try_from(U256::from_be_slice(rest.get(start..text)?)).ok()?;
            let bytes = rest.get(text..text.checked_add(length)?)?;
            Some(printable(&String::from_utf8_lossy(bytes)))
        }
        PANIC => Some(format!("panic {:#x}", word(0)?)),
        _ => None,
    }
}

fn printable(text: &str) -> String {
    let plain = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    plain.take(MOST_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_RECIPIENT: &str = "0x08c379a00000000000000000000000000000000000000000000000000000000000000020000000000000000000000000000000000000000000000000000000000000000d6e6f7420726563697069656e7400000000000000000000000000000000000000";

    fn reason(code: i64, message: &str, data: Option<String>) -> Option<String> {
        RpcError { code, message: message.to_owned(), data }.failed_call()
    }

    #[test]
    fn both_shapes_of_refusals_say_the_same() {
        let hex = format!("\"{NOT_RECIPIENT}\"");
        let object = format!(r#"{{"message":"reverted","data":{{"data":"{NOT_RECIPIENT}"}}}}"#);
        for (code, data) in [(3, &hex), (-32603, &object)] {
            assert_eq!(
                reason(code, "execution failed", Some(data.clone())).as_deref(),
                Some("not recipient")
            );
        }
        let no_data = reason(-32000, "execution reverted: no-stream", None);
        assert_eq!(no_data.as_deref(), Some("execution reverted: no-stream"));
        let gas = reason(-32003, "Out of gas: gas required exceeds allowance: 300000", None);
        assert!(gas.is_some());
        let panic = format!("\"0x4e487b71{:064x}\"", 0x11);
        assert_eq!(reason(3, "execution reverted", Some(panic)).as_deref(), Some("panic 0x11"));
    }

    #[test]
    fn what_says_nothing_of_the_call_is_no_verdict_on_it() {
        assert_eq!(reason(-32005, "limit exceeded", None), None);
        assert_eq!(reason(-32602, "invalid argument 0", Some("\"0x\"".to_owned())), None);
    }

    #[test]
    fn nonsense_of_a_contract_is_bounded() {
        let endless = format!("\"0x08c379a0{}\"", "ff".repeat(64));
        assert_eq!(
            reason(3, "execution\nreverted", Some(endless)).as_deref(),
            Some("execution reverted")
        );
        assert_eq!(reason(3, &"x".repeat(10_000), None).unwrap().len(), MOST_CHARACTERS);
    }
}
