//! What tests use of npm: each tool has a directory of its own in the cache, installed from the `package.json` and the lock
//! file in this repository that name its version and checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages::{self, Evidence, Need};
use crate::ui::{self, Step};
use crate::workspace::{self, Workspace};

const NPM: Need =
    Need { evidence: Evidence::Program("npm"), package: "npm", purpose: "install tools for tests" };

/// What npm reads. Copied last, the first one tells which version is installed.
const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// A tool and where it comes from.
pub struct Npm {
    /// Of its directory in the cache, and in messages.
    pub name: &'static str,
    /// The directory of the repository with its `package.json`.
    pub versions: &'static str,
    /// What it is installed for: "installing NAME, to …".
    pub purpose: &'static str,
}

impl Npm {
    /// Installs it in its usual place, unless it is there in the right version and `works` there. Gives the directory that
    /// has `node_modules`.
    ///
    /// # Errors
    /// When there is no npm, or the package cannot be had.
    pub fn install(&self, workspace: &Workspace, works: impl Fn(&Path) -> bool) -> Result<PathBuf> {
        let wanted = workspace.root.join(self.versions);
        let directory = workspace::cache()?.join(self.name);
        let stamp = directory.join("installed");
        let wanted_versions = read(&wanted.join(FILES[0]))?;
        if fs::read_to_string(&stamp).unwrap_or_default() == wanted_versions && works(&directory) {
            return Ok(directory);
        }
        packages::install(&packages::missing([&NPM]), &workspace.log("apt-npm"))?;
        let what = format!("installing {}, to {}", self.name, self.purpose);
        let step = Step::start(what, Some("10 s"));
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        for file in FILES {
            fs::write(directory.join(file), read(&wanted.join(file))?)
                .with_context(|| format!("writing {file} to {}", directory.display()))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&directory);
        ui::run_logged(&mut npm, &workspace.log(self.name))?;
        anyhow::ensure!(
            works(&directory),
            "npm has installed no {} that works in {}",
            self.name,
            directory.display()
        );
        fs::write(&stamp, wanted_versions).context("noting what is installed")?;
        step.done();
        Ok(directory)
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
