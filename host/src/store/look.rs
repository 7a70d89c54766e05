//! What can be seen of a data directory from outside, without taking it: for commands of an operator whose provider may or
//! may not run.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    StoreError, VmRecord, connection,
    directory::{DATABASE, DataDirectory, LOCK_FILE},
    payouts, streams, vms,
};
use crate::payments::streams::{Payout, Stream};

/// The process that has this data directory, if one has. Asks the kernel's table of locks, since taking the lock to see
/// whether it is free would get in the way of a provider that starts at that moment.
pub fn holder(data_dir: &Path) -> Option<u32> {
    let file = data_dir.join(LOCK_FILE);
    let metadata = fs::metadata(&file).ok()?;
    let wanted = LockFile {
        inode: metadata.ino(),
        device: (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev())),
        noted_pid: fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()),
    };
    locked_by(&fs::read_to_string("/proc/locks").ok()?, &wanted)
}

/// What tells one lock file from all others.
struct LockFile {
    inode: u64,
    /// Some file systems, such as overlays, show another one in the kernel's table.
    device: (u32, u32),
    /// What its last owner wrote into it.
    noted_pid: Option<u32>,
}

/// Keeps providers from starting on a data directory for as long as there is this value.
pub struct Held {
    _directory: DataDirectory,
}

impl Held {
    /// # Errors
    /// A provider has it, or it cannot be used.
    pub fn take(data_dir: &Path) -> Result<Held, StoreError> {
        Ok(Held { _directory: DataDirectory::take(data_dir)? })
    }
}

/// The VMs that the store of a provider that does not run knows; absent where there never was one. Blocks.
///
/// # Errors
/// The database cannot be read.
pub fn vms_at_rest(data_dir: &Path) -> Result<Option<Vec<VmRecord>>, StoreError> {
    let path = data_dir.join(DATABASE);
    match fs::metadata(&path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StoreError::Directory { path: data_dir.to_owned(), source }),
    }
    let Some(connection) = connection::open_to_look(&path)? else { return Ok(None) };
    vms::all(&connection).map(Some).map_err(|error| error.at(&path))
}

/// The streams that the store of a provider knows, running or not, and what was collected of them; none where there never was one.
/// Blocks.
///
/// # Errors
/// The database cannot be read.
pub fn streams_at_rest(data_dir: &Path) -> Result<(Vec<Stream>, Vec<Payout>), StoreError> {
    let path = data_dir.join(DATABASE);
    let read = || match connection::open_to_look(&path)? {
        // One that an older version left has no such table.
        Some(connection) if connection.table_exists(None::<&str>, "payouts")? => {
            Ok((streams::all(&connection)?, payouts::all(&connection)?))
        }
        _ => Ok(Default::default()),
    };
    read().map_err(|error: StoreError| error.at(&path))
}

/// Reads lines such as `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131 0 EOF`.
fn locked_by(locks: &str, wanted: &LockFile) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, _, access) = (fields.next()?, fields.next()?, fields.next()?);
        let (pid, file) = (fields.next()?.parse().ok()?, fields.next()?);
        let mut parts = file.split(':');
        let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
        let device = (hex()?, hex()?);
        let is_ours = kind == "FLOCK"
            && access == "WRITE"
            && parts.next()?.parse() == Ok(wanted.inode)
            && (device == wanted.device || wanted.noted_pid == Some(pid));
        is_ours.then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn the_holder_of_a_lock_is_read_from_the_kernels_table() {
        let table = "1: POSIX  ADVISORY  WRITE 11 fd:01:131 0 EOF\n\
                     2: FLOCK  ADVISORY  READ  12 fd:01:131 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 fd:01:131 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 14 fd:01:131 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 15 00:2a:132 0 EOF\n";
        let holder =
            |inode, noted_pid| locked_by(table, &LockFile { inode, device: (0xfd, 1), noted_pid });
        assert_eq!(holder(131, None), Some(14));
        assert_eq!(holder(132, None), None, "the file of that number on another device");
        assert_eq!(holder(132, Some(15)), Some(15));
        assert_eq!(holder(133, Some(14)), None);
        let wanted = LockFile { inode: 131, device: (0xfd, 1), noted_pid: None };
        assert_eq!(locked_by("nonsense", &wanted), None);
    }

    #[tokio::test]
    async fn a_directory_has_a_holder_for_as_long_as_its_store_is_open() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path()), None);
        assert!(vms_at_rest(directory.path()).unwrap().is_none());
        let store = Store::open(directory.path()).await.unwrap();
        assert_eq!(holder(directory.path()), Some(std::process::id()));
        store.close().await;
        assert_eq!(holder(directory.path()), None);
        assert!(vms_at_rest(directory.path()).unwrap().unwrap().is_empty());
    }

    #[test]
    fn a_database_that_is_none_is_told_as_damaged() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(DATABASE), "no database at all, but long enough for it")
            .unwrap();
        let error = vms_at_rest(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}
