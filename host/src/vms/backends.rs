//! The backends there are, each with the ration of its boots, and calls to them with an end.
//!
//! Backends come, change and go while VMs live: another version of one takes the next call and those under way end where
//! they began, and a VM whose backend is away stays as it is until that is back.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::VmError;
use crate::plugins::{
    Degraded, Failure, FailureKind,
    vm_backend::{BootLimits, VmBackend},
};

/// The backends by name. New VMs are made by the default one unless they name another; a VM stays with the one that made it.
/// Clones are the same set.
#[derive(Clone)]
pub struct Backends(Arc<RwLock<Set>>);

struct Set {
    /// Counts the changes.
    revision: u64,
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
        Backends::of(Set { revision: 0, default: Ok(name), by_name })
    }

    /// No backend makes new VMs, for the reason given; `others` serve the VMs that they once made.
    pub fn none(reason: String, others: Vec<Arc<dyn VmBackend>>) -> Backends {
        let by_name = others
            .into_iter()
            .map(|backend| (backend.name().to_owned(), Arc::new(Backend::new(backend))))
            .collect();
        Backends::of(Set { revision: 0, default: Err(reason), by_name })
    }

    fn of(set: Set) -> Backends {
        Backends(Arc::new(RwLock::new(set)))
    }

    /// From now on calls for its name go to this one.
    pub fn install(&self, backend: Arc<dyn VmBackend>) {
        let name = backend.name().to_owned();
        let mut set = self.write();
        match set.by_name.get(&name) {
            Some(known) => known.replace(backend),
            None => drop(set.by_name.insert(name, Arc::new(Backend::new(backend)))),
        }
    }

    /// Calls for this name are refused from now on; those under way go on. Of the default one, `reason` says why no new VMs
    /// are made.
    pub fn remove(&self, name: &str, reason: String) {
        let mut set = self.write();
        set.by_name.remove(name);
        if set.default.as_deref() == Ok(name) {
            set.default = Err(reason);
        }
    }

    /// New VMs are made by this one from now on.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn make_default(&self, name: &str) -> Result<(), VmError> {
        let mut set = self.write();
        if !set.by_name.contains_key(name) {
            return Err(set.unknown(name));
        }
        set.default = Ok(name.to_owned());
        Ok(())
    }

    /// The one that makes new VMs, or why none does.
    pub fn default_name(&self) -> Result<String, String> {
        self.read().default.clone()
    }

    /// Grows with every change.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// What fails too often of this one; nothing where there is none of that name.
    pub fn degraded(&self, name: &str) -> Vec<Degraded> {
        self.named(name).map_or_else(|_| Vec::new(), |backend| backend.calls().degraded())
    }

    /// In alphabetical order.
    pub fn names(&self) -> Vec<String> {
        self.read().by_name.keys().cloned().collect()
    }

    /// The named one, or the default.
    pub(super) fn choose(&self, name: Option<&str>) -> Result<Arc<Backend>, VmError> {
        let set = self.read();
        match name {
            Some(name) => match set.by_name.get(name) {
                Some(backend) => Ok(Arc::clone(backend)),
                None => Err(set.unknown(name)),
            },
            None => {
                let default = set.default.as_ref();
                let name =
                    default.map_err(|reason| VmError::NoBackend { reason: reason.clone() })?;
                set.named(name)
            }
        }
    }

    pub(super) fn named(&self, name: &str) -> Result<Arc<Backend>, VmError> {
        self.read().named(name)
    }

    pub(super) fn all(&self) -> Vec<Arc<Backend>> {
        self.read().by_name.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Set> {
        // Every change is one assignment.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Set> {
        let mut set = self.0.write().unwrap_or_else(PoisonError::into_inner);
        set.revision += 1;
        set
    }
}

impl Set {
    fn named(&self, name: &str) -> Result<Arc<Backend>, VmError> {
        self.by_name.get(name).cloned().ok_or_else(|| VmError::NoBackend {
            reason: match &self.default {
                Err(reason) => reason.clone(),
                Ok(_) => format!(
                    "the plugin '{name}', which made this VM, is not there; install it again"
                ),
            },
        })
    }

    fn unknown(&self, name: &str) -> VmError {
        VmError::UnknownBackend {
            backend: name.to_owned(),
            known: self.by_name.keys().cloned().collect(),
        }
    }
}

/// A backend with the ration of its boots.
pub(super) struct Backend {
    name: String,
    calls: RwLock<Arc<dyn VmBackend>>,
    boots: Semaphore,
    /// How many permits the semaphore has altogether.
    permits: Mutex<usize>,
}

impl Backend {
    fn new(calls: Arc<dyn VmBackend>) -> Backend {
        Backend {
            name: calls.name().to_owned(),
            calls: RwLock::new(calls),
            boots: Semaphore::new(0),
            permits: Mutex::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The version of it that takes calls now. Whoever has it finishes with it.
    pub(super) fn calls(&self) -> Arc<dyn VmBackend> {
        Arc::clone(&self.calls.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, calls: Arc<dyn VmBackend>) {
        *self.calls.write().unwrap_or_else(PoisonError::into_inner) = calls;
    }

    /// Waits for a turn to boot a machine; `wait` is called when that is not at once. Asks the backend for its limits
    /// every time, because another version of it may have others.
    pub(super) async fn turn_to_boot(
        &self,
        ask: Duration,
        wait: impl FnOnce(),
    ) -> Result<(SemaphorePermit<'_>, BootLimits), Failure> {
        let limits = within(ask, "saying how boots are limited", self.calls().limits()).await?;
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
                let closed =
                    |_| Failure::new(FailureKind::Internal, "the queue of boots was closed");
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
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
        let message = format!("{doing} took longer than {} s", deadline.as_secs_f32().ceil());
        Err(Failure::new(FailureKind::DeadlineExceeded, message))
    })
}
