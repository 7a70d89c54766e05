//! `NAME.toml` in the plugin directory: what the operator has to say about a plugin, read and edited.
//!
//! ```toml
//! enabled = true
//!
//! [settings]              # the plugin's own settings, checked against its schema
//! accelerator = "tcg"
//!
//! [grants]                # what it may use beyond what comes with a bundled plugin
//! files = ["/srv/images/"]
//!
//! [revoked]               # what a bundled plugin may not use although it was reviewed
//! programs = ["nft"]
//!
//! [installed]             # written by `plugin install`
//! version = "1.2.0"
//! sha256 = "…"
//! ```
//!
//! People write this file too, so edits keep their comments and their order, and replace it in one step.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml_edit::{Array, DocumentMut, Item, Table, Value};

use super::manifest::{GrantKind, GrantList, ManifestError, Pin};
use crate::whole_file;

/// What the operator says about one plugin.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Configuration {
    pub enabled: Option<bool>,
    pub settings: toml::Table,
    pub grants: GrantList,
    pub revoked: GrantList,
    pub installed: Option<Installed>,
}

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Installed {
    pub version: String,
    /// Of the component, as hex.
    pub sha256: String,
}

impl Configuration {
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("cannot read {file}: {source}", file = file.display())]
    Read { file: PathBuf, source: io::Error },
    // Without the line itself: it may hold a secret.
    #[error("{file} is wrong in line {line}: {message}", file = file.display())]
    Wrong { file: PathBuf, line: usize, message: String },
    #[error("{file} cannot be edited, since line {line} is wrong: {message}; correct it first", file = file.display())]
    Unparsable { file: PathBuf, line: usize, message: String },
    #[error("{file} cannot be edited: [{table}] is no table, or {key} in it no list", file = file.display())]
    Shape { file: PathBuf, table: String, key: String },
    #[error(transparent)]
    Grant(ManifestError),
    #[error("cannot write {file}: {source}", file = file.display())]
    Write { file: PathBuf, source: io::Error },
}

/// The file of one plugin.
#[derive(Debug, Clone)]
pub(super) struct ConfigurationFile(PathBuf);

impl ConfigurationFile {
    pub fn of(plugin_dir: &Path, name: &str) -> Self {
        Self(plugin_dir.join(format!("{name}.toml")))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What it says; nothing where there is no file. Blocks.
    pub fn read(&self) -> Result<Configuration, ConfigurationError> {
        self.parse(&self.text()?)
    }

    fn parse(&self, text: &str) -> Result<Configuration, ConfigurationError> {
        toml::from_str(text).map_err(|error: toml::de::Error| ConfigurationError::Wrong {
            file: self.0.clone(),
            line: line_of(text, error.span()),
            message: error.message().to_owned(),
        })
    }

    fn text(&self) -> Result<String, ConfigurationError> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(ConfigurationError::Read { file: self.0.clone(), source }),
        }
    }

    /// Changes it in one step. Blocks.
    pub fn edit(
        &self,
        change: impl FnOnce(&mut Editor) -> Result<(), ConfigurationError>,
    ) -> Result<(), ConfigurationError> {
        let text = self.text()?;
        let document: DocumentMut =
            text.parse().map_err(|error: toml_edit::TomlError| ConfigurationError::Unparsable {
                file: self.0.clone(),
                line: line_of(&text, error.span()),
                message: error.message().to_owned(),
            })?;
        let mut editor = Editor { file: self.0.clone(), document };
        change(&mut editor)?;
        // What could not be used when it is read again is not written.
        let text = editor.document.to_string();
        let Configuration { grants, revoked, .. } = self.parse(&text)?;
        for list in [grants, revoked] {
            list.check().map_err(ConfigurationError::Grant)?;
        }
        whole_file::replace(&self.0, text.as_bytes())
            .map_err(|source| ConfigurationError::Write { file: self.0.clone(), source })
    }
}

/// The number of the line that this begins in.
fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let before = text.get(..span.map_or(0, |span| span.start)).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// The file while it is changed.
pub(super) struct Editor {
    file: PathBuf,
    document: DocumentMut,
}

/// Where a grant is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum GrantTable {
    Granted,
    Revoked,
}

impl GrantTable {
    fn name(self) -> &'static str {
        match self {
            Self::Granted => "grants",
            Self::Revoked => "revoked",
        }
    }
}

impl Editor {
    pub fn set_enabled(&mut self, enabled: bool) {
        self.document["enabled"] = toml_edit::value(enabled);
    }

    pub fn set_installed(&mut self, installed: &Installed) {
        let mut table = Table::new();
        table["version"] = toml_edit::value(&installed.version);
        table["sha256"] = toml_edit::value(&installed.sha256);
        self.document["installed"] = Item::Table(table);
    }

    pub fn forget_installed(&mut self) {
        self.document.remove("installed");
    }

    /// Adds one grant; one that is there is replaced.
    pub fn add(
        &mut self,
        table: GrantTable,
        kind: GrantKind,
        value: &str,
        pin: Option<&Pin>,
    ) -> Result<(), ConfigurationError> {
        self.remove(table, kind, value)?;
        if kind.is_plain() {
            self.table(table)?[kind.as_str()] = toml_edit::value(true);
            return Ok(());
        }
        let entry: Value = match pin {
            Some(pin) => {
                let mut inline = toml_edit::InlineTable::new();
                inline.insert("name", pin.name.as_str().into());
                inline.insert("path", pin.path.to_string_lossy().as_ref().into());
                // Inode numbers beyond what TOML can hold do not occur on any file system in use.
                inline.insert("inode", i64::try_from(pin.inode).unwrap_or(i64::MAX).into());
                inline.insert("owner", i64::from(pin.owner).into());
                inline.into()
            }
            None => value.into(),
        };
        self.list(table, kind)?.push(entry);
        Ok(())
    }

