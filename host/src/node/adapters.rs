//! What plugins are given, behind the traits that `plugins` asks for: the store, and the chains with the provider's key; and where
//! the chains keep what is under way.

use std::time::Duration;

use alloy::primitives::U256;
use async_trait::async_trait;
use serde_json::value::RawValue;

use crate::{
    chains::{self, ChainError, Chains, Memory, MemoryError, RpcError},
    payments::streams::{MachineState, Machines},
    plugins::{
        Ethereum, Failure, FailureKind, StateError, StateStore,
        ethereum::{ChainFailure, Event, Receipt, RpcRefusal, Transaction},
    },
    store::{PluginState, Store, StoreError},
    vms::{Phase, VmService},
};

#[async_trait]
impl Memory for Store {
    async fn recall(&self, chain: &str) -> Result<Option<String>, MemoryError> {
        let read = self.hanging_transaction(chain.to_owned()).await;
        read.map_err(|error| MemoryError(error.to_string()))
    }

    async fn remember(&self, chain: &str, text: String) -> Result<(), MemoryError> {
        let written = self.save_hanging_transaction(chain.to_owned(), text).await;
        written.map_err(|error| MemoryError(error.to_string()))
    }
}

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
        let params = json(method, params).map_err(ChainFailure::Provider)?;
        Ok(Self::request(self, chain, method, &params).await?.get().to_owned())
    }

    async fn request_all(
        &self,
        chain: &str,
        requests: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure> {
        let requests = requests
            .iter()
            .map(|(method, params)| Ok::<_, Failure>((method.clone(), json(method, params)?)));
        let requests: Vec<(String, Box<RawValue>)> = requests.collect::<Result<_, _>>()?;
        let answers = match self.nodes().request_all(chain, &requests).await.map_err(Into::into) {
            Ok(answers) => answers,
            Err(ChainFailure::Provider(failure)) => return Err(failure),
            Err(ChainFailure::Rpc(RpcRefusal { message, .. })) => {
                let text =
                    format!("the node of {chain} refuses several questions at once: {message}");
                return Err(Failure::new(FailureKind::Unavailable, text));
            }
        };
        let answer = |answer: Result<Box<RawValue>, RpcError>| match answer {
            Ok(answer) => Ok(answer.get().to_owned()),
            Err(RpcError { code, message, data }) => Err(RpcRefusal { code, message, data }),
        };
        Ok(answers.into_iter().map(answer).collect())
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
            key: None,
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

fn json(method: &str, params: &str) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(params.to_owned()).map_err(|error| {
        let text = format!("the parameters of {method} are no JSON: {error}");
        Failure::new(FailureKind::InvalidArgument, text)
    })
}

impl From<ChainError> for ChainFailure {
    fn from(error: ChainError) -> Self {
        let text = error.to_string();
        let kind = match error {
            ChainError::Refused(RpcError { code, message, data }) => {
                return Self::Rpc(RpcRefusal { code, message, data });
            }
            ChainError::NotConfigured { .. }
            | ChainError::GasTooExpensive { .. }
            | ChainError::InsufficientBalance { .. } => FailureKind::FailedPrecondition,
            ChainError::Unreachable { .. }
            | ChainError::Malformed { .. }
            | ChainError::Superseded { .. } => FailureKind::Unavailable,
            ChainError::Late { .. } | ChainError::NotMined { .. } => FailureKind::DeadlineExceeded,
            ChainError::NoToken { .. } => FailureKind::NotFound,
            ChainError::Signing(_) | ChainError::Memory { .. } => FailureKind::Internal,
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

/// The VM service, as far as payments may do something to machines.
pub(super) struct RentedMachines(pub VmService);

#[async_trait]
impl Machines for RentedMachines {
    fn look(&self, vm_id: &str) -> Option<MachineState> {
        Some(match self.0.get(vm_id).ok()?.phase {
            Phase::Running => MachineState::Runs,
            Phase::Stopped => MachineState::Rests,
            Phase::Creating
            | Phase::Starting
            | Phase::Stopping
            | Phase::Deleting
            | Phase::Failed => MachineState::Neither,
        })
    }

    async fn stop(&self, vm_id: &str) -> Result<(), String> {
        self.0.stop(vm_id).await.map(drop).map_err(|error| error.to_string())
    }

    async fn delete(&self, vm_id: &str) -> Result<(), String> {
        self.0.delete(vm_id).await.map_err(|error| error.to_string())
    }
}

fn state_error(error: StoreError) -> StateError {
    StateError(error.to_string())
}
