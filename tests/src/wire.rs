//! A wire to a server, which can be cut and mended: for servers that are away for a while and come back as they were.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Passes connections on to a server. Ends with this value.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    whole: Arc<watch::Sender<bool>>,
    passing: JoinHandle<()>,
}

impl Wire {
    /// From a free port of 127.0.0.1 to a port there.
    ///
    /// # Errors
    /// When there is no free port.
    pub async fn to(port: u16) -> Result<Wire> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a wire")?;
        let address = listener.local_addr()?;
        let whole = Arc::new(watch::Sender::new(true));
        let watching = whole.subscribe();
        let passing = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass(stream, port, watching.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Wire { address, whole, passing })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection, and every later one at once.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(mut stream: TcpStream, port: u16, mut whole: watch::Receiver<bool>) {
    if !*whole.borrow_and_update() {
        return;
    }
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    tokio::select! {
        // However a connection ends, that is for those at its ends to judge.
        _ = copy_bidirectional(&mut stream, &mut server) => {}
        _ = whole.changed() => {}
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.passing.abort();
    }
}
