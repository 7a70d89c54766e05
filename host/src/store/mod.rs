//! The provider's durable state: one SQLite file in the data directory.
//!
//! [`Store`] is a handle to a thread that owns the connection; calls are queued to it and awaited, so nothing blocks the
//! async runtime. A write that has returned survives a power cut. A call whose caller has gone is carried out all
//! the same, whole or not at all. One file here per table family (`vms`, `jobs`, `streams`, `payouts`, `chains`, `nonces`, `plugin_state`, `rates`); their SQL lives in them and
//! in `migrations/`, nowhere else. Only one provider at a time opens a data directory (`directory`).
//!
//! Called by `vms`, `owners`, `plugins` and `payments`, whose plain values it speaks in; calls nothing else of the host.

mod chains;
mod connection;
mod directory;
mod error;
mod jobs;
mod look;
mod nonces;
mod payouts;
mod plugin_state;
mod rates;
mod streams;
#[cfg(test)]
mod tests;
mod vms;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use directory::DataDirectory;
pub use error::StoreError;
pub use jobs::JobRecord;
pub use look::{Held, holder, streams_at_rest, vms_at_rest};
pub use nonces::UsedNonce;
pub use plugin_state::PluginState;
pub use rates::{RateRecord, read_glm_rate};
pub use vms::VmRecord;

use crate::faults::{self, FaultPoint};

/// The database. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store {
    commands: mpsc::Sender<Command>,
    path: Arc<Path>,
    /// How many of the next writes fail.
    #[cfg(test)]
    failing_writes: Arc<std::sync::atomic::AtomicU32>,
}

enum Command {
    Run(Box<dyn FnOnce(&mut Connection) + Send>),
    Close(oneshot::Sender<()>),
}

impl Store {
    /// Takes the data directory for this process and opens the database in it, making both where they are missing.
    ///
    /// # Errors
    /// Another provider uses the directory, it cannot be written, or the database is damaged, locked or newer than this
    /// program. Each says what to do.
    pub async fn open(data_dir: &Path) -> Result<Store, StoreError> {
        let data_dir = data_dir.to_owned();
        let (commands, queue) = mpsc::channel();
        let (opened, opening) = oneshot::channel::<Result<PathBuf, StoreError>>();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let begin = || -> Result<_, StoreError> {
                    let directory = DataDirectory::take(&data_dir)?;
                    let connection = connection::open(&directory)?;
                    Ok((directory, connection))
                };
                match begin() {
                    Ok((directory, connection)) => {
                        let _ = opened.send(Ok(directory.database()));
                        serve(&queue, connection, directory);
                    }
                    Err(error) => {
                        let _ = opened.send(Err(error));
                    }
                }
            })
            .map_err(|source| StoreError::Directory { path: PathBuf::from("."), source })?;
        let path = opening.await.map_err(|_| StoreError::Closed)??;
        Ok(Store {
            commands,
            path: path.into(),
            #[cfg(test)]
            failing_writes: Arc::default(),
        })
    }

    /// The next writes fail as on a full disk, so many of them.
    #[cfg(test)]
    pub fn fail_writes(&self, count: u32) {
        self.failing_writes.store(count, std::sync::atomic::Ordering::SeqCst);
    }

    #[cfg(test)]
    fn failure(&self) -> Option<StoreError> {
        use std::sync::atomic::Ordering::SeqCst;
        let fewer = |left: u32| left.checked_sub(1);
        let fails = self.failing_writes.fetch_update(SeqCst, SeqCst, fewer).is_ok();
        fails.then(|| StoreError::DiskFull { path: self.path.to_path_buf() })
    }

    /// Finishes what is queued, closes the database and gives the data directory back. Calls made afterwards are refused.
    /// Dropping the last handle does the same, without telling when it is done.
    pub async fn close(&self) {
        let (closed, closing) = oneshot::channel();
        if self.commands.send(Command::Close(closed)).is_ok() {
            let _ = closing.await;
        }
    }

    /// Runs `work` in a transaction of its own, which is committed if it succeeds.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        self.run(move |connection| in_transaction(connection, work)).await
    }

    /// The same without waiting for it. `what` is being written, for the log.
    fn write_soon(
        &self,
        what: &'static str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<(), StoreError> + Send + 'static,
    ) {
        let path = Arc::clone(&self.path);
        let command = Command::Run(Box::new(move |connection| {
            let written = in_transaction(connection, work).map_err(|error| error.at(&path));
            if let Err(error) = written {
                tracing::warn!(%error, "{what} could not be written down");
            }
        }));
        // At the end there is nothing to be done about it.
        let _ = self.commands.send(command);
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(move |connection| work(connection)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Run(Box::new(move |connection| {
            let _ = answer.send(work(connection));
        }));
        self.commands.send(command).map_err(|_| StoreError::Closed)?;
        let result = answered.await.map_err(|_| StoreError::Closed)?;
        result.map_err(|error| error.at(&self.path))
    }
}

fn in_transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    faults::reached(FaultPoint::StoreUncommitted);
    transaction.commit()?;
    Ok(value)
}

/// The thread's work: until it is told to close or no handle is left.
fn serve(queue: &mpsc::Receiver<Command>, mut connection: Connection, directory: DataDirectory) {
    let mut closed = None;
    while let Ok(command) = queue.recv() {
        match command {
            Command::Run(work) => work(&mut connection),
            Command::Close(answer) => {
                closed = Some(answer);
                break;
            }
        }
    }
    // In this order: whoever gets the directory next finds a database that is closed.
    drop(connection);
    drop(directory);
    if let Some(closed) = closed {
        let _ = closed.send(());
    }
}
