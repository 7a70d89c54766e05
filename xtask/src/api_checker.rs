//! `cargo xtask api-checker`: schemathesis, which holds the API against its own document in the end-to-end tests.
//!
//! It is a Python program, installed with everything it needs, in the versions that
//! `tests/schemathesis/requirements.txt` names, into a virtual environment in the cache directory. Nothing of the
//! machine's own Python is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::{self, Evidence, Need};
use crate::ui::{self, Step};
use crate::workspace::{self, Workspace};

const PYTHON: Need = Need {
    evidence: Evidence::Program("python3"),
    package: "python3",
    purpose: "hold the API against its document",
};

/// Debian's Python comes without.
const VENV: Need = Need {
    evidence: Evidence::File(&[]),
    package: "python3-venv",
    purpose: "install what holds the API against its document",
};

/// What tells which versions are installed.
const STAMP: &str = "requirements.txt";

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
    let requirements = workspace.root.join("tests/schemathesis/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("reading {}", requirements.display()))?;
    let directory = workspace::cache()?.join("schemathesis");
    let program = directory.join("bin/schemathesis");
    let installed = fs::read_to_string(directory.join(STAMP)).unwrap_or_default();
    if installed == wanted && starts(&program) {
        return Ok(program);
    }
    packages::install(&packages::missing([&PYTHON]), &workspace.log("apt-python"))?;
    if ui::output_of(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_none() {
        packages::install(&[&VENV], &workspace.log("apt-python"))?;
    }
    let step =
        Step::start("installing schemathesis, to hold the API against its document", Some("20 s"));
    let log = workspace.log("schemathesis");
    ui::run_logged(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory), &log)?;
    let mut pip = Command::new(directory.join("bin/python"));
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary", ":all:"]);
    ui::run_logged(pip.arg("--requirement").arg(&requirements), &log)?;
    fs::write(directory.join(STAMP), wanted).context("noting what is installed")?;
    step.done();
    Ok(program)
}

/// A virtual environment stops working when the Python it was made from goes.
fn starts(program: &Path) -> bool {
    ui::output_of(Command::new(program).arg("--version")).is_some()
}
