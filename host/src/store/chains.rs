//! The table of what is under way on chains, as `chains` writes it.

use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError};

impl Store {
    /// What was written last about a chain.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn hanging_transaction(&self, chain: String) -> Result<Option<String>, StoreError> {
        self.read(move |connection| {
            let mut statement =
                connection.prepare("SELECT value FROM hanging_transactions WHERE chain = ?1")?;
            Ok(statement.query_row([chain], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Takes the place of what was written about the chain before.
    pub async fn save_hanging_transaction(
        &self,
        chain: String,
        value: String,
    ) -> Result<(), StoreError> {
        self.write(move |transaction| {
            transaction.execute(
                "INSERT INTO hanging_transactions (chain, value) VALUES (?1, ?2)
                 ON CONFLICT (chain) DO UPDATE SET value = excluded.value",
                params![chain, value],
            )?;
            Ok(())
        })
        .await
    }
}
