//! A provider as an operator runs it: a process with settings in its environment, a data directory and a log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use golem_provider::faults::{self, FaultPoint};
use reqwest::Method;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{
    Client, Clock, DEFAULT_IMAGE, Image, Paper, binary, images,
    mounts::Mount,
    multipass::{self, Multipass},
    paper,
    ports::{self, Block},
    processes, wait,
};

/// A provider of a debug build compiles its plugins when it starts on an empty data directory.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// What is promised to operators for SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// What was asked for comes to its armed point within this; a boot may lie between.
const FAULT_DEADLINE: Duration = Duration::from_secs(180);
/// How much of a log is shown with a failed test.
const SHOWN_LOG_LINES: usize = 200;

/// What a provider is started with; a directory of its own, free ports, development mode.
pub struct Setup {
    /// Gone before the directory that they are mounted in.
    mounts: Vec<Mount>,
    directory: TempDir,
    ports: Block,
    settings: BTreeMap<String, String>,
    command: Vec<String>,
    /// Where programs are looked for first.
    programs: Option<PathBuf>,
    /// How many descriptors the provider may open, at first and at most, where that is not what this process may.
    descriptors: Option<(u64, u64)>,
    clock: Option<Clock>,
}

/// What a provider said that ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Sees to it that it ended with this exit code.
    ///
    /// # Errors
    /// When it did not; the text holds all that it said.
    pub fn code(&self, code: i32) -> Result<&Ended> {
        if self.status.code() != Some(code) {
            bail!("the exit code is not {code}: {self:?}");
        }
        Ok(self)
    }

    /// The JSON that it printed before it ended with this exit code.
    ///
    /// # Errors
    /// When it ended with another one, or printed none.
    pub fn json(&self, code: i32) -> Result<serde_json::Value> {
        self.code(code)?;
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:?}"))
    }
}

impl Setup {
    /// # Errors
    /// When there is no room for its directory, or no free ports.
    pub fn new() -> Result<Setup> {
        let directory = tempfile::Builder::new()
            .prefix("golem-e2e-")
            .tempdir()
            .context("making a directory")?;
        let ports = ports::free_block()?;
        let setup = Setup {
            mounts: Vec::new(),
            directory,
            settings: BTreeMap::new(),
            command: vec!["dev".to_owned()],
            programs: None,
            descriptors: None,
            clock: None,
            ports: ports.clone(),
        };
        let data_dir = setup.data_dir();
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(data_dir.join("plugins"))
            .context("making the data directory")?;
        // A debug build takes seconds to compile the plugins: each version of them once for all tests.
        if let Ok(plugins) = binary::plugins() {
            let compiled = plugins.join("compiled");
            fs::DirBuilder::new().mode(0o700).recursive(true).create(&compiled)?;
            std::os::unix::fs::symlink(&compiled, data_dir.join("cache"))
                .with_context(|| format!("linking to {}", compiled.display()))?;
        }
        Ok(setup
            .with("DATA_DIR", data_dir.display())
            .with("PORT", ports.api)
            .with("PORT_RANGE_START", ports.ssh.start)
            .with("PORT_RANGE_END", ports.ssh.end)
            .with("DEFAULT_VM_IMAGE", DEFAULT_IMAGE)
            // No test speaks to anybody outside this computer, whatever else it sets.
            .with("DISCOVERY_URL", "http://127.0.0.1:9")
            .with("PORT_CHECK_SERVERS", "http://127.0.0.1:9")
            .with("PUBLIC_IP_SOURCES", "http://127.0.0.1:9")
            // However full the machine is that tests run on: what VMs are given is not what they use.
            .with("STORAGE_THRESHOLD", 100)
            .with("LOG", "info,golem_provider=debug"))
    }

