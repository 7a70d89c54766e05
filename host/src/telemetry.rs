//! Log lines: what is written, how it looks and where it goes.
//!
//! Lines go to standard error: for people, with colours only on a terminal, or one JSON object a line for machines.
//! [`init`] is called once, by `main`'s command, after the settings are known. Modules write with `tracing`'s macros.

use std::{
    io::{self, IsTerminal, Write},
    sync::LazyLock,
};

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
    let is_terminal = io::stderr().is_terminal();
    let colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = match is_terminal {
        true => subscriber(settings, || AroundBars, colours)?,
        false => subscriber(settings, io::stderr, colours)?,
    };
    subscriber.try_init().map_err(|_| TelemetryError::AlreadySetUp)
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
        let settings = LogSettings { format, filter: filter.into() };
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
    fn a_filter_that_cannot_be_read_is_an_error() {
        let settings = LogSettings { format: LogFormat::Human, filter: "a=b=c".into() };
        assert!(matches!(subscriber(&settings, io::sink, false), Err(TelemetryError::Filter(_))));
    }
}
