//! The rules of a VM's life, as functions from values to values.
//!
//! [`answer`]: what a request leads to. [`edge`]: which phase may follow which. [`recover`]: what to do about a record that
//! nobody is working on, given what the machine is doing. Nothing here locks, waits or writes; `registry` asks [`answer`]
//! under its lock, `reconcile` asks [`recover`].

use super::model::Phase;
use crate::plugins::vm_backend::PowerState;

/// What can be under way for a VM. One at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Create,
    Start,
    Stop,
    Delete,
    /// Clears away what a failed create has left.
    Undo,
    AddKey,
    /// Compares the record with the machine. Short; everything else waits for it.
    Check,
}

impl Operation {
    #[cfg(test)]
    pub(super) const ALL: [Operation; 7] = [
        Operation::Create,
        Operation::Start,
        Operation::Stop,
        Operation::Delete,
        Operation::Undo,
        Operation::AddKey,
        Operation::Check,
    ];

    /// In messages: "… is under way".
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Create => "its making",
            Operation::Start => "a start",
            Operation::Stop => "a stop",
            Operation::Delete => "its deletion",
            Operation::Undo => "clearing up after its failed making",
            Operation::AddKey => "adding a key",
            Operation::Check => "a check",
        }
    }
}

/// What can be asked of a VM that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Start,
    Stop,
    Delete,
    AddKey,
}

/// What a request leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Do it.
    Begin(Operation),
    /// It is as asked for already.
    Already,
    /// The same is under way: its result is the answer.
    Join,
    /// Something is under way that has to be ended first, at once; then do it.
    Interrupt(Operation),
    /// Something short is under way; ask again after it.
    Wait,
    /// Something else is under way.
    Busy(Operation),
    /// Not in this phase, for a reason.
    Refuse(&'static str),
}

const NEVER_MADE: &str =
    "it was never made, because its create failed; delete it, or make it again under the same name";
const NOT_RUNNING: &str = "keys can only be added to a running VM; start it first";

/// What `request` leads to for a VM in `phase`. A phase that ends in "-ing" has its operation under way, but for the moments
/// until the reconciler takes it up after a restart or a failure.
pub(super) fn answer(phase: Phase, under_way: Option<Operation>, request: Request) -> Answer {
    use Operation as O;
    use Phase as P;
    use Request as R;

    match (under_way, request) {
        (Some(O::Check | O::Undo), _) => return Answer::Wait,
        (Some(O::Create), R::Delete) => return Answer::Interrupt(O::Delete),
        (Some(O::Start), R::Start) | (Some(O::Stop), R::Stop) | (Some(O::Delete), R::Delete) => {
            return Answer::Join;
        }
        (Some(operation), _) => return Answer::Busy(operation),
        (None, _) => {}
    }
    match (phase, request) {
        (_, R::Delete) => Answer::Begin(O::Delete),

        (P::Running, R::Start) | (P::Stopped, R::Stop) => Answer::Already,
        (P::Stopped | P::Starting, R::Start) => Answer::Begin(O::Start),
        (P::Running | P::Stopping | P::Starting, R::Stop) => Answer::Begin(O::Stop),
        (P::Running, R::AddKey) => Answer::Begin(O::AddKey),

        (P::Stopped, R::AddKey) => Answer::Refuse(NOT_RUNNING),
        (P::Failed, _) => Answer::Refuse(NEVER_MADE),
        (P::Creating, _) => Answer::Busy(O::Create),
        (P::Starting, _) => Answer::Busy(O::Start),
        (P::Stopping, _) => Answer::Busy(O::Stop),
        (P::Deleting, _) => Answer::Busy(O::Delete),
    }
}

