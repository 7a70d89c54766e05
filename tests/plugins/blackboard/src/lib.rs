//! A well-behaved advertiser without a network: the place where it lists providers is its own directory, so that a test can
//! look at what stands there.
//!
//! ```text
//! entries/<provider id>/entry.json   one provider's entry
//! publications                       how often `publish` has come to its end
//! ```
//! Each call takes several small steps, and [`Settings::step_ms`] passes between two of them, so that a call can be cut off
//! between any two. [`Fault`] names the ways in which it can be told to break the contract.

use std::{hint::black_box, time::Duration};

use golem_provider_sdk::{
    Advertiser, Description, Error, Finding, Plugin, Result,
    advertiser::{
        Advertisement, Change, Listing, Prices, Published, Query, Resources, Schedule,
        check_advertisement, check_provider_id,
    },
    clock, files, log, settings,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

/// A test that needs several advertisers puts other names in its place, within the component. Hence it stands there in one
/// piece: see [`black_box`].
const NAME: &str = "blackboard";
const ENTRIES: &str = "entries";
const PUBLICATIONS: &str = "publications";

/// What a test can set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Settings {
    interval_seconds: u32,
    minimum_gap_ms: u32,
    /// Between two steps of a call.
    step_ms: u32,
    /// Needed for nothing, and secret.
    token: Option<String>,
    fault: Option<Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval_seconds: 240, minimum_gap_ms: 100, step_ms: 0, token: None, fault: None }
    }
}

/// A promise that is not kept, to see whether somebody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// It wants to be called all the time.
    NoInterval,
    /// The entry is gone before it is renewed.
    ExpiresTooSoon,
    /// What makes no sense is published.
    TakesAnything,
    /// Every publication is another entry.
    SecondEntry,
    /// An entry that was cut off stays beside the one that follows.
    LeavesHalves,
    /// An entry says for ever what it said first.
    NeverUpdates,
    /// What is called published is not there.
    Forgets,
    /// A look shows more than was published.
    Lies,
    /// Whoever needs more than there is finds it.
    FindsTooMuch,
    FindsNothing,
    /// What is called withdrawn is still there.
    WithdrawsNothing,
    /// The place is down.
    Unavailable,
    /// Publishing traps.
    Traps,
    /// Publishing never ends.
    Hangs,
    /// The token is in the log, in errors and in what the probe says.
    TellsToken,
}

impl Settings {
    fn load() -> Result<Self> {
        settings::get()
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Here a call may be cut off.
    fn step(&self) {
        if self.step_ms > 0 {
            clock::sleep(Duration::from_millis(self.step_ms.into()));
        }
    }

    /// For whatever needs the place.
    fn reach_the_place(&self) -> Result<()> {
        match (self.fault, &self.token) {
            (Some(Fault::Unavailable), _) => {
                Err(Error::Unavailable("the blackboard has been taken away".into()))
            }
            (Some(Fault::TellsToken), Some(token)) => {
                log::error!("the token is {token}");
                Err(Error::Unavailable(format!("the token {token} was not taken")))
            }
            _ => Ok(()),
        }
    }
}

/// What stands there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    provider_id: String,
    name: String,
    ip_address: String,
    country: Option<String>,
    platform: String,
    network: String,
    payments_network: String,
    cpu_cores: u32,
    memory_gb: u32,
    storage_gb: u32,
    usd: [String; 3],
    glm: Option<[String; 3]>,
    expires_unix_ms: u64,
}

impl Entry {
    fn new(said: &Advertisement, expires_unix_ms: u64) -> Self {
        let prices = |prices: &Prices| {
            [&prices.per_core_month, &prices.per_gb_ram_month, &prices.per_gb_storage_month]
                .map(Clone::clone)
        };
        Self {
            provider_id: said.provider_id.clone(),
            name: said.name.clone(),
            ip_address: said.ip_address.clone(),
            country: said.country.clone(),
            platform: said.platform.clone(),
            network: said.network.clone(),
            payments_network: said.payments_network.clone(),
            cpu_cores: said.available.cpu_cores,
            memory_gb: said.available.memory_gb,
            storage_gb: said.available.storage_gb,
            usd: prices(&said.usd),
            glm: said.glm.as_ref().map(prices),
            expires_unix_ms,
        }
    }

