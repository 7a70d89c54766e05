//! Decides, for one direction of a session, whether it moves bulk or single keystrokes.
//!
//! A value without I/O: the relay tells it what it took in and when the source ran dry, and asks
//! whether a large pipe is worth while. Becoming bulk takes several large reads in a row; ceasing
//! to be takes several small bursts in a row, so that a stream whose source pauses between large
//! pieces does not flap.

/// A read of at least this many bytes speaks for a bulk stream.
const LARGE_READ_BYTES: usize = 32 * 1024;
/// So many large reads in a row make a stream bulk.
const LARGE_READS_TO_BULK: u8 = 4;
/// A burst below this many bytes speaks against a bulk stream.
const SMALL_BURST_BYTES: usize = 16 * 1024;
/// So many small bursts in a row end it.
const SMALL_BURSTS_TO_SHORT: u8 = 8;

#[derive(Default)]
pub(super) struct Pace {
    bulk: bool,
    /// Signs in a row that the stream should be served the other way.
    signs: u8,
    /// Bytes since the source last ran dry.
    burst: usize,
}

impl Pace {
    pub(super) fn is_bulk(&self) -> bool {
        self.bulk
    }

    /// `bytes` came in with one read.
    pub(super) fn took(&mut self, bytes: usize) {
        self.burst = self.burst.saturating_add(bytes);
        if !self.bulk {
            self.sign(bytes >= LARGE_READ_BYTES, LARGE_READS_TO_BULK);
        }
    }

    /// The source has nothing more for now.
    pub(super) fn ran_dry(&mut self) {
        let burst = std::mem::take(&mut self.burst);
        if self.bulk && burst > 0 {
            self.sign(burst < SMALL_BURST_BYTES, SMALL_BURSTS_TO_SHORT);
        }
    }

    fn sign(&mut self, for_change: bool, needed: u8) {
        self.signs = if for_change { self.signs + 1 } else { 0 };
        if self.signs == needed {
            self.bulk = !self.bulk;
            self.signs = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk() -> Pace {
        let mut pace = Pace::default();
        for _ in 0..LARGE_READS_TO_BULK {
            pace.took(LARGE_READ_BYTES);
        }
        assert!(pace.is_bulk());
        pace
    }

    #[test]
    fn keystrokes_never_become_bulk() {
        let mut pace = Pace::default();
        for _ in 0..10_000 {
            pace.took(36);
            pace.ran_dry();
        }
        assert!(!pace.is_bulk());
    }

    #[test]
    fn large_reads_become_bulk_only_in_a_row() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            for _ in 1..LARGE_READS_TO_BULK {
                pace.took(LARGE_READ_BYTES);
                pace.ran_dry();
            }
            pace.took(1);
            assert!(!pace.is_bulk());
        }
        bulk();
    }

    #[test]
    fn a_bulk_stream_survives_a_pause_and_ends_after_a_row_of_small_bursts() {
        let mut pace = bulk();
        for _ in 0..100 {
            for _ in 1..SMALL_BURSTS_TO_SHORT {
                pace.took(100);
                pace.ran_dry();
            }
            pace.took(SMALL_BURST_BYTES);
            pace.ran_dry();
            // Waking up to nothing says nothing about the stream.
            pace.ran_dry();
        }
        assert!(pace.is_bulk());
        for _ in 0..SMALL_BURSTS_TO_SHORT {
            pace.took(100);
            pace.ran_dry();
        }
        assert!(!pace.is_bulk());
    }
}
