//! The VMs in memory: what reads are answered from, and the slots that serialise changes.
//!
//! The store is written first, then the registry; so what is read here is durable. Its lock is held for moments and never
//! across a wait. A [`Slot`] is the right to change one VM: taking it, looking at the phase and deciding are one step,
//! so two requests at the same moment get one winner.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    VmError,
    lifecycle::{self, Answer, Operation, Request},
    model::{self, Job, JobStatus, Phase, Progress, Vm},
};
use crate::{
    resources::Amounts,
    store::{JobRecord, VmRecord},
};

/// What became of an operation. Everybody who waits for it gets the same.
pub(super) type Outcome = watch::Receiver<Option<Result<Arc<Vm>, VmError>>>;

#[derive(Default)]
pub(super) struct Registry {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    vms: HashMap<String, Entry>,
    ids_by_name: HashMap<String, String>,
    jobs: HashMap<Uuid, JobRecord>,
    /// Of the last slot that was taken.
    serial: u64,
}

struct Entry {
    vm: Arc<Vm>,
    ssh_key: Option<String>,
    under_way: Option<UnderWay>,
    /// The last slot taken for it.
    serial: u64,
    /// Where its port leads at the moment.
    target: Option<SocketAddr>,
}

struct UnderWay {
    operation: Operation,
    outcome: Outcome,
    interrupt: CancellationToken,
}

/// What a request got from the registry.
pub(super) enum Decision {
    /// The slot; when `after` is there, that has to end first and has been told to.
    Begin {
        slot: Slot,
        operation: Operation,
        after: Option<Outcome>,
    },
    Already(Arc<Vm>),
    Join(Outcome),
    Wait(Outcome),
}

/// A VM that nobody is changing, as it was at one moment.
pub(super) struct Idle {
    pub(super) vm: Arc<Vm>,
    pub(super) target: Option<SocketAddr>,
    serial: u64,
}

/// The right to change one VM. Given up when it is finished or dropped; whoever waits for a dropped one is told that it was
/// cut off.
pub(super) struct Slot {
    registry: Arc<Registry>,
    id: String,
    serial: u64,
    outcome: watch::Sender<Option<Result<Arc<Vm>, VmError>>>,
    interrupt: CancellationToken,
}

impl Registry {
    pub(super) fn load(vms: Vec<VmRecord>, jobs: Vec<JobRecord>) -> Registry {
        let now = model::now();
        let registry = Registry::default();
        {
            let mut state = registry.write();
            for record in vms {
                state.insert(record, 0);
            }
            state.jobs = jobs
                .into_iter()
                .map(|mut record| {
                    // Where the clock was set back, what ended in a time to come has ended now: kept, and not for ever.
                    record.job.updated_at = record.job.updated_at.min(now);
                    (record.job.id, record)
                })
                .collect();
        }
        registry
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Nothing that could panic runs between the steps of a change.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, id_or_name: &str) -> Result<Arc<Vm>, VmError> {
        self.read()
            .entry(id_or_name)
            .map(|entry| Arc::clone(&entry.vm))
            .ok_or_else(|| not_found(id_or_name))
    }

    /// Oldest first.
    pub(super) fn list(&self) -> Vec<Arc<Vm>> {
        let mut all: Vec<_> = self.read().vms.values().map(|entry| Arc::clone(&entry.vm)).collect();
        all.sort_unstable_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        all
    }

    pub(super) fn job(&self, id: &Uuid) -> Option<Job> {
        self.read().jobs.get(id).map(|record| record.job.clone())
    }

    /// The job of the VM's create, while that is not decided.
    pub(super) fn open_job(&self, vm_id: &str) -> Option<JobRecord> {
        let state = self.read();
        state
            .jobs
            .values()
            .find(|record| record.vm_id == vm_id && record.job.status == JobStatus::Creating)
            .cloned()
    }

    /// The open jobs of VMs that are not being made.
    pub(super) fn stray_jobs(&self) -> Vec<JobRecord> {
        let state = self.read();
        let is_stray = |record: &&JobRecord| {
            record.job.status == JobStatus::Creating
                && state
                    .vms
                    .get(&record.vm_id)
                    .is_none_or(|entry| entry.vm.phase != Phase::Creating)
        };
        state.jobs.values().filter(is_stray).cloned().collect()
    }

    /// The jobs that ended longer ago than `retention`.
    pub(super) fn expired_jobs(&self, now: Timestamp, retention: Duration) -> Vec<Uuid> {
        let expired = |record: &&JobRecord| {
            record.job.status != JobStatus::Creating
                && Duration::try_from(now.duration_since(record.job.updated_at))
                    .is_ok_and(|age| age > retention)
        };
        self.read().jobs.values().filter(expired).map(|record| record.job.id).collect()
    }

    pub(super) fn set_job(&self, record: JobRecord) {
        self.write().jobs.insert(record.job.id, record);
    }