    /// Absent once it has expired.
    fn listing(self, settings: &Settings) -> Option<Listing> {
        let left_ms = self.expires_unix_ms.checked_sub(clock::unix_ms())?;
        let prices = |[core, ram, storage]: [String; 3]| Prices {
            per_core_month: core,
            per_gb_ram_month: ram,
            per_gb_storage_month: storage,
        };
        let lie = u32::from(settings.has(Fault::Lies));
        Some(Listing {
            provider_id: self.provider_id,
            ip_address: self.ip_address,
            name: Some(self.name),
            country: self.country,
            platform: Some(self.platform),
            network: Some(self.network),
            payments_network: Some(self.payments_network),
            available: Resources {
                cpu_cores: self.cpu_cores + lie,
                memory_gb: self.memory_gb,
                storage_gb: self.storage_gb,
            },
            usd: Some(prices(self.usd)),
            glm: self.glm.map(prices),
            owner: None,
            expires_in_seconds: Some(left_ms / 1000),
        })
    }
}

fn directory(provider_id: &str) -> String {
    // What is no id comes here only where that fault is asked for.
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let name: String = provider_id.chars().map(plain).collect();
    format!("{ENTRIES}/-{name}")
}

/// The entries in one directory, or none where there is none.
fn entries_in(directory: &str, settings: &Settings) -> Result<Vec<Listing>> {
    let mut listings = Vec::new();
    for name in names_in(directory)? {
        if !name.ends_with(".json") {
            continue;
        }
        // It may be withdrawn while it is looked for.
        if let Some(entry) = read_json::<Entry>(&format!("{directory}/{name}"))? {
            listings.extend(entry.listing(settings));
        }
    }
    Ok(listings)
}

fn names_in(directory: &str) -> Result<Vec<String>> {
    match files::list_directory(directory) {
        Err(Error::NotFound(_)) => Ok(Vec::new()),
        other => other,
    }
}

struct Blackboard;

impl Plugin for Blackboard {
    fn describe() -> Description {
        let milliseconds =
            json!({ "type": "integer", "minimum": 0, "maximum": 3_600_000, "default": 0 });
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "interval-seconds": {
                    "description": "How often the entry is renewed at least",
                    "type": "integer", "minimum": 1, "default": 240
                },
                "minimum-gap-ms": milliseconds,
                "step-ms": milliseconds,
                "token": {
                    "description": "Needed for nothing",
                    "type": "string", "minLength": 8, "writeOnly": true
                },
                "fault": { "type": "string" },
            },
        });
        Description {
            name: black_box(NAME).into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: env!("CARGO_PKG_DESCRIPTION").into(),
            license: env!("CARGO_PKG_LICENSE").into(),
            settings_schema: schema.to_string(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        let settings = Settings::load()?;
        let mut findings = vec![Finding::info("providers are listed in a directory only")];
        if let (Some(Fault::TellsToken), Some(token)) = (settings.fault, &settings.token) {
            findings.push(Finding::warning(format!("the token is {token}"), "keep it to yourself"));
        }
        Ok(findings)
    }
}

impl Advertiser for Blackboard {
    fn schedule() -> Result<Schedule> {
        let settings = Settings::load()?;
        let interval_seconds = match settings.has(Fault::NoInterval) {
            true => 0,
            false => settings.interval_seconds,
        };
        Ok(Schedule {
            interval_seconds,
            minimum_gap_ms: settings.minimum_gap_ms,
            price_interval_seconds: settings.interval_seconds,
        })
    }

    fn publish(said: Advertisement) -> Result<Published> {
        let settings = Settings::load()?;
        if settings.has(Fault::Traps) {
            panic!("the chalk is broken");
        }
        while settings.has(Fault::Hangs) {
            clock::sleep(Duration::from_secs(3600));
        }
        settings.reach_the_place()?;
        let expires_in_seconds = match settings.has(Fault::ExpiresTooSoon) {
            true => u64::from(settings.interval_seconds / 2),
            false => 3 * u64::from(settings.interval_seconds) + 60,
        };
        let now_ms = clock::unix_ms();
        let entry = Entry::new(&said, now_ms + 1000 * expires_in_seconds);
        let directory = directory(&said.provider_id);
        let file = format!("{directory}/entry.json");
        let before: Option<Entry> = read_json(&file)?;
        let change = match &before {
            None => Change::Created,
            Some(before) => {
                let lasting = Entry { expires_unix_ms: entry.expires_unix_ms, ..before.clone() };
                if lasting == entry { Change::Renewed } else { Change::Updated }
            }
        };
        settings.step();
        match (settings.fault, before) {
            (Some(Fault::Forgets), _) => {}
            (Some(Fault::NeverUpdates), Some(before)) => write_json(&file, &before)?,
            (Some(Fault::LeavesHalves), _) => {
                let half = format!("{directory}/{now_ms}.json");
                write_json(&half, &entry)?;
                settings.step();
                write_json(&file, &entry)?;
                settings.step();
                files::remove(&half)?;
            }
            (Some(Fault::SecondEntry), Some(_)) => {
                write_json(&format!("{directory}/{now_ms}.json"), &entry)?;
            }
            _ => write_json(&file, &entry)?,
        }
        settings.step();
        let count: u64 = read_json(PUBLICATIONS)?.unwrap_or(0);
        write_json(PUBLICATIONS, &(count + 1))?;
        Ok(Published {
            change,
            expires_in_seconds: Some(expires_in_seconds),
            reference: Some(file),
        })
    }

