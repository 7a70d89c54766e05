//! What the monitor may do to machines. The composition root implements it over the VM service.

use async_trait::async_trait;

/// The machines that streams pay for.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// What a machine is doing; absent where there is none of that instance id.
    fn look(&self, vm_id: &str) -> Option<MachineState>;

    /// Stops it; its disk is kept. Comes to an end within minutes.
    ///
    /// # Errors
    /// Why it was not stopped, for the operator.
    async fn stop(&self, vm_id: &str) -> Result<(), String>;

    /// Removes it with all it has.
    ///
    /// # Errors
    /// Why it was not removed, for the operator.
    async fn delete(&self, vm_id: &str) -> Result<(), String>;
}

/// What a machine is doing, as far as its payment is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineState {
    /// It runs, or is coming up.
    Runs,
    /// It does not run, and what it has is kept.
    Rests,
    /// Something is under way that has to end first, or it was never made.
    Neither,
}
