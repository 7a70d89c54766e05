//! `clock`: time.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use crate::plugins::{
    bindings::golem::provider::clock::Host, call::CallState, script::SimulatedClock,
};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl CallState {
    fn simulated_clock(&self) -> Option<&SimulatedClock> {
        self.plugin.services.script.as_ref()?.clock()
    }
}

impl Host for CallState {
    fn unix_ms(&mut self) -> u64 {
        if let Some(clock) = self.simulated_clock() {
            return clock.unix_ms();
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ms(&mut self) -> u64 {
        if let Some(clock) = self.simulated_clock() {
            return clock.monotonic_ms();
        }
        u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn sleep(&mut self, duration_ms: u32) {
        let duration = Duration::from_millis(duration_ms.into());
        match self.simulated_clock() {
            Some(clock) => clock.sleep(duration).await,
            None => tokio::time::sleep(duration).await,
        }
    }
}
