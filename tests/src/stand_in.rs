//! A server that stands in for the SSH server of machines on paper.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::wait;

/// What it says first.
pub const GREETING: &str = "SSH-2.0-stand-in\r\n";

/// Greets whoever connects, and then sends back what it is sent, up to the end of the stream. Ends with this value.
#[derive(Debug)]
pub struct StandIn {
    address: SocketAddr,
    sessions: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl StandIn {
    /// On a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> Result<StandIn> {
        StandIn::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// # Errors
    /// When nobody may listen there, or somebody does.
    pub async fn start_at(address: SocketAddr) -> Result<StandIn> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening for SSH on {address}"))?;
        let address = listener.local_addr()?;
        let sessions = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sessions);
        let accepting = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        counter.fetch_add(1, Ordering::Relaxed);
                        serving.spawn(serve(stream));
                    }
                    Some(_) = serving.join_next() => {}
                }
            }
        });
        Ok(StandIn { address, sessions, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many have connected up to now.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Sees to it that a port of this machine leads to a stand-in: its greeting comes, and what is said comes back.
    ///
    /// # Errors
    /// When it leads anywhere else, or nowhere.
    pub async fn assert_reached_through(port: u16) -> Result<()> {
        let talk = async {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            stream.write_all(b"are you there?").await?;
            stream.shutdown().await?;
            let mut said = String::new();
            stream.read_to_string(&mut said).await?;
            Ok::<_, std::io::Error>(said)
        };
        let said = wait::within("a session", Duration::from_secs(10), talk)
            .await?
            .with_context(|| format!("talking to port {port}"))?;
        ensure!(said == format!("{GREETING}are you there?"), "port {port} said {said:?}");
        Ok(())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // A peer that goes away in the middle is no concern of a stand-in.
    let _ = async {
        write.write_all(GREETING.as_bytes()).await?;
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    }
    .await;
}
