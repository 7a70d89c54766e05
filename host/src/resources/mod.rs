//! Resources: what this machine has, what of it may be rented, and whether there is room for one more VM.
//!
//! ```text
//! Monitor ── Measurement ──▶ Rules ◀── what VMs hold, what is asked for
//! ```
//!
//! [`Rules`] is pure: a measurement and the sum of what VMs hold go in, a verdict comes out. [`Monitor`] measures the
//! machine, off the async runtime. [`Tracker`] puts the two together. None of them keeps a book of allocations: the VMs'
//! rows are that book, and `vms`, which owns them, passes the sum in and admits under its own lock.

mod monitor;
mod rules;
mod tracker;

pub use monitor::{Measurement, Monitor, MonitorError};
pub use rules::{Amounts, Minimums, ResourceReport, Rules, Shortage, Thresholds};
pub use tracker::Tracker;
