//! The program under test, and the plugins that only tests load.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, anyhow, bail};

/// Names a provider to test instead of the one of this checkout.
const BINARY_VARIABLE: &str = "GOLEM_PROVIDER_BINARY";

/// Names a directory of components to take instead of the one in the target directory.
const PLUGINS_VARIABLE: &str = "GOLEM_PLUGINS_BUILD_DIR";

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
    // Exactly as `cargo test --workspace` builds it: another selection of crates would turn on other features of the
    // dependencies, and compile all of them a second time.
    let built = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "test",
            "--quiet",
            "--workspace",
            "--no-run",
            "--profile",
            if profile == "dev" { "test" } else { profile },
        ])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("starting cargo")?;
    if !built.status.success() {
        bail!("building the provider failed:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(profile_dir.join("golem-provider"))
}

/// The directory of the components that `cargo xtask plugins` has made.
///
/// # Errors
/// When there is none; the text says how to make it.
pub fn plugins() -> Result<PathBuf> {
    let test = env::current_exe().context("finding this test")?;
    // The directory `plugins` of the target directory that this test lies in, at whatever depth.
    let beside_test = test.ancestors().map(|directory| directory.join("plugins"));
    env::var_os(PLUGINS_VARIABLE)
        .map(PathBuf::from)
        .into_iter()
        .chain(beside_test)
        .find(|directory| directory.is_dir())
        .context("the plugins are not built: run `cargo xtask plugins` first")
}

/// The file of a component.
///
/// # Errors
/// When it was not built yet; the text says how to.
pub fn component(name: &str) -> Result<PathBuf> {
    let file = plugins()?.join(format!("{name}.wasm"));
    if !file.is_file() {
        bail!("{} is missing: run `cargo xtask plugins` first", file.display());
    }
    Ok(file)
}
