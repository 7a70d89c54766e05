//! One machine's life, as Multipass lets it be led.
//!
//! ```text
//!  Requested ──▶ Launching ──▶ Launched          how far the making came (the record)
//!                    │ deleted before it was seen
//!                    ▼
//!                Abandoned ──▶ gone              purged when it appears after all, forgotten when it never does
//! ```
//! What a launched machine is doing is asked of Multipass every time and judged by [`power`]: its state, what it was last
//! asked to be, and whether SSH has answered since its last start. What was asked for is written before it is done, so a call
//! that is cut off anywhere leaves something that a repeated call finishes and [`delete`] removes.
//!
//! Commands are not believed. A launch that "timed out" may have made a machine that boots, one that went well may have had its
//! machine taken away, a purge may come too early; and a command that is killed goes on inside the daemon. So every command is
//! followed by a look, and the look decides.
//!
//! [`power`] and what stands beside it are pure and tested; the rest acts through `client.rs`. `lib.rs` calls it for the
//! contract.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result,
    clock::{self, Deadline},
    log, progress,
    vm_backend::{Endpoint, Instance, PowerState, SpecRecord},
};

use crate::{
    answers::{Outcome, Refusal, Sight, State},
    client,
    record::{self, Making, Record, Wanted},
    settings::Settings,
    ssh_keys,
};

/// How long a boot may take from a launch or a start until SSH answers.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Told to whoever waits a little before the provider itself gives up, because this knows more.
const BOOT_MARGIN: Duration = Duration::from_secs(10);
/// Between two looks at something that changes by itself.
const PAUSE: Duration = Duration::from_secs(1);
/// How long `multipass start` may take until we look ourselves.
const START_PATIENCE: Duration = Duration::from_secs(15);
/// For how long a machine that was just launched or started may be called off, or unknown: Multipass shows it before it
/// starts it.
const OFF_TOLERANCE: Duration = Duration::from_secs(15);
/// For how long a daemon that does not answer is asked again.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a switched off machine may take to be called so.
const OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a delete may take until it fails and is repeated.
const DELETE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a delete waits for a machine that was being launched to appear.
const APPEARANCE: Duration = Duration::from_secs(10);
/// After this, a machine that was deleted while it was being launched will not appear any more.
const ABANDONED_MS: u64 = 60 * 60 * 1000;
/// How often a launch may contradict what is seen.
const MAX_CONTRADICTIONS: u32 = 5;
/// Where a machine's SSH server listens.
const SSH_PORT: u16 = 22;

/// What the machine is doing.
fn power(wanted: Wanted, state: &State, ready: bool) -> PowerState {
    match (state, wanted) {
        (State::DelayedShutdown | State::Suspending, _) => PowerState::Stopping,
        // Multipass does not tell a machine that crashed from one that was shut down inside.
        (State::Stopped | State::Suspended | State::Deleted, _) => PowerState::Stopped,
        (_, Wanted::Stopping) => PowerState::Stopping,
        (State::Running, _) => PowerState::Running,
        (State::Starting | State::Restarting, _) => PowerState::Starting,
        // It runs, and does not answer: as part of its boot, or because its owner has closed SSH.
        (State::Unknown | State::Other(_), _) if ready => PowerState::Running,
        (State::Unknown | State::Other(_), _) => PowerState::Starting,
    }
}

/// What people should know of a state that the machine is not supposed to be in.
fn detail(record: &Record, state: &State) -> Option<String> {
    match (state, record.wanted) {
        (State::Deleted, _) => Some(format!(
            "it was deleted by hand; `multipass recover {}` brings it back",
            record.name
        )),
        (State::Suspended, Wanted::Running) => {
            Some("Multipass has suspended it; a start lets it go on".to_owned())
        }
        (State::Other(name), _) => Some(format!("Multipass calls its state `{name}`")),
        _ => None,
    }
}

/// The machine as the provider sees it.
fn instance(record: &Record, sight: &Sight, ready: bool) -> Instance {
    let power = power(record.wanted, &sight.state, ready);
    let address = sight.address.clone().filter(|_| sight.state.is_on());
    Instance {
        id: record.id().to_owned(),
        power,
        ssh: address.clone().map(|address| Endpoint { address, port: SSH_PORT }),
        ip_address: address,
        detail: detail(record, &sight.state),
    }
}

/// A machine that Multipass does not show yet.
fn not_launched(record: &Record) -> Instance {
    Instance {
        id: record.id().to_owned(),
        power: PowerState::Stopped,
        ssh: None,
        ip_address: None,
        detail: Some("Multipass has not finished launching it".to_owned()),
    }
}

