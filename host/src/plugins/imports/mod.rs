//! What the provider offers to plugins: one file per interface of `wit/`, each of which asks the plugin's
//! [`Grants`](super::manifest::Grants) before it does anything outside the plugin's own directory.

use std::{path::Path, sync::Arc};

use super::{bindings::Error, script::Script};
use crate::faults::{self, FaultPoint};

pub(super) mod clock;
pub mod ethereum;
mod evm;
pub(super) mod fetched;
pub(super) mod files;
pub(super) mod host;
pub(super) mod http;
pub(super) mod log;
pub(super) mod process;
pub(super) mod progress;
pub(super) mod random;
pub(super) mod settings;
mod signer;
pub(super) mod sockets;
pub(super) mod state;

pub use ethereum::Ethereum;
pub use host::Machine;
pub(super) use process::locate;
pub use state::{StateError, StateStore};

/// What the imports of all plugins share.
pub(super) struct Services {
    pub machine: Machine,
    pub http: http::Client,
    pub state: Arc<dyn StateStore>,
    pub ethereum: Arc<dyn Ethereum>,
    /// What answers in the machine's place, in tests of a plugin.
    pub script: Option<Arc<Script>>,
}

impl super::bindings::golem::provider::types::Host for super::call::CallState {}

/// Runs something that blocks where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::Internal(format!("the provider failed while it served a plugin: {error}"))
    })?;
    faults::reached(FaultPoint::PluginHostCall);
    done
}

/// An I/O error on a path, as a plugin can act on it.
fn io_error(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    let text = format!("cannot {doing} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => Error::NotFound(text),
        ErrorKind::AlreadyExists => Error::AlreadyExists(text),
        ErrorKind::PermissionDenied => Error::PermissionDenied(text),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::ResourceExhausted(text)
        }
        ErrorKind::TimedOut => Error::DeadlineExceeded(text),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            Error::Unavailable(text)
        }
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename | ErrorKind::NotADirectory => {
            Error::InvalidArgument(text)
        }
        _ => Error::Internal(text),
    }
}
