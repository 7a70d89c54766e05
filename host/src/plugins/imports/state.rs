//! `state`: durable values under the plugin's name.

use async_trait::async_trait;

use crate::{
    faults::{self, FaultPoint},
    plugins::{
        bindings::{Error, golem::provider::state::Host},
        call::CallState,
        limits::{STATE_BYTES, STATE_KEY_BYTES, STATE_VALUE_BYTES},
    },
};

/// Where plugins' durable values are kept.
#[async_trait]
pub trait StateStore: Send + Sync {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError>;
    /// Answers whether the value was stored: not if the plugin's keys and values would be more than `room_bytes` with it.
    async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        room_bytes: u64,
    ) -> Result<bool, StateError>;
    async fn delete(&self, plugin: &str, key: &str) -> Result<(), StateError>;
    async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StateError>;
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
#[error("the provider's database failed: {0}")]
pub struct StateError(pub String);

impl From<StateError> for Error {
    fn from(error: StateError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > STATE_KEY_BYTES {
        return Err(Error::InvalidArgument(format!(
            "a key of the state has 1 to {STATE_KEY_BYTES} bytes, this one {}",
            key.len()
        )));
    }
    Ok(())
}

impl Host for CallState {
    async fn get(&mut self, key: String) -> Result<Option<Vec<u8>>, Error> {
        check_key(&key)?;
        Ok(self.plugin.services.state.get(&self.plugin.name, &key).await?)
    }

    async fn set(&mut self, key: String, value: Vec<u8>) -> Result<(), Error> {
        check_key(&key)?;
        if value.len() > STATE_VALUE_BYTES {
            return Err(Error::InvalidArgument(format!(
                "a value of the state has at most {STATE_VALUE_BYTES} bytes, the one for `{key}` has {}",
                value.len()
            )));
        }
        let stored =
            self.plugin.services.state.set(&self.plugin.name, &key, value, STATE_BYTES).await?;
        if stored {
            faults::reached(FaultPoint::PluginHostCall);
            return Ok(());
        }
        Err(Error::ResourceExhausted(format!(
            "the plugin {} keeps {} MiB in the provider's database already, which is all it may; delete keys, or keep large things in files",
            self.plugin.name,
            STATE_BYTES >> 20
        )))
    }

    async fn delete(&mut self, key: String) -> Result<(), Error> {
        check_key(&key)?;
        self.plugin.services.state.delete(&self.plugin.name, &key).await?;
        faults::reached(FaultPoint::PluginHostCall);
        Ok(())
    }

    async fn keys(&mut self, prefix: String) -> Result<Vec<String>, Error> {
        Ok(self.plugin.services.state.keys(&self.plugin.name, &prefix).await?)
    }
}
