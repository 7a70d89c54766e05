//! Small durable values under the plugin's name.

pub use crate::bindings::golem::provider::state::{delete, get, keys, set};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// A value kept as JSON. One that no longer parses, such as one of an older version, reads as absent.
pub fn get_json<T: DeserializeOwned>(key: &str) -> Result<Option<T>> {
    Ok(get(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Keeps a value as JSON.
pub fn set_json<T: Serialize>(key: &str, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::Internal(format!("cannot write {key} as JSON: {error}")))?;
    set(key, &bytes)
}
