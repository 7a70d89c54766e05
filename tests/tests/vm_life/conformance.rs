//! The bundled backend, against everything that the contract promises.

use std::time::Duration;

use anyhow::{Result, ensure};
use golem_provider_tests::{DEFAULT_IMAGE, Image, Setup, conformance};

use crate::checks::{BOOT_DEADLINE, machine};

/// Two boots and a shutdown lie in it.
const DEADLINE: Duration = BOOT_DEADLINE.saturating_mul(3);

#[tokio::test(flavor = "multi_thread")]
async fn the_qemu_backend_keeps_what_the_contract_promises() -> Result<()> {
    let _turn = machine().await?;
    let arguments = ["--json", "--grant-all", "--image", DEFAULT_IMAGE];
    let setup = Setup::new()?.with_images(&[Image::for_tests()?])?;
    let run = conformance(&setup, "qemu", &arguments, DEADLINE).await?;
    eprintln!("{}", run.stderr);
    ensure!(run.status == 0, "{}: {:#?}", run.status, run.with_verdict("failed"));
    ensure!(run.with_verdict("passed").len() > 35);
    Ok(())
}
