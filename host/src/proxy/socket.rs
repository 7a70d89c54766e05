//! One end of a session: a connected, non-blocking TCP socket and what the relay needs of it.
//!
//! Two things live here because they must not be done anywhere else. First, the dealings with the
//! runtime's readiness, which is edge-triggered: reading, writing, and watching a socket for the
//! peer's reset while there is nothing to write to it. Second, how a socket ends: one that was not
//! released with [`Socket::ended_well`] is reset when it is dropped, so an aborted session can
//! never look like a finished one.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::KeepAlive;

pub(super) struct Socket {
    stream: TcpStream,
    /// The last write found no room, and no sign of room has been seen since.
    write_blocked: bool,
    ended_well: bool,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Socket {
        Socket { stream, write_blocked: false, ended_well: false }
    }

    /// Reads into `buffer`; `Ok(0)` is the end of the peer's stream.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut read = 0;
        loop {
            std::task::ready!(self.stream.poll_read_ready(cx))?;
            let outcome = self.stream.try_io(Interest::READABLE, || {
                read = rustix::io::read(&self.stream, &mut *buffer)?;
                // A short read emptied the socket. Saying "would block" here clears the readiness
                // this read was based on, which saves the system call that would find that out.
                if 0 < read && read < buffer.len() {
                    return Err(Errno::AGAIN.into());
                }
                Ok(())
            });
            match outcome {
                Ok(()) => return Poll::Ready(Ok(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && read > 0 => {
                    return Poll::Ready(Ok(read));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes what fits of `bytes`, which must not be empty.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_out(cx, |socket| Ok(rustix::io::write(socket, bytes)?))
    }

    /// Takes bytes from the socket with `take`, which is called when the socket may have some and
    /// says `WouldBlock` only when the socket is empty.
    #[cfg(target_os = "linux")]
    pub(super) fn poll_in(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_io(Interest::READABLE, || take(self.stream.as_fd())) {
                Err(error) if is_transient(&error) => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    /// Gives bytes to the socket with `give`, which says `WouldBlock` only when the socket is full.
    ///
    /// [`Socket::poll_reset`] takes the write readiness away from a socket that has room, so its
    /// absence means nothing until a write has found the socket full.
    pub(super) fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        mut give: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let outcome = match self.stream.poll_write_ready(cx)? {
                Poll::Ready(()) => {
                    self.stream.try_io(Interest::WRITABLE, || give(self.stream.as_fd()))
                }
                Poll::Pending if self.write_blocked => return Poll::Pending,
                Poll::Pending => give(self.stream.as_fd()),
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.write_blocked = true;
                }
                Err(error) if is_transient(&error) => {}
                outcome => {
                    self.write_blocked = false;
                    return Poll::Ready(outcome);
                }
            }
        }
    }

    /// Ready once the connection has failed: reset by the peer, or given up by keep-alive.
    ///
    /// To be called only while nothing waits to be written to this socket; a write that waits
    /// learns of the failure itself. Reading is no substitute: it stops where the other end takes
    /// no more, and after the end of the peer's stream.
    pub(super) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        // The only wake-up that comes with every event is the one for writing. A socket that idles
        // is writable all the time, so take that readiness away; the next event brings it back.
        while let Poll::Ready(outcome) = self.stream.poll_write_ready(cx) {
            if outcome.is_err() {
                return Poll::Ready(());
            }
            let ready = self.readiness(Interest::WRITABLE | Interest::ERROR);
            if ready.is_error() {
                return Poll::Ready(());
            }
            if ready.is_write_closed() {
                // Both ends have sent their last byte: there is nothing left to be reset.
                return Poll::Pending;
            }
            let _ = self.stream.try_io(Interest::WRITABLE, || {
                Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock))
            });
        }
        Poll::Pending
    }

    /// Whether the peer ended its stream without having sent a byte of it that is still unread.
    pub(super) fn ended_without_a_byte(&self) -> bool {
        let mut byte = [0_u8; 1];
        matches!(rustix::net::recv(&self.stream, &mut byte, RecvFlags::PEEK), Ok((_, 0)))
    }

    /// Tells the peer that no more bytes will come; it may go on sending.
    pub(super) fn end_writes(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write)?)
    }

    /// Both streams came to their end, so closing this socket is a clean end and not a reset.
    pub(super) fn ended_well(&mut self) {
        self.ended_well = true;
    }

    /// What is known of the socket now, without waiting.
    fn readiness(&self, interest: Interest) -> Ready {
        let mut cx = Context::from_waker(Waker::noop());
        match pin!(self.stream.ready(interest)).poll(&mut cx) {
            Poll::Ready(Ok(ready)) => ready,
            Poll::Ready(Err(_)) => Ready::ERROR,
            Poll::Pending => Ready::EMPTY,
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.ended_well {
            // Fails only on a socket that is past having anything to reset.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// A connection on its way to a target.
pub(super) struct Connecting {
    socket: Socket,
    target: SocketAddr,
}

impl Connecting {
    pub(super) fn start(target: SocketAddr, keep_alive: KeepAlive) -> io::Result<Connecting> {
        let fd = socket_towards(target, keep_alive)?;
        match rustix::net::connect(&fd, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from_std(std::net::TcpStream::from(fd))?;
        Ok(Connecting { socket: Socket::new(stream), target })
    }

    /// The outcome, if it is already known: on one machine it usually is at once.
    pub(super) fn outcome(&self) -> Poll<io::Result<()>> {
        match rustix::net::connect(&self.socket.stream, &self.target) {
            Ok(()) | Err(Errno::ISCONN) => Poll::Ready(self.not_itself()),
            Err(Errno::ALREADY | Errno::INPROGRESS | Errno::INTR) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    pub(super) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.socket.stream.poll_write_ready(cx))?;
            let outcome = self.socket.stream.try_io(Interest::WRITABLE, || match self.outcome() {
                Poll::Ready(outcome) => outcome,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            });
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// A connection to a port of this machine that nobody listens on can meet itself, when the
    /// kernel happens to choose that very port for the near end.
    fn not_itself(&self) -> io::Result<()> {
        if self.target.ip().is_loopback() && self.socket.stream.local_addr()? == self.target {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(())
    }
}

/// A socket for a connection to `target`, with its options and nothing else.
pub(super) fn socket_towards(target: SocketAddr, keep_alive: KeepAlive) -> io::Result<OwnedFd> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let fd = stream_socket(family)?;
    sockopt::set_tcp_nodelay(&fd, true)?;
    // Nobody on this machine vanishes: its kernel ends the connections of a process that does.
    if !target.ip().is_loopback() {
        set_keep_alive(&fd, keep_alive)?;
    }
    Ok(fd)
}

#[cfg(target_os = "linux")]
fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

#[cfg(not(target_os = "linux"))]
fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Probes an idle connection, so that one whose peer has vanished comes to an end.
pub(super) fn set_keep_alive(socket: &impl AsFd, keep_alive: KeepAlive) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, keep_alive.idle)?;
    sockopt::set_tcp_keepintvl(socket, keep_alive.interval)?;
    sockopt::set_tcp_keepcnt(socket, keep_alive.probes)?;
    Ok(())
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
