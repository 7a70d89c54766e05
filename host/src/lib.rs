//! The provider node: a host that rents out virtual machines, and loads WebAssembly components for what differs from
//! operator to operator.
//!
//! (The map of the house comes here.)

pub mod api;
pub mod cli;
pub mod payments;
pub mod plugins;
pub mod ports;
pub mod proxy;
pub mod resources;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod vms;
