//! What is printed once the provider answers: the lines to try it with.
//!
//! `run` becomes the provider (by exec, so that signals and exit codes are the provider's own), so
//! somebody else has to wait until it is up. That is a second, short-lived process of this
//! program, `cargo xtask announce`, which ends with the provider or when the lines are printed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long a provider may take until it answers. Long, since backends probe the machine first.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the provider answers, then prints the lines to try
#[derive(clap::Args)]
pub struct Arguments {
    /// The provider's process
    #[arg(long)]
    pid: u32,
    /// The port of its API
    #[arg(long)]
    port: u16,
    /// The public key for the virtual machine that the lines make
    #[arg(long)]
    public_key: PathBuf,
}

/// Starts a process that announces the provider which this process is about to become.
///
/// # Errors
/// When the process cannot be started.
pub fn in_background(port: u16, public_key: &Path) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    // Through a shell that ends at once: the announcer is then nobody's unreaped child.
    Command::new("sh")
        .args(["-c", "\"$@\" &", "sh"])
        .arg(program)
        .args([
            "announce",
            "--pid",
            &std::process::id().to_string(),
            "--port",
            &port.to_string(),
            "--public-key",
        ])
        .arg(public_key)
        .stdin(Stdio::null())
        .status()
        .context("starting the announcer")?;
    Ok(())
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let process = PathBuf::from(format!("/proc/{}", arguments.pid));
    let started = Instant::now();
    while started.elapsed() < PATIENCE && process.exists() {
        if answers(arguments.port) {
            println!("{}", lines_to_try(arguments.port, &arguments.public_key));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // The provider has said itself why it did not come up.
    Ok(())
}

/// Whether a provider answers `GET /health` on this port of the loopback interface.
pub fn answers(port: u16) -> bool {
    ask(port).is_ok_and(|answer| {
        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200")
    })
}

fn ask(port: u16) -> std::io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(
        format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    Ok(String::from_utf8_lossy(&start).into_owned())
}

fn lines_to_try(port: u16, public_key: &Path) -> String {
    let api = format!("http://127.0.0.1:{port}/api/v1/vms");
    let private_key = public_key.with_extension("");
    let (public_key, private_key) = (quoted(public_key), quoted(&private_key));
    format!(
        r#"
The provider is up: http://127.0.0.1:{port} (Ctrl-C stops it; virtual machines go on running).
In another terminal:

  # make a virtual machine: 1 CPU, 1 GB of memory, 10 GB of disk
  curl -sS '{api}?async=true' -H 'Content-Type: application/json' \
    -d '{{"name": "my-first-vm", "size": "small", "ssh_key": "'"$(cat {public_key})"'"}}'

  # wait until it runs (seconds with KVM, about a minute without)
  until curl -sS {api}/my-first-vm | grep -Eo '"status": ?"(running|error)"'; do sleep 2; done

  # log in
  ssh -i {private_key} -o NoHostAuthenticationForLocalhost=yes root@127.0.0.1 \
    -p "$(curl -sS {api}/my-first-vm/access | grep -Eo '"ssh_port": ?[0-9]+' | grep -Eo '[0-9]+')"

  # and when it is no longer needed
  curl -sS -X DELETE {api}/my-first-vm
"#
    )
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_a_provider_that_says_it_is_well_counts_as_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for status in ["200 OK", "503 Service Unavailable"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        assert!(answers(port));
        assert!(!answers(port));
        server.join().unwrap();
        assert!(!answers(port), "nobody listens any more");
    }

    #[test]
    fn the_printed_create_sends_the_public_key_as_json() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("it's a key.pub");
        std::fs::write(&key, "ssh-ed25519 AAAA me@host\n").unwrap();
        let lines = lines_to_try(1, &key);
        let from = lines.find("-d ").unwrap() + 3;
        let argument = &lines[from..lines[from..].find("\n\n").unwrap() + from];
        // What a shell makes of the argument is what curl would send.
        let output =
            Command::new("sh").args(["-c", &format!("printf %s {argument}")]).output().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(body["ssh_key"], "ssh-ed25519 AAAA me@host");
        assert_eq!(body["size"], "small");
    }
}
