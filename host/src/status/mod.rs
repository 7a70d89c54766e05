//! How the provider is, as one value: [`Status`].
//!
//! ```text
//! Observer (a provider that runs) ─┐
//!                                  ├─▶ Sections ─▶ issues ─▶ Status ─▶ the socket, `golem-provider status`
//! at_rest  (none runs)            ─┘
//! ```
//!
//! Each domain has one section: a struct here, and one function that fills it in, in the file of its name. What is wrong, and
//! what to do about it, is decided in `issues` alone, out of the sections and nothing else. One more domain is one more field
//! of [`Sections`], its function, and its lines on the screen (`cli/status/screen.rs`); where it does not apply the field is
//! absent.
//!
//! Reads `vms`, `proxy`, `resources`, `plugins`, `ports`, `discovery`, `payments`, `store` and `settings`; called by `admin`,
//! which answers with it, and `cli`, which shows it. Nothing here changes anything.

mod at_rest;
mod issues;
mod network;
mod observer;
mod payments;
mod plugins;
mod vms;

use std::{net::SocketAddr, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use at_rest::at_rest;
pub use issues::{Issue, Severity};
pub use network::NetworkSection;
pub use observer::{Observer, ObserverParts};
pub use payments::PaymentsSection;
pub use plugins::{FailingFunction, PluginLine, PluginState, state_of};
pub use vms::{Traffic, VmLine, VmsSection};

use crate::{
    payments::pricing::Prices,
    resources::{Minimums, ResourceReport},
    settings::{Environment, Settings},
    telemetry::LogTarget,
};

/// How the provider is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub health: Health,
    /// The worst first.
    pub issues: Vec<Issue>,
    #[serde(flatten)]
    pub sections: Sections,
}

impl Status {
    /// Judges what the sections say.
    pub fn of(sections: Sections) -> Status {
        let issues = issues::issues(&sections);
        let health = if sections.provider.running.is_none() {
            Health::Down
        } else if issues.iter().any(|issue| issue.severity > Severity::Note) {
            Health::Issues
        } else {
            Health::Healthy
        };
        Status { health, issues, sections }
    }
}

/// The status in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It runs, and nothing needs the operator.
    Healthy,
    /// It runs, and something needs the operator.
    Issues,
    /// It does not run.
    Down,
}

/// What each domain says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sections {
    pub provider: ProviderSection,
    /// Absent where the provider does not run: it then measures nothing.
    pub resources: Option<ResourcesSection>,
    pub vms: VmsSection,
    pub plugins: PluginsSection,
    /// Absent where the provider does not run.
    pub network: Option<NetworkSection>,
    /// Absent where the provider does not run.
    pub prices: Option<Prices>,
    /// Absent where the provider does not run, or takes no payments.
    pub payments: Option<PaymentsSection>,
    /// Absent where the provider does not run.
    pub proxy: Option<ProxySection>,
    /// What would be in the way of a start; absent where the provider runs.
    pub start: Option<StartSection>,
}

/// The provider itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProviderSection {
    pub version: String,
    pub environment: Environment,
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Absent where it does not run.
    pub running: Option<Running>,
}

impl ProviderSection {
    fn new(settings: &Settings, running: Option<Running>) -> ProviderSection {
        ProviderSection {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            environment: settings.environment,
            data_dir: settings.data_dir.clone(),
            api: settings.api.bind,
            running,
        }
    }
}

/// The process that is the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub pid: u32,
    pub since: Timestamp,
    /// Where its log lines go.
    pub log: LogTarget,
}

/// The computer and what of it is rented out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesSection {
    #[serde(flatten)]
    pub amounts: ResourceReport,
    /// The smallest machine that is let.
    pub minimums: Minimums,
}

/// What makes machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginsSection {
    /// The plugin that makes new VMs.
    pub default_backend: Option<String>,
    /// Why no plugin makes new VMs, if none does.
    pub no_backend: Option<String>,
    pub list: Vec<PluginLine>,
}

/// What has passed through all ports together since each was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxySection {
    pub ports_open: u64,
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What a start would find.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSection {
    /// A process that has the data directory, and does not answer.
    pub silent_pid: Option<u32>,
    /// Why the data directory or what is in it cannot be used.
    pub data_dir_problem: Option<String>,
    /// Why the API could not listen.
    pub address_problem: Option<String>,
}
