//! One VM port: the task that accepts its connections and owns the sessions that come of them.
//!
//! The task decides whom to let in, passes on nothing itself, and ends its sessions when the
//! machine stops or the port closes. It is the only one that adds sessions, so the cap needs no
//! lock. What outsiders may see and do (counters, target, stop) is in [`Link`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::pipes::PipePool;
use super::{Counters, ProxyConfig, session};

/// How long accepting pauses when the system is short of something, e.g. of file descriptors.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(200);
/// Repeated warnings about the same port come no more often than this.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Where new connections go, and how often the machine behind the port has stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Aim {
    target: Option<SocketAddr>,
    /// Counted rather than inferred from `target`: a stop and a start in quick succession look like
    /// no change, but the sessions from before the stop have to end all the same.
    stops: u64,
}

/// What the rest of the proxy and the sessions share with the listener of one port.
pub(super) struct Link {
    port: u16,
    config: Arc<ProxyConfig>,
    pipes: Arc<PipePool>,
    /// For connections, of all ports together.
    room: Arc<Semaphore>,
    aim: watch::Sender<Aim>,
    stop: CancellationToken,
    ended: CancellationToken,
    connections_open: AtomicU64,
    connections_total: AtomicU64,
    connections_refused: AtomicU64,
    bytes_to_vm: AtomicU64,
    bytes_from_vm: AtomicU64,
}

impl Link {
    pub(super) fn new(
        port: u16,
        target: Option<SocketAddr>,
        config: Arc<ProxyConfig>,
        pipes: Arc<PipePool>,
        room: Arc<Semaphore>,
        stop: CancellationToken,
    ) -> Link {
        Link {
            port,
            config,
            pipes,
            room,
            aim: watch::Sender::new(Aim { target, stops: 0 }),
            stop,
            ended: CancellationToken::new(),
            connections_open: AtomicU64::new(0),
            connections_total: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            bytes_to_vm: AtomicU64::new(0),
            bytes_from_vm: AtomicU64::new(0),
        }
    }