    /// Sets `GOLEM_PROVIDER_<key>`.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Setup {
        self.settings.insert(format!("GOLEM_PROVIDER_{key}"), value.to_string());
        self
    }

    /// Also for commands that do not start a provider: nobody but this computer is asked for anything.
    #[must_use]
    pub fn in_development(mut self) -> Setup {
        self.settings.insert("GOLEM_ENVIRONMENT".to_owned(), "development".to_owned());
        self
    }

    /// As for the public, but on this computer alone: advertised as being at `public_ip`, with ports that nobody verifies.
    #[must_use]
    pub fn in_production(self, public_ip: &str) -> Setup {
        self.with_command(&["start", "--no-verify-port"])
            .with("HOST", "127.0.0.1")
            .with("PUBLIC_IP", public_ip)
            .with("COUNTRY", "SE")
            .with("PRICING_UPDATE_ENABLED", "false")
    }

    /// Offers these images.
    ///
    /// # Errors
    /// When the plugin's configuration cannot be written.
    pub fn with_images(self, images: &[Image]) -> Result<Setup> {
        let configuration = images::plugin_configuration(images)?;
        fs::write(self.plugin_dir().join("qemu.toml"), configuration)
            .context("writing the plugin's configuration")?;
        Ok(self)
    }

    /// Puts a plugin that was made for tests into the plugin directory, with this configuration file beside it.
    ///
    /// # Errors
    /// When the plugin is not built, or the directory cannot be written.
    pub fn with_plugin(self, name: &str, configuration: &str) -> Result<Setup> {
        let directory = self.plugin_dir();
        fs::copy(binary::component(name)?, directory.join(format!("{name}.wasm")))
            .with_context(|| format!("copying the plugin {name}"))?;
        fs::write(directory.join(format!("{name}.toml")), configuration)
            .with_context(|| format!("writing the configuration of the plugin {name}"))?;
        Ok(self)
    }

    /// Makes VMs on paper: none needs a hypervisor, an image, or more than milliseconds.
    ///
    /// # Errors
    /// When the plugin is not built, or cannot be put in place.
    pub fn with_paper_backend(self, paper: &Paper) -> Result<Setup> {
        Ok(self
            .with_plugin(paper::NAME, &paper.configuration())?
            .with("VM_BACKEND", paper::NAME)
            .with("DEFAULT_VM_IMAGE", paper::IMAGE))
    }

    /// Makes VMs by a stand-in for Multipass.
    ///
    /// # Errors
    /// When the plugin is not built, or something cannot be put in place.
    pub fn with_multipass(mut self, multipass: &Multipass) -> Result<Setup> {
        self.programs = Some(multipass.install(&self.multipass_dir())?);
        Ok(self
            .with_plugin(multipass::NAME, &multipass.configuration()?)?
            .with("VM_BACKEND", multipass::NAME)
            .with("DEFAULT_VM_IMAGE", multipass::IMAGE))
    }

    fn multipass_dir(&self) -> PathBuf {
        self.directory.path().join("multipass")
    }

    /// Keeps a file system for as long as there is a provider.
    #[must_use]
    pub fn with_mount(mut self, mount: Mount) -> Setup {
        self.mounts.push(mount);
        self
    }

    /// It may open so many descriptors at first, and raise that to so many.
    #[must_use]
    pub fn with_descriptors(mut self, soft: u64, hard: u64) -> Setup {
        self.descriptors = Some((soft, hard));
        self
    }

    /// It goes by a clock of its own.
    ///
    /// # Errors
    /// When there can be none.
    pub fn with_clock(mut self) -> Result<Setup> {
        self.clock = Some(Clock::new(self.directory.path())?);
        Ok(self)
    }

    /// Other arguments than `dev`.
    #[must_use]
    pub fn with_command(mut self, arguments: &[&str]) -> Setup {
        self.command = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn plugin_dir(&self) -> PathBuf {
        self.data_dir().join("plugins")
    }

    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// When it ends, or does not answer in time.
    pub async fn start(self) -> Result<Provider> {
        let client = Client::new(self.ports.api)?;
        let mut provider = Provider { setup: self, process: None, client };
        provider.start_again().await?;
        Ok(provider)
    }

    /// Prepares what it needs to know its ports for (the API's and those for SSH), starts it and waits until it answers.
    ///
    /// # Errors
    /// When the preparation fails, when it ends, or does not answer in time.
    pub async fn start_with(
        self,
        prepare: impl FnOnce(u16, std::ops::Range<u16>) -> Result<()>,
    ) -> Result<Provider> {
        prepare(self.ports.api, self.ports.ssh.clone())?;
        self.start().await
    }

    /// Starts it where it is meant to refuse that, or to print something and end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn run_to_the_end(&self) -> Result<Ended> {
        self.run(self.command.clone()).await
    }

    async fn run(&self, arguments: Vec<String>) -> Result<Ended> {
        let mut command = tokio::process::Command::from(self.process(&arguments)?);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = wait::within("a provider that should end", START_DEADLINE, command.output());
        let output = output.await?.context("starting the provider")?;
        Ok(Ended {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `golem-provider` with these arguments and these settings, as an operator would, whether or not a provider runs.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn command(&self, arguments: &[&str]) -> Result<Ended> {
        self.run(arguments.iter().map(|argument| (*argument).to_owned()).collect()).await
    }

    /// A requestor of the provider with these settings.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.ports.api)
    }

    pub fn api_port(&self) -> u16 {
        self.ports.api
    }

    /// The machines that its backend on paper keeps.
    pub fn paper_machines(&self) -> paper::Machines {
        paper::Machines::of(&self.data_dir())
    }

    /// The program with a sub-command that needs no provider; what that makes for a while lies in the directory of this one.
    /// Killed when it is dropped.
    ///
    /// # Errors
    /// When there is no program.
    pub fn program(&self, arguments: &[&str]) -> Result<tokio::process::Command> {
        let arguments: Vec<String> =
            arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut command = tokio::process::Command::from(self.process(&arguments)?);
        command.env("TMPDIR", self.directory.path()).kill_on_drop(true);
        Ok(command)
    }

    /// A shell that runs a script with the settings of this provider. Killed when it is dropped.
    pub fn shell(&self, script: &str) -> tokio::process::Command {
        let mut command = Command::new("bash");
        without_settings_of_the_caller(&mut command);
        command.args(["-c", script]).envs(&self.settings).stdin(Stdio::null());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        command
    }

    /// Where all of its files are, and those of its commands.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn fault_points_file(&self) -> PathBuf {
        self.directory.path().join("fault-points")
    }

    /// Nothing of the caller's own provider reaches it: no settings, no `.env`, no home directory.
    fn process(&self, arguments: &[String]) -> Result<Command> {
        let mut command = match self.descriptors {
            None => Command::new(binary::provider()?),
            Some((soft, hard)) => {
                let mut command = Command::new("sh");
                let limits =
                    format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"");
                command.args(["-c", &limits]).arg(binary::provider()?);
                command
            }
        };
        without_settings_of_the_caller(&mut command);
        command
            .args(arguments)
            .envs(&self.settings)
            .env(faults::FILE_VARIABLE, self.fault_points_file())
            .env("HOME", self.directory.path())
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        if let Some(clock) = &self.clock {
            command.envs(clock.environment());
        }
        if let Some(programs) = &self.programs {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let path = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(path).context("making up a PATH")?);
        }
        Ok(command)
    }
}

