//! The plugin's own directory. Paths are relative to it; none leads out of it.

pub use crate::bindings::golem::provider::files::FileInfo;
pub use crate::bindings::golem::provider::files::{
    create_directory, host_path, import_file, info, list_directory, read, remove, rename, write,
};

use crate::{Error, Result};

/// The largest piece that one [`read`] answers.
pub const MAX_READ_BYTES: u32 = 16 * 1024 * 1024;

/// The whole of a small text file; absent if there is none.
pub fn read_to_string(path: &str) -> Result<Option<String>> {
    match read(path, 0, MAX_READ_BYTES) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::Internal(format!("{path} is not text in UTF-8"))),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Is there a file or directory of this name?
pub fn exists(path: &str) -> Result<bool> {
    match info(path) {
        Ok(_) => Ok(true),
        Err(Error::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
