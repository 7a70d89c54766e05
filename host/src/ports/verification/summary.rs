//! The block that tells the operator how verification went, and what to do. Pure.

use std::fmt::Write;

use super::{
    address::AddressOrigin,
    report::{ProviderPort, Reachability, ServerHealth, VerificationStatus, ranges},
    verdict::PortState,
};

/// Where more is said.
const TROUBLESHOOTING: &str = "README.md#ports-that-cannot-be-reached";

/// What is wrong, worst first, and what may help.
#[derive(Debug, Default)]
struct Advice {
    issues: Vec<String>,
    fixes: Vec<String>,
}

/// The block, without a newline at its end.
pub fn summary(report: &Reachability) -> String {
    let mut text = String::from("🌟 Port Verification Status\n==========================\n");
    let advice = advice(report);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", provider_line(&report.provider_port));
    let _ = writeln!(text, "{}", vm_line(report));
    let _ = write!(text, "{}", overall(report));
    for (title, lines) in [("Critical Issues", &advice.issues), ("Quick Fixes", &advice.fixes)] {
        if !lines.is_empty() {
            let _ = write!(text, "\n\n{title}:");
            lines.iter().for_each(|line| {
                let _ = write!(text, "\n  • {line}");
            });
        }
    }
    if !advice.issues.is_empty() {
        let _ = write!(text, "\n\nTroubleshooting: {TROUBLESHOOTING}");
    }
    text
}

fn provider_line(port: &ProviderPort) -> String {
    let (sign, external) = match port.external {
        PortState::Open => ("✅", "✓"),
        PortState::Closed => ("❌", "✗"),
        PortState::Misdirected => ("❌", "✗ (leads elsewhere)"),
        PortState::Occupied => ("❌", "✗ (another program has it)"),
        PortState::Unverified => ("⚠️", "? (could not be verified)"),
        PortState::Skipped => ("⚠️", "? (not verified, skipped)"),
    };
    let (sign, internal) = match port.internal {
        Some(true) => (sign, "✓"),
        Some(false) => ("❌", "✗"),
        None => (sign, "?"),
    };
    format!("[{sign}] Provider Port {}: External {external} | Internal {internal}", port.port)
}

fn vm_line(report: &Reachability) -> String {
    let ports = &report.ssh_ports;
    let all = usize::from(ports.to.saturating_sub(ports.from));
    let usable = ports.usable.len();
    let range = format!("{}-{}", ports.from, ports.to.saturating_sub(1));
    let counted = |count: usize| format!("{count} {}", if count == 1 { "port" } else { "ports" });
    let (sign, said) = match usable {
        _ if report.status == VerificationStatus::Skipped => {
            ("⚠️", format!("{} taken as available ({range}; not verified, skipped)", counted(all)))
        }
        0 if ports.unverified.len() == all => ("⚠️", format!("none of {range} could be verified")),
        0 => ("❌", format!("no port available (of {range})")),
        _ if !ports.unverified.is_empty() && ports.usable.ends_with(&ports.unverified) => (
            "⚠️",
            format!(
                "{} taken as available, unverified ({})",
                counted(usable),
                ranges(&ports.usable)
            ),
        ),
        _ if usable == all => {
            ("✅", format!("{} available ({})", counted(usable), ranges(&ports.usable)))
        }
        _ => ("⚠️", format!("{usable} of {} available ({})", counted(all), ranges(&ports.usable))),
    };
    format!("[{sign}] VM Access Ports: {said}")
}

fn overall(report: &Reachability) -> String {
    let vms = match report.max_vms {
        1 => "1 concurrent VM".to_owned(),
        many => format!("{many} concurrent VMs"),
    };
    match report.may_be_advertised() {
        Ok(_) => {
            let sign = match report.status {
                VerificationStatus::Verified => "✅",
                _ => "⚠️",
            };
            format!("[{sign}] Overall Status: Provider Ready\n└─ Can handle up to {vms}")
        }
        Err(reason) => {
            let (sign, word) = match report.status {
                VerificationStatus::Unverified => ("⚠️", "Could Not Be Verified"),
                _ => ("❌", "Issues Detected"),
            };
            format!("[{sign}] Overall Status: {word}\n└─ Not offered to the network: {reason}")
        }
    }
}