/// May an operating system be asked to shut down? A graceful stop of one that is still booting hangs for five minutes, in which
/// the daemon answers nobody; and there is nothing to lose in it yet.
fn can_shut_down(state: &State, ready: bool) -> bool {
    match state {
        State::Running | State::DelayedShutdown => true,
        State::Unknown | State::Other(_) => ready,
        _ => false,
    }
}

/// The record of a machine that has to be there.
fn existing(id: &str) -> Result<Record> {
    record::load(id)?.filter(|record| !record.is_abandoned()).ok_or_else(|| missing(id))
}

fn missing(id: &str) -> Error {
    Error::NotFound(format!("there is no machine {id}"))
}

fn gone(record: &Record) -> Error {
    Error::NotFound(format!("Multipass does not know the machine {} any more", record.name))
}

/// Patience with a daemon that does not answer, as happens while it serves another command.
#[derive(Default)]
struct Silence(Option<Deadline>);

impl Silence {
    /// Waits a little, unless it has lasted too long.
    fn bear(&mut self, error: Error) -> Result<()> {
        let deadline = *self.0.get_or_insert_with(|| Deadline::after(SILENCE));
        if !matches!(error, Error::Unavailable(_)) || deadline.has_passed() {
            return Err(error);
        }
        clock::sleep(PAUSE);
        Ok(())
    }

    fn is_over(&mut self) {
        self.0 = None;
    }
}

/// Looks, with patience.
fn look(name: &str) -> Result<Option<Sight>> {
    let mut silence = Silence::default();
    loop {
        match client::look(name) {
            Ok(seen) => return Ok(seen),
            Err(error) => silence.bear(error)?,
        }
    }
}

/// The machine now. Changes nothing.
pub fn inspect(id: &str) -> Result<Instance> {
    let record = existing(id)?;
    inspected(&record, client::look(&record.name)?)
}

fn inspected(record: &Record, seen: Option<Sight>) -> Result<Instance> {
    match seen {
        Some(sight) => Ok(instance(record, &sight, record::is_ready(record.id())?)),
        None if record.making == Making::Launched => Err(gone(record)),
        None => Ok(not_launched(record)),
    }
}

/// All machines now, by one question to Multipass. Among them those that were deleted and appeared all the same, so that the
/// provider deletes them again.
pub fn inspect_all() -> Result<Vec<Instance>> {
    // Seen after the records: what is launched in between is in neither.
    let records = record::all()?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let seen = client::look_at_all()?;
    let mut instances = Vec::new();
    for record in &records {
        let sight = seen.iter().find(|(name, _)| *name == record.name).map(|(_, sight)| sight);
        match (record.making, sight) {
            (Making::Abandoned { since_unix_ms }, None) => {
                if clock::unix_ms().saturating_sub(since_unix_ms) > ABANDONED_MS {
                    record::forget(record.id())?;
                }
            }
            (_, sight) => match inspected(record, sight.cloned()) {
                Ok(instance) => instances.push(instance),
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            },
        }
    }
    Ok(instances)
}

/// Makes a machine, or goes on where an earlier call stopped.
pub fn create(spec: SpecRecord, settings: &Settings) -> Result<Instance> {
    if spec.storage_mib == 0 {
        return Err(Error::InvalidArgument("a machine needs a disk".into()));
    }
    let source = settings.source_of(&spec.image)?;
    let mut record = match record::load(&spec.id)? {
        Some(record) if record.is_abandoned() => {
            return Err(Error::FailedPrecondition(format!(
                "the machine {} is being deleted; make one with another id",
                spec.id
            )));
        }
        Some(record) if record.spec == spec => record,
        Some(_) => {
            return Err(Error::AlreadyExists(format!(
                "the machine {} exists and differs from what was asked for",
                spec.id
            )));
        }
        None => {
            let record = Record::new(spec);
            record::save(&record)?;
            record
        }
    };
    if record.making == Making::Launched {
        // The call before was cut off after the launch; the machine may have been shut down since.
        return match record.wanted {
            Wanted::Running => ensure_started(&mut record),
            _ => inspect(record.id()),
        };
    }
    launch(&mut record, &source, settings)
}

