//! What the author of a plugin for the Golem provider node depends on.
//!
//! A plugin is a type without state that implements the trait of its kind ([`VmBackend`], [`Advertiser`] or [`PaymentVerifier`]), and one macro
//! call:
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

pub mod advertiser;
#[cfg(any(all(target_arch = "wasm32", feature = "allocator"), test))]
mod allocator;
pub mod clock;
pub mod error;
pub mod evm;
pub mod files;
pub mod host;
pub mod http;
pub mod log;
pub mod payment_verifier;
pub mod plugin;
pub mod process;
pub mod progress;
pub mod random;
pub mod settings;
pub mod signer;
pub mod sockets;
pub mod state;
pub mod vm_backend;

pub use advertiser::Advertiser;
pub use error::{Error, Result};
pub use payment_verifier::PaymentVerifier;
pub use plugin::{Description, Finding, Plugin, Severity};
pub use vm_backend::VmBackend;

#[cfg(all(target_arch = "wasm32", feature = "allocator"))]
#[global_allocator]
static ALLOCATOR: allocator::ArenaFirst = allocator::ArenaFirst::new();

/// The generated code. A component's world is put together out of two parts: what every plugin has, and the interface of its
/// kind. Not part of the interface: only the export macros refer to it.
#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "
            package golem:sdk;
            world any-plugin {
                include golem:provider/imports@0.1.0;
                export golem:provider/plugin@0.1.0;
            }
        ",
        world: "golem:sdk/any-plugin",
        pub_export_macro: true,
        export_macro_name: "export_plugin_bindings",
        default_bindings_module: "golem_provider_sdk::bindings",
        additional_derives: [PartialEq, Eq],
        generate_all,
    });

    pub mod vm_backend {
        wit_bindgen::generate!({
            path: "../wit",
            inline: "
                package golem:sdk;
                world vm-backend {
                    export golem:provider/vms@0.1.0;
                }
            ",
            world: "golem:sdk/vm-backend",
            pub_export_macro: true,
            export_macro_name: "export_vm_backend_bindings",
            default_bindings_module: "golem_provider_sdk::bindings::vm_backend",
            additional_derives: [PartialEq, Eq],
            with: { "golem:provider/types@0.1.0": super::golem::provider::types },
            generate_all,
        });
    }

    pub mod discovery_advertiser {
        wit_bindgen::generate!({
            path: "../wit",
            inline: "
                package golem:sdk;
                world discovery-advertiser {
                    export golem:provider/advertisements@0.1.0;
                }
            ",
            world: "golem:sdk/discovery-advertiser",
            pub_export_macro: true,
            export_macro_name: "export_discovery_advertiser_bindings",
            default_bindings_module: "golem_provider_sdk::bindings::discovery_advertiser",
            additional_derives: [PartialEq, Eq],
            with: { "golem:provider/types@0.1.0": super::golem::provider::types },
            generate_all,
        });
    }

    pub mod payment_verifier {
        wit_bindgen::generate!({
            path: "../wit",
            inline: "
                package golem:sdk;
                world payment-verifier {
                    export golem:provider/payments@0.1.0;
                }
            ",
            world: "golem:sdk/payment-verifier",
            pub_export_macro: true,
            export_macro_name: "export_payment_verifier_bindings",
            default_bindings_module: "golem_provider_sdk::bindings::payment_verifier",
            additional_derives: [PartialEq, Eq],
            with: { "golem:provider/types@0.1.0": super::golem::provider::types },
            generate_all,
        });
    }
}
