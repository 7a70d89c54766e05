//! Time. `std::time::Instant::now` and `SystemTime::now` panic inside a component; these do not.

use core::time::Duration;

use crate::bindings::golem::provider::clock as import;

/// Milliseconds since 1970-01-01 UTC.
pub fn unix_ms() -> u64 {
    import::unix_ms()
}

/// Waits without using the processor.
pub fn sleep(duration: Duration) {
    import::sleep(millis(duration));
}

/// A point in time to give up at.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at_monotonic_ms: u64,
}

impl Deadline {
    /// So much from now.
    pub fn after(duration: Duration) -> Self {
        Self { at_monotonic_ms: import::monotonic_ms() + u64::from(millis(duration)) }
    }

    /// What is left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.at_monotonic_ms.saturating_sub(import::monotonic_ms()))
    }

    pub fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }
}

/// As the contract counts: whole milliseconds, at most some 49 days.
pub(crate) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
