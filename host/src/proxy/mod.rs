//! The TCP proxy: one port of this machine per VM, each relayed to where that VM takes SSH.
//!
//! ```text
//! Proxy ── Link per port ── listener task ── session task per client ── Relay ── two Sockets
//! ```
//!
//! [`Proxy`] opens, aims and closes ports. The task of a port (`listener`) accepts, applies the
//! cap and owns its sessions, so that ending it ends them. A session (`session`) reaches the
//! machine and then relays (`relay`): bytes are copied through a buffer shared by all sessions of
//! a thread (`buffer`), or spliced through a borrowed pipe (`pipes`) once a stream is bulk
//! (`pace`). `socket` holds the rules for a single connection.
//!
//! A connection is transparent: the end of either stream is passed on, an abort stays an abort, and
//! whatever cannot reach its machine is reset. Memory per connection is bounded.
//!
//! This is the innermost layer. It knows ports and addresses, not VMs, and calls nothing else of
//! the host; whoever manages VMs calls it.

mod buffer;
mod listener;
mod pace;
mod pipes;
mod relay;
mod session;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use listener::Link;
use pipes::PipePool;

/// Connections that may wait to be accepted, per port; the kernel has a limit of its own.
const BACKLOG: u32 = 4096;

/// How the proxy listens and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The address the ports are opened on.
    pub bind: IpAddr,
    /// Connections of one VM at a time; one more is reset. Each costs two file descriptors.
    pub max_connections_per_vm: usize,
    /// Connections of all VMs together, so that they leave file descriptors for everything else.
    pub max_connections: usize,
    /// How long a machine may take to accept a connection before its client is reset.
    pub connect_timeout: Duration,
    /// Probes on connections on which nothing moves.
    pub keep_alive: KeepAlive,
    /// Pipes for bulk streams, for all VMs together, of 1 MiB and two file descriptors each. A
    /// stream that gets none is copied, at about 1.6 times the CPU. 0 copies always. The kernel
    /// allows an unprivileged user 64 such pipes by default. Without effect outside Linux.
    pub max_bulk_pipes: usize,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            max_connections_per_vm: 64,
            max_connections: 10_000,
            connect_timeout: Duration::from_secs(10),
            keep_alive: KeepAlive::default(),
            max_bulk_pipes: 48,
        }
    }
}

/// After `idle` without a byte, a connection is probed every `interval`; after `probes` of them
/// without an answer it is reset. Both durations count in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    pub idle: Duration,
    pub interval: Duration,
    pub probes: u32,
}

impl Default for KeepAlive {
    fn default() -> KeepAlive {
        KeepAlive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 6 }
    }
}

/// What has passed through one port since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Clients connected now, including those whose machine has not answered yet.
    pub connections_open: u64,
    /// Clients that connected, including those refused.
    pub connections_total: u64,
    /// Clients reset because the machine was not running, did not take the connection in time, or
    /// because it or all machines together had as many connections as they may have.
    pub connections_refused: u64,
    /// Bytes delivered to the machine.
    pub bytes_to_vm: u64,
    /// Bytes delivered to its clients.
    pub bytes_from_vm: u64,
}

