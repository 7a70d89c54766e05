//! Why the VM service refuses or fails, in kinds that the API turns into statuses.
//!
//! Every message is for a requestor or operator: what failed, on which VM, what to do. The kinds are cloneable, because
//! several callers may wait for one operation.

use std::sync::Arc;

use crate::{plugins::Failure, store::StoreError};

/// Why a request to the VM service was refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VmError {
    #[error("VM '{id}' not found")]
    NotFound { id: String },
    #[error("a VM named '{name}' exists already; choose another name or delete that VM first")]
    NameTaken { name: String },
    #[error("there is no backend '{backend}' here; this provider has {}", listed(known))]
    UnknownBackend { backend: String, known: Vec<String> },
    #[error("unknown image '{image}'; this provider has {}", listed(known))]
    UnknownImage { image: String, known: Vec<String> },
    /// Says which resource, how much was asked for and how much there is.
    #[error("{message}")]
    Insufficient { message: String },
    #[error("no SSH port is free among {from}-{to}; delete a VM, or widen the port range", to = to.saturating_sub(1))]
    NoPort {
        from: u16,
        /// Exclusive.
        to: u16,
    },
    #[error("no SSH port among {from}-{to} is known to be reachable from outside at the moment; try again in a minute, or choose another provider",
        to = to.saturating_sub(1))]
    NoVerifiedPort {
        from: u16,
        /// Exclusive.
        to: u16,
    },
    #[error("this provider takes at most {max} VMs and has that many")]
    TooManyVms { max: u32 },
    #[error("VM '{id}' is busy: {operation} is under way; try again when that has ended")]
    Busy { id: String, operation: &'static str },
    #[error("{message}")]
    WrongState { id: String, message: String },
    /// No VM can be made, or no VM of that backend changed, until the operator has done what the reason says.
    #[error("no VM backend: {reason}")]
    NoBackend { reason: String },
    /// `id` is the VM, or the backend where no VM is concerned.
    #[error("{id}: {source}")]
    Backend { id: String, source: Failure },
    #[error("VM '{id}' was deleted before it was ready")]
    Cancelled { id: String },
    #[error("the provider is shutting down; try again when it is back")]
    ShuttingDown,
    #[error("the stream {reference} pays, or has paid, for another machine; open a new one")]
    StreamTaken { reference: String },
    #[error("the provider could not write its database: {0}")]
    Store(#[from] Arc<StoreError>),
}

impl From<StoreError> for VmError {
    fn from(error: StoreError) -> VmError {
        match error {
            StoreError::StreamTaken { reference } => VmError::StreamTaken { reference },
            error => VmError::Store(Arc::new(error)),
        }
    }
}

/// Why the VM service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn listed(known: &[String]) -> String {
    if known.is_empty() { "none yet".to_owned() } else { known.join(", ") }
}
