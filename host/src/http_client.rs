//! Questions to servers that are not ours, over HTTP: with a deadline, of a bounded answer, and with errors that show neither
//! the URL, which may have a key in it, nor more of an answer than a line.
//!
//! Calls nothing of the provider; called by `payments` and `chains`.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode, redirect};

/// How much of a server's own words an error repeats.
const MAX_QUOTED_CHARS: usize = 200;
const MAX_REDIRECTS: usize = 3;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no client can be made: {0}")]
    Client(String),
    #[error("it cannot be reached{0}")]
    Unreachable(String),
    #[error("it does not answer in time")]
    Late,
    #[error("the answer breaks off")]
    BrokenOff,
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("it answers {status}{}", quoted(said))]
    Status { status: StatusCode, said: String },
}

/// A client whose questions all end within `deadline`.
///
/// # Errors
/// None can be made.
pub fn client(deadline: Duration) -> Result<Client, AskError> {
    client_that_follows(deadline, redirect::Policy::limited(MAX_REDIRECTS))
}

/// The same, but a server that sends it elsewhere is not followed.
///
/// # Errors
/// None can be made.
pub fn client_without_redirects(deadline: Duration) -> Result<Client, AskError> {
    client_that_follows(deadline, redirect::Policy::none())
}

fn client_that_follows(
    deadline: Duration,
    redirects: redirect::Policy,
) -> Result<Client, AskError> {
    Client::builder()
        .timeout(deadline)
        .redirect(redirects)
        .user_agent(concat!("golem-provider/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| AskError::Client(error.without_url().to_string()))
}

/// The body of the answer, of at most so many bytes.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(request: RequestBuilder, max_bytes: usize) -> Result<Vec<u8>, AskError> {
    let (status, body) = answer(request, max_bytes).await?;
    if !status.is_success() {
        return Err(refused(status, &body));
    }
    Ok(body)
}

/// The body of any answer, whatever its status.
///
/// # Errors
/// See [`AskError`]; never [`AskError::Status`].
pub async fn answer(
    request: RequestBuilder,
    max_bytes: usize,
) -> Result<(StatusCode, Vec<u8>), AskError> {
    let mut answer = request.send().await.map_err(reason)?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| match error.is_timeout() {
        true => AskError::Late,
        false => AskError::BrokenOff,
    })? {
        if body.len() + chunk.len() > max_bytes {
            return Err(AskError::TooLong(max_bytes));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((answer.status(), body))
}

/// The error for a status that says that there is no answer.
pub fn refused(status: StatusCode, body: &[u8]) -> AskError {
    AskError::Status { status, said: one_line(&String::from_utf8_lossy(body)) }
}

/// Why a question had no answer.
fn reason(error: reqwest::Error) -> AskError {
    if error.is_timeout() {
        return AskError::Late;
    }
    // The innermost cause says it best, such as "Connection refused"; only the outermost one knows the URL.
    let mut cause: &dyn std::error::Error = &error;
    let mut innermost = String::new();
    while let Some(next) = cause.source() {
        innermost = format!(": {}", one_line(&next.to_string()));
        cause = next;
    }
    AskError::Unreachable(innermost)
}

/// A server's words, as far as they can be shown: one line, no control characters, not long.
pub fn one_line(text: &str) -> String {
    let printable = text.chars().map(|char| if char.is_control() { ' ' } else { char });
    let printable: String = printable.take(MAX_QUOTED_CHARS).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn quoted(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A server that says the same to everyone.
    async fn saying(answer: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        format!("http://{address}/a-secret-path")
    }

    async fn asked(url: &str) -> Result<Vec<u8>, String> {
        let client = client(Duration::from_secs(20)).unwrap();
        let answer = ask(client.get(url), 100).await.map_err(|error| error.to_string());
        if let Err(error) = &answer {
            assert!(!error.contains("secret") && error.lines().count() == 1, "{error}");
        }
        answer
    }

    #[tokio::test]
    async fn an_answer_comes_whole_or_with_a_reason_that_shows_no_url() {
        let fine = saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".into()).await;
        assert_eq!(asked(&fine).await.as_deref(), Ok(&b"hi"[..]));
        let refused =
            saying("HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nno\nno\tno!".into()).await;
        assert_eq!(asked(&refused).await.unwrap_err(), "it answers 403 Forbidden: no no no!");
        let long = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", "x".repeat(200));
        assert!(asked(&saying(long).await).await.unwrap_err().contains("longer than 100"));
        let broken = saying("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhi".into()).await;
        assert!(asked(&broken).await.is_err());
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = asked(&format!("http://{nobody}/a-secret-path")).await.unwrap_err();
        assert!(error.contains("cannot be reached") && error.contains("refused"), "{error}");
    }
}
