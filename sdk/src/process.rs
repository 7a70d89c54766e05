//! Programs of the machine. Needs the grant `programs`.

pub use crate::bindings::golem::provider::process::{ExitStatus, Output, Running};

use core::time::Duration;

use serde::de::DeserializeOwned;

use crate::bindings::golem::provider::process as import;
use crate::{Error, Result, clock};

/// A program about to be run.
///
/// ```ignore
/// let info = Command::new("qemu-img").args(["info", "--output=json", path]).run_checked()?;
/// ```
#[derive(Debug, Clone)]
pub struct Command {
    program: String,
    arguments: Vec<String>,
    stdin: Vec<u8>,
    timeout: Duration,
}

impl Command {
    /// A granted name; 30 s until it is killed, unless [`timeout`](Self::timeout) says otherwise.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }

    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn args<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Bytes for its standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end, whatever its exit status.
    pub fn run(self) -> Result<Output> {
        import::run(&import::Command {
            program: self.program,
            arguments: self.arguments,
            stdin: self.stdin,
            timeout_ms: clock::millis(self.timeout),
        })
    }

    /// Starts it and lets it run on, also after the provider has ended. What it writes goes to the file `output` in the
    /// plugin's directory; its input is empty, and no timeout applies. Answers its process id.
    pub fn spawn(self, output: &str) -> Result<u32> {
        import::spawn(&import::Background {
            program: self.program,
            arguments: self.arguments,
            output: output.to_owned(),
        })
    }

    /// Runs it to its end; an exit status other than 0 is an error that carries what it wrote to standard error.
    pub fn run_checked(self) -> Result<Output> {
        let program = self.program.clone();
        let output = self.run()?;
        if output.status == ExitStatus::Code(0) {
            return Ok(output);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = match words.trim() {
            "" => "it wrote nothing to standard error",
            words => words,
        };
        Err(Error::Internal(match output.status {
            ExitStatus::Code(code) => format!("{program} failed with exit status {code}: {words}"),
            ExitStatus::Signal(signal) => {
                format!("{program} was ended by signal {signal}: {words}")
            }
        }))
    }
}

/// What a program wrote to standard output, as JSON.
///
/// ```ignore
/// let info: Info = process::json(&Command::new("qemu-img").args(["info", "--output=json", path]).run_checked()?)?;
/// ```
pub fn json<T: DeserializeOwned>(output: &Output) -> Result<T> {
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Error::Internal(format!("a program answered no JSON as expected: {error}"))
    })
}

/// The path of a granted program; [`Error::NotFound`] if it is not installed.
pub fn find(program: &str) -> Result<String> {
    import::find(program)
}

/// The processes that earlier calls left running.
pub fn processes() -> Result<Vec<Running>> {
    import::processes()
}

/// Ends one of [`processes`]: SIGTERM, or SIGKILL with `force`.
pub fn kill(pid: u32, force: bool) -> Result<()> {
    import::kill(pid, force)
}
