//! The payment verifier for streams: money that flows to the provider by the second, out of a deposit in a contract.
//!
//! It reads what stands in the contract, all of it at one block, and writes the calls that collect it; the provider
//! decides, signs and sends. A component without state. Modules, from the inside out:
//!
//! | Module | What it decides or does |
//! |---|---|
//! | `settings` | which contract, which tokens |
//! | `contract` | the contract's ABI, and what its answers mean |
//! | `chain` | questions to the chain's nodes, pinned to a block |
//!
//! Whatever is wrong with nodes or contract fails the whole call, and with different kinds of errors: neither is ever
//! evidence against a stream.

mod chain;
mod contract;
mod settings;

use alloy_primitives::U256;
use golem_provider_sdk::{
    Description, Finding, PaymentVerifier, Plugin, Result,
    evm::PAYMENTS,
    payment_verifier::{Call, Changes, Event, Payout, Snapshot, Terms},
};

/// The verifier.
pub struct StreamPayment;

impl Plugin for StreamPayment {
    fn describe() -> Description {
        Description {
            name: "stream-payment".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "Reads the streams that requestors pay for their machines with".to_owned(),
            license: env!("CARGO_PKG_LICENSE").to_owned(),
            settings_schema: settings::schema(),
        }
    }

    /// Asks no node: one that is down may be up when somebody pays, and a provider does not wait for it to start. Whether the
    /// contract is the right one is seen by every `read`, also by one of no payments.
    fn probe() -> Result<Vec<Finding>> {
        let settings = settings::load()?;
        if settings.wants_nothing() {
            return Ok(vec![Finding::info(
                "no payment contract is set, so no streams are read; GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS names one",
            )]);
        }
        let usable = settings.contract().and_then(|_| settings.tokens());
        Ok(match usable {
            Ok(_) => Vec::new(),
            Err(error) => vec![Finding::blocking(
                error.message(),
                "correct GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS or GOLEM_PROVIDER_GLM_TOKEN_ADDRESS",
            )],
        })
    }
}

impl PaymentVerifier for StreamPayment {
    fn terms() -> Result<Terms> {
        let settings = settings::load()?;
        Ok(Terms {
            chain: PAYMENTS.to_owned(),
            contract: settings.contract()?.to_checksum(None),
            tokens: settings.tokens()?.iter().map(|token| token.to_checksum(None)).collect(),
        })
    }

    fn check_reference(reference: String) -> Result<String> {
        contract::stream_id(&reference).map(|id| id.to_string())
    }

    fn read(references: Vec<String>, confirmations: u32) -> Result<Snapshot> {
        let contract = settings::load()?.contract()?;
        let ids: Vec<U256> = references
            .iter()
            .map(|reference| contract::stream_id(reference))
            .collect::<Result<_>>()?;
        chain::snapshot(&chain::Configured, contract, &ids, confirmations)
    }

    fn changed_since(block: u64) -> Result<Changes> {
        let contract = settings::load()?.contract()?;
        chain::changes(&chain::Configured, contract, block)
    }

    fn collect(reference: String) -> Result<Call> {
        contract::stream_id(&reference).map(contract::withdrawal)
    }

    fn close(reference: String) -> Result<Call> {
        contract::stream_id(&reference).map(contract::termination)
    }

    fn payouts(events: Vec<Event>) -> Result<Vec<Payout>> {
        contract::payouts(settings::load()?.contract()?, &events)
    }
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_payment_verifier!(StreamPayment);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_needs_nothing_of_the_provider() {
        assert_eq!(StreamPayment::describe().name, "stream-payment");
    }
}
