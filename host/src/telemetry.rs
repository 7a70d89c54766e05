//! Log lines: what is written, how it looks and where it goes.
//!
//! Lines go to standard error, or to a file that is rotated by size: for people, with colours only on a terminal, or one JSON
//! object a line for machines.
//! [`init`] is called once, by `main`'s command, after the settings are known. Modules write with `tracing`'s macros.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use file_rotate::{ContentLimit, FileRotate, compression::Compression, suffix::AppendCount};
use serde::{Deserialize, Serialize};

use indicatif::MultiProgress;
use tracing_subscriber::{
    EnvFilter, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::settings::{LogFormat, LogSettings};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "the log filter `{0}` cannot be read; set a level such as info, or a filter such as info,golem_provider::proxy=debug"
    )]
    Filter(String),
    #[error("cannot write the log {path}: {source}; check that the directory is writable and has space", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("logging was set up already")]
    AlreadySetUp,
}

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Where lines that move are drawn, on standard error; hidden where that is no terminal. Log lines go around them.
pub fn bars() -> MultiProgress {
    BARS.clone()
}

/// Standard error, with what moves on it out of the way while a line is written.
struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Begins to write log lines.
///
/// # Errors
/// When the filter cannot be read, or something else has set up logging before.
pub fn init(settings: &LogSettings) -> Result<(), TelemetryError> {
    let subscriber = match &settings.file {
        None => {
            let is_terminal = io::stderr().is_terminal();
            let colours =
                is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            match is_terminal {
                true => subscriber(settings, || AroundBars, colours)?,
                false => subscriber(settings, io::stderr, colours)?,
            }
        }
        Some(path) => {
            let file = RotatedFile::open(path, Rotation::default())
                .map_err(|source| TelemetryError::File { path: path.clone(), source })?;
            let subscriber = subscriber(settings, file, false)?;
            // Standard error leads nowhere that anybody looks.
            let told_before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                tracing::error!("a fault in this program: {panic}");
                told_before(panic);
            }));
            subscriber
        }
    };
    subscriber.try_init().map_err(|_| TelemetryError::AlreadySetUp)
}

/// Where the log of a provider that runs in the background is.
pub fn log_file(data_dir: &Path) -> PathBuf {
    data_dir.join("logs").join("provider.log")
}

/// Where a process's log lines go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LogTarget {
    File {
        path: PathBuf,
    },
    /// The service manager's.
    Journal,
    StandardError,
}

impl LogTarget {
    /// Of this process, with these settings.
    pub fn of_this_process(settings: &LogSettings) -> LogTarget {
        match &settings.file {
            Some(path) => LogTarget::File { path: path.clone() },
            None if leads_to_journal() => LogTarget::Journal,
            None => LogTarget::StandardError,
        }
    }
}

/// Whether standard error is the stream that the service manager said it had connected to its journal.
fn leads_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let standard_error = fs::metadata("/proc/self/fd/2");
    standard_error.is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// When a log file is put aside, and how many of those are kept.
struct Rotation {
    bytes: usize,
    kept: usize,
}

impl Default for Rotation {
    /// 60 MiB at most, which is weeks of the usual level.
    fn default() -> Rotation {
        Rotation { bytes: 10 << 20, kept: 5 }
    }
}

/// A file that is put aside as `NAME.1`, `NAME.2` and so on when it has grown too large.
struct RotatedFile(Mutex<FileRotate<AppendCount>>);

impl RotatedFile {
    fn open(path: &Path, rotation: Rotation) -> io::Result<RotatedFile> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).create(true).append(true).mode(0o600);
        // Found out here, because what rotates says nothing of a file that it cannot open.
        options.open(path)?;
        Ok(RotatedFile(Mutex::new(FileRotate::new(
            path,
            AppendCount::new(rotation.kept),
            ContentLimit::BytesSurpassed(rotation.bytes),
            Compression::None,
            Some(options),
        ))))
    }
}

/// One log line on its way into the file.
struct Line<'a>(MutexGuard<'a, FileRotate<AppendCount>>);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<'a> MakeWriter<'a> for RotatedFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        // A line that was cut off does no harm to the next one.
        Line(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Subscriber = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber<W>(
    settings: &LogSettings,
    writer: W,
    colours: bool,
) -> Result<Subscriber, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&settings.filter)
        .map_err(|_| TelemetryError::Filter(settings.filter.clone()))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    Ok(match settings.format {
        LogFormat::Human => Box::new(registry.with(lines.with_ansi(colours).with_target(false))),
        LogFormat::Json => {
            Box::new(registry.with(lines.json().flatten_event(true).with_current_span(false)))
        }
    })
}

/// For tests of what is logged.
#[cfg(test)]
pub mod testing {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    /// Log lines, kept. Clones are the same ones.
    #[derive(Clone, Default)]
    pub struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        /// What a subscriber makes its writers with.
        pub fn writer(&self) -> impl Fn() -> Lines + Send + Sync + 'static {
            let lines = self.clone();
            move || lines.clone()
        }

        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{testing::Lines, *};

    fn written(format: LogFormat, filter: &str, write: impl FnOnce()) -> String {
        let lines = Lines::default();
        let settings = LogSettings { format, filter: filter.into(), file: None };
        let subscriber = subscriber(&settings, lines.writer(), false).unwrap();
        tracing::subscriber::with_default(subscriber, write);
        lines.text()
    }

    fn say() {
        let span = tracing::info_span!("request", request_id = "r-1");
        let _entered = span.enter();
        tracing::info!(port = 50800, "a port was opened");
        tracing::debug!("a detail");
    }

    #[test]
    fn json_lines_are_one_object_each_with_the_fields_of_their_spans() {
        let text = written(LogFormat::Json, "info", say);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "a port was opened");
        assert_eq!(line["port"], 50800);
        assert_eq!(line["spans"][0]["request_id"], "r-1");
    }

    #[test]
    fn human_lines_have_no_colours_where_there_is_no_terminal() {
        let text = written(LogFormat::Human, "debug", say);
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.contains("a port was opened") && text.contains("r-1") && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[test]
    fn a_log_that_has_grown_too_large_is_put_aside_and_only_so_many_are_kept() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/provider.log");
        let settings = LogSettings {
            format: LogFormat::Human,
            filter: "info".into(),
            file: Some(path.clone()),
        };
        for round in 0..40 {
            // As after a restart: what is there is gone on with.
            let file = RotatedFile::open(&path, Rotation { bytes: 1000, kept: 2 }).unwrap();
            let subscriber = subscriber(&settings, file, false).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                tracing::info!(round, "{}", "x".repeat(150));
            });
        }
        let mut names: Vec<String> = fs::read_dir(directory.path().join("logs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["provider.log", "provider.log.1", "provider.log.2"]);
        let text = fs::read_to_string(path.with_extension("log.1")).unwrap();
        assert!((1000..1400).contains(&text.len()) && text.ends_with('\n'), "{}", text.len());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error() {
        let settings = LogSettings { format: LogFormat::Human, filter: "a=b=c".into(), file: None };
        assert!(matches!(subscriber(&settings, io::sink, false), Err(TelemetryError::Filter(_))));
    }
}
