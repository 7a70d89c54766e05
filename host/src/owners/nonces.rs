//! Which nonces have been used, and for how long that has to be known. Pure: whoever calls says what time it is.
//!
//! A signature counts from a minute before its timestamp until a minute after it, so a used nonce is known until that minute is
//! over, and then forgotten. A clock that is set back would make what was forgotten young again; so nothing counts that is
//! as old as the youngest that was ever forgotten. Room is bounded, for each address and in all; nothing is forgotten early
//! to make some.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use alloy::primitives::Address;

use super::statement::Nonce;

/// How far a signature's time may be from the provider's, to either side.
pub const FRESH_FOR: Duration = Duration::from_secs(60);

/// Signatures of one address that can be known at the same time, which is for two minutes at most: eight a second.
const MAX_PER_ADDRESS: usize = 1_000;
/// Of all addresses; about ten megabytes.
const MAX: usize = 50_000;

/// Whether a signature's time is close enough to `now`. Both in seconds since 1970.
pub fn is_fresh(timestamp: u64, now: u64) -> bool {
    timestamp.abs_diff(now) <= FRESH_FOR.as_secs()
}

/// The nonces that have been used.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    by_address: HashMap<Address, HashSet<Nonce>>,
    by_timestamp: BTreeSet<(u64, Address, Nonce)>,
    /// Of what was forgotten, the latest timestamp.
    forgotten: Option<u64>,
}

/// Why a nonce cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Its time is over, or has not come.
    Stale,
    Used,
    /// As many as can be known are known; after this there is room.
    NoRoom {
        retry_after: Duration,
    },
}

impl Nonces {
    /// Those that were used before, at whatever time that was.
    pub(super) fn restored(used: impl IntoIterator<Item = (Address, Nonce, u64)>) -> Self {
        let mut nonces = Self::default();
        for (address, nonce, timestamp) in used {
            nonces.insert(address, nonce, timestamp);
        }
        nonces
    }

    /// Uses a nonce up. `timestamp` is the signature's, both times in seconds since 1970.
    pub(super) fn use_up(
        &mut self,
        address: Address,
        nonce: Nonce,
        timestamp: u64,
        now: u64,
    ) -> Result<(), Unusable> {
        self.forget(now);
        if !is_fresh(timestamp, now) || self.forgotten.is_some_and(|latest| timestamp <= latest) {
            return Err(Unusable::Stale);
        }
        let of_address = self.by_address.get(&address);
        if of_address.is_some_and(|used| used.contains(&nonce)) {
            return Err(Unusable::Used);
        }
        let full_for_all = self.by_timestamp.len() >= MAX;
        if full_for_all || of_address.is_some_and(|used| used.len() >= MAX_PER_ADDRESS) {
            let mut known = self.by_timestamp.iter();
            let oldest = known.find(|(_, whose, _)| full_for_all || *whose == address);
            let end =
                oldest.map_or(now, |(signed, ..)| signed.saturating_add(FRESH_FOR.as_secs() + 1));
            let retry_after = Duration::from_secs(end.saturating_sub(now).max(1));
            return Err(Unusable::NoRoom { retry_after });
        }
        self.insert(address, nonce, timestamp);
        Ok(())
    }

    fn insert(&mut self, address: Address, nonce: Nonce, timestamp: u64) {
        if self.by_address.entry(address).or_default().insert(nonce.clone()) {
            self.by_timestamp.insert((timestamp, address, nonce));
        }
    }

