//! A minimal loop that splices: what it takes to move bytes between connections without copying them, and nothing else.
//!
//! It runs under the relays' conditions: as many threads as there are cores, and turns, so that no connection keeps others waiting.
//! With two blocking threads for each connection instead, it would be charged less and cost more: who runs when decides
//! whether the loop or its ends pay for a byte's way through the kernel.

use std::{
    collections::{BTreeSet, HashMap},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use golem_provider_benches::processes::cores;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

/// What a pipe holds, and what is moved at most at once.
const PIPE_BYTES: usize = 1 << 20;

/// What a connection moves one way before others have their turn; as in the relay.
const TURN_BYTES: usize = 4 << 20;

/// Events that are taken at once.
const EVENTS: usize = 64;

pub fn run(port: u16, target: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let workers = (0..cores()).map(|_| Worker::start()).collect::<Result<Vec<_>>>()?;
    for (number, worker) in (0..).zip(workers.iter().cycle()) {
        let (client, _) = listener.accept()?;
        worker.take(number, Connection::new(client, TcpStream::connect(target)?)?)?;
    }
    Ok(())
}

/// A thread and its connections.
struct Worker {
    epoll: OwnedFd,
    /// Absent while it is their turn.
    connections: Mutex<HashMap<u64, Connection>>,
}

impl Worker {
    /// Its thread ends with the program.
    fn start() -> Result<Arc<Worker>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let worker = Arc::new(Worker { epoll, connections: Mutex::default() });
        let its_own = Arc::clone(&worker);
        std::thread::spawn(move || {
            if let Err(error) = its_own.serve() {
                eprintln!("the splice loop has ended: {error}");
                std::process::exit(1);
            }
        });
        Ok(worker)
    }

    fn take(&self, number: u64, connection: Connection) -> Result<()> {
        use epoll::EventFlags;
        // Under the lock, so that nobody hears of a connection that is not here yet.
        let mut connections = self.connections();
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        for socket in [&connection.client, &connection.machine] {
            epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number), interest)?;
        }
        connections.insert(number, connection);
        Ok(())
    }

    fn serve(&self) -> Result<()> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = Vec::with_capacity(EVENTS);
        let mut out_of_turn = BTreeSet::new();
        loop {
            let patience = (!out_of_turn.is_empty()).then_some(&at_once);
            epoll::wait(&self.epoll, spare_capacity(&mut events), patience)?;
            let mut ready = std::mem::take(&mut out_of_turn);
            ready.extend(events.drain(..).map(|event: epoll::Event| event.data.u64()));
            for number in ready {
                let Some(mut connection) = self.connections().remove(&number) else { continue };
                match connection.advance() {
                    Ok((Progress::Ended, Progress::Ended)) | Err(_) => continue,
                    Ok((Progress::OutOfTurn, _) | (_, Progress::OutOfTurn)) => {
                        out_of_turn.insert(number);
                    }
                    Ok(_) => {}
                }
                self.connections().insert(number, connection);
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Connection {
    client: TcpStream,
    machine: TcpStream,
    up: Way,
    down: Way,
}

impl Connection {
    fn new(client: TcpStream, machine: TcpStream) -> Result<Connection> {
        for socket in [&client, &machine] {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
        }
        Ok(Connection { client, machine, up: Way::new()?, down: Way::new()? })
    }

    fn advance(&mut self) -> Result<(Progress, Progress)> {
        let up = self.up.advance(&self.client, &self.machine)?;
        Ok((up, self.down.advance(&self.machine, &self.client)?))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    OutOfTurn,
    Ended,
}

/// One direction of a connection.
struct Way {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe.
    held: usize,
    ended: bool,
}

impl Way {
    fn new() -> Result<Way> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&write, PIPE_BYTES)?;
        Ok(Way { read, write, held: 0, ended: false })
    }

    fn advance(&mut self, from: &TcpStream, to: &TcpStream) -> Result<Progress> {
        const HOW: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
        let mut moved = 0;
        while !self.ended {
            while self.held > 0 {
                match splice(&self.read, None, to, None, self.held, HOW) {
                    Ok(bytes) => self.held -= bytes,
                    Err(Errno::AGAIN) => return Ok(Progress::Waiting),
                    Err(error) => return Err(error.into()),
                }
            }
            if moved >= TURN_BYTES {
                return Ok(Progress::OutOfTurn);
            }
            match splice(from, None, &self.write, None, PIPE_BYTES, HOW) {
                Ok(0) => {
                    to.shutdown(Shutdown::Write)?;
                    self.ended = true;
                }
                Ok(bytes) => {
                    self.held = bytes;
                    moved += bytes;
                }
                Err(Errno::AGAIN) => return Ok(Progress::Waiting),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Progress::Ended)
    }
}
