//! What Multipass answers: its JSON, its exit statuses and its messages, as values.
//!
//! Its standard output is read for JSON alone; everywhere else it holds the strokes of a spinner. Exit status 0 says that
//! the command went well, not that what it was to do holds; 2 is anything from a wrong name to a daemon that is down, told
//! apart by the message. Pure.

use golem_provider_sdk::{Error, process::ExitStatus};
use serde_json::Value;

/// How one command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The command's own `--timeout` ran out, or it was killed; what it asked for goes on.
    StillUnderWay,
    Refused(Refusal),
}

/// Why a command did not do what it was to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such machine.
    Missing,
    /// The machine was deleted by hand, and can be recovered.
    Deleted,
    /// There is a machine of that name.
    AlreadyExists,
    /// A machine of that name is being made.
    BeingPrepared,
    /// Multipass waited for the machine in vain; the machine is there.
    TimedOut,
    Other(Error),
}

/// What Multipass knows of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    pub state: State,
    /// The address on Multipass' own network.
    pub address: Option<String>,
}

/// What Multipass calls a machine's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Running,
    Starting,
    Restarting,
    /// It runs, and its SSH server does not answer; part of every boot.
    Unknown,
    DelayedShutdown,
    Suspending,
    Suspended,
    Stopped,
    /// Deleted by hand, and not purged.
    Deleted,
    /// One that only a later version knows.
    Other(String),
}

impl State {
    fn named(name: &str) -> Self {
        match name {
            "Running" => Self::Running,
            "Starting" => Self::Starting,
            "Restarting" => Self::Restarting,
            "Unknown" | "Unavailable" => Self::Unknown,
            "Delayed Shutdown" => Self::DelayedShutdown,
            "Suspending" => Self::Suspending,
            "Suspended" => Self::Suspended,
            "Stopped" => Self::Stopped,
            "Deleted" => Self::Deleted,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Does a machine in this state use processor and memory?
    pub fn is_on(&self) -> bool {
        !matches!(self, Self::Stopped | Self::Suspended | Self::Deleted)
    }

    /// For people.
    pub fn name(&self) -> &str {
        match self {
            Self::Running => "Running",
            Self::Starting => "Starting",
            Self::Restarting => "Restarting",
            Self::Unknown => "Unknown",
            Self::DelayedShutdown => "Delayed Shutdown",
            Self::Suspending => "Suspending",
            Self::Suspended => "Suspended",
            Self::Stopped => "Stopped",
            Self::Deleted => "Deleted",
            Self::Other(name) => name,
        }
    }
}

/// How a command with this status and this standard error ended.
pub fn outcome(status: ExitStatus, stderr: &[u8]) -> Outcome {
    match status {
        ExitStatus::Code(0) => Outcome::Done,
        ExitStatus::Code(5) => Outcome::StillUnderWay,
        ExitStatus::Code(code) => Outcome::Refused(refusal(code, &words(stderr))),
        ExitStatus::Signal(signal) => Outcome::Refused(Refusal::Other(Error::Unavailable(
            format!("multipass was ended by signal {signal}"),
        ))),
    }
}

fn refusal(code: i32, words: &str) -> Refusal {
    let lower = words.to_ascii_lowercase();
    let says = |phrase: &str| lower.contains(phrase);
    let says_any = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
    let message = match words {
        "" => format!("multipass failed with exit status {code} and gave no reason"),
        words => format!("multipass: {words}"),
    };
    // An image that does not exist is no machine that does not exist.
    if code == 1
        || says_any(&[
            "custom image",
            "below minimum for this image",
            "invalid memory size",
            "invalid disk size",
            "invalid instance name",
            "unable to find an image",
        ])
    {
        return Refusal::Other(Error::InvalidArgument(message));
    }
    if says("cannot connect to the multipass socket") {
        return Refusal::Other(Error::Unavailable(format!(
            "{message}; is its daemon running, and may the provider's user use it?"
        )));
    }
    if says("is being prepared") {
        return Refusal::BeingPrepared;
    }
    if says("already exists") {
        return Refusal::AlreadyExists;
    }
    if says("' is deleted") || says("\" is deleted") {
        return Refusal::Deleted;
    }
    if says("does not exist") && says("instance") {
        return Refusal::Missing;
    }
    if says("timed out waiting") {
        return Refusal::TimedOut;
    }
    if says("not authenticated") {
        return Refusal::Other(Error::PermissionDenied(message));
    }
    if says_any(&["no space left", "not enough", "insufficient", "cannot allocate memory"]) {
        return Refusal::Other(Error::ResourceExhausted(message));
    }
    if says_any(&["unreachable", "failed to download", "host not found", "network"]) {
        return Refusal::Other(Error::Unavailable(message));
    }
    Refusal::Other(Error::Internal(message))
}

/// What it said, in one line, without the lines of its log that `--verbose` puts between, and without what would confuse a
/// terminal.
pub fn words(stderr: &[u8]) -> String {
    let text: String =
        without_controls(&String::from_utf8_lossy(stderr)).chars().take(2000).collect();
    let is_log = |line: &str| line.starts_with("[20");
    let lines: Vec<&str> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_log(line)).collect();
    lines.join(" ")
}

/// Without control characters but for line ends, and without the sequences that move a terminal's cursor or colour its text.
fn without_controls(text: &str) -> String {
    let mut kept = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char == '\x1b' && chars.clone().next() == Some('[') {
            // Up to its last character, which is a letter or one of a few signs.
            chars.by_ref().skip(1).find(|char| ('@'..='~').contains(char));
        } else if char == '\n' || !char.is_control() {
            kept.push(char);
        }
    }
    kept
}

