//! Python programs that only tests use, each with everything it needs in a virtual environment in the cache directory.
//!
//! The versions are those of a `requirements.txt` that names every package, so that nothing is resolved anew and an
//! installation is the same tomorrow. Nothing of the machine's own Python is changed.

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
    purpose: "run what tests hold the provider against",
};

/// Debian's Python comes without.
const VENV: Need = Need {
    evidence: Evidence::File(&[]),
    package: "python3-venv",
    purpose: "install what tests hold the provider against",
};

/// What tells which versions are installed.
const STAMP: &str = "requirements.txt";

/// One environment.
pub struct Venv {
    /// Of its directory in the cache, and mostly of the one in `tests/` that has its `requirements.txt`.
    pub name: &'static str,
    /// What for, in words that complete "installing …, to".
    pub purpose: &'static str,
    /// Succeeds where it works: the name of a program in it, and arguments.
    pub proof: &'static [&'static str],
}

impl Venv {
    /// Installs it in its usual place, unless it is there in the right versions. Gives the directory of its programs.
    ///
    /// # Errors
    /// When there is no Python, or its packages cannot be had.
    pub fn install(&self, workspace: &Workspace) -> Result<PathBuf> {
        let requirements = workspace.root.join("tests").join(self.name).join("requirements.txt");
        self.install_as(workspace, &requirements)
    }

    /// The same, with the versions that another file names.
    ///
    /// # Errors
    /// As above.
    pub fn install_as(&self, workspace: &Workspace, requirements: &Path) -> Result<PathBuf> {
        let wanted = fs::read_to_string(requirements)
            .with_context(|| format!("reading {}", requirements.display()))?;
        let directory = workspace::cache()?.join(self.name);
        let programs = directory.join("bin");
        let installed = fs::read_to_string(directory.join(STAMP)).unwrap_or_default();
        if installed == wanted && self.works(&programs) {
            return Ok(programs);
        }
        packages::install(&packages::missing([&PYTHON]), &workspace.log("apt-python"))?;
        if ui::output_of(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_none() {
            packages::install(&[&VENV], &workspace.log("apt-python"))?;
        }
        let step =
            Step::start(format!("installing {}, to {}", self.name, self.purpose), Some("20 s"));
        let log = workspace.log(self.name);
        let mut make = Command::new("python3");
        ui::run_logged(make.args(["-m", "venv", "--clear"]).arg(&directory), &log)?;
        let mut pip = Command::new(programs.join("python"));
        // Everything is named, so nothing is to be resolved; what a package claims of others is not always so.
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary", ":all:"]);
        ui::run_logged(pip.arg("--requirement").arg(requirements), &log)?;
        fs::write(directory.join(STAMP), wanted).context("noting what is installed")?;
        step.done();
        Ok(programs)
    }

    /// A virtual environment stops working when the Python it was made from goes.
    fn works(&self, programs: &Path) -> bool {
        let Some((program, arguments)) = self.proof.split_first() else { return false };
        ui::output_of(Command::new(programs.join(program)).args(arguments)).is_some()
    }
}
