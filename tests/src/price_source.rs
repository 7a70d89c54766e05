//! A server that says what a GLM costs, in CoinGecko's way: truly, wrongly, or not at all.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Answers whoever asks. Ends with this value.
#[derive(Debug)]
pub struct PriceSource {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// The body of each answer; absent: an error.
    answer: Option<String>,
    questions: Vec<String>,
}

impl PriceSource {
    /// On a free port of 127.0.0.1, out of order at first.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> Result<PriceSource> {
        PriceSource::start_at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// # Errors
    /// When somebody listens there.
    pub async fn start_at(address: SocketAddr) -> Result<PriceSource> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening as a price source on {address}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared { answer: None, questions: Vec::new() }));
        let answering = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who goes away in the middle is no concern of a stand-in.
                let _ = answer(stream, &answering).await;
            }
        });
        Ok(PriceSource { address, shared, accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `GOLEM_PROVIDER_COINGECKO_API_URL`.
    pub fn url(&self) -> String {
        format!("http://{}/api/v3", self.address)
    }

    /// From now on a GLM costs this, whatever it is; it goes into the answer as it is written.
    pub fn say(&self, usd: &str) {
        self.answer_with(&format!(r#"{{"golem":{{"usd":{usd}}}}}"#));
    }

    /// From now on this is the body of each answer.
    pub fn answer_with(&self, body: &str) {
        self.shared().answer = Some(body.to_owned());
    }

    /// The first lines of all requests up to now.
    pub fn questions(&self) -> Vec<String> {
        self.shared().questions.clone()
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PriceSource {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(mut stream: TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let first_line =
        String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let answer = {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.questions.push(first_line);
        shared.answer.clone()
    };
    let (status, body) = match answer {
        Some(body) => ("200 OK", body),
        None => ("503 Service Unavailable", "out of order".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
