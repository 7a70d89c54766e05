//! `plugin new`, `plugin pack` and `plugin test`: what the author of a plugin does with it. One file per sub-command.
//!
//! Exit status: 0 when all went well, 1 when the plugin is not as it should be, 2 when the command line is wrong or something that
//! it names cannot be used.

mod new;
mod pack;
mod test;

use std::{path::Path, process::ExitCode};

use clap::Subcommand;

use crate::cli::WRONG_USAGE;

#[derive(Debug, Subcommand)]
pub enum Author {
    /// Make a project for a new plugin, which builds and passes its tests as it is
    New(new::New),
    /// Make a plugin's file of what the compiler made and its manifest
    #[command(long_about = pack::ABOUT)]
    Pack(pack::Pack),
    /// Check that a component keeps what its kind promises, in the real engine
    #[command(long_about = test::ABOUT)]
    Test(test::Test),
}

/// Something that the command line names cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

impl Unusable {
    fn file(doing: &str, file: &Path, error: impl std::fmt::Display) -> Self {
        Self(format!("cannot {doing} {}: {error}", file.display()))
    }
}

impl Author {
    pub fn run(&self) -> ExitCode {
        let done = match self {
            Self::New(new) => new.run(),
            Self::Pack(pack) => pack.run(),
            Self::Test(test) => test.run(),
        };
        done.unwrap_or_else(|error| {
            eprintln!("golem-provider: {error}");
            ExitCode::from(WRONG_USAGE)
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Unusable> {
    std::fs::read(file).map_err(|error| Unusable::file("read", file, error))
}

fn read_text(file: &Path) -> Result<String, Unusable> {
    std::fs::read_to_string(file).map_err(|error| Unusable::file("read", file, error))
}
