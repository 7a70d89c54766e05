//! `plugin test`: runs the conformance suite on a file and prints what came of it, line by line as it happens.

use std::{
    collections::BTreeMap,
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use alloy::signers::local::PrivateKeySigner;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{super::show, Unusable, read, read_text};
use crate::{
    chains::{Chains, NoMemory, Nodes},
    plugins::{
        Kind, Severity,
        conformance::{self, Event, Outcome, Report, Verdict},
        harness::{self, Harness, HarnessError},
        manifest::{Ask, Manifest},
    },
    settings::Secret,
    vms,
};

pub const ABOUT: &str = "\
Checks that a plugin keeps what its kind promises: it is loaded as a provider loads it, and called with good and bad \
input, again and again, side by side, and cut off in the middle. A VM backend makes real machines and removes them again. \
An advertiser lists a provider that does not exist, for some seconds, at the place that --settings names. A payment \
verifier reads what is paid with on the chain that --chain names; nothing is sent there.

Nothing of a provider on this machine is used: settings, files and durable values of the plugin are in a directory \
that is gone afterwards, and the key that it signs with was made for this run. What the plugin asks for is shown first, and granted if you say so.

Exit status: 0 everything is as promised, 1 something is not or could not be tried, 2 the command line or a file that \
it names is wrong.";

/// As plugins call them.
const CHAINS: [&str; 2] = ["golem-base", "payments"];

#[derive(Debug, Args)]
pub struct Test {
    /// The plugin's component
    file: PathBuf,
    /// The plugin's settings, and grants beyond what it asks for, as in a provider's NAME.toml
    #[arg(long, value_name = "FILE.toml")]
    settings: Option<PathBuf>,
    /// What to make machines from [default: the first image that the plugin offers]
    #[arg(long, value_name = "ALIAS")]
    image: Option<String>,
    /// A node of a chain that the plugin asks, such as payments=http://127.0.0.1:8545; may be repeated [default: there is none]
    #[arg(long = "chain", value_name = "NAME=URL", value_parser = parse_chain)]
    chains: Vec<(String, Secret)>,
    /// Grant what the plugin asks for, without a question
    #[arg(long, visible_alias = "yes")]
    grant_all: bool,
    /// Leave the plugin's directory where it is, and say where
    #[arg(long)]
    keep: bool,
    /// For programs: one JSON object; what happens goes to standard error
    #[arg(long)]
    json: bool,
    /// Show what the plugin logs, on standard error
    #[arg(long)]
    log: bool,
}

impl Test {
    pub fn run(&self) -> Result<ExitCode, Unusable> {
        let component = read(&self.file)?;
        let manifest = Manifest::of_component(&component)
            .and_then(|manifest| manifest.check().map(|()| manifest))
            .map_err(|error| Unusable::file("use", &self.file, error))?;
        let unusable = |error: HarnessError| Unusable(error.to_string());
        let mut harness = Harness::new(component)
            .map_err(unusable)?
            .deadlines(&as_the_provider_waits())
            .own_key();
        if !self.chains.is_empty() {
            harness = harness.ethereum(Arc::new(self.chains()?));
        }
        if let Some(file) = &self.settings {
            harness = harness
                .configured(&read_text(file)?)
                .map_err(|error| Unusable::file("use", file, error))?;
        }
        if self.keep {
            harness.keep();
        }
        if !self.may_have(&manifest.asks())? {
            return Err(Unusable("nothing was granted, and nothing was tried".to_owned()));
        }
        if self.log {
            let lines = tracing_subscriber::fmt().with_writer(std::io::stderr);
            // Only a second one could be refused.
            let _ = lines.with_target(false).try_init();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Unusable(format!("cannot start the runtime: {error}")))?;
        let report = runtime.block_on(self.check(&harness));
        if self.json {
            println!("{}", as_json(&report));
        } else {
            print!("{}", ending(&report));
        }
        if self.keep {
            eprintln!("The plugin's directory is in {}", harness.root().display());
        }
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The named nodes, with a key that was made for this and belongs to nobody.
    fn chains(&self) -> Result<Chains, Unusable> {
        let mut urls: BTreeMap<String, Vec<Secret>> = BTreeMap::new();
        for (name, url) in &self.chains {
            urls.entry(name.clone()).or_default().push(url.clone());
        }
        let nodes = Nodes::new(&urls).map_err(|error| Unusable(error.to_string()))?;
        Ok(Chains::new(nodes, PrivateKeySigner::random(), u128::MAX, Arc::new(NoMemory)))
    }

    async fn check(&self, harness: &Harness) -> Report {
        let broken_off = CancellationToken::new();
        let interrupted = broken_off.clone();
        let waiting = tokio::spawn(async move {
            // Where neither can be waited for, it ends the program as usual.
            if asked_to_end().await.is_ok() {
                interrupted.cancel();
            }
        });
        let screen = Mutex::new(Screen::new(self.json));
        let observer = Arc::new(move |event: Event<'_>| {
            screen.lock().unwrap_or_else(PoisonError::into_inner).show(&event);
        });
        let report = conformance::run(harness, self.image.as_deref(), observer, &broken_off).await;
        waiting.abort();
        report
    }

    /// Shows what is asked for, and asks back.
    fn may_have(&self, asks: &[Ask]) -> Result<bool, Unusable> {
        if asks.is_empty() {
            return Ok(true);
        }
        eprintln!("{} asks for:\n{}", self.file.display(), show::asks(asks));
        if self.grant_all {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            return Err(Unusable(
                "there is nobody to ask: grant what stands above with --grant-all".to_owned(),
            ));
        }
        eprint!("Grant all of it for this test? [y/N] ");
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        Ok(read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }
}

/// `payments=http://127.0.0.1:8545`.
fn parse_chain(text: &str) -> Result<(String, Secret), String> {
    let wrong = || "it is not NAME=URL, such as payments=http://127.0.0.1:8545".to_owned();
    let (name, url) = text.split_once('=').ok_or_else(wrong)?;
    let is_url = url::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    if !CHAINS.contains(&name) {
        return Err(format!("there is no chain `{name}`; known are {}", CHAINS.join(", ")));
    }
    is_url.then(|| (name.to_owned(), Secret::new(url))).ok_or_else(wrong)
}

/// Ctrl-C, or SIGTERM: machines that were made are removed before this program ends.
async fn asked_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

/// A plugin that is slower than this is slower than the provider waits.
fn as_the_provider_waits() -> harness::Deadlines {
    let vms::Deadlines { create, start, boot, boot_slack, stop_slack, delete, ask, add_key } =
        vms::Deadlines::default();
    harness::Deadlines {
        ask,
        create,
        start,
        boot: boot + boot_slack,
        stop: stop_slack,
        delete,
        add_key,
    }
}

/// Lines as they come, and on a terminal what is being done now.
struct Screen {
    /// To standard error, so that standard output is for the report.
    aside: bool,
    transient: bool,
    current: String,
}

impl Screen {
    fn new(aside: bool) -> Self {
        let transient = std::io::stderr().is_terminal();
        Self { aside, transient, current: String::new() }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Begins(check) => {
                self.current = format!("{}: {}", check.call, check.promise);
                self.now(&self.current);
            }
            Event::Stage(stage) => self.now(&format!("{} – {stage}", self.current)),
            Event::Ended(outcome) => {
                self.now("");
                let line = line(outcome);
                // A reader that has gone is no reason to leave machines behind.
                let _ = match self.aside {
                    true => writeln!(std::io::stderr(), "{line}"),
                    false => writeln!(std::io::stdout(), "{line}"),
                };
            }
        }
    }

    fn now(&self, text: &str) {
        if self.transient {
            let text: String = text.chars().take(100).collect();
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
            let _ = std::io::stderr().flush();
        }
    }
}

const CALL_WIDTH: usize = 15;
const PROMISE_WIDTH: usize = 72;

fn line(outcome: &Outcome) -> String {
    let (word, reason) = match &outcome.verdict {
        Verdict::Passed => ("passed", None),
        Verdict::Failed(reason) => ("FAILED", Some(reason)),
        Verdict::NotApplicable(reason) => ("n/a", Some(reason)),
    };
    let check = outcome.check;
    let mut line = format!(
        "{word:6}  {:CALL_WIDTH$} {:PROMISE_WIDTH$} {:>8}",
        check.call,
        check.promise,
        seconds(outcome.took)
    );
    if let Some(reason) = reason {
        line.push_str(&format!("\n        {:CALL_WIDTH$} → {reason}", ""));
    }
    line
}

fn seconds(took: Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}

/// What stands below the lines.
fn ending(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Info => "note",
            Severity::Warning => "warning",
            Severity::Blocking => "cannot work here",
        };
        text.push_str(&format!("{severity}: {}\n", finding.message));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("  what helps: {remedy}\n"));
        }
    }
    let (passed, failed, not_applicable) = report.counts();
    let name = match &report.plugin {
        Some(plugin) => format!("{} {}", plugin.name, plugin.version),
        None => "the plugin".to_owned(),
    };
    let kind = match report.kind {
        Kind::VmBackend => "a VM backend",
        Kind::DiscoveryAdvertiser => "an advertiser",
        Kind::PaymentVerifier => "a payment verifier",
    };
    let verdict = if report.interrupted {
        "was not tried to the end"
    } else if report.blocked {
        "cannot work on this machine, so most of it could not be tried"
    } else if report.passed() {
        &format!("keeps what {kind} promises")
    } else {
        &format!("does not keep what {kind} promises")
    };
    text.push_str(&format!(
        "{name} {verdict}: {passed} passed, {failed} failed, {not_applicable} not applicable\n"
    ));
    text
}

