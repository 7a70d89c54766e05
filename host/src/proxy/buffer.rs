//! The memory that bytes are copied through.
//!
//! A thread has a few spare buffers, shared by every session it runs. A session uses one within a
//! single poll and leaves with nothing, unless bytes remain that the other end did not take: a few
//! of those are copied away, many take the buffer along ([`Rest`]), which saves moving them again.

use std::cell::RefCell;
use std::ops::Range;

/// What one copying step moves at most, and what a direction keeps at most of undelivered bytes.
const BUFFER_BYTES: usize = 128 * 1024;
/// A rest up to this size is copied into memory of its own size.
const SMALL_REST_BYTES: usize = 16 * 1024;
/// Spare buffers that a thread keeps.
const SPARE_BUFFERS: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `use_it` with a buffer of the thread, whose contents are of no meaning. `use_it` may swap
/// the box for another.
pub(super) fn with<T>(use_it: impl FnOnce(&mut Box<[u8]>) -> T) -> T {
    let mut buffer =
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
    let outcome = use_it(&mut buffer);
    put_back(buffer);
    outcome
}

fn put_back(buffer: Box<[u8]>) {
    if buffer.len() == BUFFER_BYTES {
        // Fails on a thread that is ending, where nobody needs a spare buffer any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_BUFFERS {
                spare.push(buffer);
            }
        });
    }
}

/// Bytes that were read and not yet written.
pub(super) struct Rest {
    buffer: Box<[u8]>,
    unwritten: Range<usize>,
}

impl Rest {
    /// Keeps `unwritten` of `buffer`, which is left without meaning.
    pub(super) fn keep(buffer: &mut Box<[u8]>, unwritten: Range<usize>) -> Rest {
        if unwritten.len() <= SMALL_REST_BYTES {
            let bytes: Box<[u8]> = buffer[unwritten].into();
            return Rest { unwritten: 0..bytes.len(), buffer: bytes };
        }
        Rest { buffer: std::mem::take(buffer), unwritten }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.unwritten.clone()]
    }

    /// Notes that the first `count` bytes were written; true when none are left.
    pub(super) fn delivered(&mut self, count: usize) -> bool {
        self.unwritten.start += count;
        self.unwritten.is_empty()
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        put_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    #[test]
    fn a_rest_of_any_size_is_delivered_in_pieces_and_in_order() {
        for (unwritten, takes_the_buffer) in [
            (5..6, false),
            (100..100 + SMALL_REST_BYTES, false),
            (1..2 + SMALL_REST_BYTES, true),
            (0..BUFFER_BYTES, true),
        ] {
            let mut rest = with(|buffer| {
                for (index, byte) in buffer.iter_mut().enumerate() {
                    *byte = (index % 251) as u8;
                }
                let rest = Rest::keep(buffer, unwritten.clone());
                assert_eq!(buffer.is_empty(), takes_the_buffer);
                rest
            });
            let mut delivered = Vec::new();
            loop {
                let piece = rest.bytes().len().div_ceil(3);
                delivered.extend_from_slice(&rest.bytes()[..piece]);
                if rest.delivered(piece) {
                    break;
                }
            }
            let expected: Vec<u8> = unwritten.map(|index| (index % 251) as u8).collect();
            assert_eq!(delivered, expected);
        }
    }

    #[test]
    fn buffers_come_back_and_the_thread_keeps_only_a_few() {
        let rests: Vec<Rest> =
            (0..20).map(|_| with(|buffer| Rest::keep(buffer, 0..BUFFER_BYTES))).collect();
        assert_eq!(spare(), 0);
        drop(rests);
        assert_eq!(spare(), SPARE_BUFFERS);
        with(|_| assert_eq!(spare(), SPARE_BUFFERS - 1));
        assert_eq!(spare(), SPARE_BUFFERS);
    }
}
