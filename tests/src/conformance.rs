//! The conformance suite as an author of a plugin runs it: the sub-command `plugin test`.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Setup, binary, processes, wait};

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
    /// The checks with this verdict, with their reasons.
    pub fn with_verdict(&self, verdict: &str) -> Vec<String> {
        let checks = self.report["checks"].as_array().into_iter().flatten();
        checks
            .filter(|check| check["verdict"] == verdict)
            .map(|check| format!("{} {}: {}", check["call"], check["promise"], check["reason"]))
            .collect()
    }
}

/// Runs the suite on a plugin, with the configuration that it has in this set-up.
///
/// # Errors
/// When the plugin is not built, or the suite does not end in time.
pub async fn conformance(
    setup: &Setup,
    plugin: &str,
    arguments: &[&str],
    deadline: Duration,
) -> Result<Conformance> {
    let _machines = Machines(setup.directory());
    let component = binary::component(plugin)?.display().to_string();
    let settings = setup.plugin_dir().join(format!("{plugin}.toml")).display().to_string();
    let mut all = vec!["plugin", "test", &component];
    if Path::new(&settings).is_file() {
        all.extend(["--settings", &settings]);
    }
    all.extend(arguments);
    let output = wait::within("the conformance suite", deadline, setup.program(&all)?.output());
    let output = output.await?.context("starting the conformance suite")?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Conformance {
        status: output.status.code().context("the suite was killed")?,
        report: serde_json::from_str(&stdout).unwrap_or_default(),
        stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Real machines of a suite that was killed end with this.
struct Machines<'a>(&'a Path);

impl Drop for Machines<'_> {
    fn drop(&mut self) {
        processes::end_machines_in(self.0);
    }
}
