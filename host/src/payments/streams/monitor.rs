//! The monitor: reads all streams at once, again and again, and does what follows for their machines.
//!
//! ```text
//!            every interval, or after an event
//! store ──▶ streams ──▶ read (one block, all of them) ──▶ verdict ──▶ stop ── retention ──▶ delete
//!                          │ nobody answers                  ▲
//!                          └──▶ the last good answer, and the clock
//! ```
//!
//! A machine is stopped on the chain's word, or when the clock has passed what was paid for by the last word there was. It is
//! deleted on the chain's word alone, after the retention. A stream that is missing may be back after a reorganisation: it
//! has to be missing for [`SETTLED_BLOCKS`] blocks. A node that lags behind what was read before is not believed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    book::Trouble,
    gate::GateError,
    live::PaymentRules,
    machines::{MachineState, Machines},
    model::{self, PaymentStatus, Stream, StreamKey, Suspension},
    verdict::{Evidence, PaymentState, Verdict, verdict},
};
use crate::{
    plugins::{
        FailureKind,
        payment_verifier::{MAX_READ, Moment, Payment},
    },
    store::StoreError,
};

/// Between two looks at the chain's events, where its nodes can tell them.
const EVENTS_EVERY: Duration = Duration::from_secs(10);

/// Between two attempts to do what failed.
const AGAIN: Duration = Duration::from_secs(5);

/// A stream that has disappeared has to stay so for this many blocks before that counts.
pub(super) const SETTLED_BLOCKS: u64 = 32;

/// What is remembered from one round to the next.
#[derive(Default)]
pub(super) struct Rounds {
    /// The block at which a stream was first found missing.
    missing_since: HashMap<StreamKey, u64>,
    /// What was last told of each, so that the log tells changes and nothing else.
    told: HashMap<StreamKey, PaymentState>,
    /// Events were looked at up to this block.
    events_up_to: Option<u64>,
    /// The chain's nodes cannot tell events.
    no_events: bool,
}

/// What a stream's contract says. One that could not be asked has none.
pub(super) struct Reading {
    /// Absent: there is no such stream.
    pub payment: Option<Payment>,
    pub at: Moment,
    pub latest: Moment,
}

/// What has to be done about a machine.
pub(super) enum Deed {
    Stop,
    Delete,
}

pub(super) async fn run(
    inner: Arc<Inner>,
    machines: Arc<dyn Machines>,
    mut rules: watch::Receiver<PaymentRules>,
    stop: CancellationToken,
) {
    let mut rounds = Rounds::default();
    let mut deeds: JoinSet<(String, bool)> = JoinSet::new();
    let mut under_way: HashSet<String> = HashSet::new();
    let mut due = Instant::now();
    loop {
        let now = *rules.borrow_and_update();
        if Instant::now() >= due {
            let wanted = inner.round(&mut rounds, machines.as_ref(), &now).await;
            let wanted = wanted.unwrap_or_else(|error| {
                tracing::error!("the streams could not be looked at: {error}");
                Vec::new()
            });
            for (vm_id, deed) in wanted {
                if under_way.insert(vm_id.clone()) {
                    deeds.spawn(carry_out(Arc::clone(&machines), vm_id, deed));
                }
            }
            due = Instant::now() + now.monitor.interval;
        }
        let look_at_events = Instant::now() + EVENTS_EVERY.min(now.monitor.interval);
        tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = rules.changed() => due = Instant::now(),
            () = inner.wake.notified() => due = Instant::now(),
            Some(done) = deeds.join_next() => match done {
                Ok((vm_id, done)) => {
                    under_way.remove(&vm_id);
                    due = if done { Instant::now() } else { due.min(Instant::now() + AGAIN) };
                }
                // A task that broke off told so itself; whose it was is not known any more.
                Err(_) => under_way.clear(),
            },
            () = sleep_until(due.min(look_at_events)) => {
                if Instant::now() < due && inner.something_happened(&mut rounds).await {
                    due = Instant::now();
                }
            }
        }
    }
    // What was begun belongs to the VM service, which ends it in order.
    deeds.shutdown().await;
}

/// Answers whose machine it was, and whether it was done.
async fn carry_out(machines: Arc<dyn Machines>, vm_id: String, deed: Deed) -> (String, bool) {
    let (done, what) = match deed {
        Deed::Stop => (machines.stop(&vm_id).await, "stopped"),
        Deed::Delete => (machines.delete(&vm_id).await, "deleted"),
    };
    match &done {
        Ok(()) => tracing::info!(vm.id = vm_id, "{vm_id} was {what}: nobody pays for it"),
        Err(error) => tracing::warn!(
            vm.id = vm_id,
            "{vm_id}, which nobody pays for, could not be {what} and is tried again: {error}"
        ),
    }
    (vm_id, done.is_ok())
}

