//! Connections: takes them, bounds how many there are and how slow they may be, and ends them in order.
//!
//! A client has [`Server::patience`] for its next step: for its first whole request head, and after each answer for
//! taking it and sending the next head. Whoever needs longer, be it silent, slow or not reading, is let go, so none of them
//! can hold the provider. Past [`Server::max_connections`] the connection that has been idle for longest makes room for
//! a further one, so that a crowd of silent ones keeps nobody out; where all are being answered, it waits in the kernel's
//! queue instead of being refused. Bodies have their own deadline where they are read (`limits`). A connection that has not said anything
//! yet holds no buffers.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// What is asked through connections.
pub trait Answer: Clone + Send + Sync + 'static {
    /// The answer to a request that came over a connection with `peer`.
    fn answer(&self, peer: SocketAddr, request: Request) -> impl Future<Output = Response> + Send;
}

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Server {
    /// At the same time.
    pub max_connections: usize,
    /// How long a connection may take for the head of its first request, and from one answer to the next head.
    pub patience: Duration,
    /// How long requests under way may go on once the server has been told to end.
    pub grace: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            max_connections: 10_240,
            patience: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// Between two tries to make room for a connection, where all those there are were being answered.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// The longest request head that is read at all, in bytes; hyper answers 431 beyond it. `limits` refuses shorter ones,
/// with an explanation.
const MAX_HEAD: usize = 64 * 1024;

/// After accepting failed, as it does when descriptors run out, until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client may go on sending after its connection's last answer, in bytes, and for how long. Closing at once would
/// make the kernel take back an answer that the client has not read yet.
const LINGER_BYTES: u64 = 256 * 1024;
const LINGER: Duration = Duration::from_secs(2);

impl Server {
    /// Serves until `shutdown` resolves, then lets requests under way end within the grace time. When it returns, every
    /// connection is closed.
    pub async fn serve(
        self,
        listener: TcpListener,
        answer: impl Answer,
        shutdown: impl Future<Output = ()>,
    ) {
        let hall = Arc::new(Hall::new(self.max_connections));
        let mut http = http1::Builder::new();
        // The deadline for heads is kept here: hyper's own costs each request a timer.
        http.header_read_timeout(None).max_buf_size(MAX_HEAD);
        let closing = CancellationToken::new();
        // Ends with this function, also when that is dropped.
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = accept(&listener) => accepted,
            };
            let place = tokio::select! {
                biased;
                () = &mut shutdown => break,
                place = hall.place(&closing) => place,
            };
            let (http, answer) = (http.clone(), answer.clone());
            connections.spawn(async move {
                hold(&http, stream, peer, &answer, self.patience, &place.seat).await;
                drop(place);
            });
        }
        drop(listener);
        closing.cancel();
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, all_ended).await.is_err() {
            tracing::warn!(grace = ?self.grace, "requests were still under way at the end and were cut off");
            connections.shutdown().await;
        }
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small; waiting to fill a segment would delay each of them. Failing costs only that.
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be taken; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn hold(
    http: &http1::Builder,
    mut stream: TcpStream,
    peer: SocketAddr,
    answer: &impl Answer,
    patience: Duration,
    seat: &Seat,
) {
    let turn = &seat.turn;
    let mut alarm = pin!(tokio::time::sleep(patience));
    let mut closed = pin!(seat.closing.cancelled());
    // Merely waiting for the socket to be readable would end at once: a new one counts as readable until it was asked.
    let mut byte = [0];
    tokio::select! {
        first = stream.peek(&mut byte) => if !matches!(first, Ok(1..)) { return },
        () = &mut alarm => return,
        () = &mut closed => return,
    }
    let ended = {
        let service = service_fn(|request: Request<Incoming>| {
            turn.takes_provider();
            let answered = answer.answer(peer, request.map(Body::new));
            async move {
                let response = answered.await;
                turn.takes_client();
                Ok::<_, Infallible>(response)
            }
        });
        // On the heap, so that connections that have not said anything yet stay small.
        let mut connection = Box::pin(http.serve_connection(TokioIo::new(&mut stream), service));
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut connection => break ended,
                () = &mut alarm => match turn.deadline(patience) {
                    Some(deadline) if deadline <= Instant::now() => {
                        tracing::debug!(%peer, "a client took too long and was let go");
                        return;
                    }
                    deadline => {
                        alarm.as_mut().reset(deadline.unwrap_or_else(|| Instant::now() + patience));
                    }
                },
                () = &mut closed, if !is_closing => {
                    if seat.is_wanted.load(Ordering::Relaxed) && turn.is_the_clients() {
                        return;
                    }
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
    let _ = tokio::time::timeout(LINGER, linger(&mut stream)).await;
}

/// The connections there are, for when one of them has to make room.
struct Hall {
    room: Arc<Semaphore>,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    taken: HashMap<u64, Arc<Seat>>,
    next_number: u64,
}

/// What is known of one connection.
struct Seat {
    turn: Turn,
    closing: CancellationToken,
    /// By another connection: this one ends at once if it is idle.
    is_wanted: AtomicBool,
}

/// One connection's part of the room, until it is dropped.
struct Place {
    seat: Arc<Seat>,
    number: u64,
    hall: Arc<Hall>,
    _permit: OwnedSemaphorePermit,
}

impl Hall {
    fn new(max_connections: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(max_connections)), seats: Mutex::default() }
    }

    fn with_seats<T>(&self, work: impl FnOnce(&mut Seats) -> T) -> T {
        // Every change is a single insert or remove.
        work(&mut self.seats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for one more, once there is one.
    async fn place(self: &Arc<Self>, closing: &CancellationToken) -> Place {
        let permit = loop {
            // The semaphore is never closed, so this fails for want of room alone.
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                break permit;
            }
            self.end_longest_idle();
            let freed = Arc::clone(&self.room).acquire_owned();
            if let Ok(Ok(permit)) = tokio::time::timeout(ROOM_PAUSE, freed).await {
                break permit;
            }
        };
        let seat = Arc::new(Seat {
            turn: Turn::of_client(),
            closing: closing.child_token(),
            is_wanted: AtomicBool::new(false),
        });
        let number = self.with_seats(|seats| {
            let number = seats.next_number;
            seats.next_number += 1;
            seats.taken.insert(number, Arc::clone(&seat));
            number
        });
        Place { seat, number, hall: Arc::clone(self), _permit: permit }
    }

    fn end_longest_idle(&self) {
        let longest = self.with_seats(|seats| {
            let idle = seats.taken.values().filter(|seat| seat.turn.is_the_clients());
            idle.min_by_key(|seat| seat.turn.client_since()).cloned()
        });
        if let Some(seat) = longest {
            seat.is_wanted.store(true, Ordering::Relaxed);
            seat.closing.cancel();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hall.with_seats(|seats| seats.taken.remove(&self.number));
    }
}

/// Waits until the client has closed too.
async fn linger(stream: &mut TcpStream) -> std::io::Result<()> {
    // Most have.
    if matches!(stream.try_read(&mut [0]), Ok(0)) {
        return Ok(());
    }
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await.map(drop)
}

/// Whose turn it is on a connection, and since when it is the client's.
///
/// The alarm of a connection is set once in a while and then looks here, since setting one for each request would cost
/// more than the time it is looked at.
struct Turn {
    begun: Instant,
    /// In milliseconds after `begun`, or [`Turn::PROVIDER`].
    client_since: AtomicU64,
}

impl Turn {
    const PROVIDER: u64 = u64::MAX;

    fn of_client() -> Self {
        Self { begun: Instant::now(), client_since: AtomicU64::new(0) }
    }

    fn takes_provider(&self) {
        self.client_since.store(Self::PROVIDER, Ordering::Relaxed);
    }

    fn takes_client(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(Self::PROVIDER);
        self.client_since.store(since, Ordering::Relaxed);
    }

    fn is_the_clients(&self) -> bool {
        self.client_since().is_some()
    }

    fn client_since(&self) -> Option<Instant> {
        let since = self.client_since.load(Ordering::Relaxed);
        (since != Self::PROVIDER).then(|| self.begun + Duration::from_millis(since))
    }

    /// When the client will have taken too long, if it is its turn.
    fn deadline(&self, patience: Duration) -> Option<Instant> {
        self.client_since().map(|since| since + patience)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{sync::oneshot, task::JoinHandle};
    use tower::ServiceExt;

    use super::*;

    #[derive(Clone)]
    struct Routes(Router);

    impl Answer for Routes {
        async fn answer(&self, _: SocketAddr, request: Request) -> Response {
            let Ok(response) = self.0.clone().oneshot(request).await;
            response
        }
    }

    /// A server on loopback; it ends with the test, also with one that fails.
    struct Running {
        address: SocketAddr,
        end: Option<oneshot::Sender<()>>,
        task: JoinHandle<()>,
    }

    impl Running {
        async fn start(server: Server, router: Router) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (end, ended) = oneshot::channel::<()>();
            let task = tokio::spawn(server.serve(listener, Routes(router), async move {
                let _ = ended.await;
            }));
            Self { address, end: Some(end), task }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends a request and reads until the server closes.
        async fn ask(&self) -> String {
            let mut stream = self.connect().await;
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        }

        async fn end(&mut self) -> Duration {
            let started = Instant::now();
            self.end.take().unwrap().send(()).unwrap();
            (&mut self.task).await.unwrap();
            started.elapsed()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn hello() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    /// Reads until the other end closes or resets.
    async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read).await;
        read
    }

    async fn read_hello(stream: &mut TcpStream) {
        let mut read = Vec::new();
        while !read.ends_with(b"hello") {
            read.push(stream.read_u8().await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_hundred_idle_connections_disturb_nobody() {
        let running = Running::start(Server::default(), hello()).await;
        let mut idle = Vec::new();
        for _ in 0..100 {
            idle.push(running.connect().await);
        }
        assert!(running.ask().await.ends_with("hello"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_its_request_is_let_go() {
        let server = Server { patience: Duration::from_millis(100), ..Server::default() };
        let running = Running::start(server, hello()).await;
        let mut silent = running.connect().await;
        let mut slow = running.connect().await;
        slow.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
        let mut used = running.connect().await;
        used.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // The test would hang here if one of them were kept.
        assert!(read_to_end(&mut silent).await.is_empty());
        assert!(!read_to_end(&mut slow).await.starts_with(b"HTTP/1.1 200"));
        assert!(read_to_end(&mut used).await.ends_with(b"hello"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answers_is_let_go_and_one_that_waits_for_its_answer_is_not()
     {
        let router = hello().route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(500)).await;
                vec![0; 16 * 1024 * 1024]
            }),
        );
        let server = Server { patience: Duration::from_millis(200), ..Server::default() };
        let mut running = Running::start(server, router).await;
        let mut greedy = running.connect().await;
        greedy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // The first part of the answer comes, after more than the server's patience for clients.
        let mut first = [0; 12];
        greedy.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let read = read_to_end(&mut greedy).await;
        assert!(read.len() < 16 * 1024 * 1024, "it was served to the end");
        running.end().await;
    }

    #[tokio::test]
    async fn past_the_cap_the_longest_idle_makes_room() {
        let server = Server { max_connections: 3, ..Server::default() };
        let running = Running::start(server, hello()).await;
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let mut used = running.connect().await;
        let mut silent = running.connect().await;
        let mut half_said = running.connect().await;
        half_said.write_all(&request[..8]).await.unwrap();
        // It has been there for longest, but not idle for longest.
        tokio::time::sleep(Duration::from_millis(50)).await;
        used.write_all(request).await.unwrap();
        read_hello(&mut used).await;
        assert!(running.ask().await.ends_with("hello"));
        assert!(read_to_end(&mut silent).await.is_empty());
        let _fourth = running.connect().await;
        assert!(running.ask().await.ends_with("hello"));
        assert!(read_to_end(&mut half_said).await.is_empty());
        used.write_all(request).await.unwrap();
        read_hello(&mut used).await;
    }

    #[tokio::test]
    async fn past_the_cap_connections_wait_while_all_others_are_being_answered() {
        let (release, released) = tokio::sync::watch::channel(false);
        let router = hello().route(
            "/slow",
            get(async move || {
                let _ = released.clone().wait_for(|released| *released).await;
                "done"
            }),
        );
        let server = Server { max_connections: 2, ..Server::default() };
        let running = Running::start(server, router).await;
        let mut busy = [running.connect().await, running.connect().await];
        for stream in &mut busy {
            stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        }
        let mut third = Box::pin(running.ask());
        let early = tokio::time::timeout(Duration::from_millis(300), &mut third).await;
        assert!(early.is_err(), "it was answered although there was no room");
        release.send(true).unwrap();
        assert!(third.await.ends_with("hello"));
        for stream in &mut busy {
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
        }
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let running = Running::start(Server::default(), hello()).await;
        let mut stream = running.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let line = format!("x-header: {}\r\n", "a".repeat(1000));
        for _ in 0..200 {
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
        assert!(running.ask().await.ends_with("hello"));
    }

    #[tokio::test]
    async fn at_the_end_idle_connections_are_closed_at_once_and_requests_under_way_are_answered() {
        let (release, released) = oneshot::channel::<()>();
        let released = Arc::new(tokio::sync::Mutex::new(Some(released)));
        let (began, mut has_begun) = tokio::sync::mpsc::channel(1);
        let router = Router::new().route(
            "/",
            get(async move || {
                began.send(()).await.unwrap();
                let released = released.lock().await.take().unwrap();
                let _ = released.await;
                "done"
            }),
        );
        let mut running =
            Running::start(Server { grace: Duration::from_secs(60), ..Server::default() }, router)
                .await;
        let mut idle = running.connect().await;
        let mut busy = running.connect().await;
        busy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        has_begun.recv().await.unwrap();
        running.end.take().unwrap().send(()).unwrap();
        assert!(read_to_end(&mut idle).await.is_empty());
        release.send(()).unwrap();
        assert!(read_to_end(&mut busy).await.ends_with(b"done"));
        (&mut running.task).await.unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_cut_off_after_the_grace_time() {
        let (began, mut has_begun) = tokio::sync::mpsc::channel(1);
        let router = Router::new().route(
            "/",
            get(async move || {
                began.send(()).await.unwrap();
                std::future::pending::<&str>().await
            }),
        );
        let server = Server { grace: Duration::from_millis(100), ..Server::default() };
        let mut running = Running::start(server, router).await;
        let mut stream = running.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        has_begun.recv().await.unwrap();
        assert!(running.end().await < Duration::from_secs(30));
        assert!(read_to_end(&mut stream).await.is_empty());
    }
}
