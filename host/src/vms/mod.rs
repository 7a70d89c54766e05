//! VMs: their life, what may be asked of them and when, and what is true after a crash.
//!
//! # A VM's life
//!
//! ```text
//!                 await_ready                 stop                      stopped
//!   ┌──────────┐  succeeded   ┌─────────┐  requested   ┌──────────┐              ┌─────────┐
//! ─▶│ creating │─────────────▶│ running │─────────────▶│ stopping │─────────────▶│ stopped │
//!   └──────────┘              └─────────┘              └──────────┘              └─────────┘
//!        │                      ▲  │ ▲                      ▲                      ▲  │ │
//!        │ failed               │  │ └─── seen running ─────┼──────────────────────┼──┘ │
//!        ▼                      │  └───── seen ended ───────┼──────────────────────┘    │
//!   ┌──────────┐                │            failed, to     │      start requested      │
//!   │  failed  │                │  ready     be switched off│                           │
//!   └──────────┘           ┌──────────┐─────────────────────┘                           │
//!                          │ starting │◀────────────────────────────────────────────────┘
//!                          └──────────┘
//!            any phase ── delete requested ──▶ deleting ── backend confirmed ──▶ no record
//! ```
//!
//! Requests cause the edges marked "requested", and a create's admission the first phase. The operation that a request
//! began causes the ones that end it. The reconciler causes the two marked "seen", and nothing else does. Which request
//! is taken, joined or refused in which phase is decided in `lifecycle`, a table without locks or I/O.
//!
//! | Phase | What holds | What the next start does when it finds it |
//! |---|---|---|
//! | creating | a port and resources; perhaps a machine | machine there: repeats `create`, waits for it; not there: the create has failed |
//! | running | a port, resources, a machine that was seen running | compares with the machine: runs, or has ended |
//! | stopping | as running; perhaps with what went wrong at a start | stops it |
//! | stopped | a port and resources; the machine's disk | compares with the machine: it may have come back |
//! | starting | as stopped; perhaps it runs | starts it |
//! | deleting | what it had; there is no way back | deletes it |
//! | failed | with a port: perhaps parts of a machine; without: nothing but its name and why | with a port: clears up |
//!
//! A machine that ended, or did not start, is `stopped` with an error message, keeps all it has and can be started again.
//! A create that failed is `failed` at once, its job too; its port and resources are free when the backend has confirmed
//! that nothing is left, and from then on its name may be taken again.
//!
//! # What is written when
//!
//! A phase that ends in "-ing" is written before the first step is done, the phase that follows after the last one
//! is confirmed. So whatever moment the process dies at, the record says what was under way, and every step can
//! be repeated. The id is chosen and written before the backend hears of it. What a VM holds is what its row says: port and
//! resources have no book of their own. An operation whose end could not be written, or whose backend did not answer, leaves
//! its phase as it is; `reconcile` takes up whatever phase it finds without an operation, at start and every few seconds.
//!
//! # Who does what
//!
//! - [`VmService`] is what the rest of the provider calls. Reads come from `registry`, the rows in memory, which follows the
//!   store and never waits.
//! - A change to a VM holds the VM's slot in the registry, so there is one at a time; different VMs go side by side.
//!   Changes run in tasks of the service (`operations`): a caller that goes away ends nothing.
//! - `admission` decides on creates one at a time, from name to port, and writes the row while it does.
//! - `reconcile` compares with what the backends say, and opens what should be open.
//! - `ownership` says whom a VM belongs to. It is asked by `api`, about requestors; what the provider or its operator does to a VM
//!   needs nobody's signature.
//!
//! Calls `store`, `proxy`, `ports`, `resources` and the trait of `plugins`, and reads what a payment is in `payments`; called by `api` and the composition root.

mod admission;
mod backends;
mod config;
pub mod error;
mod lifecycle;
pub mod model;
mod operations;
pub mod ownership;
mod reconcile;
mod registry;
mod service;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

pub use backends::Backends;
pub use config::{Deadlines, VmServiceConfig};
pub use error::{StartError, VmError};
pub use model::{Job, JobStatus, NewVm, Phase, Progress, Resources, SshPublicKey, Vm, VmName};
pub use ownership::{NotAdmitted, NotThePayer, Ownership};
pub use service::{CreateTicket, VmService, VmServiceParts};
