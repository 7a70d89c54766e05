//! What is known about being reached, as one value: the rest of the provider reads it, dashboards and `status` show it. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{address::PublicAddress, verdict::PortState};
use crate::settings::UnverifiedPorts;

/// Where this provider is reached, and whether it can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reachability {
    /// `None`: not known, or not known yet.
    pub address: Option<PublicAddress>,
    pub status: VerificationStatus,
    /// Is a check under way?
    pub checking: bool,
    pub provider_port: ProviderPort,
    pub ssh_ports: SshPorts,
    /// VMs at the same time: the operator's limit, or fewer when there are not as many usable ports.
    pub max_vms: u32,
    /// What the operator wants done with ports that nobody could check.
    pub unverified_ports: UnverifiedPorts,
    /// Who was asked in the last check, and how each of them did.
    pub servers: Vec<ServerReport>,
    /// When the last check ended.
    pub checked_at: Option<Timestamp>,
    /// When servers last told whether the provider's port can be reached. Older than `checked_at` when none answered since:
    /// what they said then still counts.
    pub verified_at: Option<Timestamp>,
    /// When the next check begins, unless the network changes earlier.
    pub next_check_at: Option<Timestamp>,
}

/// How far verification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerificationStatus {
    /// The first check of this address has not ended.
    Pending,
    /// Nobody is asked, because of the settings or in development; all ports count as reachable.
    Skipped,
    /// Servers have said whether the provider's port can be reached; the answer may have been no.
    Verified,
    /// No server could be asked, or too few have answered, or they do not agree.
    Unverified,
}

/// The API's own port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderPort {
    pub port: u16,
    /// Does it answer on this machine? `None`: not tried yet.
    pub internal: Option<bool>,
    pub external: PortState,
}

/// The ports for SSH to VMs. In JSON each list is a text such as `50800-50849, 50860`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPorts {
    /// First of the range.
    pub from: u16,
    /// The one after the last of the range.
    pub to: u16,
    /// Can be given to VMs, or serve one.
    #[serde(with = "as_ranges")]
    pub usable: Vec<u16>,
    /// Cannot be reached from outside.
    #[serde(with = "as_ranges")]
    pub closed: Vec<u16>,
    /// Lead to somewhere else.
    #[serde(with = "as_ranges")]
    pub misdirected: Vec<u16>,
    /// Another program on this machine has them.
    #[serde(with = "as_ranges")]
    pub occupied: Vec<u16>,
    /// Nobody knows.
    #[serde(with = "as_ranges")]
    pub unverified: Vec<u16>,
    /// Those that serve VMs and cannot be reached; their requestors are locked out.
    #[serde(with = "as_ranges")]
    pub vms_cut_off: Vec<u16>,
}

/// One who was asked to check ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReport {
    /// Without credentials.
    pub url: String,
    pub kind: ServerKind,
    pub health: ServerHealth,
    /// More about what is wrong.
    pub detail: Option<String>,
    /// Ports that it has told about.
    pub ports_checked: usize,
}

/// Why somebody is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerKind {
    /// It is in the settings.
    Configured,
    /// It is another provider.
    Peer,
}

/// How somebody who was asked did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerHealth {
    Good,
    /// Says something else than the others of most ports.
    Outvoted,
    /// Has not answered in time, or not before the others had settled it.
    Slow,
    RateLimited,
    Down,
    /// Answers, and does not want to check this provider.
    Refuses,
    /// Answers something that is none.
    Nonsense,
}

/// Why the provider must not be advertised now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdvertisable {
    #[error("the ports are being verified")]
    Pending,
    #[error("the public address of this machine is not known")]
    NoAddress,
    #[error("nobody could say whether the provider's port {0} can be reached from outside")]
    Unverified(u16),
    #[error("the provider's port {0} cannot be reached from outside")]
    ProviderPortClosed(u16),
    #[error("no SSH port can be reached from outside")]
    NoSshPort,
}

impl PortState {
    /// Whether requestors can be expected to reach it.
    pub fn is_usable(self, unverified: UnverifiedPorts) -> bool {
        match self {
            Self::Open | Self::Skipped => true,
            Self::Unverified => unverified == UnverifiedPorts::Trust,
            Self::Closed | Self::Misdirected | Self::Occupied => false,
        }
    }
}