fn without_settings_of_the_caller(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GOLEM_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
}

/// A provider in the background, if one was started there. It ends with this value, and so do its machines.
pub struct Daemon {
    pub setup: Setup,
}

impl Daemon {
    /// The process that has the data directory, if one has.
    pub fn process(&self) -> Option<processes::Process> {
        let pid = fs::read_to_string(self.setup.data_dir().join("provider.lock")).ok()?;
        let process = processes::Process::with_id(pid.trim().parse().ok()?).ok()?;
        // The number of one that has ended may be another's by now.
        process.arguments.iter().any(|argument| argument == "--detached").then_some(process)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.setup.data_dir().join("logs/provider.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        eprintln!("--- the log of the provider in the background\n{}", self.log());
        if let Some(process) = self.process() {
            let _ = process.kill();
        }
        processes::end_machines_in(self.setup.directory.path());
    }
}

/// A provider that was started. It ends with this value, and so do its machines.
pub struct Provider {
    setup: Setup,
    process: Option<Child>,
    client: Client,
}

impl Provider {
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn data_dir(&self) -> PathBuf {
        self.setup.data_dir()
    }

    pub fn api_port(&self) -> u16 {
        self.setup.ports.api
    }

    pub fn ssh_ports(&self) -> std::ops::Range<u16> {
        self.setup.ports.ssh.clone()
    }

    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the provider does not run")?.id())
    }

