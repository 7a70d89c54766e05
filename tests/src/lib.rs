//! What the end-to-end tests stand on: a real provider, real QEMU, and OpenSSH's own client.
//!
//! Nothing in here knows how the provider is built inside. It is started as an operator starts it ([`Provider`]), spoken to
//! as a requestor speaks to it ([`Client`], [`Ssh`]), and looked at from outside, through `/proc` ([`processes`]), its
//! files and its database ([`database`]). What a test starts ends with it, also when the test fails.
//!
//! The tests are in `tests/tests/`. `refusals.rs` and `http_surface.rs` need no VM, the latter needs what `cargo xtask
//! api-checker` installs. Those that are about the provider alone have their VMs on paper ([`Paper`]), with a [`StandIn`] for
//! their SSH server; among them are `operations.rs`, about what an operator does with a provider, and `owners.rs`, about signed
//! requests. `money.rs` has a [`PriceSource`] and a [`CaptchaFaucet`]; `multipass.rs` is about one backend, with a stand-in for its program
//! ([`Multipass`]). `reachability.rs` puts a provider behind a router ([`network`]), with servers that it asks about itself
//! ([`PortChecker`], [`CheckServer`]). `discovery.rs` and `golem_base.rs` list it where requestors look: with the published
//! [`DiscoveryServer`], and on a chain with entries of providers ([`GolemBase`]). `vm_life.rs` boots a few real machines, and is one
//! program so that no two programs boot at the same time; it needs the image that `cargo xtask image` builds. A chain
//! ([`Anvil`]) and the programs in [`tools`] stand for the Golem Network; `cargo xtask network` installs them.
//! What payments are made with is in [`contracts`]: `stream_contract.rs` holds it against answers that were recorded elsewhere;
//! `payments.rs` rents on a [`Market`], over a [`Wire`] that can be cut.
//! `advertisers.rs` has places of its own to be listed with, `other_languages.rs` a [`Noticeboard`], and a plugin that `cargo xtask examples` builds. `plugin_conformance.rs` and `plugin_tutorial.rs` are for authors of plugins.

pub mod anvil;
pub mod background;
mod binary;
mod captcha_faucet;
mod check_server;
mod client;
pub mod clock;
mod conformance;
pub mod contracts;
pub mod database;
mod discovery_server;
mod golem_base;
mod images;
mod load;
pub mod market;
pub mod mounts;
pub mod multipass;
pub mod network;
pub mod noticeboard;
mod optional;
pub mod paper;
pub mod ports;
mod price_source;
pub mod processes;
mod provider;
pub mod schemathesis;
mod ssh;
mod stand_in;
pub mod tools;
pub mod wait;
mod wire;

pub use anvil::Anvil;
pub use background::Background;
pub use binary::{component, provider as program};
pub use captcha_faucet::{CaptchaFaucet, Puzzles};
pub use check_server::{Behaviour, CheckServer, PortChecker};
pub use client::{Answer, Client};
pub use clock::Clock;
pub use conformance::{Conformance, conformance};
pub use contracts::{NewStream, StreamContract};
pub use discovery_server::DiscoveryServer;
pub use golem_base::GolemBase;
pub use images::{DEFAULT_IMAGE, Image};
pub use load::Requests;
pub use market::Market;
pub use multipass::Multipass;
pub use noticeboard::Noticeboard;
pub use paper::Paper;
pub use price_source::PriceSource;
pub use provider::{Daemon, Ended, Provider, Setup};
pub use ssh::{Key, KeyKind, Output, Ssh};
pub use stand_in::{GREETING, StandIn};
pub use wire::Wire;