    pub(super) fn forget_jobs(&self, ids: &[Uuid]) {
        let mut state = self.write();
        for id in ids {
            state.jobs.remove(id);
        }
    }

    /// What VMs hold, the sum of it and the ports.
    pub(super) fn held(&self) -> (Amounts, BTreeSet<u16>) {
        let state = self.read();
        let holding = || state.vms.values().filter(|entry| entry.vm.ssh_port.is_some());
        let amounts = holding().map(|entry| Amounts::from(entry.vm.resources)).sum();
        (amounts, holding().filter_map(|entry| entry.vm.ssh_port).collect())
    }

    pub(super) fn held_amounts(&self) -> Amounts {
        let state = self.read();
        let holding = state.vms.values().filter(|entry| entry.vm.ssh_port.is_some());
        holding.map(|entry| Amounts::from(entry.vm.resources)).sum()
    }

    /// May a new VM be called `name`? With the id of the failed VM whose place it would take, if there is one.
    pub(super) fn name_is_free(&self, name: &str) -> Result<Option<String>, VmError> {
        let state = self.read();
        let Some(entry) = state.entry(name) else { return Ok(None) };
        let replaceable = entry.vm.name == name
            && entry.vm.phase == Phase::Failed
            && entry.vm.ssh_port.is_none()
            && entry.under_way.is_none();
        if replaceable {
            Ok(Some(entry.vm.id.clone()))
        } else {
            Err(VmError::NameTaken { name: name.to_owned() })
        }
    }

    /// Takes in a VM that was just written to the store, with its create under way.
    pub(super) fn admit(
        self: &Arc<Registry>,
        record: VmRecord,
        job: JobRecord,
        replaced: Option<&str>,
    ) -> Slot {
        let mut state = self.write();
        if let Some(id) = replaced {
            state.remove(id);
        }
        let id = record.vm.id.clone();
        state.jobs.insert(job.job.id, job);
        state.insert(record, 0);
        self.occupy(&mut state, id, Operation::Create)
    }

    /// Decides on a request and, if it can be carried out, takes the slot for it: in one step.
    pub(super) fn request(
        self: &Arc<Registry>,
        id: &str,
        request: Request,
    ) -> Result<Decision, VmError> {
        let mut state = self.write();
        let entry = state.vms.get(id).ok_or_else(|| not_found(id))?;
        let under_way = entry.under_way.as_ref();
        let answer = lifecycle::answer(
            entry.vm.phase,
            under_way.map(|under_way| under_way.operation),
            request,
        );
        let outcome = under_way.map(|under_way| under_way.outcome.clone());
        Ok(match (answer, outcome) {
            (Answer::Begin(operation), _) => {
                let slot = self.occupy(&mut state, id.to_owned(), operation);
                Decision::Begin { slot, operation, after: None }
            }
            (Answer::Interrupt(operation), after) => {
                if let Some(under_way) = under_way {
                    under_way.interrupt.cancel();
                }
                let slot = self.occupy(&mut state, id.to_owned(), operation);
                Decision::Begin { slot, operation, after }
            }
            (Answer::Join, Some(outcome)) => Decision::Join(outcome),
            (Answer::Wait, Some(outcome)) => Decision::Wait(outcome),
            (Answer::Busy(operation), _) => {
                return Err(VmError::Busy {
                    id: entry.vm.name.clone(),
                    operation: operation.name(),
                });
            }
            (Answer::Refuse(reason), _) => {
                let id = entry.vm.name.clone();
                return Err(VmError::WrongState {
                    message: format!("VM '{id}' is {}: {reason}", entry.vm.phase),
                    id,
                });
            }
            (Answer::Already | Answer::Join | Answer::Wait, _) => {
                Decision::Already(Arc::clone(&entry.vm))
            }
        })
    }

    /// The VMs that nobody is changing.
    pub(super) fn idle(&self) -> Vec<Idle> {
        let state = self.read();
        let idle = state.vms.values().filter(|entry| entry.under_way.is_none());
        idle.map(|entry| Idle {
            vm: Arc::clone(&entry.vm),
            target: entry.target,
            serial: entry.serial,
        })
        .collect()
    }

    /// Takes the slot if nobody has changed the VM since it was seen idle.
    pub(super) fn take(self: &Arc<Registry>, seen: &Idle, operation: Operation) -> Option<Slot> {
        let mut state = self.write();
        let entry = state.vms.get(&seen.vm.id)?;
        if entry.under_way.is_some() || entry.serial != seen.serial {
            return None;
        }
        Some(self.occupy(&mut state, seen.vm.id.clone(), operation))
    }

    /// The machines that a VM in here may have; everything else with an id of ours is left over.
    pub(super) fn may_have_machine(&self, id: &str) -> bool {
        let state = self.read();
        state
            .vms
            .get(id)
            .is_some_and(|entry| entry.vm.ssh_port.is_some() || entry.under_way.is_some())
    }

