//! The operator's door to a provider that runs: HTTP with JSON over a unix socket in the data directory, for this user alone.
//!
//! `server` answers, `client` asks; both speak the types of `protocol`. `desk` is where plugins are changed, whoever asks for
//! it: the socket, or `watch`, which looks after the plugin directory. Everything here could be done to the files of a
//! provider that does not run, too; the command line does that itself then. Calls `vms`, `plugins` and `payments`; called by the
//! composition root (server) and `cli` (client). `pricing` is the way to the prices.

mod client;
mod desk;
mod pricing;
mod protocol;
mod server;
mod watch;

pub use client::{AdminClient, ClientError};
pub use desk::{DeskError, PluginDesk, report};
pub use protocol::{GrantChange, InstallRequest, PluginReport, PluginState, Refusal, UseRequest};
pub use server::{AdminListener, BindError, Desks, serve, socket_path};
pub use watch::watch;
