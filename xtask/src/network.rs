//! `cargo xtask network`: the programs that tests put in the place of the Golem Network, on loopback: a chain, the discovery
//! server that requestors really ask, and the library that they read Golem Base with.

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{anvil, ui, venv::Venv};

/// The published discovery server.
const DISCOVERY: Venv = Venv {
    name: "discovery",
    purpose: "advertise to the real discovery server",
    // The server itself knows no option that ends it.
    proof: &["python", "-c", "import discovery.main"],
};

/// Apart from the discovery server, which needs an older generation of the same packages.
const GOLEM_BASE: Venv = Venv {
    name: "golem-base",
    purpose: "read advertisements on Golem Base as requestors do",
    proof: &["python", "-c", "import golem_base_sdk"],
};

/// Installs what tests put in the place of the Golem Network, unless it is there
#[derive(clap::Args)]
pub struct Arguments {}

/// Where things are.
pub struct Network {
    /// The program.
    pub anvil: PathBuf,
    /// The directory with `golem-discovery`.
    pub discovery: PathBuf,
    /// The directory with a `python` that has `golem_base_sdk`.
    pub golem_base: PathBuf,
}

pub fn main(_: &Arguments) -> Result<()> {
    let network = install(&Workspace::find()?)?;
    ui::note(format!("anvil: {}", network.anvil.display()));
    ui::note(format!("discovery server: {}", network.discovery.display()));
    ui::note(format!("golem-base-sdk: {}", network.golem_base.display()));
    Ok(())
}

/// # Errors
/// When something cannot be had.
pub fn install(workspace: &Workspace) -> Result<Network> {
    Ok(Network {
        anvil: anvil::install(workspace)?,
        discovery: DISCOVERY.install(workspace)?,
        golem_base: GOLEM_BASE.install(workspace)?,
    })
}
