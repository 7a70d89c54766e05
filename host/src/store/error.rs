//! Why the store could not be opened, read or written, in words for an operator.

use std::{
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use the data directory {}: {source}; check that it exists, is writable and has space", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the data directory {} is in use by another provider{}; stop that one first, or choose another directory with GOLEM_PROVIDER_DATA_DIR",
        path.display(),
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error(
        "the database {} was written by a newer version of this program (schema {found}, this one knows up to {known}); install that version again, or choose another data directory",
        path.display()
    )]
    Newer { path: PathBuf, found: usize, known: usize },
    #[error(
        "the database {} is damaged: {message}; put a copy back, or move the file away to begin without VMs (machines that still run then have to be removed by hand)",
        path.display()
    )]
    Damaged { path: PathBuf, message: String },
    #[error("the database {} is locked by another program; close whatever has it open (`fuser` names it)", path.display())]
    Locked { path: PathBuf },
    #[error("the database {} cannot be written: {message}; check its owner, its permissions and the file system", path.display())]
    Unwritable { path: PathBuf, message: String },
    #[error("the disk is full; free some space for {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("the database {} could not be brought up to date: {message}", path.display())]
    Migration { path: PathBuf, message: String },
    #[error("the database holds something that this program cannot read: {0}")]
    BadRow(String),
    /// No stream buys two machines, also when the first is long gone.
    #[error("the stream {reference} pays, or has paid, for another machine; open a new one")]
    StreamTaken { reference: String },
    /// The record was removed meanwhile, or never made.
    #[error("the database has no record of {0}")]
    NoRecord(String),
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database has been closed")]
    Closed,
}

impl StoreError {
    /// SQLite's errors that an operator can do something about, said so.
    pub(super) fn at(self, path: &Path) -> StoreError {
        let StoreError::Sqlite(error) = self else { return self };
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                StoreError::Locked { path }
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Damaged { path, message: error.to_string() }
            }
            Some(ErrorCode::DiskFull) => StoreError::DiskFull { path },
            Some(
                ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::SystemIoFailure,
            ) => StoreError::Unwritable { path, message: error.to_string() },
            _ => StoreError::Sqlite(error),
        }
    }
}