/// Launches a machine, and returns as soon as Multipass shows it.
///
/// `multipass launch` returns when the machine has booted and cloud-init has ended. So it is given little time where the image is there,
/// and looked after. Where the image has to be fetched it is given much, because the download ends with the command; and each
/// further attempt is given twice the time, so that a download that fits into the whole at all comes to its end.
fn launch(record: &mut Record, source: &str, settings: &Settings) -> Result<Instance> {
    let deadline = Deadline::after(settings.launch_timeout());
    let was_fetched = record::was_fetched(&record.spec.image, source)?;
    let mut patience = settings.patience(was_fetched);
    let mut contradictions = 0;
    let mut last = None;
    loop {
        if let Some(sight) = look(&record.name)? {
            if sight.state == State::Deleted {
                return Err(Error::FailedPrecondition(format!(
                    "the machine {} was deleted by hand while it was made",
                    record.name
                )));
            }
            record.making = Making::Launched;
            record::save(record)?;
            if !was_fetched {
                record::set_fetched(&record.spec.image, source)?;
            }
            return Ok(instance(record, &sight, false));
        }
        if let Some(refusal) = last.take() {
            return refused_launch(record, refusal);
        }
        if contradictions >= MAX_CONTRADICTIONS {
            return Err(Error::Internal(format!(
                "Multipass says that the machine {} was launched, and does not know it",
                record.name
            )));
        }
        if deadline.has_passed() {
            return Err(Error::DeadlineExceeded(format!(
                "Multipass did not launch the machine {} within {} s",
                record.name,
                settings.launch_timeout().as_secs()
            )));
        }
        if record.making != Making::Launching {
            record.making = Making::Launching;
            record::save(record)?;
        }
        progress::stage(if was_fetched {
            "launching by Multipass"
        } else {
            "launching by Multipass, which may fetch the image first"
        });
        match client::launch(
            &record.name,
            source,
            &record.spec,
            patience.min(deadline.remaining()),
        )? {
            Outcome::StillUnderWay => patience *= 2,
            Outcome::Refused(Refusal::BeingPrepared) => clock::sleep(PAUSE),
            Outcome::Refused(Refusal::Other(error)) => last = Some(error),
            Outcome::Done | Outcome::Refused(_) => {
                contradictions += 1;
                clock::sleep(PAUSE);
            }
        }
    }
}

/// The end of a launch that was refused and left no machine.
fn refused_launch(record: &mut Record, refusal: Error) -> Result<Instance> {
    // A daemon that cannot be reached, or went away in the middle, may have begun.
    if !matches!(refusal, Error::Unavailable(_)) {
        record.making = Making::Requested;
        record::save(record)?;
    }
    Err(refusal.context(format!("launching the machine {}", record.name)))
}

/// Starts a machine that does not run.
pub fn start(id: &str) -> Result<Instance> {
    let mut record = existing(id)?;
    if record.making != Making::Launched {
        return Err(Error::FailedPrecondition(format!(
            "the machine {id} was never finished: create it again, or delete it"
        )));
    }
    ensure_started(&mut record)
}

fn ensure_started(record: &mut Record) -> Result<Instance> {
    let seen = look(&record.name)?.ok_or_else(|| gone(record))?;
    match seen.state {
        State::Deleted => {
            return Err(Error::FailedPrecondition(format!(
                "the machine {} was deleted by hand; recover it first: multipass recover {}",
                record.id(),
                record.name
            )));
        }
        State::DelayedShutdown | State::Suspending => return Err(still_stopping(record)),
        _ if seen.state.is_on() && record.wanted == Wanted::Stopping => {
            return Err(still_stopping(record));
        }
        _ => {}
    }
    if !seen.state.is_on() {
        record::forget_ready(record.id())?;
    }
    if record.wanted != Wanted::Running {
        record.wanted = Wanted::Running;
        record::save(record)?;
    }
    if seen.state.is_on() {
        return inspected(record, Some(seen));
    }
    progress::stage("starting by Multipass");
    let outcome = client::start(&record.name, START_PATIENCE)?;
    let seen = look(&record.name)?.ok_or_else(|| gone(record))?;
    match outcome {
        Outcome::Refused(Refusal::Other(error)) if !seen.state.is_on() => {
            Err(error.context(format!("starting the machine {}", record.name)))
        }
        _ => inspected(record, Some(seen)),
    }
}

fn still_stopping(record: &Record) -> Error {
    Error::FailedPrecondition(format!(
        "the machine {} is still stopping; start it again when it has stopped",
        record.id()
    ))
}

