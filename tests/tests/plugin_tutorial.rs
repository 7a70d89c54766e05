//! The commands of `docs/plugins.md`, as they stand there: from nothing to a machine that a new plugin made.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use golem_provider_tests::{Setup, StandIn, wait};
use rustix::process::{Pid, Signal};

/// A new project is compiled twice, natively and for WebAssembly.
const DEADLINE: Duration = Duration::from_secs(900);

/// The commands for a shell in a document.
fn commands(document: &str) -> String {
    let mut script = String::from("set -eu\n");
    let mut inside = false;
    for line in document.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => {
                script.push_str(command);
                script.push('\n');
            }
            _ => {}
        }
    }
    script
}

/// A `cargo` that compiles for WebAssembly also where rustup has no target for it, with Debian's compiler as `cargo xtask
/// plugins` does, and that uses no network: everything a new plugin depends on is in this workspace.
fn cargo_in(directory: &Path) -> Result<()> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let script = format!(
        r#"#!/bin/sh
export CARGO_NET_OFFLINE=true
[ -e Cargo.lock ] || cp "$PROVIDER_SOURCE/Cargo.lock" .
case "$*" in *wasm32-unknown-unknown*)
    if [ ! -d "$(rustc --print target-libdir --target wasm32-unknown-unknown)" ]; then
        export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-19
        exec '{cargo}' "$@" -Zbuild-std=std,panic_abort
    fi
esac
exec '{cargo}' "$@"
"#
    );
    let file = directory.join("cargo");
    fs::write(&file, script)?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
}

/// Kept from one run to the next, so that only the new project is compiled again.
fn target_directory() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let target = test.ancestors().nth(3).context("this test is in no target directory")?;
    Ok(target.join("tutorial"))
}

/// All that the commands started, the provider in the background among it. Ends with this.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // If all of it has ended, that is as well.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_leads_from_nothing_to_a_machine_of_a_new_plugin() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let document = fs::read_to_string(source.join("docs/plugins.md"))?;
    // Its machines are only remembered, so all that this computer has may be given away.
    let setup = Setup::new()?.with("CPU_THRESHOLD", 100).with("MEMORY_THRESHOLD", 100);
    let ssh = StandIn::start().await?;
    let directory = tempfile::tempdir()?;
    let programs = directory.path().join("bin");
    fs::create_dir(&programs)?;
    cargo_in(&programs)?;
    std::os::unix::fs::symlink(golem_provider_tests::program()?, programs.join("golem-provider"))?;
    let target = target_directory()?;
    let script = commands(&document).replace(
        "cargo build --release --target wasm32-unknown-unknown\n",
        "cargo build --release --target wasm32-unknown-unknown\nln -s \"$CARGO_TARGET_DIR\" target\n",
    );
    let shell = setup
        .shell(&script)
        .current_dir(directory.path())
        .env("PATH", format!("{}:{}", programs.display(), env::var("PATH")?))
        .env("PROVIDER_SOURCE", &source)
        .env("SSH_PORT", ssh.address().port().to_string())
        .env("CARGO_TARGET_DIR", &target)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting a shell")?;
    let _group = Group(shell.id());
    let commands = shell.wait_with_output();
    let ended = wait::within("the commands of docs/plugins.md", DEADLINE, commands).await??;
    let said = String::from_utf8_lossy(&ended.stdout);
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{}\n{said}\n{told}", ended.status);
    let promise = "my-backend 0.1.0 keeps what a VM backend promises";
    ensure!(said.contains(promise) && document.contains(promise), "{said}");
    ensure!(said.contains("my-advertiser 0.1.0 keeps what an advertiser promises"), "{said}");
    ensure!(directory.path().join("my-verifier/my-verifier.wasm").is_file(), "{said}");
    let vm = fs::read_to_string(directory.path().join("my-backend/vm.json"))?;
    let vm: serde_json::Value = serde_json::from_str(&vm)?;
    ensure!(vm["status"] == "running" && vm["name"] == "first", "{vm}");
    Ok(())
}
