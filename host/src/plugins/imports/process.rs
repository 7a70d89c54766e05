//! `process`: granted programs of the machine.

use std::{
    collections::HashMap,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::timeout,
};

use super::{blocking, io_error};
use crate::{
    faults::{self, FaultPoint},
    plugins::{
        bindings::{
            Error,
            golem::provider::process::{
                Background, Command as Request, ExitStatus, Host, Output, Running,
            },
        },
        call::CallState,
        limits::{PROGRAM_OUTPUT_BYTES, PROGRAM_OUTPUT_GRACE, SPAWNED_PER_CALL},
        script::Script,
    },
};

/// Where system programs are, if the provider was started without them in its `PATH` (as for an ordinary user).
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where package managers put programs that no service manager's `PATH` has. Only looked through: what programs are given as
/// their own `PATH` stays the system's.
const PACKAGE_DIRECTORIES: &str = "/snap/bin:/opt/homebrew/bin";

impl Host for CallState {
    async fn find(&mut self, program: String) -> Result<String, Error> {
        let path = self.granted(program).await?;
        Ok(path.to_string_lossy().into_owned())
    }

    async fn run(&mut self, request: Request) -> Result<Output, Error> {
        let path = self.granted(request.program.clone()).await?;
        self.fits(&request.program, &request.arguments)?;
        if let Some(script) = self.scripted(&request.program) {
            return script.run(request).await;
        }
        let limit = Duration::from_millis(request.timeout_ms.into());
        run(request, &path, &self.plugin.directory.path, limit).await
    }

    async fn spawn(&mut self, request: Background) -> Result<u32, Error> {
        let path = self.granted(request.program.clone()).await?;
        self.fits(&request.program, &request.arguments)?;
        if self.spawned >= SPAWNED_PER_CALL {
            return Err(Error::ResourceExhausted(format!(
                "this call has left {SPAWNED_PER_CALL} programs running already, which is all it may"
            )));
        }
        self.spawned += 1;
        let plugin = self.plugin.clone();
        let output = self.empty_file(request.output.clone()).await?;
        if let Some(script) = self.scripted(&request.program) {
            return script.spawn(request, output);
        }
        let runtime = tokio::runtime::Handle::current();
        blocking(move || {
            // Its end is noticed by the runtime, so that it leaves no zombie.
            let _runtime = runtime.enter();
            let failed = |error: std::io::Error| io_error("run", &path, &error);
            let mut command = bare(&path, &request.arguments, &plugin.directory.path);
            command.stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?).stderr(output);
            // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid is one, and nothing is allocated.
            // In a session of its own the program survives the terminal that the provider was started from.
            unsafe {
                command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
            }
            let child = command.spawn().map_err(failed)?;
            child
                .id()
                .ok_or_else(|| Error::Internal(format!("`{}` ended at once", request.program)))
        })
        .await
    }

    async fn processes(&mut self) -> Result<Vec<Running>, Error> {
        let plugin = self.plugin.clone();
        let scripted = plugin.services.script.as_ref().map(|script| script.processes());
        let mut processes =
            blocking(move || own_processes(plugin.grants.programs(), &plugin.directory.path))
                .await?;
        processes.extend(scripted.unwrap_or_default());
        Ok(processes)
    }

    async fn kill(&mut self, pid: u32, force: bool) -> Result<(), Error> {
        if self.plugin.services.script.as_ref().is_some_and(|script| script.kill(pid)) {
            return Ok(());
        }
        let plugin = self.plugin.clone();
        blocking(move || {
            let gone =
                || Error::NotFound(format!("process {pid} has ended, or is none of this plugin's"));
            let pid_number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
            // A pid may come to belong to another process at any time; an open pidfd may not. So it is opened first, and then
            // the process behind it is looked at.
            let pidfd =
                rustix::process::pidfd_open(pid_number, PidfdFlags::empty()).map_err(|_| gone())?;
            let ours = own_processes(plugin.grants.programs(), &plugin.directory.path)?;
            if !ours.iter().any(|process| process.pid == pid) {
                return Err(gone());
            }
            let signal = if force { Signal::KILL } else { Signal::TERM };
            match rustix::process::pidfd_send_signal(pidfd, signal) {
                Ok(()) => Ok(()),
                Err(rustix::io::Errno::SRCH) => Err(gone()),
                Err(error) => Err(Error::Internal(format!("cannot end process {pid}: {error}"))),
            }
        })
        .await
    }
}

