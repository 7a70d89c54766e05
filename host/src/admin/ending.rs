//! How a provider is told to end by its operator.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// The end of the provider. Clones are the same end.
#[derive(Clone)]
pub struct Ending {
    stop: CancellationToken,
    stop_vms: Arc<OnceLock<bool>>,
}

impl Ending {
    /// `stop` is what everything of the provider waits for.
    pub fn new(stop: CancellationToken) -> Ending {
        Ending { stop, stop_vms: Arc::default() }
    }

    /// Begins it. Who comes first says what becomes of the VMs.
    pub fn begin(&self, stop_vms: Option<bool>) {
        if let Some(stop_vms) = stop_vms {
            let _ = self.stop_vms.set(stop_vms);
        }
        self.stop.cancel();
    }

    /// What the operator said about the VMs, if anything.
    pub fn stop_vms(&self) -> Option<bool> {
        self.stop_vms.get().copied()
    }
}
