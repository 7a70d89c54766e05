//! Everything that differs from operator to operator is a plugin; this is where they are loaded and called.
//!
//! Domain modules see a plugin only through the trait of its kind (here [`VmBackend`]). What implements it, a
//! WebAssembly component behind an engine, is nobody else's concern, and unit tests put an in-memory one in its place.
//! Only this module knows wasmtime. It may call `store` for the plugins' durable state and read `settings`; it calls nothing further out.

mod bindings;
mod bundled;
mod call;
pub mod catalog;
mod component;
mod configuration;
pub mod conformance;
pub mod engine;
pub mod harness;
mod health;
mod imports;
pub mod installation;
mod limits;
pub mod manifest;
mod script;
mod text;
mod turns;
pub mod vm_backend;
mod vm_component;

#[cfg(test)]
mod tests;

pub use health::Degraded;
pub use imports::{StateError, StateStore};
pub use vm_backend::VmBackend;
pub use vm_component::{Finding, Severity};