fn advice(report: &Reachability) -> Advice {
    let mut advice = Advice::default();
    let port = report.provider_port.port;
    let ports = &report.ssh_ports;
    let range = format!("{}-{}", ports.from, ports.to.saturating_sub(1));
    let mut issue = |text: String, fixes: &[String]| {
        advice.issues.push(text);
        fixes.iter().for_each(|fix| {
            if !advice.fixes.contains(fix) {
                advice.fixes.push(fix.clone());
            }
        });
    };
    let address =
        report.address.map_or_else(|| "this machine".to_owned(), |known| known.address.to_string());
    if report.address.is_none() {
        issue(
            "The public address of this machine is not known".into(),
            &["Set GOLEM_PROVIDER_PUBLIC_IP to the address that requestors reach".into()],
        );
    }
    if report.provider_port.internal == Some(false) {
        issue(format!("Port {port} does not answer on this machine itself"), &[]);
    }
    let router = format!(
        "Forward TCP ports {port} and {range} on your router to this machine, each to the same port number"
    );
    let firewall = format!(
        "Open them in the firewall, for instance: sudo ufw allow {port}/tcp && sudo ufw allow {}:{}/tcp",
        ports.from,
        ports.to.saturating_sub(1)
    );
    let host = "See that GOLEM_PROVIDER_HOST is 0.0.0.0, or an address that the outside reaches"
        .to_owned();
    match report.provider_port.external {
        PortState::Closed => issue(
            format!("Port {port} cannot be reached at {address}: requestors cannot order machines"),
            &[router.clone(), firewall.clone(), host.clone()],
        ),
        PortState::Misdirected => issue(
            format!("Port {port} of {address} leads somewhere else"),
            std::slice::from_ref(&router),
        ),
        _ => {}
    }
    if !ports.closed.is_empty() {
        issue(
            format!("SSH ports that cannot be reached at {address}: {}", ranges(&ports.closed)),
            &[router.clone(), firewall],
        );
    }
    if !ports.misdirected.is_empty() {
        let listed = ranges(&ports.misdirected);
        issue(
            format!("SSH ports of {address} that lead somewhere else: {listed}"),
            &[
                router,
                "See that no other machine behind the router has these ports, and that it does not change port numbers".into(),
            ],
        );
    }
    if !ports.occupied.is_empty() {
        issue(
            format!("SSH ports that another program has: {}", ranges(&ports.occupied)),
            &["`ss -ltnp` shows which; end it, or choose another GOLEM_PROVIDER_PORT_RANGE_START and _END".into()],
        );
    }
    if !ports.vms_cut_off.is_empty() {
        let listed = ranges(&ports.vms_cut_off);
        issue(format!("Machines that run cannot be logged in to, at ports {listed}"), &[]);
    }
    let is_unverified = report.status == VerificationStatus::Unverified && report.address.is_some();
    if is_unverified {
        issue(
            format!("Nobody could check the ports: {}", reason_unverified(report)),
            &[
                "Check the connection to the internet and to the port-check servers".into(),
                "Set GOLEM_PROVIDER_PORT_CHECK_SERVERS to servers that answer; `golem-provider port-checker` is one".into(),
                "GOLEM_PROVIDER_UNVERIFIED_PORTS=trust, if you know that the ports are open".into(),
            ],
        );
    }
    let guessed = report.address.is_some_and(|known| known.origin == AddressOrigin::Interface);
    if guessed && !advice.issues.is_empty() {
        advice.fixes.push(format!(
            "{address} is only this machine's own idea of its address; set GOLEM_PROVIDER_PUBLIC_IP if it is wrong"
        ));
    }
    advice
}

