//! Schemathesis, which makes up requests from the API's own document and judges the answers by it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{tools, wait};

/// For starting up and reporting, beyond the time it is given to ask.
const EXTRA: Duration = Duration::from_secs(120);

/// Holds what listens on this port against the document it serves.
///
/// # Errors
/// When an answer is not as the document says; the text is the whole report, with a `curl` line for each. Also when the
/// program is not installed, or asked nothing.
pub async fn check(port: u16, time: Duration) -> Result<()> {
    let origin = format!("http://127.0.0.1:{port}");
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis");
    let mut command = tokio::process::Command::new(program()?);
    command
        .arg("--config-file")
        .arg(configuration.join("schemathesis.toml"))
        .args(["run", "--checks", "all", "--no-color", "--request-timeout", "10"])
        // The same requests each time, and nothing is left behind.
        .args(["--seed", "1", "--generation-database", "none"])
        .args(["--max-time", &time.as_secs().to_string(), "--url", &origin])
        .arg(format!("{origin}/openapi.json"))
        .env("SCHEMATHESIS_HOOKS", "formats")
        .env("PYTHONPATH", &configuration)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = wait::within("schemathesis", time + EXTRA, command.output()).await?;
    let output = output.context("starting schemathesis")?;
    let report = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("schemathesis ended with {}:\n{report}\n{errors}", output.status);
    }
    if !report.contains(" passed") {
        bail!("schemathesis asked nothing:\n{report}");
    }
    Ok(())
}

fn program() -> Result<PathBuf> {
    tools::find("GOLEM_TEST_SCHEMATHESIS", "schemathesis/bin/schemathesis", "api-checker")
}
