//! What reaches the API's port that no well-behaved client sends: slow, silent, greedy and malformed ones, one byte at a time
//! where it matters. Whatever they do, they are answered in order or let go, and others are served meanwhile.
//!
//! No VM is made in here. Tests that have to wait for a deadline of the provider take half a minute, side by side.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use golem_provider_tests::{
    Paper, Provider, Setup, StandIn, processes::Process, schemathesis, wait,
};
use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

/// How long the provider waits for a client's next step, and for a body, with some time for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30 + 30);
/// Any answer that does not have to wait for a client.
const PROMPT: Duration = Duration::from_secs(10);
const MIB: u64 = 1024 * 1024;

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A provider that limits nobody, so that only what a test is about can refuse a request.
async fn provider() -> Result<Provider> {
    Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 0).start().await
}

/// A connection on which a test says what it wants, byte for byte.
struct Wire(TcpStream);

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Wire {
    async fn open(provider: &Provider) -> Result<Wire> {
        Wire::from(provider, HERE).await
    }

    /// A connection whose client is another address of this machine.
    async fn from(provider: &Provider, client: Ipv4Addr) -> Result<Wire> {
        Wire::to(provider.api_port(), client).await
    }

    async fn to(port: u16, client: Ipv4Addr) -> Result<Wire> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(client), 0))?;
        let address = SocketAddr::new(IpAddr::V4(HERE), port);
        let connected = wait::within("connecting", PROMPT, socket.connect(address)).await?;
        Ok(Wire(connected.context("connecting")?))
    }

    async fn say(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.0.write_all(bytes.as_ref()).await.context("sending")
    }

    async fn get(&mut self, path: &str, headers: &str) -> Result<Answer> {
        self.say(format!("GET {path} HTTP/1.1\r\nhost: provider\r\n{headers}\r\n")).await?;
        self.answer(PROMPT).await
    }

    /// The next answer; everything this API answers has a length.
    async fn answer(&mut self, deadline: Duration) -> Result<Answer> {
        wait::within("an answer", deadline, self.read_answer()).await?
    }

    async fn read_answer(&mut self) -> Result<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.with_context(|| {
                format!("the connection ended after {:?}", String::from_utf8_lossy(&head))
            })?);
        }
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .with_context(|| format!("no length: {head}"))?;
        let mut body = vec![0; length.parse()?];
        self.0.read_exact(&mut body).await.context("reading the body")?;
        Ok(Answer { status, head, body })
    }

    /// Everything that still comes until the provider closes.
    async fn rest(&mut self, deadline: Duration) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let end = self.0.read_to_end(&mut rest);
        drop(wait::within("the provider closing a connection", deadline, end).await?);
        Ok(rest)
    }
}

