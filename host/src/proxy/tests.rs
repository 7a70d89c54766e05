//! The proxy against stand-in machines on the loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use proptest::prelude::*;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::listener::OpenSession;
use super::*;

/// Far more than anything here takes; reached only by a fault.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1024 * 1024;

fn config() -> ProxyConfig {
    ProxyConfig { bind: Ipv4Addr::LOCALHOST.into(), ..ProxyConfig::default() }
}

/// Opens some free port.
async fn open(proxy: &Proxy, target: Option<SocketAddr>) -> u16 {
    loop {
        let port = {
            let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            probe.local_addr().unwrap().port()
        };
        match proxy.open(port, target).await {
            Ok(()) => return port,
            Err(OpenError::InUse(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn machine() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A machine whose port drops every connection attempt without a word, and what keeps it so.
async fn silent_machine() -> (SocketAddr, SilentMachine) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    // Twice without an answer: once could be this machine being busy.
    let mut unanswered = 0;
    while unanswered < 2 {
        let attempt = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(300), attempt).await {
            Ok(stream) => queued.push(stream.unwrap()),
            Err(_) => unanswered += 1,
        }
    }
    (address, SilentMachine { listener, queued })
}

struct SilentMachine {
    listener: TcpListener,
    queued: Vec<TcpStream>,
}

impl SilentMachine {
    /// Makes it take connections.
    async fn wake(self) -> TcpListener {
        for _ in &self.queued {
            accept(&self.listener).await;
        }
        self.listener
    }
}

async fn connect(port: u16) -> TcpStream {
    within(TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await.unwrap()
}

async fn accept(machine: &TcpListener) -> TcpStream {
    within(machine.accept()).await.unwrap().0
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("waited for longer than anything here takes")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn no_session_is_left(proxy: &Proxy, port: u16) {
    no_more_than(proxy, port, 0).await;
}

async fn no_more_than(proxy: &Proxy, port: u16, sessions: u64) {
    let open = || proxy.counters(port).unwrap().connections_open;
    eventually("as few sessions as that", || open() <= sessions).await;
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

async fn must_be_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    let error = within(stream.read(&mut byte)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Both ends answer each other, so the session is past being set up.
async fn shake_hands(client: &mut TcpStream, vm: &mut TcpStream) {
    let mut byte = [0];
    client.write_all(b"?").await.unwrap();
    within(vm.read_exact(&mut byte)).await.unwrap();
    vm.write_all(b"!").await.unwrap();
    within(client.read_exact(&mut byte)).await.unwrap();
}

/// Bytes without a short period, so that none can be lost, doubled or moved unseen.
fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as u8
        })
        .collect()
}

#[tokio::test]
async fn an_answer_after_the_end_of_the_question_arrives() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    for _ in 0..20 {
        let mut client = connect(port).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut vm = accept(&machine).await;
        assert_eq!(read_to_end(&mut vm).await, b"question");
        vm.write_all(b"answer").await.unwrap();
        drop(vm);
        assert_eq!(read_to_end(&mut client).await, b"answer");
    }
    no_session_is_left(&proxy, port).await;
}

#[tokio::test]
async fn a_client_can_go_on_after_the_machine_has_ended_its_stream() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    for _ in 0..20 {
        let mut client = connect(port).await;
        let mut vm = accept(&machine).await;
        vm.write_all(b"greeting").await.unwrap();
        vm.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await, b"greeting");
        client.write_all(b"farewell").await.unwrap();
        drop(client);
        assert_eq!(read_to_end(&mut vm).await, b"farewell");
    }
    no_session_is_left(&proxy, port).await;
}

/// 20 MB up, the end, and only then 20 MB down.
async fn a_large_answer_after_the_end_of_a_large_question(config: ProxyConfig) {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config);
    let port = open(&proxy, Some(address)).await;
    let (question, answer) = (bytes(20_000_000, 1), bytes(20_000_000, 2));
    let expected = (question.clone(), answer.clone());
    let vm = tokio::spawn(async move {
        let mut vm = accept(&machine).await;
        let heard = read_to_end(&mut vm).await;
        within(vm.write_all(&answer)).await.unwrap();
        heard
    });
    let mut client = connect(port).await;
    within(client.write_all(&question)).await.unwrap();
    client.shutdown().await.unwrap();
    let heard = read_to_end(&mut client).await;
    assert!(vm.await.unwrap() == expected.0, "the question has changed");
    assert!(heard == expected.1, "the answer has changed");
    no_session_is_left(&proxy, port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_up_and_then_down_arrive_unchanged() {
    a_large_answer_after_the_end_of_a_large_question(config()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_up_and_then_down_arrive_unchanged_without_pipes() {
    a_large_answer_after_the_end_of_a_large_question(ProxyConfig { max_bulk_pipes: 0, ..config() })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_in_both_directions_at_once_arrive_unchanged_with_fewer_pipes_than_streams() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { max_bulk_pipes: 3, ..config() });
    let port = open(&proxy, Some(address)).await;
    let mut ends = JoinSet::new();
    for seed in 0..4 {
        let client = connect(port).await;
        let vm = accept(&machine).await;
        for (end, own, others) in [(client, seed, seed + 10), (vm, seed + 10, seed)] {
            ends.spawn(async move {
                let (mut read, mut write) = end.into_split();
                let send = async {
                    within(write.write_all(&bytes(8 * MIB, own))).await.unwrap();
                    write.shutdown().await.unwrap();
                };
                let receive = async {
                    let mut heard = Vec::new();
                    within(read.read_to_end(&mut heard)).await.unwrap();
                    assert!(heard == bytes(8 * MIB, others), "bytes have changed");
                };
                tokio::join!(send, receive);
            });
        }
    }
    while let Some(end) = ends.join_next().await {
        end.unwrap();
    }
    no_session_is_left(&proxy, port).await;
    let counters = proxy.counters(port).unwrap();
    assert_eq!(counters.bytes_to_vm, 4 * 8 * MIB as u64);
    assert_eq!(counters.bytes_from_vm, 4 * 8 * MIB as u64);
}

#[tokio::test]
async fn five_bytes_and_an_immediate_close_are_delivered() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    for round in 0..50_u8 {
        let mut client = connect(port).await;
        client.write_all(&[b'b', b'y', b'e', b' ', round]).await.unwrap();
        drop(client);
        let mut vm = accept(&machine).await;
        assert_eq!(read_to_end(&mut vm).await, [b'b', b'y', b'e', b' ', round]);
    }
    no_session_is_left(&proxy, port).await;
}

/// Writes until nothing has been accepted for a while; how much was accepted.
async fn write_until_held_up(stream: &mut TcpStream, offered: usize) -> usize {
    let chunk = vec![7; 64 * 1024];
    let mut accepted = 0;
    while accepted < offered {
        match tokio::time::timeout(Duration::from_secs(1), stream.write(&chunk)).await {
            Ok(written) => accepted += written.unwrap(),
            Err(_) => break,
        }
    }
    accepted
}

async fn a_reader_that_never_reads(config: ProxyConfig) {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config);
    let port = open(&proxy, Some(address)).await;
    for a_machine_reads in [false, true] {
        let mut client = connect(port).await;
        let mut vm = accept(&machine).await;
        shake_hands(&mut client, &mut vm).await;
        let (writer, reader) =
            if a_machine_reads { (&mut client, &mut vm) } else { (&mut vm, &mut client) };
        let accepted = write_until_held_up(writer, 256 * MIB).await;
        // Four socket buffers, which the system lets grow, and one pipe or copy in between.
        assert!(accepted < 64 * MIB, "{accepted} bytes were taken");
        // What was taken has only been waiting.
        writer.shutdown().await.unwrap();
        assert_eq!(read_to_end(reader).await.len(), accepted);
    }
    no_session_is_left(&proxy, port).await;
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_up_the_sender() {
    a_reader_that_never_reads(config()).await;
}

#[tokio::test]
async fn a_reader_that_never_reads_holds_up_the_sender_without_pipes() {
    a_reader_that_never_reads(ProxyConfig { max_bulk_pipes: 0, ..config() }).await;
}

#[tokio::test]
async fn a_client_whose_machine_refuses_is_reset() {
    let (machine, address) = machine().await;
    drop(machine);
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    must_be_reset(&mut connect(port).await).await;
    no_session_is_left(&proxy, port).await;
    let counters = proxy.counters(port).unwrap();
    assert_eq!(counters.connections_total, 1);
    assert_eq!(counters.connections_refused, 1);
}

#[tokio::test]
async fn a_client_whose_machine_does_not_answer_is_reset_in_time() {
    let (address, _machine) = silent_machine().await;
    let proxy = Proxy::new(ProxyConfig { connect_timeout: Duration::from_millis(200), ..config() });
    let port = open(&proxy, Some(address)).await;
    must_be_reset(&mut connect(port).await).await;
    no_session_is_left(&proxy, port).await;
    assert_eq!(proxy.counters(port).unwrap().connections_refused, 1);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_machine_does_not_answer_is_noticed() {
    let (address, _machine) = silent_machine().await;
    let proxy = Proxy::new(ProxyConfig { connect_timeout: Duration::from_secs(3600), ..config() });
    let port = open(&proxy, Some(address)).await;
    let session_is_open = || proxy.counters(port).unwrap().connections_open == 1;

    let client = connect(port).await;
    eventually("a session is open", session_is_open).await;
    client.set_zero_linger().unwrap();
    drop(client);
    no_session_is_left(&proxy, port).await;

    let client = connect(port).await;
    eventually("a session is open", session_is_open).await;
    drop(client);
    no_session_is_left(&proxy, port).await;

    assert_eq!(proxy.counters(port).unwrap().connections_refused, 0);
}

#[tokio::test]
async fn what_a_client_sent_before_its_machine_answered_is_delivered() {
    let (address, machine) = silent_machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    client.write_all(b"early").await.unwrap();
    client.shutdown().await.unwrap();
    eventually("a session is open", || proxy.counters(port).unwrap().connections_open == 1).await;
    // Room in the queue again; the system repeats the attempt within a second.
    let listener = machine.wake().await;
    let mut vm = accept(&listener).await;
    assert_eq!(read_to_end(&mut vm).await, b"early");
    vm.write_all(b"late").await.unwrap();
    drop(vm);
    assert_eq!(read_to_end(&mut client).await, b"late");
}

#[tokio::test]
async fn a_machine_that_accepts_and_says_nothing_keeps_its_session() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { connect_timeout: Duration::from_millis(50), ..config() });
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(proxy.counters(port).unwrap().connections_open, 1);
    shake_hands(&mut client, &mut vm).await;
}

#[tokio::test]
async fn a_machine_that_appears_later_is_reached_then() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, None).await;
    must_be_reset(&mut connect(port).await).await;
    assert_eq!(proxy.counters(port).unwrap().connections_refused, 1);

    proxy.set_target(port, Some(address));
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
}

