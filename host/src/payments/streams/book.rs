//! The streams that matter now, in memory, for those who ask all the time. Follows the store; never waits for anything.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::model::{PaymentStatus, Stream, StreamKey};

/// What is known of streams. What it says was read or written somewhere else before.
#[derive(Default)]
pub(super) struct Book(RwLock<Pages>);

#[derive(Default)]
struct Pages {
    /// Those that are not settled.
    streams: HashMap<StreamKey, Stream>,
    /// By instance id.
    statuses: HashMap<String, Arc<PaymentStatus>>,
    /// The last attempt to read found nobody. With why.
    silent: Option<String>,
}

impl Book {
    /// How the payment of this machine stands.
    pub fn status(&self, vm_id: &str) -> Option<Arc<PaymentStatus>> {
        self.read(|pages| pages.statuses.get(vm_id).cloned())
    }

    /// The stream that pays for this machine, or paid for it last.
    pub fn of_vm(&self, vm_id: &str) -> Option<Stream> {
        self.read(|pages| {
            let of_vm = pages.streams.values().filter(|stream| stream.vm_id == vm_id);
            of_vm.max_by_key(|stream| stream.bound_at).cloned()
        })
    }

    /// Is a stream of this reference among them, under whichever contract?
    pub fn holds(&self, reference: &str) -> bool {
        self.read(|pages| pages.streams.keys().any(|key| key.reference == reference))
    }

    /// Why the chain cannot be asked, as of the last attempt.
    pub fn silent(&self) -> Option<String> {
        self.read(|pages| pages.silent.clone())
    }

    pub fn set_silent(&self, reason: Option<String>) {
        self.write(|pages| pages.silent = reason);
    }

    /// All streams anew; statuses of machines that are not there any more are dropped.
    pub fn replace(&self, streams: Vec<Stream>, statuses: HashMap<String, Arc<PaymentStatus>>) {
        let streams = streams.into_iter().map(|stream| (stream.key.clone(), stream)).collect();
        self.write(|pages| {
            pages.streams = streams;
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
