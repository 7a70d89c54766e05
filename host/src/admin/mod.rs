//! The operator's door to a provider that runs: HTTP with JSON over a unix socket in the data directory, for this user alone.
//!
//! `server` answers, `client` asks; both speak the types of `protocol`. `desk` is where plugins are changed, whoever asks for
//! it: the socket, or `watch`, which looks after the plugin directory; `pricing` is the way to the prices, `streams` to what was earned, and `ending` is how
//! the provider is told to end. Everything here could be done to the files of a provider that does not run, too; the command
//! line does that itself then. Calls `vms`, `plugins`, `discovery`, `payments`, `status` and `doctor`; called by the composition
//! root (server) and `cli` (client).

mod client;
mod desk;
mod ending;
mod pricing;
mod protocol;
mod server;
mod streams;
mod watch;

pub use client::{AdminClient, ClientError};
pub use desk::{DeskError, PluginDesk, report};
pub use ending::Ending;
pub use protocol::{
    GrantChange, InstallRequest, PluginReport, PluginState, Refusal, StopRequest, UseRequest,
    WithdrawRequest,
};
pub use server::{AdminListener, BindError, Doors, serve, socket_path};
pub use watch::watch;
