//! Adding an SSH key to a machine that runs.
//!
//! Two ways lead into a guest, both over a virtio channel that no network and no tenant's firewall is in the way of: the
//! QEMU guest agent where the image has it, and else a helper that cloud-init installs at the first boot (published cloud
//! images come without the agent). Either one appends the key to root's file, and a key that is there already
//! stays there once. Nothing of a key is ever interpreted by a shell. Dialogues and texts are pure; [`add`] connects.

use core::time::Duration;

use golem_provider_sdk::{
    Error, Result,
    clock::{self, Deadline},
    random,
    sockets::Connection,
};
use serde_json::{Value, json};

use crate::{
    command_line::KEYS_CHANNEL,
    qmp::{Lines, Wire},
    record::Paths,
};

/// The guest may still be installing the helper: SSH answers before cloud-init has finished.
const ADD_TIMEOUT: Duration = Duration::from_secs(40);
/// How long one way is tried before the other, at first; twice as long each time after.
const FIRST_ATTEMPT: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Adds a key to the running machine's root account.
///
/// # Errors
/// [`Error::Unavailable`] if neither agent nor helper answers in time.
pub fn add(paths: &Paths, key: &str) -> Result<()> {
    let deadline = Deadline::after(ADD_TIMEOUT);
    let mut attempt = FIRST_ATTEMPT;
    loop {
        let agent = Connection::unix(&paths.agent(), CONNECT_TIMEOUT)
            .and_then(|wire| add_by_agent(wire, key, token(), attempt));
        let Err(agent) = agent else { return Ok(()) };
        let helper = Connection::unix(&paths.keys(), CONNECT_TIMEOUT)
            .and_then(|wire| add_by_helper(wire, key, token(), attempt));
        let Err(helper) = helper else { return Ok(()) };
        if deadline.has_passed() {
            return Err(Error::Unavailable(format!(
                "the machine takes no SSH key: its guest agent ({}) and its helper ({}) do not answer",
                agent.message(),
                helper.message()
            )));
        }
        attempt = (attempt * 2).min(deadline.remaining().max(FIRST_ATTEMPT));
        clock::sleep(Duration::from_secs(1));
    }
}

/// A number that tells this dialogue's answers from those of one that was cut off.
fn token() -> u32 {
    random::bytes(4).iter().fold(0, |token, byte| token << 8 | u32::from(*byte)) >> 1
}

fn add_by_agent(wire: impl Wire, key: &str, token: u32, attempt: Duration) -> Result<()> {
    let deadline = Deadline::after(attempt);
    let mut lines = Lines::new(wire);
    // 0xff ends whatever an earlier client left unfinished.
    lines.send_bytes(b"\xff")?;
    lines.send(&json!({ "execute": "guest-sync-delimited", "arguments": { "id": token } }))?;
    while agent_answer(&lines.next(&deadline)?).is_none_or(|answer| answer["return"] != token) {}
    lines.send(&json!({
        "execute": "guest-ssh-add-authorized-keys",
        "arguments": { "username": "root", "keys": [key] }
    }))?;
    loop {
        let Some(answer) = agent_answer(&lines.next(&deadline)?) else { continue };
        return match answer["error"]["desc"].as_str() {
            Some(words) => Err(Error::FailedPrecondition(words.to_owned())),
            None => Ok(()),
        };
    }
}

fn agent_answer(line: &[u8]) -> Option<Value> {
    let line = line.iter().rposition(|byte| *byte == 0xff).map_or(line, |at| &line[at + 1..]);
    serde_json::from_slice(line).ok()
}

fn add_by_helper(wire: impl Wire, key: &str, token: u32, attempt: Duration) -> Result<()> {
    let deadline = Deadline::after(attempt);
    let mut lines = Lines::new(wire);
    // A line end first, in case an earlier client was cut off in the middle of a line.
    lines.send_bytes(format!("\n{token} {key}\n").as_bytes())?;
    let (done, failed) = (format!("{token} ok"), format!("{token} failed"));
    loop {
        let line = lines.next(&deadline)?;
        if line == done.as_bytes() {
            return Ok(());
        }
        if line == failed.as_bytes() {
            return Err(Error::Internal("the file of keys cannot be written".into()));
        }
    }
}

