//! What the relays have to do, and what it costs them.

use std::{
    fmt,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use golem_provider_benches::{processes::cpu_seconds_of, rows::median};

use super::relays::Relay;

/// How long any of it may wait for a byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is written and read at once.
const CHUNK: usize = 256 << 10;

/// How many clients open connections at the same time.
const CLIENTS: usize = 4;

/// What a new connection is used for: a few bytes and their echo.
const GREETING: [u8; 8] = *b"greeting";

/// After connections were opened or closed, until what they cost has been paid.
const SETTLE: Duration = Duration::from_millis(300);

/// The way of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the machine.
    Up,
    Down,
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Direction::Up => "up",
            Direction::Down => "down",
        })
    }
}

/// What is behind the relays: a listener whose connections the work takes itself, and one that answers with what it gets.
pub struct Machine {
    bulk: TcpListener,
    echo: SocketAddr,
}

impl Machine {
    pub fn start() -> Result<Machine> {
        let echo = listen()?;
        let address = echo.local_addr()?;
        echo.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Ends with this program.
        std::thread::Builder::new().name("echo".into()).spawn(move || {
            if let Err(error) = runtime.block_on(echo_all(echo)) {
                eprintln!("the machine behind the relays has ended: {error}");
                std::process::exit(1);
            }
        })?;
        Ok(Machine { bulk: listen()?, echo: address })
    }

    pub fn bulk_address(&self) -> Result<SocketAddr> {
        Ok(self.bulk.local_addr()?)
    }

    pub fn echo_address(&self) -> Result<SocketAddr> {
        Ok(self.echo)
    }
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")
}

async fn echo_all(listener: TcpListener) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = [0; 256];
            while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..bytes]).await.is_err() {
                    break;
                }
            }
        });
    }
}

pub struct Bulk {
    /// Of the relay.
    pub cpu_seconds_per_gb: f64,
    /// Of the relay, the client and the machine.
    pub all_cpu_seconds_per_gb: f64,
    pub gb_per_second: f64,
}

/// Moves so many gigabytes over so many connections at once.
pub fn bulk(
    machine: &Machine,
    relay: &Relay,
    direction: Direction,
    streams: usize,
    gigabytes: f64,
) -> Result<Bulk> {
    let each = (gigabytes * 1e9) as usize / streams;
    let mut pairs = Vec::new();
    for _ in 0..streams {
        let client = TcpStream::connect(relay.address())?;
        // So that what is accepted next belongs to this client; it costs the relay nothing worth counting.
        let (behind, _) = machine.bulk.accept()?;
        for stream in [&client, &behind] {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
        }
        pairs.push(match direction {
            Direction::Up => (client, behind),
            Direction::Down => (behind, client),
        });
    }
    let (before, before_here) = (relay.process.cpu_seconds()?, cpu_seconds_of(std::process::id())?);
    let begun = Instant::now();
    // The connections are kept until the cost is known: their ends are not what is measured.
    let mut ends: Vec<JoinHandle<Result<TcpStream>>> = Vec::new();
    for (source, sink) in pairs {
        ends.push(std::thread::spawn(move || send(source, each)));
        ends.push(std::thread::spawn(move || receive(sink, each)));
    }
    let ends: Result<Vec<TcpStream>> =
        ends.into_iter().map(|end| end.join().map_err(|_| anyhow!("a thread panicked"))?).collect();
    let ends = ends?;
    let seconds = begun.elapsed().as_secs_f64();
    let used = relay.process.cpu_seconds()? - before;
    let used_here = cpu_seconds_of(std::process::id())? - before_here;
    drop(ends);
    let gigabytes = (each * streams) as f64 / 1e9;
    Ok(Bulk {
        cpu_seconds_per_gb: used / gigabytes,
        all_cpu_seconds_per_gb: (used + used_here) / gigabytes,
        gb_per_second: gigabytes / seconds,
    })
}

fn send(mut stream: TcpStream, bytes: usize) -> Result<TcpStream> {
    let chunk = vec![1; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let next = left.min(CHUNK);
        stream.write_all(&chunk[..next]).context("sending")?;
        left -= next;
    }
    Ok(stream)
}

fn receive(mut stream: TcpStream, bytes: usize) -> Result<TcpStream> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut chunk).context("receiving")? {
            0 => bail!("{left} bytes of {bytes} were lost"),
            read => left = left.checked_sub(read).context("more bytes came than were sent")?,
        }
    }
    Ok(stream)
}

pub struct Connections {
    pub per_second: f64,
    pub cpu_seconds_per_10_000: f64,
}

/// Opens connections one after the other, from several clients; each is used once and ended.
pub fn connections(relay: &Relay, count: usize) -> Result<Connections> {
    let address = relay.address();
    let before = relay.process.cpu_seconds()?;
    let begun = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || -> Result<()> {
                for _ in 0..count / CLIENTS {
                    let mut stream = greet(address)?;
                    stream.shutdown(Shutdown::Write)?;
                    if stream.read(&mut [0; 1])? != 0 {
                        bail!("bytes came that nobody sent");
                    }
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().map_err(|_| anyhow!("a client panicked"))??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let used = relay.process.cpu_seconds()? - before;
    let count = count as f64;
    Ok(Connections { per_second: count / seconds, cpu_seconds_per_10_000: used / count * 1e4 })
}

/// A connection over which a few bytes went there and back.
fn greet(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&GREETING)?;
    let mut echo = [0; GREETING.len()];
    stream.read_exact(&mut echo).context("waiting for an echo")?;
    if echo != GREETING {
        bail!("the echo is another: {echo:?}");
    }
    Ok(stream)
}

/// The median time of 64 bytes there and back, over one connection, in microseconds.
pub fn round_trip_us(address: SocketAddr, count: usize) -> Result<f64> {
    let mut stream = greet(address)?;
    let mut bytes = [7; 64];
    let mut micros = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&micros))
}

/// The memory that each of a thousand connections takes which were used once and then left alone.
pub fn idle_kib(relay: &Relay) -> Result<f64> {
    const FIRST: usize = 20;
    const COUNT: usize = 1_000;
    // What the first few of them bring about is not their own.
    let first: Result<Vec<_>> = (0..FIRST).map(|_| greet(relay.address())).collect();
    let first = first?;
    std::thread::sleep(SETTLE);
    let before = relay.process.resident_kib()?;
    let more: Result<Vec<_>> = (0..COUNT).map(|_| greet(relay.address())).collect();
    let more = more?;
    std::thread::sleep(SETTLE);
    let after = relay.process.resident_kib()?;
    drop((first, more));
    Ok((after - before) / COUNT as f64)
}
