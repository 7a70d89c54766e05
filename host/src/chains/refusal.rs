//! What nodes mean when they refuse a transaction. They agree neither on codes nor on texts, so this is a list. Pure.

/// Why a node does not take a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has that very one: which is what is wanted.
    Known,
    /// One with its number was mined.
    NumberTaken,
    /// Its number is one of the future.
    NumberTooHigh,
    /// There is one with its number that offers as much, or nearly; or the node takes none that offers so little.
    Underbid,
    /// The base fee rose beyond what it offers.
    BelowBaseFee,
    /// The address cannot pay for it.
    TooPoor,
    /// Anything else; it will not be mined.
    Other,
}

/// By a part of the message in lower case. The first that fits counts.
const TEXTS: &[(&str, Refusal)] = &[
    ("already known", Refusal::Known),
    ("known transaction", Refusal::Known),
    ("alreadyknown", Refusal::Known),
    ("already imported", Refusal::Known),
    ("already in the mempool", Refusal::Known),
    ("nonce too low", Refusal::NumberTaken),
    ("nonce is too low", Refusal::NumberTaken),
    ("oldnonce", Refusal::NumberTaken),
    ("nonce has already been used", Refusal::NumberTaken),
    ("nonce too high", Refusal::NumberTooHigh),
    ("nonce is too high", Refusal::NumberTooHigh),
    ("nonce too distant", Refusal::NumberTooHigh),
    ("underpriced", Refusal::Underbid),
    ("fee too low", Refusal::Underbid),
    ("feetoolow", Refusal::Underbid),
    ("gas tip cap", Refusal::Underbid),
    ("less than block base fee", Refusal::BelowBaseFee),
    ("less than the block base fee", Refusal::BelowBaseFee),
    ("below the base fee", Refusal::BelowBaseFee),
    ("insufficient funds", Refusal::TooPoor),
    ("insufficient balance", Refusal::TooPoor),
    ("insufficientfunds", Refusal::TooPoor),
];

/// What the message says.
pub fn read(message: &str) -> Refusal {
    let message = message.to_ascii_lowercase();
    let fits = |(text, _): &&(&str, Refusal)| message.contains(text);
    TEXTS.iter().find(fits).map_or(Refusal::Other, |(_, refusal)| *refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_is_understood() {
        for (message, refusal) in [
            ("already known", Refusal::Known),
            ("transaction already imported", Refusal::Known),
            ("nonce too low: next nonce 5, tx nonce 4", Refusal::NumberTaken),
            ("nonce too low", Refusal::NumberTaken),
            ("replacement transaction underpriced", Refusal::Underbid),
            ("transaction underpriced: tip needed 1, tip permitted 0", Refusal::Underbid),
            (
                "max fee per gas less than block base fee: address 0x…, maxFeePerGas: 1, baseFee: 7",
                Refusal::BelowBaseFee,
            ),
            ("Insufficient funds for gas * price + value", Refusal::TooPoor),
            ("INTERNAL_ERROR: insufficient funds", Refusal::TooPoor),
            ("intrinsic gas too low", Refusal::Other),
            ("", Refusal::Other),
        ] {
            assert_eq!(read(message), refusal, "{message}");
        }
    }
}
