//! What is done to a VM once it was decided, step by step.
//!
//! Each operation has the VM's slot, begins with writing the phase that says what is under way, and ends with writing what
//! came of it. Every step can be repeated, and the operation can end after any of them: then the phase stays, and
//! `reconcile` begins the same operation again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{
    VmError,
    backends::{Backend, within},
    lifecycle::{self, Operation},
    model::{self, JobStatus, Phase, Progress, SshPublicKey, Vm},
    registry::Slot,
    service::{Inner, is_not_found},
};
use crate::{
    faults::{self, FaultPoint},
    plugins::{
        Failure, FailureKind,
        vm_backend::{Instance, InstanceSpec, PowerState, ProgressSink},
    },
    store::JobRecord,
};

/// What a create is told to have failed of when it was cut off before there was a machine.
const INTERRUPTED: &str = "the provider was restarted (or could not write its database) while this VM was being made; make it again";

const MIB_PER_GB: u64 = 1024;

impl Inner {
    /// Carries out one operation on the slot's VM. The result is for everybody who waits for it.
    pub(super) async fn perform(
        &self,
        slot: &Slot,
        operation: Operation,
        key: Option<SshPublicKey>,
    ) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        let result = match (operation, key) {
            (Operation::Create, _) => self.create_machine(slot).await,
            (Operation::Start, _) => self.start_machine(slot).await,
            (Operation::Stop, _) => self.stop_machine(slot, self.config.stop_grace).await,
            (Operation::Delete, _) => self.delete_machine(slot).await,
            (Operation::Undo, _) => self.undo_create(slot).await,
            (Operation::AddKey, Some(key)) => self.add_key(slot, &key).await,
            (Operation::AddKey | Operation::Check, _) => Ok(Arc::clone(&vm)),
        };
        if let Err(error) = &result {
            let (id, name, port) = (&vm.id, &vm.name, vm.ssh_port);
            tracing::warn!(vm.id = id, vm.name = name, port, %error, "{} has failed", operation.name());
        }
        result
    }

    async fn create_machine(&self, slot: &Slot) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        let backend = self.backends.named(&vm.backend)?;
        let made = tokio::select! {
            biased;
            () = slot.interrupt().cancelled() => return Err(VmError::Cancelled { id: vm.name.clone() }),
            made = self.make_and_boot(slot, &vm, &backend) => made,
        };
        match made {
            Ok(instance) => {
                faults::reached(FaultPoint::CreateReady);
                let job = self.end_job(&vm.id, JobStatus::Ready, None);
                let running = self
                    .commit(slot, job, |vm| {
                        vm.phase = Phase::Running;
                        vm.ip_address = instance.ip_address;
                        vm.error_message = None;
                    })
                    .await?;
                faults::reached(FaultPoint::CreateWritten);
                Ok(running)
            }
            Err(source) => {
                self.fail_create(slot, source.to_string()).await?;
                faults::reached(FaultPoint::UndoFailed);
                // Nobody waits for the result of clearing up: it is repeated until it succeeds.
                if slot.becomes(Operation::Undo) {
                    let _ = self.undo_create(slot).await;
                }
                Err(VmError::Backend { id: vm.name.clone(), source })
            }
        }
    }

    async fn make_and_boot(
        &self,
        slot: &Slot,
        vm: &Vm,
        backend: &Backend,
    ) -> Result<Instance, Failure> {
        let spec = InstanceSpec {
            id: vm.id.clone(),
            hostname: vm.name.clone(),
            cpu_cores: vm.resources.cpu_cores,
            memory_mib: u64::from(vm.resources.memory_gb) * MIB_PER_GB,
            storage_mib: u64::from(vm.resources.storage_gb) * MIB_PER_GB,
            image: vm.image.clone(),
            ssh_authorized_keys: slot.ssh_key().into_iter().collect(),
        };
        self.boot(slot, vm, backend, |progress| async {
            let made = within(
                self.config.deadlines.create,
                "making the machine",
                backend.calls().create(&spec, progress),
            )
            .await;
            faults::reached(FaultPoint::CreateMade);
            made
        })
        .await
    }

    /// Waits for a turn, lets `begin` start the machine, and waits until its SSH answers.
    async fn boot<Begun>(
        &self,
        slot: &Slot,
        vm: &Vm,
        backend: &Backend,
        begin: impl FnOnce(ProgressSink) -> Begun,
    ) -> Result<Instance, Failure>
    where
        Begun: Future<Output = Result<Instance, Failure>>,
    {
        let deadlines = &self.config.deadlines;
        let progress: ProgressSink = Arc::new(slot.progress());
        let waiting =
            Progress { stage: "waiting for other machines to boot".to_owned(), percent: None };
        let (_turn, limits) = backend.turn_to_boot(deadlines.ask, || progress(waiting)).await?;
        let begun = begin(Arc::clone(&progress)).await?;
        self.aim(slot, vm, begun.ssh);
        progress(Progress { stage: "booting".to_owned(), percent: None });
        let boot = limits.boot_timeout.min(deadlines.boot) + deadlines.boot_slack;
        let ready =
            within(boot, "booting the machine", backend.calls().await_ready(&vm.id, progress))
                .await?;
        let Some(target) = ready.ssh.filter(|_| ready.power == PowerState::Running) else {
            let message =
                "the backend called the machine ready, but it does not run or has no SSH address";
            return Err(Failure::new(FailureKind::Internal, message));
        };
        self.aim(slot, vm, Some(target));
        Ok(ready)
    }

    async fn fail_create(&self, slot: &Slot, reason: String) -> Result<Arc<Vm>, VmError> {
        let job = self.end_job(slot.id(), JobStatus::Failed, Some(reason.clone()));
        self.commit(slot, job, |vm| {
            vm.phase = Phase::Failed;
            vm.error_message = Some(reason);
        })
        .await
    }

    /// Clears away whatever a failed create has left, and gives back what it held.
    async fn undo_create(&self, slot: &Slot) -> Result<Arc<Vm>, VmError> {
        let mut vm = slot.vm()?;
        if vm.phase == Phase::Creating {
            vm = self.fail_create(slot, INTERRUPTED.to_owned()).await?;
        }
        let backend = self.backends.named(&vm.backend)?;
        self.delete_from(&backend, &vm).await?;
        faults::reached(FaultPoint::UndoCleared);
        self.close_port(slot, &vm).await;
        faults::reached(FaultPoint::UndoPortClosed);
        let empty = self
            .commit(slot, None, |vm| {
                vm.ssh_port = None;
                vm.ip_address = None;
            })
            .await?;
        faults::reached(FaultPoint::UndoWritten);
        Ok(empty)
    }

    async fn start_machine(&self, slot: &Slot) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        let backend = self.backends.named(&vm.backend)?;
        let vm = match vm.phase {
            Phase::Starting => vm,
            _ => self.commit(slot, None, |vm| vm.phase = Phase::Starting).await?,
        };
        faults::reached(FaultPoint::StartBegun);
        let started = self.boot(slot, &vm, &backend, |progress| async {
            let made = within(
                self.config.deadlines.start,
                "starting the machine",
                backend.calls().start(&vm.id, progress),
            )
            .await;
            faults::reached(FaultPoint::StartMade);
            made
        });
        match started.await {
            Ok(instance) => {
                faults::reached(FaultPoint::StartReady);
                let running = self
                    .commit(slot, None, |vm| {
                        vm.phase = Phase::Running;
                        vm.ip_address = instance.ip_address;
                        vm.error_message = None;
                    })
                    .await?;
                faults::reached(FaultPoint::StartWritten);
                Ok(running)
            }
            Err(source) => {
                // It may run without answering: what is called stopped has to be switched off.
                let reason = format!("the VM could not be started: {source}");
                self.commit(slot, None, |vm| {
                    vm.phase = Phase::Stopping;
                    vm.error_message = Some(reason);
                })
                .await?;
                faults::reached(FaultPoint::StartFailed);
                if slot.becomes(Operation::Stop) {
                    let _ = self.stop_machine(slot, Duration::ZERO).await;
                }
                Err(VmError::Backend { id: vm.name.clone(), source })
            }
        }
    }

    pub(super) async fn stop_machine(
        &self,
        slot: &Slot,
        grace: Duration,
    ) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        let backend = self.backends.named(&vm.backend)?;
        let vm = match vm.phase {
            Phase::Stopping => vm,
            _ => self.commit(slot, None, |vm| vm.phase = Phase::Stopping).await?,
        };
        faults::reached(FaultPoint::StopBegun);
        let deadline = grace + self.config.deadlines.stop_slack;
        let stopped =
            within(deadline, "stopping the machine", backend.calls().stop(&vm.id, grace)).await;
        let message = match stopped {
            Ok(instance) if matches!(instance.power, PowerState::Stopped | PowerState::Crashed) => {
                None
            }
            Ok(_) => {
                let message = "the backend called the machine stopped, but says that it runs";
                let source = Failure::new(FailureKind::Internal, message);
                return Err(self.note_failure(slot, &vm, "stopped", source).await);
            }
            Err(error) if is_not_found(&error) => Some(lifecycle::GONE.to_owned()),
            Err(source) => return Err(self.note_failure(slot, &vm, "stopped", source).await),
        };
        faults::reached(FaultPoint::StopDone);
        self.aim(slot, &vm, None);
        let stopped = self
            .commit(slot, None, |vm| {
                vm.phase = Phase::Stopped;
                vm.ip_address = None;
                if message.is_some() {
                    vm.error_message = message;
                } else if vm.error_message.as_deref().is_some_and(is_retry_note) {
                    vm.error_message = None;
                }
            })
            .await?;
        faults::reached(FaultPoint::StopWritten);
        Ok(stopped)
    }

    async fn delete_machine(&self, slot: &Slot) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        if vm.ssh_port.is_some() {
            let backend = self.backends.named(&vm.backend)?;
            let vm = match vm.phase {
                Phase::Deleting => Arc::clone(&vm),
                _ => self.commit(slot, None, |vm| vm.phase = Phase::Deleting).await?,
            };
            faults::reached(FaultPoint::DeleteBegun);
            self.aim(slot, &vm, None);
            if let Err(source) = self.delete_from(&backend, &vm).await {
                let VmError::Backend { source, .. } = source else { return Err(source) };
                return Err(self.note_failure(slot, &vm, "deleted", source).await);
            }
            faults::reached(FaultPoint::DeleteCleared);
            self.close_port(slot, &vm).await;
            faults::reached(FaultPoint::DeletePortClosed);
        }
        self.store.remove(&vm.id).await?;
        faults::reached(FaultPoint::DeleteWritten);
        slot.forget();
        tracing::info!(vm.id = vm.id, vm.name = vm.name, port = vm.ssh_port, "a VM was deleted");
        Ok(vm)
    }

    async fn delete_from(&self, backend: &Backend, vm: &Vm) -> Result<(), VmError> {
        let deleted = within(
            self.config.deadlines.delete,
            "deleting the machine",
            backend.calls().delete(&vm.id),
        )
        .await;
        match deleted {
            Err(error) if !is_not_found(&error) => {
                Err(VmError::Backend { id: vm.name.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    async fn add_key(&self, slot: &Slot, key: &SshPublicKey) -> Result<Arc<Vm>, VmError> {
        let vm = slot.vm()?;
        let backend = self.backends.named(&vm.backend)?;
        let line = key.to_string();
        let added = within(
            self.config.deadlines.add_key,
            "adding the key",
            backend.calls().add_ssh_key(&vm.id, &line),
        )
        .await;
        added.map_err(|source| VmError::Backend { id: vm.name.clone(), source })?;
        faults::reached(FaultPoint::KeyAdded);
        tracing::info!(vm.id = vm.id, vm.name = vm.name, port = vm.ssh_port, "a key was added");
        Ok(vm)
    }

    /// Says in the VM's record that an operation which cannot be taken back is being repeated, and why.
    async fn note_failure(&self, slot: &Slot, vm: &Vm, what: &str, source: Failure) -> VmError {
        let note = format!("{RETRY_NOTE}{what}: {source}; trying again");
        // A record of why the machine was to be stopped says more.
        let news = vm
            .error_message
            .as_ref()
            .is_none_or(|message| is_retry_note(message) && *message != note);
        if news
            && let Err(error) = self.commit(slot, None, |vm| vm.error_message = Some(note)).await
        {
            tracing::warn!(vm.id = vm.id, %error, "a failure could not be written down");
        }
        VmError::Backend { id: vm.name.clone(), source }
    }

    /// Writes a change down, then lets it be read.
    pub(super) async fn commit(
        &self,
        slot: &Slot,
        job: Option<JobRecord>,
        change: impl FnOnce(&mut Vm),
    ) -> Result<Arc<Vm>, VmError> {
        let before = slot.vm()?;
        let mut vm = Vm { progress: None, ..(*before).clone() };
        change(&mut vm);
        debug_assert!(lifecycle::edge(before.phase, vm.phase), "{} to {}", before.phase, vm.phase);
        // A clock that was set back does not make a VM older.
        vm.updated_at = model::now().max(before.updated_at);
        self.store.save(vm.clone(), job.clone()).await?;
        tracing::info!(
            vm.id = vm.id,
            vm.name = vm.name,
            port = vm.ssh_port,
            phase = %vm.phase,
            error = vm.error_message,
            "a VM has changed"
        );
        Ok(slot.publish(vm, job))
    }

    /// The VM's job as it ends, to be written with the VM.
    fn end_job(&self, vm_id: &str, status: JobStatus, error: Option<String>) -> Option<JobRecord> {
        let mut record = self.registry.open_job(vm_id)?;
        record.job.status = status;
        record.job.error = error;
        record.job.updated_at = model::now().max(record.job.updated_at);
        Some(record)
    }

    /// Connections to the VM's port go to `target` from now on; without one they are reset.
    pub(super) fn aim(&self, slot: &Slot, vm: &Vm, target: Option<SocketAddr>) {
        if let Some(port) = vm.ssh_port
            && slot.retarget(target)
        {
            self.proxy.set_target(port, target);
        }
    }

    async fn close_port(&self, slot: &Slot, vm: &Vm) {
        if let Some(port) = vm.ssh_port {
            slot.retarget(None);
            self.proxy.close(port).await;
        }
    }
}

/// How a message begins that is only about something being repeated, so that success takes it away.
const RETRY_NOTE: &str = "could not be ";

fn is_retry_note(message: &str) -> bool {
    message.starts_with(RETRY_NOTE)
}
