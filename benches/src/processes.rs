//! Processes that are measured: started, looked at through `/proc`, and ended with whoever started them.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use golem_provider_tests::ports;

/// Names the provider that is measured.
const BINARY_VARIABLE: &str = "GOLEM_PROVIDER_BINARY";

/// Comes first on the command line of a program that has a role, followed by the role's name.
const ROLE: &str = "--role";

/// How long a server may take until it listens.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The unit of CPU time in `/proc/PID/stat`, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// The provider's binary, as `cargo xtask bench` has built it.
///
/// # Errors
/// When it was not named.
pub fn provider_binary() -> Result<PathBuf> {
    let binary = std::env::var_os(BINARY_VARIABLE).with_context(|| {
        format!("{BINARY_VARIABLE} is not set: run this through `cargo xtask bench`")
    })?;
    Ok(PathBuf::from(binary))
}

/// What this program was started for, when not to measure.
pub struct Role {
    pub name: String,
    pub arguments: Vec<String>,
}

impl Role {
    /// A program with a role ends with its parent, whatever becomes of that.
    ///
    /// # Errors
    /// When the kernel refuses that.
    pub fn of_this_process() -> Result<Option<Role>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next().as_deref() != Some(ROLE) {
            return Ok(None);
        }
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context("asking to end with the parent")?;
        let name = arguments.next().context("a role needs a name")?;
        Ok(Some(Role { name, arguments: arguments.collect() }))
    }

    /// The argument at this place.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    pub fn argument<T: std::str::FromStr>(&self, at: usize) -> Result<T> {
        let text = self.arguments.get(at);
        text.and_then(|text| text.parse().ok())
            .with_context(|| format!("the role {} misses its argument {at}", self.name))
    }
}

/// This program under a role; on one core alone, if there are two and it is told which.
///
/// # Errors
/// When this program cannot be found.
pub fn in_role<S: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = S>,
    core: Option<usize>,
) -> Result<Command> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = match core.filter(|_| cores() > 1) {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.arg("--cpu-list").arg(core.to_string()).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args([ROLE, name]).args(arguments);
    Ok(command)
}

/// How many cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// A process that ends with this value.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Its standard output comes to nobody, unless the command says otherwise.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(what: impl Into<String>, command: &mut Command) -> Result<Running> {
        let what = what.into();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        Ok(Running { child, what })
    }

    /// Waits until it listens on this port of 127.0.0.1.
    ///
    /// # Errors
    /// When it ends, or does not listen in time.
    pub fn listens_on(&mut self, port: u16) -> Result<()> {
        let started = Instant::now();
        while ports::listeners(port)?.is_empty() {
            self.check_alive()?;
            if started.elapsed() > START_DEADLINE {
                bail!("{} does not listen on port {port}", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// # Errors
    /// When it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("looking after {}", self.what))? {
            Some(status) => bail!("{} ended with {status}", self.what),
            None => Ok(()),
        }
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it cannot be asked or waited for.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .with_context(|| format!("ending {}", self.what))?;
        self.child.wait().with_context(|| format!("waiting for {}", self.what))
    }

    /// See [`cpu_seconds_of`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds_of(self.child.id())
    }

    /// Memory that it has in use, in KiB, what it shares with others included.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_kib(&self) -> Result<f64> {
        let text = self.read("smaps_rollup")?;
        let value = text.lines().find_map(|line| line.strip_prefix("Rss:"));
        let value = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        value.with_context(|| format!("the kernel does not tell the memory of {}", self.what))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("reading {path} of {}", self.what))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only for one that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used up to now, in user and kernel mode, in steps of 10 ms. Threads that have ended count too.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds_of(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The second field is the program's name in brackets, which may hold anything.
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (user, kernel) =
        ticks(11).zip(ticks(12)).with_context(|| format!("{path} is too short"))?;
    Ok((user + kernel) / TICKS_PER_SECOND)
}

/// Runs a command to its end and gives the one line it printed.
///
/// # Errors
/// When it fails or prints nothing.
pub fn line_of(what: &str, command: &mut Command) -> Result<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {what}"))?;
    let stdout = child.stdout.take().context("no output")?;
    let mut running = Running { child, what: what.to_owned() };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).with_context(|| format!("reading from {what}"))?;
    let status = running.child.wait().with_context(|| format!("waiting for {what}"))?;
    if !status.success() || line.is_empty() {
        bail!("{what} ended with {status}, having said {line:?}");
    }
    Ok(line.trim().to_owned())
}
