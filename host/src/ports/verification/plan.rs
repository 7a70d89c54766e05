//! Which ports are checked, and in what portions. Pure.

use std::{collections::BTreeSet, ops::Range};

/// Ports that are under test at the same time, at most: each costs this machine a listener and a server a few connections.
pub const CHUNK: usize = 60;

/// Ports of one round. A range that is wider is checked from its lower end; what is beyond is not handed out.
pub const MAX_PORTS: usize = 1000;

/// What a round checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Each to be checked after the one before. None is empty, and no port is in two.
    pub chunks: Vec<Vec<u16>>,
    /// Ports of the range that are left out because there are too many.
    pub left_out: usize,
}

impl Plan {
    /// The provider's own port first, since without it nothing else matters, then what serves VMs, then the rest.
    pub fn new(provider_port: u16, serving: &BTreeSet<u16>, range: Range<u16>) -> Plan {
        let first = std::iter::once(provider_port)
            .chain(serving.iter().copied().filter(|port| *port != provider_port));
        let rest: Vec<u16> =
            range.filter(|port| *port != provider_port && !serving.contains(port)).collect();
        let room = MAX_PORTS.saturating_sub(serving.len() + 1);
        let left_out = rest.len().saturating_sub(room);
        let all: Vec<u16> = first.chain(rest.into_iter().take(room)).collect();
        // Of the same size, as each may take as long as the largest.
        let size = all.len().div_ceil(all.len().div_ceil(CHUNK));
        Plan { chunks: all.chunks(size).map(<[u16]>::to_vec).collect(), left_out }
    }

    /// Ports in all chunks.
    pub fn ports(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_providers_port_comes_first_and_then_what_serves_vms() {
        let plan = Plan::new(7466, &BTreeSet::from([50850, 40000]), 50800..50900);
        assert_eq!(plan.chunks[0][..4], [7466, 40000, 50850, 50800]);
        assert_eq!((plan.ports(), plan.chunks.len(), plan.left_out), (102, 2, 0));
    }

    proptest! {
        #[test]
        fn every_port_is_checked_once_or_counted_as_left_out(
            provider_port in 1u16..3000,
            serving in prop::collection::btree_set(1u16..3000, 0..30),
            start in 1u16..1500,
            length in 1u16..1500,
        ) {
            let range = start..start + length;
            let plan = Plan::new(provider_port, &serving, range.clone());
            let checked: Vec<u16> = plan.chunks.concat();
            let distinct: BTreeSet<u16> = checked.iter().copied().collect();
            prop_assert_eq!(distinct.len(), checked.len());
            prop_assert!(plan.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK));
            prop_assert!(checked.len() <= MAX_PORTS);
            prop_assert!(distinct.contains(&provider_port) && serving.is_subset(&distinct));
            let missing = range.filter(|port| !distinct.contains(port)).count();
            prop_assert_eq!(missing, plan.left_out);
        }
    }
}
