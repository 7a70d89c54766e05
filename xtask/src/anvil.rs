//! Anvil, an Ethereum node for tests: a chain of its own on loopback, with accounts that have money.
//!
//! It is published on npm, in the version that `tests/anvil/package.json` names; the lock file beside it has its checksum.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::npm::Npm;
use crate::ui;
use crate::workspace::Workspace;

const ANVIL: Npm =
    Npm { name: "anvil", versions: "tests/anvil", purpose: "have a chain for tests" };

#[cfg(target_arch = "aarch64")]
const PROGRAM: &str = "node_modules/@foundry-rs/anvil-linux-arm64/bin/anvil";
#[cfg(not(target_arch = "aarch64"))]
const PROGRAM: &str = "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";

/// Installs it in its usual place, unless it is there in the right version. Gives the path of the program.
///
/// # Errors
/// When there is no npm, or the package cannot be had.
pub fn install(workspace: &Workspace) -> Result<PathBuf> {
    let directory = ANVIL.install(workspace, |directory| {
        ui::output_of(Command::new(directory.join(PROGRAM)).arg("--version")).is_some()
    })?;
    Ok(directory.join(PROGRAM))
}