#[tokio::test]
async fn a_new_target_takes_new_connections_and_leaves_the_old_ones() {
    let (first, first_address) = machine().await;
    let (second, second_address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(first_address)).await;
    let mut old = (connect(port).await, accept(&first).await);
    proxy.set_target(port, Some(second_address));
    let mut new = (connect(port).await, accept(&second).await);
    shake_hands(&mut new.0, &mut new.1).await;
    shake_hands(&mut old.0, &mut old.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_opened_and_dropped_at_once_leave_no_session() {
    let (machine, address) = machine().await;
    let mut vms = JoinSet::new();
    vms.spawn(async move {
        let mut held = JoinSet::new();
        loop {
            let (mut vm, _) = machine.accept().await.unwrap();
            held.spawn(async move {
                let mut sink = Vec::new();
                let _ = vm.read_to_end(&mut sink).await;
            });
            while held.try_join_next().is_some() {}
        }
    });
    // Room for all of them: where the machine is slow, sessions end later than new ones come.
    let proxy = Proxy::new(ProxyConfig { max_connections_per_vm: 1000, ..config() });
    let port = open(&proxy, Some(address)).await;
    for round in 0..1000 {
        let client = connect(port).await;
        if round % 2 == 0 {
            client.set_zero_linger().unwrap();
        }
    }
    eventually("all have been seen", || {
        let counters = proxy.counters(port).unwrap();
        counters.connections_total == 1000 && counters.connections_open == 0
    })
    .await;
}

#[tokio::test]
async fn one_connection_too_many_is_reset_until_another_one_ends() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { max_connections_per_vm: 3, ..config() });
    let port = open(&proxy, Some(address)).await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push((connect(port).await, accept(&machine).await));
    }
    must_be_reset(&mut connect(port).await).await;
    must_be_reset(&mut connect(port).await).await;
    let counters = proxy.counters(port).unwrap();
    assert_eq!(counters.connections_open, 3);
    assert_eq!(counters.connections_total, 5);
    assert_eq!(counters.connections_refused, 2);

    drop(sessions.pop());
    no_more_than(&proxy, port, 2).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
}

