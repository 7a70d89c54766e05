//! `service`: the provider as a service of systemd, for the whole system or for one user.

mod unit;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::print::{Waiting, print, print_json};
use crate::{
    settings::{Origin, Settings},
    store,
};
use unit::Unit;

/// What systemd knows the provider as.
pub const UNIT_NAME: &str = "golem-provider.service";

pub const SERVICE: &str = "\
Runs the provider as a service of systemd: it starts with the computer, is started again after a crash, and writes to the \
journal. As root it is a service of the system, else one of this user.

The unit is for this program and this data directory; settings go into <data dir>/.env. Machines are left alone when the service \
stops, restarts or is uninstalled.";

#[derive(Debug, Subcommand)]
pub enum Service {
    /// Write the unit, switch it on and start it; again after an update of this program
    Install(Install),
    /// Stop the service and remove its unit; data and machines stay
    Uninstall(Which),
    /// Show the unit and what systemd says of it
    Show(Which),
}

#[derive(Debug, Args)]
pub struct Install {
    #[command(flatten)]
    which: Which,
    /// Only print the unit
    #[arg(long, conflicts_with_all = ["no_start", "json"])]
    print: bool,
    /// Only write the unit
    #[arg(long)]
    no_start: bool,
}

#[derive(Debug, Args)]
pub struct Which {
    /// A service of this user (the default, unless this is root)
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// A service of the system (the default for root)
    #[arg(long)]
    system: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Which {
    fn manager(&self) -> Manager {
        match (self.user, self.system) {
            (true, _) => Manager::User,
            (_, true) => Manager::System,
            _ if rustix::process::geteuid().is_root() => Manager::System,
            _ => Manager::User,
        }
    }
}

/// Whose service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    System,
    User,
}

impl Manager {
    /// For `systemctl` and `journalctl`.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Manager::System => &[],
            Manager::User => &["--user"],
        }
    }

    fn unit_file(self) -> anyhow::Result<PathBuf> {
        let directory = match self {
            Manager::System => PathBuf::from("/etc/systemd/system"),
            Manager::User => {
                let set = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
                let usual = || Some(std::env::home_dir()?.join(".config"));
                set.filter(|path| path.is_absolute())
                    .or_else(usual)
                    .context("there is no home directory to write the unit into")?
                    .join("systemd/user")
            }
        };
        Ok(directory.join(UNIT_NAME))
    }

    /// Does it run on this computer?
    fn runs(self) -> bool {
        match self {
            Manager::System => Path::new("/run/systemd/system").is_dir(),
            Manager::User => std::env::var_os("XDG_RUNTIME_DIR")
                .is_some_and(|directory| Path::new(&directory).join("systemd/private").exists()),
        }
    }

    /// # Errors
    /// When it cannot be started or fails, with what it said.
    fn systemctl(self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("systemctl")
            .args(self.arguments())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot start systemctl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`systemctl {}` failed: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The service manager of the process of a provider that runs, or else the one for which a unit is installed.
pub fn manager_of(pid: Option<u32>) -> Option<Manager> {
    match pid {
        Some(pid) => manager_in(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?),
        None => [Manager::System, Manager::User]
            .into_iter()
            .find(|manager| manager.unit_file().is_ok_and(|file| file.is_file())),
    }
}

/// Of a line such as `0::/system.slice/golem-provider.service`.
fn manager_in(cgroups: &str) -> Option<Manager> {
    let cgroup = cgroups.lines().find(|line| line.contains(UNIT_NAME))?;
    Some(if cgroup.contains("user@") { Manager::User } else { Manager::System })
}

impl Service {
    /// # Errors
    /// It could not be done.
    pub async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        match self {
            Self::Install(install) => install.run(settings),
            Self::Uninstall(which) => uninstall(&which),
            Self::Show(which) => show(&which),
        }
    }
}

