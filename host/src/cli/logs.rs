//! `logs`: what the provider has written, from wherever it writes.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;

use super::{print::print, service, status};
use crate::{
    settings::Settings,
    telemetry::{LogTarget, log_file},
};

pub const LOGS: &str = "\
Shows the last lines of the provider's log: the file <data dir>/logs/provider.log of one that was started with --daemon, or the \
system's journal of one that runs as a service. Files are put aside at 10 MiB; five of them are kept.

How much is written is set with GOLEM_PROVIDER_LOG, and GOLEM_PROVIDER_LOG_FORMAT=json makes it an object a line.";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Go on showing what is written, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: usize,
}

impl Arguments {
    /// # Errors
    /// There is no log, or it cannot be read.
    pub async fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let status = status::of_the_one_that_runs(settings).await?;
        let running = status.and_then(|status| status.sections.provider.running);
        let file = log_file(&settings.data_dir);
        let pid = running.as_ref().map(|running| running.pid);
        let source = source(
            running.map(|running| running.log),
            file.is_file().then_some(file),
            service::manager_of(pid),
        );
        match source {
            Source::File(path) => {
                let (path, arguments) = (path, (self.follow, self.lines));
                tokio::task::spawn_blocking(move || show(&path, arguments.0, arguments.1))
                    .await??;
                Ok(ExitCode::SUCCESS)
            }
            Source::Journal(manager) => {
                let mut journal = Command::new("journalctl");
                journal.args(manager.arguments());
                journal.args(["--unit", service::UNIT_NAME, "--no-pager", "--output", "cat"]);
                journal.args(["--lines", &self.lines.to_string()]);
                if self.follow {
                    journal.arg("--follow");
                }
                Err(journal.exec()).context("cannot start journalctl")
            }
            Source::Elsewhere => bail!(
                "the provider that runs{} writes its log to where it was started; `golem-provider start --daemon` keeps one in a file",
                pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
            ),
            Source::None => bail!(
                "there is no log in {} yet; `golem-provider start --daemon` writes one",
                settings.data_dir.display()
            ),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Journal(service::Manager),
    Elsewhere,
    None,
}

/// Where the log is: of the provider that runs, else of the last one.
fn source(
    running: Option<LogTarget>,
    file: Option<PathBuf>,
    manager: Option<service::Manager>,
) -> Source {
    match (running, file, manager) {
        (Some(LogTarget::File { path }), ..) => Source::File(path),
        (Some(LogTarget::Journal), _, manager) => {
            Source::Journal(manager.unwrap_or(service::Manager::System))
        }
        (Some(LogTarget::StandardError), ..) => Source::Elsewhere,
        (None, Some(file), _) => Source::File(file),
        (None, None, Some(manager)) => Source::Journal(manager),
        (None, None, None) => Source::None,
    }
}

fn show(path: &Path, follow: bool, lines: usize) -> anyhow::Result<()> {
    let mut file = open(path)?;
    let last = last_lines(path, &mut file, lines)?;
    print(&last)?;
    if !follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(Duration::from_millis(250));
        let mut more = Vec::new();
        file.read_to_end(&mut more)?;
        // Looked at after reading: whatever came into the old file before it was put aside has been read.
        let moved = match fs::metadata(path) {
            Ok(metadata) => {
                let own = file.metadata()?;
                (metadata.dev(), metadata.ino()) != (own.dev(), own.ino())
            }
            // Put aside, and nothing was written since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        if moved {
            file.read_to_end(&mut more)?;
            file = open(path)?;
        }
        let mut out = io::stdout().lock();
        match out.write_all(&more).and_then(|()| out.flush()) {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The last lines of this file, and of those put aside where it has too few. Leaves `file` at its end.
fn last_lines(path: &Path, file: &mut File, wanted: usize) -> anyhow::Result<String> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut text)?;
    let mut lines: VecDeque<String> = VecDeque::new();
    let mut older = 0;
    loop {
        for line in String::from_utf8_lossy(&text).lines().rev() {
            if lines.len() == wanted {
                break;
            }
            lines.push_front(line.to_owned());
        }
        older += 1;
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{older}"));
        match fs::read(&aside) {
            Ok(aside) if lines.len() < wanted => text = aside,
            _ => break,
        }
    }
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_looked_for_where_the_provider_writes_it() {
        let file = || PathBuf::from("/data/logs/provider.log");
        let log = |path: PathBuf| LogTarget::File { path };
        assert_eq!(source(Some(log("/x".into())), Some(file()), None), Source::File("/x".into()));
        let user = service::Manager::User;
        assert_eq!(
            source(Some(LogTarget::Journal), Some(file()), Some(user)),
            Source::Journal(user)
        );
        assert_eq!(source(Some(LogTarget::StandardError), Some(file()), None), Source::Elsewhere);
        assert_eq!(source(None, Some(file()), Some(user)), Source::File(file()));
        assert_eq!(source(None, None, Some(user)), Source::Journal(user));
        assert_eq!(source(None, None, None), Source::None);
    }

    #[test]
    fn the_last_lines_reach_back_into_files_that_were_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("provider.log");
        fs::write(&path, "five\nsix\n").unwrap();
        fs::write(directory.path().join("provider.log.1"), "three\nfour\n").unwrap();
        fs::write(directory.path().join("provider.log.2"), "one\ntwo\n").unwrap();
        let last = |wanted| last_lines(&path, &mut open(&path).unwrap(), wanted).unwrap();
        assert_eq!(last(1), "six\n");
        assert_eq!(last(3), "four\nfive\nsix\n");
        assert_eq!(last(100), "one\ntwo\nthree\nfour\nfive\nsix\n");
        assert_eq!(last(0), "");
    }
}
