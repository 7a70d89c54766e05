//! What the rest of the provider calls: requests in, snapshots out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, Notify},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    Backends, StartError, VmError, VmServiceConfig,
    backends::{Backend, within},
    lifecycle::{Operation, Request},
    model::{Job, NewVm, Phase, SshPublicKey, Vm},
    reconcile,
    registry::{Decision, Outcome, Registry, Slot, outcome_of},
};
use crate::{
    plugins::{Failure, FailureKind, vm_backend::Image},
    ports::PortAllocator,
    proxy::Proxy,
    resources::{ResourceReport, Tracker},
    store::Store,
};

/// All VMs of this provider. Clones are handles to the same service.
#[derive(Clone)]
pub struct VmService(Arc<Inner>);

/// What the service is made of.
pub struct VmServiceParts {
    pub store: Store,
    pub proxy: Proxy,
    pub backends: Backends,
    pub resources: Tracker,
    pub ports: PortAllocator,
    pub config: VmServiceConfig,
}

pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) proxy: Proxy,
    pub(super) backends: Backends,
    pub(super) resources: Tracker,
    pub(super) ports: PortAllocator,
    pub(super) config: VmServiceConfig,
    pub(super) registry: Arc<Registry>,
    /// Held while it is decided whether there is room for one more VM, until its row is written.
    pub(super) admission: Mutex<()>,
    /// Requests are refused from now on.
    closing: AtomicBool,
    /// Every operation under way.
    pub(super) tasks: TaskTracker,
    /// Cuts the pause between two rounds of the reconciler short.
    pub(super) look_again: Arc<Notify>,
    /// Ends the background work.
    pub(super) quiet: CancellationToken,
    /// Ends every operation wherever it is; the next start takes it up.
    cut_off: CancellationToken,
}

/// A create that was accepted.
pub struct CreateTicket {
    pub job: Job,
    /// As it was admitted.
    pub vm: Arc<Vm>,
    outcome: Outcome,
}

impl CreateTicket {
    pub(super) fn new(job: Job, vm: Arc<Vm>, outcome: Outcome) -> CreateTicket {
        CreateTicket { job, vm, outcome }
    }

    /// Waits until the VM runs. Dropping this ends the waiting, not the work.
    ///
    /// # Errors
    /// Why it does not run; by then everything was given back, or will be as soon as the backend agrees.
    pub async fn finished(self) -> Result<Arc<Vm>, VmError> {
        outcome_of(self.outcome).await.unwrap_or(Err(VmError::ShuttingDown))
    }
}

impl VmService {
    /// Reads the store, compares it with the backends (for a bounded time), opens the VMs' ports and takes up what was
    /// under way. When it returns, requests may come.
    ///
    /// # Errors
    /// The store cannot be read. Backends and ports that do not work are retried in the background instead.
    pub async fn start(parts: VmServiceParts) -> Result<VmService, StartError> {
        let VmServiceParts { store, proxy, backends, resources, ports, config } = parts;
        let registry = Arc::new(Registry::load(store.vms().await?, store.jobs().await?));
        let inner = Arc::new(Inner {
            store,
            proxy,
            backends,
            resources,
            ports,
            config,
            registry,
            admission: Mutex::new(()),
            closing: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            look_again: Arc::default(),
            quiet: CancellationToken::new(),
            cut_off: CancellationToken::new(),
        });
        let state = reconcile::at_start(&inner).await?;
        inner.tasks.spawn(reconcile::run(Arc::downgrade(&inner), inner.quiet.clone(), state));
        Ok(VmService(inner))
    }

    /// Admits a VM and begins to make it. Everything that can be refused is refused here; when this returns, the VM is
    /// written down and a task of the service makes it.
    ///
    /// # Errors
    /// The name is taken, the image unknown, there is no room, no port or no backend, or the backend or the store fails.
    pub async fn create(&self, new: NewVm) -> Result<CreateTicket, VmError> {
        self.0.check_open()?;
        let inner = Arc::clone(&self.0);
        // In a task, so that a caller who goes away leaves no half of it.
        let admitted = self.0.tasks.spawn(async move { inner.admit(new).await }.in_current_span());
        admitted.await.unwrap_or(Err(VmError::ShuttingDown))
    }

