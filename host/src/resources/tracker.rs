//! The rules applied to this machine.

use super::{Amounts, Monitor, ResourceReport, Rules, Shortage};

/// Decides whether there is room, by the operator's rules and the machine's state. Clones share the measurements.
#[derive(Clone)]
pub struct Tracker {
    rules: Rules,
    monitor: Monitor,
}

impl Tracker {
    pub fn new(rules: Rules, monitor: Monitor) -> Tracker {
        Tracker { rules, monitor }
    }

    /// Measures, and decides whether `asked` may be given away while VMs hold `held`. Callers that admit do so one
    /// at a time, or two of them could get the same room.
    ///
    /// # Errors
    /// Every resource that is short, or that the machine could not be measured.
    pub async fn admit(&self, held: Amounts, asked: Amounts) -> Result<(), Shortage> {
        let machine = self.monitor.refresh().await.map_err(|error| Shortage(error.to_string()))?;
        self.rules.admit(&machine, held, asked)
    }

    /// What there is, by the last measurement. Never waits.
    pub fn report(&self, held: Amounts) -> ResourceReport {
        self.rules.report(&self.monitor.latest(), held)
    }

    /// Measures, so that the next report is fresh.
    pub async fn refresh(&self) {
        if let Err(error) = self.monitor.refresh().await {
            tracing::warn!(%error, "resources reported are those measured before");
        }
    }
}
