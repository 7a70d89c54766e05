//! Files that are there whole or as they were before, whatever moment the process dies at.
//!
//! For small files of this user alone. Calls nothing; called from wherever such a file is written. Plugins' own files, which
//! are reached through a capability, are replaced in `plugins/imports/files.rs`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Writes under another name, syncs, and renames. The directory is made where it is missing.
///
/// # Errors
/// Any of that fails; then the file is as it was.
pub fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let draft = file.with_extension(format!("{}.partial", uuid::Uuid::new_v4().simple()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut draft| {
            draft.write_all(contents)?;
            draft.sync_all()
        })
        .and_then(|()| fs::rename(&draft, file))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        // The first error is the one that counts.
        let _ = fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_for_its_owner_alone_and_leaves_no_draft() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("new/file.txt");
        for contents in ["one", "two"] {
            replace(&file, contents.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), contents);
        }
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // A directory in the way: nothing is replaced, and nothing is left.
        assert!(replace(&directory.path().join("new"), b"three").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