impl CallState {
    /// The script, if it answers for this program.
    fn scripted(&self, program: &str) -> Option<Arc<Script>> {
        self.plugin.services.script.clone().filter(|script| script.plays_program(program))
    }

    /// The file of a granted program.
    fn granted(
        &self,
        program: String,
    ) -> impl Future<Output = Result<PathBuf, Error>> + Send + use<> {
        let (plugin, script) = (self.plugin.clone(), self.scripted(&program));
        blocking(move || match (plugin.grants.program(&program)?, script) {
            (Some(path), _) => Ok(path),
            (None, Some(script)) => script.find(&program).map(PathBuf::from),
            (None, None) => locate(&program).ok_or_else(|| {
                Error::NotFound(format!("`{program}` is not installed on this machine"))
            }),
        })
    }

    fn fits(&self, program: &str, arguments: &[String]) -> Result<(), Error> {
        self.plugin.grants.arguments(program, arguments).map_err(Error::PermissionDenied)
    }
}

/// The program's file, as the operator's shell would find it.
pub fn locate(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(SYSTEM_DIRECTORIES))
        .chain(std::env::split_paths(PACKAGE_DIRECTORIES))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

async fn run(
    request: Request,
    path: &Path,
    directory: &Path,
    limit: Duration,
) -> Result<Output, Error> {
    let mut command = bare(path, &request.arguments, directory);
    command
        .stdin(if request.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that a Ctrl-C at the provider's terminal is the provider's alone.
        .process_group(0)
        .kill_on_drop(true);
    end_with_the_provider(&mut command);
    let mut child = command.spawn().map_err(|error| io_error("run", path, &error))?;
    let group = Group(child.id());
    let outcome = timeout(limit, finish(&mut child, request.stdin)).await;
    match outcome {
        Ok(Ok(output)) => {
            group.disarm();
            faults::reached(FaultPoint::PluginHostCall);
            Ok(output)
        }
        Ok(Err(error)) => Err(io_error("run", path, &error)),
        Err(_) => Err(Error::DeadlineExceeded(format!(
            "`{}` did not end within {} s and was killed",
            request.program,
            limit.as_secs_f32()
        ))),
    }
}

/// A program with nothing of the provider's about it.
fn bare(path: &Path, arguments: &[String], directory: &Path) -> Command {
    let mut command = Command::new(path);
    command
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", SYSTEM_DIRECTORIES)
        .env("LANG", "C.UTF-8");
    command
}

/// A program whose answer a plugin waits for has nobody to work for once the provider was killed: it would go on changing
/// files that the next start takes for settled. The kernel sends the signal when the thread that started the program
/// ends, and the runtime's own threads, which serve plugins, end with the process.
fn end_with_the_provider(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl is one, and nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
}

/// Kills a program together with the children it started, unless it ended by itself. Dropped also when the call is.
struct Group(Option<u32>);

impl Group {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // The leader has not been waited for, so that the number still means this group; if all of it has ended, that
            // is as well.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

async fn finish(child: &mut Child, stdin: Vec<u8>) -> std::io::Result<Output> {
    let (mut input, stdout, stderr) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(input) = &mut input {
            // A program need not read all of its input; its exit status says whether it was content.
            let _ = input.write_all(&stdin).await;
        }
        drop(input);
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = {
        let collect = async { tokio::join!(collect(stdout, &mut out), collect(stderr, &mut err)) };
        let feed_and_collect = async { tokio::join!(feed, collect) };
        tokio::pin!(feed_and_collect);
        tokio::select! {
            _ = &mut feed_and_collect => child.wait().await?,
            status = child.wait() => {
                let status = status?;
                let _ = timeout(PROGRAM_OUTPUT_GRACE, &mut feed_and_collect).await;
                status
            }
        }
    };
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, signal) => ExitStatus::Signal(signal.unwrap_or_default()),
    };
    Ok(Output { status, stdout: out, stderr: err })
}

