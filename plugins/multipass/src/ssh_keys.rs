//! Adding a key to a machine that runs.
//!
//! Cloud-init reads its document once, so a key that comes later has to be written inside. The one way in that Multipass offers is
//! `multipass exec`, and `exec` on a machine that does not run starts it. So it is used only right after Multipass called
//! the machine Running. The provider makes no other change to the machine meanwhile; should it be shut down from inside
//! between the look and the command, it comes up again, which its owner, who was just adding a key to it, can
//! live with. `multipass transfer` would do the same and cannot write for root.
//!
//! The key is the script's input and never part of a command line. The script is pure.

use golem_provider_sdk::{Error, Result};

use crate::{
    answers::{Outcome, Refusal},
    client,
};

/// Reads one line and adds it to root's keys unless it is there. Without single quotes: Multipass puts the script between such.
const SCRIPT: &str = "IFS= read -r key && [ -n \"$key\" ] || exit 1; umask 077; keys=~root/.ssh/authorized_keys; \
mkdir -p ~root/.ssh && touch \"$keys\" || exit 1; \
if ! grep -qxF -e \"$key\" -- \"$keys\"; then \
[ -z \"$(tail -c 1 -- \"$keys\")\" ] || echo >>\"$keys\"; \
printf \"%s\\n\" \"$key\" >>\"$keys\" || exit 1; fi; sync";

/// Adds a key in a machine that was just seen running.
pub fn add(name: &str, key: &str) -> Result<()> {
    match client::run_inside(name, SCRIPT, &format!("{key}\n"))? {
        Outcome::Done => Ok(()),
        Outcome::StillUnderWay => {
            Err(Error::Unavailable("the machine did not take the key in time; add it again".into()))
        }
        Outcome::Refused(Refusal::Other(Error::InvalidArgument(words))) => {
            // The status is the script's own.
            Err(Error::Internal(format!("the key could not be written in the machine: {words}")))
        }
        Outcome::Refused(Refusal::Other(error)) => Err(error.context("adding the key")),
        Outcome::Refused(refusal) => Err(Error::FailedPrecondition(format!(
            "the key could not be added: multipass says {refusal:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_script_adds_each_key_once_and_does_not_run_what_is_in_it() {
        use std::{
            io::Write,
            process::{Command, Stdio},
        };
        assert!(!SCRIPT.contains('\''));
        let directory = std::env::temp_dir().join(format!("golem-keys-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("authorized_keys");
        std::fs::write(&file, "ssh-rsa OLD no-line-end").unwrap();
        let script = SCRIPT.replace("~root/.ssh", directory.to_str().unwrap());
        let hostile =
            "ssh-rsa NEW $(touch pwned) `id` \"quoted\" 'single' \\n; rm -rf /nonexistent";
        for key in [hostile, hostile, "ssh-rsa OLD no-line-end", "-e x"] {
            let mut child =
                Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(format!("{key}\n").as_bytes()).unwrap();
            assert!(child.wait().unwrap().success());
        }
        let written = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(written, format!("ssh-rsa OLD no-line-end\n{hostile}\n-e x\n"));
    }
}
