//! The verifier against servers on loopback that do as they are told. With routers and real servers it is tested end to end.

use std::{
    collections::VecDeque,
    net::TcpListener as StdListener,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use async_trait::async_trait;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use super::*;
use crate::vms::testing::free_ports;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a server does with a question.
#[derive(Debug, Clone, Copy)]
enum Behaviour {
    /// Tries, and tells what it found.
    Honest,
    Says(bool),
    /// 429, with the seconds after which it wants to be asked again.
    Limits(u32),
}

/// Answers its questions as the list says; the last entry is for all further ones.
struct Server {
    url: String,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(behaviours: impl IntoIterator<Item = Behaviour>) -> Server {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut behaviours: VecDeque<Behaviour> = behaviours.into_iter().collect();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let behaviour = behaviours[0];
                if behaviours.len() > 1 {
                    behaviours.pop_front();
                }
                let ports = question(&mut stream).await;
                let (status, body) = answer(behaviour, &ports).await;
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        });
        Server { url, serving }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn question(stream: &mut TcpStream) -> Vec<u16> {
    let mut request = Vec::new();
    loop {
        stream.read_buf(&mut request).await.unwrap();
        let text = String::from_utf8_lossy(&request);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        if let Ok(body) = serde_json::from_str::<Value>(body) {
            return serde_json::from_value(body["ports"].clone()).unwrap();
        }
    }
}

async fn answer(behaviour: Behaviour, ports: &[u16]) -> (String, String) {
    let mut results = serde_json::Map::new();
    for port in ports {
        let accessible = match behaviour {
            Behaviour::Honest => TcpStream::connect((LOCALHOST, *port)).await.is_ok(),
            Behaviour::Says(open) => open,
            Behaviour::Limits(seconds) => {
                return (format!("429 Too Many Requests\r\nretry-after: {seconds}"), String::new());
            }
        };
        results.insert(port.to_string(), json!({ "accessible": accessible }));
    }
    ("200 OK".to_owned(), json!({ "results": results }).to_string())
}

/// A provider with an API that takes connections, and three ports.
struct Fixture {
    config: VerifierConfig,
    ports: PortAllocator,
    serving: Arc<Mutex<BTreeSet<u16>>>,
    _api: StdListener,
}

impl Fixture {
    fn new(servers: &[&Server]) -> Fixture {
        let api = StdListener::bind((LOCALHOST, 0)).unwrap();
        let config = VerifierConfig {
            verification: Verification::Wanted,
            api: api.local_addr().unwrap(),
            bind: LOCALHOST,
            max_vms: 10,
            servers: servers.iter().map(|server| server.url.clone()).collect(),
            quorum: PortQuorum::Majority,
            unverified_ports: UnverifiedPorts::Warn,
            interval: Duration::from_secs(3600),
            peers: 0,
            address: Some(PublicAddress { address: LOCALHOST, origin: AddressOrigin::Setting }),
            sources: Vec::new(),
            timing: Timing::default(),
            shown: false,
        };
        let ports = config.allocator(free_ports(3)).unwrap();
        Fixture { config, ports, serving: Arc::default(), _api: api }
    }

    fn verifier(&self) -> Verifier {
        let serving = Arc::clone(&self.serving);
        Verifier::new(self.config.clone(), self.ports.clone(), move || {
            serving.lock().unwrap().clone()
        })
    }

    fn handed_out(&self) -> Vec<u16> {
        self.ports.candidates(BTreeSet::new()).collect()
    }

    fn all(&self) -> Vec<u16> {
        self.ports.range().collect()
    }
}

async fn verified(verifier: &mut Verifier) -> Reachability {
    verifier.verify(Display::new(false)).await;
    verifier.reachability().borrow().clone()
}

#[tokio::test]
async fn ports_are_handed_out_once_they_were_verified_and_are_free_again() {
    let server = Server::start([Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let mut verifier = fixture.verifier();
    assert_eq!(verifier.reachability().borrow().may_be_advertised(), Err(NotAdvertisable::Pending));
    assert!(fixture.handed_out().is_empty());
    let known = verified(&mut verifier).await;
    assert_eq!(known.status, VerificationStatus::Verified);
    assert_eq!(known.provider_port.external, PortState::Open);
    assert_eq!(known.provider_port.internal, Some(true));
    assert_eq!(known.ssh_ports.usable, fixture.all());
    assert_eq!(fixture.handed_out(), fixture.all());
    assert_eq!(known.max_vms, 3);
    assert_eq!(known.may_be_advertised(), Ok(LOCALHOST));
    for port in fixture.all() {
        StdListener::bind((LOCALHOST, port)).unwrap();
    }
}

#[tokio::test]
async fn a_lone_server_that_calls_everything_open_is_not_believed_where_nobody_arrives() {
    let server = Server::start([Behaviour::Says(true)]).await;
    let fixture = Fixture::new(&[&server]);
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.ssh_ports.misdirected, fixture.all());
    assert_eq!(known.may_be_advertised(), Err(NotAdvertisable::NoSshPort));
    assert_eq!(known.servers[0].health, ServerHealth::Outvoted);
    assert!(fixture.handed_out().is_empty());
}

#[tokio::test]
async fn two_servers_that_contradict_each_other_decide_nothing() {
    let honest = Server::start([Behaviour::Honest]).await;
    let liar = Server::start([Behaviour::Says(false)]).await;
    let fixture = Fixture::new(&[&honest, &liar]);
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.status, VerificationStatus::Unverified);
    assert_eq!(known.ssh_ports.unverified, fixture.all());
    assert_eq!(
        known.may_be_advertised(),
        Err(NotAdvertisable::Unverified(fixture.config.api.port()))
    );
}

#[tokio::test]
async fn what_another_program_has_is_not_handed_out_and_nobody_is_asked_about_it() {
    let server = Server::start([Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let taken = fixture.ports.range().start + 1;
    let _other = StdListener::bind((LOCALHOST, taken)).unwrap();
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.ssh_ports.occupied, [taken]);
    assert_eq!(known.servers[0].ports_checked, 3);
    assert!(!fixture.handed_out().contains(&taken));
}

#[tokio::test]
async fn ports_that_serve_vms_are_checked_as_they_are() {
    let server = Server::start([Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let (open, silent) = (fixture.ports.range().start, fixture.ports.range().start + 1);
    let _vm = StdListener::bind((LOCALHOST, open)).unwrap();
    fixture.serving.lock().unwrap().extend([open, silent]);
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.ssh_ports.usable, [open, silent + 1]);
    // Nobody listens there, and the verifier does not either.
    assert_eq!(known.ssh_ports.vms_cut_off, [silent]);
}

#[tokio::test]
async fn a_server_that_limits_us_is_waited_for_where_no_other_answers() {
    let server = Server::start([Behaviour::Limits(1), Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.ssh_ports.usable, fixture.all());
    assert_eq!(known.servers[0].health, ServerHealth::Good);
}

#[tokio::test]
async fn what_was_verified_stays_when_nobody_answers_later_and_goes_with_the_address() {
    let server = Server::start([Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let mut verifier = fixture.verifier();
    let first = verified(&mut verifier).await;
    drop(server);
    let later = verified(&mut verifier).await;
    assert_eq!(later.status, VerificationStatus::Verified);
    assert_eq!(later.verified_at, first.verified_at);
    assert!(later.checked_at > first.checked_at);
    assert_eq!(later.servers[0].health, ServerHealth::Down);
    assert_eq!(fixture.handed_out(), fixture.all());
    assert!(!is_well(&later), "it is looked at again soon");

    let elsewhere =
        PublicAddress { address: [127, 0, 0, 2].into(), origin: AddressOrigin::Setting };
    verifier.published.send_modify(|report| report.address = Some(elsewhere));
    let moved = verified(&mut verifier).await;
    assert_eq!((moved.status, moved.verified_at), (VerificationStatus::Unverified, None));
    assert!(fixture.handed_out().is_empty());
}

#[tokio::test]
async fn what_was_verified_counts_for_a_day_where_nobody_answers() {
    let server = Server::start([Behaviour::Honest]).await;
    let fixture = Fixture::new(&[&server]);
    let mut verifier = fixture.verifier();
    verified(&mut verifier).await;
    drop(server);
    for (hours, status) in
        [(23, VerificationStatus::Verified), (25, VerificationStatus::Unverified)]
    {
        let then = Timestamp::now() - SignedDuration::from_hours(hours);
        verifier.published.send_modify(|report| report.verified_at = Some(then));
        assert_eq!(verified(&mut verifier).await.status, status, "after {hours} h");
    }
    assert!(fixture.handed_out().is_empty());
}

#[tokio::test]
async fn a_provider_that_trusts_unverified_ports_is_not_withdrawn_while_it_asks_again() {
    let mut fixture = Fixture::new(&[]);
    fixture.config.unverified_ports = UnverifiedPorts::Trust;
    let mut verifier = fixture.verifier();
    assert!(verified(&mut verifier).await.may_be_advertised().is_ok());
    // Never answers, so that the check stays under way.
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    verifier.config.servers = vec![format!("http://{}", listener.local_addr().unwrap())];
    let known = verifier.reachability();
    let asking = tokio::spawn(async move { verifier.verify(Display::new(false)).await });
    let (_question, _) = listener.accept().await.unwrap();
    assert!(known.borrow().checking && known.borrow().may_be_advertised().is_ok());
    asking.abort();
}

#[tokio::test]
async fn a_server_that_is_named_twice_has_one_vote() {
    let liar = Server::start([Behaviour::Says(false)]).await;
    let honest = Server::start([Behaviour::Honest]).await;
    let mut fixture = Fixture::new(&[&liar, &honest]);
    fixture.config.servers.push(format!("{}/", liar.url));
    let known = verified(&mut fixture.verifier()).await;
    assert_eq!(known.servers.len(), 2);
    assert_eq!(known.status, VerificationStatus::Unverified);
}

#[tokio::test]
async fn a_vm_gets_its_port_at_once_although_it_is_under_test() {
    // Hears the question, and never answers.
    let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
    let mut fixture = Fixture::new(&[]);
    fixture.config.servers = vec![format!("http://{}", listener.local_addr().unwrap())];
    let mut verifier = fixture.verifier();
    let port = fixture.ports.range().start;
    let under_test = tokio::spawn(async move { verifier.verify(Display::new(false)).await });
    let (_question, _) = listener.accept().await.unwrap();
    assert!(StdListener::bind((LOCALHOST, port)).is_err());
    {
        let _claim = fixture.ports.claim(port);
        StdListener::bind((LOCALHOST, port)).unwrap();
    }
    // Given up in the middle, it leaves no listener behind.
    under_test.abort();
    assert!(under_test.await.unwrap_err().is_cancelled());
    for port in fixture.all() {
        StdListener::bind((LOCALHOST, port)).unwrap();
    }
}

#[tokio::test]
async fn ports_are_verified_again_when_the_addresses_of_the_machine_change() {
    static LOOKS: AtomicU8 = AtomicU8::new(0);
    let server = Server::start([Behaviour::Honest]).await;
    let mut fixture = Fixture::new(&[&server]);
    fixture.config.timing.network = Duration::from_millis(10);
    let mut verifier = fixture.verifier();
    // From the fifth look on there is another address.
    verifier.interfaces = || {
        let looks = LOOKS.fetch_add(1, Ordering::Relaxed);
        BTreeSet::from([IpAddr::from([192, 0, 2, if looks < 5 { 1 } else { 2 }])])
    };
    let mut known = verifier.reachability();
    let stop = CancellationToken::new();
    let running = tokio::spawn(verifier.run(stop.clone()));
    let first = known.wait_for(|known| known.checked_at.is_some()).await.unwrap().checked_at;
    known.wait_for(|known| known.checked_at != first).await.unwrap();
    assert!(LOOKS.load(Ordering::Relaxed) > 5);
    stop.cancel();
    running.await.unwrap().unwrap();
}

struct Peers(Vec<String>, AtomicBool);

#[async_trait]
impl PeerSource for Peers {
    async fn base_urls(&self) -> Vec<String> {
        self.1.store(true, Ordering::Relaxed);
        self.0.clone()
    }
}

#[tokio::test]
async fn peers_have_a_vote_each_like_servers() {
    let liar = Server::start([Behaviour::Says(false)]).await;
    let (one, other) =
        (Server::start([Behaviour::Honest]).await, Server::start([Behaviour::Honest]).await);
    let mut fixture = Fixture::new(&[&liar]);
    fixture.config.peers = 2;
    let peers = Arc::new(Peers(vec![one.url.clone(), other.url.clone()], AtomicBool::new(false)));
    let known = verified(&mut fixture.verifier().with_peers(peers.clone())).await;
    assert_eq!(known.ssh_ports.usable, fixture.all());
    let kinds: Vec<ServerKind> = known.servers.iter().map(|server| server.kind).collect();
    assert_eq!(kinds, [ServerKind::Configured, ServerKind::Peer, ServerKind::Peer]);
    assert_eq!(known.servers[0].health, ServerHealth::Outvoted);

    fixture.config.peers = 0;
    peers.1.store(false, Ordering::Relaxed);
    let known = verified(&mut fixture.verifier().with_peers(peers.clone())).await;
    assert_eq!((known.servers.len(), peers.1.load(Ordering::Relaxed)), (1, false));
}

#[tokio::test]
async fn without_servers_the_setting_decides() {
    for (policy, usable, is_refused) in [
        (UnverifiedPorts::Warn, 0, false),
        (UnverifiedPorts::Trust, 3, false),
        (UnverifiedPorts::Refuse, 0, true),
    ] {
        let mut fixture = Fixture::new(&[]);
        fixture.config.unverified_ports = policy;
        let verifier = fixture.verifier();
        let mut known = verifier.reachability();
        let stop = CancellationToken::new();
        let running = tokio::spawn(verifier.run(stop.clone()));
        let known = known.wait_for(|known| known.checked_at.is_some()).await.unwrap().clone();
        assert_eq!(known.status, VerificationStatus::Unverified);
        assert_eq!(known.max_vms, usable);
        assert_eq!(known.may_be_advertised().is_ok(), policy == UnverifiedPorts::Trust);
        assert_eq!(fixture.handed_out().len(), usable as usize);
        if !is_refused {
            stop.cancel();
        }
        assert_eq!(running.await.unwrap().is_err(), is_refused);
    }
}

proptest! {
    #[test]
    fn after_setbacks_the_next_check_comes_soon_and_never_later_than_usual(setbacks in 0u32..1000, interval in 5u64..86_400) {
        let api = SocketAddr::new(LOCALHOST, 1);
        let settings = crate::settings::resolve(
            &crate::settings::Inputs { environment: Vec::new(), working_dir: None, home_dir: Some("/home/of/nobody".into()) },
            &crate::settings::Overrides::default(),
        ).unwrap();
        let interval = Duration::from_secs(interval);
        let config = VerifierConfig { api, interval, ..VerifierConfig::new(&settings) };
        let ports = PortAllocator::new(1..2).unwrap();
        let verifier = Verifier::new(config, ports, BTreeSet::new);
        let pause = verifier.pause(setbacks);
        prop_assert!(pause <= interval);
        prop_assert!(setbacks == 0 || pause <= Timing::default().retry_at_most);
        prop_assert!(pause >= interval.min(Timing::default().retry));
        prop_assert!(setbacks == 0 || pause <= verifier.pause(setbacks + 1));
    }
}
