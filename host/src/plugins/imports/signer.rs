//! `signer`: what the provider's key does for a plugin, which never sees it.

use std::time::Duration;

use super::ethereum;
use crate::plugins::{
    bindings::{
        Error,
        golem::provider::{
            evm::Failure,
            signer::{Event, Host, Receipt, Transaction},
        },
    },
    call::CallState,
    limits::{LISTED, SIGNED_BYTES},
};

/// However long a plugin would wait.
const LONGEST: Duration = Duration::from_secs(120);

impl Host for CallState {
    fn address(&mut self) -> String {
        self.plugin.services.ethereum.address()
    }

    async fn sign_message(&mut self, message: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.plugin.grants.messages()?;
        if message.len() > SIGNED_BYTES {
            return Err(Error::InvalidArgument(format!(
                "a message of {} bytes is not signed, only one of at most {SIGNED_BYTES}",
                message.len()
            )));
        }
        Ok(self.plugin.services.ethereum.sign_message(&message).await?.to_vec())
    }

    async fn send_transaction(
        &mut self,
        chain: String,
        transaction: Transaction,
        timeout_ms: u32,
    ) -> Result<Receipt, Failure> {
        let wrong = |text: String| Failure::Provider(Error::InvalidArgument(text));
        let value_wei: u128 = transaction.value_wei.parse().map_err(|_| {
            wrong(format!("`{}` is no number of wei", transaction.value_wei.escape_debug()))
        })?;
        self.plugin
            .grants
            .transaction(&chain, &transaction.to, value_wei)
            .map_err(|refused| Failure::Provider(refused.into()))?;
        // The grant has just seen that it is an address; whatever else would be, is refused.
        let to = transaction.to.strip_prefix("0x").and_then(|digits| {
            let mut bytes = [0; 20];
            hex::decode_to_slice(digits, &mut bytes).ok().map(|()| bytes)
        });
        let to = to.ok_or_else(|| wrong(format!("`{}` is no address", transaction.to)))?;
        let gas_limit = transaction.gas_limit;
        let transaction =
            ethereum::Transaction { to, data: transaction.data, value_wei, gas_limit };
        let timeout = Duration::from_millis(timeout_ms.into()).min(LONGEST);
        let ethereum = &self.plugin.services.ethereum;
        let receipt = ethereum.send_transaction(&chain, transaction, timeout).await?;
        let event = |event: ethereum::Event| Event {
            address: format!("0x{}", hex::encode(event.address)),
            topics: event.topics.iter().map(|topic| topic.to_vec()).collect(),
            data: event.data,
        };
        Ok(Receipt {
            transaction_hash: receipt.transaction_hash.to_vec(),
            block_number: receipt.block_number,
            succeeded: receipt.succeeded,
            gas_used: receipt.gas_used,
            events: receipt.events.into_iter().take(LISTED).map(event).collect(),
        })
    }
}