    fn withdraw(provider_id: String) -> Result<()> {
        let settings = Settings::load()?;
        settings.reach_the_place()?;
        settings.step();
        match settings.has(Fault::WithdrawsNothing) {
            true => Ok(()),
            false => files::remove(&directory(&provider_id)),
        }
    }

    fn look_up(provider_id: String) -> Result<Vec<Listing>> {
        let settings = Settings::load()?;
        settings.reach_the_place()?;
        entries_in(&directory(&provider_id), &settings)
    }

    fn search(query: Query) -> Result<Vec<Listing>> {
        let settings = Settings::load()?;
        settings.reach_the_place()?;
        if settings.has(Fault::FindsNothing) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for name in names_in(ENTRIES)? {
            found.extend(entries_in(&format!("{ENTRIES}/{name}"), &settings)?);
        }
        if !settings.has(Fault::FindsTooMuch) {
            found.retain(|listing| fits(listing, &query));
        }
        found.truncate(query.limit as usize);
        Ok(found)
    }
}

fn fits(listing: &Listing, query: &Query) -> bool {
    let enough = |has: u32, wanted: Option<u32>| wanted.is_none_or(|wanted| has >= wanted);
    let same = |is: &Option<String>, wanted: &Option<String>| wanted.is_none() || is == wanted;
    enough(listing.available.cpu_cores, query.min_cpu_cores)
        && enough(listing.available.memory_gb, query.min_memory_gb)
        && enough(listing.available.storage_gb, query.min_storage_gb)
        && same(&listing.network, &query.network)
        && same(&listing.payments_network, &query.payments_network)
}

fn read_json<T: DeserializeOwned>(path: &str) -> Result<Option<T>> {
    files::read_to_string(path)?
        .map(|text| {
            serde_json::from_str(&text)
                .map_err(|error| Error::Internal(format!("{path} is damaged: {error}")))
        })
        .transpose()
}

fn write_json<T: Serialize>(path: &str, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Internal(format!("cannot write {path} as JSON: {error}")))?;
    files::write(path, &text)
}

/// What the SDK's macro makes, with the checks of arguments left out where that fault is asked for.
mod export {
    use super::*;
    use golem_provider_sdk::bindings::discovery_advertiser::exports::golem::provider::advertisements;

    golem_provider_sdk::__export_plugin!(Blackboard);

    fn checked(check: Result<()>) -> Result<()> {
        log::report_panics();
        if Settings::load()?.has(Fault::TakesAnything) { Ok(()) } else { check }
    }

    impl advertisements::Guest for Export {
        fn get_schedule() -> Result<Schedule> {
            Blackboard::schedule()
        }
        fn publish(said: Advertisement) -> Result<Published> {
            checked(check_advertisement(&said))?;
            Blackboard::publish(said)
        }
        fn withdraw(provider_id: String) -> Result<()> {
            checked(check_provider_id(&provider_id))?;
            Blackboard::withdraw(provider_id)
        }
        fn look_up(provider_id: String) -> Result<Vec<Listing>> {
            checked(check_provider_id(&provider_id))?;
            Blackboard::look_up(provider_id)
        }
        fn search(query: Query) -> Result<Vec<Listing>> {
            Blackboard::search(query)
        }
    }

    golem_provider_sdk::bindings::discovery_advertiser::export_discovery_advertiser_bindings!(
        Export with_types_in golem_provider_sdk::bindings::discovery_advertiser
    );
}
