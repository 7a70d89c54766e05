//! Whether a plugin does its work: calls that end without an answer, counted in a row for each function.
//!
//! A plugin that answers with an error is well; one that traps, runs away or never answers is not. After
//! [`FAILURES_IN_A_ROW`] of those the plugin is degraded: the function is refused at once, with what is wrong, and tried again
//! after a pause that grows with every try. What undoes something, such as `stop` and `delete`, is never refused.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// So many make a plugin degraded.
pub const FAILURES_IN_A_ROW: u32 = 10;

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Functions that wait while they fail.
const REFUSED: [&str; 10] = [
    "images",
    "limits",
    "create",
    "start",
    "inspect",
    "inspect-all",
    "get-schedule",
    "publish",
    "look-up",
    "search",
];

/// How a plugin is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    pub function: String,
    /// In a row.
    pub failures: u32,
    /// Since it has been refused.
    pub lasting: Duration,
    /// Until it is tried again; zero while it is.
    pub retry_in: Duration,
}

impl std::fmt::Display for Degraded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (function, failures) = (&self.function, self.failures);
        let seconds = self.retry_in.as_secs_f32().ceil();
        write!(
            f,
            "`{function}` has failed {failures} times in a row and is tried again in {seconds} s"
        )
    }
}

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<BTreeMap<&'static str, Failing>>);

#[derive(Debug, Clone, Copy)]
struct Failing {
    in_a_row: u32,
    pause: Duration,
    retry_at: Option<Instant>,
    /// When it began to be refused; says nothing before that.
    refused_since: Instant,
}

impl Failing {
    fn degraded(&self, function: &str, now: Instant) -> Option<Degraded> {
        Some(Degraded {
            function: function.to_owned(),
            failures: self.in_a_row,
            lasting: now.saturating_duration_since(self.refused_since),
            retry_in: self.retry_at?.saturating_duration_since(now),
        })
    }
}

impl Health {
    fn failing(&self) -> MutexGuard<'_, BTreeMap<&'static str, Failing>> {
        // Every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May this function be called? One caller at a time tries whether it works again.
    pub fn admit(&self, function: &str, now: Instant) -> Result<(), Degraded> {
        if !REFUSED.contains(&function) {
            return Ok(());
        }
        let mut failing = self.failing();
        let Some(record) = failing.get_mut(function) else { return Ok(()) };
        match record.retry_at {
            Some(at) if at > now => record.degraded(function, now).map_or(Ok(()), Err),
            Some(_) => {
                // Whoever comes while this one tries waits for the pause after it.
                record.retry_at = Some(now + record.pause);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The function gave an answer. Says whether it had failed too often before.
    pub fn answered(&self, function: &str) -> bool {
        let mut failing = self.failing();
        if failing.is_empty() {
            return false;
        }
        failing.remove(function).is_some_and(|record| record.retry_at.is_some())
    }

    /// The function ended without an answer. Says whether that made the plugin degraded.
    pub fn failed(&self, function: &'static str, now: Instant) -> bool {
        let mut failing = self.failing();
        let record = failing.entry(function).or_insert(Failing {
            in_a_row: 0,
            pause: FIRST_PAUSE,
            retry_at: None,
            refused_since: now,
        });
        record.in_a_row = record.in_a_row.saturating_add(1);
        if record.in_a_row < FAILURES_IN_A_ROW {
            return false;
        }
        let is_new = record.retry_at.is_none();
        if is_new {
            record.refused_since = now;
        } else {
            record.pause = (record.pause * 2).min(LONGEST_PAUSE);
        }
        record.retry_at = Some(now + record.pause);
        is_new
    }

    /// What fails, if anything fails too often.
    pub fn degraded(&self, now: Instant) -> Vec<Degraded> {
        let failing = self.failing();
        failing.iter().filter_map(|(function, record)| record.degraded(function, now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(health: &Health, function: &'static str, times: u32, now: Instant) -> bool {
        (0..times).fold(false, |_, _| health.failed(function, now))
    }

    #[test]
    fn a_function_that_fails_too_often_is_refused_and_tried_again_after_growing_pauses() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(!fail(&health, "create", FAILURES_IN_A_ROW - 1, now));
        assert!(health.admit("create", now).is_ok() && health.degraded(now).is_empty());
        assert!(health.failed("create", now));
        let refused = health.admit("create", now).unwrap_err();
        assert_eq!((refused.failures, refused.retry_in), (FAILURES_IN_A_ROW, FIRST_PAUSE));
        assert_eq!(health.degraded(now), [refused]);
        assert!(health.admit("images", now).is_ok(), "other functions go on");

        let later = now + FIRST_PAUSE;
        assert!(health.admit("create", later).is_ok());
        assert!(health.admit("create", later).is_err(), "one tries at a time");
        assert!(!health.failed("create", later), "it is told once");
        let refused = health.admit("create", later).unwrap_err();
        assert_eq!((refused.retry_in, refused.lasting), (2 * FIRST_PAUSE, FIRST_PAUSE));
        assert!(health.admit("create", later + 2 * FIRST_PAUSE).is_ok());
        assert!(health.answered("create"));
        assert!(health.admit("create", later).is_ok() && health.degraded(later).is_empty());
    }

    #[test]
    fn an_answer_in_between_begins_the_count_anew() {
        let (health, now) = (Health::default(), Instant::now());
        fail(&health, "create", FAILURES_IN_A_ROW - 1, now);
        assert!(!health.answered("create"));
        assert!(!fail(&health, "create", FAILURES_IN_A_ROW - 1, now));
    }

    #[test]
    fn what_undoes_something_is_never_refused() {
        let (health, now) = (Health::default(), Instant::now());
        for function in ["stop", "delete", "await-ready", "add-ssh-key", "probe"] {
            fail(&health, function, 3 * FAILURES_IN_A_ROW, now);
            assert!(health.admit(function, now).is_ok(), "{function}");
        }
    }

    #[test]
    fn a_pause_never_grows_beyond_minutes() {
        let (health, now) = (Health::default(), Instant::now());
        fail(&health, "create", 100, now);
        assert_eq!(health.degraded(now)[0].retry_in, LONGEST_PAUSE);
    }
}
