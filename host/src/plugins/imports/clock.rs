//! `clock`: time.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use crate::plugins::{bindings::golem::provider::clock::Host, call::CallState};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Host for CallState {
    fn unix_ms(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic_ms(&mut self) -> u64 {
        u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn sleep(&mut self, duration_ms: u32) {
        tokio::time::sleep(Duration::from_millis(duration_ms.into())).await;
    }
}
