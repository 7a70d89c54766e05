//! The program under test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, bail};

/// Names a provider to test instead of the one of this checkout.
const BINARY_VARIABLE: &str = "GOLEM_PROVIDER_BINARY";

/// The provider, built from this checkout if it is not up to date.
///
/// # Errors
/// When it cannot be built.
pub fn provider() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!("there is no provider to test: {error}"))
}

fn find() -> Result<PathBuf> {
    if let Some(binary) = env::var_os(BINARY_VARIABLE) {
        let binary = PathBuf::from(binary);
        if !binary.is_file() {
            bail!("{BINARY_VARIABLE} is {}, which is no file", binary.display());
        }
        return Ok(binary);
    }
    // This test is <target directory>/<profile>/deps/<name>.
    let test = env::current_exe().context("finding this test")?;
    let mut ancestors = test.ancestors().skip(2);
    let (Some(profile_dir), Some(target_dir)) = (ancestors.next(), ancestors.next()) else {
        bail!("{} does not lie in a target directory", test.display());
    };
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(other) => other,
        None => bail!("{} does not lie in a profile's directory", test.display()),
    };
    // With the features that the whole workspace needs, as `cargo test --workspace` has built everything already.
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--workspace", "--bin", "golem-provider", "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("starting cargo")?;
    if !built.status.success() {
        bail!("cargo build failed:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(profile_dir.join("golem-provider"))
}