/// The helper: reads a token and a key per line from its channel, and answers the token.
///
/// While nobody is connected, reading the channel answers at once that there is nothing, so it pauses by a wait for a pipe that
/// nobody writes to: that starts no process and costs an idle guest nothing.
fn helper() -> String {
    format!(
        r#"#!/bin/bash
# Lets the provider add SSH keys for root, as the machine's owner asks it to.
channel=/dev/virtio-ports/{KEYS_CHANNEL}
keys=~root/.ssh/authorized_keys
umask 077
exec 8<>"$channel" 9<> <(:) || exit 1
while :; do
  while IFS=' ' read -r token key <&8; do
    [ -n "$key" ] || continue
    mkdir -p "${{keys%/*}}" && touch "$keys" || {{ printf '%s failed\n' "$token" >&8; continue; }}
    if ! grep -qxF -e "$key" -- "$keys"; then
      [ -z "$(tail -c 1 -- "$keys")" ] || echo >>"$keys"
      printf '%s\n' "$key" >>"$keys" || {{ printf '%s failed\n' "$token" >&8; continue; }}
    fi
    printf '%s ok\n' "$token" >&8
  done
  read -r -t 2 -u 9
done
"#
    )
}

/// The script that cloud-init runs at the end of the first boot. It installs the helper unless the guest agent is there.
pub fn installer() -> String {
    let helper = helper();
    format!(
        r#"[ -x /usr/sbin/qemu-ga ] || [ -x /usr/bin/qemu-ga ] && exit 0
cat >/usr/local/sbin/golem-ssh-keys <<'END_OF_HELPER'
{helper}END_OF_HELPER
chmod 755 /usr/local/sbin/golem-ssh-keys
cat >/etc/systemd/system/golem-ssh-keys.service <<'END_OF_UNIT'
[Unit]
Description=SSH keys from the provider of this machine
[Service]
ExecStart=/usr/local/sbin/golem-ssh-keys
Restart=always
RestartSec=5
[Install]
WantedBy=multi-user.target
END_OF_UNIT
sync
systemctl daemon-reload
systemctl enable --now golem-ssh-keys.service
"#
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_an_earlier_client_left_in_the_agents_channel_is_skipped() {
        assert_eq!(agent_answer(b"\xff{\"return\": 7}").unwrap()["return"], 7);
        assert_eq!(agent_answer(b"{\"retu\xff{\"return\": 7}").unwrap()["return"], 7);
        assert!(agent_answer(b"{\"retu").is_none());
    }

    /// The helper as a guest runs it, on a pair of pipes instead of the channel.
    #[test]
    fn the_helper_adds_each_key_once_and_does_not_run_what_is_in_it() {
        use std::{
            io::{BufRead, BufReader, Write},
            process::{Command, Stdio},
        };
        struct Ended(std::process::Child);
        impl Drop for Ended {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let directory = std::env::temp_dir().join(format!("golem-ssh-keys-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("ssh")).unwrap();
        let file = directory.join("ssh/authorized_keys");
        std::fs::write(&file, "ssh-rsa OLD no-line-end").unwrap();
        let script = helper()
            .replace("~root/.ssh/authorized_keys", file.to_str().unwrap())
            .replace("exec 8<>\"$channel\" 9<>", "exec 9<>")
            .replace("<&8", "<&0")
            .replace(">&8", ">&1");
        let mut child = Ended(
            Command::new("bash")
                .args(["-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut input = child.0.stdin.take().unwrap();
        let mut output = BufReader::new(child.0.stdout.take().unwrap());
        let hostile = "ssh-rsa NEW $(touch pwned) `id` \"quoted\" \\n; rm -rf /nonexistent";
        for (token, key) in
            [(1, hostile), (2, hostile), (3, "ssh-rsa OLD no-line-end"), (4, "-e x")]
        {
            write!(input, "\n{token} {key}\n").unwrap();
            let mut answer = String::new();
            output.read_line(&mut answer).unwrap();
            assert_eq!(answer, format!("{token} ok\n"));
        }
        let written = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(written, format!("ssh-rsa OLD no-line-end\n{hostile}\n-e x\n"));
    }

    #[test]
    fn the_installer_is_a_script_that_bash_understands() {
        let check = |script: &str| {
            let status = std::process::Command::new("bash").args(["-n", "-c", script]).status();
            assert!(status.unwrap().success());
        };
        check(&installer());
        check(&helper());
    }
}
