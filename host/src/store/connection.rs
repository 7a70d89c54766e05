//! Opens the database and brings it up to date, or says why that cannot be.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};

use super::{StoreError, directory::DataDirectory};

const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("migrations/0001-vms.sql")),
    M::up(include_str!("migrations/0002-jobs.sql")),
    M::up(include_str!("migrations/0003-plugin-state.sql")),
    M::up(include_str!("migrations/0004-rates.sql")),
    M::up(include_str!("migrations/0005-streams.sql")),
    M::up(include_str!("migrations/0006-owners.sql")),
];

/// How long to wait for another program, such as a backup, that has the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn open(directory: &DataDirectory) -> Result<Connection, StoreError> {
    let path = directory.database();
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() == 0 => {
            return Err(StoreError::Damaged { path, message: "it is empty".to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(directory.path(), &path)?,
        Err(source) => return Err(StoreError::Directory { path, source }),
    }
    let mut connection = connect(&path)?;
    migrate(&mut connection, &path)?;
    Ok(connection)
}

/// Makes a new database under another name first, so that an empty or half-made `provider.db` is never ours and can be
/// told as damaged.
fn make(directory: &Path, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::Directory { path: directory.to_owned(), source };
    let draft = directory.join("provider.db.new");
    for leftover in [
        &draft,
        &with_suffix(&draft, "-journal"),
        &with_suffix(&draft, "-wal"),
        &with_suffix(&draft, "-shm"),
    ] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    // SQLite gives the files it makes beside it the same mode.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    let mut connection = connect(&draft)?;
    migrate(&mut connection, &draft)?;
    connection.close().map_err(|(_, error)| StoreError::from(error).at(&draft))?;
    fs::rename(&draft, path).map_err(failed)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// For a look at what another process may be writing: nothing is made, nothing is brought up to date. `None` where there is no
/// database.
pub(super) fn open_to_look(path: &Path) -> Result<Option<Connection>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> Result<(Connection, i64), rusqlite::Error> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let found = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok((connection, found))
    };
    let (connection, found) = open().map_err(|error| StoreError::from(error).at(path))?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    Ok(Some(connection))
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let open = || -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        // Every commit is on the disk before it returns.
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    };
    let connection = open().map_err(|error| StoreError::from(error).at(path))?;
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| StoreError::from(error).at(path))?;
    if verdict != "ok" {
        return Err(StoreError::Damaged { path: path.to_owned(), message: verdict });
    }
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let found: usize = connection
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map_err(|error| StoreError::from(error).at(path))?
        .try_into()
        .unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: MIGRATIONS.len() });
    }
    Migrations::from_slice(MIGRATIONS).to_latest(connection).map_err(|error| match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => StoreError::from(err).at(path),
        other => StoreError::Migration { path: path.to_owned(), message: other.to_string() },
    })
}
