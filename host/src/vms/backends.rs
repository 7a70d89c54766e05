//! The backends there are, each with the ration of its boots, and calls to them with an end.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::VmError;
use crate::plugins::vm_backend::{BackendError, BackendErrorKind, BootLimits, VmBackend};

/// The backends by name. New VMs are made by the default one; a VM stays with the one that made it.
pub struct Backends {
    default: Result<String, String>,
    by_name: BTreeMap<String, Arc<Backend>>,
}

impl Backends {
    pub fn new(default: Arc<dyn VmBackend>, others: Vec<Arc<dyn VmBackend>>) -> Backends {
        let name = default.name().to_owned();
        let all = others.into_iter().chain([default]);
        let by_name = all
            .map(|backend| (backend.name().to_owned(), Arc::new(Backend::new(backend))))
            .collect();
        Backends { default: Ok(name), by_name }
    }

    /// No backend works here, for the reason given: VMs there are stay as they are, new ones are refused.
    pub fn none(reason: String) -> Backends {
        Backends { default: Err(reason), by_name: BTreeMap::new() }
    }

    pub(super) fn default(&self) -> Result<&Arc<Backend>, VmError> {
        let name = self
            .default
            .as_ref()
            .map_err(|reason| VmError::NoBackend { reason: reason.clone() })?;
        self.named(name)
    }

    pub(super) fn named(&self, name: &str) -> Result<&Arc<Backend>, VmError> {
        self.by_name.get(name).ok_or_else(|| VmError::NoBackend {
            reason: match &self.default {
                Err(reason) => reason.clone(),
                Ok(_) => format!(
                    "the plugin '{name}', which made this VM, is not there; install it again"
                ),
            },
        })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.by_name.values()
    }
}

/// A backend with the ration of its boots.
pub(super) struct Backend {
    pub(super) calls: Arc<dyn VmBackend>,
    boots: Semaphore,
    /// How many permits the semaphore has altogether.
    permits: Mutex<usize>,
}

impl Backend {
    fn new(calls: Arc<dyn VmBackend>) -> Backend {
        Backend { calls, boots: Semaphore::new(0), permits: Mutex::new(0) }
    }

    /// Waits for a turn to boot a machine; `wait` is called when that is not at once. Asks the backend for its limits
    /// every time, because another version of it may have others.
    pub(super) async fn turn_to_boot(
        &self,
        ask: Duration,
        wait: impl FnOnce(),
    ) -> Result<(SemaphorePermit<'_>, BootLimits), BackendError> {
        let limits = within(ask, "saying how boots are limited", self.calls.limits()).await?;
        {
            let wanted = limits.parallel_boots.clamp(1, Semaphore::MAX_PERMITS);
            let mut permits = self.permits.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted > *permits {
                self.boots.add_permits(wanted - *permits);
                *permits = wanted;
            } else {
                // Permits in use are not taken away; the next caller tries again.
                *permits -= self.boots.forget_permits(*permits - wanted);
            }
        }
        let permit = match self.boots.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                wait();
                let closed = |_| {
                    BackendError::new(BackendErrorKind::Internal, "the queue of boots was closed")
                };
                self.boots.acquire().await.map_err(closed)?
            }
        };
        Ok((permit, limits))
    }
}

/// The call's result, or that it had none in time.
pub(super) async fn within<T>(
    deadline: Duration,
    doing: &str,
    call: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
        let message = format!("{doing} took longer than {} s", deadline.as_secs_f32().ceil());
        Err(BackendError::new(BackendErrorKind::DeadlineExceeded, message))
    })
}