    /// Takes one grant away; one that is not there is a success.
    pub fn remove(
        &mut self,
        table: GrantTable,
        kind: GrantKind,
        value: &str,
    ) -> Result<(), ConfigurationError> {
        if self.document.get(table.name()).and_then(|table| table.get(kind.as_str())).is_none() {
            return Ok(());
        }
        if kind.is_plain() {
            self.table(table)?.remove(kind.as_str());
            return Ok(());
        }
        self.list(table, kind)?.retain(|entry| {
            let entry = match entry {
                Value::InlineTable(inline) => inline.get("name").and_then(Value::as_str),
                other => other.as_str(),
            };
            entry != Some(value)
        });
        Ok(())
    }

    fn table(&mut self, table: GrantTable) -> Result<&mut Table, ConfigurationError> {
        let name = table.name();
        let shape = ConfigurationError::Shape {
            file: self.file.clone(),
            table: name.to_owned(),
            key: String::new(),
        };
        let item = self.document.entry(name).or_insert_with(|| Item::Table(Table::new()));
        item.as_table_mut().ok_or(shape)
    }

    fn list(
        &mut self,
        table: GrantTable,
        kind: GrantKind,
    ) -> Result<&mut Array, ConfigurationError> {
        let kind = kind.as_str();
        let shape = ConfigurationError::Shape {
            file: self.file.clone(),
            table: table.name().to_owned(),
            key: kind.to_owned(),
        };
        let item = self.table(table)?;
        let item = item.entry(kind).or_insert_with(|| toml_edit::value(Array::new()));
        item.as_array_mut().ok_or(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::manifest::ProgramGrant;

    fn file(text: &str) -> (tempfile::TempDir, ConfigurationFile) {
        let directory = tempfile::tempdir().unwrap();
        let file = ConfigurationFile::of(directory.path(), "x");
        fs::write(file.path(), text).unwrap();
        (directory, file)
    }

    #[test]
    fn an_edit_keeps_what_people_wrote() {
        let (_directory, file) = file("# mine\n[settings]\nspeed = 3 # fast\n");
        file.edit(|editor| {
            editor.set_enabled(false);
            editor.add(GrantTable::Granted, GrantKind::Http, "https://a.example", None)?;
            editor.add(GrantTable::Granted, GrantKind::Http, "https://b.example", None)?;
            editor.add(GrantTable::Granted, GrantKind::Http, "https://a.example", None)?;
            editor.add(GrantTable::Granted, GrantKind::Loopback, "true", None)?;
            editor.remove(GrantTable::Revoked, GrantKind::Programs, "absent")
        })
        .unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.contains("# mine") && text.contains("speed = 3 # fast"), "{text}");
        let configuration = file.read().unwrap();
        assert!(!configuration.is_enabled());
        assert!(configuration.grants.loopback);
        assert_eq!(configuration.grants.http, ["https://b.example", "https://a.example"]);
        file.edit(|editor| {
            editor.remove(GrantTable::Granted, GrantKind::Http, "https://b.example")
        })
        .unwrap();
        assert_eq!(file.read().unwrap().grants.http, ["https://a.example"]);
    }

    #[test]
    fn a_pinned_program_is_written_with_its_file() {
        let (directory, file) = file("");
        let tool = directory.path().join("tool");
        fs::write(&tool, "").unwrap();
        let pin = Pin::of("tool", &tool).unwrap();
        file.edit(|editor| {
            editor.add(GrantTable::Granted, GrantKind::Programs, "tool", Some(&pin))
        })
        .unwrap();
        let programs = file.read().unwrap().grants.programs;
        assert_eq!(programs, [ProgramGrant::Pinned(pin)]);
        file.edit(|editor| editor.remove(GrantTable::Granted, GrantKind::Programs, "tool"))
            .unwrap();
        assert!(file.read().unwrap().grants.programs.is_empty());
    }

    #[test]
    fn a_grant_that_makes_no_sense_is_not_written() {
        let (_directory, file) = file("");
        for (kind, wrong) in [
            (GrantKind::Http, "ftp://a.example"),
            (GrantKind::Files, "relative"),
            (GrantKind::Programs, "a/b"),
            (GrantKind::Evm, "A Chain"),
            (GrantKind::Transactions, "payments"),
        ] {
            let added = file.edit(|editor| editor.add(GrantTable::Granted, kind, wrong, None));
            assert!(matches!(added, Err(ConfigurationError::Grant(_))), "{wrong}: {added:?}");
        }
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "");
    }

    #[test]
    fn a_file_that_is_wrong_is_named_and_left_as_it_is() {
        let (_directory, wrong) = file("grants = 3\n");
        let error = wrong.read().unwrap_err().to_string();
        assert!(error.contains("x.toml"), "{error}");
        let add = |editor: &mut Editor| {
            editor.add(GrantTable::Granted, GrantKind::Http, "https://a.example", None)
        };
        assert!(wrong.edit(add).is_err());
        assert_eq!(fs::read_to_string(wrong.path()).unwrap(), "grants = 3\n");
        let (_directory, broken) = file("[settings]\ntoken = \"hunter2\nx = 1\n");
        let error = broken.edit(add).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
        let error = broken.read().unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
