//! What of this computer, its settings and its network would keep a provider from doing its work, each with what to do about
//! it.
//!
//! Every file here is one area: it finds out (a shell that reads and asks), and judges (functions of plain values, with
//! tables of tests). [`run`] does all of them at the same time. Nothing is changed: what is written is removed again, and
//! what is asked is bounded in time and size.
//!
//! Reads `settings`, `store`, `resources`, `plugins`, `payments` and `chains`; called by `cli`, and by `admin`, whose provider examines its own
//! plugins ([`examine`]), since nobody else may work in their directories at the same time.

mod computer;
mod data_dir;
mod firewall;
mod money;
mod network;
mod plugins;
mod ports;

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};

pub use plugins::{Examination, Program, examine};

use crate::settings::{Settings, SettingsError};

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    pub sentence: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// How a check ended. The worst is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Could not be, or was not to be, found out.
    Skipped,
    Ok,
    /// It works, and not as well as it could, or not for long.
    Warn,
    /// A provider cannot do its work like this.
    Fail,
}

impl Check {
    fn new(name: &str, state: State, sentence: impl Into<String>) -> Check {
        Check { name: name.to_owned(), state, sentence: sentence.into(), remedy: None }
    }

    pub fn ok(name: &str, sentence: impl Into<String>) -> Check {
        Check::new(name, State::Ok, sentence)
    }

    pub fn skipped(name: &str, sentence: impl Into<String>) -> Check {
        Check::new(name, State::Skipped, sentence)
    }

    pub fn warn(name: &str, sentence: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { remedy: Some(remedy.into()), ..Check::new(name, State::Warn, sentence) }
    }

    pub fn fail(name: &str, sentence: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { remedy: Some(remedy.into()), ..Check::new(name, State::Fail, sentence) }
    }
}

/// What is examined.
pub struct Subject {
    pub settings: Arc<Settings>,
    /// The process of a provider that has the data directory.
    pub running: Option<u32>,
    /// Whether others may be asked over the network.
    pub online: bool,
    /// Tries the plugins: asks the provider that runs, or does so itself.
    pub examining: BoxFuture<'static, Result<Vec<Examination>, String>>,
}

/// One area that is examined at the same time as the others.
type Area = (&'static str, BoxFuture<'static, Vec<Check>>);

/// No area takes longer; trying plugins includes compiling them on a slow machine.
const DEADLINE: Duration = Duration::from_secs(180);

/// Settings that can be read, or what is wrong with them.
pub fn of_settings(settings: Result<&Settings, &SettingsError>) -> Vec<Check> {
    match settings {
        Ok(settings) if settings.warnings.is_empty() => {
            vec![Check::ok("settings", "every key is known and every value allowed")]
        }
        Ok(settings) => settings
            .warnings
            .iter()
            .map(|warning| {
                Check::warn(
                    "settings",
                    warning,
                    "`golem-provider config show` lists all settings and where they come from",
                )
            })
            .collect(),
        Err(error) => error
            .problems
            .iter()
            .map(|problem| {
                Check::fail(
                    "settings",
                    problem,
                    "set it right; a provider does not start like this",
                )
            })
            .collect(),
    }
}