/// How each of those that were asked failed.
pub(super) fn reason_unverified(report: &Reachability) -> String {
    if report.address.is_none() {
        return "the public address of this machine is not known".to_owned();
    }
    if report.servers.is_empty() {
        return "no server is configured".to_owned();
    }
    let failures = report.servers.iter().map(|server| {
        let said = server.detail.as_deref().unwrap_or(match server.health {
            ServerHealth::Good | ServerHealth::Outvoted => "no quorum agrees with it",
            _ => "no reason known",
        });
        format!("{} ({said})", server.url)
    });
    failures.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::{
        super::report::{ServerReport, SshPorts, testing::good},
        *,
    };
    use crate::settings::UnverifiedPorts;

    #[test]
    fn a_provider_that_is_ready_gets_the_block_that_operators_know() {
        assert_eq!(
            summary(&good()),
            "\
🌟 Port Verification Status
==========================
[✅] Provider Port 7466: External ✓ | Internal ✓
[✅] VM Access Ports: 3 ports available (50800-50802)
[✅] Overall Status: Provider Ready
└─ Can handle up to 3 concurrent VMs"
        );
    }

    #[test]
    fn a_firewalled_provider_is_told_what_is_closed_and_what_to_do() {
        let mut report = good();
        report.provider_port.external = PortState::Closed;
        let usable = std::mem::take(&mut report.ssh_ports.usable);
        report.ssh_ports.closed = usable;
        report.max_vms = 0;
        let text = summary(&report);
        let expected = "\
[❌] Provider Port 7466: External ✗ | Internal ✓
[❌] VM Access Ports: no port available (of 50800-50802)
[❌] Overall Status: Issues Detected
└─ Not offered to the network: the provider's port 7466 cannot be reached from outside

Critical Issues:
  • Port 7466 cannot be reached at 203.0.113.5: requestors cannot order machines
  • SSH ports that cannot be reached at 203.0.113.5: 50800-50802

Quick Fixes:
  • Forward TCP ports 7466 and 50800-50802 on your router to this machine, each to the same port number
";
        assert!(text.contains(expected), "{text}");
        assert!(
            text.ends_with("\n\nTroubleshooting: README.md#ports-that-cannot-be-reached"),
            "{text}"
        );
    }

    #[test]
    fn half_a_range_is_a_warning_and_the_provider_is_ready_for_fewer_vms() {
        let mut report = good();
        report.ssh_ports.usable = vec![50800, 50802];
        report.ssh_ports.closed = vec![50801];
        report.max_vms = 2;
        let text = summary(&report);
        assert!(
            text.contains(
                "[⚠️] VM Access Ports: 2 of 3 ports available (50800, 50802)\n[✅] Overall Status: Provider Ready\n└─ Can handle up to 2 concurrent VMs"
            ),
            "{text}"
        );
        assert!(text.contains("SSH ports that cannot be reached at 203.0.113.5: 50801"), "{text}");
    }

    #[test]
    fn what_could_not_be_verified_is_not_called_closed() {
        let mut report = good();
        report.status = VerificationStatus::Unverified;
        report.provider_port.external = PortState::Unverified;
        report.ssh_ports = SshPorts {
            unverified: std::mem::take(&mut report.ssh_ports.usable),
            ..report.ssh_ports
        };
        report.max_vms = 0;
        report.servers = vec![ServerReport {
            health: ServerHealth::Down,
            detail: Some("Connection refused".into()),
            ..report.servers.remove(0)
        }];
        let text = summary(&report);
        assert!(
            text.contains(
                "\
[⚠️] Provider Port 7466: External ? (could not be verified) | Internal ✓
[⚠️] VM Access Ports: none of 50800-50802 could be verified
[⚠️] Overall Status: Could Not Be Verified
└─ Not offered to the network: nobody could say whether"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "Nobody could check the ports: https://ports1.example (Connection refused)"
            ),
            "{text}"
        );

        report.unverified_ports = UnverifiedPorts::Trust;
        report.ssh_ports.usable = report.ssh_ports.unverified.clone();
        report.max_vms = 3;
        let text = summary(&report);
        assert!(
            text.contains("[⚠️] VM Access Ports: 3 ports taken as available, unverified (50800-50802)\n[⚠️] Overall Status: Provider Ready"),
            "{text}"
        );
    }

    #[test]
    fn what_was_skipped_says_so() {
        let mut report = good();
        report.status = VerificationStatus::Skipped;
        report.provider_port.external = PortState::Skipped;
        let text = summary(&report);
        assert!(text.contains("External ? (not verified, skipped)"), "{text}");
        assert!(
            text.contains("3 ports taken as available (50800-50802; not verified, skipped)"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_address_is_the_first_thing_to_mend() {
        let mut report = good();
        report.address = None;
        report.status = VerificationStatus::Unverified;
        let text = summary(&report);
        assert!(
            text.contains("Critical Issues:\n  • The public address of this machine is not known"),
            "{text}"
        );
        assert!(text.contains("Set GOLEM_PROVIDER_PUBLIC_IP"), "{text}");
    }
}