impl Install {
    fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let manager = self.which.manager();
        let text = Unit {
            manager,
            program: std::env::current_exe().context("cannot find this program's own file")?,
            settings,
        }
        .text()?;
        if self.print {
            print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        let file = manager.unit_file()?;
        if !self.no_start {
            if !manager.runs() {
                bail!(
                    "systemd does not run here{}; `golem-provider start --daemon` does without it, and --no-start writes the unit alone",
                    if manager == Manager::User { " for this user" } else { ", as in a container" }
                );
            }
            if let Some(pid) = store::holder(&settings.data_dir)
                .filter(|pid| manager_of(Some(*pid)) != Some(manager))
            {
                bail!(
                    "a provider runs already on {} (process {pid}); end it first: golem-provider stop",
                    settings.data_dir.display()
                );
            }
        }
        write(&file, &text)?;
        for key in left_behind(settings) {
            eprintln!(
                "note: {key} is set where the service does not see it; put it into {}",
                settings.data_dir.join(".env").display()
            );
        }
        if manager.runs() {
            manager.systemctl(&["daemon-reload"])?;
        }
        if !self.no_start {
            let _waiting = Waiting::for_("starting the service");
            manager.systemctl(&["enable", UNIT_NAME])?;
            manager.systemctl(&["restart", UNIT_NAME]).with_context(|| {
                format!(
                    "the service does not start; `journalctl {} --unit {UNIT_NAME}` says why",
                    manager.arguments().join(" ")
                )
            })?;
        }
        if self.which.json {
            print_json(&json!({ "unit": file, "started": !self.no_start }))?;
        } else {
            print(&format!("{} is written\n", file.display()))?;
            if !self.no_start {
                print(
                    "the service runs, and starts with the computer; `golem-provider status` shows how it is\n",
                )?;
            }
            if manager == Manager::User {
                print("to let it run while you are logged out: loginctl enable-linger\n")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Settings that count now and will not for the service, which reads the data directory's `.env` alone.
fn left_behind(settings: &Settings) -> Vec<String> {
    let own = settings.data_dir.join(".env");
    let is_left = |origin: &Origin| match origin {
        Origin::Environment(_) => true,
        Origin::File(file) => *file != own,
        Origin::Default | Origin::CommandLine => false,
    };
    settings
        .effective
        .iter()
        .filter(|key| is_left(&key.origin) && key.key != unit::DATA_DIR_KEY)
        .map(|key| key.key.clone())
        .collect()
}

/// Whole or not at all, for everybody to read.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let written = || -> io::Result<()> {
        if let Some(directory) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let draft = file.with_extension("service.new");
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&draft)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&draft, file)
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

fn uninstall(which: &Which) -> anyhow::Result<ExitCode> {
    let manager = which.manager();
    let file = manager.unit_file()?;
    if !file.exists() {
        bail!("{} is not there: no service is installed", file.display());
    }
    let runs = manager.runs();
    if runs {
        let _waiting = Waiting::for_("stopping the service");
        manager.systemctl(&["disable", "--now", UNIT_NAME])?;
    }
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    if runs {
        manager.systemctl(&["daemon-reload"])?;
    }
    if which.json {
        print_json(&json!({ "removed": file }))?;
    } else {
        print(&format!("{} is removed; data and machines are as they were\n", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(which: &Which) -> anyhow::Result<ExitCode> {
    let manager = which.manager();
    let file = manager.unit_file()?;
    let text = match fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    // Both fail where the answer is no.
    let says = |question| {
        let output = Command::new("systemctl")
            .args(manager.arguments())
            .args([question, UNIT_NAME])
            .output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        said.ok().filter(|said| !said.is_empty())
    };
    let (state, enabled) = match manager.runs() {
        true => (says("is-active"), says("is-enabled")),
        false => (None, None),
    };
    let is_installed = text.is_some();
    if which.json {
        print_json(&json!({ "unit": file, "text": text, "state": state, "enabled": enabled }))?;
    } else {
        match &text {
            Some(text) => print(&format!("# {}\n{text}", file.display()))?,
            None => print(&format!("no service is installed ({} is not there)\n", file.display()))?,
        }
        if let (Some(state), Some(enabled)) = (state, enabled) {
            print(&format!("\nsystemd says: {state}, {enabled}\n"))?;
        }
    }
    Ok(if is_installed { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_manager_of_a_process_is_seen_by_its_cgroup() {
        assert_eq!(manager_in("0::/system.slice/golem-provider.service\n"), Some(Manager::System));
        let user =
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/golem-provider.service\n";
        assert_eq!(manager_in(user), Some(Manager::User));
        assert_eq!(manager_in("0::/user.slice/user-1000.slice/session-3.scope\n"), None);
    }
}
