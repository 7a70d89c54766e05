//! The rule by which a port is chosen: the lowest one of the range that no VM holds.

use std::{collections::BTreeSet, ops::Range};

/// The ports that can be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortAllocator {
    range: Range<u16>,
}

/// A range of ports without a port, or with port 0, which means "any".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{from}-{to} is not a range of ports: it has to begin at 1 or above and hold at least one port"
)]
pub struct InvalidRange {
    from: u16,
    to: u16,
}

impl PortAllocator {
    /// Hands out `range`, whose end is exclusive.
    ///
    /// # Errors
    /// When the range is empty or begins at 0.
    pub fn new(range: Range<u16>) -> Result<PortAllocator, InvalidRange> {
        if range.is_empty() || range.start == 0 {
            return Err(InvalidRange { from: range.start, to: range.end });
        }
        Ok(PortAllocator { range })
    }

    /// The ports to try, best first: those of the range that are not in use, lowest first. The caller takes the first
    /// one that can be bound. Ports in use may lie outside the range, when the operator has changed it since.
    pub fn candidates(&self, in_use: BTreeSet<u16>) -> impl Iterator<Item = u16> + use<> {
        self.range.clone().filter(move |port| !in_use.contains(port))
    }

    /// The range, its end exclusive.
    pub fn range(&self) -> Range<u16> {
        self.range.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_without_ports_is_refused() {
        assert!(PortAllocator::new(50800..50800).is_err());
        #[expect(clippy::reversed_empty_ranges)]
        let backwards = PortAllocator::new(50900..50800);
        assert!(backwards.is_err());
        assert!(PortAllocator::new(0..10).is_err());
        assert!(PortAllocator::new(50800..50801).is_ok());
    }

    proptest! {
        #[test]
        fn the_lowest_free_port_is_handed_out_and_never_one_in_use(
            start in 1u16..200,
            length in 1u16..50,
            in_use in prop::collection::btree_set(1u16..300, 0..80),
        ) {
            let ports = PortAllocator::new(start..start + length).unwrap();
            let offered: Vec<u16> = ports.candidates(in_use.clone()).collect();
            let expected: Vec<u16> = (start..start + length).filter(|port| !in_use.contains(port)).collect();
            prop_assert_eq!(offered, expected);
        }

        #[test]
        fn any_sequence_of_taking_and_giving_back_hands_no_port_out_twice(
            steps in prop::collection::vec(prop::option::of(0usize..8), 1..200),
        ) {
            let ports = PortAllocator::new(100..105).unwrap();
            let mut held: Vec<u16> = Vec::new();
            for step in steps {
                match step {
                    Some(index) if !held.is_empty() => { held.remove(index % held.len()); }
                    _ => match ports.candidates(held.iter().copied().collect()).next() {
                        Some(port) => {
                            prop_assert!(!held.contains(&port));
                            held.push(port);
                        }
                        None => prop_assert_eq!(held.len(), 5),
                    },
                }
            }
        }
    }
}
