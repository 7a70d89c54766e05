//! `doctor`: examines the computer, the settings and the network, and with `--boot` makes a machine to see whether that works.

mod canary;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use console::style;
use serde::Serialize;

use super::{
    print::{self, Waiting, print, wrapped},
    status,
};
use crate::{
    admin::AdminClient,
    doctor::{self, Check, State, Subject},
    plugins::catalog::Catalog,
    settings::{self, Environment, Overrides, Settings, SettingsError},
    store,
};

pub const DOCTOR: &str = "\
Examines everything that could keep a provider from doing its work, and says what to do about each: settings, data directory, \
virtualisation, memory, disk, plugins and their programs, images, ports, firewall, clock, and the servers that the settings name. \
Nothing is changed.

With --boot it goes on to make a machine the way a requestor does, logs in to it over SSH and removes it, and says how long each \
step took: by way of the provider that runs, or else of one that it starts for the purpose, for this computer alone, with the same \
settings, plugins and images.

Exit status: 0 nothing is wrong, 1 something could be better, 2 something keeps the provider from doing its work.";

#[derive(Debug, Args)]
pub struct Arguments {
    /// For programs
    #[arg(long)]
    json: bool,
    /// Make a machine, log in to it and remove it
    #[arg(long)]
    boot: bool,
    /// Ask no servers
    #[arg(long)]
    offline: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    state: State,
    checks: &'a [Check],
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<&'a [canary::Step]>,
}

impl Arguments {
    /// Where the settings are wrong there is nothing else to examine.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn without_settings(&self, error: &SettingsError) -> anyhow::Result<ExitCode> {
        let checks = doctor::of_settings(Err(error));
        if !self.json {
            print(&shown(&checks, print::width()))?;
        }
        self.conclude(&checks, None)
    }

    /// # Errors
    /// Standard output cannot be written.
    pub async fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let settings = Arc::new(as_it_runs(settings).await);
        let running = store::holder(&settings.data_dir);
        let subject = Subject {
            settings: Arc::clone(&settings),
            running,
            online: !self.offline,
            examining: Box::pin(examine(Arc::clone(&settings), running.is_some())),
        };
        let waiting = Waiting::for_("examining");
        let width = print::width();
        let mut trouble = Ok(());
        let mut checks = doctor::run(
            subject,
            |checks| {
                if !self.json && trouble.is_ok() {
                    trouble = waiting.print(&shown(checks, width));
                }
            },
            |open| waiting.now_for(format!("examining: {}", open.join(", "))),
        )
        .await;
        trouble?;
        let steps = match self.boot {
            true => {
                let canary = canary::boot(&settings, &waiting).await;
                if !self.json {
                    waiting.print(&shown(&canary.checks, width))?;
                }
                checks.extend(canary.checks);
                Some(canary.steps)
            }
            false => None,
        };
        drop(waiting);
        self.conclude(&checks, steps.as_deref())
    }

    fn conclude(
        &self,
        checks: &[Check],
        boot: Option<&[canary::Step]>,
    ) -> anyhow::Result<ExitCode> {
        let state =
            checks.iter().map(|check| check.state).max().unwrap_or(State::Ok).max(State::Ok);
        if self.json {
            print::print_json(&Report { state, checks, boot })?;
        } else {
            let count = |state| checks.iter().filter(|check| check.state == state).count();
            let (failed, warned) = (count(State::Fail), count(State::Warn));
            print(&match (failed, warned) {
                (0, 0) => "\nNothing is wrong.\n".to_owned(),
                (0, warned) => {
                    format!("\nA provider can work here; what could be better: {warned}.\n")
                }
                (failed, _) => format!(
                    "\nWhat keeps a provider from doing its work: {failed}; what else could be better: {warned}.\n"
                ),
            })?;
        }
        Ok(match state {
            State::Skipped | State::Ok => ExitCode::SUCCESS,
            State::Warn => ExitCode::from(1),
            State::Fail => ExitCode::from(2),
        })
    }
}

/// Tries the plugins: by way of the provider that has their directories, or here.
async fn examine(
    settings: Arc<Settings>,
    is_held: bool,
) -> Result<Vec<doctor::Examination>, String> {
    const DEADLINE: Duration = Duration::from_secs(150);
    if let Ok(Some(client)) = AdminClient::connect(&settings.data_dir).await {
        let asked = tokio::time::timeout(DEADLINE, client.examinations()).await;
        return match asked {
            Ok(Ok(examinations)) => Ok(examinations),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the provider that runs does not answer".to_owned()),
        };
    }
    if is_held {
        return Err(
            "a provider has the data directory and does not answer; try again when it has started"
                .to_owned(),
        );
    }
    if !settings.data_dir.is_dir() {
        return in_passing(&settings).await;
    }
    examine_here(&settings).await
}

/// Before the first start nothing of it is made.
async fn in_passing(settings: &Settings) -> Result<Vec<doctor::Examination>, String> {
    let room = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut settings = settings.clone();
    settings.data_dir = room.path().to_owned();
    settings.vm_data_dir = Some(room.path().join("vms"));
    examine_here(&settings).await
}

async fn examine_here(settings: &Settings) -> Result<Vec<doctor::Examination>, String> {
    let catalog = Catalog::offline(settings.into());
    Ok(doctor::examine(&catalog.map_err(|error| error.to_string())?).await)
}

/// A line for each check, and what to do about it below.
fn shown(checks: &[Check], width: usize) -> String {
    const NAMES: usize = 16;
    let mut text = String::new();
    for check in checks {
        let word = match check.state {
            State::Ok => style("ok  ").green(),
            State::Warn => style("warn").yellow().bold(),
            State::Fail => style("FAIL").red().bold(),
            State::Skipped => style("skip").dim(),
        };
        text += &wrapped(&format!("{word}  {:NAMES$}  ", check.name), &check.sentence, width);
        if let Some(remedy) = &check.remedy {
            text += &wrapped(&format!("{}→ ", " ".repeat(NAMES + 8)), remedy, width);
        }
    }
    text
}

/// With the environment of the provider that runs: one that was started by `dev` is in another than its settings say.
async fn as_it_runs(settings: &Settings) -> Settings {
    let running = running(settings).await.map(|status| status.sections.provider.environment);
    if running == Some(Environment::Development) {
        let overrides = Overrides { development: true, ..Overrides::default() };
        if let Ok(settings) = settings::load(&overrides) {
            return settings;
        }
    }
    settings.clone()
}

/// The provider that runs and answers, if one does.
async fn running(settings: &Settings) -> Option<crate::status::Status> {
    status::of_the_one_that_runs(settings).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_line_with_what_to_do_about_it_below() {
        let checks = [
            Check::ok("memory", "8 GB are there"),
            Check::warn("clock", "it is 20 s ahead", "as root: timedatectl set-ntp true"),
        ];
        assert_eq!(
            shown(&checks, 80),
            "ok    memory            8 GB are there\n\
             warn  clock             it is 20 s ahead\n                        → as root: timedatectl set-ntp true\n"
        );
    }
}