impl Inner {
    /// One look at all streams. Answers what has to be done about machines.
    pub(super) async fn round(
        &self,
        rounds: &mut Rounds,
        machines: &dyn Machines,
        rules: &PaymentRules,
    ) -> Result<Vec<(String, Deed)>, StoreError> {
        let _one_at_a_time = self.reading.lock().await;
        let streams = self.store.streams().await?;
        let mut streams: Vec<Stream> =
            streams.into_iter().filter(|stream| !stream.settled).collect();
        let readings = self.read_all(&streams).await;
        let before = streams.clone();
        let mut statuses = HashMap::new();
        let mut deeds = Vec::new();
        let now = model::now();
        for stream in &mut streams {
            let reading = readings.get(&stream.key);
            let (found, is_silent) = self.judge(rounds, stream, reading, rules, now);
            if stream.released_at.is_some() {
                continue;
            }
            let state = machines.look(&stream.vm_id);
            let enabled = rules.monitor.enabled;
            tell(rounds, stream, &found, enabled, is_silent);
            match (found.stop, state) {
                (false, _) => stream.suspended = None,
                (true, None | Some(MachineState::Neither)) => {}
                (true, Some(MachineState::Runs)) => {
                    stream.suspended = None;
                    if enabled {
                        deeds.push((stream.vm_id.clone(), Deed::Stop));
                    }
                }
                (true, Some(MachineState::Rests)) if found.proven => {
                    let suspended =
                        stream.suspended.get_or_insert(Suspension { at: now, state: found.state });
                    suspended.state = found.state;
                    if enabled && deletion(suspended, rules).is_some_and(|at| at <= now) {
                        deeds.push((stream.vm_id.clone(), Deed::Delete));
                    }
                }
                (true, Some(MachineState::Rests)) => {}
            }
            let status = status(stream, &found, rules, !is_silent);
            statuses.insert(stream.vm_id.clone(), Arc::new(status));
        }
        let changed: Vec<Stream> = streams
            .iter()
            .zip(&before)
            .filter(|(now, before)| now != before)
            .map(|(now, _)| now.clone())
            .collect();
        if !changed.is_empty() {
            self.store.save_streams(changed).await?;
        }
        self.book.replace(streams, statuses);
        Ok(deeds)
    }

    /// What follows from what was read of a stream; keeps that in it.
    fn judge(
        &self,
        rounds: &mut Rounds,
        stream: &mut Stream,
        reading: Option<&Reading>,
        rules: &PaymentRules,
        now: Timestamp,
    ) -> (Verdict, bool) {
        let verdict_rules = self.rules_of(rules);
        let silent = |stream: &Stream| {
            let now = stream.chain_time(now);
            (verdict(Evidence::Silent { last: &stream.payment, now }, &verdict_rules), true)
        };
        let Some(Reading { payment, at, latest }) = reading else { return silent(stream) };
        if at.number < stream.read_block {
            return silent(stream);
        }
        let evidence = match payment {
            Some(payment) => {
                rounds.missing_since.remove(&stream.key);
                stream.payment = payment.clone();
                stream.read_block = at.number;
                stream.read_block_time = latest.time;
                stream.read_at = now;
                Evidence::Read { payment, now: latest.time }
            }
            None => {
                let since = *rounds.missing_since.entry(stream.key.clone()).or_insert(at.number);
                let settled = at.number >= since.saturating_add(SETTLED_BLOCKS);
                Evidence::Absent { last: &stream.payment, now: latest.time, settled }
            }
        };
        (verdict(evidence, &verdict_rules), false)
    }

    /// Reads all streams that can be read. What is not in the answer could not be asked.
    pub(super) async fn read_all(&self, streams: &[Stream]) -> BTreeMap<StreamKey, Reading> {
        let mut readings = BTreeMap::new();
        let before = self.book.trouble();
        let answer = self.ask_all(streams, &mut readings).await;
        let trouble = answer.err().map(Trouble::from);
        match (&trouble, &before) {
            (Some(Trouble::Silent(reason)), None | Some(Trouble::Misconfigured(_))) => {
                tracing::warn!(
                    "streams cannot be read, and none is accepted; what was paid by the last answer counts until its end: {reason}"
                );
            }
            (Some(Trouble::Misconfigured(reason)), None | Some(Trouble::Silent(_))) => {
                tracing::error!("no machine that has to be paid for can be made: {reason}");
            }
            (None, Some(_)) => tracing::info!("streams can be read again"),
            _ => {}
        }
        self.book.set_trouble(trouble);
        readings
    }

    async fn ask_all(
        &self,
        streams: &[Stream],
        readings: &mut BTreeMap<StreamKey, Reading>,
    ) -> Result<(), GateError> {
        let verifier = self.gate.verifiers.current()?;
        let terms = verifier.terms().await.map_err(GateError::of)?;
        // A stream of another contract, or of another plugin, is one that cannot be asked for now.
        let keys: Vec<&StreamKey> = streams
            .iter()
            .filter(|stream| stream.key.contract == terms.contract)
            .filter(|stream| stream.verifier == verifier.name())
            .map(|stream| &stream.key)
            .collect();
        // Also where there is nothing to read: whether there is the right contract is seen then.
        let mut chunks: Vec<&[&StreamKey]> = keys.chunks(MAX_READ).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for keys in chunks {
            let references: Vec<String> = keys.iter().map(|key| key.reference.clone()).collect();
            let snapshot = verifier.read(&references, self.gate.confirmations).await;
            let snapshot = snapshot.map_err(GateError::of)?;
            for (key, payment) in keys.iter().zip(snapshot.payments) {
                let (at, latest) = (snapshot.at, snapshot.latest);
                readings.insert((*key).clone(), Reading { payment, at, latest });
            }
        }
        Ok(())
    }

