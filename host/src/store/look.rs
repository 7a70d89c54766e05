//! What can be seen of a data directory from outside, without taking it: for commands of an operator whose provider may or
//! may not run.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::{
    StoreError, VmRecord, connection,
    directory::{DATABASE, DataDirectory, LOCK_FILE},
    vms,
};

/// The process that has this data directory, if one has. Asks the kernel's table of locks, since taking the lock to see
/// whether it is free would get in the way of a provider that starts at that moment.
pub fn holder(data_dir: &Path) -> Option<u32> {
    let inode = fs::metadata(data_dir.join(LOCK_FILE)).ok()?.ino();
    locked_by(&fs::read_to_string("/proc/locks").ok()?, inode)
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
    let connection = connection::open_to_look(&path)?;
    vms::all(&connection).map(Some).map_err(|error| error.at(&path))
}

/// Reads lines such as `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131 0 EOF`.
fn locked_by(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, _, access) = (fields.next()?, fields.next()?, fields.next()?);
        let (pid, file) = (fields.next()?, fields.next()?);
        let is_ours =
            kind == "FLOCK" && access == "WRITE" && file.rsplit(':').next()?.parse() == Ok(inode);
        is_ours.then(|| pid.parse().ok()).flatten()
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
                     4: FLOCK  ADVISORY  WRITE 15 fd:01:132 0 EOF\n";
        assert_eq!(locked_by(table, 131), Some(14));
        assert_eq!(locked_by(table, 132), Some(15));
        assert_eq!(locked_by(table, 133), None);
        assert_eq!(locked_by("nonsense", 131), None);
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