impl Reachability {
    /// The address to advertise, or why nothing may be advertised.
    ///
    /// # Errors
    /// Requestors would not reach this provider, or nobody knows.
    pub fn may_be_advertised(&self) -> Result<IpAddr, NotAdvertisable> {
        let ProviderPort { port, external, .. } = self.provider_port;
        if self.status == VerificationStatus::Pending {
            return Err(NotAdvertisable::Pending);
        }
        let address = self.address.ok_or(NotAdvertisable::NoAddress)?.address;
        if !external.is_usable(self.unverified_ports) {
            return Err(match external {
                PortState::Unverified => NotAdvertisable::Unverified(port),
                _ => NotAdvertisable::ProviderPortClosed(port),
            });
        }
        match self.ssh_ports.usable.is_empty() {
            true => Err(NotAdvertisable::NoSshPort),
            false => Ok(address),
        }
    }
}

/// `50800-50802, 50810`, of ports in ascending order.
pub fn ranges(ports: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(port) => *end = port,
            _ => ranges.push((port, port)),
        }
    }
    let written = ranges.into_iter().map(|(start, end)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    });
    written.collect::<Vec<_>>().join(", ")
}

/// Reads what [`ranges`] writes.
fn from_ranges(text: &str) -> Option<Vec<u16>> {
    let mut ports = Vec::new();
    for range in text.split(", ").filter(|range| !range.is_empty()) {
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        ports.extend(start.parse::<u16>().ok()?..=end.parse().ok()?);
    }
    Some(ports)
}

mod as_ranges {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ports: &[u16], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::ranges(ports))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_ranges(&text)
            .ok_or_else(|| Error::custom("ports such as `50800-50849, 50860` are expected"))
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::ports::verification::address::AddressOrigin;

    /// A provider that can be reached at 7466 and three ports.
    pub fn good() -> Reachability {
        Reachability {
            address: Some(PublicAddress {
                address: "203.0.113.5".parse().unwrap(),
                origin: AddressOrigin::Sources,
            }),
            status: VerificationStatus::Verified,
            checking: false,
            provider_port: ProviderPort {
                port: 7466,
                internal: Some(true),
                external: PortState::Open,
            },
            ssh_ports: SshPorts {
                from: 50800,
                to: 50803,
                usable: vec![50800, 50801, 50802],
                ..SshPorts::default()
            },
            max_vms: 3,
            unverified_ports: UnverifiedPorts::Warn,
            servers: vec![ServerReport {
                url: "https://ports1.example".into(),
                kind: ServerKind::Configured,
                health: ServerHealth::Good,
                detail: None,
                ports_checked: 4,
            }],
            checked_at: Some(Timestamp::UNIX_EPOCH),
            verified_at: Some(Timestamp::UNIX_EPOCH),
            next_check_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_in_ranges() {
        for (ports, text) in [
            (&[][..], ""),
            (&[1], "1"),
            (&[1, 2, 3], "1-3"),
            (&[1, 3, 4, 9], "1, 3-4, 9"),
            (&[65534, 65535], "65534-65535"),
        ] {
            assert_eq!(ranges(ports), text);
            assert_eq!(from_ranges(text).as_deref(), Some(ports));
        }
    }

    #[test]
    fn only_a_provider_that_requestors_reach_may_be_advertised() {
        let good = testing::good();
        assert_eq!(good.may_be_advertised(), Ok("203.0.113.5".parse().unwrap()));
        let with = |change: &dyn Fn(&mut Reachability)| {
            let mut report = testing::good();
            change(&mut report);
            report.may_be_advertised().unwrap_err()
        };
        assert_eq!(
            with(&|report| report.status = VerificationStatus::Pending),
            NotAdvertisable::Pending
        );
        assert_eq!(with(&|report| report.address = None), NotAdvertisable::NoAddress);
        for state in [PortState::Closed, PortState::Misdirected] {
            assert_eq!(
                with(&|report| report.provider_port.external = state),
                NotAdvertisable::ProviderPortClosed(7466)
            );
        }
        assert_eq!(
            with(&|report| report.provider_port.external = PortState::Unverified),
            NotAdvertisable::Unverified(7466)
        );
        assert_eq!(with(&|report| report.ssh_ports.usable.clear()), NotAdvertisable::NoSshPort);
    }

    #[test]
    fn an_operator_who_trusts_unverified_ports_is_advertised_with_them_and_never_with_closed_ones()
    {
        let mut report = testing::good();
        report.unverified_ports = UnverifiedPorts::Trust;
        report.status = VerificationStatus::Unverified;
        report.provider_port.external = PortState::Unverified;
        assert!(report.may_be_advertised().is_ok());
        report.provider_port.external = PortState::Closed;
        assert!(report.may_be_advertised().is_err());
    }

    #[test]
    fn a_report_can_be_read_back_by_programs() {
        let report = testing::good();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Reachability>(&text).unwrap(), report);
    }
}
