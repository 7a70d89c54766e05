//! `log`: the plugin's lines in the provider's log, cut and counted so that a flood does no harm.
//!
//! Two bounds hold at once: lines per call, and what all calls of a plugin write over time. What the provider itself has to
//! say about a plugin that fails again and again comes out of the second as well.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::plugins::{
    bindings::golem::provider::log::{Host, Level},
    call::CallState,
    limits, text,
};

/// What one plugin may still log.
pub struct PluginLog {
    units: DefaultDirectRateLimiter,
    notices: Option<DefaultDirectRateLimiter>,
    dropped: AtomicU64,
}

impl Default for PluginLog {
    fn default() -> Self {
        let units = Quota::per_second(at_least_one(limits::LOG_UNITS_PER_SECOND))
            .allow_burst(at_least_one(limits::LOG_UNITS_BURST));
        Self {
            units: RateLimiter::direct(units),
            notices: Quota::with_period(limits::LOG_NOTICE_EVERY).map(RateLimiter::direct),
            dropped: AtomicU64::new(0),
        }
    }
}

fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

impl PluginLog {
    /// May a line of this length be written? It counts as dropped if not.
    pub fn take(&self, bytes: usize) -> bool {
        let units = 1 + u32::try_from(bytes / limits::LOG_UNIT_BYTES).unwrap_or(u32::MAX - 1);
        let taken = self.units.check_n(at_least_one(units)).is_ok_and(|granted| granted.is_ok());
        if !taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    fn drop_line(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many lines were dropped since this was last asked; 0 if it is not yet time to say so again.
    pub fn dropped_to_tell(&self) -> u64 {
        let due = self.dropped.load(Ordering::Relaxed) > 0
            && self.notices.as_ref().is_none_or(|notices| notices.check().is_ok());
        if due { self.dropped.swap(0, Ordering::Relaxed) } else { 0 }
    }
}

impl CallState {
    fn may_log(&mut self, bytes: usize) -> bool {
        if self.log_lines >= limits::LOG_LINES_PER_CALL {
            self.plugin.log.drop_line();
            return false;
        }
        self.log_lines += 1;
        self.plugin.log.take(bytes)
    }
}

impl Host for CallState {
    fn write(&mut self, level: Level, message: String) {
        if !self.may_log(message.len().min(limits::LOG_MESSAGE_BYTES)) {
            return;
        }
        let name = self.plugin.name.as_str();
        let message = text::plain(&self.plugin.hide(message), limits::LOG_MESSAGE_BYTES);
        match level {
            Level::Trace => tracing::trace!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Debug => tracing::debug!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Info => tracing::info!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Warn => tracing::warn!(target: "plugin", { plugin.name = name }, "{message}"),
            Level::Error => tracing::error!(target: "plugin", { plugin.name = name }, "{message}"),
        }
    }

    fn panicked(&mut self, message: String) {
        self.panic = Some(text::plain(&self.plugin.hide(message), limits::TEXT_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_over_many_calls_is_counted_and_not_kept() {
        let log = PluginLog::default();
        let kept = (0..10_000).filter(|_| log.take(10)).count() as u32;
        let most = limits::LOG_UNITS_BURST + 60 * limits::LOG_UNITS_PER_SECOND;
        assert!((limits::LOG_UNITS_BURST..most).contains(&kept), "{kept} lines were kept");
        assert_eq!(log.dropped_to_tell(), 10_000 - u64::from(kept));
        log.drop_line();
        assert_eq!(log.dropped_to_tell(), 0, "told again at once");
    }

    #[test]
    fn long_lines_use_the_allowance_up_faster() {
        let log = PluginLog::default();
        let kept = (0..10_000).filter(|_| log.take(limits::LOG_MESSAGE_BYTES)).count();
        assert!((30..200).contains(&kept), "{kept} lines were kept");
    }
}