#[tokio::test]
async fn all_machines_together_have_no_more_connections_than_they_may() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { max_connections: 3, ..config() });
    let ports = [open(&proxy, Some(address)).await, open(&proxy, Some(address)).await];
    let mut sessions = Vec::new();
    for port in [ports[0], ports[1], ports[1]] {
        sessions.push((connect(port).await, accept(&machine).await));
    }
    for port in ports {
        must_be_reset(&mut connect(port).await).await;
        assert_eq!(proxy.counters(port).unwrap().connections_refused, 1);
    }
    drop(sessions.pop());
    no_more_than(&proxy, ports[1], 1).await;
    let mut client = connect(ports[0]).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
}

#[tokio::test]
async fn the_reset_of_a_client_reaches_the_machine() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
    client.set_zero_linger().unwrap();
    drop(client);
    must_be_reset(&mut vm).await;
    no_session_is_left(&proxy, port).await;
}

#[tokio::test]
async fn the_reset_of_a_machine_reaches_the_client() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
    vm.set_zero_linger().unwrap();
    drop(vm);
    must_be_reset(&mut client).await;
    no_session_is_left(&proxy, port).await;
}

#[tokio::test]
async fn a_reset_after_the_end_of_the_stream_is_noticed() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut vm).await, b"");
    client.set_zero_linger().unwrap();
    drop(client);
    eventually("the machine can no longer write", || vm.take_error().unwrap().is_some()).await;
    no_session_is_left(&proxy, port).await;
}

