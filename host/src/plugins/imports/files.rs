//! `files`: the plugin's own directory, through a capability that no path leads out of.

use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

use super::{blocking, fetched, io_error};
use crate::{
    faults::{self, FaultPoint},
    plugins::{
        bindings::{
            Error,
            golem::provider::{
                files::{FileInfo, Host},
                http::Checksum,
            },
        },
        call::CallState,
        limits::{DIRECTORY_DEPTH, DIRECTORY_ENTRIES, DISK_RESERVE_BYTES, FILE_READ_BYTES},
    },
};

impl CallState {
    /// Runs file work on the plugin's directory, off the runtime.
    async fn in_directory<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        path: String,
        work: impl FnOnce(&Dir, &Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let directory = Arc::clone(&self.plugin.directory.handle);
        blocking(move || {
            let path = relative(&path)?;
            work(&directory, path).map_err(|error| io_error(doing, path, &error))
        })
        .await
    }
}

impl CallState {
    /// A new, empty file of this name for a program to write to.
    pub(super) async fn empty_file(&mut self, path: String) -> Result<std::fs::File, Error> {
        self.in_directory("write", path, |directory, path| {
            let mut options = OpenOptions::new();
            options.write(true).append(true).create_new(true).mode(0o600);
            // Anew and not truncated: what still writes to an older file of this name goes on doing so.
            match directory.remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Ok(directory.open_with(path, &options)?.into_std())
        })
        .await
    }
}

/// `.` for the directory itself; never absolute, never upwards.
pub(super) fn relative(path: &str) -> Result<&Path, Error> {
    let path = Path::new(if path.is_empty() { "." } else { path });
    let inside = path.components().all(|component| {
        matches!(component, std::path::Component::Normal(_) | std::path::Component::CurDir)
    });
    if inside && path.components().count() > DIRECTORY_DEPTH {
        Err(Error::InvalidArgument(format!("a path has at most {DIRECTORY_DEPTH} names in a row")))
    } else if inside {
        Ok(path)
    } else {
        Err(Error::InvalidArgument(format!(
            "{} leads out of the plugin's directory; paths are relative to it and have no `..`",
            path.display()
        )))
    }
}

/// How the passing names end that [`replace`] gives.
const PARTIAL_SUFFIX: &str = ".partial";

/// Removes the files that were half written when the provider died. Only before the plugin is called for the first time:
/// afterwards such a file may be in use.
pub(in crate::plugins) fn remove_partial_files(directory: &Dir) -> std::io::Result<()> {
    remove_partial_files_within(directory, DIRECTORY_DEPTH)
}

/// [`replace`] writes no deeper than `levels`, whatever programs of the plugin made there.
fn remove_partial_files_within(directory: &Dir, levels: usize) -> std::io::Result<()> {
    for entry in directory.entries()? {
        let entry = entry?;
        let file_type = entry.file_type()?;
        if file_type.is_dir() {
            if let Some(levels) = levels.checked_sub(1) {
                remove_partial_files_within(&entry.open_dir()?, levels)?;
            }
        } else if file_type.is_file() && is_partial(&entry.file_name()) {
            entry.remove_file()?;
        }
    }
    Ok(())
}