    /// From memory; never waits.
    ///
    /// # Errors
    /// There is none of that id or name.
    pub fn get(&self, id_or_name: &str) -> Result<Arc<Vm>, VmError> {
        self.0.registry.get(id_or_name)
    }

    /// All VMs, oldest first. From memory; never waits.
    pub fn list(&self) -> Vec<Arc<Vm>> {
        self.0.registry.list()
    }

    /// From memory; never waits.
    pub fn job(&self, id: &Uuid) -> Option<Job> {
        self.0.registry.job(id)
    }

    /// Stops a VM; returns when it has stopped. A success if it has already.
    ///
    /// # Errors
    /// Something else is under way for it, it was never made, or its backend fails. Once begun, a stop is repeated in the
    /// background until it succeeds.
    pub async fn stop(&self, id_or_name: &str) -> Result<Arc<Vm>, VmError> {
        self.request(id_or_name, Request::Stop, None).await
    }

    /// Starts a VM; returns when its SSH answers. A success if it runs.
    ///
    /// # Errors
    /// Something else is under way for it, it was never made, or it does not come up: then it is stopped again.
    pub async fn start_vm(&self, id_or_name: &str) -> Result<Arc<Vm>, VmError> {
        self.request(id_or_name, Request::Start, None).await
    }

    /// Deletes a VM; returns when everything of it is gone. One that is being made is made no further.
    ///
    /// # Errors
    /// Something else is under way for it, or its backend fails. Once begun, a delete is repeated in the background until it
    /// succeeds; the VM holds what it had until then.
    pub async fn delete(&self, id_or_name: &str) -> Result<(), VmError> {
        self.request(id_or_name, Request::Delete, None).await.map(drop)
    }

    /// Lets one more key log in to a running VM, now and after every later start.
    ///
    /// # Errors
    /// It does not run, something else is under way for it, or its backend fails.
    pub async fn add_ssh_key(&self, id_or_name: &str, key: SshPublicKey) -> Result<(), VmError> {
        self.request(id_or_name, Request::AddKey, Some(key)).await.map(drop)
    }

    /// The images a VM can be made from. Asks the backend.
    ///
    /// # Errors
    /// There is no backend, or it fails.
    pub async fn images(&self) -> Result<Vec<Image>, VmError> {
        self.0.images().await
    }

    /// What makes machines here. Changes to it take effect at once.
    pub fn backends(&self) -> &Backends {
        &self.0.backends
    }

    /// Looks again at every VM soon: a backend has come, changed or gone.
    pub fn backends_have_changed(&self) {
        self.0.look_again.notify_one();
    }

    /// What this machine has, lets and has left, by the last measurement. Never waits.
    pub fn resources(&self) -> ResourceReport {
        self.0.resources.report(self.0.registry.held_amounts())
    }

    /// Ends the service within `deadline`: requests are refused from now on, operations under way get some time and are
    /// then cut off, to be taken up at the next start. With `stop_vms` every machine is stopped, all at the same time.
    /// Store and proxy are their owner's to end, afterwards.
    pub async fn shutdown(&self, stop_vms: bool, deadline: Duration) {
        let end = Instant::now() + deadline;
        let inner = &self.0;
        inner.closing.store(true, Ordering::SeqCst);
        inner.quiet.cancel();
        inner.tasks.close();
        let patience = if stop_vms { deadline / 4 } else { deadline.mul_f32(0.9) };
        if tokio::time::timeout(patience, inner.tasks.wait()).await.is_err() {
            tracing::info!("operations still under way are left to the next start");
        }
        inner.cut_off.cancel();
        let _ = tokio::time::timeout_at(end, inner.tasks.wait()).await;
        if stop_vms && tokio::time::timeout_at(end, inner.stop_all(end)).await.is_err() {
            tracing::warn!(
                "not every VM has stopped in time; those left are stopped at the next start"
            );
        }
    }

