//! What plugins are given, behind the traits that `plugins` asks for: the store, and the chains with the provider's key.

use std::time::Duration;

use alloy::primitives::U256;
use async_trait::async_trait;

use crate::{
    chains::{self, ChainError, Chains},
    plugins::{
        Ethereum, Failure, FailureKind, StateError, StateStore,
        ethereum::{ChainFailure, Event, Receipt, Transaction},
    },
    store::{PluginState, StoreError},
};

#[async_trait]
impl Ethereum for Chains {
    fn address(&self) -> String {
        Self::address(self).to_checksum(None)
    }

    async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], Failure> {
        let failed = |error: ChainError| Failure::new(FailureKind::Internal, error.to_string());
        Self::sign_message(self, message).await.map_err(failed)
    }

    async fn request(
        &self,
        chain: &str,
        method: &str,
        params: &str,
    ) -> Result<String, ChainFailure> {
        let params =
            serde_json::value::RawValue::from_string(params.to_owned()).map_err(|error| {
                let text = format!("the parameters of {method} are no JSON: {error}");
                ChainFailure::Provider(Failure::new(FailureKind::InvalidArgument, text))
            })?;
        Ok(Self::request(self, chain, method, &params).await?.get().to_owned())
    }

    async fn send_transaction(
        &self,
        chain: &str,
        transaction: Transaction,
        timeout: Duration,
    ) -> Result<Receipt, ChainFailure> {
        let call = chains::Call {
            to: transaction.to.into(),
            data: transaction.data.into(),
            value_wei: U256::from(transaction.value_wei),
            gas_limit: transaction.gas_limit,
        };
        let receipt = Self::send_transaction(self, chain, call, timeout).await?;
        let event = |event: chains::Event| Event {
            address: event.address.into(),
            topics: event.topics.into_iter().map(Into::into).collect(),
            data: event.data.into(),
        };
        Ok(Receipt {
            transaction_hash: receipt.transaction_hash.into(),
            block_number: receipt.block_number.to(),
            succeeded: receipt.succeeded(),
            gas_used: receipt.gas_used.to(),
            events: receipt.logs.into_iter().map(event).collect(),
        })
    }
}

impl From<ChainError> for ChainFailure {
    fn from(error: ChainError) -> Self {
        let text = error.to_string();
        let kind = match error {
            ChainError::Refused { code, message, data } => {
                return Self::Rpc { code, message, data };
            }
            ChainError::NotConfigured { .. }
            | ChainError::GasTooExpensive { .. }
            | ChainError::InsufficientBalance { .. } => FailureKind::FailedPrecondition,
            ChainError::Unreachable { .. }
            | ChainError::Malformed { .. }
            | ChainError::Superseded { .. } => FailureKind::Unavailable,
            ChainError::Late { .. } | ChainError::NotMined { .. } => FailureKind::DeadlineExceeded,
            ChainError::NoToken { .. } => FailureKind::NotFound,
            ChainError::Signing(_) => FailureKind::Internal,
        };
        Self::Provider(Failure::new(kind, text))
    }
}

#[async_trait]
impl StateStore for PluginState {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Self::get(self, plugin, key).await.map_err(state_error)
    }

    async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        room_bytes: u64,
    ) -> Result<bool, StateError> {
        Self::set(self, plugin, key, value, room_bytes).await.map_err(state_error)
    }

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), StateError> {
        Self::delete(self, plugin, key).await.map_err(state_error)
    }

    async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StateError> {
        Self::keys(self, plugin, prefix).await.map_err(state_error)
    }
}

fn state_error(error: StoreError) -> StateError {
    StateError(error.to_string())
}