/// Whether [`replace`] makes such names: a plugin's own may end alike.
fn is_partial(name: &std::ffi::OsStr) -> bool {
    let stem = name.to_str().and_then(|name| name.strip_suffix(PARTIAL_SUFFIX));
    stem.and_then(|stem| stem.rsplit_once('.'))
        .is_some_and(|(_, id)| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Writes under another name, syncs, and renames: after a crash there is the old content or the new.
pub(super) fn replace(
    directory: &Dir,
    path: &Path,
    fill: impl FnOnce(&mut cap_std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    directory.create_dir_all(parent)?;
    let mut partial_name = path.file_name().unwrap_or_default().to_owned();
    partial_name.push(format!(".{}{PARTIAL_SUFFIX}", uuid::Uuid::new_v4().simple()));
    let partial = parent.join(partial_name);
    let written = directory
        .open_with(&partial, OpenOptions::new().read(true).write(true).create_new(true).mode(0o600))
        .and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()?;
            faults::reached(FaultPoint::PluginFileUnnamed);
            Ok(())
        })
        .and_then(|()| directory.rename(&partial, directory, path))
        .and_then(|()| directory.open(parent)?.sync_all());
    if written.is_err() {
        // The first error is the one that counts.
        let _ = directory.remove_file(&partial);
    }
    written
}

impl Host for CallState {
    async fn read(&mut self, path: String, offset: u64, max_bytes: u32) -> Result<Vec<u8>, Error> {
        self.in_directory("read", path, move |directory, path| {
            // Without waiting: a named pipe that nobody writes to would hold a thread for ever.
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
            let mut file = directory.open_with(path, &options)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(max_bytes.min(FILE_READ_BYTES).into()).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    async fn write(&mut self, path: String, contents: Vec<u8>) -> Result<(), Error> {
        self.in_directory("write", path, move |directory, path| {
            ensure_room(directory, contents.len() as u64)?;
            replace(directory, path, |file| file.write_all(&contents))
        })
        .await
    }

    async fn info(&mut self, path: String) -> Result<FileInfo, Error> {
        self.in_directory("look at", path, |directory, path| {
            let metadata = directory.metadata(path)?;
            Ok(FileInfo { size_bytes: metadata.len(), is_directory: metadata.is_dir() })
        })
        .await
    }

    async fn list_directory(&mut self, path: String) -> Result<Vec<String>, Error> {
        self.in_directory("list", path, |directory, path| {
            let mut names = directory
                .read_dir(path)?
                .take(DIRECTORY_ENTRIES + 1)
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<String>>>()?;
            if names.len() > DIRECTORY_ENTRIES {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::FileTooLarge,
                    format!("it has more than {DIRECTORY_ENTRIES} entries"),
                ));
            }
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn create_directory(&mut self, path: String) -> Result<(), Error> {
        self.in_directory("make directory", path, |directory, path| directory.create_dir_all(path))
            .await
    }

    async fn rename(&mut self, old: String, new: String) -> Result<(), Error> {
        let to = PathBuf::from(relative(&new)?);
        self.in_directory("rename", old, move |directory, path| {
            // With what is in it, a directory must not come to lie deeper than one could be made.
            if directory.symlink_metadata(path)?.is_dir() {
                let levels = DIRECTORY_DEPTH.saturating_sub(to.components().count());
                ensure_shallow(&directory.open_dir(path)?, levels)?;
            }
            directory.rename(path, directory, &to).map_err(|error| {
                std::io::Error::new(error.kind(), format!("to {}: {error}", to.display()))
            })
        })
        .await
    }

    async fn remove(&mut self, path: String) -> Result<(), Error> {
        self.in_directory("remove", path, |directory, path| {
            if path == Path::new(".") {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    "the plugin's directory itself cannot be removed",
                ));
            }
            let removed = match directory.symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    // Removing calls itself for each level, so one made by other means could break the provider.
                    ensure_shallow(&directory.open_dir(path)?, DIRECTORY_DEPTH)
                        .and_then(|()| directory.remove_dir_all(path))
                }
                Ok(_) => directory.remove_file(path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        })
        .await
    }

    async fn host_path(&mut self, path: String) -> Result<String, Error> {
        let root = self.plugin.directory.path.clone();
        self.in_directory("find", path, move |directory, path| {
            // What exists is resolved, so that a program is never handed a way out; of what does not exist yet, the
            // directory it will be in.
            let inside = match directory.canonicalize(path) {
                Ok(inside) => inside,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let parent = path.parent().filter(|parent| *parent != Path::new(""));
                    let parent = directory.canonicalize(parent.unwrap_or(Path::new(".")))?;
                    parent.join(path.file_name().unwrap_or_default())
                }
                Err(error) => return Err(error),
            };
            root.join(inside).into_os_string().into_string().map_err(|_| {
                std::io::Error::new(std::io::ErrorKind::InvalidFilename, "the path is not UTF-8")
            })
        })
        .await
    }

    async fn import_file(
        &mut self,
        host_path: String,
        path: String,
        sha256: String,
    ) -> Result<(), Error> {
        let plugin = Arc::clone(&self.plugin);
        let checksum = Checksum::Sha256(sha256);
        let path = relative(&path)?.to_owned();
        let lock = plugin.fetched.lock_of(&path);
        let _one_at_a_time = lock.lock().await;
        if fetched::is_there(&plugin, &path, &checksum, self.progress.clone()).await? {
            return Ok(());
        }
        blocking(move || {
            let source_path = Path::new(&host_path);
            if !source_path.is_absolute() {
                return Err(Error::InvalidArgument(format!("{host_path} is not an absolute path")));
            }
            if source_path.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(Error::InvalidArgument(format!(
                    "{host_path} has `..` in it; say the path without"
                )));
            }
            plugin.grants.file(source_path)?;
            let failed = |error: std::io::Error| io_error("import", source_path, &error);
            let canonical = source_path.canonicalize().map_err(failed)?;
            plugin.grants.file(&canonical)?;
            let source = open_granted(&canonical).map_err(failed)?;
            let metadata = source.metadata().map_err(failed)?;
            if !metadata.is_file() {
                return Err(Error::InvalidArgument(format!("{host_path} is not a regular file")));
            }
            ensure_room(&plugin.directory.handle, metadata.len()).map_err(failed)?;
            let mut found = None;
            replace(&plugin.directory.handle, &path, |file| {
                let mut copy = file.try_clone()?.into_std();
                clone_or_copy(&source, &mut copy)?;
                // Of the copy, not of the source, which may change at any time.
                copy.seek(SeekFrom::Start(0))?;
                let is = found.insert(fetched::checksum_of(&checksum, &mut copy)?);
                if fetched::same(is, &checksum) {
                    Ok(())
                } else {
                    Err(std::io::Error::other(format!(
                        "its SHA-256 is {}, expected is {}",
                        fetched::hex_of(is),
                        fetched::hex_of(&checksum)
                    )))
                }
            })
            .map_err(|error| match &found {
                Some(found) if !fetched::same(found, &checksum) => {
                    Error::Internal(format!("cannot import {host_path}: {error}"))
                }
                _ => failed(error),
            })?;
            plugin.fetched.remember(&plugin.directory.handle, &path, checksum);
            Ok(())
        })
        .await
    }
}

/// Opens a path in which no symbolic link is left, and fails if somebody has put one there since that was seen.
fn open_granted(canonical: &Path) -> std::io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, ResolveFlags, openat2};
        match openat2(CWD, canonical, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
            Ok(file) => return Ok(file.into()),
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::fs::open(canonical, flags | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// Fails if there are more levels of directories in this one.
fn ensure_shallow(directory: &Dir, levels: usize) -> std::io::Result<()> {
    for entry in directory.entries()? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let Some(levels) = levels.checked_sub(1) else {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!("there are more than {DIRECTORY_DEPTH} directories within each other"),
            ));
        };
        ensure_shallow(&entry.open_dir()?, levels)?;
    }
    Ok(())
}

