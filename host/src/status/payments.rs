//! The section of being paid.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::payments::streams::{PaymentState, Streams};

/// Do machines have to be paid for, and are they?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentsSection {
    /// Why no machine can be made that has to be paid for, if so.
    pub blocked: Option<String>,
    /// Why the chain cannot be asked, if so.
    pub silent: Option<String>,
    /// Whether machines that nobody pays for are stopped.
    pub monitor_enabled: bool,
    /// Machines by how their payment stands.
    pub machines: BTreeMap<PaymentState, usize>,
    /// Names of machines that run although nobody pays for them.
    pub unpaid: Vec<String>,
}

impl PaymentsSection {
    /// `machines` are those that run, by instance id, with their names.
    pub(super) fn of(streams: &Streams, machines: &[(String, String)]) -> PaymentsSection {
        let states: Vec<_> = machines
            .iter()
            .filter_map(|(id, name)| Some((name, streams.status(id)?.state)))
            .collect();
        let mut counts = BTreeMap::new();
        for (_, state) in &states {
            *counts.entry(*state).or_default() += 1;
        }
        let is_unpaid = |state: &PaymentState| {
            !matches!(state, PaymentState::Funded | PaymentState::RunningLow)
        };
        let unpaid = states.iter().filter(|(_, state)| is_unpaid(state));
        PaymentsSection {
            blocked: streams.blocked(),
            silent: streams.silent(),
            monitor_enabled: streams.monitor_enabled(),
            unpaid: unpaid.map(|(name, _)| (*name).clone()).collect(),
            machines: counts,
        }
    }
}
