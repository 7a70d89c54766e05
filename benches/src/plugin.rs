//! A provider's plugin engine with a plugin loaded, the way the provider loads one.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail};
use golem_provider::plugins::{
    VmBackend,
    catalog::{self, Catalog, CatalogConfig},
    ethereum::NoEthereum,
    harness::MemoryState,
};
use tempfile::TempDir;

/// The plugin that is called: the one of the tests, which answers an unknown name with a machine of that name.
pub const NAME: &str = "misbehaving";

/// The plugin whose machines are on paper, and its settings: nobody is at that address, and nobody has to be.
pub const PAPER: &str = "paper";
pub const PAPER_SETTINGS: &str = "[settings]\nssh = \"127.0.0.1:9\"\n";

/// A component, as `cargo xtask plugins` has built it.
///
/// # Errors
/// When it was not built.
pub fn component(name: &str) -> Result<Vec<u8>> {
    let program = std::env::current_exe().context("finding this program")?;
    // This program is <target directory>/<profile>/deps/<name>.
    let target = program.ancestors().nth(3).context("this program is in no target directory")?;
    let file = target.join("plugins").join(name).with_extension("wasm");
    std::fs::read(&file)
        .with_context(|| format!("{}: build it with `cargo xtask plugins`", file.display()))
}

/// The plugin on paper as one of another name, which has to be as long.
///
/// # Errors
/// When it was not built, or the name has another length.
pub fn paper_called(name: &str) -> Result<Vec<u8>> {
    let own = PAPER.as_bytes();
    if name.len() != own.len() {
        bail!("{name} is not as long as {PAPER}");
    }
    let mut bytes = component(PAPER)?;
    let places: Vec<usize> =
        (0..bytes.len() - own.len()).filter(|&at| bytes[at..].starts_with(own)).collect();
    for at in places {
        bytes[at..at + own.len()].copy_from_slice(name.as_bytes());
    }
    Ok(bytes)
}

/// The same plugin as other bytes: with another custom section at its end.
pub fn variant(component: &[u8], number: u8) -> Vec<u8> {
    [component, &[0, 3, 1, b'x', number]].concat()
}

/// A name of 200 bytes that means nothing to the plugin, which puts it into its answer.
pub fn record() -> String {
    "0123456789".repeat(20)
}

/// A loaded plugin with the directory that it was loaded from.
pub struct Loaded {
    pub backend: Arc<dyn VmBackend>,
    _directory: Option<TempDir>,
}

/// Loads the plugin in a directory of its own, or in one that may hold its compiled code already.
///
/// # Errors
/// When it cannot be loaded.
pub async fn load(directory: Option<PathBuf>) -> Result<Loaded> {
    let (path, own) = match directory {
        Some(path) => (path, None),
        None => {
            let own = tempfile::tempdir().context("making a directory")?;
            (own.path().to_owned(), Some(own))
        }
    };
    let plugin_dir = path.join("plugins");
    std::fs::create_dir_all(&plugin_dir).context("making the plugin directory")?;
    std::fs::write(plugin_dir.join(NAME).with_extension("wasm"), component(NAME)?)
        .context("copying the plugin")?;
    let config = CatalogConfig {
        plugin_dir,
        vm_data_dir: path.join("vms"),
        cache_dir: path.join("cache"),
        settings: BTreeMap::new(),
    };
    let catalog = Catalog::new(config, Arc::new(MemoryState::default()), Arc::new(NoEthereum))
        .context("setting the engine up")?;
    let loaded = catalog.load_named(NAME).await.context("loading the plugin")?;
    let catalog::Loaded::VmBackend(backend) = loaded.plugin else { bail!("it makes no machines") };
    Ok(Loaded { backend, _directory: own })
}
