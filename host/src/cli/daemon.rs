//! `start --daemon`: starts the provider as a process of its own, and stays until it answers or has failed.
//!
//! The one in the background is this program with the same arguments, but [`DETACHED`] for [`DAEMON`]: it leaves the session
//! of its terminal and writes its log into a file. What it prints before it has a log, or instead of one, goes into another
//! file, which is shown when it fails.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::print::{Waiting, print};
use crate::{
    admin::{AdminClient, socket_path},
    settings::Settings,
    status::Status,
    store,
    telemetry::log_file,
};

pub const DAEMON: &str = "--daemon";
pub const DETACHED: &str = "--detached";

/// A slow machine compiles its plugins for minutes at the first start.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// What a path of a socket may have, by the kernel.
const SOCKET_PATH_BYTES: usize = 107;

/// Starts the provider in the background.
///
/// # Errors
/// One runs already, or it cannot be started. That it started and failed is told by the exit code.
pub async fn start(settings: &Settings) -> anyhow::Result<ExitCode> {
    let data_dir = &settings.data_dir;
    if socket_path(data_dir).as_os_str().len() > SOCKET_PATH_BYTES {
        bail!(
            "the path {} is too long for the socket by which `golem-provider stop` and `status` reach a provider in the \
             background; choose a shorter one with GOLEM_PROVIDER_DATA_DIR, or start it without {DAEMON}",
            data_dir.display()
        );
    }
    if let Some(pid) = store::holder(data_dir) {
        bail!(
            "a provider runs already on {} (process {pid}): `golem-provider status` shows it, `golem-provider stop` ends it",
            data_dir.display()
        );
    }
    let log = log_file(data_dir);
    let printed = log.with_file_name("start.log");
    let mut child = spawn(&printed)?;
    let pid = child.id();
    let waiting = Waiting::for_(format!("starting the provider; its log is {}", log.display()));
    match wait(&mut child, data_dir).await? {
        Outcome::Answers(status) => {
            drop(waiting);
            let provider = &status.sections.provider;
            print(&format!(
                "golem-provider {} runs (process {pid}) on http://{}\nlog: {}\n`golem-provider status` shows how it is, `golem-provider stop` ends it.\n",
                provider.version,
                provider.api,
                log.display()
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Ended(code) => {
            drop(waiting);
            let said = fs::read_to_string(&printed).unwrap_or_default();
            eprintln!("{}", said.trim_end());
            eprintln!("the provider has not started; its log: {}", log.display());
            Ok(ExitCode::from(code))
        }
        Outcome::StillStarting => {
            drop(waiting);
            bail!(
                "the provider (process {pid}) has not answered after {} s; it goes on starting: `golem-provider status`, \
                 `golem-provider logs -f`",
                START_DEADLINE.as_secs()
            );
        }
    }
}

/// Takes this process out of its terminal's session. For the one in the background, at its very beginning.
pub fn detach() {
    if let Err(error) = rustix::process::setsid() {
        eprintln!("golem-provider: cannot leave the terminal's session: {error}");
    }
}

fn spawn(printed: &Path) -> anyhow::Result<Child> {
    if let Some(directory) = printed.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let output: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(printed)
        .with_context(|| format!("cannot write {}", printed.display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Command::new(&program)
        .args(arguments(std::env::args_os().skip(1)))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// Those of the one in the background.
fn arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    own.map(|argument| if argument == DAEMON { DETACHED.into() } else { argument }).collect()
}

enum Outcome {
    Answers(Box<Status>),
    /// With this exit code.
    Ended(u8),
    StillStarting,
}

async fn wait(child: &mut Child, data_dir: &Path) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    while begun.elapsed() < START_DEADLINE {
        if let Some(status) = child.try_wait().context("looking after the provider")? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(Outcome::Ended(code.filter(|code| *code != 0).unwrap_or(1)));
        }
        if let Some(client) = AdminClient::connect(data_dir).await?
            && let Ok(status) = client.status().await
            && status.sections.provider.running.as_ref().is_some_and(|it| it.pid == child.id())
        {
            return Ok(Outcome::Answers(Box::new(status)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(Outcome::StillStarting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_in_the_background_gets_the_same_arguments_but_for_one() {
        let own = ["start", "--stop-vms-on-exit", "--daemon"].map(OsString::from);
        assert_eq!(arguments(own.into_iter()), ["start", "--stop-vms-on-exit", "--detached"]);
    }
}
