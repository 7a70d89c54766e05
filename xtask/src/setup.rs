//! `cargo xtask setup`: everything that has to be installed before anything can be built or run.

use anyhow::Result;

use crate::guest_toolchain::{GuestToolchain, Preference};
use crate::packages::{self, IMAGE_BUILDER, PROVIDER};
use crate::ui;
use crate::workspace::Workspace;

/// Installs what is missing on this machine, saying what and why, asking nothing
///
/// Looks for QEMU, nftables, OpenSSH, the tools that build a disk image and Rust's WebAssembly
/// target, and installs through apt and rustup what is not there. Without root or apt it prints
/// what to install instead, and changes nothing.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out what only the image builder needs
    #[arg(long)]
    no_image_builder: bool,

    #[command(flatten)]
    guest: Preference,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    install(&workspace, !arguments.no_image_builder, &arguments.guest)?;
    ui::note("everything needed is installed");
    Ok(())
}

/// Installs what building and running the provider takes, with the image builder's needs if
/// `image_builder`, and gives the toolchain for plugins.
///
/// # Errors
/// When something is missing and cannot be installed; see [`packages::install`].
pub fn install(
    workspace: &Workspace,
    image_builder: bool,
    guest: &Preference,
) -> Result<GuestToolchain> {
    let image_needs = if image_builder { IMAGE_BUILDER } else { &[] };
    packages::install(
        &packages::missing(PROVIDER.iter().chain(image_needs)),
        &workspace.log("apt"),
    )?;
    GuestToolchain::find_or_install(guest, workspace)
}
