//! Port verification: finds out where this machine is reached and which of its ports are, and keeps that true.
//!
//! ```text
//! Verifier ── address    where: the setting, or what several sources agree on     (http)
//!          ├─ plan       which ports, in what portions                            pure
//!          ├─ round      listens on a portion, asks all servers at once           (allocator, servers ─ http)
//!          ├─ standing   how each server does in a round                          pure
//!          ├─ verdict    what their answers come to, port by port                 pure
//!          ├─ report     what is published: Reachability                          pure
//!          └─ display    what the operator sees meanwhile, summary afterwards
//! ```
//!
//! [`Verifier::run`] is one task beside the API, which has to be listening so that its port can be checked. It verifies at
//! the start, then every interval, and when the addresses of this machine or its public address change. While something is
//! wrong it looks again sooner.
//!
//! Nobody who is asked is trusted. A port counts as open when a quorum of those that answered reached it *and* a connection
//! has arrived here, where that can be told; ports that serve VMs and the API's own are not listened on and go by the quorum.
//! Where nobody answers nothing is concluded: earlier findings stay for a day as long as the public address is the same, and
//! without any the operator's setting decides.
//!
//! Calls the allocator, tells it what is usable, and reads settings. The composition root runs it; everybody else reads the
//! published [`Reachability`].

mod address;
mod display;
mod http;
mod plan;
mod report;
mod round;
mod servers;
mod standing;
mod summary;
#[cfg(test)]
mod tests;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use address::{AddressOrigin, PublicAddress};
pub use report::{
    NotAdvertisable, ProviderPort, Reachability, ServerHealth, ServerKind, ServerReport, SshPorts,
    VerificationStatus, ranges,
};
pub use servers::PeerSource;
pub use summary::summary;
pub use verdict::PortState;

use super::PortAllocator;
use crate::settings::{
    Environment, LogFormat, PortQuorum, PublicIp, Settings, UnverifiedPorts, Verification,
    public_ip,
};
use display::Display;
use round::Round;

/// Every time of this module.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How long servers may take for a portion: the 30 s that a check may last, and the way there and back.
    pub answer: Duration,
    /// How often the addresses of this machine are looked at.
    pub network: Duration,
    /// How often the sources are asked for the public address.
    pub address: Duration,
    /// The next check after one that found something wrong. Doubles each time, up to `retry_at_most`.
    pub retry: Duration,
    pub retry_at_most: Duration,
    /// The longest pause that a server which limits us is granted, where no other answers.
    pub rate_limit: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            answer: Duration::from_secs(35),
            network: Duration::from_secs(30),
            address: Duration::from_secs(300),
            retry: Duration::from_secs(60),
            retry_at_most: Duration::from_secs(15 * 60),
            rate_limit: Duration::from_secs(60),
        }
    }
}

/// How old findings may be that still count where nobody answers.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// How long this machine's own API may take to be connected to.
const OWN_PORT: Duration = Duration::from_secs(2);

/// What is verified and how.
#[derive(Debug, Clone)]
pub struct VerifierConfig {
    pub verification: Verification,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where SSH ports listen.
    pub bind: IpAddr,
    pub max_vms: u32,
    pub servers: Vec<String>,
    pub quorum: PortQuorum,
    pub unverified_ports: UnverifiedPorts,
    pub interval: Duration,
    /// How many peers are asked.
    pub peers: u32,
    /// Never asked for when the operator has set it.
    pub address: Option<PublicAddress>,
    pub sources: Vec<String>,
    pub timing: Timing,
    /// Whether the operator is shown how it goes: progress on a terminal, and a summary on standard output.
    pub shown: bool,
}

impl VerifierConfig {
    /// What the operator has decided.
    pub fn new(settings: &Settings) -> VerifierConfig {
        let reachability = &settings.reachability;
        let origin = match (reachability.public_ip, settings.environment) {
            (PublicIp::Fixed(_), _) => AddressOrigin::Setting,
            (PublicIp::Auto, Environment::Development) => AddressOrigin::Development,
            (PublicIp::Auto, Environment::Production) => AddressOrigin::Interface,
        };
        VerifierConfig {
            verification: reachability.verification,
            api: settings.api.bind,
            bind: settings.ports.bind,
            max_vms: settings.vms.max_vms,
            servers: reachability.servers.clone(),
            quorum: reachability.quorum,
            unverified_ports: reachability.unverified_ports,
            interval: reachability.interval,
            peers: reachability.peers,
            address: settings.identity.public_ip.map(|address| PublicAddress { address, origin }),
            sources: match reachability.public_ip {
                PublicIp::Fixed(_) => Vec::new(),
                PublicIp::Auto => reachability.public_ip_sources.clone(),
            },
            timing: Timing::default(),
            shown: settings.log.format == LogFormat::Human,
        }
    }