/// Why a port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another program has it.
    #[error(
        "port {0} is in use by another program; free it (`ss -ltnp` shows who has it) or choose another port range"
    )]
    InUse(u16),
    /// This proxy has it, or is still closing it.
    #[error("the proxy has port {0} open already; close it first")]
    AlreadyOpen(u16),
    /// The system refused for another reason.
    #[error("cannot listen on port {port}: {source}")]
    Io {
        /// The port asked for.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// The ports of all VMs. Clones are handles to the same proxy; when the last one is dropped,
/// every listener and session ends.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<ProxyConfig>,
    pipes: Arc<PipePool>,
    /// For connections, of all VMs together.
    room: Arc<Semaphore>,
    registry: Arc<Registry>,
    stop: CancellationToken,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    /// A proxy without open ports.
    pub fn new(config: ProxyConfig) -> Proxy {
        Proxy {
            shared: Arc::new(Shared {
                pipes: Arc::new(PipePool::new(config.max_bulk_pipes)),
                room: Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS))),
                config: Arc::new(config),
                registry: Arc::default(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Binds `port` and starts listening. Without a target every connection is reset at once.
    ///
    /// # Errors
    /// The port is taken by another program or open already, or the system refuses it. Nothing is
    /// left behind.
    pub async fn open(&self, port: u16, target: Option<SocketAddr>) -> Result<(), OpenError> {
        let shared = &self.shared;
        let mut ports = shared.registry.ports();
        if ports.contains_key(&port) {
            return Err(OpenError::AlreadyOpen(port));
        }
        // Looked at under the lock, so that no port slips in behind a shutdown's back.
        if shared.stop.is_cancelled() {
            let source = io::Error::other("the proxy has been shut down");
            return Err(OpenError::Io { port, source });
        }
        let socket = listen(&shared.config, port).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => OpenError::InUse(port),
            _ => OpenError::Io { port, source },
        })?;
        let link = Arc::new(Link::new(
            port,
            target,
            Arc::clone(&shared.config),
            Arc::clone(&shared.pipes),
            Arc::clone(&shared.room),
            shared.stop.child_token(),
        ));
        ports.insert(port, Arc::clone(&link));
        let registered = Registered { registry: Arc::clone(&shared.registry), port };
        tokio::spawn(listener::run(socket, link, registered));
        Ok(())
    }

    /// New connections go to the new target; those under way stay where they are. `None` says that
    /// the machine is not running: new connections are reset, and those under way end.
    ///
    /// Does nothing to a port that is not open.
    pub fn set_target(&self, port: u16, target: Option<SocketAddr>) {
        match self.shared.registry.link(port) {
            Some(link) => link.set_target(target),
            None => tracing::warn!(port, "a target was set for a port that is not open"),
        }
    }

    /// Ends listener and sessions; when it returns the port can be bound again at once. Goes on to
    /// the end even if the caller stops waiting. Does nothing to a port that is not open.
    pub async fn close(&self, port: u16) {
        let link = self.shared.registry.link(port);
        if let Some(link) = link {
            link.stop();
            link.ended().await;
        }
    }

    /// Whether the proxy listens on `port`.
    pub fn is_open(&self, port: u16) -> bool {
        self.shared.registry.link(port).is_some_and(|link| !link.is_stopping())
    }

    /// Every port that the proxy listens on.
    pub fn open_ports(&self) -> BTreeSet<u16> {
        let ports = self.shared.registry.ports();
        ports.values().filter(|link| !link.is_stopping()).map(|link| link.port()).collect()
    }

    /// What has passed through `port` since it was opened; `None` when it is not open.
    pub fn counters(&self, port: u16) -> Option<Counters> {
        Some(self.shared.registry.link(port)?.counters())
    }

    /// Ends every listener and session; waits until all tasks ended, at most `grace`. No port can
    /// be opened afterwards.
    pub async fn shutdown(&self, grace: Duration) {
        let links: Vec<Arc<Link>> = {
            let ports = self.shared.registry.ports();
            self.shared.stop.cancel();
            ports.values().cloned().collect()
        };
        let all_ended = async {
            for link in &links {
                link.ended().await;
            }
        };
        if tokio::time::timeout(grace, all_ended).await.is_err() {
            tracing::warn!(grace_ms = grace.as_millis(), "proxy sessions have not ended in time");
        }
    }
}

/// The open ports, kept true by the listener tasks: a port is in it until its listener has ended.
#[derive(Default)]
struct Registry {
    ports: Mutex<HashMap<u16, Arc<Link>>>,
}

impl Registry {
    fn ports(&self) -> MutexGuard<'_, HashMap<u16, Arc<Link>>> {
        // Every change is a single insert or remove.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, port: u16) -> Option<Arc<Link>> {
        self.ports().get(&port).cloned()
    }
}

/// Takes its port out of the registry when dropped.
struct Registered {
    registry: Arc<Registry>,
    port: u16,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.ports().remove(&self.port);
    }
}

fn listen(config: &ProxyConfig, port: u16) -> io::Result<TcpListener> {
    if port == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a port number is needed"));
    }
    let socket = match config.bind {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // The port comes back at once after a restart, whatever old connections still linger on it.
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket::set_keep_alive(&socket, config.keep_alive)?;
    socket.bind(SocketAddr::new(config.bind, port))?;
    socket.listen(BACKLOG)
}
