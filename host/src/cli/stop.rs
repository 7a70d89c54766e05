//! `stop`: ends the provider that runs, and stays until it has ended.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::print::{Waiting, print, print_json};
use crate::{
    admin::{AdminClient, ClientError},
    settings::Settings,
    store,
};

pub const STOP: &str = "\
Ends the provider that runs on the data directory, and waits until its process has ended. Machines go on running, and are found \
again by the next start, unless --stop-vms or the settings say that they stop.

Exit status: 0 it has ended, 1 it has not, 2 none runs.";

/// A provider promises ten seconds; a busy machine gets more.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Stop all machines, too
    #[arg(long, conflicts_with = "keep_vms")]
    stop_vms: bool,
    /// Leave all machines running, whatever the settings say
    #[arg(long)]
    keep_vms: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// # Errors
    /// It does not end.
    pub async fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let data_dir = &settings.data_dir;
        let Some(pid) = store::holder(data_dir) else {
            if self.json {
                print_json(&json!({ "stopped": null }))?;
            } else {
                eprintln!("golem-provider: no provider runs on {}", data_dir.display());
            }
            return Ok(ExitCode::from(2));
        };
        let process = Process::with_id(pid);
        let begun = Instant::now();
        let waiting = Waiting::for_(format!("waiting for the provider (process {pid}) to end"));
        match AdminClient::connect(data_dir).await? {
            Some(client) => match client.stop(self.stop_vms()).await {
                Ok(()) => {}
                Err(refused @ ClientError::Refused(_)) => return Err(refused.into()),
                // It may end before the answer is sent; whether it does is seen below.
                Err(error @ ClientError::Silent(_)) => tracing::debug!("{error}"),
            },
            None => self.signal(pid)?,
        }
        while process.lives() {
            if begun.elapsed() > DEADLINE {
                bail!(
                    "the provider (process {pid}) has not ended after {} s; `golem-provider logs` may say why",
                    DEADLINE.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(waiting);
        let seconds = begun.elapsed().as_secs_f64();
        if self.json {
            print_json(&json!({ "stopped": { "pid": pid, "seconds": seconds } }))?;
        } else {
            print(&format!("the provider (process {pid}) has ended, after {seconds:.1} s\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn stop_vms(&self) -> Option<bool> {
        match (self.stop_vms, self.keep_vms) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }

    /// For one that is still starting, or has no socket.
    fn signal(&self, pid: u32) -> anyhow::Result<()> {
        if self.stop_vms().is_some() {
            bail!(
                "the provider (process {pid}) does not take commands now, so that it cannot be told about its machines; \
                 try again in a moment, or without an option"
            );
        }
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, Signal::TERM)
            .with_context(|| format!("cannot tell process {pid} to end; run this as its user"))
    }
}

/// A process, told from a later one with the same id by when it started.
struct Process {
    pid: u32,
    started: Option<String>,
}

impl Process {
    fn with_id(pid: u32) -> Process {
        Process { pid, started: started(pid) }
    }

    fn lives(&self) -> bool {
        self.started.is_some() && started(self.pid) == self.started
    }
}

/// When it started, in the kernel's ticks; absent for one that has ended, whether or not its parent has noticed.
fn started(pid: u32) -> Option<String> {
    started_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn started_in(stat: &str) -> Option<String> {
    // The name in brackets may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The 22nd field of all.
    let started = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| started.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_and_has_ended_when_only_its_parent_does_not_know() {
        let stat = |state: &str, started: u32| {
            format!(
                "77 (a) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 {started} 20 21"
            )
        };
        assert_eq!(started_in(&stat("S", 4711)).as_deref(), Some("4711"));
        assert_eq!(started_in(&stat("Z", 4711)), None);
        assert_eq!(started_in("nonsense"), None);
        assert!(Process::with_id(std::process::id()).lives());
    }
}