/// Fails if the disk would have less left than the provider needs for itself.
pub(super) fn ensure_room(directory: &Dir, more_bytes: u64) -> std::io::Result<()> {
    let disk = rustix::fs::fstatvfs(directory)?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free_bytes >= more_bytes.saturating_add(DISK_RESERVE_BYTES) {
        return Ok(());
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::StorageFull,
        format!(
            "the disk has {} MiB left, of which {} MiB are kept free for the provider; make room on it",
            free_bytes >> 20,
            DISK_RESERVE_BYTES >> 20
        ),
    ))
}

/// Shares the blocks where the file system can, else copies them.
fn clone_or_copy(source: &std::fs::File, copy: &mut std::fs::File) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&*copy, source).is_ok() {
        return Ok(());
    }
    std::io::copy(&mut &*source, copy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_was_put_into_a_granted_path_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("images")).unwrap();
        std::fs::write(root.join("images/image"), "granted").unwrap();
        std::fs::write(root.join("secret"), "not granted").unwrap();
        assert!(open_granted(&root.join("images/image")).is_ok());
        std::fs::remove_file(root.join("images/image")).unwrap();
        std::os::unix::fs::symlink(root.join("secret"), root.join("images/image")).unwrap();
        assert!(open_granted(&root.join("images/image")).is_err());
        std::os::unix::fs::symlink(&root, root.join("elsewhere")).unwrap();
        assert!(open_granted(&root.join("elsewhere/secret")).is_err());
    }

    #[test]
    fn a_disk_that_is_nearly_full_takes_nothing_more_of_a_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let handle = Dir::open_ambient_dir(directory.path(), cap_std::ambient_authority()).unwrap();
        ensure_room(&handle, 1).unwrap();
        let error = ensure_room(&handle, u64::MAX - DISK_RESERVE_BYTES).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("128 MiB are kept free for the provider"), "{error}");
    }
}