    fn forget(&mut self, now: u64) {
        while let Some((timestamp, ..)) = self.by_timestamp.first()
            && timestamp.saturating_add(FRESH_FOR.as_secs()) < now
            && let Some((timestamp, address, nonce)) = self.by_timestamp.pop_first()
        {
            self.forgotten = self.forgotten.max(Some(timestamp));
            if let Some(used) = self.by_address.get_mut(&address) {
                used.remove(&nonce);
                if used.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Address = Address::repeat_byte(0xaa);
    const B: Address = Address::repeat_byte(0xbb);
    const NOW: u64 = 1_795_417_200;

    fn nonce(number: usize) -> Nonce {
        Nonce::parse(&format!("nonce-{number:08}")).unwrap()
    }

    #[test]
    fn a_nonce_is_used_once_by_each_address() {
        let mut nonces = Nonces::default();
        assert_eq!(nonces.use_up(A, nonce(1), NOW, NOW), Ok(()));
        assert_eq!(nonces.use_up(A, nonce(1), NOW, NOW), Err(Unusable::Used));
        assert_eq!(nonces.use_up(A, nonce(1), NOW + 1, NOW + 1), Err(Unusable::Used));
        assert_eq!(nonces.use_up(A, nonce(2), NOW, NOW), Ok(()));
        assert_eq!(nonces.use_up(B, nonce(1), NOW, NOW), Ok(()));
    }

    #[test]
    fn a_minute_to_either_side_is_fresh() {
        for (timestamp, fresh) in
            [(NOW - 61, false), (NOW - 60, true), (NOW, true), (NOW + 60, true), (NOW + 61, false)]
        {
            assert_eq!(is_fresh(timestamp, NOW), fresh, "{timestamp}");
            let used = Nonces::default().use_up(A, nonce(1), timestamp, NOW);
            assert_eq!(used.is_ok(), fresh, "{timestamp}");
        }
        assert!(!is_fresh(u64::MAX, NOW));
    }

    #[test]
    fn what_can_no_longer_be_replayed_is_forgotten() {
        let mut nonces = Nonces::default();
        for second in 0..10_000 {
            let number = usize::try_from(second).unwrap();
            assert_eq!(nonces.use_up(A, nonce(number), NOW + second, NOW + second), Ok(()));
        }
        assert_eq!(nonces.by_timestamp.len(), 61);
        nonces.forget(NOW + 20_000);
        assert!(nonces.by_timestamp.is_empty() && nonces.by_address.is_empty());
    }

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_young_again() {
        let mut nonces = Nonces::default();
        nonces.use_up(A, nonce(1), NOW, NOW).unwrap();
        nonces.use_up(A, nonce(2), NOW + 100, NOW + 100).unwrap();
        assert_eq!(nonces.use_up(A, nonce(1), NOW, NOW), Err(Unusable::Stale));
        // Also where it went ahead for a moment only: what is signed from now on counts.
        assert_eq!(nonces.use_up(A, nonce(3), NOW + 1, NOW + 1), Ok(()));
    }

    #[test]
    fn room_is_bounded_and_whoever_finds_none_is_told_when_there_is_some() {
        let mut nonces = Nonces::default();
        for number in 0..MAX_PER_ADDRESS {
            nonces.use_up(A, nonce(number), NOW, NOW).unwrap();
        }
        let retry_after = Duration::from_secs(61);
        let next = nonce(MAX_PER_ADDRESS);
        assert_eq!(nonces.use_up(A, next.clone(), NOW, NOW), Err(Unusable::NoRoom { retry_after }));
        assert_eq!(nonces.use_up(B, next.clone(), NOW, NOW), Ok(()));
        assert_eq!(nonces.use_up(A, next, NOW + 61, NOW + 61), Ok(()));

        let mut nonces = Nonces::default();
        for number in 0..MAX {
            let address = Address::left_padding_from(&(number / 500).to_be_bytes());
            nonces.use_up(address, nonce(number), NOW, NOW).unwrap();
        }
        assert_eq!(nonces.use_up(A, nonce(0), NOW, NOW), Err(Unusable::NoRoom { retry_after }));
    }

    #[test]
    fn what_was_used_before_a_restart_is_used() {
        let mut nonces = Nonces::restored([(A, nonce(1), NOW), (A, nonce(2), NOW - 500)]);
        assert_eq!(nonces.use_up(A, nonce(1), NOW, NOW + 5), Err(Unusable::Used));
        assert_eq!(nonces.use_up(A, nonce(2), NOW - 500, NOW), Err(Unusable::Stale));
        assert_eq!(nonces.use_up(A, nonce(3), NOW + 5, NOW + 5), Ok(()));
    }

    proptest! {
        #[test]
        fn whatever_the_clock_does_nothing_counts_twice(
            steps in prop::collection::vec((-200_i64..200, -70_i64..70, 0_usize..6), 1..200)
        ) {
            let (mut nonces, mut now, mut counted) = (Nonces::default(), NOW, HashSet::new());
            for (step, offset, number) in steps {
                now = now.saturating_add_signed(step);
                // One that was made up now, and one that is sent again.
                let timestamp = now.saturating_add_signed(offset);
                let again: Vec<_> = counted.iter().cloned().collect();
                for (nonce, timestamp) in again {
                    prop_assert!(nonces.use_up(A, nonce, timestamp, now).is_err());
                }
                if nonces.use_up(A, nonce(number), timestamp, now).is_ok() {
                    prop_assert!(counted.insert((nonce(number), timestamp)));
                }
            }
        }
    }
}
