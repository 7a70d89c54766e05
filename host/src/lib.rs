//! The provider node: a host that rents out virtual machines, and loads WebAssembly components for what differs from
//! operator to operator.
//!
//! (The map of the house comes here.)

pub mod plugins;
pub mod proxy;