    /// The process dies now, as far as this service can tell.
    #[cfg(test)]
    pub(super) async fn kill(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        self.0.quiet.cancel();
        self.0.cut_off.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    #[cfg(test)]
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    async fn request(
        &self,
        id_or_name: &str,
        request: Request,
        key: Option<SshPublicKey>,
    ) -> Result<Arc<Vm>, VmError> {
        // A name may come to mean another VM while this one is waited for.
        let id = self.get(id_or_name)?.id.clone();
        let mut compared = false;
        loop {
            self.0.check_open()?;
            match self.0.registry.request(&id, request)? {
                Decision::Begin { slot, operation, after } => {
                    let outcome = slot.outcome();
                    self.0.spawn(slot, operation, after, key);
                    return outcome_of(outcome).await.unwrap_or(Err(VmError::ShuttingDown));
                }
                Decision::Join(outcome) => {
                    return outcome_of(outcome).await.unwrap_or(Err(VmError::ShuttingDown));
                }
                Decision::Wait(outcome) => drop(outcome_of(outcome).await),
                // By the record. Whether the machine agrees is looked at once.
                Decision::Already(vm) if compared => return Ok(vm),
                Decision::Already(_) => {
                    compared = true;
                    self.0.compare(&id).await;
                }
            }
        }
    }
}

impl Inner {
    pub(super) fn check_open(&self) -> Result<(), VmError> {
        if self.closing.load(Ordering::SeqCst) { Err(VmError::ShuttingDown) } else { Ok(()) }
    }

    pub(super) async fn images(&self) -> Result<Vec<Image>, VmError> {
        self.images_of(&*self.backends.choose(None)?).await
    }

    pub(super) async fn images_of(&self, backend: &Backend) -> Result<Vec<Image>, VmError> {
        let images =
            within(self.config.deadlines.ask, "listing the images", backend.calls().images()).await;
        images.map_err(|source| VmError::Backend { id: backend.name().to_owned(), source })
    }

    /// Carries an operation out in a task that owns its slot.
    pub(super) fn spawn(
        self: &Arc<Inner>,
        slot: Slot,
        operation: Operation,
        after: Option<Outcome>,
        key: Option<SshPublicKey>,
    ) {
        let inner = Arc::clone(self);
        let work = async move {
            let work = async {
                if let Some(previous) = after {
                    drop(outcome_of(previous).await);
                }
                inner.perform(&slot, operation, key).await
            };
            let result = tokio::select! {
                biased;
                () = inner.cut_off.cancelled() => None,
                result = work => Some(result),
            };
            match result {
                Some(result) => slot.finish(result),
                None => drop(slot),
            }
        };
        // Log lines of the work say which request began it.
        let _task = self.tasks.spawn(work.in_current_span());
    }

    /// Stops every machine that may run.
    async fn stop_all(self: &Arc<Inner>, end: Instant) {
        let time_left = end.saturating_duration_since(Instant::now());
        let grace = self.config.stop_grace.min(time_left.mul_f32(0.7));
        let stops = self.registry.idle().into_iter().map(|idle| async move {
            match idle.vm.phase {
                Phase::Running | Phase::Starting | Phase::Stopping => {
                    let Some(slot) = self.registry.take(&idle, Operation::Stop) else { return };
                    let result = self.stop_machine(&slot, grace).await;
                    slot.finish(result);
                }
                // Its record stays, so that the next start goes on with it.
                Phase::Creating => {
                    if let Ok(backend) = self.backends.named(&idle.vm.backend) {
                        let _ = backend.calls().stop(&idle.vm.id, grace).await;
                    }
                }
                Phase::Stopped | Phase::Deleting | Phase::Failed => {}
            }
        });
        join_all(stops).await;
    }
}

pub(super) fn is_not_found(error: &Failure) -> bool {
    error.kind == FailureKind::NotFound
}
