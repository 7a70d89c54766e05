//! A program that runs beside the provider for as long as a test needs it, such as a server that the provider asks.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

use crate::wait;

const PAUSE: Duration = Duration::from_millis(20);

/// Ends with this value. What it prints goes to a file, so that it never waits for a reader.
#[derive(Debug)]
pub struct Background {
    name: String,
    child: Child,
    output: NamedTempFile,
}

impl Background {
    /// `name` is what errors call it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Background> {
        let output = NamedTempFile::new().context("making a file for a program's output")?;
        let (stdout, stderr) = (output.reopen()?, output.reopen()?);
        // Both at the end of the file, whoever wrote last.
        rustix::fs::fcntl_setfl(&stdout, rustix::fs::OFlags::APPEND)?;
        rustix::fs::fcntl_setfl(&stderr, rustix::fs::OFlags::APPEND)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Background { name: name.to_owned(), child, output })
    }

    /// What it has printed up to now.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(self.output.path())
            .with_context(|| format!("reading what {} printed", self.name))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has printed a whole line in which `look` finds something.
    ///
    /// # Errors
    /// When it ends before, or prints none in time; the text is all that it printed.
    pub async fn printed<T>(
        &mut self,
        deadline: Duration,
        look: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let what = format!("a line that {} prints", self.name);
        let found = wait::until(&what, deadline, PAUSE, async || {
            let ended = self.child.try_wait()?;
            let output = self.output()?;
            let whole = output.rfind('\n').map_or("", |end| &output[..end]);
            if let Some(found) = whole.lines().find_map(&look) {
                return Ok(Some(found));
            }
            if let Some(status) = ended {
                bail!("it ended with {status}");
            }
            Ok(None)
        });
        let found = found.await;
        found.with_context(|| {
            format!("{} printed:\n{}", self.name, self.output().unwrap_or_default())
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
