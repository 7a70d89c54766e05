//! `state`: durable values under the plugin's name.

use async_trait::async_trait;

use crate::{
    faults::{self, FaultPoint},
    plugins::{
        bindings::{Error, golem::provider::state::Host},
        call::CallState,
    },
};

const MAX_KEY_BYTES: usize = 256;
const MAX_VALUE_BYTES: usize = 1 << 20;

/// Where plugins' durable values are kept.
#[async_trait]
pub trait StateStore: Send + Sync {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError>;
    async fn set(&self, plugin: &str, key: &str, value: Vec<u8>) -> Result<(), StateError>;
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
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::InvalidArgument(format!(
            "a key of the state has 1 to {MAX_KEY_BYTES} bytes, this one {}",
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
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::InvalidArgument(format!(
                "a value of the state has at most {MAX_VALUE_BYTES} bytes, the one for `{key}` has {}",
                value.len()
            )));
        }
        self.plugin.services.state.set(&self.plugin.name, &key, value).await?;
        faults::reached(FaultPoint::PluginHostCall);
        Ok(())
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