/// Whether a record in `from` may become one in `to`. Staying is always possible: addresses and messages change.
pub(super) fn edge(from: Phase, to: Phase) -> bool {
    use Phase as P;
    match (from, to) {
        (from, to) if from == to => true,
        (_, P::Deleting) => true,
        (P::Deleting | P::Failed, _) => false,
        (P::Creating, P::Running | P::Failed) => true,
        (P::Running, P::Stopping | P::Stopped) => true,
        (P::Stopping, P::Stopped) => true,
        (P::Stopped, P::Starting | P::Running) => true,
        (P::Starting, P::Running | P::Stopping) => true,
        _ => false,
    }
}

/// The operation that a record calls for, if nobody is at it. `holds`: whether the row has a port.
pub(super) fn unfinished(phase: Phase, holds: bool) -> Option<Operation> {
    match phase {
        Phase::Creating => Some(Operation::Create),
        Phase::Starting => Some(Operation::Start),
        Phase::Stopping => Some(Operation::Stop),
        Phase::Deleting => Some(Operation::Delete),
        Phase::Failed if holds => Some(Operation::Undo),
        Phase::Failed | Phase::Running | Phase::Stopped => None,
    }
}

/// What a backend says of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    There {
        power: PowerState,
        detail: Option<String>,
    },
    /// The backend is sure that there is none.
    Gone,
}

/// What to do about a record that nobody is working on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recovery {
    Nothing,
    /// Take the operation up, or begin it.
    Resume(Operation),
    /// The record becomes `stopped`, with this message.
    Ended(String),
    /// The record becomes `running`.
    CameBack,
}

/// Compares a record with its machine.
pub(super) fn recover(phase: Phase, holds: bool, sight: &Sight) -> Recovery {
    match (phase, sight) {
        // A create begins from nothing only when a requestor asks for it; one that was cut off that early has failed.
        (Phase::Creating, Sight::Gone) => Recovery::Resume(Operation::Undo),
        (Phase::Running, Sight::There { power: PowerState::Stopped, detail }) => {
            Recovery::Ended(with_detail(
                "the machine was shut down from within or by hand; start it again when it is needed",
                detail,
            ))
        }
        (Phase::Running, Sight::There { power: PowerState::Crashed, detail }) => {
            Recovery::Ended(with_detail(
                "the machine ended without having been asked to (it crashed or was killed); its disk is kept, start it again",
                detail,
            ))
        }
        (Phase::Running | Phase::Stopped, Sight::Gone) => Recovery::Ended(GONE.to_owned()),
        (Phase::Stopped, Sight::There { power: PowerState::Running, .. }) => Recovery::CameBack,
        // Somebody starts it; when it has come up it is to be recorded.
        (Phase::Stopped, Sight::There { power: PowerState::Starting, .. }) => {
            Recovery::Resume(Operation::Start)
        }
        (Phase::Running | Phase::Stopped, _) => Recovery::Nothing,
        _ => unfinished(phase, holds).map_or(Recovery::Nothing, Recovery::Resume),
    }
}

/// What a VM's record says when its machine is not there any more.
pub(super) const GONE: &str =
    "the machine is gone: its backend does not know it any more; delete this VM";

