//! Programs of others that tests use, which `cargo xtask` installs.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};

/// A file or directory: where a variable says, else in the cache.
///
/// # Errors
/// When it is not installed; the text says how to install it.
pub(crate) fn find(variable: &str, in_cache: &str, installed_by: &str) -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = set(variable) {
        return Ok(named);
    }
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| Some(env::home_dir()?.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    let usual = cache.join("golem-provider").join(in_cache);
    if !usual.exists() {
        bail!(
            "{} is missing. Run `cargo xtask {installed_by}` first, or name it in {variable}",
            usual.display()
        );
    }
    Ok(usual)
}

/// The directory with the published discovery server, `golem-discovery`, and the `python` that runs it.
///
/// # Errors
/// When it is not installed.
pub fn discovery() -> Result<PathBuf> {
    find("GOLEM_TEST_DISCOVERY", "discovery/bin", "network")
}

/// The directory with a `python` that has `golem_base_sdk`, and what comes with that: aiohttp, rlp, eth_utils.
///
/// # Errors
/// When it is not installed.
pub fn golem_base() -> Result<PathBuf> {
    find("GOLEM_TEST_GOLEM_BASE", "golem-base/bin", "network")
}
