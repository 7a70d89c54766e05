//! Running `multipass`: one function per command that is used, and no decision.
//!
//! Every command has a time limit, because one that waits inside the daemon keeps the others waiting. `exec` is used for one thing
//! alone, see `ssh_keys.rs`: it starts a machine that does not run.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result, log,
    process::{Command, ExitStatus, Output},
    vm_backend::SpecRecord,
};

use crate::{
    answers::{self, Outcome, Refusal, Sight, Versions},
    user_data,
};

/// The program's name, as it is granted.
pub const PROGRAM: &str = "multipass";

/// For commands that only ask. On a running machine under load they take up to 2.5 s; the provider waits 10 s for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(8);
/// Asked at the provider's start, when the daemon may be starting as well.
const VERSION_TIMEOUT: Duration = Duration::from_secs(15);
/// What a command may take beyond its own `--timeout` before it is killed.
const MARGIN: Duration = Duration::from_secs(15);
/// A forced stop and a removal are immediate, once it is their turn.
const FORCED_STOP_TIMEOUT: Duration = Duration::from_secs(20);
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
const EXEC_TIMEOUT: Duration = Duration::from_secs(20);

/// What Multipass knows of a machine; absent if it says that there is none.
///
/// # Errors
/// [`Error::Unavailable`] if it cannot be asked: nothing is known then.
pub fn look(name: &str) -> Result<Option<Sight>> {
    let output = ask(&["info", name, "--format", "json"], ASK_TIMEOUT)?;
    match answers::outcome(output.status, &output.stderr) {
        Outcome::Done => answers::info(&output.stdout, name).map(Some),
        Outcome::Refused(Refusal::Missing) => Ok(None),
        other => Err(unexpected("info", other)),
    }
}

/// What Multipass knows of all machines, anybody's.
///
/// # Errors
/// [`Error::Unavailable`] if it cannot be asked.
pub fn look_at_all() -> Result<Vec<(String, Sight)>> {
    let output = ask(&["list", "--format", "json"], ASK_TIMEOUT)?;
    match answers::outcome(output.status, &output.stderr) {
        Outcome::Done => answers::list(&output.stdout),
        other => Err(unexpected("list", other)),
    }
}

/// Which Multipass this is.
///
/// # Errors
/// [`Error::Unavailable`] if it does not answer.
pub fn versions() -> Result<Versions> {
    let output = ask(&["version", "--format", "json"], VERSION_TIMEOUT)?;
    match answers::outcome(output.status, &output.stderr) {
        Outcome::Done => answers::versions(&output.stdout),
        other => Err(unexpected("version", other)),
    }
}

/// Launches a machine, and waits for `patience` until it has booted.
pub fn launch(name: &str, source: &str, spec: &SpecRecord, patience: Duration) -> Result<Outcome> {
    let command = Command::new(PROGRAM)
        .args(launch_arguments(name, source, spec, patience))
        .stdin(user_data::document(spec));
    finish("launch", command.timeout(patience + MARGIN))
}

/// A snap may read no directory of ours, so the document for cloud-init comes on standard input.
fn launch_arguments(
    name: &str,
    source: &str,
    spec: &SpecRecord,
    patience: Duration,
) -> Vec<String> {
    let mut arguments: Vec<String> = vec!["launch".into(), source.into()];
    for (flag, value) in [
        ("--name", name.to_owned()),
        ("--cpus", spec.cpu_cores.to_string()),
        // Multipass counts in powers of two.
        ("--memory", format!("{}M", spec.memory_mib)),
        ("--disk", format!("{}M", spec.storage_mib)),
        ("--cloud-init", "-".to_owned()),
        ("--timeout", patience.as_secs().max(1).to_string()),
    ] {
        arguments.extend([flag.to_owned(), value]);
    }
    arguments.push("--verbose".into());
    arguments
}

/// Starts a machine, and waits for `patience` until it has booted.
pub fn start(name: &str, patience: Duration) -> Result<Outcome> {
    let seconds = patience.as_secs().max(1).to_string();
    let command = Command::new(PROGRAM).args(["start", name, "--timeout", &seconds, "--verbose"]);
    finish("start", command.timeout(patience + MARGIN))
}

/// Asks a machine to shut down, for at most `grace`.
pub fn stop(name: &str, grace: Duration) -> Result<Outcome> {
    finish("stop", Command::new(PROGRAM).args(["stop", name]).timeout(grace))
}

/// Switches a machine off.
pub fn stop_by_force(name: &str) -> Result<Outcome> {
    let command = Command::new(PROGRAM).args(["stop", "--force", name]);
    finish("stop --force", command.timeout(FORCED_STOP_TIMEOUT))
}

/// Removes a machine for good.
pub fn delete(name: &str) -> Result<Outcome> {
    let command = Command::new(PROGRAM).args(["delete", "--purge", name]);
    finish("delete", command.timeout(DELETE_TIMEOUT))
}

/// Runs a shell script as root inside a machine that has to be running, with this text as its input.
pub fn run_inside(name: &str, script: &str, input: &str) -> Result<Outcome> {
    let command = Command::new(PROGRAM)
        .args(["exec", name, "--no-map-working-directory", "--"])
        .args(["sudo", "-n", "sh", "-c", script])
        .stdin(input);
    finish("exec", command.timeout(EXEC_TIMEOUT))
}

/// A command that is over when its time is: what it asked the daemon for may go on.
fn finish(what: &str, command: Command) -> Result<Outcome> {
    let output = match command.run() {
        Ok(output) => output,
        Err(Error::DeadlineExceeded(_)) => return Ok(Outcome::StillUnderWay),
        Err(error) => return Err(error),
    };
    if output.status != ExitStatus::Code(0) {
        let said = String::from_utf8_lossy(&output.stderr);
        log::debug!("multipass {what} ended with {:?}: {}", output.status, said.trim());
    }
    Ok(answers::outcome(output.status, &output.stderr))
}

fn ask(arguments: &[&str], timeout: Duration) -> Result<Output> {
    let answer = Command::new(PROGRAM).args(arguments.iter().copied()).timeout(timeout).run();
    answer.map_err(|error| match error {
        Error::DeadlineExceeded(_) => Error::Unavailable(format!(
            "`multipass {}` was not answered within {} s",
            arguments[0],
            timeout.as_secs()
        )),
        error => error,
    })
}

fn unexpected(command: &str, outcome: Outcome) -> Error {
    match outcome {
        Outcome::Refused(Refusal::Other(error)) => error,
        other => Error::Unavailable(format!("`multipass {command}` came to no answer: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    #[test]
    fn a_machine_is_launched_with_exactly_the_sizes_that_were_asked_for() {
        let spec = record::tests::example().spec;
        let patience = Duration::from_secs(15);
        let arguments = launch_arguments("golem-web-1", "24.04", &spec, patience).join(" ");
        assert_eq!(
            arguments,
            "launch 24.04 --name golem-web-1 --cpus 2 --memory 4096M --disk 20480M --cloud-init - --timeout 15 --verbose"
        );
    }
}