/// Reads to the end, and keeps the beginning.
async fn collect(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    // What was read until an error still helps to understand the program.
    if (&mut pipe).take(PROGRAM_OUTPUT_BYTES).read_to_end(kept).await.is_ok() {
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
}

/// The running processes of granted programs whose arguments name the directory.
///
/// What cannot be found out is an error and never an empty list, from which a plugin would conclude that all its machines
/// are gone.
pub(in crate::plugins) fn own_processes<'a>(
    programs: impl Iterator<Item = &'a str>,
    directory: &Path,
) -> Result<Vec<Running>, Error> {
    let programs: HashMap<PathBuf, &str> =
        programs.filter_map(|name| Some((locate(name)?.canonicalize().ok()?, name))).collect();
    let directory = directory.to_str().ok_or_else(|| {
        Error::FailedPrecondition(format!(
            "{} is not UTF-8; choose another directory",
            directory.display()
        ))
    })?;
    let cannot_list =
        |why: String| Error::Unavailable(format!("cannot list this machine's processes: {why}"));
    let mut system = System::new().map_err(|error| cannot_list(error.to_string()))?;
    let seen = system.refresh_processes_specifics(
        ProcessesToUpdate::All,
        true,
        ProcessRefreshKind::nothing()
            .with_exe(UpdateKind::Always)
            .with_cmd(UpdateKind::Always)
            .without_tasks(),
    );
    if seen == 0 {
        return Err(cannot_list("the operating system shows none".into()));
    }
    let mut own: Vec<Running> = system
        .processes()
        .values()
        .filter_map(|process| {
            // An upgraded program runs on from a file that is no longer there.
            let file = process.exe()?.to_str()?.trim_end_matches(" (deleted)");
            let program = programs.get(Path::new(file))?;
            let mut arguments =
                process.cmd().iter().map(|argument| argument.to_string_lossy().into_owned());
            arguments.next();
            let arguments: Vec<String> = arguments.collect();
            arguments.iter().any(|argument| argument.contains(directory)).then(|| Running {
                pid: process.pid().as_u32(),
                program: (*program).to_owned(),
                arguments,
            })
        })
        .collect();
    own.sort_by_key(|process| process.pid);
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(script: &str, stdin: &[u8]) -> Request {
        Request {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            stdin: stdin.to_vec(),
            timeout_ms: 0,
        }
    }

    async fn shell(script: &str, stdin: &[u8], limit: Duration) -> Result<Output, Error> {
        let directory = tempfile::tempdir().unwrap();
        run(request(script, stdin), Path::new("/bin/sh"), directory.path(), limit).await
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_program_gets_its_input_and_gives_its_output_and_status() {
        let output = shell("cat; echo oops >&2; exit 3", b"hello", LONG).await.unwrap();
        assert!(matches!(output.status, ExitStatus::Code(3)));
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_slice()),
            (&b"hello"[..], &b"oops\n"[..])
        );
    }

    #[tokio::test]
    async fn a_program_sees_nothing_of_the_providers_environment() {
        let output = shell("env", b"", LONG).await.unwrap();
        let environment = String::from_utf8(output.stdout).unwrap();
        let names: Vec<&str> =
            environment.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(
            names.iter().all(|name| ["PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)),
            "{names:?}"
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let marker = format!("{}.25", 100_000 + std::process::id());
        let error =
            shell(&format!("sleep {marker} & sleep {marker}"), b"", Duration::from_millis(200))
                .await;
        assert!(matches!(error, Err(Error::DeadlineExceeded(_))));
        let mut system = System::new().unwrap();
        for _ in 0..100 {
            system.refresh_processes_specifics(
                ProcessesToUpdate::All,
                true,
                ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always),
            );
            let left = system.processes().values().any(|process| {
                process.status() != sysinfo::ProcessStatus::Zombie
                    && process.cmd().iter().any(|argument| *argument == *marker)
            });
            if !left {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("a child of the killed program still runs");
    }

    #[tokio::test]
    async fn a_flood_of_output_is_cut_and_does_not_block_the_program() {
        let output = shell("head -c 5000000 /dev/zero", b"", LONG).await.unwrap();
        assert!(matches!(output.status, ExitStatus::Code(0)));
        assert_eq!(output.stdout.len() as u64, PROGRAM_OUTPUT_BYTES);
    }

    #[tokio::test]
    async fn a_child_in_the_background_that_keeps_the_output_open_does_not_hold_the_call() {
        let output = shell("echo started; sleep 30 >&1 & exit 0", b"", LONG).await.unwrap();
        assert_eq!(output.stdout, b"started\n");
    }

    #[test]
    fn only_processes_that_name_the_plugins_directory_are_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        std::fs::write(&file, "").unwrap();
        let mut child = std::process::Command::new("tail").arg("-f").arg(&file).spawn().unwrap();
        let mut found = Vec::new();
        for _ in 0..100 {
            found = own_processes(["tail"].into_iter(), directory.path()).unwrap();
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let elsewhere =
            own_processes(["tail"].into_iter(), Path::new("/nonexistent-directory")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid, child.id());
        assert!(elsewhere.is_empty());
    }
}
