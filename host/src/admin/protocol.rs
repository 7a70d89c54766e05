//! What is said over the socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plugins::{
    Kind,
    installation::{Grant, Listed},
};
pub use crate::status::PluginState;

/// One plugin of a running provider.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginReport {
    #[serde(flatten)]
    pub listed: Listed,
    pub state: PluginState,
    /// Are new VMs made by it when a request names no backend, or is the provider listed by it?
    pub in_use: bool,
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

/// How a provider is told to end.
#[derive(Debug, Serialize, Deserialize)]
pub struct StopRequest {
    /// Whether VMs are stopped with it; absent where the settings decide.
    pub stop_vms: Option<bool>,
}

/// What a stream owes is to be collected.
#[derive(Debug, Serialize, Deserialize)]
pub struct WithdrawRequest {
    pub contract: String,
    pub stream_id: String,
}

/// Why something was not done.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    pub detail: String,
}
