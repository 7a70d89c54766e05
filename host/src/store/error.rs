//! Why the store could not be opened, read or written, in words for an operator.

use std::{io, path::PathBuf};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use the data directory {}: {source}; check that it is writable and has space", path.display())]
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
        "the database {} is damaged ({message}); put back a copy, or move the file away to start without VMs (machines that still run then have to be removed by hand)",
        path.display()
    )]
    Damaged { path: PathBuf, message: String },
    #[error("the database {} is locked by another program; close whatever has it open", path.display())]
    Locked { path: PathBuf },
    #[error("the database could not be opened: {}: {source}", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the database could not be brought up to date: {}: {message}", path.display())]
    Migration { path: PathBuf, message: String },
    #[error("the disk is full; free some space in the data directory")]
    DiskFull,
    #[error("database: {0}")]
    Sqlite(rusqlite::Error),
    #[error("the database holds a value that this program cannot read: {0}")]
    BadRow(String),
    #[error("the database has been closed")]
    Closed,
}
