//! Ports: which one a VM's SSH gets, and whether it can be reached.
//!
//! [`PortAllocator`] holds the operator's range and the rule, no book of its own about VMs: what is in use is what the VMs
//! hold, and whoever admits a VM asks under its own lock. `vms` calls it and opens the chosen port at the proxy, which
//! tells whether something else on this machine has it. [`verification`] finds out which ports can be reached from
//! outside and tells the allocator; the composition root runs it.

mod allocator;
pub mod verification;

pub use allocator::{Claim, HoldError, InvalidRange, PortAllocator};
