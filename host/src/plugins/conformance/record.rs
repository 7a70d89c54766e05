//! What was checked, and what came of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// One promise of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// The function that promises it, as `wit/` calls it.
    pub call: &'static str,
    pub promise: &'static str,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    /// What happened instead.
    Failed(String),
    /// Why it could not be tried.
    NotApplicable(String),
}

/// A check that was tried.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub check: Check,
    pub verdict: Verdict,
    pub took: Duration,
}

/// What happens in a run.
#[derive(Debug)]
pub enum Event<'a> {
    Begins(Check),
    /// How far the call of the present check has come.
    Stage(&'a str),
    Ended(&'a Outcome),
}

/// Is told what happens, as it happens.
pub type Observer = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Why a check did not pass.
#[derive(Debug)]
pub(super) enum Missed {
    Failed(String),
    NotApplicable(String),
}

impl Missed {
    pub fn failed(reason: impl Into<String>) -> Self {
        Self::Failed(reason.into())
    }
}

pub(super) type Tried<T> = Result<T, Missed>;

/// Keeps the outcomes in their order.
pub(super) struct Recorder {
    observer: Observer,
    outcomes: Vec<Outcome>,
}

impl Recorder {
    pub fn new(observer: Observer) -> Self {
        Self { observer, outcomes: Vec::new() }
    }

    /// Tries a promise. What comes out of it is for the checks that need it.
    pub async fn check<T>(
        &mut self,
        call: &'static str,
        promise: &'static str,
        work: impl Future<Output = Tried<T>>,
    ) -> Option<T> {
        let check = Check { call, promise };
        (self.observer)(Event::Begins(check));
        let begun = Instant::now();
        let (verdict, result) = match work.await {
            Ok(result) => (Verdict::Passed, Some(result)),
            Err(Missed::Failed(reason)) => (Verdict::Failed(reason), None),
            Err(Missed::NotApplicable(reason)) => (Verdict::NotApplicable(reason), None),
        };
        let outcome = Outcome { check, verdict, took: begun.elapsed() };
        (self.observer)(Event::Ended(&outcome));
        self.outcomes.push(outcome);
        result
    }

    /// For what is no check.
    pub fn say(&self, what: &str) {
        (self.observer)(Event::Stage(what));
    }

    pub fn observer(&self) -> Observer {
        Arc::clone(&self.observer)
    }

    pub fn all_passed(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.verdict == Verdict::Passed)
    }

    pub fn into_outcomes(self) -> Vec<Outcome> {
        self.outcomes
    }
}
