//! The conformance suite as an author of a plugin runs it: the sub-command `plugin test`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Image, Setup, images, processes, wait};

/// What a run came to.
#[derive(Debug)]
pub struct Conformance {
    /// The exit status.
    pub status: i32,
    /// What was written to standard output, as JSON where that was asked for.
    pub report: Value,
    pub stdout: String,
    pub stderr: String,
}

impl Conformance {
    /// The lines of checks with this verdict, with their reasons.
    pub fn with_verdict(&self, verdict: &str) -> Vec<String> {
        let checks = self.report["checks"].as_array().into_iter().flatten();
        checks
            .filter(|check| check["verdict"] == verdict)
            .map(|check| format!("{} {}: {}", check["call"], check["promise"], check["reason"]))
            .collect()
    }
}

/// Runs the suite on a component, with this configuration file.
///
/// # Errors
/// When it does not end in time.
pub async fn conformance(
    component: &Path,
    configuration: &str,
    arguments: &[&str],
    deadline: Duration,
) -> Result<Conformance> {
    let setup = Setup::new()?;
    let _machines = Machines(setup.directory());
    let settings = setup.directory().join("settings.toml");
    fs::write(&settings, configuration).context("writing the settings")?;
    let (component, settings) = (component.display().to_string(), settings.display().to_string());
    let mut all = vec!["plugin", "test", &component, "--settings", &settings];
    all.extend(arguments);
    let output = wait::within("the conformance suite", deadline, setup.command(&all)?.output());
    let output = output.await?.context("starting the conformance suite")?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Conformance {
        status: output.status.code().context("the suite was killed")?,
        report: serde_json::from_str(&stdout).unwrap_or_default(),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Image {
    /// The configuration of the QEMU plugin that offers this image.
    ///
    /// # Errors
    /// When it cannot be written as TOML.
    pub fn configuration(&self) -> Result<String> {
        images::plugin_configuration(std::slice::from_ref(self))
    }
}

/// Real machines of a suite that was killed end with this.
struct Machines<'a>(&'a Path);

impl Drop for Machines<'_> {
    fn drop(&mut self) {
        processes::end_machines_in(self.0);
    }
}
