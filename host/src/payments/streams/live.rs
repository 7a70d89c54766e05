//! What of the settings for payments changes while the provider runs: the monitor's and the withdrawals'.
//!
//! Whoever acts on them watches them; the operator's commands change them, for as long as the provider runs, and write the same into
//! its settings for the next start.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::settings::{
    PaymentSettings, StreamMonitorSettings, WithdrawalSettings,
    keys::{self, AnyKey},
};

/// What counts now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Told", into = "Told")]
pub struct PaymentRules {
    pub monitor: StreamMonitorSettings,
    pub withdrawals: WithdrawalSettings,
    /// A machine is stopped when its stream has less left than this.
    pub min_remaining: Duration,
    /// How long a machine that nobody pays for is kept, stopped.
    pub retention: Duration,
}

impl From<&PaymentSettings> for PaymentRules {
    fn from(settings: &PaymentSettings) -> Self {
        Self {
            monitor: settings.monitor,
            withdrawals: settings.withdrawals,
            min_remaining: settings.min_remaining,
            retention: settings.retention,
        }
    }
}

/// As it is told to commands and their readers.
#[derive(Serialize, Deserialize)]
struct Told {
    monitor_enabled: bool,
    monitor_interval_seconds: u64,
    min_remaining_seconds: u64,
    retention_seconds: u64,
    withdraw_enabled: bool,
    withdraw_interval_seconds: u64,
    /// Decimal: it may pass 64 bits.
    min_withdraw_wei: String,
}

impl From<PaymentRules> for Told {
    fn from(rules: PaymentRules) -> Self {
        Self {
            monitor_enabled: rules.monitor.enabled,
            monitor_interval_seconds: rules.monitor.interval.as_secs(),
            min_remaining_seconds: rules.min_remaining.as_secs(),
            retention_seconds: rules.retention.as_secs(),
            withdraw_enabled: rules.withdrawals.enabled,
            withdraw_interval_seconds: rules.withdrawals.interval.as_secs(),
            min_withdraw_wei: rules.withdrawals.min_wei.to_string(),
        }
    }
}

impl From<Told> for PaymentRules {
    fn from(told: Told) -> Self {
        Self {
            monitor: StreamMonitorSettings {
                enabled: told.monitor_enabled,
                interval: Duration::from_secs(told.monitor_interval_seconds),
            },
            withdrawals: WithdrawalSettings {
                enabled: told.withdraw_enabled,
                interval: Duration::from_secs(told.withdraw_interval_seconds),
                // More than everything is never reached: nothing is collected that was not meant to be.
                min_wei: told.min_withdraw_wei.parse().unwrap_or(u128::MAX),
            },
            min_remaining: Duration::from_secs(told.min_remaining_seconds),
            retention: Duration::from_secs(told.retention_seconds),
        }
    }
}

/// Other rules; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RulesChange {
    pub monitor_enabled: Option<bool>,
    pub monitor_interval_seconds: Option<u64>,
    pub min_remaining_seconds: Option<u64>,
    pub retention_seconds: Option<u64>,
    pub withdraw_enabled: Option<bool>,
    pub withdraw_interval_seconds: Option<u64>,
    pub min_withdraw_wei: Option<u128>,
}

/// A value that the settings do not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} has to be {allowed}")]
pub struct NotAllowed {
    pub key: &'static str,
    pub allowed: String,
}

