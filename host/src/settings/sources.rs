//! Where settings come from: the environment and two `.env` files, as texts by key, each with its origin.
//!
//! [`Inputs`] is what was found, without any judgement; a test makes one by hand.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer};

use super::{
    dotenv::{self, Dotenv},
    keys::{self, PREFIX},
};

/// The name of the files that are read.
pub const FILE_NAME: &str = ".env";

/// What the process was started with.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The working directory; its `.env` is read.
    pub working_dir: Option<PathBuf>,
    /// What `~` stands for.
    pub home_dir: Option<PathBuf>,
}

impl Inputs {
    pub fn of_this_process() -> Self {
        Self {
            environment: std::env::vars_os().collect(),
            working_dir: std::env::current_dir().ok(),
            home_dir: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()),
        }
    }
}

/// Who said a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The environment's variable of this name.
    Environment(String),
    /// A `.env` file.
    File(PathBuf),
    CommandLine,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(_) => f.write_str("environment"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text of a key and who said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sourced {
    pub text: String,
    pub origin: Origin,
}

/// All texts of keys that look like ours, and what could not be read.
#[derive(Debug, Default)]
pub struct Sources {
    texts: BTreeMap<String, Sourced>,
    pub problems: Vec<String>,
}

impl Sources {
    pub fn of_environment(environment: &[(OsString, OsString)]) -> Self {
        let mut sources = Self::default();
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| is_ours(name)) else { continue };
            match value.to_str() {
                Some(text) => sources.add(name, text, Origin::Environment(name.to_owned())),
                None => sources.problems.push(format!("{name} is not text in UTF-8")),
            }
        }
        sources
    }

    /// Adds what the `.env` file in a directory says of keys that are not set yet. No file is no problem.
    pub fn add_file(&mut self, dir: &Path) {
        let path = dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return;
            }
            Err(error) => {
                return self.problems.push(format!("{} cannot be read: {error}", path.display()));
            }
        };
        let Dotenv { values, problems } = dotenv::read(&text);
        self.problems
            .extend(problems.into_iter().map(|problem| format!("{}: {problem}", path.display())));
        // Within a file the later line counts, between sources the earlier one.
        let latest: BTreeMap<_, _> = values.into_iter().filter(|(name, _)| is_ours(name)).collect();
        for (name, text) in latest {
            self.add(&name, &text, Origin::File(path.clone()));
        }
    }

    /// An empty text counts as not set, as in a file in which keys were left blank.
    fn add(&mut self, name: &str, text: &str, origin: Origin) {
        let text = text.trim();
        if !text.is_empty() && !self.texts.contains_key(name) {
            self.texts.insert(name.to_owned(), Sourced { text: text.to_owned(), origin });
        }
    }

    pub fn set(&mut self, name: &str, text: &str, origin: Origin) {
        self.texts.insert(name.to_owned(), Sourced { text: text.to_owned(), origin });
    }

    pub fn get(&self, name: &str) -> Option<&Sourced> {
        self.texts.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sourced)> {
        self.texts.iter().map(|(name, sourced)| (name.as_str(), sourced))
    }
}

/// The name under which `tracing` programs are told what to log; read where our own key is not set.
pub const RUST_LOG: &str = "RUST_LOG";

/// Whether a key is, or was meant to be, one of the provider's.
fn is_ours(name: &str) -> bool {
    let environment = keys::ENVIRONMENT.description.name;
    name.starts_with(PREFIX)
        || name == RUST_LOG
        || (name.starts_with("GOLEM_") && strsim::osa_distance(name, environment) <= 2)
}
