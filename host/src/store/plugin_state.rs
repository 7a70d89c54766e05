//! The table of plugins' durable values. What a plugin may store, and how much, is decided where plugins are served.

use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError};

/// The durable values of all plugins, each under its plugin's name.
#[derive(Clone)]
pub struct PluginState(Store);

impl Store {
    /// The part of the store that plugins' values live in.
    pub fn plugin_state(&self) -> PluginState {
        PluginState(self.clone())
    }
}

impl PluginState {
    /// The value of `key`, if there is one.
    ///
    /// # Errors
    /// See [`StoreError`]; so for every call here.
    pub async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let (plugin, key) = (plugin.to_owned(), key.to_owned());
        self.0
            .read(move |connection| {
                let sql = "SELECT value FROM plugin_state WHERE plugin = ?1 AND key = ?2";
                Ok(connection.query_row(sql, [plugin, key], |row| row.get(0)).optional()?)
            })
            .await
    }

    /// Stores a value, unless the plugin's keys and values would be more than `room_bytes` with it. Answers whether it was
    /// stored; durable when this returns.
    pub async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        room_bytes: u64,
    ) -> Result<bool, StoreError> {
        let (plugin, key) = (plugin.to_owned(), key.to_owned());
        self.0
            .write(move |transaction| {
                let sql = "SELECT COALESCE(SUM(LENGTH(CAST(key AS BLOB)) + LENGTH(value)), 0)
                     FROM plugin_state WHERE plugin = ?1 AND key <> ?2";
                let others: i64 = transaction.query_row(sql, [&plugin, &key], |row| row.get(0))?;
                if others.unsigned_abs() + (key.len() + value.len()) as u64 > room_bytes {
                    return Ok(false);
                }
                transaction.execute(
                    "INSERT INTO plugin_state (plugin, key, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (plugin, key) DO UPDATE SET value = excluded.value",
                    params![plugin, key, value],
                )?;
                Ok(true)
            })
            .await
    }

    /// Removes a value. None there is a success.
    pub async fn delete(&self, plugin: &str, key: &str) -> Result<(), StoreError> {
        let (plugin, key) = (plugin.to_owned(), key.to_owned());
        self.0
            .write(move |transaction| {
                transaction.execute(
                    "DELETE FROM plugin_state WHERE plugin = ?1 AND key = ?2",
                    [plugin, key],
                )?;
                Ok(())
            })
            .await
    }

    /// The plugin's keys that begin with `prefix`, sorted.
    pub async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (plugin, prefix) = (plugin.to_owned(), prefix.to_owned());
        self.0
            .read(move |connection| {
                let mut statement = connection.prepare(
                    "SELECT key FROM plugin_state
                     WHERE plugin = ?1 AND substr(key, 1, length(?2)) = ?2
                     ORDER BY key",
                )?;
                let keys = statement.query_map([plugin, prefix], |row| row.get(0))?;
                Ok(keys.collect::<Result<_, _>>()?)
            })
            .await
    }
}