/// Waits until SSH answers: Multipass calls a machine Running when it does.
///
/// A boot is Starting for a moment and then Unknown until its end, so neither means anything bad.
pub fn await_ready(id: &str) -> Result<Instance> {
    let limit = BOOT_TIMEOUT.saturating_sub(BOOT_MARGIN);
    let deadline = Deadline::after(limit);
    let mut off: Option<Deadline> = None;
    let mut stage = "";
    let mut last;
    loop {
        let record = existing(id)?;
        if record.wanted != Wanted::Running {
            return Err(Error::FailedPrecondition(format!("the machine {id} was asked to stop")));
        }
        match client::look(&record.name) {
            Ok(Some(sight)) if sight.state.is_on() => {
                off = None;
                if sight.state == State::Running && sight.address.is_some() {
                    record::set_ready(id)?;
                    return Ok(instance(&record, &sight, true));
                }
                last = format!("Multipass calls it {}", sight.state.name());
                let now = match sight.state {
                    State::Running => "waiting for its address",
                    State::Unknown => "waiting for SSH",
                    _ => "booting",
                };
                if stage != now {
                    stage = now;
                    progress::stage(now);
                }
            }
            Ok(seen) => {
                let state = seen.as_ref().map_or("unknown to it", |sight| sight.state.name());
                last = format!("Multipass calls it {state}");
                if off.get_or_insert_with(|| Deadline::after(OFF_TOLERANCE)).has_passed() {
                    return Err(match seen {
                        None => gone(&record),
                        Some(_) => Error::Internal(format!(
                            "the machine {id} ended while it booted: Multipass calls it {state}"
                        )),
                    });
                }
            }
            // Busy with another command, or restarting: it is the boot that has a time limit.
            Err(error @ Error::Unavailable(_)) => last = error.message().to_owned(),
            Err(error) => return Err(error),
        }
        if deadline.has_passed() {
            return Err(Error::DeadlineExceeded(format!(
                "SSH of the machine {id} did not answer within {} s: {last}",
                limit.as_secs()
            )));
        }
        clock::sleep(PAUSE);
    }
}

/// Shuts a machine down, and switches it off when the time is over.
pub fn stop(id: &str, grace: Duration) -> Result<Instance> {
    let deadline = Deadline::after(grace);
    let mut record = existing(id)?;
    if record.wanted == Wanted::Running {
        record.wanted = Wanted::Stopping;
        record::save(&record)?;
    }
    let mut seen = seen_or_gone(&record)?;
    if seen.state.is_on() {
        let shuts_down = can_shut_down(&seen.state, record::is_ready(id)?);
        if shuts_down && !deadline.has_passed() {
            let outcome = client::stop(&record.name, deadline.remaining())?;
            seen = seen_or_gone(&record)?;
            if seen.state.is_on() {
                log::warn!(
                    "the machine {id} did not shut down within {} s ({outcome:?}) and is switched off",
                    grace.as_secs()
                );
            }
        }
        if seen.state.is_on() {
            let outcome = client::stop_by_force(&record.name)?;
            seen = await_off(&record, &outcome)?;
        }
    }
    record::forget_ready(id)?;
    if record.wanted != Wanted::Stopped {
        record.wanted = Wanted::Stopped;
        record::save(&record)?;
    }
    Ok(instance(&record, &seen, false))
}

fn seen_or_gone(record: &Record) -> Result<Sight> {
    look(&record.name)?.ok_or_else(|| gone(record))
}

/// Waits until Multipass calls a machine off that was switched off.
fn await_off(record: &Record, outcome: &Outcome) -> Result<Sight> {
    let deadline = Deadline::after(OFF_TIMEOUT);
    loop {
        let seen = seen_or_gone(record)?;
        if !seen.state.is_on() {
            return Ok(seen);
        }
        if deadline.has_passed() {
            return Err(match outcome {
                Outcome::Refused(Refusal::Other(error)) => {
                    error.clone().context(format!("switching off the machine {}", record.name))
                }
                _ => Error::Unavailable(format!(
                    "the machine {} was switched off, and Multipass still calls it {}",
                    record.name,
                    seen.state.name()
                )),
            });
        }
        clock::sleep(PAUSE);
    }
}

