//! Waiting until a machine's SSH server answers.
//!
//! A connection to the forwarded port succeeds as soon as QEMU runs, so it says nothing. QEMU then tries to reach the
//! guest, at intervals that grow to twelve seconds, for 75 seconds in all; and it goes on trying when we have long closed
//! the connection. So each one that is given up early is delivered to the guest as soon as its network is up: that costs its SSH
//! server a process, and a dozen of them make it turn the next ones away, the requestor's first login among them.
//!
//! So few connections are made, and none is given up. They begin some seconds apart, so that the attempts of
//! one fall between those of the others: the guest's first word is late by [`STAGGER`] at most.
//!
//! ```text
//!   every 4 s, while fewer than 3 wait: connect ─▶ waiting ─┬─ closed ─▶ gone; at most one anew every 0.5 s
//!                                                           └─ banner ─▶ ready
//! ```
//! The whole is a loop over [`Knocks::listen`]; the judgement of the received bytes is pure.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result,
    clock::{self, Deadline},
    files, progress,
    sockets::Connection,
    vm_backend::Instance,
};

use crate::{
    accelerator::Accelerator,
    machine::{self, Processes},
    qmp::Monitor,
    record::{self, Paths, RunRecord},
    settings::{AcceleratorChoice, Settings},
};

/// How long a boot may take before it counts as failed, by what runs it. A published image on a busy machine without KVM
/// takes minutes.
pub fn boot_timeout(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_secs(300),
        Accelerator::Tcg => Duration::from_secs(600),
    }
}

/// Told to whoever waits a little before the provider itself gives up, because this knows more.
const MARGIN: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that wait at the same time: with [`STAGGER`], one for each of QEMU's twelve seconds between attempts.
const KNOCKS: usize = 3;
const STAGGER: Duration = Duration::from_secs(4);
/// How long to listen to each before looking after QEMU again.
const LISTEN: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(500);

/// Waits until SSH answers, and remembers that it did.
pub fn await_ready(paths: &Paths, settings: &Settings) -> Result<Instance> {
    let mut deadline: Option<Deadline> = None;
    let mut stage = Stage::default();
    let mut knocks = Knocks::default();
    loop {
        // In this order: what was asked for is written before a process is ended.
        let live = machine::live(paths)?;
        let record = machine::existing(paths)?;
        machine::refuse_if_stopped(&record)?;
        let Some(live) = live else {
            if !record.created {
                return Err(Error::FailedPrecondition(format!(
                    "the machine {} was never started: create it again, or delete it",
                    paths.id()
                )));
            }
            let run = record::load_run(paths)?.filter(|run| run.launch == record.launches);
            let accelerator = run.map(|run| run.accelerator);
            fall_back(paths, settings, accelerator, &machine::last_words(paths))?;
            continue;
        };
        let run = match machine::run_of(paths, live)? {
            Some(run) => run,
            // It was just started, by a call that was cut off or has not come that far.
            None => match machine::inspect(paths, &Processes::now()?)?.ssh {
                Some(endpoint) => RunRecord {
                    pid: live.pid,
                    launch: live.launch,
                    ssh_port: endpoint.port,
                    accelerator: live.accelerator,
                    ssh_answered: false,
                },
                None => {
                    clock::sleep(PAUSE);
                    continue;
                }
            },
        };
        if run.ssh_answered {
            return machine::inspect(paths, &Processes::now()?);
        }
        let limit = boot_timeout(run.accelerator).saturating_sub(MARGIN);
        let deadline = *deadline.get_or_insert_with(|| Deadline::after(limit));
        if knocks.listen(run.ssh_port)? {
            record::save_run(paths, &RunRecord { ssh_answered: true, ..run })?;
            if !files::exists(&paths.booted())? {
                files::write(&paths.booted(), b"")?;
            }
            return machine::inspect(paths, &Processes::now()?);
        }
        match ask_qemu(paths) {
            Acceptance::Stuck(status) => {
                let reason = format!("QEMU reports {status}");
                fall_back(paths, settings, Some(run.accelerator), &reason)?;
            }
            Acceptance::NotYet => stage.enter("booting"),
            Acceptance::Accepted => stage.enter("waiting for SSH"),
            Acceptance::Unknown => {}
        }
        if deadline.has_passed() {
            return Err(Error::DeadlineExceeded(format!(
                "SSH of the machine {} did not answer within {} s; its console ends with: {}",
                paths.id(),
                limit.as_secs(),
                machine::console_end(paths)
            )));
        }
    }
}

/// Where KVM may be to blame the machine is started again without it; else this is the end.
fn fall_back(
    paths: &Paths,
    settings: &Settings,
    accelerator: Option<Accelerator>,
    reason: &str,
) -> Result<()> {
    if accelerator == Some(Accelerator::Kvm) && settings.accelerator == AcceleratorChoice::Auto {
        progress::stage("starting again without KVM");
        return machine::restart_emulated(paths, settings, reason);
    }
    Err(Error::Internal(format!("the machine {} ended while it booted: {reason}", paths.id())))
}

