//! What is remembered of a machine that Multipass does not know, or does not say when it is asked.
//!
//! ```text
//! vm/<id>        a Record: what was asked for, how far its making came, what it was last asked to be
//! abandoned/<id> the same of a machine that was deleted while Multipass may still have been making it
//! ready/<id>     exists if SSH has answered since the machine was last started
//! image/<alias>  the source that was last launched for this alias
//! ```
//! Kept in the provider's database. Of these, `ready/<id>` is the only one that is written beside calls that change the
//! machine, so it is a value of its own. The types are pure; the functions use the plugin's state. `machine.rs` decides when.

use golem_provider_sdk::{Error, Result, clock, state, vm_backend::SpecRecord};
use serde::{Deserialize, Serialize};

use crate::name;

/// The form of a record. A higher one was written by a newer plugin and is not touched.
const VERSION: u32 = 1;
const RECORDS: &str = "vm/";
/// The contract's name for what may outlive a delete.
const ABANDONED: &str = "abandoned/";

/// What is remembered of a machine; written before Multipass is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    pub version: u32,
    /// Sizes are those that were asked for. What Multipass reports is measured inside the machine, and less.
    pub spec: SpecRecord,
    /// What the machine is called in Multipass.
    pub name: String,
    pub making: Making,
    pub wanted: Wanted,
}

/// How far a machine's making came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Making {
    /// Multipass was not told of it.
    Requested,
    /// Multipass was told to launch it, and has not shown it yet. While it prepares the image it denies that there is such a
    /// machine, and goes on when the command that asked for it is gone.
    Launching,
    /// Multipass has shown it.
    Launched,
    /// Deleted while it was being launched: should it appear after all, it has to go.
    Abandoned { since_unix_ms: u64 },
}

/// What the machine was last asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    Running,
    /// A stop was begun.
    Stopping,
    /// A stop has ended. One that runs all the same was started by hand.
    Stopped,
}

impl Record {
    /// A machine that Multipass does not know of yet.
    pub fn new(spec: SpecRecord) -> Self {
        Self {
            version: VERSION,
            name: name::of(&spec.id),
            spec,
            making: Making::Requested,
            wanted: Wanted::Running,
        }
    }

    pub fn id(&self) -> &str {
        &self.spec.id
    }

    pub fn is_abandoned(&self) -> bool {
        matches!(self.making, Making::Abandoned { .. })
    }
}

/// The record of a machine; absent if there is none.
///
/// # Errors
/// [`Error::Internal`] if it cannot be understood: a machine is never taken for gone because of that.
pub fn load(id: &str) -> Result<Option<Record>> {
    let bytes = match state::get(&key(id))? {
        Some(bytes) => Some(bytes),
        None => state::get(&abandoned_key(id))?,
    };
    let Some(bytes) = bytes else { return Ok(None) };
    parse(&bytes).map(Some).map_err(|wrong| {
        Error::Internal(format!("what is remembered of the machine {id} is wrong: {wrong}"))
    })
}

fn parse(bytes: &[u8]) -> core::result::Result<Record, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if version > VERSION {
        return Err(format!(
            "written by a newer plugin (form {version}, this one knows {VERSION}); install that one again"
        ));
    }
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// Keeps the record of a machine.
pub fn save(record: &Record) -> Result<()> {
    let id = record.id();
    if record.is_abandoned() {
        state::set_json(&abandoned_key(id), record)?;
        return state::delete(&key(id));
    }
    state::set_json(&key(id), record)
}

/// Forgets everything about a machine.
pub fn forget(id: &str) -> Result<()> {
    forget_ready(id)?;
    state::delete(&key(id))?;
    state::delete(&abandoned_key(id))
}

/// The records of all machines.
pub fn all() -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for prefix in [RECORDS, ABANDONED] {
        for key in state::keys(prefix)? {
            // One that is gone was deleted since the list was made.
            if let Some(record) = key.strip_prefix(prefix).map(load).transpose()?.flatten() {
                records.push(record);
            }
        }
    }
    Ok(records)
}

/// Has SSH answered since the machine was last started?
pub fn is_ready(id: &str) -> Result<bool> {
    Ok(state::get(&ready_key(id))?.is_some())
}

/// Remembers that SSH has answered.
pub fn set_ready(id: &str) -> Result<()> {
    state::set_json(&ready_key(id), &clock::unix_ms())
}

/// SSH has to answer anew.
pub fn forget_ready(id: &str) -> Result<()> {
    state::delete(&ready_key(id))
}

/// Has a machine been launched from this source before, so that Multipass need not download it?
pub fn was_fetched(alias: &str, source: &str) -> Result<bool> {
    Ok(state::get_json::<String>(&image_key(alias))?.as_deref() == Some(source))
}

/// Remembers that Multipass has the image.
pub fn set_fetched(alias: &str, source: &str) -> Result<()> {
    state::set_json(&image_key(alias), &source)
}

fn key(id: &str) -> String {
    format!("{RECORDS}{id}")
}

fn abandoned_key(id: &str) -> String {
    format!("{ABANDONED}{id}")
}

fn ready_key(id: &str) -> String {
    format!("ready/{id}")
}

fn image_key(alias: &str) -> String {
    format!("image/{alias}")
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn example() -> Record {
        Record::new(SpecRecord {
            id: "golem-web-1".into(),
            hostname: "web".into(),
            cpu_cores: 2,
            memory_mib: 4096,
            storage_mib: 20_480,
            image: "24.04".into(),
            ssh_authorized_keys: vec!["ssh-ed25519 AAAA a".into()],
        })
    }

    #[test]
    fn a_record_survives_being_written_and_read() {
        for making in [
            Making::Requested,
            Making::Launching,
            Making::Launched,
            Making::Abandoned { since_unix_ms: 7 },
        ] {
            let record = Record { making, ..example() };
            assert_eq!(parse(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
        }
    }

    #[test]
    fn a_record_of_a_newer_plugin_is_refused_and_says_so() {
        let error = parse(br#"{"version": 2, "something": "new"}"#).unwrap_err();
        assert!(error.contains("newer plugin"), "{error}");
    }
}