/// Removes a machine, also one that is only just being launched.
pub fn delete(id: &str) -> Result<()> {
    let Some(mut record) = record::load(id)? else { return Ok(()) };
    if record.making == Making::Requested {
        return record::forget(id);
    }
    let deadline = Deadline::after(DELETE_TIMEOUT);
    let appearance = Deadline::after(APPEARANCE);
    let mut silence = Silence::default();
    let mut words = "Multipass still shows it".to_owned();
    loop {
        match client::look(&record.name) {
            Ok(Some(_)) => {
                silence.is_over();
                // What is shown has left its preparation, so that it will not appear once more.
                record.making = Making::Launched;
                match client::delete(&record.name) {
                    Ok(Outcome::Refused(Refusal::Other(error))) => {
                        words = error.message().to_owned();
                    }
                    Ok(_) => {}
                    Err(error) => silence.bear(error)?,
                }
            }
            Ok(None) => match record.making {
                Making::Launching if !appearance.has_passed() => {}
                Making::Launching => {
                    log::info!(
                        "the machine {id} was deleted while it was launched; should it appear, it is deleted again"
                    );
                    record.making = Making::Abandoned { since_unix_ms: clock::unix_ms() };
                    return record::save(&record);
                }
                Making::Abandoned { .. } => return Ok(()),
                Making::Requested | Making::Launched => return record::forget(id),
            },
            Err(error) => silence.bear(error)?,
        }
        if deadline.has_passed() {
            return Err(Error::Unavailable(format!(
                "the machine {} cannot be removed: {words}",
                record.name
            )));
        }
        clock::sleep(PAUSE);
    }
}

/// Lets one more key log in.
pub fn add_ssh_key(id: &str, key: &str) -> Result<()> {
    let record = existing(id)?;
    let state = match client::look(&record.name)? {
        None => return Err(gone(&record)),
        Some(sight) => sight.state,
    };
    // The command that follows would start a machine that does not run.
    if record.wanted != Wanted::Running || state != State::Running {
        return Err(Error::FailedPrecondition(format!(
            "the machine {id} does not run ({}); start it first",
            state.name()
        )));
    }
    ssh_keys::add(&record.name, key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_no_failure_but_a_boot_or_a_closed_ssh_server() {
        assert_eq!(power(Wanted::Running, &State::Unknown, false), PowerState::Starting);
        assert_eq!(power(Wanted::Running, &State::Unknown, true), PowerState::Running);
        let new = State::Other("Something New".into());
        assert_eq!(power(Wanted::Running, &new, false), PowerState::Starting);
    }

    #[test]
    fn the_state_follows_from_what_was_asked_for_and_what_multipass_says() {
        use PowerState as P;
        for (wanted, state, expected) in [
            (Wanted::Running, State::Running, P::Running),
            (Wanted::Running, State::Starting, P::Starting),
            (Wanted::Running, State::Restarting, P::Starting),
            (Wanted::Running, State::Stopped, P::Stopped),
            (Wanted::Running, State::Suspended, P::Stopped),
            (Wanted::Running, State::Deleted, P::Stopped),
            (Wanted::Running, State::Suspending, P::Stopping),
            (Wanted::Stopping, State::Running, P::Stopping),
            (Wanted::Stopping, State::Unknown, P::Stopping),
            (Wanted::Stopping, State::Stopped, P::Stopped),
            (Wanted::Stopped, State::Stopped, P::Stopped),
            (Wanted::Stopped, State::Suspended, P::Stopped),
            // Started by hand.
            (Wanted::Stopped, State::Running, P::Running),
            (Wanted::Stopped, State::Unknown, P::Starting),
        ] {
            assert_eq!(power(wanted, &state, false), expected, "{wanted:?} {state:?}");
        }
    }

    #[test]
    fn ssh_is_reached_at_the_address_that_the_machine_has_now() {
        let record = Record { making: Making::Launched, ..record::tests::example() };
        let sight = Sight { state: State::Running, address: Some("10.1.2.3".into()) };
        let seen = instance(&record, &sight, true);
        assert_eq!(seen.id, "golem-web-1");
        assert_eq!(seen.ssh, Some(Endpoint { address: "10.1.2.3".into(), port: 22 }));
        assert_eq!(seen.ip_address.as_deref(), Some("10.1.2.3"));
        let off = instance(&record, &Sight { state: State::Stopped, ..sight }, true);
        assert_eq!((off.ssh, off.ip_address), (None, None));
    }

    #[test]
    fn a_machine_that_is_still_booting_is_not_asked_to_shut_down() {
        for (state, ready, expected) in [
            (State::Running, false, true),
            (State::Starting, false, false),
            (State::Unknown, false, false),
            // Its owner has closed SSH: it has things to lose.
            (State::Unknown, true, true),
            (State::Restarting, true, false),
        ] {
            assert_eq!(can_shut_down(&state, ready), expected, "{state:?} {ready}");
        }
    }
}
