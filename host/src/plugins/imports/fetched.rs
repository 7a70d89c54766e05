//! Files that were fetched by their checksum, for `http.download` and `files.import-file`.
//!
//! What is there is not fetched again. But disks lose bytes and people overwrite files, and a machine made from what is left
//! fails in ways that lead nobody to the cause. So a file that is there is read before it is believed: once after each start of
//! the provider, and whenever it is not the file any more that was read. One that has another checksum is fetched again.

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cap_std::fs::{Dir, MetadataExt, OpenOptions, OpenOptionsExt};
use sha2::{Digest, Sha256, Sha512};
use tokio::sync::Mutex as AsyncMutex;

use super::{blocking, io_error};
use crate::plugins::{
    bindings::{Error, golem::provider::http::Checksum},
    call::PluginContext,
    vm_backend::{Progress, ProgressSink},
};

/// What one plugin has fetched, and what it is fetching.
#[derive(Default)]
pub struct Fetched {
    /// One per file that is being fetched, so that two calls do not write the same one.
    locks: Mutex<HashMap<PathBuf, Arc<AsyncMutex<()>>>>,
    read: Mutex<HashMap<PathBuf, (Checksum, Stamp)>>,
}

/// What differs once a file is replaced or written to. The time is that of the inode, which no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &cap_std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Fetched {
    /// Held while the file is looked at and fetched.
    pub fn lock_of(&self, path: &Path) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(path.to_owned()).or_default())
    }

    /// Remembers a file whose checksum was found to be right a moment ago. Blocks.
    pub fn remember(&self, directory: &Dir, path: &Path, checksum: Checksum) {
        if let Ok(metadata) = directory.metadata(path) {
            self.keep(path, checksum, Stamp::of(&metadata));
        }
    }

    fn keep(&self, path: &Path, checksum: Checksum, stamp: Stamp) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.insert(path.to_owned(), (checksum, stamp));
    }

    fn was_read(&self, path: &Path, checksum: &Checksum, stamp: Stamp) -> bool {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.get(path).is_some_and(|(known, as_read)| same(known, checksum) && *as_read == stamp)
    }

    /// Blocks, for as long as it takes to read the file if it has to be read.
    fn look(
        &self,
        directory: &Dir,
        path: &Path,
        checksum: &Checksum,
        reading: impl FnOnce(),
    ) -> std::io::Result<Found> {
        let mut options = OpenOptions::new();
        // Without waiting: a named pipe that nobody writes to would hold a thread for ever.
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let mut file = match directory.open_with(path, &options) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Found::Nothing);
            }
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        // From before it is read: what is written meanwhile makes another.
        let stamp = Stamp::of(&metadata);
        if self.was_read(path, checksum, stamp) {
            return Ok(Found::Whole);
        }
        reading();
        if same(&checksum_of(checksum, &mut file)?, checksum) {
            self.keep(path, checksum.clone(), stamp);
            Ok(Found::Whole)
        } else {
            Ok(Found::Damaged)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Damaged,
    Whole,
}

/// Whether the file is there as it was fetched, so that nothing is left to do. Called under the file's lock.
pub(super) async fn is_there(
    plugin: &Arc<PluginContext>,
    path: &Path,
    checksum: &Checksum,
    progress: Option<ProgressSink>,
) -> Result<bool, Error> {
    let (plugin, path, checksum) = (Arc::clone(plugin), path.to_owned(), checksum.clone());
    blocking(move || {
        let reading = || report_reading(progress.as_ref());
        let found = plugin
            .fetched
            .look(&plugin.directory.handle, &path, &checksum, reading)
            .map_err(|error| io_error("read", &path, &error))?;
        if found == Found::Damaged {
            tracing::warn!(
                plugin.name = %plugin.name,
                "{} is not what was fetched any more (its checksum is another); it is fetched again. If that comes back, \
                 look at the disk's health",
                plugin.directory.path.join(&path).display()
            );
        }
        Ok(found == Found::Whole)
    })
    .await
}

/// Tells whoever waits that a file is being read to find its checksum.
pub(super) fn report_reading(progress: Option<&ProgressSink>) {
    if let Some(progress) = progress {
        progress(Progress { stage: "checking image".into(), percent: None });
    }
}

/// The checksum of what is left to read, of the same kind as another. Blocks.
pub(super) fn checksum_of(kind: &Checksum, file: &mut impl Read) -> std::io::Result<Checksum> {
    Ok(match kind {
        Checksum::Sha256(_) => Checksum::Sha256(digest_of::<Sha256>(file)?),
        Checksum::Sha512(_) => Checksum::Sha512(digest_of::<Sha512>(file)?),
    })
}

fn digest_of<D: Digest>(file: &mut impl Read) -> std::io::Result<String> {
    let mut hash = D::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// The digits of a checksum.
pub(super) fn hex_of(checksum: &Checksum) -> &str {
    let (Checksum::Sha256(hex) | Checksum::Sha512(hex)) = checksum;
    hex
}

/// In whatever case they are written. Those of different kinds differ in length.
pub(super) fn same(one: &Checksum, other: &Checksum) -> bool {
    hex_of(one).eq_ignore_ascii_case(hex_of(other))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// `echo -n whole | sha256sum`
    const WHOLE: &str = "5d5766cf2d78701614200418ee1450690d9af12c84d52545e4802f001ad53099";

    struct Fixture {
        directory: tempfile::TempDir,
        handle: Dir,
        fetched: Fetched,
        readings: Cell<u32>,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let handle =
                Dir::open_ambient_dir(directory.path(), cap_std::ambient_authority()).unwrap();
            Self { directory, handle, fetched: Fetched::default(), readings: Cell::new(0) }
        }

        fn write(&self, contents: &str) {
            std::fs::write(self.directory.path().join("image"), contents).unwrap();
        }

        fn look(&self) -> Found {
            let checksum = Checksum::Sha256(WHOLE.to_ascii_uppercase());
            let reading = || self.readings.set(self.readings.get() + 1);
            self.fetched.look(&self.handle, Path::new("image"), &checksum, reading).unwrap()
        }
    }

    #[test]
    fn a_file_is_read_once_and_again_when_it_is_another() {
        let fixture = Fixture::new();
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Nothing, 0));
        fixture.write("whole");
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Whole, 1));
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Whole, 1));
        // Of the same length, and with the old times put back.
        let path = fixture.directory.path().join("image");
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fixture.write("whale");
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Damaged, 2));
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Damaged, 3));
        fixture.write("whole");
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Whole, 4));
    }

    #[test]
    fn a_file_that_was_just_fetched_is_not_read_again_but_for_another_checksum() {
        let fixture = Fixture::new();
        fixture.write("whole");
        let path = Path::new("image");
        fixture.fetched.remember(&fixture.handle, path, Checksum::Sha256(WHOLE.to_owned()));
        assert_eq!((fixture.look(), fixture.readings.get()), (Found::Whole, 0));
        let other = Checksum::Sha256("0".repeat(64));
        let found = fixture.fetched.look(&fixture.handle, path, &other, || {}).unwrap();
        assert_eq!(found, Found::Damaged);
    }

    #[test]
    fn what_is_no_file_is_an_error_and_not_waited_for() {
        let fixture = Fixture::new();
        let pipe = fixture.directory.path().join("image");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let checksum = Checksum::Sha256(WHOLE.to_owned());
        let looked = fixture.fetched.look(&fixture.handle, Path::new("image"), &checksum, || {});
        assert!(looked.unwrap_err().to_string().contains("not a regular file"));
    }
}
