//! Processes of this machine, as `/proc` shows them: which virtual machines run, and what they were given.
//!
//! A provider's machines are recognised by the data directory in their arguments, which no other provider has. Only such
//! processes are ever signalled.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// A process that was found running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub arguments: Vec<String>,
}

/// The QEMU processes that work in this directory.
pub fn machines_in(directory: &Path) -> Vec<Process> {
    let directory = directory.to_string_lossy();
    all()
        .into_iter()
        .filter(|process| {
            process.arguments.first().is_some_and(|program| program.contains("qemu"))
                && process.arguments.iter().any(|argument| argument.contains(&*directory))
        })
        .collect()
}

/// Kills what [`machines_in`] finds, until nothing is found any more.
pub fn end_machines_in(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = machines_in(directory);
        if found.is_empty() || Instant::now() > deadline {
            return;
        }
        for process in found {
            // One that ended in the meantime is what is wanted.
            let _ = process.kill();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some(Process { pid, arguments: arguments_of(pid)? }))
        .collect()
}

/// Absent for a process that has ended, and for the kernel's own.
fn arguments_of(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    (!bytes.is_empty()).then_some(arguments)
}

impl Process {
    /// The process with this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn with_id(pid: u32) -> Result<Process> {
        // One that has only just been started shows its arguments a moment later.
        let arguments = (0..50)
            .find_map(|_| {
                let arguments = arguments_of(pid);
                if arguments.is_none() {
                    std::thread::sleep(Duration::from_millis(10));
                }
                arguments
            })
            .with_context(|| format!("process {pid} has ended"))?;
        Ok(Process { pid, arguments })
    }

    /// Does it still run, and is it still the same program?
    pub fn runs(&self) -> bool {
        arguments_of(self.pid).as_ref() == Some(&self.arguments)
    }

    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&self) -> Result<()> {
        if !self.runs() {
            bail!("process {} has ended already", self.pid);
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.context("no process id")?, Signal::KILL)
            .with_context(|| format!("killing process {}", self.pid))
    }

    /// A field of `/proc/PID/status`, such as `Uid`.
    ///
    /// # Errors
    /// When the process has ended, or the kernel shows no such field.
    pub fn status(&self, field: &str) -> Result<Vec<String>> {
        let text = self.read("status")?;
        let text = String::from_utf8_lossy(&text);
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = value.with_context(|| format!("no {field} in /proc/{}/status", self.pid))?;
        Ok(value.split_whitespace().map(str::to_owned).collect())
    }

    /// How much of the machine's memory it holds, in bytes.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        let kib = self.status("VmRSS")?.into_iter().next().context("VmRSS is empty")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// Its environment, as far as it is set.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn environment(&self) -> Result<String> {
        let bytes = self.read("environ")?;
        Ok(String::from_utf8_lossy(&bytes).replace('\0', "\n").trim().to_owned())
    }

    /// How many file descriptors it has open.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn open_descriptors(&self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.pid);
        Ok(fs::read_dir(&directory).with_context(|| format!("reading {directory}"))?.count())
    }

    /// What its file descriptors lead to: paths, and names such as `socket:[4711]`.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn open_files(&self) -> Result<BTreeSet<PathBuf>> {
        let directory = format!("/proc/{}/fd", self.pid);
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("reading {directory}"))? {
            match fs::read_link(entry?.path()) {
                // Such as `anon_inode:[eventfd]`: a kind of thing, and not the name of one.
                Ok(target) if target.to_string_lossy().starts_with("anon_inode:") => {}
                Ok(target) => drop(found.insert(target)),
                // Closed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(directory),
            }
        }
        Ok(found)
    }

    fn read(&self, file: &str) -> Result<Vec<u8>> {
        let path = format!("/proc/{}/{file}", self.pid);
        fs::read(&path).with_context(|| format!("reading {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends with the test, also with one that fails.
    struct Sleeper(std::process::Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_seen_with_its_arguments_until_it_is_killed() -> Result<()> {
        let mut child = Sleeper(std::process::Command::new("sleep").arg("600").spawn()?);
        let process = Process::with_id(child.0.id())?;
        assert_eq!(process.arguments[1], "600");
        assert_eq!(process.status("Pid")?, [child.0.id().to_string()]);
        process.kill()?;
        child.0.wait()?;
        assert!(!process.runs());
        assert!(process.kill().is_err());
        Ok(())
    }
}
