//! Progress, for people at a terminal and for logs.
//!
//! A [`Step`] says what begins and how long that usually takes, shows the elapsed seconds while it
//! lasts (on a terminal only) and its duration at the end. [`run_logged`] is a step that runs one
//! program whose output nobody wants to see unless it fails.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// How many of a log's last lines are shown when a step fails.
const LOG_TAIL_LINES: usize = 20;

/// A piece of work under way. Dropping it without [`Step::done`] reports it as failed.
pub struct Step {
    what: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    finished: bool,
}

impl Step {
    /// Announces `what`; `usually` is the time it takes, in words, when that is worth saying.
    pub fn start(what: impl Into<String>, usually: Option<&str>) -> Step {
        let what = what.into();
        let line = match usually {
            Some(usually) => format!("{what} (usually {usually})"),
            None => what.clone(),
        };
        let spinner = ProgressBar::new_spinner();
        let spinner = if spinner.is_hidden() {
            eprintln!("--> {line}");
            None
        } else {
            let style = ProgressStyle::with_template("{spinner} {msg} … {elapsed}");
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.set_message(line);
            spinner.enable_steady_tick(Duration::from_millis(200));
            Some(spinner)
        };
        Step { what, started: Instant::now(), spinner, finished: false }
    }

    /// Announces `what`, done by a program that writes to the terminal itself: no moving line.
    pub fn start_loud(what: impl Into<String>, usually: &str) -> Step {
        let what = what.into();
        eprintln!("--> {what} (usually {usually})");
        Step { what, started: Instant::now(), spinner: None, finished: false }
    }

    /// Reports the step as done, with its duration.
    pub fn done(self) {
        self.finish("ok");
    }

    /// Reports a step that came to nothing, where that is no reason to stop.
    pub fn gave_up(self, why: &str) {
        self.finish(&format!("not done, {why}:"));
    }

    fn finish(mut self, word: &str) {
        self.finished = true;
        self.report(word);
    }

    fn report(&self, word: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("    {word} {} [{}]", self.what, seconds(self.started.elapsed()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.report("FAILED");
        }
    }
}

/// A duration as people say it: `0.4 s`, `12 s`, `3 min 5 s`.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    match whole {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{whole} s"),
        _ => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// A line that is neither a step nor an error.
pub fn note(text: impl AsRef<str>) {
    eprintln!("    {}", text.as_ref());
}

/// Runs `command` to its end with its output in `log`.
///
/// # Errors
/// When it cannot be started or fails; the error shows the log's path and last lines.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(directory) = log.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making {}", directory.display()))?;
    }
    let file = File::create(log).with_context(|| format!("writing {}", log.display()))?;
    let errors = file.try_clone().context("sharing a log file")?;
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .status()
        .with_context(|| format!("starting {program}"))?;
    if !status.success() {
        bail!("{program} ended with {status}. The end of {}:\n{}", log.display(), tail(log));
    }
    Ok(())
}

/// Runs `command` to its end with its output on the terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run_shown(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting {program}"))?;
    if !status.success() {
        bail!("{program} ended with {status}");
    }
    Ok(())
}

/// The output of `command`, or `None` where it cannot be started or fails.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn tail(log: &Path) -> String {
    let Ok(file) = File::open(log) else {
        return String::new();
    };
    let lines: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[from..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!(seconds(Duration::from_millis(430)), "0.4 s");
        assert_eq!(seconds(Duration::from_millis(12_900)), "12 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 5 s");
    }

    #[test]
    fn a_program_that_fails_shows_the_end_of_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("logs/it.log");
        let error = run_logged(Command::new("sh").args(["-c", "seq 30; exit 3"]), &log)
            .unwrap_err()
            .to_string();
        assert!(error.contains("exit status: 3") && error.contains("\n  30\n"), "{error}");
        assert!(!error.contains("\n  10\n"), "{error}");
    }
}