/// What was last said of how far the boot has come; only changes are news.
#[derive(Default)]
struct Stage(&'static str);

impl Stage {
    fn enter(&mut self, stage: &'static str) {
        if self.0 != stage {
            self.0 = stage;
            progress::stage(stage);
        }
    }
}

/// The connections that wait for a word of the guest, all to one port.
#[derive(Default)]
struct Knocks {
    port: u16,
    waiting: Vec<(Connection, Vec<u8>)>,
    /// Not before this another one.
    next: Option<Deadline>,
}

impl Knocks {
    /// Has a server greeted? Takes about a second while none has.
    fn listen(&mut self, port: u16) -> Result<bool> {
        if self.port != port {
            *self = Self { port, ..Self::default() };
        }
        if self.waiting.len() < KNOCKS && self.next.is_none_or(|next| next.has_passed()) {
            match Connection::loopback(port, CONNECT_TIMEOUT) {
                Ok(connection) => {
                    self.waiting.push((connection, Vec::new()));
                    self.next = Some(Deadline::after(STAGGER));
                }
                Err(error @ Error::PermissionDenied(_)) => return Err(error),
                Err(_) => self.next = Some(Deadline::after(PAUSE)),
            }
        }
        let mut waiting = Vec::new();
        for (connection, mut received) in self.waiting.drain(..) {
            match connection.read(4096, LISTEN) {
                Err(Error::DeadlineExceeded(_)) => waiting.push((connection, received)),
                Ok(bytes) if !bytes.is_empty() => {
                    received.extend(bytes);
                    match greeting(&received) {
                        Greeting::Ssh => return Ok(true),
                        Greeting::Other => {}
                        Greeting::Unfinished => waiting.push((connection, received)),
                    }
                }
                // Closed by the guest, whose network is up then, or by QEMU after its last attempt.
                Ok(_) | Err(_) => self.next = Some(Deadline::after(PAUSE)),
            }
        }
        self.waiting = waiting;
        if self.waiting.is_empty() {
            clock::sleep(PAUSE);
        }
        Ok(false)
    }
}

/// What QEMU says of the connection that we wait on.
enum Acceptance {
    NotYet,
    Accepted,
    /// The guest cannot go on.
    Stuck(String),
    /// QEMU is too busy to answer.
    Unknown,
}

fn ask_qemu(paths: &Paths) -> Acceptance {
    let Ok(mut monitor) = Monitor::connect(&paths.qmp()) else { return Acceptance::Unknown };
    if let Some(status) = monitor.status().ok().filter(|status| is_stuck(status)) {
        return Acceptance::Stuck(status);
    }
    match monitor.network() {
        Ok(network) if network.ssh_accepted => Acceptance::Accepted,
        Ok(_) => Acceptance::NotYet,
        Err(_) => Acceptance::Unknown,
    }
}

/// States from which a guest does not come back by itself.
fn is_stuck(status: &str) -> bool {
    matches!(status, "internal-error" | "io-error" | "guest-panicked" | "shutdown")
}

#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Ssh,
    Other,
    Unfinished,
}

/// Is this an SSH server's first line? It may send other lines before (RFC 4253, 4.2).
fn greeting(received: &[u8]) -> Greeting {
    const MAX_BYTES: usize = 16 * 1024;
    let mut lines = received.split(|byte| *byte == b'\n');
    let unfinished = lines.next_back().unwrap_or_default();
    let is_ssh = |line: &[u8]| line.starts_with(b"SSH-2.0") || line.starts_with(b"SSH-1.99");
    if lines.any(is_ssh) || is_ssh(unfinished) {
        Greeting::Ssh
    } else if received.len() > MAX_BYTES {
        Greeting::Other
    } else {
        Greeting::Unfinished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ssh_server_is_known_by_its_first_line_or_one_that_follows() {
        assert_eq!(greeting(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), Greeting::Ssh);
        assert_eq!(greeting(b"SSH-1.99-old\n"), Greeting::Ssh);
        assert_eq!(greeting(b"welcome\r\nSSH-2.0-x\r\n"), Greeting::Ssh);
        assert_eq!(greeting(b"SSH-"), Greeting::Unfinished);
        assert_eq!(greeting(b"HTTP/1.1 400 Bad Request\r\n"), Greeting::Unfinished);
        assert_eq!(greeting(&[b'x'; 20_000]), Greeting::Other);
    }

    #[test]
    fn a_boot_is_given_at_least_five_minutes() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            assert!(boot_timeout(accelerator) >= Duration::from_secs(300));
        }
    }

    #[test]
    fn only_states_without_a_way_back_count_as_stuck() {
        assert!(is_stuck("internal-error"));
        for fine in ["running", "paused", "prelaunch", "inmigrate"] {
            assert!(!is_stuck(fine));
        }
    }
}