/// Examines everything at the same time. `told` gets the areas in a fixed order, each as soon as it and all before it are
/// known; `waiting` what is still under way, whenever that changes.
pub async fn run(
    subject: Subject,
    mut told: impl FnMut(&[Check]),
    mut waiting: impl FnMut(&[&str]),
) -> Vec<Check> {
    let areas = areas(subject);
    let mut open: Vec<&'static str> = areas.iter().map(|(name, _)| *name).collect();
    let mut results: Vec<Option<Vec<Check>>> = areas.iter().map(|_| None).collect();
    let mut running: FuturesUnordered<_> = areas
        .into_iter()
        .enumerate()
        .map(|(index, (name, area))| async move {
            let checks = tokio::time::timeout(DEADLINE, area).await.unwrap_or_else(|_| {
                let sentence = format!("not known after {} s", DEADLINE.as_secs());
                vec![Check::fail(
                    name,
                    sentence,
                    "something of this computer hangs; `dmesg` may say what",
                )]
            });
            (index, name, checks)
        })
        .collect();
    waiting(&open);
    let mut shown = 0;
    while let Some((index, name, checks)) = running.next().await {
        results[index] = Some(checks);
        open.retain(|other| *other != name);
        while let Some(checks) = results.get(shown).and_then(Option::as_ref) {
            told(checks);
            shown += 1;
        }
        waiting(&open);
    }
    results.into_iter().flatten().flatten().collect()
}

fn areas(subject: Subject) -> Vec<Area> {
    let Subject { settings, running, online, examining } = subject;
    let plugins = plugins::checks(Arc::clone(&settings), online, examining);
    vec![
        ("settings", Box::pin(std::future::ready(of_settings(Ok(&settings))))),
        ("data directory", blocking("data directory", &settings, data_dir::checks)),
        ("computer", Box::pin(computer::checks(Arc::clone(&settings)))),
        ("plugins", Box::pin(plugins)),
        ("ports", blocking("ports", &settings, move |settings| ports::checks(settings, running))),
        ("firewall", Box::pin(firewall::checks(Arc::clone(&settings)))),
        ("network", Box::pin(network::checks(Arc::clone(&settings), online))),
        ("money", Box::pin(money::checks(Arc::clone(&settings), online))),
    ]
}

/// Examines on a thread that may wait.
fn blocking(
    name: &'static str,
    settings: &Arc<Settings>,
    examine: impl FnOnce(&Settings) -> Vec<Check> + Send + 'static,
) -> BoxFuture<'static, Vec<Check>> {
    let settings = Arc::clone(settings);
    Box::pin(async move {
        tokio::task::spawn_blocking(move || examine(&settings)).await.unwrap_or_else(|error| {
            vec![Check::fail(
                name,
                format!("was broken off: {error}"),
                "report this as a fault of golem-provider",
            )]
        })
    })
}

/// What a program of the system prints; absent where there is none or it does not end in seconds.
async fn output_of(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    const DEADLINE: Duration = Duration::from_secs(5);
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await.ok()?.ok()?;
    Some((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// The directory itself, or the nearest one above it that there is.
fn nearest_existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_known_is_told_in_a_fixed_order_whatever_ends_first() {
        // The order is kept by the loop over results; three areas, the first of which ends last.
        let directory = tempfile::tempdir().unwrap();
        let inputs = crate::settings::Inputs {
            environment: vec![
                ("GOLEM_ENVIRONMENT".into(), "development".into()),
                ("GOLEM_PROVIDER_DATA_DIR".into(), directory.path().into()),
            ],
            working_dir: None,
            home_dir: None,
        };
        let settings = crate::settings::resolve(&inputs, &Default::default()).unwrap();
        let subject = Subject {
            settings: Arc::new(settings),
            running: None,
            online: false,
            examining: Box::pin(async { Err("none here".to_owned()) }),
        };
        let (mut told, mut open) = (Vec::new(), usize::MAX);
        let checks = run(
            subject,
            |checks| told.extend_from_slice(checks),
            |waiting| {
                assert!(waiting.len() < open);
                open = waiting.len();
            },
        )
        .await;
        assert_eq!((&told, open), (&checks, 0));
        let position = |name: &str| checks.iter().position(|check| check.name == name).unwrap();
        assert!(position("settings") < position("data directory"));
        assert!(position("data directory") < position("memory"));
        assert!(position("memory") < position("plugins"));
        assert!(position("plugins") < position("firewall"));
        for check in &checks {
            assert_eq!(check.remedy.is_some(), check.state > State::Ok, "{check:?}");
        }
    }
}
