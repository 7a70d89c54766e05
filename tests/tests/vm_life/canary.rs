//! `golem-provider doctor --boot` where no provider runs.

use anyhow::{Result, ensure};
use golem_provider_tests::{Image, Setup, processes};
use serde_json::Value;

use crate::checks::machine;

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_boots_a_machine_logs_in_and_leaves_nothing_behind() -> Result<()> {
    let _turn = machine().await?;
    let setup = Setup::new()?.with_images(&[Image::for_tests()?])?;
    let output = setup.program(&["doctor", "--boot", "--offline", "--json"])?.output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)?;
    let steps: Vec<&str> = report["boot"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    assert_eq!(
        steps,
        ["canary start", "canary boot", "canary login", "canary removal"],
        "{report:#}"
    );
    ensure!(output.status.code().is_some_and(|code| code < 2), "{report:#}");
    ensure!(processes::machines_in(setup.directory()).is_empty(), "a machine runs on");
    for left in ["golem-doctor", "doctor-"] {
        let found = files_named(setup.directory(), left)?;
        ensure!(found.is_empty(), "{found:?}");
    }
    Ok(())
}

fn files_named(directory: &std::path::Path, text: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(text) {
            found.push(entry.path());
        } else if entry.file_type()?.is_dir() {
            found.extend(files_named(&entry.path(), text)?);
        }
    }
    Ok(found)
}
