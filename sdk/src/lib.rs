//! What the author of a plugin for the Golem provider node depends on.
//!
//! A plugin is a type without state that implements the trait of its kind, and one macro call:
//!
//! ```ignore
//! struct Backend;
//! impl golem_provider_sdk::Plugin for Backend { /* describe, probe */ }
//! impl golem_provider_sdk::VmBackend for Backend { /* create, start, … */ }
//! golem_provider_sdk::export_vm_backend!(Backend);
//! ```
//!
//! The traits are functions without `self`, because every call runs in a fresh instance: what a plugin keeps in memory
//! is gone when the call ends. Durable things belong in [`state`] and [`files`].
//!
//! The other modules are what the provider offers, one per interface of the contract in `wit/`. Each has to be granted by
//! the operator. Outside of a component there is no provider to offer them, so calling one in a native unit
//! test panics: keep decisions in functions that take values, and test those.

#[cfg(any(all(target_arch = "wasm32", feature = "allocator"), test))]
mod allocator;
pub mod clock;
pub mod error;
pub mod files;
pub mod host;
pub mod http;
pub mod log;
pub mod plugin;
pub mod process;
pub mod progress;
pub mod random;
pub mod settings;
pub mod sockets;
pub mod state;
pub mod vm_backend;

pub use error::{Error, Result};
pub use plugin::{Description, Finding, Plugin, Severity};
pub use vm_backend::VmBackend;

#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
#[global_allocator]
static ALLOCATOR: allocator::ArenaFirst = allocator::ArenaFirst::new();

/// The generated code. Not part of the interface: only the export macros refer to it.
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "vm-backend",
        pub_export_macro: true,
        export_macro_name: "export_vm_backend_bindings",
        default_bindings_module: "golem_provider_sdk::bindings",
        additional_derives: [PartialEq, Eq],
    });
}