fn as_json(report: &Report) -> serde_json::Value {
    let checks: Vec<_> = report
        .outcomes
        .iter()
        .map(|outcome| {
            let (verdict, reason) = match &outcome.verdict {
                Verdict::Passed => ("passed", None),
                Verdict::Failed(reason) => ("failed", Some(reason)),
                Verdict::NotApplicable(reason) => ("not-applicable", Some(reason)),
            };
            json!({
                "call": outcome.check.call,
                "promise": outcome.check.promise,
                "verdict": verdict,
                "reason": reason,
                "milliseconds": u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            let severity = match finding.severity {
                Severity::Info => "info",
                Severity::Warning => "warning",
                Severity::Blocking => "blocking",
            };
            json!({ "severity": severity, "message": finding.message, "remedy": finding.remedy })
        })
        .collect();
    let plugin = report.plugin.as_ref().map(|plugin| {
        json!({ "name": plugin.name, "version": plugin.version, "license": plugin.license, "summary": plugin.summary })
    });
    let (passed, failed, not_applicable) = report.counts();
    json!({
        "plugin": plugin,
        "kind": report.kind,
        "passed": report.passed(),
        "blocked": report.blocked,
        "interrupted": report.interrupted,
        "counts": { "passed": passed, "failed": failed, "not-applicable": not_applicable },
        "findings": findings,
        "checks": checks,
    })
}
