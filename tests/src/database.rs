//! The provider's database, looked at from outside while nobody writes.

use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags, OptionalExtension, types::ValueRef};

/// Says which ids were ever given out, on purpose for ever.
const LEDGER: &str = "issued_ids";

/// The phase that is written down for the VM of this name, if there is one.
///
/// # Errors
/// When the database cannot be read.
pub fn phase_of(data_dir: &Path, name: &str) -> Result<Option<String>> {
    let phase = open(data_dir)?
        .query_row("SELECT phase FROM vms WHERE name = ?1", [name], |row| row.get(0))
        .optional()?;
    Ok(phase)
}

fn open(data_dir: &Path) -> Result<Connection> {
    let file = data_dir.join("provider.db");
    Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("opening {}", file.display()))
}

/// Every row that mentions `text` in any column, as `table: column = value`, but for those of the ledger of ids.
///
/// # Errors
/// When the database cannot be read.
pub fn rows_that_mention(data_dir: &Path, text: &str) -> Result<Vec<String>> {
    let connection = open(data_dir)?;
    let mut tables = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let tables: Vec<String> =
        tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut found = Vec::new();
    for table in tables.iter().filter(|table| *table != LEDGER) {
        let mut rows = connection.prepare(&format!("SELECT * FROM \"{table}\""))?;
        let columns: Vec<String> = rows.column_names().into_iter().map(str::to_owned).collect();
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            for (index, column) in columns.iter().enumerate() {
                let value = match row.get_ref(index)? {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes),
                    _ => continue,
                };
                if value.contains(text) {
                    found.push(format!("{table}: {column} = {value}"));
                }
            }
        }
    }
    Ok(found)
}
