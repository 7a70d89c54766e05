//! `progress`: how far the call has come.

use std::time::Instant;

use crate::plugins::{
    bindings::golem::provider::progress::Host, call::CallState, limits, vm_backend::Progress,
};

/// The reports that a call has made.
#[derive(Debug, Default)]
pub struct ReportBudget {
    passed: u32,
    last: Option<Instant>,
}

impl ReportBudget {
    fn take(&mut self, now: Instant) -> bool {
        let waited =
            || self.last.is_none_or(|last| now.duration_since(last) >= limits::PROGRESS_EVERY);
        if self.passed >= limits::PROGRESS_BURST && !waited() {
            return false;
        }
        self.passed = self.passed.saturating_add(1);
        self.last = Some(now);
        true
    }
}

impl Host for CallState {
    fn report(&mut self, stage: String, percent: Option<u8>) {
        if let Some(progress) = &self.progress
            && self.reports.take(Instant::now())
        {
            progress(Progress {
                stage: stage
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(limits::STAGE_CHARS)
                    .collect(),
                percent: percent.map(|percent| percent.min(100)),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_reports_is_thinned_out_and_slow_ones_pass() {
        let (mut budget, begin) = (ReportBudget::default(), Instant::now());
        let passed = (0..10_000).filter(|_| budget.take(begin)).count();
        assert_eq!(passed, limits::PROGRESS_BURST as usize);
        assert!(budget.take(begin + limits::PROGRESS_EVERY));
        assert!(!budget.take(begin + limits::PROGRESS_EVERY));
    }
}
