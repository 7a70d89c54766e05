//! Keeps records and machines in agreement: at start, and every few seconds afterwards.
//!
//! What to do about a record that nobody is working on is decided by `lifecycle::recover`; here the backends are asked,
//! for a bounded time, and the decisions carried out. A backend that does not answer leaves its VMs as they are and is
//! asked again soon. Nothing is concluded from one list in which a machine is missing: the backend is asked about it by
//! name. A VM that anybody changed since before the question is left for the next time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
};

use futures_util::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    VmError,
    backends::{Backend, within},
    lifecycle::{self, Operation, Recovery, Sight},
    model::{self, JobStatus, Phase, Vm},
    registry::{Idle, Slot},
    service::{Inner, is_not_found},
};
use crate::{plugins::vm_backend::Instance, store::StoreError};

/// How every id begins that this provider issues.
const ID_PREFIX: &str = "golem-";

/// What is remembered from one round to the next.
pub(super) struct Rounds {
    compared_at: Instant,
    /// The next round compares, however short ago the last one did.
    due: bool,
    /// Backends that did not answer last time.
    silent: BTreeSet<String>,
    /// Ports of VMs that something else has.
    occupied: BTreeSet<u16>,
    leftovers: Vec<Leftover>,
}

/// A machine of ours that no VM has.
struct Leftover {
    backend: Arc<Backend>,
    id: String,
}

/// What has to be true before requests are answered.
pub(super) async fn at_start(inner: &Arc<Inner>) -> Result<Rounds, StoreError> {
    for mut record in inner.registry.stray_jobs() {
        record.job.status = JobStatus::Failed;
        record.job.error = Some("the VM is not being made any more".to_owned());
        record.job.updated_at = model::now().max(record.job.updated_at);
        inner.store.save_job(record.clone()).await?;
        inner.registry.set_job(record);
    }
    let mut rounds = Rounds {
        compared_at: Instant::now(),
        due: false,
        silent: BTreeSet::new(),
        occupied: BTreeSet::new(),
        leftovers: Vec::new(),
    };
    inner.open_ports(&mut rounds.occupied).await;
    inner.compare_all(&mut rounds).await;
    Ok(rounds)
}

/// The rounds afterwards, until the service is shut down or dropped.
pub(super) async fn run(service: Weak<Inner>, quiet: CancellationToken, mut rounds: Rounds) {
    while let Some(inner) = service.upgrade() {
        let pause = inner.config.retry_every;
        // A round that is cut off is as good as none: the next start has one.
        if quiet.run_until_cancelled(inner.round(&mut rounds)).await.is_none() {
            return;
        }
        let look_again = Arc::clone(&inner.look_again);
        drop(inner);
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => false,
                () = look_again.notified() => true,
            }
        };
        match quiet.run_until_cancelled(pause).await {
            Some(early) => rounds.due = early,
            None => return,
        }
    }
}

impl Inner {
    async fn round(self: &Arc<Inner>, rounds: &mut Rounds) {
        let unfinished = |idle: &Idle| {
            lifecycle::unfinished(idle.vm.phase, idle.vm.ssh_port.is_some()).is_some()
        };
        let due = std::mem::take(&mut rounds.due)
            || rounds.compared_at.elapsed() >= self.config.reconcile_every
            || !rounds.silent.is_empty()
            || self.registry.idle().iter().any(unfinished);
        if due {
            self.compare_all(rounds).await;
        }
        self.open_ports(&mut rounds.occupied).await;
        self.clear_away(std::mem::take(&mut rounds.leftovers)).await;
        self.forget_old_jobs().await;
        self.resources.refresh().await;
    }

    /// Compares one VM with its machine now, if nobody is changing it.
    pub(super) async fn compare(self: &Arc<Inner>, id: &str) {
        let Some(seen) = self.registry.idle().into_iter().find(|idle| idle.vm.id == id) else {
            return;
        };
        if let Ok(backend) = self.backends.named(&seen.vm.backend) {
            self.ask_and_apply(&backend, &seen).await;
        }
    }