fn with_detail(message: &str, detail: &Option<String>) -> String {
    match detail.as_deref().map(str::trim) {
        Some(detail) if !detail.is_empty() => format!("{message} ({detail})"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: [Request; 4] =
        [Request::Start, Request::Stop, Request::Delete, Request::AddKey];

    fn sights() -> Vec<Sight> {
        use PowerState::*;
        let there = [Starting, Running, Stopping, Stopped, Crashed]
            .map(|power| Sight::There { power, detail: None });
        there.into_iter().chain([Sight::Gone]).collect()
    }

    #[test]
    fn nothing_is_begun_while_something_is_under_way_but_a_delete_ends_a_create() {
        for phase in Phase::ALL {
            for operation in Operation::ALL {
                for request in REQUESTS {
                    let answer = answer(phase, Some(operation), request);
                    match (operation, request) {
                        (Operation::Create, Request::Delete) => {
                            assert_eq!(answer, Answer::Interrupt(Operation::Delete))
                        }
                        (Operation::Check | Operation::Undo, _) => assert_eq!(answer, Answer::Wait),
                        (Operation::Start, Request::Start)
                        | (Operation::Stop, Request::Stop)
                        | (Operation::Delete, Request::Delete) => assert_eq!(answer, Answer::Join),
                        _ => assert_eq!(answer, Answer::Busy(operation)),
                    }
                }
            }
        }
    }

    #[test]
    fn every_vm_can_be_deleted_in_every_phase() {
        for phase in Phase::ALL {
            assert_eq!(answer(phase, None, Request::Delete), Answer::Begin(Operation::Delete));
            assert!(edge(phase, Phase::Deleting));
        }
    }

    #[test]
    fn repeating_what_has_been_done_is_a_success() {
        assert_eq!(answer(Phase::Running, None, Request::Start), Answer::Already);
        assert_eq!(answer(Phase::Stopped, None, Request::Stop), Answer::Already);
    }

    #[test]
    fn what_a_request_begins_leads_along_an_edge() {
        for phase in Phase::ALL {
            for request in REQUESTS {
                if let Answer::Begin(operation) = answer(phase, None, request) {
                    let next = match operation {
                        Operation::Start => Phase::Starting,
                        Operation::Stop => Phase::Stopping,
                        Operation::Delete => Phase::Deleting,
                        Operation::AddKey => phase,
                        other => panic!("no request begins {other:?}"),
                    };
                    assert!(edge(phase, next), "{phase} to {next}");
                }
            }
        }
    }

    #[test]
    fn a_failed_vm_and_one_being_deleted_have_no_way_back() {
        for to in Phase::ALL {
            assert_eq!(edge(Phase::Failed, to), matches!(to, Phase::Failed | Phase::Deleting));
            assert_eq!(edge(Phase::Deleting, to), to == Phase::Deleting);
        }
    }

    #[test]
    fn whatever_was_under_way_is_taken_up_whatever_the_machine_does() {
        for phase in Phase::ALL {
            for sight in sights() {
                let recovery = recover(phase, true, &sight);
                match (unfinished(phase, true), &sight) {
                    (Some(Operation::Create), Sight::Gone) => {
                        assert_eq!(recovery, Recovery::Resume(Operation::Undo))
                    }
                    (Some(operation), _) => assert_eq!(recovery, Recovery::Resume(operation)),
                    (None, Sight::There { power: PowerState::Starting, .. })
                        if phase == Phase::Stopped =>
                    {
                        assert_eq!(recovery, Recovery::Resume(Operation::Start));
                    }
                    (None, _) => assert!(!matches!(recovery, Recovery::Resume(_))),
                }
            }
        }
    }

    #[test]
    fn a_machine_that_ended_is_stopped_and_one_that_came_back_runs() {
        use PowerState::*;
        let there = |power| Sight::There { power, detail: Some("killed by signal 9".to_owned()) };
        for (phase, power, ended, came_back) in [
            (Phase::Running, Running, false, false),
            (Phase::Running, Starting, false, false),
            (Phase::Running, Stopping, false, false),
            (Phase::Running, Stopped, true, false),
            (Phase::Running, Crashed, true, false),
            (Phase::Stopped, Running, false, true),
            (Phase::Stopped, Starting, false, false),
            (Phase::Stopped, Stopping, false, false),
            (Phase::Stopped, Stopped, false, false),
            (Phase::Stopped, Crashed, false, false),
        ] {
            let recovery = recover(phase, true, &there(power));
            assert_eq!(matches!(recovery, Recovery::Ended(_)), ended, "{phase} {power:?}");
            assert_eq!(recovery == Recovery::CameBack, came_back, "{phase} {power:?}");
            if let Recovery::Ended(message) = recovery {
                assert!(message.contains("killed by signal 9"), "{message}");
            }
        }
        assert_eq!(recover(Phase::Failed, false, &there(Running)), Recovery::Nothing);
    }
}
