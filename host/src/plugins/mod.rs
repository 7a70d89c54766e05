//! Everything that differs from operator to operator is a plugin; this is where they are loaded and called.
//!
//! Domain modules see a plugin only through the trait of its kind ([`VmBackend`], [`Advertiser`], [`PaymentVerifier`]). What implements it, a
//! WebAssembly component behind an engine, is nobody else's concern, and unit tests put an in-memory one in its place.
//! Only this module knows wasmtime. It may call `store` for the plugins' durable state and read `settings`; it calls nothing further out.

pub mod advertiser;
mod advertiser_component;
mod bindings;
mod bundled;
mod call;
pub mod catalog;
mod component;
mod configuration;
pub mod conformance;
pub mod engine;
mod failure;
pub mod harness;
mod health;
mod imports;
pub mod installation;
mod kind;
mod limits;
pub mod manifest;
mod payment_component;
pub mod payment_verifier;
mod plugin;
pub mod schema;
mod script;
mod text;
mod turns;
pub mod vm_backend;
mod vm_component;

#[cfg(test)]
mod tests;

pub use advertiser::Advertiser;
pub use failure::{Failure, FailureKind};
pub use health::Degraded;
pub use imports::{Ethereum, StateError, StateStore, ethereum};
pub use kind::Kind;
pub use payment_verifier::PaymentVerifier;
pub use plugin::{Finding, Severity};
pub use vm_backend::VmBackend;
