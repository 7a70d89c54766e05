//! The proxy beside HAProxy in TCP mode, a loop of tokio's own copy, and a minimal loop that splices.
//!
//! Each relay is a process of its own; clients and the machine behind the relay are this one. `relays` has the four, `splice` one of
//! them in a file of its own, `work` what they have to do.

mod relays;
mod splice;
mod work;

use anyhow::Result;
use golem_provider_benches::{
    Options, network,
    processes::Role,
    progress,
    rows::{self, Row},
};

use relays::{Kind, Relay};
use work::{Direction, Machine};

/// Of HAProxy's CPU time for the same bytes.
const CPU_OF_HAPROXY: f64 = 0.5;
/// Of the splice loop's.
const CPU_OF_SPLICE: f64 = 1.1;
/// Of HAProxy's new connections.
const CONNECTIONS_OF_HAPROXY: f64 = 1.1;
/// For each idle connection.
const IDLE_KIB: f64 = 2.5;

fn main() -> Result<()> {
    if let Some(role) = Role::of_this_process()? {
        return relays::run(&role);
    }
    network::enter_own()?;
    let options = Options::read()?;
    raise_descriptor_limit()?;
    let kinds = relays::available();
    if !kinds.contains(&Kind::HaProxy) {
        rows::note("HAProxy is not installed here: its rows are left out");
    }
    let machine = Machine::start()?;
    bulk(options, &kinds, &machine)?;
    connections(options, &kinds, &machine)?;
    round_trip(options, &kinds, &machine)?;
    idle(options, &kinds, &machine)
}

/// Every kind, measured once a round; by kind, in their order.
fn in_turns<T>(
    what: &str,
    rounds: usize,
    relays: &[Relay],
    mut measure: impl FnMut(&Relay) -> Result<T>,
) -> Result<Vec<Vec<T>>> {
    let mut all: Vec<Vec<T>> = relays.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        progress(format!("{what}, round {} of {rounds}", round + 1));
        for turn in 0..relays.len() {
            // Another one is first each time, so that none always comes after the same.
            let at = (turn + round) % relays.len();
            all[at].push(measure(&relays[at])?);
        }
    }
    Ok(all)
}

fn start_all(kinds: &[Kind], target: std::net::SocketAddr) -> Result<Vec<Relay>> {
    kinds.iter().map(|kind| Relay::start(*kind, target)).collect()
}

/// Ours, and each of the others with its name.
fn split<'a, T>(all: &'a [T], kinds: &'a [Kind]) -> impl Iterator<Item = (Kind, &'a T)> {
    kinds.iter().copied().zip(all).skip(1)
}

fn bulk(options: Options, kinds: &[Kind], machine: &Machine) -> Result<()> {
    let gigabytes = options.choose(0.5, 2.0);
    let relays = start_all(kinds, machine.bulk_address()?)?;
    for streams in [1, 8] {
        for direction in [Direction::Up, Direction::Down] {
            let name = format!(
                "relay, {streams} stream{} {direction}",
                if streams == 1 { "" } else { "s" }
            );
            let all = in_turns(&name, options.choose(3, 5), &relays, |relay| {
                work::bulk(machine, relay, direction, streams, gigabytes)
            })?;
            let of = |value: fn(&work::Bulk) -> f64| -> Vec<Vec<f64>> {
                all.iter().map(|rounds| rounds.iter().map(value).collect()).collect()
            };
            let cpu = of(|bulk| bulk.cpu_seconds_per_gb);
            for (kind, others) in split(&cpu, kinds) {
                let row = Row::of(&name, "CPU s/GB", &cpu[0]).beside(kind.name(), others);
                match kind {
                    Kind::HaProxy => row.at_most_times(CPU_OF_HAPROXY),
                    Kind::Splice => row.at_most_times(CPU_OF_SPLICE),
                    Kind::Ours | Kind::Copy => row,
                }
                .print();
            }
            // Between processes of one machine, who of them pays for a byte's way through the kernel depends on who runs
            // when; the sum of all does not.
            let sum = of(|bulk| bulk.all_cpu_seconds_per_gb);
            for (kind, others) in split(&sum, kinds) {
                Row::of(format!("{name}, both ends included"), "CPU s/GB", &sum[0])
                    .beside(kind.name(), others)
                    .print();
            }
            let speed = of(|bulk| bulk.gb_per_second);
            for (kind, others) in split(&speed, kinds) {
                let row = Row::of(&name, "GB/s", &speed[0]).beside(kind.name(), others);
                match kind {
                    Kind::HaProxy => row.at_least_times(1.0),
                    Kind::Ours | Kind::Splice | Kind::Copy => row,
                }
                .print();
            }
        }
    }
    Ok(())
}

fn connections(options: Options, kinds: &[Kind], machine: &Machine) -> Result<()> {
    let relays = start_all(kinds, machine.echo_address()?)?;
    let count = options.choose(4_000, 10_000);
    let all = in_turns("new connections", options.choose(3, 7), &relays, |relay| {
        work::connections(relay, count)
    })?;
    let of = |value: fn(&work::Connections) -> f64| -> Vec<Vec<f64>> {
        all.iter().map(|rounds| rounds.iter().map(value).collect()).collect()
    };
    let rate = of(|one| one.per_second);
    for (kind, others) in split(&rate, kinds) {
        let row = Row::of("relay, new connections", "/s", &rate[0]).beside(kind.name(), others);
        match kind {
            Kind::HaProxy => row.at_least_times(CONNECTIONS_OF_HAPROXY),
            Kind::Ours | Kind::Splice | Kind::Copy => row,
        }
        .print();
    }
    let cpu = of(|one| one.cpu_seconds_per_10_000);
    for (kind, others) in split(&cpu, kinds) {
        Row::of("relay, 10,000 new connections", "CPU s", &cpu[0])
            .beside(kind.name(), others)
            .print();
    }
    Ok(())
}

fn round_trip(options: Options, kinds: &[Kind], machine: &Machine) -> Result<()> {
    let relays = start_all(kinds, machine.echo_address()?)?;
    let direct = machine.echo_address()?;
    let count = options.choose(2_000, 5_000);
    // What the relay adds to a round trip without it, measured in the same breath.
    let added = in_turns("round trips", options.choose(3, 7), &relays, |relay| {
        let without = work::round_trip_us(direct, count)?;
        Ok(work::round_trip_us(relay.address(), count)? - without)
    })?;
    for (kind, others) in split(&added, kinds) {
        let row =
            Row::of("relay, added round trip, p50", "µs", &added[0]).beside(kind.name(), others);
        match kind {
            Kind::HaProxy => row.at_most_times(1.0),
            Kind::Ours | Kind::Splice | Kind::Copy => row,
        }
        .print();
    }
    Ok(())
}

fn idle(options: Options, kinds: &[Kind], machine: &Machine) -> Result<()> {
    let target = machine.echo_address()?;
    let mut all: Vec<Vec<f64>> = kinds.iter().map(|_| Vec::new()).collect();
    let rounds = options.choose(1, 5);
    for round in 1..=rounds {
        progress(format!("idle connections, round {round} of {rounds}"));
        for (kind, measured) in kinds.iter().zip(&mut all) {
            // A new one each time: memory that was in use once is not always given back.
            measured.push(work::idle_kib(&Relay::start(*kind, target)?)?);
        }
    }
    for (kind, others) in split(&all, kinds) {
        Row::of("relay, an idle connection of 1,000", "KiB", &all[0])
            .beside(kind.name(), others)
            .at_most(IDLE_KIB)
            .print();
    }
    Ok(())
}

/// A thousand connections have two ends in this process.
fn raise_descriptor_limit() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