#[tokio::test]
async fn a_client_that_aborts_while_its_machine_does_not_read_is_noticed() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
    write_until_held_up(&mut client, 256 * MIB).await;
    client.set_zero_linger().unwrap();
    drop(client);
    no_session_is_left(&proxy, port).await;
    // Part of the stream may still be there to read, but it does not end well.
    let mut sink = Vec::new();
    let error = within(vm.read_to_end(&mut sink)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_machine_that_stops_ends_a_hundred_sessions() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { max_connections_per_vm: 128, ..config() });
    let port = open(&proxy, Some(address)).await;
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push((connect(port).await, accept(&machine).await));
    }
    // Started again so soon that no listener sees it stopped.
    proxy.set_target(port, None);
    proxy.set_target(port, Some(address));
    for (client, vm) in &mut sessions {
        must_be_reset(client).await;
        must_be_reset(vm).await;
    }
    no_session_is_left(&proxy, port).await;
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
}

#[tokio::test]
async fn closing_a_port_ends_a_hundred_sessions() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(ProxyConfig { max_connections_per_vm: 128, ..config() });
    let port = open(&proxy, Some(address)).await;
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push((connect(port).await, accept(&machine).await));
    }
    within(proxy.close(port)).await;
    assert!(!proxy.is_open(port));
    assert_eq!(proxy.counters(port), None);
    for (client, vm) in &mut sessions {
        must_be_reset(client).await;
        must_be_reset(vm).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_can_be_opened_again_at_once() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    for _ in 0..20 {
        let mut client = connect(port).await;
        let mut vm = accept(&machine).await;
        shake_hands(&mut client, &mut vm).await;
        within(proxy.close(port)).await;
        // By others, who know nothing of lingering connections, and by the proxy.
        drop(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        proxy.open(port, Some(address)).await.unwrap();
    }
}

#[tokio::test]
async fn a_port_that_is_open_or_taken_is_refused_by_name() {
    let proxy = Proxy::new(config());
    let port = open(&proxy, None).await;
    assert!(proxy.is_open(port));
    let again = proxy.open(port, None).await.unwrap_err();
    assert!(matches!(again, OpenError::AlreadyOpen(p) if p == port));
    assert!(proxy.is_open(port));

    let (_other, address) = machine().await;
    let taken = proxy.open(address.port(), None).await.unwrap_err();
    assert!(matches!(taken, OpenError::InUse(p) if p == address.port()));
    assert!(!proxy.is_open(address.port()));

    let none = proxy.open(0, None).await.unwrap_err();
    assert!(matches!(none, OpenError::Io { port: 0, .. }));
}

#[tokio::test]
async fn a_shutdown_ends_everything_and_opens_nothing_more() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let ports = [open(&proxy, Some(address)).await, open(&proxy, Some(address)).await];
    let mut sessions = Vec::new();
    for port in ports {
        sessions.push((connect(port).await, accept(&machine).await));
    }
    within(proxy.shutdown(PATIENCE)).await;
    for (client, vm) in &mut sessions {
        must_be_reset(client).await;
        must_be_reset(vm).await;
    }
    for port in ports {
        assert!(!proxy.is_open(port));
        drop(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
    }
    let error = proxy.open(ports[0], None).await.unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }));
}