impl RulesChange {
    /// The settings that say the same at the next start: each key with its value.
    pub fn settings(&self) -> Vec<(&'static dyn AnyKey, String)> {
        let flag = |flag: Option<bool>| flag.map(|flag| flag.to_string());
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let all: [(&'static dyn AnyKey, Option<String>); 7] = [
            (&keys::STREAM_MONITOR_ENABLED, flag(self.monitor_enabled)),
            (&keys::STREAM_MONITOR_INTERVAL_SECONDS, number(self.monitor_interval_seconds)),
            (&keys::STREAM_MIN_REMAINING_SECONDS, number(self.min_remaining_seconds)),
            (&keys::STREAM_RETENTION_SECONDS, number(self.retention_seconds)),
            (&keys::STREAM_WITHDRAW_ENABLED, flag(self.withdraw_enabled)),
            (&keys::STREAM_WITHDRAW_INTERVAL_SECONDS, number(self.withdraw_interval_seconds)),
            (&keys::STREAM_MIN_WITHDRAW_WEI, self.min_withdraw_wei.map(|wei| wei.to_string())),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// # Errors
    /// A value is none that the setting of the same name may have.
    pub fn check(&self) -> Result<(), NotAllowed> {
        for (key, value) in self.settings() {
            let key_name = key.description().name;
            key.check(&value).map_err(|allowed| NotAllowed { key: key_name, allowed })?;
        }
        Ok(())
    }

    pub fn apply(&self, rules: PaymentRules) -> PaymentRules {
        let seconds = |new: Option<u64>, old| new.map_or(old, Duration::from_secs);
        PaymentRules {
            monitor: StreamMonitorSettings {
                enabled: self.monitor_enabled.unwrap_or(rules.monitor.enabled),
                interval: seconds(self.monitor_interval_seconds, rules.monitor.interval),
            },
            withdrawals: WithdrawalSettings {
                enabled: self.withdraw_enabled.unwrap_or(rules.withdrawals.enabled),
                interval: seconds(self.withdraw_interval_seconds, rules.withdrawals.interval),
                min_wei: self.min_withdraw_wei.unwrap_or(rules.withdrawals.min_wei),
            },
            min_remaining: seconds(self.min_remaining_seconds, rules.min_remaining),
            retention: seconds(self.retention_seconds, rules.retention),
        }
    }
}

/// The rules that count. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct LiveRules(Arc<watch::Sender<PaymentRules>>);

impl LiveRules {
    pub fn new(rules: PaymentRules) -> Self {
        Self(Arc::new(watch::Sender::new(rules)))
    }

    /// The rules, now and whenever they change.
    pub fn watch(&self) -> watch::Receiver<PaymentRules> {
        self.0.subscribe()
    }

    pub fn now(&self) -> PaymentRules {
        *self.0.borrow()
    }

    /// From now on this counts, until the provider ends. Answers all that counts.
    ///
    /// # Errors
    /// A value is not allowed; nothing has changed then.
    pub fn change(&self, change: &RulesChange) -> Result<PaymentRules, NotAllowed> {
        change.check()?;
        self.0.send_if_modified(|rules| {
            let new = change.apply(*rules);
            let changed = new != *rules;
            *rules = new;
            changed
        });
        Ok(self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> PaymentRules {
        PaymentRules {
            monitor: StreamMonitorSettings { enabled: false, interval: Duration::from_secs(60) },
            withdrawals: WithdrawalSettings {
                enabled: false,
                interval: Duration::from_secs(1800),
                min_wei: u128::MAX - 1,
            },
            min_remaining: Duration::from_secs(3600),
            retention: Duration::from_secs(86_400),
        }
    }

    #[test]
    fn what_is_not_named_stays_and_whoever_watches_hears_of_changes_alone() {
        let live = LiveRules::new(rules());
        let mut watching = live.watch();
        let change = RulesChange { monitor_enabled: Some(true), ..RulesChange::default() };
        let changed = live.change(&change).unwrap();
        assert!(changed.monitor.enabled && watching.has_changed().unwrap());
        assert_eq!(changed.withdrawals, rules().withdrawals);
        assert_eq!(*watching.borrow_and_update(), changed);
        live.change(&change).unwrap();
        assert!(!watching.has_changed().unwrap());
    }

    #[test]
    fn what_the_settings_do_not_allow_changes_nothing() {
        let live = LiveRules::new(rules());
        let change = RulesChange {
            monitor_enabled: Some(true),
            withdraw_interval_seconds: Some(0),
            ..RulesChange::default()
        };
        let refused = live.change(&change).unwrap_err();
        assert_eq!(refused.key, "GOLEM_PROVIDER_STREAM_WITHDRAW_INTERVAL_SECONDS");
        assert_eq!(live.now(), rules());
    }

    #[test]
    fn rules_pass_the_socket_whole() {
        let text = serde_json::to_string(&rules()).unwrap();
        assert_eq!(serde_json::from_str::<PaymentRules>(&text).unwrap(), rules());
    }
}
