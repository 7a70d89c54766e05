//! The operator's settings for this plugin.

use serde::de::DeserializeOwned;

use crate::bindings::golem::provider::settings as import;
use crate::{Error, Result};

/// The settings, as a type of the plugin's own. Give every field a default: an operator who set nothing gets `{}`.
pub fn get<T: DeserializeOwned>() -> Result<T> {
    serde_json::from_str(&import::json()).map_err(|error| {
        Error::InvalidArgument(format!("the plugin's settings are wrong: {error}"))
    })
}