#[tokio::test]
async fn a_proxy_that_is_dropped_gives_its_ports_back() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let mut client = connect(port).await;
    let _vm = accept(&machine).await;
    drop(proxy);
    must_be_reset(&mut client).await;
    eventually("the port is free", || {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    })
    .await;
}

#[tokio::test]
async fn the_counters_tell_what_has_passed() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    assert_eq!(proxy.counters(port), Some(Counters::default()));
    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    client.write_all(b"12345").await.unwrap();
    let mut heard = [0; 5];
    within(vm.read_exact(&mut heard)).await.unwrap();
    vm.write_all(b"678").await.unwrap();
    within(client.read_exact(&mut heard[..3])).await.unwrap();
    eventually("the bytes have been counted", || {
        let counters = proxy.counters(port).unwrap();
        counters.bytes_to_vm == 5 && counters.bytes_from_vm == 3
    })
    .await;
    drop((client, vm));
    no_session_is_left(&proxy, port).await;
    assert_eq!(
        proxy.counters(port),
        Some(Counters {
            connections_open: 0,
            connections_total: 1,
            connections_refused: 0,
            bytes_to_vm: 5,
            bytes_from_vm: 3,
        })
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn bulk_streams_use_pipes_and_give_them_back() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let lent = || proxy.shared.pipes.lent();

    let mut client = connect(port).await;
    let mut vm = accept(&machine).await;
    shake_hands(&mut client, &mut vm).await;
    assert_eq!(lent(), 0);
    let mut accepted = 0;
    while lent() == 0 {
        accepted += write_until_held_up(&mut client, 256 * MIB).await;
    }
    let mut heard = vec![0; accepted];
    within(vm.read_exact(&mut heard)).await.unwrap();
    eventually("a stream that pauses has given its pipe back", || lent() == 0).await;

    while lent() == 0 {
        write_until_held_up(&mut client, 256 * MIB).await;
    }
    drop((client, vm));
    eventually("a stream that was aborted has given its pipe back", || lent() == 0).await;
}