    /// Ports as they are handed out before anything is known.
    ///
    /// # Errors
    /// When the range is none.
    pub fn allocator(
        &self,
        range: std::ops::Range<u16>,
    ) -> Result<PortAllocator, super::InvalidRange> {
        match self.verification {
            Verification::Wanted => PortAllocator::only_verified(range),
            Verification::Skipped | Verification::Development => PortAllocator::new(range),
        }
    }

    /// What is known before anything was asked.
    pub fn at_first(&self, range: std::ops::Range<u16>) -> Reachability {
        let (status, state) = match self.verification {
            Verification::Wanted => (VerificationStatus::Pending, PortState::Unverified),
            Verification::Skipped | Verification::Development => {
                (VerificationStatus::Skipped, PortState::Skipped)
            }
        };
        let all: Vec<u16> = range.clone().collect();
        let ports = all.len();
        let (usable, unverified) = match state {
            PortState::Skipped => (all, Vec::new()),
            _ => (Vec::new(), all),
        };
        let usable_vms = if usable.is_empty() { 0 } else { ports };
        Reachability {
            address: self.address,
            status,
            checking: status == VerificationStatus::Pending,
            provider_port: ProviderPort { port: self.api.port(), internal: None, external: state },
            ssh_ports: SshPorts {
                from: range.start,
                to: range.end,
                usable,
                unverified,
                ..SshPorts::default()
            },
            max_vms: self.max_vms.min(u32::try_from(usable_vms).unwrap_or(u32::MAX)),
            unverified_ports: self.unverified_ports,
            servers: Vec::new(),
            checked_at: None,
            verified_at: None,
            next_check_at: None,
        }
    }
}

/// Nobody could check the ports, and the operator does not want a provider then.
#[derive(Debug, thiserror::Error)]
#[error(
    "nobody could check whether the ports can be reached, and GOLEM_PROVIDER_UNVERIFIED_PORTS is `refuse`: {reason}; \
     set it to `warn` to start all the same, or GOLEM_PROVIDER_PORT_CHECK_SERVERS to servers that answer"
)]
pub struct Refused {
    reason: String,
}

/// Finds out, publishes, and tells the allocator.
pub struct Verifier {
    config: VerifierConfig,
    ports: PortAllocator,
    /// The ports that lead to VMs now.
    serving: Box<dyn Fn() -> BTreeSet<u16> + Send + Sync>,
    peers: Option<Arc<dyn PeerSource>>,
    published: watch::Sender<Reachability>,
    /// What was found of each port, for the address below.
    found: BTreeMap<u16, PortState>,
    found_for: Option<IpAddr>,
    interfaces: fn() -> BTreeSet<IpAddr>,
}

/// Why the next check begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    Due,
    NetworkChanged,
}

impl Verifier {
    /// `serving` tells which ports lead to VMs; they are checked as they are.
    pub fn new(
        config: VerifierConfig,
        ports: PortAllocator,
        serving: impl Fn() -> BTreeSet<u16> + Send + Sync + 'static,
    ) -> Verifier {
        let published = watch::Sender::new(config.at_first(ports.range()));
        Verifier {
            config,
            ports,
            serving: Box::new(serving),
            peers: None,
            published,
            found: BTreeMap::new(),
            found_for: None,
            interfaces: interface_addresses,
        }
    }

    /// Other providers are asked too, as many as the settings say.
    #[must_use]
    pub fn with_peers(self, peers: Arc<dyn PeerSource>) -> Verifier {
        Verifier { peers: Some(peers), ..self }
    }

    /// What is known, now and whenever it changes.
    pub fn reachability(&self) -> watch::Receiver<Reachability> {
        self.published.subscribe()
    }

