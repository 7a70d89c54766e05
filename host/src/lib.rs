//! The provider node: a host that rents out virtual machines, and loads WebAssembly components for what differs from
//! operator to operator.
//!
//! ```text
//! main ─ cli ─ node            the command line; what builds everything out of the settings and ends it in order
//!          │
//!          ├ settings telemetry   read once, at the start
//!          ├ api                  HTTP: what requestors see
//!          ├ admin                a unix socket: what the operator's commands ask of a provider that runs
//!          ├ status doctor        how the provider is; what of this computer would be in its way
//!          ├ vms                  a VM's life: the one who decides
//!          │   ├ resources ports  is there room, which port, and can it be reached
//!          │   ├ store            SQLite: what has to last
//!          │   ├ proxy            TCP from a port to a machine
//!          │   └ plugins          backends behind one trait; the engine that runs components
//!          ├ owners               who asks: signatures of requests, and that none counts twice
//!          ├ discovery            being found: what is said where, and whether it is seen
//!          ├ payments             the key that stands for the provider, prices, streams that machines are paid by
//!          └ chains               nodes of Ethereum chains, and transactions with that key
//! service_manager                what systemd is told
//! http_client                    questions to servers that are not ours: bounded, with a deadline
//! whole_file                     files that are there whole or as they were
//! faults                         where tests can let the provider die; empty in what operators run
//! ```
//!
//! A module calls those below it and none above. Only `plugins` knows wasmtime, only `store` knows SQL, only `api` knows HTTP.

pub mod admin;
pub mod api;
pub mod chains;
pub mod cli;
pub mod discovery;
pub mod doctor;
pub mod faults;
pub mod http_client;
pub mod node;
pub mod owners;
pub mod payments;
pub mod plugins;
pub mod ports;
pub mod proxy;
pub mod resources;
pub mod service_manager;
pub mod settings;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod vms;
pub mod whole_file;