#[tokio::test]
async fn a_session_is_small() {
    let (machine, address) = machine().await;
    let proxy = Proxy::new(config());
    let port = open(&proxy, Some(address)).await;
    let client = connect(port).await;
    let _vm = accept(&machine).await;
    let link = proxy.shared.registry.link(port).unwrap();
    let session = session::run(client, address, OpenSession::new(&link).unwrap());
    let size = std::mem::size_of_val(&session);
    // With the task's own header and the two sockets' registrations this stays below 2.5 KiB.
    assert!(size <= 640, "{size} bytes");
}

#[tokio::test]
async fn connections_send_at_once_and_are_probed_when_idle_unless_the_machine_is_right_here() {
    let keep_alive = config().keep_alive;
    let elsewhere = socket::socket_towards(([192, 0, 2, 1], 22).into(), keep_alive).unwrap();
    let here = socket::socket_towards(([127, 0, 0, 1], 22).into(), keep_alive).unwrap();
    let listener = {
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = port.local_addr().unwrap().port();
        drop(port);
        listen(&config(), number).unwrap()
    };
    let _client = connect(listener.local_addr().unwrap().port()).await;
    let client = accept(&listener).await;

    assert!(sockopt::tcp_nodelay(&here).unwrap());
    assert!(!sockopt::socket_keepalive(&here).unwrap());
    for fd in [elsewhere.as_fd(), client.as_fd()] {
        assert!(sockopt::tcp_nodelay(fd).unwrap());
        assert!(sockopt::socket_keepalive(fd).unwrap());
        assert_eq!(sockopt::tcp_keepidle(fd).unwrap(), keep_alive.idle);
        assert_eq!(sockopt::tcp_keepintvl(fd).unwrap(), keep_alive.interval);
        assert_eq!(sockopt::tcp_keepcnt(fd).unwrap(), keep_alive.probes);
    }
}

/// What one end does.
#[derive(Clone, Debug)]
enum Act {
    Send(usize),
    Pause,
}

fn script() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1_usize..100).prop_map(Act::Send),
        3 => (1_usize..300_000).prop_map(Act::Send),
        1 => (1_usize..3_000_000).prop_map(Act::Send),
        2 => Just(Act::Pause),
    ];
    prop::collection::vec(act, 0..12)
}

/// Plays one end; what it heard until the other end's clean end.
async fn play(stream: TcpStream, script: &[Act], seed: u32, read_size: usize) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let send = async {
        let total = total(script);
        let bytes = bytes(total, seed);
        let mut rest = &bytes[..];
        for act in script {
            match act {
                Act::Pause => tokio::time::sleep(Duration::from_millis(1)).await,
                Act::Send(count) => {
                    let (piece, after) = rest.split_at(*count);
                    within(write.write_all(piece)).await.unwrap();
                    rest = after;
                }
            }
        }
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut heard = Vec::new();
        let mut buffer = vec![0; read_size];
        loop {
            match within(read.read(&mut buffer)).await.unwrap() {
                0 => return heard,
                count => heard.extend_from_slice(&buffer[..count]),
            }
        }
    };
    tokio::join!(send, receive).1
}

fn total(script: &[Act]) -> usize {
    script
        .iter()
        .map(|act| match act {
            Act::Send(count) => *count,
            Act::Pause => 0,
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_sent_arrives_in_full_and_in_order(
        up in script(),
        down in script(),
        read_sizes in (1_usize..200_000, 1_usize..200_000),
        max_bulk_pipes in 0_usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (machine, address) = machine().await;
            let proxy = Proxy::new(ProxyConfig { max_bulk_pipes, ..config() });
            let port = open(&proxy, Some(address)).await;
            let client = connect(port).await;
            let vm = accept(&machine).await;
            let (client_heard, vm_heard) = tokio::join!(
                play(client, &up, 1, read_sizes.0.max(100)),
                play(vm, &down, 2, read_sizes.1.max(100)),
            );
            assert!(vm_heard == bytes(total(&up), 1), "what the client sent has changed");
            assert!(client_heard == bytes(total(&down), 2), "what the machine sent has changed");
            no_session_is_left(&proxy, port).await;
        });
    }
}
