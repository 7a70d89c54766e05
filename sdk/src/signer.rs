//! What the provider's Ethereum key does for a plugin. The key itself stays with the provider.

pub use crate::bindings::golem::provider::signer::{
    Event, Receipt, Transaction, address, sign_message,
};

use core::time::Duration;

use crate::{bindings::golem::provider::signer as import, clock, evm::Failure};

/// Signs a transaction, sends it, and waits until it is mined, for at most two minutes. Grant: `transactions`, by chain and address.
///
/// # Errors
/// It was refused, or was not mined in time: then it may still be, so look before repeating.
pub fn send_transaction(
    chain: &str,
    transaction: &Transaction,
    timeout: Duration,
) -> Result<Receipt, Failure> {
    import::send_transaction(chain, transaction, clock::millis(timeout))
}

impl Transaction {
    /// A call of a contract that carries no money.
    pub fn call(to: impl Into<String>, data: Vec<u8>) -> Self {
        Self { to: to.into(), data, value_wei: "0".into(), gas_limit: None }
    }
}
