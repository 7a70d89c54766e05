//! `config monitor` and `config withdraw`: what happens to machines that nobody pays for, and when earnings are collected.

use std::{str::FromStr, time::Duration};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{on_runtime, print};
use crate::{
    admin::AdminClient,
    payments::streams::{PaymentRules, RulesChange},
    settings::{
        self, Settings,
        keys::{self, AnyKey},
    },
};

pub const MONITOR: &str = "\
Says whether machines that nobody pays for are stopped, how often their streams are looked at, how much has to be left, and how \
long a stopped machine is kept. What is not named stays. The settings are written to .env in the data directory, and a provider that \
runs acts on them at once.

  golem-provider config monitor --enable --interval 60 --min-remaining 3600 --retention 86400";

pub const WITHDRAW: &str = "\
Says whether what was earned is withdrawn by itself, and of each stream how often at most, and from which amount on. What is not named \
stays. The settings are written to .env in the data directory, and a provider that runs acts on them at once. What a \
machine that is gone has earned is collected in any case.

  golem-provider config withdraw --enable --interval 86400 --min-wei 1000000000000000000";

#[derive(Debug, Args)]
#[group(id = "changes", required = true, multiple = true, args = ["enable", "disable", "interval", "min_remaining", "retention"])]
pub struct Monitor {
    /// Stop machines that nobody pays for
    #[arg(long)]
    enable: bool,
    /// Leave them running
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// Seconds between two looks at the streams
    #[arg(long, value_name = "S", value_parser = monitor_interval)]
    interval: Option<u64>,
    /// A machine is stopped when its stream has less than this left, in seconds
    #[arg(long, value_name = "S", value_parser = min_remaining)]
    min_remaining: Option<u64>,
    /// A stopped machine is kept so many seconds
    #[arg(long, value_name = "S", value_parser = retention)]
    retention: Option<u64>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[group(id = "changes", required = true, multiple = true, args = ["enable", "disable", "interval", "min_wei"])]
pub struct Withdraw {
    /// Withdraw what was earned from time to time
    #[arg(long)]
    enable: bool,
    /// Only withdraw when told to
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// Seconds between two withdrawals from one stream
    #[arg(long, value_name = "S", value_parser = withdraw_interval)]
    interval: Option<u64>,
    /// The smallest amount that is withdrawn, in the token's smallest part
    #[arg(long, value_name = "N", value_parser = min_wei)]
    min_wei: Option<u128>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct Output {
    /// For programs: all that counts now
    #[arg(long)]
    json: bool,
}

fn monitor_interval(text: &str) -> Result<u64, String> {
    number(&keys::STREAM_MONITOR_INTERVAL_SECONDS, text)
}

fn min_remaining(text: &str) -> Result<u64, String> {
    number(&keys::STREAM_MIN_REMAINING_SECONDS, text)
}

fn retention(text: &str) -> Result<u64, String> {
    number(&keys::STREAM_RETENTION_SECONDS, text)
}

fn withdraw_interval(text: &str) -> Result<u64, String> {
    number(&keys::STREAM_WITHDRAW_INTERVAL_SECONDS, text)
}

fn min_wei(text: &str) -> Result<u128, String> {
    number(&keys::STREAM_MIN_WITHDRAW_WEI, text)
}

/// As the setting of the same meaning allows it.
fn number<T: FromStr>(key: &dyn AnyKey, text: &str) -> Result<T, String> {
    let allowed = |allowed| format!("allowed is {allowed}");
    let shown = key.check(text).map_err(allowed)?;
    shown.parse().map_err(|_| allowed("a whole number".to_owned()))
}

impl Monitor {
    /// # Errors
    /// The settings cannot be written, or the provider that runs does not take them.
    pub fn run(&self, settings: &Settings) -> anyhow::Result<()> {
        let change = RulesChange {
            monitor_enabled: switch(self.enable, self.disable),
            monitor_interval_seconds: self.interval,
            min_remaining_seconds: self.min_remaining,
            retention_seconds: self.retention,
            ..RulesChange::default()
        };
        apply(settings, &change, &self.output, monitored)
    }
}

impl Withdraw {
    /// # Errors
    /// The settings cannot be written, or the provider that runs does not take them.
    pub fn run(&self, settings: &Settings) -> anyhow::Result<()> {
        let change = RulesChange {
            withdraw_enabled: switch(self.enable, self.disable),
            withdraw_interval_seconds: self.interval,
            min_withdraw_wei: self.min_wei,
            ..RulesChange::default()
        };
        apply(settings, &change, &self.output, withdrawn)
    }
}

fn switch(on: bool, off: bool) -> Option<bool> {
    match (on, off) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

fn apply(
    settings: &Settings,
    change: &RulesChange,
    output: &Output,
    told: fn(&PaymentRules) -> String,
) -> anyhow::Result<()> {
    let file = settings.data_dir.join(".env");
    for (key, value) in change.settings() {
        let key = key.description().name;
        settings::write_setting(&file, key, &value)
            .with_context(|| format!("cannot write {}", file.display()))?;
        if let Some(origin) = super::overridden(settings, key, &file) {
            eprintln!(
                "note: {key} is set by {origin} too, which counts from the next start on; change it there"
            );
        }
    }
    let running = on_runtime(async {
        match AdminClient::connect(&settings.data_dir).await? {
            Some(client) => client.change_payment_rules(change).await.map(Some),
            None => Ok(None),
        }
    })??;
    let is_running = running.is_some();
    let rules = running.unwrap_or_else(|| change.apply(PaymentRules::from(&settings.payments)));
    if output.json {
        let mut object = serde_json::to_value(rules)?;
        if let Value::Object(object) = &mut object {
            object.insert("running".to_owned(), json!(is_running));
        }
        return print::print_json(&object);
    }
    let when = match is_running {
        true => "The provider that runs acts on it.",
        false => "No provider runs; it counts from the next start on.",
    };
    Ok(print::print(&format!("{}\n{when}\n", told(&rules)))?)
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

fn monitored(rules: &PaymentRules) -> String {
    let (interval, left) = (seconds(rules.monitor.interval), seconds(rules.min_remaining));
    let kept = seconds(rules.retention);
    match rules.monitor.enabled {
        true => format!(
            "Streams are looked at every {interval}; a machine is stopped when less than {left} is left, and deleted after {kept}."
        ),
        false => format!(
            "Streams are looked at every {interval}; a machine that nobody pays for goes on running all the same."
        ),
    }
}

fn withdrawn(rules: &PaymentRules) -> String {
    let (interval, least) = (seconds(rules.withdrawals.interval), rules.withdrawals.min_wei);
    match rules.withdrawals.enabled {
        true => format!(
            "What was earned is withdrawn by itself: of each stream every {interval} at most, and from {least} wei on."
        ),
        false => "What was earned is withdrawn only by `golem-provider streams withdraw`, and when a machine is gone.".to_owned(),
    }
}
