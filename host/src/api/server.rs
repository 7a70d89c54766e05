//! Connections: takes them, bounds how many there are and how slow they may be, and ends them in order.
//!
//! A connection that sends no whole request head within [`Server::head_timeout`] is closed, be it new or idle, so silent
//! clients cannot hold the provider; past [`Server::max_connections`] further ones wait in the kernel's queue instead of
//! being refused. Bodies have their own deadline where they are read (`limits`).

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::client::Peer;

/// How connections are served.
#[derive(Debug, Clone)]
pub struct Server {
    /// At the same time.
    pub max_connections: usize,
    /// How long a connection may go without a whole request head, also between two requests.
    pub head_timeout: Duration,
    /// How long requests under way may go on once the server has been told to end.
    pub grace: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            max_connections: 10_240,
            head_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(5),
        }
    }
}

/// The longest request head, in bytes; hyper answers 431 beyond it.
const MAX_HEAD: usize = 64 * 1024;

/// After accepting failed, as it does when descriptors run out, until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Serves until `shutdown` resolves, then lets requests under way end within the grace time. When it returns, every
    /// connection is closed.
    pub async fn serve(
        self,
        listener: TcpListener,
        router: Router,
        shutdown: impl Future<Output = ()>,
    ) {
        let room = Arc::new(Semaphore::new(self.max_connections));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(self.head_timeout).max_buf_size(MAX_HEAD);
        let graceful = GracefulShutdown::new();
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        tokio::pin!(shutdown);
        loop {
            let (stream, peer, permit) = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = accept(&listener, &room) => accepted,
            };
            let router = router.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Peer(peer));
                router.clone().call(request.map(Body::new))
            });
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            let cut = cut.clone();
            tokio::spawn(async move {
                let _permit = permit;
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%peer, %error, "a connection ended early");
                    },
                    () = cut.cancelled() => {}
                }
            });
        }
        drop(listener);
        if tokio::time::timeout(self.grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(grace = ?self.grace, "requests were still under way at the end and were cut off");
        }
        cut.cancel();
        // Every connection gives its place back when it ends; together they are all places there are.
        let all = u32::try_from(self.max_connections).unwrap_or(u32::MAX);
        let _ended = tokio::time::timeout(Duration::from_secs(1), room.acquire_many(all)).await;
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        // The semaphore is never closed, so this is never an error; and if it were, waiting would be right.
        let Ok(permit) = room.clone().acquire_owned().await else { std::future::pending().await };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers are small; waiting to fill a segment would delay each of them. Failing costs only that.
                let _ = stream.set_nodelay(true);
                return (stream, peer, permit);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be taken; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
        task::JoinHandle,
    };

    use super::*;

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
            let task = tokio::spawn(server.serve(listener, router, async move {
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
        let server = Server { head_timeout: Duration::from_millis(100), ..Server::default() };
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
    async fn past_the_cap_connections_wait_until_another_ends() {
        let server = Server { max_connections: 2, ..Server::default() };
        let running = Running::start(server, hello()).await;
        let (first, second) = (running.connect().await, running.connect().await);
        let mut third = Box::pin(running.ask());
        let early = tokio::time::timeout(Duration::from_millis(200), &mut third).await;
        assert!(early.is_err(), "it was answered although there was no room");
        drop(first);
        assert!(third.await.ends_with("hello"));
        drop(second);
    }

    #[tokio::test]
    async fn an_endless_head_is_refused() {
        let running = Running::start(Server::default(), hello()).await;
        let mut stream = running.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let line = format!("x-header: {}\r\n", "a".repeat(1000));
        // It may be refused while it is still being sent.
        for _ in 0..200 {
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
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
