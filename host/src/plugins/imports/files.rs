//! `files`: the plugin's own directory, through a capability that no path leads out of.

use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use sha2::{Digest, Sha256};

use super::{blocking, io_error};
use crate::{
    faults::{self, FaultPoint},
    plugins::{
        bindings::{
            Error,
            golem::provider::files::{FileInfo, Host},
        },
        call::CallState,
    },
};

const MAX_READ_BYTES: u32 = 16 << 20;

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
fn relative(path: &str) -> Result<&Path, Error> {
    let path = Path::new(if path.is_empty() { "." } else { path });
    let inside = path.components().all(|component| {
        matches!(component, std::path::Component::Normal(_) | std::path::Component::CurDir)
    });
    if inside {
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
    for entry in directory.entries()? {
        let entry = entry?;
        let file_type = entry.file_type()?;
        if file_type.is_dir() {
            remove_partial_files(&entry.open_dir()?)?;
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
            let mut file = directory.open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.take(max_bytes.min(MAX_READ_BYTES).into()).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    async fn write(&mut self, path: String, contents: Vec<u8>) -> Result<(), Error> {
        self.in_directory("write", path, move |directory, path| {
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
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<String>>>()?;
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
            directory.rename(path, directory, &to)
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
                Ok(metadata) if metadata.is_dir() => directory.remove_dir_all(path),
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
        blocking(move || {
            let path = relative(&path)?;
            let source_path = Path::new(&host_path);
            if !source_path.is_absolute() {
                return Err(Error::InvalidArgument(format!("{host_path} is not an absolute path")));
            }
            let failed = |error: std::io::Error| io_error("import", source_path, &error);
            let canonical = source_path.canonicalize().map_err(failed)?;
            plugin.grants.file(&canonical)?;
            let source = std::fs::File::open(&canonical).map_err(failed)?;
            if !source.metadata().map_err(failed)?.is_file() {
                return Err(Error::InvalidArgument(format!("{host_path} is not a regular file")));
            }
            let mut digest = String::new();
            replace(&plugin.directory.handle, path, |file| {
                let mut copy = file.try_clone()?.into_std();
                clone_or_copy(&source, &mut copy)?;
                // Of the copy, not of the source, which may change at any time.
                copy.seek(SeekFrom::Start(0))?;
                digest = sha256_of(&mut copy)?;
                if digest.eq_ignore_ascii_case(&sha256) {
                    Ok(())
                } else {
                    Err(std::io::Error::other(format!(
                        "its SHA-256 is {digest}, expected is {sha256}"
                    )))
                }
            })
            .map_err(|error| {
                let wrong_digest = !digest.is_empty() && !digest.eq_ignore_ascii_case(&sha256);
                match wrong_digest {
                    true => Error::Internal(format!("cannot import {host_path}: {error}")),
                    false => failed(error),
                }
            })
        })
        .await
    }
}

/// Shares the blocks where the file system can, else copies them.
fn clone_or_copy(source: &std::fs::File, copy: &mut std::fs::File) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    if rustix::fs::ioctl_ficlone(&*copy, source).is_ok() {
        return Ok(());
    }
    std::io::copy(&mut &*source, copy).map(drop)
}

pub(super) fn sha256_of(file: &mut impl Read) -> std::io::Result<String> {
    digest_of::<Sha256>(file)
}

pub(super) fn digest_of<D: Digest>(file: &mut impl Read) -> std::io::Result<String> {
    let mut hash = D::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            length => hash.update(&buffer[..length]),
        }
    }
}
