//! What an answer should have been, and the words for one that is different. Pure.

use std::time::Duration;

use super::record::{Missed, Tried};
use crate::plugins::{
    Failure, FailureKind,
    vm_backend::{Instance, PowerState},
};

/// What a successful answer shows of itself when an error was expected.
pub trait Shown {
    fn shown(&self) -> String;
}

impl Shown for () {
    fn shown(&self) -> String {
        "success".to_owned()
    }
}

impl Shown for Instance {
    fn shown(&self) -> String {
        let ssh = self.ssh.map_or_else(|| "no SSH endpoint".to_owned(), |ssh| ssh.to_string());
        format!("a machine that is `{}`, with {ssh}", self.power.name())
    }
}

pub fn described(error: &Failure) -> String {
    format!("`{}`: {}", error.kind.name(), error.message)
}

/// The answer has to be there.
pub fn success<T>(what: &str, answer: Result<T, Failure>) -> Tried<T> {
    answer.map_err(|error| Missed::Failed(format!("{what} answers {}", described(&error))))
}

/// The answer has to be an error of one of these kinds.
pub fn refusal<T: Shown>(
    what: &str,
    answer: Result<T, Failure>,
    kinds: &[FailureKind],
) -> Tried<()> {
    let wanted = || {
        let names: Vec<String> = kinds.iter().map(|kind| format!("`{}`", kind.name())).collect();
        names.join(" or ")
    };
    match answer {
        Err(error) if kinds.contains(&error.kind) => match error.message.trim() {
            "" => Err(Missed::Failed(format!(
                "{what} answers `{}` without a text for people",
                error.kind.name()
            ))),
            _ => Ok(()),
        },
        Err(error) => Err(Missed::Failed(format!(
            "{what} answers {}; it should be {}",
            described(&error),
            wanted()
        ))),
        Ok(answer) => Err(Missed::Failed(format!(
            "{what} answers {}; it should be {}",
            answer.shown(),
            wanted()
        ))),
    }
}

/// The answer has to be about this machine, in one of these states.
pub fn machine(what: &str, instance: &Instance, id: &str, states: &[PowerState]) -> Tried<()> {
    if instance.id != id {
        return Err(Missed::Failed(format!(
            "{what} answers the id `{}` instead of `{id}`",
            instance.id
        )));
    }
    if !states.contains(&instance.power) {
        let names: Vec<String> = states.iter().map(|state| format!("`{}`", state.name())).collect();
        return Err(Missed::Failed(format!(
            "{what} answers {}; it should be {}",
            instance.shown(),
            names.join(" or ")
        )));
    }
    let runs =
        matches!(instance.power, PowerState::Starting | PowerState::Running | PowerState::Stopping);
    if instance.ssh.is_some() && !runs {
        return Err(Missed::Failed(format!(
            "{what} answers {}; a machine that does not run has none",
            instance.shown()
        )));
    }
    Ok(())
}

/// What an answer shows, whichever it is.
pub fn seen<T: Shown>(answer: &Result<T, Failure>) -> String {
    match answer {
        Ok(answer) => answer.shown(),
        Err(error) => described(error),
    }
}

/// Begins a call and drops it, as a provider does whose requestor has gone or that is killed. Answers what it came to, if it was
/// sooner.
pub async fn cut_off<T>(after: Duration, call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(after, call).await.ok()
}

/// For a check that needs what an earlier one did not bring.
pub fn needed<T>(earlier: Option<T>, what: &str) -> Tried<T> {
    earlier.ok_or_else(|| Missed::NotApplicable(what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(power: PowerState, ssh: Option<&str>) -> Instance {
        Instance {
            id: "a".into(),
            power,
            ssh: ssh.map(|ssh| ssh.parse().unwrap()),
            ip_address: None,
            detail: None,
        }
    }

    fn reason<T: std::fmt::Debug>(tried: Tried<T>) -> String {
        match tried.unwrap_err() {
            Missed::Failed(reason) | Missed::NotApplicable(reason) => reason,
        }
    }

    #[test]
    fn what_was_answered_and_what_it_should_be_are_both_named() {
        let answered: Result<Instance, _> = Ok(instance(PowerState::Running, Some("127.0.0.1:22")));
        assert_eq!(
            reason(refusal("`stop`", answered, &[FailureKind::NotFound])),
            "`stop` answers a machine that is `running`, with 127.0.0.1:22; it should be `not-found`"
        );
        let error = Failure::new(FailureKind::Internal, "it broke off");
        assert_eq!(
            reason(refusal::<()>("`stop`", Err(error), &[FailureKind::NotFound])),
            "`stop` answers `internal`: it broke off; it should be `not-found`"
        );
    }

    #[test]
    fn an_error_without_words_is_none() {
        let error = Failure::new(FailureKind::NotFound, " ");
        assert!(refusal::<()>("`stop`", Err(error), &[FailureKind::NotFound]).is_err());
    }

    #[test]
    fn a_machine_that_is_off_has_no_endpoint() {
        let off = instance(PowerState::Stopped, Some("127.0.0.1:22"));
        assert!(reason(machine("`stop`", &off, "a", &[PowerState::Stopped])).contains("has none"));
        let off = instance(PowerState::Stopped, None);
        assert!(machine("`stop`", &off, "a", &[PowerState::Stopped]).is_ok());
        assert!(machine("`stop`", &off, "b", &[PowerState::Stopped]).is_err());
    }
}
