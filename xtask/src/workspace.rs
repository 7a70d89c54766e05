//! Where things are in this checkout, as cargo sees it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What crates that become components are called, before the plugin's own name.
const PLUGIN_CRATE_PREFIX: &str = "golem-plugin-";

/// Where those crates lie: the plugins that are shipped, and those that only tests load.
const PLUGIN_DIRECTORIES: [&str; 2] = ["plugins", "tests/plugins"];

/// The checkout and its build directory.
pub struct Workspace {
    /// The directory of the checkout.
    pub root: PathBuf,
    /// Where cargo puts what it builds; not always `target` (`CARGO_TARGET_DIR`).
    pub target: PathBuf,
    /// The crates under `plugins/` and `tests/plugins/` that become components, by name.
    pub plugins: Vec<PluginCrate>,
}

/// A crate that becomes a component.
pub struct PluginCrate {
    /// The crate's name: `golem-plugin-qemu`.
    pub package: String,
    /// The plugin's name: `qemu`.
    pub name: String,
    /// What the plugin asks for, which its component carries along. Need not exist.
    pub manifest: PathBuf,
    /// What its `Cargo.toml` says of it.
    pub says: golem_provider_sdk_pack::Package,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    description: Option<String>,
    license: Option<String>,
    manifest_path: PathBuf,
}

/// A directory of the checkout that `cargo xtask` was called in. Not what was compiled in: checkouts that share a build
/// directory share this program too.
fn checkout() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo fails, or a crate in a directory of plugins has a name that makes no plugin's name.
    pub fn find() -> Result<Workspace> {
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(checkout())
            .output()
            .context("starting cargo metadata")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let metadata: Metadata =
            serde_json::from_slice(&output.stdout).context("reading cargo's metadata")?;

        let directories = PLUGIN_DIRECTORIES.map(|path| metadata.workspace_root.join(path));
        let mut plugins = Vec::new();
        for package in metadata.packages {
            let is_plugin =
                directories.iter().any(|directory| package.manifest_path.starts_with(directory));
            if !is_plugin {
                continue;
            }
            let Some(name) = package.name.strip_prefix(PLUGIN_CRATE_PREFIX) else {
                bail!(
                    "{}: a plugin's crate has to be called {PLUGIN_CRATE_PREFIX}…",
                    package.manifest_path.display()
                );
            };
            plugins.push(PluginCrate {
                name: name.to_owned(),
                manifest: package.manifest_path.with_file_name("plugin.toml"),
                says: golem_provider_sdk_pack::Package {
                    name: package.name.clone(),
                    version: package.version,
                    description: package.description.unwrap_or_default(),
                    license: package.license.unwrap_or_default(),
                },
                package: package.name,
            });
        }
        plugins.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Workspace { root: metadata.workspace_root, target: metadata.target_directory, plugins })
    }

    /// Where finished components go, and where the host's build looks for them.
    pub fn components(&self) -> PathBuf {
        self.target.join("plugins")
    }

    /// The log of a step whose output is not shown.
    pub fn log(&self, name: &str) -> PathBuf {
        self.target.join("xtask-logs").join(format!("{name}.log"))
    }
}

/// Where things are kept that outlast a checkout: `${XDG_CACHE_HOME:-~/.cache}/golem-provider`.
///
/// # Errors
/// When neither variable is set.
pub fn cache() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => {
            std::env::home_dir().context("neither XDG_CACHE_HOME nor HOME is set")?.join(".cache")
        }
    };
    Ok(cache.join("golem-provider"))
}

/// The cargo that runs this program, else the one in `PATH`.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
