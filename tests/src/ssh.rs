//! OpenSSH's client, as a requestor runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::wait;

/// Guests are emulated: a login alone takes seconds when two of them share the machine with a boot.
const LOGIN_SECONDS: u64 = 60;

/// What kind of key to make.
#[derive(Debug, Clone, Copy)]
pub enum KeyKind {
    Ed25519,
    Rsa,
}

/// A key pair of a requestor.
#[derive(Debug)]
pub struct Key {
    directory: TempDir,
    /// One line, as in `authorized_keys`.
    pub public: String,
}

impl Key {
    /// # Errors
    /// When `ssh-keygen` fails.
    pub async fn generate(kind: KeyKind) -> Result<Key> {
        let directory = tempfile::tempdir().context("making a directory for a key")?;
        let file = directory.path().join("key");
        let kind = match kind {
            KeyKind::Ed25519 => "ed25519",
            KeyKind::Rsa => "rsa",
        };
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-C", "requestor@example.org", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .output();
        let made = made.await.context("starting ssh-keygen")?;
        if !made.status.success() {
            bail!("ssh-keygen failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let public = fs::read_to_string(file.with_extension("pub")).context("reading the key")?;
        Ok(Key { directory, public: public.trim().to_owned() })
    }

    fn private_file(&self) -> PathBuf {
        self.directory.path().join("key")
    }
}

/// One VM as its owner reaches it. Remembers the VM's host key from the first login on and refuses another.
#[derive(Debug)]
pub struct Ssh {
    port: u16,
    known_hosts: TempDir,
}

/// How a command in a VM ended.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    /// What it printed, without white space around it.
    ///
    /// # Errors
    /// When it failed.
    pub fn text(&self) -> Result<String> {
        if self.code != Some(0) {
            bail!("ssh ended with {:?}: {}", self.code, self.stderr.trim());
        }
        Ok(String::from_utf8_lossy(&self.stdout).trim().to_owned())
    }
}

impl Ssh {
    /// # Errors
    /// When there is no room for the file of known hosts.
    pub fn to(port: u16) -> Result<Ssh> {
        let known_hosts = tempfile::tempdir().context("making a directory for known hosts")?;
        Ok(Ssh { port, known_hosts })
    }

    /// Runs a command as root and answers what it printed.
    ///
    /// # Errors
    /// When the login or the command fails.
    pub async fn run(&self, key: &Key, command: &str) -> Result<String> {
        let output = self.try_run(key, command, &[]).await?;
        output.text().with_context(|| format!("`{command}` in the VM on port {}", self.port))
    }

    /// Runs a command as root with these bytes as its input, whatever comes of it. Logs in once, and never again.
    ///
    /// # Errors
    /// When `ssh` does not end.
    pub async fn try_run(&self, key: &Key, command: &str, input: &[u8]) -> Result<Output> {
        let mut ssh = self.command(key, command).spawn().context("starting ssh")?;
        let mut stdin = ssh.stdin.take().context("ssh has no input")?;
        let feed = async move {
            // A login that is refused leaves nobody to read; the exit code tells of it.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        let both = async { tokio::join!(feed, ssh.wait_with_output()).1 };
        let deadline = Duration::from_secs(2 * LOGIN_SECONDS);
        let output = wait::within(&format!("`{command}` by ssh"), deadline, both).await??;
        Ok(Output {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn command(&self, key: &Key, command: &str) -> Command {
        let known_hosts: &Path = self.known_hosts.path();
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "/dev/null", "-p", &self.port.to_string(), "-i"])
            .arg(key.private_file())
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known_hosts.join("known_hosts").display()))
            .arg("-o")
            .arg(format!("ConnectTimeout={LOGIN_SECONDS}"));
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=accept-new",
            "BatchMode=yes",
            "PreferredAuthentications=publickey",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(["root@127.0.0.1", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        ssh
    }
}
