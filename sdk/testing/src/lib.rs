//! Tests of a plugin in the provider's own engine, without a provider.
//!
//! The component runs as it will at an operator's: a fresh instance for each call, the real limits, the real checks of
//! grants. What it asks of the machine is answered by a [`Script`], so that a test decides what is installed, how a program
//! ends and what a server says; or by the real machine, where that is asked for.
//!
//! ```no_run
//! use golem_provider_sdk_testing::{Answer, Harness, Script, VmBackend, component, unheard};
//!
//! # async fn a_test() -> Result<(), Box<dyn std::error::Error>> {
//! let script = Script::new()
//!     .on("my-hypervisor", &["version"], Answer::success().stdout("9.1\n"))
//!     .on("my-hypervisor", &["delete", "golem-web-1"], Answer::status(3).stderr("it is locked"))
//!     .simulated_clock();
//! let plugin = Harness::new(component("my-backend")?)?.script(script).load().await?;
//!
//! let error = plugin.delete("golem-web-1").await.unwrap_err();
//! assert!(error.message.contains("it is locked"));
//! assert!(plugin.script().is_some_and(|script| script.unexpected().is_empty()));
//! # Ok(())
//! # }
//! ```
//!
//! What a plugin remembers is in [`Harness::state`] and [`Loaded::directory`]; loading it again from the same [`Harness`] is
//! a provider that starts anew. Grants are those that the plugin's manifest asks for, so a test also finds what is missing there.
//!
//! This crate is a door to `golem_provider::plugins::harness` and has next to no code of its own. It compiles the provider with
//! its engine, which takes minutes the first time; the provider's build needs its bundled plugins (`cargo xtask plugins`
//! in its checkout) and is told where they are by `GOLEM_PLUGINS_BUILD_DIR` when it is built from another workspace.
//! What a plugin decides without the machine is better tested natively, in milliseconds.

use std::{
    env, io,
    path::{Path, PathBuf},
};

pub use golem_provider::plugins::harness::{
    Advertisement, Advertiser, AdvertiserComponent, Answer, Asked, BootLimits, Change, Deadlines,
    Description, Failure, FailureKind, Finding, Harness, HarnessError, Image, Instance,
    InstanceSpec, Listing, Loaded, MemoryState, PowerState, Prices, Progress, ProgressSink,
    Published, Query, Reply, Resources, Schedule, Script, Severity, VmBackend, VmComponent,
    ethereum, unheard,
};
pub use golem_provider::plugins::manifest::GrantList;

/// Says where finished components are, if not in the directory `plugins` of the target directory.
const PLUGINS_VARIABLE: &str = "GOLEM_PLUGINS_BUILD_DIR";

/// A component is not where it should be.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {file}: {source}; build the plugin first (`cargo xtask plugins`, or `golem-provider plugin pack`), or say in {PLUGINS_VARIABLE} where it is",
    file = file.display()
)]
pub struct NoComponent {
    file: PathBuf,
    source: io::Error,
}

/// The component `NAME.wasm` out of [`plugins`].
///
/// # Errors
/// When it was not built.
pub fn component(name: &str) -> Result<Vec<u8>, NoComponent> {
    let file = plugins().join(format!("{name}.wasm"));
    std::fs::read(&file).map_err(|source| NoComponent { file, source })
}

/// Where finished components are: the directory that `GOLEM_PLUGINS_BUILD_DIR` names, else `plugins` in the target directory of
/// the running test.
pub fn plugins() -> PathBuf {
    if let Some(directory) = env::var_os(PLUGINS_VARIABLE) {
        return directory.into();
    }
    let test = env::current_exe().unwrap_or_default();
    test.ancestors()
        .map(|directory| directory.join("plugins"))
        .find(|directory| directory.is_dir())
        .unwrap_or_else(|| Path::new("target/plugins").to_owned())
}