    /// The memory that it has, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident_bytes(&self) -> Result<u64> {
        processes::Process::with_id(self.pid()?)?.resident_bytes()
    }

    /// What it has logged up to now.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(self.log_file()).context("reading the provider's log")
    }

    /// Its QEMU processes.
    pub fn machines(&self) -> Vec<processes::Process> {
        processes::machines_in(self.setup.directory.path())
    }

    /// The clock that was set up for it.
    ///
    /// # Errors
    /// When it goes by the machine's.
    pub fn clock(&self) -> Result<&Clock> {
        self.setup.clock.as_ref().context("this provider has no clock of its own")
    }

    /// Lets machines on paper behave otherwise from the next start on.
    ///
    /// # Errors
    /// When the plugin's configuration cannot be written.
    pub fn set_paper(&self, paper: &Paper) -> Result<()> {
        let file = self.setup.plugin_dir().join(format!("{}.toml", paper::NAME));
        fs::write(&file, paper.configuration())
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The machines that its backend on paper keeps.
    pub fn paper_machines(&self) -> paper::Machines {
        paper::Machines::of(&self.data_dir())
    }

    /// The stand-in for Multipass that its backend uses.
    pub fn multipass(&self) -> multipass::Standing {
        multipass::Standing::at(self.setup.multipass_dir())
    }

    /// Files and directories of its own whose path contains `text`.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn files_named(&self, text: &str) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut left = vec![self.data_dir()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory)
                .with_context(|| format!("reading {}", directory.display()))?
            {
                let entry = entry?;
                if entry.file_name().to_string_lossy().contains(text) {
                    found.push(entry.path());
                } else if entry.file_type()?.is_dir() {
                    left.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// Sets `GOLEM_PROVIDER_<key>` for the next start.
    pub fn set(&mut self, key: &str, value: impl ToString) {
        self.setup.settings.insert(format!("GOLEM_PROVIDER_{key}"), value.to_string());
    }

    /// What another provider on the same data directory and ports says.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn run_a_second_one(&self) -> Result<Ended> {
        self.setup.run_to_the_end().await
    }

    /// Runs `golem-provider` with these arguments and the provider's settings, as its operator would.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn command(&self, arguments: &[&str]) -> Result<Ended> {
        self.setup.run(arguments.iter().map(|argument| (*argument).to_owned()).collect()).await
    }

    /// Starts it where none runs, on the same data directory and ports, and waits until it answers.
    ///
    /// # Errors
    /// When one runs, when it ends, or does not answer in time.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.process.is_some() {
            bail!("the provider runs already");
        }
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = self.setup.process(&self.setup.command)?;
        command.stdout(log.try_clone()?).stderr(log);
        self.process = Some(command.spawn().context("starting the provider")?);
        let (client, pause) = (self.client.clone(), Duration::from_millis(50));
        wait::until("the provider's first answer", START_DEADLINE, pause, async || {
            if let Some(status) = self.try_wait()? {
                bail!("the provider ended with {status}");
            }
            let answer = client.send(Method::GET, "/health", None).await;
            Ok(answer.ok().filter(|answer| answer.status == 200).map(drop))
        })
        .await
    }

    /// From now on it dies at the first of these points that it comes to, at the visit whose number is given, counted from
    /// now.
    ///
    /// # Errors
    /// When the points cannot be written down.
    pub fn arm(&self, points: &[(FaultPoint, u32)]) -> Result<()> {
        let file = self.setup.fault_points_file();
        let lines: String =
            points.iter().map(|(point, visit)| format!("{} {visit}\n", point.name())).collect();
        let draft = file.with_extension("new");
        fs::write(&draft, lines)
            .and_then(|()| fs::rename(draft, file))
            .context("arming fault points")
    }

    /// It dies at no point any more.
    ///
    /// # Errors
    /// When the file that says so cannot be removed.
    pub fn disarm(&self) -> Result<()> {
        for file in [self.setup.fault_points_file(), self.died_file()] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("disarming fault points");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until it has died at a point that it was armed with, disarms it, and answers which one it was.
    ///
    /// # Errors
    /// When it lives on, or ends in another way.
    pub async fn death(&mut self) -> Result<FaultPoint> {
        let pause = Duration::from_millis(5);
        let status =
            wait::until("the provider's death", FAULT_DEADLINE, pause, async || self.try_wait())
                .await?;
        self.process = None;
        let name = fs::read_to_string(self.died_file())
            .with_context(|| format!("the provider ended with {status} and at no fault point"))?;
        self.disarm()?;
        let point = FaultPoint::ALL.iter().find(|point| point.name() == name);
        point.copied().with_context(|| format!("{name} is no fault point"))
    }

    fn died_file(&self) -> PathBuf {
        self.setup.fault_points_file().with_extension("died")
    }

    /// Asks it to end, as an operator or a service manager does, and answers its exit code.
    ///
    /// # Errors
    /// When it has not ended after the promised ten seconds, or not by itself.
    pub async fn terminate(&mut self) -> Result<i32> {
        self.signal(Signal::TERM)?;
        let pause = Duration::from_millis(20);
        let status =
            wait::until("the provider's end", STOP_DEADLINE, pause, async || self.try_wait())
                .await?;
        self.process = None;
        status.code().with_context(|| format!("the provider ended with {status}"))
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        if let Some(mut process) = self.process.take() {
            process.wait().context("waiting for the killed provider")?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()?)?).context("no process id")?;
        rustix::process::kill_process(pid, signal).context("signalling the provider")
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let process = self.process.as_mut().context("the provider does not run")?;
        process.try_wait().context("looking after the provider")
    }

    fn log_file(&self) -> PathBuf {
        self.setup.directory.path().join("provider.log")
    }

    fn show_log(&self) {
        let Ok(log) = self.log() else { return };
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(SHOWN_LOG_LINES)..];
        eprintln!("--- the end of the provider's log\n{}", shown.join("\n"));
        show_consoles(self.setup.directory.path());
    }
}

/// The end of what each machine wrote to its console.
fn show_consoles(directory: &Path) {
    const SHOWN_LINES: usize = 20;
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() && !path.is_symlink() {
            show_consoles(&path);
        } else if path.file_name().is_some_and(|name| name == "console.log" || name == "qemu.log") {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("--- the end of {}\n{end}", path.display());
        }
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // The test runner shows this with a test that failed, and keeps it to itself otherwise.
        self.show_log();
        // First the provider, so that it starts no machine anew.
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
            if self.setup.clock.is_some() {
                Clock::clear_up_after(process.id());
            }
        }
        processes::end_machines_in(self.setup.directory.path());
    }
}
