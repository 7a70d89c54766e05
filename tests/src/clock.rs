//! A provider's own clock, which a test sets while the provider runs. Everybody else's goes on as it was.
//!
//! Libfaketime answers the program's questions for the time of day; how long something takes is measured by another clock,
//! which nobody can set.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jiff::SignedDuration;

use crate::optional;

/// For programs with threads. Where Debian and Ubuntu have it, for each architecture.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// Is there what it takes?
///
/// # Panics
/// When there is not, in continuous integration.
pub fn can_be_set() -> bool {
    optional::tell(library().is_some(), "libfaketime is not installed (package libfaketime)")
}

fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|library| Path::new(library).is_file())
}

/// A clock that goes as fast as that of the machine.
#[derive(Debug, Clone)]
pub struct Clock {
    library: &'static str,
    /// By how much it is off.
    file: PathBuf,
}

impl Clock {
    /// One that is right at first.
    ///
    /// # Errors
    /// When libfaketime is not installed, or its file cannot be written.
    pub(crate) fn new(directory: &Path) -> Result<Clock> {
        let library = library().context("libfaketime is not installed (package libfaketime)")?;
        let clock = Clock { library, file: directory.join("clock") };
        clock.set_off_by(SignedDuration::ZERO)?;
        Ok(clock)
    }

    /// Puts it before the machine's, or behind it.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set_off_by(&self, offset: SignedDuration) -> Result<()> {
        let beside = self.file.with_extension("new");
        fs::write(&beside, format!("{:+}\n", offset.as_secs()))
            .and_then(|()| fs::rename(&beside, &self.file))
            .with_context(|| format!("writing {}", self.file.display()))
    }

    /// What a program is started with to go by it.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 5] {
        [
            ("LD_PRELOAD", self.library.into()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }

    /// Removes what a process that was killed could not.
    pub(crate) fn clear_up_after(pid: u32) {
        for left in [format!("sem.faketime_sem_{pid}"), format!("faketime_shm_{pid}")] {
            // Not there after a process that ended by itself.
            let _ = fs::remove_file(Path::new("/dev/shm").join(left));
        }
    }
}
