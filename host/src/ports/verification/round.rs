//! One round: listens on a portion of the ports, asks everybody about it at the same time, and goes on to the next portion.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{
    Verifier,
    display::Display,
    http,
    plan::Plan,
    report::{ServerKind, ServerReport},
    servers::{self, CheckServer},
    standing::Standing,
    verdict::{PortState, Votes},
};
use crate::ports::{HoldError, PortAllocator};

/// How long a source of peers may take.
const PEERS: Duration = Duration::from_secs(10);

/// How long a connection that servers tell of may take to show here: one lost packet, sent again.
const ARRIVAL: Duration = Duration::from_secs(2);

/// So often a round waits for a server that limits us.
const MAX_PAUSES: u32 = 5;

/// What came of a round.
#[derive(Debug, Default)]
pub struct Round {
    /// How those did who were asked.
    pub servers: Vec<ServerReport>,
    /// The ports about which something was found out.
    pub decided: BTreeSet<u16>,
}

/// Ports that are listened on for a test; free again when this is dropped.
struct Held<'a> {
    allocator: &'a PortAllocator,
    ports: Vec<u16>,
}

impl Held<'_> {
    /// Whether anybody has connected, for each port where that can be told.
    fn release(mut self) -> BTreeMap<u16, bool> {
        let ports = std::mem::take(&mut self.ports);
        ports.into_iter().filter_map(|port| Some((port, self.allocator.release(port)?))).collect()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for port in &self.ports {
            self.allocator.release(*port);
        }
    }
}

impl Verifier {
    /// Finds out about every port of the plan, publishing as it goes.
    pub(super) async fn check(&mut self, address: IpAddr, display: &Display) -> Round {
        let plan = Plan::new(self.config.api.port(), &(self.serving)(), self.ports.range());
        if plan.left_out > 0 {
            tracing::warn!(
                "the port range is wide: its last {} ports are not verified and not used",
                plan.left_out
            );
        }
        let client = tokio::task::spawn_blocking(move || http::client(Some(address))).await;
        let client = match client {
            Ok(Ok(client)) => client,
            Ok(Err(reason)) => {
                tracing::error!("port-check servers cannot be asked: {reason}");
                return Round::default();
            }
            Err(_) => return Round::default(),
        };
        let mut standings: Vec<Standing> =
            self.electorate(address).await.into_iter().map(Standing::new).collect();
        display.begin(address, plan.ports(), &standings);
        let mut pauses = MAX_PAUSES;
        let mut found = BTreeMap::new();
        for chunk in &plan.chunks {
            loop {
                let fresh =
                    self.check_chunk(&client, address, chunk, &mut standings, display).await;
                let undecided = fresh.values().any(|state| *state == PortState::Unverified);
                found.extend(fresh);
                let now = Instant::now();
                let pause = standings.iter().filter_map(|standing| standing.wants_pause(now)).min();
                match pause.filter(|pause| undecided && *pause <= self.config.timing.rate_limit) {
                    Some(pause) if pauses > 0 => {
                        pauses -= 1;
                        tracing::info!(
                            "a port-check server wants to be asked again in {} s",
                            pause.as_secs()
                        );
                        tokio::time::sleep(pause + Duration::from_millis(100)).await;
                    }
                    _ => break,
                }
            }
            // Where nothing was found out, what was known before stays.
            let known = found.iter().filter(|(_, state)| **state != PortState::Unverified);
            self.found.extend(known.map(|(port, state)| (*port, *state)));
            self.publish(|_| {});
            display.advance(chunk, &found);
        }
        // Of ports that are no longer checked nothing is known.
        self.found.retain(|port, _| found.contains_key(port));
        let servers = standings.iter().map(|standing| standing.report(&found)).collect();
        let is_decided =
            |(port, state): (u16, PortState)| (state != PortState::Unverified).then_some(port);
        Round { servers, decided: found.into_iter().filter_map(is_decided).collect() }
    }

    /// Everybody who is asked in this round.
    async fn electorate(&self, address: IpAddr) -> Vec<CheckServer> {
        let mut servers: Vec<CheckServer> = Vec::new();
        for url in &self.config.servers {
            let url = url.trim_end_matches('/');
            // Who is named twice has one vote all the same.
            if servers.iter().all(|server| server.url != url) {
                servers.push(CheckServer { url: url.to_owned(), kind: ServerKind::Configured });
            }
        }
        let wanted = usize::try_from(self.config.peers).unwrap_or(usize::MAX);
        if let (Some(source), true) = (&self.peers, wanted > 0) {
            let urls = tokio::time::timeout(PEERS, source.base_urls()).await.unwrap_or_default();
            let own = SocketAddr::new(address, self.config.api.port());
            let mut peers = servers::acceptable_peers(urls, own);
            // Others in every round, so that nobody can settle down as our witness.
            if !peers.is_empty() {
                let turn =
                    usize::try_from(getrandom::u32().unwrap_or_default()).unwrap_or_default();
                let count = peers.len();
                peers.rotate_left(turn % count);
            }
            servers.extend(peers.into_iter().take(wanted));
        }
        servers
    }

