//! `cargo xtask image`: a disk image for virtual machines, built on this machine.
//!
//! The work is done by the builder beside the plugin that boots the image,
//! `plugins/qemu/image/build.sh`; here it is found, run as root and shown step by step.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::ui::{self, Step};
use crate::workspace::{self, Workspace};

/// The name under which the image is in its catalog.
pub const ALIAS: &str = "debian-12";

/// Builds the Debian 12 disk image, unless it is up to date
///
/// The image is made from Debian's packages, for machines that cannot download the published
/// cloud images, and for the tests. Takes root, and one to three minutes the first time. The
/// result is a catalog entry: DIR/catalog.toml.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where the image goes
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Build again with today's packages, although nothing changed
    #[arg(long)]
    refresh: bool,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    let directory = match &arguments.out {
        Some(out) => std::path::absolute(out).context("finding the output directory")?,
        None => default_directory()?,
    };
    if arguments.refresh || !is_up_to_date(&workspace, &directory) {
        let missing = packages::missing(packages::IMAGE_BUILDER);
        packages::install(&missing, &workspace.log("apt-image"))?;
    }
    let catalog = build_in(&workspace, &directory, arguments.refresh)?;
    ui::note(format!("catalog: {}", catalog.display()));
    Ok(())
}

/// Builds the image in its usual place, outside of the checkout, unless it is up to date. Gives
/// the path of its catalog.
///
/// # Errors
/// When the builder's needs are not there (see [`packages::IMAGE_BUILDER`]) or it fails.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    build_in(workspace, &default_directory()?, false)
}

/// `${XDG_CACHE_HOME:-~/.cache}/golem-provider/images/debian-12`
fn default_directory() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("images").join(ALIAS))
}

fn builder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("plugins/qemu/image/build.sh")
}

fn is_up_to_date(workspace: &Workspace, directory: &Path) -> bool {
    let mut check = Command::new(builder(workspace));
    ui::output_of(check.arg("--check").arg("--out").arg(directory)).is_some()
}

fn build_in(workspace: &Workspace, directory: &Path, refresh: bool) -> Result<PathBuf> {
    let catalog = directory.join("catalog.toml");
    if !refresh && is_up_to_date(workspace, directory) {
        ui::note(format!("the {ALIAS} image is up to date"));
        return Ok(catalog);
    }
    eprintln!(
        "--> building the {ALIAS} image in {} (usually one to three minutes)",
        directory.display()
    );
    let mut command = as_root(&builder(workspace))?;
    command.arg("--out").arg(directory);
    if refresh {
        command.arg("--refresh");
    }
    show_steps(&mut command)?;
    Ok(catalog)
}

/// A command that runs `program` as root.
fn as_root(program: &Path) -> Result<Command> {
    match packages::root_prefix() {
        Some([]) => Ok(Command::new(program)),
        Some(prefix) => {
            let mut command = Command::new(prefix[0]);
            command.args(&prefix[1..]).arg(program);
            Ok(command)
        }
        None => bail!(
            "building a disk image takes root, and this user neither is root nor can use sudo without a password. \
             As root: {}",
            program.display()
        ),
    }
}

/// Runs the builder; each line it prints is a step, which ends where the next one begins.
fn show_steps(command: &mut Command) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .context("starting the image builder")?;
    let mut step: Option<Step> = None;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(done) = step.take() {
                done.done();
            }
            match line.strip_prefix("built: ") {
                Some(built) => ui::note(format!("built {built}")),
                None => step = Some(Step::start(line, None)),
            }
        }
    }
    let status = child.wait().context("waiting for the image builder")?;
    if !status.success() {
        bail!("the image builder ended with {status}");
    }
    if let Some(done) = step {
        done.done();
    }
    Ok(())
}
