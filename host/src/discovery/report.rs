//! How a campaign goes, for people and programs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::visibility::Visibility;

/// How one advertiser is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertiserReport {
    /// The plugin's name.
    pub name: String,
    pub state: AdvertiserState,
    /// Why nothing is published, or what failed last.
    pub reason: Option<String>,
    pub last_success: Option<Timestamp>,
    /// When something is done next, if nothing changes.
    pub next: Option<Timestamp>,
    pub expires: Option<Timestamp>,
    /// How people find the entry.
    pub reference: Option<String>,
    /// What a requestor sees, as of when it was looked up.
    pub seen: Option<Seen>,
    /// Functions of the plugin that have failed too often in a row.
    pub degraded: Vec<String>,
}

/// What a look at the listing said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub visibility: Visibility,
    pub at: Timestamp,
}

/// What an advertiser is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvertiserState {
    /// Nothing is known yet.
    Starting,
    /// What should be published is.
    Published,
    /// Nothing is published, and the reason says why that is right.
    Withheld,
    /// What should be done could not be, and is tried again.
    Failing,
}
