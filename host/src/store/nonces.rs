//! The table of nonces of signed requests that have been answered.

use rusqlite::{Row, Transaction, params};

use super::{Store, StoreError, vms::address};
use crate::owners::{Address, Nonce};

/// A signed request that must not count again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedNonce {
    pub address: Address,
    pub nonce: Nonce,
    /// The signature's, in seconds since 1970.
    pub timestamp: u64,
}

impl Store {
    /// All that are kept.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn used_nonces(&self) -> Result<Vec<UsedNonce>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT * FROM used_nonces")?;
            let mut used = Vec::new();
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                used.push(record(row)?);
            }
            Ok(used)
        })
        .await
    }

    /// Writes a nonce down, and forgets those whose timestamp is before `over`.
    pub async fn keep_nonce(&self, used: UsedNonce, over: u64) -> Result<(), StoreError> {
        self.write(move |transaction| insert(transaction, &used, over)).await
    }

    /// The same, some time soon; a failure is logged.
    pub fn keep_nonce_soon(&self, used: UsedNonce, over: u64) {
        self.write_soon("a nonce", move |transaction| insert(transaction, &used, over));
    }
}

fn insert(transaction: &Transaction<'_>, used: &UsedNonce, over: u64) -> Result<(), StoreError> {
    let seconds = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
    transaction.execute("DELETE FROM used_nonces WHERE timestamp < ?1", [seconds(over)])?;
    // The same one can be there only where the clock was set back: then it counts from the later time on.
    transaction.execute(
        "INSERT OR REPLACE INTO used_nonces (address, nonce, timestamp) VALUES (?1, ?2, ?3)",
        params![used.address.to_checksum(None), used.nonce.as_str(), seconds(used.timestamp)],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> Result<UsedNonce, StoreError> {
    let nonce: String = row.get("nonce")?;
    Ok(UsedNonce {
        address: address(&row.get::<_, String>("address")?)?,
        nonce: Nonce::parse(&nonce)
            .map_err(|error| StoreError::BadRow(format!("the nonce '{nonce}' ({error})")))?,
        timestamp: u64::try_from(row.get::<_, i64>("timestamp")?)
            .map_err(|error| StoreError::BadRow(format!("the time of a nonce ({error})")))?,
    })
}
