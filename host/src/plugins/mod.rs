//! Everything that differs from operator to operator is a plugin; this is where they are loaded and called.
//!
//! Domain modules see a plugin only through the trait of its kind (here [`VmBackend`]). What implements it, a
//! WebAssembly component behind an engine, is nobody else's concern, and unit tests put an in-memory one in its place.
//! Only this module knows wasmtime. It may call `store` for the plugins' durable state; it calls nothing further out.

pub mod vm_backend;

pub use vm_backend::VmBackend;
