//! What is said over the socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plugins::{
    Kind,
    installation::{Grant, Listed},
};

/// One plugin of a running provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginReport {
    #[serde(flatten)]
    pub listed: Listed,
    pub state: PluginState,
    /// Are new VMs made by it when a request names no backend, or is the provider listed by it?
    pub in_use: bool,
}

/// What a plugin is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PluginState {
    /// It takes calls.
    Working,
    /// It takes calls, but some of them have failed too often in a row; the problem says which.
    Degraded,
    /// It was switched off.
    Disabled,
    /// It cannot be used; the problem says why.
    Unusable,
    /// Nobody knows, as no provider runs.
    Idle,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct InstallRequest {
    /// Absolute.
    pub file: PathBuf,
    /// Of the component that was shown to the operator, as hex.
    pub sha256: String,
    pub grants: Vec<Grant>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct GrantChange {
    pub grants: Vec<Grant>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct UseRequest {
    pub kind: Kind,
    /// One for a VM backend, any number for advertisers.
    pub names: Vec<String>,
}

/// Why something was not done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub detail: String,
}