/// Reads `info NAME --format json`.
///
/// # Errors
/// [`Error::Internal`] if it is no such answer: then nothing is known of the machine.
pub fn info(stdout: &[u8], name: &str) -> Result<Sight, Error> {
    let answer = json(stdout, "info")?;
    answer["info"].get(name).and_then(sight).ok_or_else(|| strange("info", stdout))
}

/// Reads `list --format json`.
///
/// # Errors
/// [`Error::Internal`] if it is no such answer: then no machine is concluded to be gone.
pub fn list(stdout: &[u8]) -> Result<Vec<(String, Sight)>, Error> {
    let answer = json(stdout, "list")?;
    let entries = answer["list"].as_array().ok_or_else(|| strange("list", stdout))?;
    entries
        .iter()
        .map(|entry| Some((entry["name"].as_str()?.to_owned(), sight(entry)?)))
        .collect::<Option<_>>()
        .ok_or_else(|| strange("list", stdout))
}

/// The versions that `version --format json` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub client: String,
    /// Absent while the daemon is down.
    pub daemon: Option<String>,
}

/// Reads `version --format json`.
///
/// # Errors
/// [`Error::Internal`] if it is no such answer.
pub fn versions(stdout: &[u8]) -> Result<Versions, Error> {
    let answer = json(stdout, "version")?;
    let text = |key: &str| answer[key].as_str().map(str::to_owned);
    let client = text("multipass").ok_or_else(|| strange("version", stdout))?;
    Ok(Versions { client, daemon: text("multipassd") })
}

/// Is this version, such as `1.16.3`, older than `stop --force`? One that cannot be read is not.
pub fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < (1, 14),
        _ => false,
    }
}

fn sight(entry: &Value) -> Option<Sight> {
    let state = State::named(entry["state"].as_str()?);
    // The address of the network that Multipass manages comes first; one that it has not found out is called "N/A".
    let address = entry["ipv4"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str)
        .find(|text| text.parse::<core::net::Ipv4Addr>().is_ok())
        .map(str::to_owned);
    Some(Sight { state, address })
}

fn json(stdout: &[u8], command: &str) -> Result<Value, Error> {
    serde_json::from_slice(stdout).map_err(|_| strange(command, stdout))
}

