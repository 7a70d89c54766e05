//! Anvil, an Ethereum node for tests: a chain of its own on loopback, with accounts that have money.
//!
//! It is published on npm, in the version that `tests/anvil/package.json` names; the lock file beside it has its checksum.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::{self, Evidence, Need};
use crate::ui::{self, Step};
use crate::workspace::{self, Workspace};

const NPM: Need = Need {
    evidence: Evidence::Program("npm"),
    package: "npm",
    purpose: "install a chain for tests",
};

#[cfg(target_arch = "aarch64")]
const PROGRAM: &str = "node_modules/@foundry-rs/anvil-linux-arm64/bin/anvil";
#[cfg(not(target_arch = "aarch64"))]
const PROGRAM: &str = "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";

/// What npm reads. Copied last, the first one tells which version is installed.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// Installs it in its usual place, unless it is there in the right version. Gives the path of the program.
///
/// # Errors
/// When there is no npm, or the package cannot be had.
pub fn install(workspace: &Workspace) -> Result<PathBuf> {
    let wanted = workspace.root.join("tests/anvil");
    let directory = workspace::cache()?.join("anvil");
    let program = directory.join(PROGRAM);
    let (stamp, wanted_stamp) = (directory.join("installed"), wanted.join(FILES[0]));
    let wanted_versions = read(&wanted_stamp)?;
    let installed = fs::read_to_string(&stamp).unwrap_or_default();
    if installed == wanted_versions && starts(&program) {
        return Ok(program);
    }
    packages::install(&packages::missing([&NPM]), &workspace.log("apt-npm"))?;
    let step = Step::start("installing anvil, to have a chain for tests", Some("10 s"));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for file in FILES {
        fs::write(directory.join(file), read(&wanted.join(file))?)
            .with_context(|| format!("writing {file} to {}", directory.display()))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&directory);
    ui::run_logged(&mut npm, &workspace.log("anvil"))?;
    anyhow::ensure!(starts(&program), "npm has installed no {PROGRAM} that starts");
    fs::write(&stamp, wanted_versions).context("noting what is installed")?;
    step.done();
    Ok(program)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

fn starts(program: &Path) -> bool {
    ui::output_of(Command::new(program).arg("--version")).is_some()
}
