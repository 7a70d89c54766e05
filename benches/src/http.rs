//! Requests without the cost of a client: bytes are written, and as many are read back as the answer says it has.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// The request for this path on a connection that is kept.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: */*\r\n\r\n").into_bytes()
}

/// One request on a connection of its own.
///
/// # Errors
/// When there is no answer, or one without success.
pub fn ask(port: u16, method: &str, path: &str, body: &str) -> Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect(address).context("connecting")?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("reading the answer")?;
    let text = String::from_utf8_lossy(&answer);
    let Some((head, _)) = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.1 2"))
    else {
        bail!("{method} {path}: {text}");
    };
    Ok(answer.split_off(head.len() + 4))
}

/// Waits for the first answer with success to `GET path`, however often it has to be tried; how long it took.
///
/// # Errors
/// When none comes in time, and whatever `alive` fails with.
pub fn first_answer(
    port: u16,
    path: &str,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let started = Instant::now();
    loop {
        match ask(port, "GET", path, "") {
            Ok(_) => return Ok(started.elapsed()),
            Err(error) if started.elapsed() > DEADLINE => {
                return Err(error).context("there is no answer");
            }
            Err(_) => {
                alive()?;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Asks for one path over and over on so many connections at once; how many answers came within the time.
///
/// # Errors
/// When a connection fails, or an answer is no success.
pub async fn load(port: u16, path: &str, connections: usize, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let request = get(path);
    let clients: Vec<_> =
        (0..connections).map(|_| tokio::spawn(client(port, request.clone(), end))).collect();
    let mut answers = 0;
    for client in clients {
        answers += client.await.context("a client broke off")??;
    }
    Ok(answers)
}

async fn client(port: u16, request: Vec<u8>, end: Instant) -> Result<u64> {
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0_u8; 16 << 10];
    let mut answers = 0;
    while Instant::now() < end {
        stream.write_all(&request).await?;
        let (mut read, mut wanted) = (0, None);
        while wanted.is_none_or(|wanted| read < wanted) {
            let bytes = stream.read(&mut buffer[read..]).await?;
            if bytes == 0 {
                bail!("the server closed the connection");
            }
            read += bytes;
            if wanted.is_none() {
                wanted = length(&buffer[..read])?;
            }
        }
        answers += 1;
    }
    Ok(answers)
}

/// How long the answer is that begins like this, if its head is whole.
fn length(answer: &[u8]) -> Result<Option<usize>> {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head]).context("a head that is no text")?;
    if !text.starts_with("HTTP/1.1 200 ") {
        bail!("not a success: {text}");
    }
    const FIELD: &str = "content-length: ";
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_at_checked(FIELD.len())?;
        name.eq_ignore_ascii_case(FIELD).then(|| value.parse::<usize>().ok())?
    });
    Ok(Some(head + 4 + body.context("an answer without a length")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_length_is_known_from_its_head() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel";
        assert_eq!(length(answer).unwrap(), Some(answer.len() + 2));
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-").unwrap(), None);
        assert!(length(b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n").is_err());
    }
}