fn strange(command: &str, stdout: &[u8]) -> Error {
    let text: String = words(stdout).chars().take(200).collect();
    Error::Internal(format!("`multipass {command}` answered something that makes no sense: {text}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RUNNING: &[u8] = br#"{"errors":[],"info":{"w1":{"cpu_count":"1","disks":{"sda1":{"total":"10526145536","used":"809817600"}},"image_hash":"a4f5","image_release":"","ipv4":["10.105.123.153"],"load":[1.28,0.53,0.19],"memory":{"total":1001730048,"used":244527104},"mounts":{},"release":"Debian GNU/Linux 12 (bookworm)","snapshot_count":"0","state":"Running"}}}"#;
    const STOPPED: &[u8] = br#"{"errors":[],"info":{"w1":{"cpu_count":"","disks":{"sda1":{}},"image_hash":"a4f5","image_release":"","ipv4":[],"memory":{},"mounts":{},"release":"","snapshot_count":"0","state":"Stopped"}}}"#;

    #[test]
    fn a_machine_is_seen_with_its_state_and_address() {
        let running = info(RUNNING, "w1").unwrap();
        assert_eq!(running.state, State::Running);
        assert_eq!(running.address.as_deref(), Some("10.105.123.153"));
        let stopped = info(STOPPED, "w1").unwrap();
        assert_eq!(stopped, Sight { state: State::Stopped, address: None });
    }

    #[test]
    fn an_address_that_is_not_known_is_passed_over() {
        let list = list(
            br#"{"list":[{"ipv4":["N/A","10.1.2.3","172.17.0.1"],"name":"a","release":"","state":"Running"},{"ipv4":["N/A"],"name":"b","release":"","state":"Unknown"}]}"#,
        )
        .unwrap();
        assert_eq!(list[0].1.address.as_deref(), Some("10.1.2.3"));
        assert_eq!(list[1].1, Sight { state: State::Unknown, address: None });
    }

    #[test]
    fn nothing_is_concluded_from_an_answer_that_makes_no_sense() {
        for wrong in [&b""[..], b"{}", b"\x08\x1b[2K", br#"{"info":{}}"#, br#"{"list":[{}]}"#] {
            assert!(matches!(info(wrong, "w1"), Err(Error::Internal(_))));
            assert!(matches!(list(wrong), Err(Error::Internal(_))));
        }
        assert!(info(RUNNING, "w2").is_err());
    }

    #[test]
    fn every_state_that_is_known_is_on_or_off() {
        for (name, on) in [
            ("Running", true),
            ("Stopped", false),
            ("Deleted", false),
            ("Starting", true),
            ("Restarting", true),
            ("Delayed Shutdown", true),
            ("Suspending", true),
            ("Suspended", false),
            ("Unknown", true),
            ("Unavailable", true),
            ("Something New", true),
        ] {
            assert_eq!(State::named(name).is_on(), on, "{name}");
        }
        assert_eq!(State::named("Something New").name(), "Something New");
    }

    #[test]
    fn a_daemon_that_is_down_has_no_version() {
        let both = versions(br#"{"multipass":"1.16.3","multipassd":"1.16.3"}"#).unwrap();
        assert_eq!(both.daemon.as_deref(), Some("1.16.3"));
        assert_eq!(versions(br#"{"multipass":"1.16.3"}"#).unwrap().daemon, None);
        assert!(versions(b"multipass  1.16.3").is_err());
    }

    #[test]
    fn only_versions_without_a_forced_stop_are_too_old() {
        for (version, old) in [
            ("1.13.1", true),
            ("1.14.0", false),
            ("1.16.3+mac", false),
            ("2.0", false),
            ("x", false),
        ] {
            assert_eq!(is_too_old(version), old, "{version}");
        }
    }

    fn refused(code: i32, stderr: &str) -> Refusal {
        match outcome(ExitStatus::Code(code), stderr.as_bytes()) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_clients_own_timeout_is_no_failure() {
        let stderr = b"launch failed: Timed out waiting for instance launch.";
        assert_eq!(outcome(ExitStatus::Code(5), stderr), Outcome::StillUnderWay);
        assert_eq!(outcome(ExitStatus::Code(0), b"\x08 \x08"), Outcome::Done);
    }

    #[test]
    fn messages_are_understood_as_what_they_mean() {
        for command in ["info", "stop", "delete"] {
            let text = format!(
                "{command} failed: The following errors occurred:\ninstance \"x\" does not exist\n"
            );
            assert_eq!(refused(2, &text), Refusal::Missing);
        }
        for (text, expected) in [
            ("start failed: instance(s) missing\nInstance 'x' does not exist.", Refusal::Missing),
            (
                "Instance 'x' is deleted. Use 'recover' to recover it or 'purge' to permanently delete it.",
                Refusal::Deleted,
            ),
            ("launch failed: instance \"x\" already exists", Refusal::AlreadyExists),
            ("launch failed: instance \"x\" is being prepared", Refusal::BeingPrepared),
            ("start failed: x: timed out waiting for response", Refusal::TimedOut),
            ("launch failed: timed out waiting for initialization to complete", Refusal::TimedOut),
        ] {
            assert_eq!(refused(2, text), expected, "{text}");
        }
    }

    #[test]
    fn errors_are_of_the_kind_that_says_what_can_be_done() {
        let error = |code, text| match refused(code, text) {
            Refusal::Other(error) => error,
            other => panic!("{text}: {other:?}"),
        };
        for (code, text) in [
            (1, "Error: invalid CPU count '0', need a positive integer value."),
            (2, "launch failed: Invalid instance name supplied: -x"),
            (2, "launch failed: Invalid memory size value supplied: 100M."),
            (2, "Requested disk (536870912 bytes) below minimum for this image (2361393152 bytes)"),
            (2, "launch failed: Custom image `file:///nowhere.img` does not exist."),
        ] {
            assert!(matches!(error(code, text), Error::InvalidArgument(_)), "{text}");
        }
        let down = error(2, "launch failed: cannot connect to the multipass socket");
        assert!(matches!(down, Error::Unavailable(_)));
        let full = error(2, "launch failed: write: No space left on device");
        assert!(matches!(full, Error::ResourceExhausted(_)));
        let silent = error(2, "\x08 \x1b[2K");
        assert!(
            matches!(&silent, Error::Internal(text) if text.contains("no reason")),
            "{silent:?}"
        );
    }

    #[test]
    fn what_it_logs_is_no_part_of_what_it_says() {
        let stderr = b"[2026-01-01T10:00:00.000] [debug] [x] Waiting for SSH\nlaunch failed: oh\x1b[31m no\x07\n";
        assert_eq!(words(stderr), "launch failed: oh no");
    }
}
