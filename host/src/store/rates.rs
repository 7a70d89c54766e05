//! The table of the last good prices of tokens.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use rust_decimal::Decimal;

use super::{DataDirectory, Store, StoreError, connection};

/// A price of GLM that a source gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateRecord {
    pub usd: Decimal,
    pub at: Timestamp,
    pub source: String,
}

const GLM: &str = "glm";

impl Store {
    /// The last good price of GLM.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn glm_rate(&self) -> Result<Option<RateRecord>, StoreError> {
        self.read(read).await
    }

    /// Keeps a price of GLM in the place of the one before.
    pub async fn save_glm_rate(&self, rate: RateRecord) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute(
                "INSERT INTO rates (token, usd, at, source) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (token) DO UPDATE SET usd = excluded.usd, at = excluded.at, source = excluded.source",
                params![GLM, rate.usd.to_string(), rate.at.to_string(), rate.source],
            )?;
            Ok(())
        })
        .await
    }
}

/// The last good price of GLM of the provider with this data directory, whether it runs or not. Blocks.
///
/// # Errors
/// The database cannot be read.
pub fn read_glm_rate(data_dir: &Path) -> Result<Option<RateRecord>, StoreError> {
    match connection::open_to_look(&DataDirectory::database_in(data_dir))? {
        // One that an older version left has no such table.
        Some(connection) if connection.table_exists(None::<&str>, "rates")? => read(&connection),
        _ => Ok(None),
    }
}

/// A row that makes no sense is as good as none: the next answer of a source takes its place.
fn read(connection: &Connection) -> Result<Option<RateRecord>, StoreError> {
    let row = connection
        .query_row("SELECT usd, at, source FROM rates WHERE token = ?1", [GLM], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })
        .optional()?;
    Ok(row.and_then(|(usd, at, source)| {
        Some(RateRecord { usd: usd.parse().ok()?, at: at.parse().ok()?, source })
    }))
}