    async fn compare_all(self: &Arc<Inner>, rounds: &mut Rounds) {
        rounds.compared_at = Instant::now();
        // Seen before the question: an answer says nothing about what was begun after it.
        let idle = self.registry.idle();
        let questions = self.backends.all().into_iter().map(|backend| async move {
            let deadline = self.config.deadlines.ask;
            let calls = backend.calls();
            (backend, within(deadline, "listing the machines", calls.inspect_all()).await)
        });
        for (backend, answer) in join_all(questions).await {
            let name = backend.name();
            let instances: HashMap<String, Instance> = match answer {
                Ok(instances) => {
                    instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect()
                }
                Err(error) => {
                    if rounds.silent.insert(name.to_owned()) {
                        tracing::warn!(
                            backend = name,
                            %error,
                            "the backend does not say what its machines do; its VMs are left as they are, and it is asked again"
                        );
                    }
                    continue;
                }
            };
            if rounds.silent.remove(name) {
                tracing::info!(backend = name, "the backend answers again");
            }
            let ours = idle.iter().filter(|seen| seen.vm.backend == name);
            join_all(ours.map(|seen| async {
                match instances.get(&seen.vm.id) {
                    Some(instance) => self.apply(seen, Some(instance)).await,
                    // Has no machine and needs none.
                    None if seen.vm.ssh_port.is_none() => {}
                    None => self.ask_and_apply(&backend, seen).await,
                }
            }))
            .await;
            rounds.leftovers.extend(self.leftovers(&backend, instances.into_keys()).await);
        }
    }

    async fn ask_and_apply(self: &Arc<Inner>, backend: &Backend, seen: &Idle) {
        let deadline = self.config.deadlines.ask;
        match within(deadline, "asking about the machine", backend.calls().inspect(&seen.vm.id))
            .await
        {
            Ok(instance) => self.apply(seen, Some(&instance)).await,
            Err(error) if is_not_found(&error) => self.apply(seen, None).await,
            Err(error) => {
                tracing::debug!(vm.id = seen.vm.id, %error, "the VM is left as it is");
            }
        }
    }

    async fn apply(self: &Arc<Inner>, seen: &Idle, instance: Option<&Instance>) {
        let vm = &seen.vm;
        let sight = instance.map_or(Sight::Gone, |instance| Sight::There {
            power: instance.power,
            detail: instance.detail.clone(),
        });
        match lifecycle::recover(vm.phase, vm.ssh_port.is_some(), &sight) {
            Recovery::Resume(operation) => {
                if let Some(slot) = self.registry.take(seen, operation) {
                    tracing::info!(
                        vm.id = vm.id,
                        vm.name = vm.name,
                        port = vm.ssh_port,
                        phase = %vm.phase,
                        "{} is taken up",
                        operation.name()
                    );
                    self.spawn(slot, operation, None, None);
                }
            }
            // As recorded the last time.
            Recovery::Ended(message)
                if vm.phase == Phase::Stopped && vm.error_message.as_deref() == Some(&message) => {}
            Recovery::Ended(message) => {
                self.correct(seen, async |slot| {
                    self.aim(slot, vm, None);
                    self.commit(slot, None, |vm| {
                        vm.phase = Phase::Stopped;
                        vm.ip_address = None;
                        vm.error_message = Some(message);
                    })
                    .await
                })
                .await;
            }
            Recovery::CameBack => {
                let (target, ip_address) = instance
                    .map(|instance| (instance.ssh, instance.ip_address.clone()))
                    .unwrap_or_default();
                self.correct(seen, async |slot| {
                    self.aim(slot, vm, target);
                    self.commit(slot, None, |vm| {
                        vm.phase = Phase::Running;
                        vm.ip_address = ip_address;
                        vm.error_message = None;
                    })
                    .await
                })
                .await;
            }
            Recovery::Nothing => {
                if let Some(instance) = instance
                    && vm.phase == Phase::Running
                {
                    self.follow(seen, instance).await;
                } else if instance.is_some() && vm.error_message.as_deref() == Some(lifecycle::GONE)
                {
                    // The backend was wrong then.
                    self.correct(seen, async |slot| {
                        self.commit(slot, None, |vm| vm.error_message = None).await
                    })
                    .await;
                }
            }
        }
    }