    /// What is found out about these ports.
    async fn check_chunk(
        &self,
        client: &reqwest::Client,
        address: IpAddr,
        chunk: &[u16],
        standings: &mut [Standing],
        display: &Display,
    ) -> BTreeMap<u16, PortState> {
        let serving = (self.serving)();
        let mut held = Held { allocator: &self.ports, ports: Vec::new() };
        let mut found = BTreeMap::new();
        for port in chunk {
            if *port == self.config.api.port() || serving.contains(port) {
                continue;
            }
            match self.ports.hold(self.config.bind, *port) {
                Ok(()) => held.ports.push(*port),
                Err(HoldError::Claimed(_)) => {}
                // A VM was faster.
                Err(HoldError::Io { .. }) if (self.serving)().contains(port) => {}
                Err(error @ HoldError::Io { .. }) => {
                    tracing::debug!(port, %error, "a port cannot be tested");
                    found.insert(*port, PortState::Occupied);
                }
            }
        }
        let asked: Vec<u16> =
            chunk.iter().copied().filter(|port| !found.contains_key(port)).collect();
        self.ask_everybody(client, address, &asked, standings, display).await;
        self.await_visitors(&held.ports, standings).await;
        let held_ports = held.ports.clone();
        let came = held.release();
        let ballots = || standings.iter().map(|standing| &standing.ballot);
        for port in asked {
            let state = match (held_ports.contains(&port), came.get(&port)) {
                // A VM has moved in while others were looking: what they saw may be the moment between.
                (true, None) => match Votes::on(port, ballots()).decide(self.config.quorum, None) {
                    PortState::Open => PortState::Open,
                    _ => PortState::Unverified,
                },
                (_, came) => Votes::on(port, ballots()).decide(self.config.quorum, came.copied()),
            };
            found.insert(port, state);
        }
        found
    }

    /// Gives connections that servers tell of a moment to show.
    async fn await_visitors(&self, ports: &[u16], standings: &[Standing]) {
        let deadline = Instant::now() + ARRIVAL;
        let is_missing = |port: &u16| {
            let votes = Votes::on(*port, standings.iter().map(|standing| &standing.ballot));
            votes.decide(self.config.quorum, None) == PortState::Open
                && self.ports.has_visitor(*port) == Some(false)
        };
        while ports.iter().any(is_missing) && Instant::now() < deadline {
            tokio::time::sleep(ARRIVAL / 20).await;
        }
    }

    /// Asks all that are worth asking about these ports, until all have answered or the rest could change nothing.
    async fn ask_everybody(
        &self,
        client: &reqwest::Client,
        address: IpAddr,
        ports: &[u16],
        standings: &mut [Standing],
        display: &Display,
    ) {
        if ports.is_empty() {
            return;
        }
        let deadline = self.config.timing.answer;
        let now = Instant::now();
        let to_ask: Vec<(usize, CheckServer)> = standings
            .iter()
            .enumerate()
            .filter(|(_, standing)| standing.is_to_be_asked(now))
            .map(|(index, standing)| (index, standing.server.clone()))
            .collect();
        let mut outstanding: FuturesUnordered<_> = to_ask
            .iter()
            .map(async |(index, server)| {
                (*index, servers::ask(client, server, address, ports, deadline).await)
            })
            .collect();
        let mut waiting: Vec<usize> = to_ask.iter().map(|(index, _)| *index).collect();
        while let Some((index, said)) = outstanding.next().await {
            waiting.retain(|other| *other != index);
            standings[index].take(said, Instant::now());
            display.server(index, &standings[index]);
            let left = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            let is_settled = |port: &u16| {
                Votes::on(*port, standings.iter().map(|standing| &standing.ballot))
                    .are_settled(self.config.quorum, left)
            };
            if left > 0 && ports.iter().all(is_settled) {
                for index in waiting {
                    standings[index].was_overtaken();
                    display.server(index, &standings[index]);
                }
                return;
            }
        }
    }
}
