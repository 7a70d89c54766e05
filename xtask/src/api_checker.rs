//! `cargo xtask api-checker`: schemathesis, which holds the API against its own document in the end-to-end tests.

use std::path::PathBuf;

use anyhow::Result;

use crate::ui;
use crate::venv::Venv;
use crate::workspace::Workspace;

const SCHEMATHESIS: Venv = Venv {
    name: "schemathesis",
    purpose: "hold the API against its document",
    proof: &["schemathesis", "--version"],
};

/// Installs schemathesis for the tests, unless it is there
#[derive(clap::Args)]
pub struct Arguments {}

pub fn main(_: &Arguments) -> Result<()> {
    let program = install(&Workspace::find()?)?;
    ui::note(format!("schemathesis: {}", program.display()));
    Ok(())
}

/// Installs it in its usual place, unless it is there in the right version. Gives the path of the program.
///
/// # Errors
/// When there is no Python, or its packages cannot be had.
pub fn install(workspace: &Workspace) -> Result<PathBuf> {
    Ok(SCHEMATHESIS.install(workspace)?.join("schemathesis"))
}