    /// Follows a running machine whose addresses have changed. One that names none just now keeps those it had.
    async fn follow(self: &Arc<Inner>, seen: &Idle, instance: &Instance) {
        let vm = &seen.vm;
        let target = instance.ssh.or(seen.target);
        let ip_address = instance.ip_address.clone().or_else(|| vm.ip_address.clone());
        if target == seen.target && ip_address == vm.ip_address {
            return;
        }
        self.correct(seen, async |slot| {
            self.aim(slot, vm, target);
            if ip_address == vm.ip_address {
                return Ok(Arc::clone(vm));
            }
            self.commit(slot, None, |vm| vm.ip_address = ip_address).await
        })
        .await;
    }

    /// Corrects a record, if nobody has changed it since it was seen.
    async fn correct(
        &self,
        seen: &Idle,
        correction: impl AsyncFnOnce(&Slot) -> Result<Arc<Vm>, VmError>,
    ) {
        let Some(slot) = self.registry.take(seen, Operation::Check) else { return };
        let result = correction(&slot).await;
        if let Err(error) = &result {
            tracing::warn!(vm.id = seen.vm.id, vm.name = seen.vm.name, %error, "the VM's record could not be corrected");
        }
        slot.finish(result);
    }

    /// Opens the ports of VMs that are not open: all of them at start, later those that something else had.
    async fn open_ports(&self, occupied: &mut BTreeSet<u16>) {
        for seen in self.registry.idle() {
            let Some(port) = seen.vm.ssh_port else { continue };
            if matches!(seen.vm.phase, Phase::Deleting | Phase::Failed) || self.proxy.is_open(port)
            {
                continue;
            }
            let Some(slot) = self.registry.take(&seen, Operation::Check) else { continue };
            let vm = &seen.vm;
            let _claim = self.ports.claim(port);
            match self.proxy.open(port, seen.target).await {
                Ok(()) if occupied.remove(&port) => {
                    tracing::info!(
                        vm.id = vm.id,
                        vm.name = vm.name,
                        port,
                        "the VM's port is open again"
                    );
                }
                Ok(()) => {}
                Err(error) if occupied.insert(port) => {
                    tracing::error!(
                        vm.id = vm.id,
                        vm.name = vm.name,
                        port,
                        "this VM cannot be reached by SSH: {error}; it keeps its port, which is tried again every {} s",
                        self.config.retry_every.as_secs()
                    );
                }
                Err(_) => {}
            }
            slot.finish(Ok(Arc::clone(vm)));
        }
    }

    /// Those of a backend's machines that this provider made and no VM has. Machines of anybody else are none of ours.
    async fn leftovers(
        &self,
        backend: &Arc<Backend>,
        ids: impl Iterator<Item = String>,
    ) -> Vec<Leftover> {
        let unowned: Vec<String> = ids
            .filter(|id| id.starts_with(ID_PREFIX) && !self.registry.may_have_machine(id))
            .collect();
        if unowned.is_empty() {
            return Vec::new();
        }
        match self.store.issued(unowned).await {
            Ok(issued) => {
                issued.into_iter().map(|id| Leftover { backend: Arc::clone(backend), id }).collect()
            }
            Err(error) => {
                tracing::warn!(%error, "machines left over could not be told from others");
                Vec::new()
            }
        }
    }

    async fn clear_away(&self, leftovers: Vec<Leftover>) {
        for Leftover { backend, id } in leftovers {
            let deleted = within(
                self.config.deadlines.delete,
                "deleting the machine",
                backend.calls().delete(&id),
            )
            .await;
            match deleted {
                Ok(()) => tracing::warn!(vm.id = id, "a machine that no VM had was deleted"),
                Err(error) => {
                    tracing::warn!(vm.id = id, %error, "a machine that no VM has could not be deleted yet")
                }
            }
        }
    }

    async fn forget_old_jobs(&self) {
        let expired = self.registry.expired_jobs(model::now(), self.config.job_retention);
        if expired.is_empty() {
            return;
        }
        match self.store.remove_jobs(expired.clone()).await {
            Ok(()) => self.registry.forget_jobs(&expired),
            Err(error) => tracing::warn!(%error, "old jobs could not be removed"),
        }
    }
}
