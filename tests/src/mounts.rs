//! File systems of a test's own, for what a directory cannot be made to do: be full, or refuse to be written. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use rustix::process::geteuid;

use crate::optional;

/// A file system that is gone with this value.
pub struct Mount {
    directory: PathBuf,
}

/// May this process mount anything?
///
/// # Panics
/// When it may not, in continuous integration.
pub fn are_allowed() -> bool {
    optional::tell(geteuid().is_root(), "only root can mount the file system that this test needs")
}

impl Mount {
    /// A file system in memory that holds so much.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn in_memory(directory: &Path, size_bytes: u64) -> Result<Mount> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let options = format!("size={size_bytes},mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory))?;
        Ok(Mount { directory: directory.to_owned() })
    }

    /// A directory that can be made read-only.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn of_itself(directory: &Path) -> Result<Mount> {
        run(Command::new("mount").arg("--bind").args([directory, directory]))?;
        Ok(Mount { directory: directory.to_owned() })
    }
}

/// Gives a file system in memory another size.
///
/// # Errors
/// When the kernel refuses, for instance because more is there already.
pub fn resize(directory: &Path, size_bytes: u64) -> Result<()> {
    let options = format!("remount,size={size_bytes}");
    run(Command::new("mount").args(["-o", &options]).arg(directory))
}

/// Lets nobody write to a directory that is mounted on itself, or everybody again. Nobody may be writing at the moment.
///
/// # Errors
/// When the kernel refuses.
pub fn set_read_only(directory: &Path, read_only: bool) -> Result<()> {
    let options = if read_only { "remount,bind,ro" } else { "remount,bind,rw" };
    run(Command::new("mount").args(["-o", options]).arg(directory))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever still has it open keeps it, out of sight, until he ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.directory).status();
    }
}