impl Answer {
    /// The code and text of a refusal in the form that clients read.
    fn refusal(&self, status: u16) -> Result<(String, String)> {
        let text = String::from_utf8_lossy(&self.body);
        if self.status != status {
            bail!("answered {} instead of {status}: {text}", self.status);
        }
        let body: Value = serde_json::from_slice(&self.body).with_context(|| text.into_owned())?;
        let part = |key: &str| {
            body[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {body}"))
        };
        part("request_id")?;
        Ok((part("code")?, part("detail")?))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sees to it that other clients are served as ever.
async fn assert_others_are_served(provider: &Provider) -> Result<()> {
    for path in ["/health", "/api/v1/provider/info", "/api/v1/vms"] {
        let ask = provider.client().send(Method::GET, path, None);
        wait::within("the answer to another client", PROMPT, ask).await??.expect(200)?;
    }
    Ok(())
}

/// What the provider holds of the machine's memory, in bytes.
fn memory(provider: &Provider) -> Result<u64> {
    Process::with_id(provider.pid()?)?.resident_bytes()
}

/// Says something once a second until the provider closes, and what it has answered by then.
async fn drip(mut wire: Wire, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    let dripping = async {
        for byte in bytes.iter().cycle() {
            if wire.0.write_all(&[*byte]).await.is_err() {
                break;
            }
            let pause = tokio::time::sleep(Duration::from_secs(1));
            tokio::select! {
                () = pause => {}
                _ended = wire.0.read_to_end(&mut answer) => break,
            }
        }
    };
    wait::within("the provider giving up on a slow client", PATIENCE, dripping).await?;
    Ok(answer)
}

/// All of them at once, since each takes as long as the provider's patience.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_slow_silent_or_never_read_are_let_go_and_slow_nobody_else() -> Result<()>
{
    let provider = provider().await?;
    let mut head = Wire::open(&provider).await?;
    head.say("GET /api/v1/vms HTTP/1.1\r\nhost: ").await?;
    let mut body = Wire::open(&provider).await?;
    body.say("POST /api/v1/vms HTTP/1.1\r\nhost: provider\r\ncontent-length: 1000\r\n\r\n{")
        .await?;
    let mut silent = Wire::open(&provider).await?;
    let mut after_an_answer = Wire::open(&provider).await?;
    assert_eq!(after_an_answer.get("/api/v1/vms", "").await?.status, 200);
    let (head, body, silent, after_an_answer, never_reads) = tokio::join!(
        drip(head, b"a"),
        drip(body, b" "),
        silent.rest(PATIENCE),
        after_an_answer.rest(PATIENCE),
        never_read(&provider),
    );
    never_reads?;
    assert!(!head?.starts_with(b"HTTP/1.1 2"));
    let body = String::from_utf8(body?)?;
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("body_too_slow"), "{body}");
    assert!(silent?.is_empty() && after_an_answer?.is_empty());
    Ok(())
}

/// Asks and asks and reads nothing, until it has been let go.
async fn never_read(provider: &Provider) -> Result<()> {
    let before = memory(provider)?;
    let mut wire = Wire::open(provider).await?;
    let request = b"GET /openapi.json HTTP/1.1\r\nhost: provider\r\n\r\n".repeat(100);
    // What the provider takes before it stops reading, and the kernel keeps, has an end.
    let mut offered = 0;
    while let Ok(said) = tokio::time::timeout(Duration::from_secs(2), wire.say(&request)).await {
        said?;
        offered += request.len() as u64;
        assert!(offered < 256 * MIB, "it reads on without end");
    }
    assert_others_are_served(provider).await?;
    let grown = memory(provider)?.saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes more");
    // Writing ends with an error once the provider has closed, and not before.
    let end =
        wait::until("the provider's end of it", PATIENCE, Duration::from_secs(1), async || {
            Ok(wire.0.try_write(b" ").err().filter(|error| error.kind() != ErrorKind::WouldBlock))
        });
    end.await?;
    assert_others_are_served(provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_leave_others_served_and_memory_bounded() -> Result<()> {
    const IDLE: usize = 10_000;
    const AT_A_TIME: usize = 50;
    let limit = getrlimit(Resource::Nofile);
    // Each process needs them for itself; the provider inherits the limit, and keeps a part of it for SSH sessions.
    const NEEDED: u64 = 16_384;
    if limit.maximum.is_some_and(|maximum| maximum < NEEDED) {
        bail!(
            "this test needs {NEEDED} descriptors and the limit is {limit:?}; raise it (ulimit -Hn)"
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    let provider = provider().await?;
    let before = memory(&provider)?;
    // Many at a time, since after its patience the provider lets the first of them go.
    let begun = Instant::now();
    let mut opening = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let port = provider.api_port();
        opening.spawn(async move {
            let mut wires = Vec::new();
            for number in 0..IDLE / AT_A_TIME {
                let mut wire = Wire::to(port, HERE).await?;
                // Some have never said anything, others have been served before.
                if number % 4 == 0 {
                    assert_eq!(wire.get("/api/v1/provider/info", "").await?.status, 200);
                }
                wires.push(wire);
            }
            Ok::<_, anyhow::Error>(wires)
        });
    }
    let mut idle = Vec::new();
    while let Some(opened) = opening.join_next().await {
        idle.append(&mut opened??);
    }
    eprintln!("{IDLE} connections took {} ms", begun.elapsed().as_millis());
    assert_others_are_served(&provider).await?;
    let open = Process::with_id(provider.pid()?)?.open_descriptors()?;
    assert!(open >= IDLE, "only {open} descriptors are open: some have been let go");
    let grown = memory(&provider)?.saturating_sub(before);
    eprintln!("{IDLE} idle connections take {} KiB each", grown / 1024 / IDLE as u64);
    assert!(grown < 128 * MIB, "{grown} bytes more");
    // More than the provider keeps: the oldest make room, and everybody else is served at once all the same.
    for _ in 0..500 {
        idle.push(Wire::open(&provider).await?);
    }
    assert_others_are_served(&provider).await?;
    assert!(idle.remove(0).rest(PROMPT).await?.is_empty());
    drop(idle);
    assert_others_are_served(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_are_refused_with_a_status_that_says_so() -> Result<()> {
    let provider = provider().await?;
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: provider\r\n{headers}\r\n")
    };
    let line = |length: usize| format!("x-filler: {}\r\n", "a".repeat(length));
    let vms = "/api/v1/vms";

    // A little too large: told in the API's own form, on a connection that goes on.
    for (request, status, code) in [
        (get(&format!("{vms}?{}", "a".repeat(10_000)), ""), 414, "uri_too_long"),
        (get(vms, &line(40_000)), 431, "headers_too_large"),
        (get(vms, &line(600).repeat(60)), 431, "headers_too_large"),
    ] {
        let mut wire = Wire::open(&provider).await?;
        wire.say(&request).await?;
        let (told, _) = wire.answer(PROMPT).await?.refusal(status)?;
        assert_eq!(told, code);
        assert_eq!(wire.get(vms, "").await?.status, 200);
    }
    // Much too large: the status alone, and the end of the connection.
    for (request, status) in [
        (get(&format!("{vms}?{}", "a".repeat(200_000)), ""), [414, 431]),
        (get(vms, &line(200_000)), [431, 431]),
        (get(vms, &line(10).repeat(200)), [431, 431]),
        (get(vms, &line(1_000).repeat(200)), [431, 431]),
    ] {
        let mut wire = Wire::open(&provider).await?;
        wire.say(&request).await?;
        let answer = wire.answer(PROMPT).await?;
        assert!(status.contains(&answer.status), "{answer:?}");
        assert!(wire.rest(PROMPT).await?.is_empty());
    }
    assert_others_are_served(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_refused_or_let_go() -> Result<()> {
    let provider = provider().await?;
    let noise: Vec<u8> =
        (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let requests: [&[u8]; 12] = [
        &noise,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G ET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nna me: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nname: a\0b\r\n\r\n",
        b"GET /\x01\x02 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ];
    for request in requests {
        let mut wire = Wire::open(&provider).await?;
        wire.say(request).await?;
        // Whoever stops in the middle of a line is waited for; closing here ends that.
        wire.0.shutdown().await?;
        let answer = String::from_utf8_lossy(&wire.rest(PROMPT).await?).into_owned();
        let shown = String::from_utf8_lossy(request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{shown:?}: {answer}");
    }
    assert_others_are_served(&provider).await
}

/// Each hides a second request in what two readers of HTTP could take for different things. The provider must not answer it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_cannot_be_smuggled_in_another() -> Result<()> {
    let provider = provider().await?;
    let hidden = "GET /api/v1/provider/info HTTP/1.1\r\nhost: provider\r\n\r\n";
    let post = |headers: &str, body: &str| {
        format!("POST /api/v1/vms HTTP/1.1\r\nhost: provider\r\n{headers}\r\n{body}")
    };
    for (headers, body) in [
        ("content-length: 4\r\ncontent-length: 60\r\n", format!("null{hidden}")),
        ("content-length: 4, 60\r\n", format!("null{hidden}")),
        ("content-length: +4\r\n", format!("null{hidden}")),
        ("content-length: 4\r\ntransfer-encoding: chunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("transfer-encoding: chunked\r\ncontent-length: 4\r\n", format!("0\r\n\r\n{hidden}")),
        ("transfer-encoding: chunked, identity\r\n", format!("0\r\n\r\n{hidden}")),
        ("transfer-encoding: xchunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("transfer-encoding : chunked\r\n", format!("0\r\n\r\n{hidden}")),
        ("transfer-encoding: chunked\r\n", format!("4\r\nnullx\r\n0\r\n\r\n{hidden}")),
        ("transfer-encoding: chunked\r\n", format!("-1\r\n\r\n{hidden}")),
        ("transfer-encoding: chunked\r\n", format!("fffffffffffffffff\r\n\r\n{hidden}")),
    ] {
        let mut wire = Wire::open(&provider).await?;
        wire.say(post(headers, &body)).await?;
        wire.0.shutdown().await?;
        let answers = String::from_utf8_lossy(&wire.rest(PROMPT).await?).into_owned();
        assert!(answers.matches("HTTP/1.1 ").count() <= 1, "{headers}{body}: {answers}");
        assert!(answers.is_empty() || answers.starts_with("HTTP/1.1 4"), "{headers}: {answers}");
        assert!(!answers.contains("provider_id"), "{headers}: {answers}");
    }
    assert_others_are_served(&provider).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_address_has_a_limit_of_its_own_and_is_told_when_to_come_back() -> Result<()> {
    let provider = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 20).start().await?;
    let (greedy, modest) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut wire = Wire::from(&provider, greedy).await?;
    let mut limited = None;
    for _ in 0..40 {
        let answer = wire.get("/api/v1/vms", "").await?;
        if answer.status != 200 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.context("forty requests at once were within a limit of twenty")?;
    let (code, _) = limited.refusal(429)?;
    assert_eq!(code, "rate_limited");
    let seconds = limited.header("retry-after").context("no Retry-After")?.parse()?;
    assert!((1..=3).contains(&seconds), "{seconds}");
    // Not a matter of the connection, and not of what the client says of itself.
    let mut again = Wire::from(&provider, greedy).await?;
    again.get("/api/v1/vms", "x-forwarded-for: 127.0.0.3\r\n").await?.refusal(429)?;

    let mut other = Wire::from(&provider, modest).await?;
    assert_eq!(other.get("/api/v1/vms", "").await?.status, 200);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(wire.get("/api/v1/vms", "").await?.status, 200);
    Ok(())
}

/// The limit is exactly what polling takes, and the client has used up everything beyond that.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_polls_every_two_seconds_is_never_limited() -> Result<()> {
    let provider = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 30).start().await?;
    let mut wire = Wire::from(&provider, Ipv4Addr::new(127, 0, 0, 4)).await?;
    while wire.get("/api/v1/vms", "").await?.status == 200 {}
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(wire.get("/api/v1/vms", "").await?.status, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_trusted_proxy_can_say_who_its_client_is() -> Result<()> {
    let provider = Setup::new()?
        .with("RATE_LIMIT_PER_MINUTE", 5)
        .with("TRUSTED_PROXIES", "127.0.0.2/32")
        .start()
        .await?;
    let (proxy, stranger) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut limited = Vec::new();
    for from in [proxy, stranger] {
        let mut wire = Wire::from(&provider, from).await?;
        let mut count = 0;
        for client in 1..=20 {
            let header = format!("x-forwarded-for: 203.0.113.{client}\r\n");
            count += u32::from(wire.get("/api/v1/vms", &header).await?.status == 429);
        }
        limited.push(count);
    }
    assert_eq!(limited[0], 0, "clients behind a trusted proxy were taken for one");
    assert!(limited[1] >= 14, "a stranger made itself many");
    // Behind the proxy each client is limited for itself, whatever it wrote in front.
    let mut wire = Wire::from(&provider, proxy).await?;
    let mut count = 0;
    for invented in 1..=10 {
        let header = format!("x-forwarded-for: 198.51.100.{invented}, 203.0.113.99\r\n");
        count += u32::from(wire.get("/api/v1/vms", &header).await?.status == 429);
    }
    assert!(count >= 4, "{count}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_does_what_its_document_says() -> Result<()> {
    // Some of what is valid makes machines, until there is no room for more.
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("RATE_LIMIT_PER_MINUTE", 0);
    let setup = setup.with_paper_backend(&Paper::with_ssh_at(ssh.address()))?;
    let provider = setup.start().await?;
    let vm = json!({ "name": "my-vm", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
    provider.client().post("/vms", &vm).await?.expect(201)?;
    schemathesis::check(provider.api_port(), Duration::from_secs(25)).await
}