    /// Verifies until `stop`. What is under way then is given up, and its ports are free again.
    ///
    /// # Errors
    /// The first check could not find anything out, and the operator wants no provider then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Refused> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            refused = self.keep_verifying() => Err(refused),
        }
    }

    /// Ends only with a refusal.
    async fn keep_verifying(&mut self) -> Refused {
        if self.config.verification == Verification::Development {
            return std::future::pending().await;
        }
        let display = Display::new(self.config.shown);
        let mut interfaces = self.look_at_interfaces().await;
        let mut is_first = true;
        let mut setbacks = 0;
        loop {
            self.find_address().await;
            if self.config.verification == Verification::Wanted {
                self.verify(if is_first { display.clone() } else { Display::new(false) }).await;
            } else {
                let internal = own_port_answers(self.config.api).await;
                self.published.send_modify(|report| report.provider_port.internal = Some(internal));
            }
            let report = self.published.borrow().clone();
            if is_first && self.config.shown {
                display::print(&summary(&report));
            }
            tell(&report, is_first || setbacks > 0);
            if is_first
                && report.status == VerificationStatus::Unverified
                && report.unverified_ports == UnverifiedPorts::Refuse
            {
                return Refused { reason: summary::reason_unverified(&report) };
            }
            is_first = false;
            setbacks = if is_well(&report) { 0 } else { setbacks + 1 };
            let pause = self.pause(setbacks);
            let due = Instant::now() + pause;
            let next = SignedDuration::try_from(pause)
                .ok()
                .and_then(|pause| Timestamp::now().checked_add(pause).ok());
            self.published.send_modify(|report| report.next_check_at = next);
            if self.occasion(due, &mut interfaces).await == Occasion::NetworkChanged {
                tracing::info!(
                    "the network has changed: looking again where this machine is reached"
                );
                setbacks = 0;
            }
        }
    }

    /// From one check to the next, after so many in a row that found something wrong.
    fn pause(&self, setbacks: u32) -> Duration {
        let Timing { retry, retry_at_most, .. } = self.config.timing;
        match setbacks {
            0 => self.config.interval,
            _ => retry
                .saturating_mul(1 << (setbacks - 1).min(16))
                .min(retry_at_most)
                .min(self.config.interval),
        }
    }

    /// Waits until the next check is due.
    async fn occasion(&mut self, due: Instant, interfaces: &mut BTreeSet<IpAddr>) -> Occasion {
        let every = |period: Duration| {
            let mut ticks = interval_at(Instant::now() + period, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let mut look = every(self.config.timing.network);
        let mut ask = every(self.config.timing.address);
        loop {
            tokio::select! {
                () = sleep_until(due) => return Occasion::Due,
                _ = look.tick() => {
                    let now = self.look_at_interfaces().await;
                    if std::mem::replace(interfaces, now.clone()) != now {
                        return Occasion::NetworkChanged;
                    }
                }
                _ = ask.tick() => {
                    if self.find_address().await {
                        return Occasion::NetworkChanged;
                    }
                }
            }
        }
    }

    /// Finds the public address where it is not set. Answers whether it has changed; then nothing is known of the ports.
    async fn find_address(&mut self) -> bool {
        let known = self.published.borrow().address;
        if known.is_some_and(|known| {
            matches!(known.origin, AddressOrigin::Setting | AddressOrigin::Development)
        }) {
            return false;
        }
        let told = match self.config.sources.is_empty() {
            true => None,
            false => self.ask_sources().await,
        };
        let found = match (told, known) {
            (Some(address), _) => PublicAddress { address, origin: AddressOrigin::Sources },
            // The sources are silent for a moment.
            (None, Some(PublicAddress { origin: AddressOrigin::Sources, .. })) => return false,
            (None, _) => match public_ip::of_default_route() {
                Some(address) => PublicAddress { address, origin: AddressOrigin::Interface },
                None => return false,
            },
        };
        let has_changed = known.is_none_or(|known| known.address != found.address);
        match known {
            Some(known) if has_changed => {
                tracing::warn!(address = %found.address, "the public address of this machine was {} and has changed", known.address);
            }
            Some(_) => {}
            None => {
                tracing::info!(address = %found.address, "the public address of this machine was found");
            }
        }
        if known != Some(found) {
            let wanted = self.config.verification == Verification::Wanted;
            self.published.send_modify(|report| {
                report.address = Some(found);
                if has_changed && wanted {
                    report.status = VerificationStatus::Pending;
                }
            });
        }
        has_changed
    }

    async fn look_at_interfaces(&self) -> BTreeSet<IpAddr> {
        tokio::task::spawn_blocking(self.interfaces).await.unwrap_or_default()
    }

    async fn ask_sources(&self) -> Option<IpAddr> {
        // Over IPv4 where the API is reached over IPv4 alone.
        let family = Some(self.config.api.ip()).filter(IpAddr::is_ipv4);
        match tokio::task::spawn_blocking(move || http::client(family)).await {
            Ok(Ok(client)) => address::ask(&client, &self.config.sources).await,
            Ok(Err(reason)) => {
                tracing::warn!("the public address cannot be asked for: {reason}");
                None
            }
            Err(_) => None,
        }
    }

    /// Checks every port once.
    async fn verify(&mut self, display: Display) {
        self.published.send_modify(|report| report.checking = true);
        let address = self.published.borrow().address.map(|known| known.address);
        if self.found_for != address {
            // What was found elsewhere says nothing about here.
            self.found.clear();
            self.publish(|report| {
                report.status = VerificationStatus::Pending;
                report.verified_at = None;
            });
        }
        self.found_for = address;
        let internal = own_port_answers(self.config.api).await;
        self.published.send_modify(|report| report.provider_port.internal = Some(internal));
        let round = match address {
            Some(address) => self.check(address, &display).await,
            None => Round::default(),
        };
        display.end();
        let now = Timestamp::now();
        let port = self.config.api.port();
        let is_fresh = round.decided.contains(&port);
        let verified_at = match is_fresh {
            true => Some(now),
            false => self.published.borrow().verified_at,
        };
        if verified_at.is_none_or(|time| now.duration_since(time) > MAX_AGE) {
            // Nor does what was found long ago.
            self.found.retain(|port, _| round.decided.contains(port));
        }
        let is_known = self.found.contains_key(&port);
        self.publish(|report| {
            report.status = match is_known {
                true => VerificationStatus::Verified,
                false => VerificationStatus::Unverified,
            };
            report.checking = false;
            report.servers = round.servers;
            report.checked_at = Some(now);
            report.verified_at = verified_at.filter(|_| is_known);
        });
    }

    /// Publishes what was found, with `change`, and lets the allocator hand out what is usable.
    fn publish(&self, change: impl FnOnce(&mut Reachability)) {
        let policy = self.config.unverified_ports;
        let range = self.ports.range();
        // Before the first check has ended, nobody knows yet whether somebody will answer.
        let is_pending = self.published.borrow().checked_at.is_none();
        let state = |port: &u16| self.found.get(port).copied().unwrap_or(PortState::Unverified);
        let is_usable = |state: PortState, pending: bool| match state {
            PortState::Unverified if pending => false,
            state => state.is_usable(policy),
        };
        let serving = (self.serving)();
        self.published.send_modify(|report| {
            change(report);
            let pending = is_pending && report.checked_at.is_none();
            let mut ports = SshPorts { from: range.start, to: range.end, ..SshPorts::default() };
            for port in range.clone() {
                let state = state(&port);
                if is_usable(state, pending) {
                    ports.usable.push(port);
                }
                match state {
                    PortState::Open | PortState::Skipped => {}
                    PortState::Closed => ports.closed.push(port),
                    PortState::Misdirected => ports.misdirected.push(port),
                    PortState::Occupied => ports.occupied.push(port),
                    PortState::Unverified => ports.unverified.push(port),
                }
            }
            let is_cut_off =
                |port: &&u16| matches!(state(port), PortState::Closed | PortState::Misdirected);
            ports.vms_cut_off = serving.iter().filter(is_cut_off).copied().collect();
            report.provider_port.external = state(&report.provider_port.port);
            let usable = u32::try_from(ports.usable.len()).unwrap_or(u32::MAX);
            report.max_vms = self.config.max_vms.min(usable);
            self.ports.set_usable(ports.usable.iter().copied().collect());
            report.ssh_ports = ports;
        });
    }
}

/// Nothing needs to be looked at again sooner than usual.
fn is_well(report: &Reachability) -> bool {
    let somebody_answered = report.servers.iter().any(|server| server.ports_checked > 0);
    report.may_be_advertised().is_ok()
        && (report.status == VerificationStatus::Skipped || somebody_answered)
}

/// Logs what the check has found. That all is well is only worth a line when it is `news`.
fn tell(report: &Reachability, news: bool) {
    match report.may_be_advertised() {
        Ok(address) if news => tracing::info!(
            %address,
            usable_ports = report.ssh_ports.usable.len(),
            "the provider can be reached"
        ),
        Ok(_) => {}
        Err(reason) => tracing::warn!("the provider is not offered to the network: {reason}"),
    }
    for server in report.servers.iter().filter(|server| server.health != ServerHealth::Good) {
        let detail = server.detail.as_deref().unwrap_or("no reason known");
        tracing::warn!(server = server.url, health = ?server.health, "a port-check server did not help: {detail}");
    }
    if !report.ssh_ports.vms_cut_off.is_empty() {
        let ports = report::ranges(&report.ssh_ports.vms_cut_off);
        tracing::error!(ports, "VMs run that cannot be reached from outside");
    }
}

/// The addresses of this machine that others can see.
fn interface_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = if_addrs::get_if_addrs() else { return BTreeSet::new() };
    let addresses = interfaces.into_iter().filter(|interface| !interface.is_link_local());
    addresses.map(|interface| interface.ip()).filter(|address| !address.is_loopback()).collect()
}

/// Does the API take connections on this machine?
async fn own_port_answers(api: SocketAddr) -> bool {
    let ip = match api.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let connected = tokio::time::timeout(OWN_PORT, TcpStream::connect((ip, api.port()))).await;
    matches!(connected, Ok(Ok(_)))
}
