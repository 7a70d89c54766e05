//! VMs: their life, their owners' requests, and what is true after a crash.

pub mod error;
pub mod model;

pub use error::{StartError, VmError};
pub use model::{Job, JobStatus, NewVm, Phase, Progress, Resources, SshPublicKey, Vm, VmName};
