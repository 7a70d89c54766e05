//! The section of the plugins.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::PluginsSection;
use crate::{
    discovery::Advertising,
    payments::streams::Verifiers,
    plugins::{Degraded, Kind, installation::Listed},
    vms::Backends,
};

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

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginLine {
    pub name: String,
    pub version: Option<String>,
    pub kind: Option<Kind>,
    /// `bundled`, or the file.
    pub origin: String,
    pub state: PluginState,
    /// Are new VMs made by it when a request names no backend, or is the provider listed by it?
    pub in_use: bool,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
    /// What of it fails, and is refused until it is tried again.
    pub failing: Vec<FailingFunction>,
}

/// A function that has failed too often in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingFunction {
    pub function: String,
    /// In a row.
    pub failures: u32,
    pub since: Timestamp,
    pub next_try: Timestamp,
}

impl FailingFunction {
    fn of(degraded: Degraded, now: Timestamp) -> FailingFunction {
        let ago = |duration: Duration| now.checked_sub(duration).unwrap_or(now);
        let ahead = |duration: Duration| now.checked_add(duration).unwrap_or(now);
        FailingFunction {
            function: degraded.function,
            failures: degraded.failures,
            since: ago(degraded.lasting),
            next_try: ahead(degraded.retry_in),
        }
    }
}

/// What a plugin of a provider that runs is doing, and what fails of it.
pub fn state_of(
    listed: &Listed,
    backends: &Backends,
    advertising: &Advertising,
    verifiers: &Verifiers,
) -> (PluginState, Vec<Degraded>) {
    let known = advertising.known();
    let degraded = if let Some(advertiser) = known.iter().find(|one| one.name() == listed.name) {
        advertiser.degraded()
    } else if backends.names().contains(&listed.name) {
        backends.degraded(&listed.name)
    } else if let Some(verifier) = verifiers.named(&listed.name) {
        verifier.degraded()
    } else {
        let state = if listed.enabled { PluginState::Unusable } else { PluginState::Disabled };
        return (state, Vec::new());
    };
    let state = if degraded.is_empty() { PluginState::Working } else { PluginState::Degraded };
    (state, degraded)
}

/// The plugins of a provider that runs.
pub(super) fn section(
    listed: Vec<Listed>,
    backends: &Backends,
    advertising: &Advertising,
    verifiers: &Verifiers,
    now: Timestamp,
) -> PluginsSection {
    let advertisers = advertising.names();
    let default = backends.default_name();
    let verifier = verifiers.chosen();
    let line = |listed: Listed| {
        let (state, degraded) = state_of(&listed, backends, advertising, verifiers);
        let in_use = default.as_deref() == Ok(listed.name.as_str())
            || advertisers.contains(&listed.name)
            || verifier.as_deref() == Some(listed.name.as_str());
        let failing = degraded.into_iter().map(|one| FailingFunction::of(one, now)).collect();
        PluginLine { failing, in_use, ..line(listed, state) }
    };
    PluginsSection {
        list: listed.into_iter().map(line).collect(),
        no_backend: default.as_ref().err().cloned(),
        default_backend: default.ok(),
    }
}

/// The plugins of a provider that does not run.
pub(super) fn section_at_rest(listed: Vec<Listed>) -> PluginsSection {
    let line = |listed: Listed| {
        let state = match (&listed.problem, listed.enabled) {
            (Some(_), _) => PluginState::Unusable,
            (None, false) => PluginState::Disabled,
            (None, true) => PluginState::Idle,
        };
        line(listed, state)
    };
    PluginsSection {
        default_backend: None,
        no_backend: None,
        list: listed.into_iter().map(line).collect(),
    }
}

fn line(listed: Listed, state: PluginState) -> PluginLine {
    PluginLine {
        name: listed.name,
        version: listed.version,
        kind: listed.kind,
        origin: listed.origin,
        state,
        in_use: false,
        problem: listed.problem,
        failing: Vec::new(),
    }
}
