//! The data directory: ours alone, closed to other users.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::StoreError;

pub(super) const LOCK_FILE: &str = "provider.lock";
pub(super) const DATABASE: &str = "provider.db";

/// A data directory that this process has for itself until it is dropped, or the process ends in whatever way.
pub(super) struct DataDirectory {
    path: PathBuf,
    /// Locked by the kernel for as long as it is open. The file itself stays; its content is for people.
    _lock: File,
}

impl DataDirectory {
    pub(super) fn take(path: &Path) -> Result<DataDirectory, StoreError> {
        let failed = |source| StoreError::Directory { path: path.to_owned(), source };
        make_private(path).map_err(failed)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                return Err(StoreError::InUse {
                    path: path.to_owned(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let note_owner = |lock: &mut File| -> io::Result<()> {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        note_owner(&mut lock).map_err(failed)?;
        Ok(DataDirectory { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> PathBuf {
        Self::database_in(&self.path)
    }

    /// Where the database of a data directory is, whoever has it.
    pub(super) fn database_in(path: &Path) -> PathBuf {
        path.join(DATABASE)
    }
}

/// Makes the directory, or closes one of ours to other users. One that holds other things and no provider yet is left as it
/// is: it may be something like `/tmp`, which the machine needs as it is.
fn make_private(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    }
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    if metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let ours = path.join(LOCK_FILE).exists() || fs::read_dir(path)?.next().is_none();
    if ours {
        fs::set_permissions(path, Permissions::from_mode(0o700))
    } else {
        tracing::warn!(
            path = %path.display(),
            "the data directory is open to other users of this machine and holds other files; better give the provider one of its own"
        );
        Ok(())
    }
}
