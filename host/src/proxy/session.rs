//! One client's session: reach the machine, then relay until the end.
//!
//! Dropping the future at any point, which is how a listener ends its sessions, resets both
//! connections and takes the session out of the counts.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::listener::{Link, OpenSession};
use super::relay::Relay;
use super::socket::{Connecting, Socket};

/// How much longer a machine is waited for after its client has hung up without sending a byte.
/// Not zero: a client may end its stream first and still want to hear the greeting.
const PATIENCE_WITHOUT_CLIENT: Duration = Duration::from_secs(2);

pub(super) async fn run(client: TcpStream, target: SocketAddr, session: OpenSession) {
    let link = session.link();
    let port = link.port();
    let client = Socket::new(client);
    let vm = match reach(target, &client, link).await {
        Ok(vm) => vm,
        Err(Unreached::ByTarget(error)) => {
            link.count_refused();
            tracing::debug!(port, %target, %error, "the machine did not take the connection; client reset");
            return;
        }
        Err(Unreached::ClientGone) => {
            tracing::debug!(port, %target, "the client left before the machine answered");
            return;
        }
    };
    match Relay::new(client, vm, Arc::clone(link)).await {
        Ok(()) => tracing::trace!(port, %target, "session ended"),
        Err(error) => tracing::debug!(port, %target, %error, "session aborted"),
    }
}

enum Unreached {
    ByTarget(io::Error),
    ClientGone,
}

async fn reach(target: SocketAddr, client: &Socket, link: &Link) -> Result<Socket, Unreached> {
    let config = link.config();
    let connecting = Connecting::start(target, config.keep_alive).map_err(Unreached::ByTarget)?;
    match connecting.outcome() {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(error)) => return Err(Unreached::ByTarget(error)),
        Poll::Pending => wait(&connecting, client, config.connect_timeout).await?,
    }
    Ok(connecting.into_socket())
}

async fn wait(
    connecting: &Connecting,
    client: &Socket,
    connect_timeout: Duration,
) -> Result<(), Unreached> {
    let mut deadline = pin!(sleep(connect_timeout));
    let mut client_hung_up = false;
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = connecting.poll_outcome(cx) {
            return Poll::Ready(outcome.map_err(Unreached::ByTarget));
        }
        // Every event of the client's socket wakes this task, its end included.
        if client.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Unreached::ClientGone));
        }
        if !client_hung_up && client.ended_without_a_byte() {
            client_hung_up = true;
            let soon = Instant::now() + PATIENCE_WITHOUT_CLIENT;
            if soon < deadline.deadline() {
                deadline.as_mut().reset(soon);
            }
        }
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(if client_hung_up {
                Unreached::ClientGone
            } else {
                Unreached::ByTarget(io::ErrorKind::TimedOut.into())
            }));
        }
        Poll::Pending
    })
    .await
}