    fn occupy(self: &Arc<Registry>, state: &mut State, id: String, operation: Operation) -> Slot {
        state.serial += 1;
        let serial = state.serial;
        let (outcome, receiver) = watch::channel(None);
        let interrupt = CancellationToken::new();
        if let Some(entry) = state.vms.get_mut(&id) {
            entry.serial = serial;
            entry.under_way =
                Some(UnderWay { operation, outcome: receiver, interrupt: interrupt.clone() });
        }
        Slot { registry: Arc::clone(self), id, serial, outcome, interrupt }
    }
}

impl State {
    fn entry(&self, id_or_name: &str) -> Option<&Entry> {
        self.vms.get(id_or_name).or_else(|| self.vms.get(self.ids_by_name.get(id_or_name)?))
    }

    fn insert(&mut self, record: VmRecord, serial: u64) {
        let id = record.vm.id.clone();
        self.ids_by_name.insert(record.vm.name.clone(), id.clone());
        let entry = Entry {
            vm: Arc::new(record.vm),
            ssh_key: record.ssh_key,
            under_way: None,
            serial,
            target: None,
        };
        self.vms.insert(id, entry);
    }

    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.vms.remove(id) {
            self.ids_by_name.remove(&entry.vm.name);
        }
    }
}

impl Slot {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Cancelled when the operation has to end at once, because something stronger takes its place.
    pub(super) fn interrupt(&self) -> &CancellationToken {
        &self.interrupt
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.subscribe()
    }

    /// The VM as it is.
    pub(super) fn vm(&self) -> Result<Arc<Vm>, VmError> {
        self.registry.get(&self.id)
    }

    pub(super) fn ssh_key(&self) -> Option<String> {
        self.registry.read().vms.get(&self.id)?.ssh_key.clone()
    }

    /// The slot is used for another operation from now on. `false` if it has been taken over.
    pub(super) fn becomes(&self, operation: Operation) -> bool {
        self.with_entry(|entry| {
            if let Some(under_way) = &mut entry.under_way {
                under_way.operation = operation;
            }
        })
        .is_some()
    }

    /// Replaces the VM by one that was just written to the store.
    pub(super) fn publish(&self, vm: Vm, job: Option<JobRecord>) -> Arc<Vm> {
        let vm = Arc::new(vm);
        let mut state = self.registry.write();
        if let Some(job) = job {
            state.jobs.insert(job.job.id, job);
        }
        if let Some(entry) = state.vms.get_mut(&self.id) {
            entry.vm = Arc::clone(&vm);
        }
        vm
    }

    /// Takes the VM and its jobs out, those of failed creates under its name included, after the store has.
    pub(super) fn forget(&self) {
        let mut state = self.registry.write();
        let name = state.vms.get(&self.id).map(|entry| entry.vm.name.clone());
        state.remove(&self.id);
        state.jobs.retain(|_, record| {
            record.vm_id != self.id && Some(&record.job.vm_name) != name.as_ref()
        });
    }

    /// Notes where the VM's port leads from now on. `true` if that is news.
    pub(super) fn retarget(&self, target: Option<SocketAddr>) -> bool {
        let mut state = self.registry.write();
        match state.vms.get_mut(&self.id) {
            Some(entry) if entry.target != target => {
                entry.target = target;
                true
            }
            _ => false,
        }
    }

    /// What says how far the operation has come. Says nothing any more once the slot is given up.
    pub(super) fn progress(&self) -> impl Fn(Progress) + Send + Sync + use<> {
        let (registry, id, serial) = (Arc::clone(&self.registry), self.id.clone(), self.serial);
        move |progress| {
            if let Some(entry) = registry.write().vms.get_mut(&id)
                && entry.serial == serial
                && entry.under_way.is_some()
            {
                Arc::make_mut(&mut entry.vm).progress = Some(progress);
            }
        }
    }

    /// Gives the slot up and tells everybody who waits.
    pub(super) fn finish(self, result: Result<Arc<Vm>, VmError>) {
        self.release();
        // Progress is over: what is told is the VM as it can be read now.
        let result = result.map(|vm| match &vm.progress {
            Some(_) => Arc::new(Vm { progress: None, ..(*vm).clone() }),
            None => vm,
        });
        self.outcome.send_replace(Some(result));
    }

    fn release(&self) {
        self.with_entry(|entry| {
            entry.under_way = None;
            if entry.vm.progress.is_some() {
                Arc::make_mut(&mut entry.vm).progress = None;
            }
        });
    }

    /// `None` if the VM is gone or the slot was taken over.
    fn with_entry<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut state = self.registry.write();
        state.vms.get_mut(&self.id).filter(|entry| entry.serial == self.serial).map(change)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.release();
    }
}

/// Waits for an operation. `None`: it was cut off.
pub(super) async fn outcome_of(mut outcome: Outcome) -> Option<Result<Arc<Vm>, VmError>> {
    outcome.wait_for(Option::is_some).await.ok()?.clone()
}

fn not_found(id: &str) -> VmError {
    VmError::NotFound { id: id.to_owned() }
}
