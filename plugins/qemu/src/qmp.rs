//! Talking to QEMU: its machine protocol (QMP), which is lines of JSON over a socket.
//!
//! QEMU serves one client at a time on a socket, so a [`Monitor`] is opened for a question or two and dropped at once.
//! What its answers mean is pure. Used by `machine.rs` and `readiness.rs`; the line framing also by
//! `ssh_keys.rs`.

use core::time::Duration;

use golem_provider_sdk::{Error, Result, clock::Deadline, sockets::Connection};
use serde_json::{Value, json};

/// How long QEMU may take for an answer. It is busy with nothing else for long, but the machine may be.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A line longer than this is none of QEMU's.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A byte stream with time limits.
pub trait Wire {
    /// At least one byte, or none at the end of the stream.
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>>;
    fn send(&mut self, bytes: &[u8], timeout: Duration) -> Result<()>;
}

impl Wire for Connection {
    fn receive(&mut self, timeout: Duration) -> Result<Vec<u8>> {
        self.read(64 * 1024, timeout)
    }

    fn send(&mut self, bytes: &[u8], timeout: Duration) -> Result<()> {
        self.write(bytes, timeout)
    }
}

/// Lines over a wire.
pub struct Lines<W> {
    wire: W,
    received: Vec<u8>,
}

impl<W: Wire> Lines<W> {
    pub fn new(wire: W) -> Self {
        Self { wire, received: Vec::new() }
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// [`Error::Unavailable`] at the end of the stream, [`Error::DeadlineExceeded`] after the deadline.
    pub fn next(&mut self, deadline: &Deadline) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.received.len() > MAX_LINE_BYTES {
                return Err(Error::Internal("an answer without an end".into()));
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(Error::DeadlineExceeded("no answer in time".into()));
            }
            let bytes = self.wire.receive(left)?;
            if bytes.is_empty() {
                return Err(Error::Unavailable("the connection was closed".into()));
            }
            self.received.extend_from_slice(&bytes);
        }
    }

    /// Sends one value as a line.
    pub fn send(&mut self, value: &Value) -> Result<()> {
        self.send_bytes(format!("{value}\n").as_bytes())
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.wire.send(bytes, ANSWER_TIMEOUT)
    }
}

/// An open conversation with one QEMU process.
pub struct Monitor<W> {
    lines: Lines<W>,
}

impl Monitor<Connection> {
    /// Connects to a socket in the plugin's directory.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::NotFound`] if no QEMU listens there.
    pub fn connect(socket: &str) -> Result<Self> {
        Self::open(Connection::unix(socket, ANSWER_TIMEOUT)?, &Deadline::after(ANSWER_TIMEOUT))
            .map_err(|error| error.context("QEMU's monitor"))
    }
}

impl<W: Wire> Monitor<W> {
    /// Waits for QEMU's greeting and answers it.
    fn open(wire: W, deadline: &Deadline) -> Result<Self> {
        let mut monitor = Self { lines: Lines::new(wire) };
        loop {
            if monitor.message(deadline)?.get("QMP").is_some() {
                break;
            }
        }
        monitor.execute_until("qmp_capabilities", json!({}), deadline)?;
        Ok(monitor)
    }

    /// Runs one command and answers what it returns.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] with QEMU's words if it refuses.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_until(command, arguments, &Deadline::after(ANSWER_TIMEOUT))
    }

    fn execute_until(
        &mut self,
        command: &str,
        arguments: Value,
        deadline: &Deadline,
    ) -> Result<Value> {
        self.lines.send(&json!({ "execute": command, "arguments": arguments }))?;
        loop {
            let mut message = self.message(deadline)?;
            if let Some(error) = message.get("error") {
                let words = error["desc"].as_str().unwrap_or("no reason given");
                return Err(Error::FailedPrecondition(format!("QEMU refused {command}: {words}")));
            }
            // Events may come in between; they say nothing that `status` does not.
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn message(&mut self, deadline: &Deadline) -> Result<Value> {
        let line = self.lines.next(deadline)?;
        serde_json::from_slice(&line)
            .map_err(|error| Error::Internal(format!("QEMU answered no JSON: {error}")))
    }

    /// QEMU's word for what the machine does, such as `running` or `internal-error`.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        answer["status"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::Internal(format!("QEMU answered no status: {answer}")))
    }

    /// What passes through the machine's network card now.
    pub fn network(&mut self) -> Result<Forwarding> {
        let answer =
            self.execute("human-monitor-command", json!({ "command-line": "info usernet" }))?;
        Ok(Forwarding::parse(answer.as_str().unwrap_or_default()))
    }

    /// Presses the power button.
    pub fn power_down(&mut self) -> Result<()> {
        self.execute("system_powerdown", json!({})).map(drop)
    }

    /// Ends QEMU at once.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({})).map(drop)
    }

    /// From now on the console is no longer written to a file, only its last 64 KiB are kept in memory.
    pub fn stop_console_log(&mut self, chardev: &str) -> Result<()> {
        let backend = json!({ "type": "ringbuf", "data": { "size": 65536 } });
        self.execute("chardev-change", json!({ "id": chardev, "backend": backend })).map(drop)
    }
}

/// QEMU's table of forwarded connections, as far as it is of interest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forwarding {
    /// The port on 127.0.0.1 that leads to the guest's SSH server.
    pub ssh_port: Option<u16>,
    /// Has the guest accepted a connection to its SSH server?
    pub ssh_accepted: bool,
}

impl Forwarding {
    /// From lines such as
    /// `TCP[HOST_FORWARD]  15       127.0.0.1 34203       10.0.2.15    22     0     0`.
    fn parse(table: &str) -> Self {
        let mut found = Self::default();
        for line in table.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, _file, "127.0.0.1", port, _guest, "22", ..] = words[..] else { continue };
            match kind {
                "TCP[HOST_FORWARD]" => found.ssh_port = port.parse().ok(),
                "TCP[ESTABLISHED]" => found.ssh_accepted = true,
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_found_in_qemus_table() {
        let table = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
            TCP[HOST_FORWARD]  15       127.0.0.1 34203       10.0.2.15    22     0     0\r\n  \
            UDP[236 sec]       20       10.0.2.15 53412       10.0.2.3     53     0     0\r\n";
        assert_eq!(
            Forwarding::parse(table),
            Forwarding { ssh_port: Some(34203), ssh_accepted: false }
        );
    }

    #[test]
    fn a_connection_counts_only_once_the_guest_has_accepted_it() {
        let with = |state: &str| {
            Forwarding::parse(&format!(
                "TCP[HOST_FORWARD] 15 127.0.0.1 34203 10.0.2.15 22 0 0\nTCP[{state}] 16 127.0.0.1 40000 10.0.2.15 22 0 0\n"
            ))
        };
        assert!(!with("SYN_SENT").ssh_accepted);
        assert!(with("ESTABLISHED").ssh_accepted);
        assert_eq!(with("ESTABLISHED").ssh_port, Some(34203));
    }

    #[test]
    fn connections_that_the_guest_opened_are_not_taken_for_its_ssh_server() {
        let table = "TCP[ESTABLISHED] 16 10.0.2.15 40000 203.0.113.9 22 0 0\n";
        assert_eq!(Forwarding::parse(table), Forwarding::default());
    }
}
