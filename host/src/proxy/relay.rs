//! The relay between the two sockets of a session: one future, two directions.
//!
//! A direction reads into a buffer that belongs to the thread and is used only within one poll,
//! and writes from there; what the other end does not take at once is the only thing kept (`buffer`
//! says how). A direction that moves bulk borrows a large pipe instead and leaves the bytes in the
//! kernel. It never takes more before everything taken is delivered, which bounds the memory: one
//! buffer or one pipe per direction.
//!
//! The end of one stream is passed on after its last byte, and the other direction goes on. Any
//! failure ends the session; the sockets then reset what they are connected to.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use super::buffer::{self, Rest};
use super::listener::Link;
use super::pace::Pace;
use super::pipes::{Pipe, PipePool};
use super::socket::Socket;

/// What one direction moves before it lets other sessions of the same thread have their turn.
const TURN_BYTES: usize = 4 * 1024 * 1024;

/// Moves bytes both ways until both streams have ended (`Ok`) or one end has failed.
pub(super) struct Relay {
    client: Socket,
    vm: Socket,
    to_vm: Direction,
    to_client: Direction,
    link: Arc<Link>,
}

impl Relay {
    pub(super) fn new(client: Socket, vm: Socket, link: Arc<Link>) -> Relay {
        Relay { client, vm, to_vm: Direction::default(), to_client: Direction::default(), link }
    }
}

impl Future for Relay {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let relay = self.get_mut();
        let pipes = relay.link.pipes();
        // Both directions move what they can before a failure of either ends the session: what
        // a peer sent before it reset the connection is still worth delivering.
        let to_vm = relay.to_vm.advance(
            &mut relay.client,
            &mut relay.vm,
            pipes,
            relay.link.bytes_to_vm(),
            cx,
        );
        let to_client = relay.to_client.advance(
            &mut relay.vm,
            &mut relay.client,
            pipes,
            relay.link.bytes_from_vm(),
            cx,
        );
        let (to_vm, to_client) = (to_vm?, to_client?);

        if to_vm == Progress::Ended && to_client == Progress::Ended {
            // Closing passes on what has not been passed on yet.
            relay.client.ended_well();
            relay.vm.ended_well();
            return Poll::Ready(Ok(()));
        }
        relay.to_vm.pass_on_end(&relay.vm, to_vm)?;
        relay.to_client.pass_on_end(&relay.client, to_client)?;
        if to_vm == Progress::OutOfTurn || to_client == Progress::OutOfTurn {
            // Comes back after the runtime has looked for other events, unlike waking oneself.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        let reset = (relay.to_vm.has_delivered_all() && relay.vm.poll_reset(cx).is_ready())
            || (relay.to_client.has_delivered_all() && relay.client.poll_reset(cx).is_ready());
        if reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Pending
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.to_vm.give_back_pipe(self.link.pipes());
        self.to_client.give_back_pipe(self.link.pipes());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing to take, or no room to deliver; the sockets will wake the task.
    Waiting,
    /// There is more to do at once, but others have a turn first.
    OutOfTurn,
    /// Everything is delivered; what is left is to pass on the end.
    Ended,
}

/// Bytes that were taken from the source and not yet delivered.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Bytes(Rest),
    /// May be empty, but only while [`Direction::advance`] runs.
    Pipe(Pipe),
}

#[derive(Default)]
struct Direction {
    held: Held,
    pace: Pace,
    source_ended: bool,
    end_passed_on: bool,
}

impl Direction {
    fn advance(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        pipes: &PipePool,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> io::Result<Progress> {
        let mut taken = 0;
        let progress = loop {
            if !self.has_delivered_all() {
                match self.deliver(to, cx)? {
                    Poll::Ready(bytes) => {
                        delivered.fetch_add(bytes as u64, Ordering::Relaxed);
                        continue;
                    }
                    Poll::Pending => break Progress::Waiting,
                }
            }
            if self.source_ended {
                break Progress::Ended;
            }
            if taken >= TURN_BYTES {
                break Progress::OutOfTurn;
            }
            match self.take(from, to, pipes, delivered, cx)? {
                Poll::Ready(0) => self.source_ended = true,
                Poll::Ready(bytes) => {
                    taken += bytes;
                    self.pace.took(bytes);
                }
                Poll::Pending => {
                    self.pace.ran_dry();
                    break Progress::Waiting;
                }
            }
        };
        if self.has_delivered_all() {
            self.give_back_pipe(pipes);
        }
        Ok(progress)
    }

    fn pass_on_end(&mut self, to: &Socket, progress: Progress) -> io::Result<()> {
        if progress == Progress::Ended && !self.end_passed_on {
            to.end_writes()?;
            self.end_passed_on = true;
        }
        Ok(())
    }

    fn has_delivered_all(&self) -> bool {
        match &self.held {
            Held::Nothing => true,
            Held::Bytes(_) => false,
            Held::Pipe(pipe) => pipe.is_empty(),
        }
    }

    /// Delivers some of what is held, which must be something.
    fn deliver(&mut self, to: &mut Socket, cx: &mut Context<'_>) -> io::Result<Poll<usize>> {
        let poll = match &mut self.held {
            Held::Nothing => return Ok(Poll::Ready(0)),
            Held::Bytes(rest) => {
                let poll = to.poll_write(cx, rest.bytes())?;
                if let Poll::Ready(written) = poll
                    && rest.delivered(written)
                {
                    self.held = Held::Nothing;
                }
                poll
            }
            Held::Pipe(pipe) => pipe.poll_drain(to, cx)?,
        };
        if poll == Poll::Ready(0) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(poll)
    }

    /// Takes bytes from the source; nothing is held when this is called.
    fn take(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        pipes: &PipePool,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<usize>> {
        if self.pace.is_bulk() {
            if let Held::Nothing = self.held
                && let Some(pipe) = pipes.take()
            {
                self.held = Held::Pipe(pipe);
            }
            if let Held::Pipe(pipe) = &mut self.held {
                return Ok(pipe.poll_fill(from, cx)?);
            }
        }
        self.copy(from, to, delivered, cx)
    }

    /// Reads once, and writes as much of it as the other end takes.
    fn copy(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        delivered: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> io::Result<Poll<usize>> {
        buffer::with(|buffer| {
            let Poll::Ready(read) = from.poll_read(cx, buffer)? else {
                return Ok(Poll::Pending);
            };
            let mut written = 0;
            while written < read {
                match to.poll_write(cx, &buffer[written..read])? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(bytes) => {
                        delivered.fetch_add(bytes as u64, Ordering::Relaxed);
                        written += bytes;
                    }
                    Poll::Pending => {
                        self.held = Held::Bytes(Rest::keep(buffer, written..read));
                        break;
                    }
                }
            }
            Ok(Poll::Ready(read))
        })
    }

    fn give_back_pipe(&mut self, pipes: &PipePool) {
        match std::mem::take(&mut self.held) {
            Held::Pipe(pipe) => pipes.put(pipe),
            other => self.held = other,
        }
    }
}
