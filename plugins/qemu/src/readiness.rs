//! Waiting until a machine's SSH server answers.
//!
//! A connection to the forwarded port succeeds as soon as QEMU runs, so it says nothing. QEMU then tries to reach the
//! guest, at growing intervals; while the guest has not accepted, such an attempt is given up after a second and made anew,
//! which nobody in the guest notices. Once the guest has accepted, its SSH server has begun to work on it, and aborting would cost it a
//! process on a machine that is busy booting: then there is patience for the banner.
//!
//! ```text
//!   connect ─▶ nothing within 1 s ─┬─ not accepted ─▶ connect again       (booting)
//!      ▲  │                        └─ accepted ─────▶ wait up to 60 s     (SSH is starting)
//!      │  ├─ closed ─▶ QEMU lives? pause 0.5 s                            (network is up)
//!      │  └─ banner ─▶ ready
//!      └─────────────────┘
//! ```
//! The whole is a loop over [`knock`], whose judgement of the received bytes is pure.

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
const ATTEMPT: Duration = Duration::from_secs(1);
/// For a banner of a server that has accepted.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// What came of one attempt.
enum Answer {
    Banner,
    /// The guest has not accepted yet.
    NotYet,
    /// The guest, or QEMU in its place, closed the connection.
    Closed,
    /// QEMU says that the guest cannot go on.
    Stuck(String),
}

/// Waits until SSH answers, and remembers that it did.
pub fn await_ready(paths: &Paths, settings: &Settings) -> Result<Instance> {
    let mut deadline: Option<Deadline> = None;
    let mut stage = Stage::default();
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
        match knock(paths, run.ssh_port, &mut stage)? {
            Answer::Banner => {
                record::save_run(paths, &RunRecord { ssh_answered: true, ..run })?;
                if !files::exists(&paths.booted())? {
                    files::write(&paths.booted(), b"")?;
                }
                return machine::inspect(paths, &Processes::now()?);
            }
            Answer::NotYet => stage.enter("booting"),
            Answer::Closed => {
                clock::sleep(PAUSE);
            }
            Answer::Stuck(status) => {
                let reason = format!("QEMU reports {status}");
                fall_back(paths, settings, Some(run.accelerator), &reason)?;
            }
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

/// Connects once and listens.
fn knock(paths: &Paths, port: u16, stage: &mut Stage) -> Result<Answer> {
    let connection = match Connection::loopback(port, CONNECT_TIMEOUT) {
        Ok(connection) => connection,
        Err(error @ Error::PermissionDenied(_)) => return Err(error),
        Err(_) => return Ok(Answer::Closed),
    };
    let patience = Deadline::after(PATIENCE);
    let mut received = Vec::new();
    loop {
        match connection.read(4096, ATTEMPT) {
            Ok(bytes) if bytes.is_empty() => return Ok(Answer::Closed),
            Ok(bytes) => {
                received.extend(bytes);
                match greeting(&received) {
                    Greeting::Ssh => return Ok(Answer::Banner),
                    Greeting::Other => return Ok(Answer::Closed),
                    Greeting::Unfinished => {}
                }
            }
            Err(Error::DeadlineExceeded(_)) => {
                // An answer that fails is no news of the guest; whether QEMU lives is found out by the caller.
                let Ok(mut monitor) = Monitor::connect(&paths.qmp()) else {
                    return Ok(Answer::Closed);
                };
                if let Some(status) = monitor.status().ok().filter(|status| is_stuck(status)) {
                    return Ok(Answer::Stuck(status));
                }
                let accepted = monitor.network().is_ok_and(|network| network.ssh_accepted);
                if !accepted {
                    return Ok(Answer::NotYet);
                }
                stage.enter("waiting for SSH");
                if patience.has_passed() {
                    return Ok(Answer::Closed);
                }
            }
            Err(_) => return Ok(Answer::Closed),
        }
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
