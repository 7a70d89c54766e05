//! The large pipes that bulk streams are spliced through, and the pool that bounds their number.
//!
//! A pipe is lent to one direction of a session, only while bytes are moving through it: the relay
//! gives it back whenever its source runs dry. Pipes come back empty or not at all, so any of them
//! serves anybody. The kernel limits the pipe pages of a user (16,384 pages, that is 64 pipes of
//! this size, unless privileged), which is why there is a bound and why making a pipe may be
//! refused; whoever gets none copies instead. Other systems than Linux never get one.

#[cfg(target_os = "linux")]
pub(super) use linux::{Pipe, PipePool};
#[cfg(not(target_os = "linux"))]
pub(super) use none::{Pipe, PipePool};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::task::{Context, Poll, ready};
    use std::time::{Duration, Instant};

    use rustix::pipe::{PipeFlags, SpliceFlags};

    use crate::proxy::socket::Socket;

    /// How much one pipe takes; the most a system lets an unprivileged process ask for.
    const PIPE_BYTES: usize = 1024 * 1024;
    /// A pipe smaller than this is no better than copying.
    const WORTHWHILE_PIPE_BYTES: usize = 256 * 1024;
    /// After the kernel refused a pipe, it is not asked again for this long.
    const REFUSAL_PAUSE: Duration = Duration::from_secs(5);

    pub(in crate::proxy) struct Pipe {
        read: OwnedFd,
        write: OwnedFd,
        bytes: usize,
    }

    impl Pipe {
        fn make() -> io::Result<Pipe> {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            let mut size = PIPE_BYTES;
            while let Err(error) = rustix::pipe::fcntl_setpipe_size(&write, size) {
                size /= 2;
                if size < WORTHWHILE_PIPE_BYTES {
                    return Err(error.into());
                }
            }
            Ok(Pipe { read, write, bytes: 0 })
        }

        pub(in crate::proxy) fn is_empty(&self) -> bool {
            self.bytes == 0
        }

        /// Moves bytes from the socket into the pipe, which must be empty: only then does "would
        /// block" speak of the socket. `Ok(0)` is the end of the socket's stream.
        pub(in crate::proxy) fn poll_fill(
            &mut self,
            from: &Socket,
            cx: &mut Context<'_>,
        ) -> Poll<io::Result<usize>> {
            debug_assert!(self.is_empty());
            let moved = ready!(from.poll_in(cx, |socket| {
                Ok(rustix::pipe::splice(
                    socket,
                    None,
                    &self.write,
                    None,
                    PIPE_BYTES,
                    SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
                )?)
            }))?;
            self.bytes = moved;
            Poll::Ready(Ok(moved))
        }

        /// Moves bytes from the pipe, which must not be empty, into the socket.
        pub(in crate::proxy) fn poll_drain(
            &mut self,
            to: &mut Socket,
            cx: &mut Context<'_>,
        ) -> Poll<io::Result<usize>> {
            let moved = ready!(to.poll_out(cx, |socket| {
                Ok(rustix::pipe::splice(
                    &self.read,
                    None,
                    socket,
                    None,
                    self.bytes,
                    SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
                )?)
            }))?;
            self.bytes -= moved;
            Poll::Ready(Ok(moved))
        }
    }

    pub(in crate::proxy) struct PipePool {
        limit: usize,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        idle: Vec<Pipe>,
        lent: usize,
        refused_until: Option<Instant>,
    }

    impl PipePool {
        pub(in crate::proxy) fn new(limit: usize) -> PipePool {
            PipePool { limit, state: Mutex::default() }
        }

        /// An empty pipe, unless all of them are in use or the kernel allows no more.
        pub(in crate::proxy) fn take(&self) -> Option<Pipe> {
            {
                let mut state = self.state();
                if let Some(pipe) = state.idle.pop() {
                    state.lent += 1;
                    return Some(pipe);
                }
                if state.lent >= self.limit {
                    return None;
                }
                if let Some(until) = state.refused_until {
                    if Instant::now() < until {
                        return None;
                    }
                    state.refused_until = None;
                }
                state.lent += 1;
            }
            match Pipe::make() {
                Ok(pipe) => Some(pipe),
                Err(error) => {
                    tracing::debug!(%error, "the kernel allows no further large pipe; copying instead");
                    self.refused();
                    None
                }
            }
        }

        /// Takes a pipe back; one that still holds bytes is closed.
        pub(in crate::proxy) fn put(&self, pipe: Pipe) {
            let mut state = self.state();
            state.lent -= 1;
            if pipe.is_empty() {
                state.idle.push(pipe);
            }
        }

        /// A pipe that was asked for is of no use here; asks no more for a while.
        fn refused(&self) {
            let mut state = self.state();
            state.lent -= 1;
            state.refused_until = Some(Instant::now() + REFUSAL_PAUSE);
        }

        #[cfg(test)]
        pub(in crate::proxy) fn lent(&self) -> usize {
            self.state().lent
        }

        fn state(&self) -> MutexGuard<'_, State> {
            // Every change is complete before anything can panic.
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use std::io;
    use std::task::{Context, Poll};

    use crate::proxy::socket::Socket;

    pub(in crate::proxy) enum Pipe {}

    impl Pipe {
        pub(in crate::proxy) fn is_empty(&self) -> bool {
            match *self {}
        }

        pub(in crate::proxy) fn poll_fill(
            &mut self,
            _from: &Socket,
            _cx: &mut Context<'_>,
        ) -> Poll<io::Result<usize>> {
            match *self {}
        }

        pub(in crate::proxy) fn poll_drain(
            &mut self,
            _to: &mut Socket,
            _cx: &mut Context<'_>,
        ) -> Poll<io::Result<usize>> {
            match *self {}
        }
    }

    pub(in crate::proxy) struct PipePool;

    impl PipePool {
        pub(in crate::proxy) fn new(_limit: usize) -> PipePool {
            PipePool
        }

        pub(in crate::proxy) fn take(&self) -> Option<Pipe> {
            None
        }

        pub(in crate::proxy) fn put(&self, pipe: Pipe) {
            match pipe {}
        }
    }
}