    pub(super) fn set_target(&self, target: Option<SocketAddr>) {
        self.aim.send_if_modified(|aim| {
            let changed = aim.target != target;
            if changed && target.is_none() {
                aim.stops += 1;
            }
            aim.target = target;
            changed
        });
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until the port is free and the last session has ended.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            connections_open: self.connections_open.load(Ordering::Relaxed),
            connections_total: self.connections_total.load(Ordering::Relaxed),
            connections_refused: self.connections_refused.load(Ordering::Relaxed),
            bytes_to_vm: self.bytes_to_vm.load(Ordering::Relaxed),
            bytes_from_vm: self.bytes_from_vm.load(Ordering::Relaxed),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn config(&self) -> &ProxyConfig {
        &self.config
    }

    pub(super) fn pipes(&self) -> &PipePool {
        &self.pipes
    }

    pub(super) fn bytes_to_vm(&self) -> &AtomicU64 {
        &self.bytes_to_vm
    }

    pub(super) fn bytes_from_vm(&self) -> &AtomicU64 {
        &self.bytes_from_vm
    }

    pub(super) fn count_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts as an open connection for as long as it exists.
pub(super) struct OpenSession {
    link: Arc<Link>,
    _place: OwnedSemaphorePermit,
}

impl OpenSession {
    /// `None` when all ports together have as many as they may have.
    pub(super) fn new(link: &Arc<Link>) -> Option<OpenSession> {
        let place = Arc::clone(&link.room).try_acquire_owned().ok()?;
        link.connections_open.fetch_add(1, Ordering::Relaxed);
        Some(OpenSession { link: Arc::clone(link), _place: place })
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.link.connections_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    MachineNotRunning,
    TooManyConnections,
    TooManyOfAllMachines,
}

/// Whether one more connection is let in, and where it goes.
fn admit(target: Option<SocketAddr>, open: u64, cap: usize) -> Result<SocketAddr, Refusal> {
    let target = target.ok_or(Refusal::MachineNotRunning)?;
    if open >= cap as u64 {
        return Err(Refusal::TooManyConnections);
    }
    Ok(target)
}

/// Accepts on `socket` until the link is stopped, then ends every session; `unregister` is dropped
/// after that, and also when the task is cut short.
pub(super) async fn run<U>(socket: TcpListener, link: Arc<Link>, unregister: U) {
    // Locals are dropped in reverse order: the port is free before anybody is told so.
    let _ended = link.ended.clone().drop_guard();
    let _unregister = unregister;
    let mut listener = Listener {
        socket,
        aim: link.aim.subscribe(),
        sessions: JoinSet::new(),
        stops_seen: 0,
        accept_after: None,
        warned_shortage: Throttle::default(),
        warned_cap: Throttle::default(),
        link,
    };
    listener.accept_until_stopped().await;
    let Listener { socket, mut sessions, .. } = listener;
    drop(socket);
    sessions.shutdown().await;
}

struct Listener {
    socket: TcpListener,
    link: Arc<Link>,
    aim: watch::Receiver<Aim>,
    sessions: JoinSet<()>,
    stops_seen: u64,
    accept_after: Option<Instant>,
    warned_shortage: Throttle,
    warned_cap: Throttle,
}

impl Listener {
    async fn accept_until_stopped(&mut self) {
        loop {
            let accept = async {
                if let Some(pause_end) = self.accept_after {
                    sleep_until(pause_end).await;
                }
                self.socket.accept().await
            };
            tokio::select! {
                biased;
                () = self.link.stop.cancelled() => return,
                // Fails only when the sender is gone, and the link with it.
                changed = self.aim.changed() => match changed {
                    Ok(()) => { self.take_aim(); }
                    Err(_) => return,
                },
                accepted = accept => {
                    self.accept_after = None;
                    match accepted {
                        Ok((client, _)) => self.receive(client),
                        Err(error) => self.accept_failed(&error),
                    }
                }
            }
        }
    }

    /// The target of now; ends the sessions of a machine that has stopped.
    fn take_aim(&mut self) -> Option<SocketAddr> {
        let aim = *self.aim.borrow_and_update();
        if aim.stops != self.stops_seen {
            self.stops_seen = aim.stops;
            self.sessions.abort_all();
        }
        self.reap();
        aim.target
    }

    fn receive(&mut self, client: TcpStream) {
        self.link.connections_total.fetch_add(1, Ordering::Relaxed);
        let target = self.take_aim();
        let open = self.link.connections_open.load(Ordering::Relaxed);
        let cap = self.link.config.max_connections_per_vm;
        let admitted = admit(target, open, cap).and_then(|target| {
            let session = OpenSession::new(&self.link).ok_or(Refusal::TooManyOfAllMachines)?;
            Ok((target, session))
        });
        match admitted {
            Ok((target, session)) => {
                #[cfg(not(target_os = "linux"))]
                inherit_options(&client, &self.link.config);
                self.sessions.spawn(session::run(client, target, session));
            }
            Err(refusal) => {
                self.link.count_refused();
                // Makes the close that follows a reset.
                let _ = client.set_zero_linger();
                self.warn_of(refusal);
            }
        }
    }

    fn warn_of(&mut self, refusal: Refusal) {
        let (port, config) = (self.link.port, &self.link.config);
        // Of a machine that does not run whoever stopped it knows.
        if refusal == Refusal::MachineNotRunning {
            return;
        }
        let Some(unmentioned) = self.warned_cap.pass(Instant::now()) else { return };
        match refusal {
            Refusal::TooManyOfAllMachines => tracing::warn!(
                port,
                cap = config.max_connections,
                unmentioned,
                "connection refused: all machines together have as many as the limit of open files allows; raise that (LimitNOFILE= in a systemd unit, ulimit -Hn)"
            ),
            _ => tracing::warn!(
                port,
                cap = config.max_connections_per_vm,
                unmentioned,
                "connection refused: the machine behind this port has as many as it may have"
            ),
        }
    }

    fn accept_failed(&mut self, error: &io::Error) {
        if concerns_one_connection(error) {
            return;
        }
        // Failing again at once would spin: what is short now is short in a microsecond too.
        self.accept_after = Some(Instant::now() + SHORTAGE_PAUSE);
        if let Some(unmentioned) = self.warned_shortage.pass(Instant::now()) {
            tracing::warn!(
                port = self.link.port,
                %error,
                unmentioned,
                "cannot accept connections, trying on; if file descriptors have run out, raise the limit"
            );
        }
    }

    /// Lets go of sessions that have ended by themselves.
    fn reap(&mut self) {
        while let Some(ended) = self.sessions.try_join_next() {
            if let Err(error) = ended {
                self.session_failed(&error);
            }
        }
    }

    fn session_failed(&self, error: &JoinError) {
        if error.is_panic() {
            tracing::error!(port = self.link.port, %error, "a session failed by a fault of the proxy");
        }
    }
}

/// Whether only the connection that was to be accepted has failed, and the next may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// On Linux an accepted connection has the options of its listener.
#[cfg(not(target_os = "linux"))]
fn inherit_options(client: &TcpStream, config: &ProxyConfig) {
    let outcome = client
        .set_nodelay(true)
        .and_then(|()| super::socket::set_keep_alive(client, config.keep_alive));
    if let Err(error) = outcome {
        // The connection may be gone already; if not, it works without.
        tracing::debug!(%error, "cannot set the options of an accepted connection");
    }
}

/// Lets one warning through per interval and counts the others.
#[derive(Default)]
struct Throttle {
    last: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// `Some(n)` lets the warning through; `n` were held back since the last one.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < WARNING_INTERVAL) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_let_in_below_the_cap_and_while_the_machine_runs() {
        let target = SocketAddr::from(([127, 0, 0, 1], 22));
        assert_eq!(admit(Some(target), 0, 1), Ok(target));
        assert_eq!(admit(Some(target), 63, 64), Ok(target));
        assert_eq!(admit(Some(target), 64, 64), Err(Refusal::TooManyConnections));
        assert_eq!(admit(Some(target), 0, 0), Err(Refusal::TooManyConnections));
        assert_eq!(admit(None, 0, 64), Err(Refusal::MachineNotRunning));
        assert_eq!(admit(None, 64, 64), Err(Refusal::MachineNotRunning));
    }

    #[test]
    fn repeated_warnings_come_once_a_minute_and_say_how_many_were_left_out() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        assert_eq!(throttle.pass(start), Some(0));
        for second in 0..7 {
            assert_eq!(throttle.pass(start + Duration::from_secs(second)), None);
        }
        assert_eq!(throttle.pass(start + WARNING_INTERVAL), Some(7));
        assert_eq!(throttle.pass(start + WARNING_INTERVAL), None);
    }

    #[test]
    fn a_shortage_of_descriptors_does_not_pass_for_the_failure_of_one_connection() {
        let shortage = io::Error::from(rustix::io::Errno::MFILE);
        assert!(!concerns_one_connection(&shortage));
        let aborted = io::Error::from(rustix::io::Errno::CONNABORTED);
        assert!(concerns_one_connection(&aborted));
    }
}
