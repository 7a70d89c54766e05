//! Ports: which one a VM's SSH gets.
//!
//! [`PortAllocator`] holds the operator's range and the rule, no book of its own: what is in use is what the VMs hold,
//! and whoever admits a VM asks under its own lock. Pure; `vms` calls it and opens the chosen port at the proxy, which
//! tells whether something else on this machine has it.

mod allocator;

pub use allocator::{InvalidRange, PortAllocator};
