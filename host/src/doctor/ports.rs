//! The ports that the provider listens on: whether they are free, and stay free.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    ops::RangeInclusive,
};

use super::Check;
use crate::settings::Settings;

pub(super) fn checks(settings: &Settings, running: Option<u32>) -> Vec<Check> {
    let mut checks = Vec::new();
    let range = settings.ports.range.start..=settings.ports.range.end - 1;
    match running {
        Some(pid) => checks.push(Check::skipped(
            "ports",
            format!("a provider runs (process {pid}) and has them; `golem-provider status` shows what of them is open"),
        )),
        None => {
            let bound = bind(settings.api.bind);
            let is_ours = !matches!(&bound, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable);
            checks.push(of_api(settings.api.bind, bound));
            if !is_ours {
                return checks;
            }
            let taken: Vec<u16> = range
                .clone()
                .filter(|port| bind(SocketAddr::new(settings.ports.bind, *port)).is_err())
                .collect();
            checks.push(of_range(&range, &taken));
        }
    }
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    if let (Ok(ephemeral), Ok(reserved)) =
        (read("ip_local_port_range"), read("ip_local_reserved_ports"))
    {
        checks.extend(of_ephemeral(&range, settings.api.bind.port(), &ephemeral, &reserved));
    }
    checks
}

/// Only for a moment, and without taking a connection.
fn bind(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

fn of_api(address: SocketAddr, bound: io::Result<()>) -> Check {
    const NAME: &str = "API port";
    match bound {
        Ok(()) => Check::ok(NAME, format!("{address} is free")),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "`ss -ltnp sport = :{}` shows who has it; end that, or choose another port with GOLEM_PROVIDER_PORT",
                    address.port()
                ),
                io::ErrorKind::AddrNotAvailable => {
                    "that is no address of this computer; choose one with GOLEM_PROVIDER_HOST (0.0.0.0 for all)".to_owned()
                }
                _ => "choose a port above 1023 with GOLEM_PROVIDER_PORT, or run the provider as root".to_owned(),
            };
            Check::fail(NAME, format!("the API could not listen on {address}: {error}"), remedy)
        }
    }
}

fn of_range(range: &RangeInclusive<u16>, taken: &[u16]) -> Check {
    const NAME: &str = "SSH ports";
    let (first, last) = (range.start(), range.end());
    let all = range.len();
    if taken.is_empty() {
        return Check::ok(NAME, format!("{first} to {last} are free"));
    }
    let shown: Vec<String> = taken.iter().take(5).map(u16::to_string).collect();
    let dots = if taken.len() > 5 { ", …" } else { "" };
    let sentence = format!("{} of {all} cannot be had: {}{dots}", taken.len(), shown.join(", "));
    let remedy = "`ss -tanp` shows who has them; end that, or choose others with GOLEM_PROVIDER_PORT_RANGE_START and GOLEM_PROVIDER_PORT_RANGE_END";
    match taken.len() == all {
        true => Check::fail(NAME, sentence, remedy),
        false => Check::warn(NAME, format!("{sentence}; the others serve"), remedy),
    }
}

/// Connections that this computer makes itself must not get a port that a machine may need. `ephemeral` and `reserved` are
/// the texts of the kernel's settings.
fn of_ephemeral(
    range: &RangeInclusive<u16>,
    api: u16,
    ephemeral: &str,
    reserved: &str,
) -> Option<Check> {
    const NAME: &str = "reserved ports";
    let mut bounds = ephemeral.split_whitespace().map(str::parse::<u16>);
    let (first, last) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    let reserved = reserved.trim();
    let is_reserved = |port: u16| {
        reserved.split(',').any(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            from.parse().is_ok_and(|from: u16| from <= port)
                && to.parse().is_ok_and(|to: u16| port <= to)
        })
    };
    let at_risk = |port: u16| (first..=last).contains(&port) && !is_reserved(port);
    let ssh_at_risk = range.clone().filter(|port| at_risk(*port)).count();
    if ssh_at_risk == 0 && !at_risk(api) {
        return Some(Check::ok(NAME, "the kernel gives none of the ports to outgoing connections"));
    }
    let mut wanted: Vec<String> = Vec::new();
    wanted.extend((!reserved.is_empty()).then(|| reserved.to_owned()));
    wanted.extend((ssh_at_risk > 0).then(|| format!("{}-{}", range.start(), range.end())));
    wanted.extend(at_risk(api).then(|| api.to_string()));
    Some(Check::warn(
        NAME,
        format!(
            "the kernel may give {} of the ports to outgoing connections of this computer, as they lie in {first} to {last}",
            ssh_at_risk + usize::from(at_risk(api))
        ),
        format!(
            "as root: echo 'net.ipv4.ip_local_reserved_ports = {}' > /etc/sysctl.d/60-golem-provider.conf && sysctl --system",
            wanted.join(",")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn a_port_that_cannot_be_had_comes_with_what_to_do_about_it() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7466));
        let judged = |kind: io::ErrorKind| of_api(address, Err(kind.into()));
        assert_eq!(of_api(address, Ok(())).state, State::Ok);
        for (kind, part) in [
            (io::ErrorKind::AddrInUse, "ss -ltnp"),
            (io::ErrorKind::AddrNotAvailable, "GOLEM_PROVIDER_HOST"),
            (io::ErrorKind::PermissionDenied, "1023"),
        ] {
            let check = judged(kind);
            assert_eq!(check.state, State::Fail);
            assert!(check.remedy.unwrap().contains(part), "{kind}");
        }
    }

    #[test]
    fn some_taken_ports_are_a_warning_and_all_of_them_a_failure() {
        let range = 50800..=50802;
        assert_eq!(of_range(&range, &[]).state, State::Ok);
        assert_eq!(of_range(&range, &[50801]).state, State::Warn);
        assert_eq!(of_range(&range, &[50800, 50801, 50802]).state, State::Fail);
    }

    #[test]
    fn ports_that_the_kernel_may_give_away_are_to_be_reserved_beside_those_that_are() {
        let judged = |api, reserved| {
            of_ephemeral(&(50800..=50899), api, "32768\t60999\n", reserved).unwrap()
        };
        assert_eq!(judged(7466, "50800-50899\n").state, State::Ok);
        assert_eq!(judged(7466, "50000-51000").state, State::Ok);
        let check = judged(7466, "8080,9000-9010\n");
        assert_eq!(check.state, State::Warn);
        assert!(check.remedy.unwrap().contains("= 8080,9000-9010,50800-50899'"));
        let check = judged(40000, "50800-50850");
        assert!(check.sentence.contains("50 of"), "{}", check.sentence);
        assert!(check.remedy.unwrap().contains("= 50800-50850,50800-50899,40000'"));
        assert_eq!(
            of_ephemeral(&(20000..=20100), 7466, "32768 60999", "").unwrap().state,
            State::Ok
        );
        assert!(of_ephemeral(&(1..=2), 3, "nonsense", "").is_none());
    }
}