    /// Did anything happen to one of our streams since the last look? Where nobody can tell, no.
    async fn something_happened(&self, rounds: &mut Rounds) -> bool {
        if rounds.no_events || self.book.trouble().is_some() {
            return false;
        }
        let Ok(verifier) = self.gate.verifiers.current() else { return false };
        let Some(since) = rounds.events_up_to else {
            // From the newest block on: what came before is in the round that was just made.
            let newest = verifier.read(&[], 1).await;
            rounds.events_up_to = newest.ok().map(|snapshot| snapshot.latest.number);
            return false;
        };
        match verifier.changed_since(since).await {
            Ok(changes) => {
                rounds.events_up_to = Some(changes.up_to_block);
                changes.references.iter().any(|reference| self.book.holds(reference))
            }
            Err(failure) if failure.kind == FailureKind::Unsupported => {
                tracing::info!(
                    "the chain's nodes tell no events; streams are looked at every interval"
                );
                rounds.no_events = true;
                false
            }
            Err(failure) => {
                tracing::debug!("events of streams could not be asked: {}", failure.message);
                false
            }
        }
    }
}

/// When a machine is deleted that was stopped then. Absent for one that is kept as good as for ever.
fn deletion(suspended: &Suspension, rules: &PaymentRules) -> Option<Timestamp> {
    suspended.at.checked_add(rules.retention).ok()
}

pub(super) fn status(
    stream: &Stream,
    found: &Verdict,
    rules: &PaymentRules,
    chain_reachable: bool,
) -> PaymentStatus {
    let deleted_at = stream
        .suspended
        .as_ref()
        .filter(|_| rules.monitor.enabled)
        .and_then(|suspended| deletion(suspended, rules));
    let stops_in_seconds = found.stops_in_seconds.filter(|_| rules.monitor.enabled);
    PaymentStatus {
        stream_id: stream.key.reference.clone(),
        state: found.state,
        remaining_seconds: found.remaining_seconds,
        stops_in_seconds,
        deleted_at,
        as_of: stream.read_at,
        chain_reachable,
        warning: warning(stream, found, stops_in_seconds, deleted_at),
    }
}

/// What the requestor should know, and do.
fn warning(
    stream: &Stream,
    found: &Verdict,
    stops_in_seconds: Option<u64>,
    deleted_at: Option<Timestamp>,
) -> Option<String> {
    let number = &stream.key.reference;
    let then = match (deleted_at, stops_in_seconds) {
        (Some(at), _) => format!("; the machine is kept until {at}"),
        (None, Some(seconds)) => format!("; the machine is stopped in {seconds} s"),
        (None, None) => String::new(),
    };
    match found.state {
        PaymentState::Funded => None,
        PaymentState::RunningLow => {
            Some(format!("stream {number} has {} s left: top it up{then}", found.remaining_seconds))
        }
        PaymentState::RanOut => {
            Some(format!("stream {number} has run out: top it up, and start the machine{then}"))
        }
        PaymentState::Halted => {
            Some(format!("stream {number} was halted: pay with another one{then}"))
        }
        PaymentState::Terminated => {
            Some(format!("stream {number} was terminated: pay with another one{then}"))
        }
        PaymentState::Missing => Some(format!(
            "stream {number} is not on the chain any more: pay with another one{then}"
        )),
    }
}

/// Writes a change into the log, once.
fn tell(rounds: &mut Rounds, stream: &Stream, found: &Verdict, enabled: bool, is_silent: bool) {
    if rounds.told.insert(stream.key.clone(), found.state) == Some(found.state) {
        return;
    }
    let (vm, number) = (&stream.vm_name, &stream.key.reference);
    let then = match (found.stop, enabled) {
        (true, true) => "the machine stops",
        (true, false) => "the machine goes on, as GOLEM_PROVIDER_STREAM_MONITOR_ENABLED is off",
        (false, _) => "the machine goes on",
    };
    let by = if is_silent { ", by the clock, as the chain does not answer" } else { "" };
    let state = found.state.name();
    if found.state == PaymentState::Funded {
        tracing::info!(
            vm.id = stream.vm_id,
            stream = number,
            "{vm}: stream {number} is {state}{by}"
        );
    } else {
        tracing::warn!(
            vm.id = stream.vm_id,
            stream = number,
            "{vm}: stream {number} is {state}{by}, {} s left; {then}",
            found.remaining_seconds
        );
    }
}
