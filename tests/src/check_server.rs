//! Servers that a provider asks about itself: the provider's own port checker as a process, and stand-ins that do not do what
//! they should.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{binary, network::Network, wait};

/// What a stand-in answers whoever asks.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// That every port can be reached.
    SaysOpen,
    /// That no port can be reached.
    SaysClosed,
    /// Nothing, and keeps the connection.
    Hangs,
    /// 429.
    Limits,
    /// Something that is none of that.
    Nonsense,
    /// Bytes without end.
    Endless,
    /// This text, with status 200.
    Says(String),
}

/// Ends with this value.
pub struct CheckServer {
    url: String,
    behaviour: Arc<Mutex<Behaviour>>,
    serving: JoinHandle<()>,
}

impl CheckServer {
    /// Must be called in a runtime; the listener may be of any network.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn start(listener: std::net::TcpListener, behaviour: Behaviour) -> Result<CheckServer> {
        let url = format!("http://{}", listener.local_addr()?);
        let listener = TcpListener::from_std(listener)?;
        let behaviour = Arc::new(Mutex::new(behaviour));
        let current = Arc::clone(&behaviour);
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let behaviour = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                        connections.spawn(answer(stream, behaviour));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(CheckServer { url, behaviour, serving })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// From the next question on.
    pub fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }
}

impl Drop for CheckServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A peer that goes away in the middle is no concern of a stand-in.
async fn answer(mut stream: TcpStream, behaviour: Behaviour) -> Option<()> {
    let question = question(&mut stream).await?;
    let said = |open: bool| {
        let ports = question["ports"].as_array().cloned().unwrap_or_default();
        let results = ports
            .iter()
            .map(|port| (port.to_string(), json!({ "accessible": open, "error": null })))
            .collect::<serde_json::Map<String, Value>>();
        json!({ "success": open, "results": results, "message": "as you wish" }).to_string()
    };
    let (status, body) = match behaviour {
        Behaviour::SaysOpen => ("200 OK", said(true)),
        Behaviour::SaysClosed => ("200 OK", said(false)),
        Behaviour::Limits => ("429 Too Many Requests\r\nretry-after: 600", String::new()),
        Behaviour::Nonsense => ("200 OK", "<html>Welcome!</html>".to_owned()),
        Behaviour::Says(text) => ("200 OK", text),
        Behaviour::Hangs => std::future::pending().await,
        Behaviour::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            loop {
                stream.write_all(&[b' '; 4096]).await.ok()?;
            }
        }
    };
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// The body of a request; `null` without one.
async fn question(stream: &mut TcpStream) -> Option<Value> {
    let mut request = Vec::new();
    loop {
        stream.read_buf(&mut request).await.ok().filter(|read| *read > 0)?;
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            return Some(serde_json::from_str(body).unwrap_or_default());
        }
    }
}

/// `golem-provider port-checker`, outside. Ends with this value.
pub struct PortChecker {
    url: String,
    process: Child,
}

impl PortChecker {
    /// Starts it, and waits until it answers whoever is on this thread's network.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start(network: &Network, address: SocketAddr) -> Result<PortChecker> {
        let mut command = network.program_outside(binary::provider()?);
        command.args(["port-checker", "--listen", &address.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().context("starting a port checker")?;
        let checker = PortChecker { url: format!("http://{address}"), process };
        let http = reqwest::Client::builder().no_proxy().build()?;
        let (deadline, pause) = (Duration::from_secs(30), Duration::from_millis(50));
        wait::until("the port checker's first answer", deadline, pause, async || {
            let answer = http.get(format!("{}/health", checker.url)).send().await;
            Ok(answer.is_ok_and(|answer| answer.status().is_success()).then_some(()))
        })
        .await?;
        Ok(checker)
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for PortChecker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
