//! SSH sessions in numbers and of every bad kind, through a provider whose machines are on paper: what they cost it, and
//! whether others are served meanwhile.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{GREETING, Paper, Provider, Setup, StandIn, processes::Process, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Barrier,
    task::JoinSet,
};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// Any answer, also of a provider that is busy with others.
const PROMPT: Duration = Duration::from_secs(20);

/// A provider with a VM whose SSH is at this address, and the VM's port.
async fn provider_of(ssh: SocketAddr, setup: Setup) -> Result<(Provider, u16)> {
    let setup = setup.with_paper_backend(&Paper::with_ssh_at(ssh))?;
    let provider = setup.with("RATE_LIMIT_PER_MINUTE", 0).start().await?;
    let port = create(&provider, "my-vm").await?;
    Ok((provider, port))
}

async fn create(provider: &Provider, name: &str) -> Result<u16> {
    let body = json!({ "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10 });
    let made = provider.client().post("/vms", &body).await?.expect(201)?;
    Ok(u16::try_from(made["ssh_port"].as_u64().context("no port")?)?)
}

async fn connect(port: u16) -> Result<TcpStream> {
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    wait::within("connecting", PROMPT, connecting).await?.context("connecting")
}

/// A session with a stand-in that has said its greeting.
async fn session(port: u16) -> Result<TcpStream> {
    let mut stream = connect(port).await?;
    let mut greeting = [0; GREETING.len()];
    let reading = wait::within("a greeting", PROMPT, stream.read_exact(&mut greeting));
    reading.await?.context("reading the greeting")?;
    Ok(stream)
}

/// The test holds as many sockets as the provider does, and a bit more.
fn raise_own_descriptors(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= needed),
        "this test needs {needed} descriptors and the limit is {limit:?}; raise it (ulimit -Hn)"
    );
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

fn descriptors(provider: &Provider) -> Result<usize> {
    Process::with_id(provider.pid()?)?.open_descriptors()
}

/// Offers as much as this for some seconds, and how much of it was taken.
async fn offer(stream: &mut TcpStream, offered: usize, patience: Duration) -> usize {
    let chunk = vec![7; MIB];
    let mut taken = 0;
    let offering = async {
        while taken < offered {
            match stream.write(&chunk).await {
                Ok(written) => taken += written,
                Err(_) => break,
            }
        }
    };
    let _ = tokio::time::timeout(patience, offering).await;
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_offered_to_those_who_never_read_takes_no_memory() -> Result<()> {
    let machine = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (provider, port) = provider_of(machine.local_addr()?, Setup::new()?).await?;
    let before = provider.resident_bytes()?;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let client = connect(port).await?;
        let (machine, _) = wait::within("the session", PROMPT, machine.accept()).await??;
        sessions.push((client, machine));
    }
    // Half of them towards machines, half towards clients; a quarter of it each.
    let mut offering = JoinSet::new();
    for (number, (mut client, mut machine)) in sessions.into_iter().enumerate() {
        offering.spawn(async move {
            let writer = if number % 2 == 0 { &mut client } else { &mut machine };
            let taken = offer(writer, GIB / 4, Duration::from_secs(4)).await;
            (taken, client, machine)
        });
    }
    let sessions = offering.join_all().await;
    let grown = provider.resident_bytes()?.saturating_sub(before);
    for (taken, ..) in &sessions {
        // Buffers of four sockets, which the system lets grow, and a pipe between them.
        ensure!(*taken < 64 * MIB, "{taken} bytes were taken");
    }
    eprintln!("{} KiB more for four readers that never read", grown / 1024);
    ensure!(grown < 8 * MIB as u64, "{grown} bytes more");
    drop(sessions);
    provider.client().get("/vms/my-vm").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_stopped_resets_a_hundred_sessions_at_once() -> Result<()> {
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("MAX_CONNECTIONS_PER_VM", 128);
    let (provider, port) = provider_of(ssh.address(), setup).await?;
    let before = descriptors(&provider)?;
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(session(port).await?);
    }
    ensure!(descriptors(&provider)? >= before + 200);
    provider.client().post_nothing("/vms/my-vm/stop").await?.expect(200)?;
    for mut session in sessions {
        let end = wait::within("the end", PROMPT, session.read(&mut [0])).await?;
        ensure!(
            end.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
            "not reset: {end:?}"
        );
    }
    assert_descriptors_return_to(&provider, before).await
}

async fn assert_descriptors_return_to(provider: &Provider, before: usize) -> Result<()> {
    // A connection or two of the test's own client may have come.
    let what = format!("descriptors as few as {before}");
    wait::until(&what, PROMPT, Duration::from_millis(20), async || {
        Ok((descriptors(provider)? <= before + 4).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_opened_and_dropped_at_once_leave_nothing() -> Result<()> {
    const AT_ONCE: usize = 1000;
    raise_own_descriptors(5 * AT_ONCE as u64)?;
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("MAX_CONNECTIONS_PER_VM", AT_ONCE);
    let (provider, port) = provider_of(ssh.address(), setup).await?;
    let before = descriptors(&provider)?;
    let all = Arc::new(Barrier::new(AT_ONCE));
    let mut connections = JoinSet::new();
    for _ in 0..AT_ONCE {
        let all = Arc::clone(&all);
        connections.spawn(async move {
            all.wait().await;
            let stream = connect(port).await?;
            all.wait().await;
            drop(stream);
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(connection) = connections.join_next().await {
        connection??;
    }
    assert_descriptors_return_to(&provider, before).await?;
    StandIn::assert_reached_through(port).await
}

/// Started as most shells and containers start a program: with room for 1,024 descriptors, unless it raises that itself.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_usual_soft_limit_six_hundred_sessions_leave_room_for_all_else() -> Result<()> {
    const SESSIONS: usize = 600;
    raise_own_descriptors(8 * SESSIONS as u64)?;
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("MAX_CONNECTIONS_PER_VM", SESSIONS).with_descriptors(1024, 4096);
    let (provider, port) = provider_of(ssh.address(), setup).await?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(port).await?);
    }
    ensure!(descriptors(&provider)? > 2 * SESSIONS);
    let other = create(&provider, "other-vm").await?;
    StandIn::assert_reached_through(other).await
}

/// Where not even the provider may raise the limit, sessions are refused before descriptors run out.
#[tokio::test(flavor = "multi_thread")]
async fn where_descriptors_are_few_sessions_leave_some_for_requests_and_vms() -> Result<()> {
    const LIMIT: u64 = 1024;
    raise_own_descriptors(4 * LIMIT)?;
    let ssh = StandIn::start().await?;
    let setup = Setup::new()?.with("MAX_CONNECTIONS_PER_VM", 1000).with_descriptors(LIMIT, LIMIT);
    let (provider, port) = provider_of(ssh.address(), setup).await?;
    let mut sessions = Vec::new();
    let refused = loop {
        match session(port).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        ensure!(sessions.len() < 512, "more sessions than descriptors");
    };
    ensure!(format!("{refused:#}").contains("reset"), "{refused:#}");
    ensure!(sessions.len() >= 200, "only {} sessions", sessions.len());
    // A crowd at the API beside them.
    let mut idle = Vec::new();
    for _ in 0..400 {
        idle.push(connect(provider.api_port()).await?);
    }
    provider.client().get("/vms/my-vm").await?.expect(200)?;
    drop(sessions.pop());
    let other = create(&provider, "other-vm").await?;
    wait::until("a new session", PROMPT, Duration::from_millis(20), async || {
        Ok(session(other).await.ok())
    })
    .await?;
    let log = provider.log()?;
    ensure!(
        log.contains(
            "all machines together have as many as the limit of open files allows; raise that"
        ),
        "the log does not say why sessions were refused"
    );
    ensure!(!log.contains("Too many open files"), "descriptors ran out");
    Ok(())
}
