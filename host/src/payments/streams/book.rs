//! The streams that matter now, in memory, for those who ask all the time. Follows the store; never waits for anything.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    gate::GateError,
    model::{PaymentStatus, Stream},
    verifiers::NoVerifier,
};

/// What is known of streams. What it says was read or written somewhere else before.
#[derive(Default)]
pub(super) struct Book(RwLock<Pages>);

#[derive(Default)]
struct Pages {
    /// Of those that are not settled, under whichever contract.
    references: HashSet<String>,
    /// By instance id.
    statuses: HashMap<String, Arc<PaymentStatus>>,
    /// Why the last attempt to read came to nothing, if so.
    trouble: Option<Trouble>,
}

/// Why streams cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The chain does not answer; it may later.
    Silent(String),
    /// The operator has to mend something first, such as the contract's address.
    Misconfigured(String),
}

impl Trouble {
    pub fn reason(&self) -> &str {
        match self {
            Self::Silent(reason) | Self::Misconfigured(reason) => reason,
        }
    }
}

impl From<GateError> for Trouble {
    fn from(error: GateError) -> Self {
        match error {
            GateError::ChainSilent { reason } => Self::Silent(reason),
            GateError::NoVerifier(NoVerifier { reason }) | GateError::Misconfigured { reason } => {
                Self::Misconfigured(reason)
            }
            other => Self::Misconfigured(other.to_string()),
        }
    }
}

impl Book {
    /// How the payment of this machine stands.
    pub fn status(&self, vm_id: &str) -> Option<Arc<PaymentStatus>> {
        self.read(|pages| pages.statuses.get(vm_id).cloned())
    }

    /// Is a stream of this reference among them, under whichever contract?
    pub fn holds(&self, reference: &str) -> bool {
        self.read(|pages| pages.references.contains(reference))
    }

    /// Why streams cannot be read, as of the last attempt.
    pub fn trouble(&self) -> Option<Trouble> {
        self.read(|pages| pages.trouble.clone())
    }

    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        self.write(|pages| pages.trouble = trouble);
    }

    /// All streams anew; statuses of machines that are not there any more are dropped.
    pub fn replace(&self, streams: Vec<Stream>, statuses: HashMap<String, Arc<PaymentStatus>>) {
        let references = streams.into_iter().map(|stream| stream.key.reference).collect();
        self.write(|pages| {
            pages.references = references;
            pages.statuses = statuses;
        });
    }

    fn read<T>(&self, look: impl FnOnce(&Pages) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Pages) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}
