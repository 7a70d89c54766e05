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
use tokio::process::Command;

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

#[tokio::test(flavor = "multi_thread")]
async fn the_tutorial_leads_from_nothing_to_a_machine_of_a_new_plugin() -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let document = fs::read_to_string(source.join("docs/plugins.md"))?;
    let setup = Setup::new()?;
    let ssh = StandIn::start().await?;
    let directory = tempfile::tempdir()?;
    let programs = directory.path().join("bin");
    fs::create_dir(&programs)?;
    cargo_in(&programs)?;
    std::os::unix::fs::symlink(golem_provider_tests::provider()?, programs.join("golem-provider"))?;
    let target = target_directory()?;
    // Whatever ends the test ends the provider that the commands started: it dies with their shell.
    let script = commands(&document).replace(
        "cargo build --release --target wasm32-unknown-unknown\n",
        "cargo build --release --target wasm32-unknown-unknown\nln -s \"$CARGO_TARGET_DIR\" target\n",
    );
    let ended = wait::within(
        "the commands of docs/plugins.md",
        DEADLINE,
        setup
            .shell(&script)
            .current_dir(directory.path())
            .env("PATH", format!("{}:{}", programs.display(), env::var("PATH")?))
            .env("PROVIDER_SOURCE", &source)
            .env("SSH_PORT", ssh.address().port().to_string())
            .env("DATA_DIR", setup.data_dir())
            .env("CARGO_TARGET_DIR", &target)
            .stdin(Stdio::null())
            .output(),
    )
    .await?
    .context("starting a shell")?;
    let said = String::from_utf8_lossy(&ended.stdout);
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{}\n{said}\n{told}", ended.status);
    let promise = "my-backend 0.1.0 keeps what a VM backend promises";
    ensure!(said.contains(promise) && document.contains(promise), "{said}");
    let vm = fs::read_to_string(directory.path().join("my-backend/vm.json"))?;
    let vm: serde_json::Value = serde_json::from_str(&vm)?;
    ensure!(vm["status"] == "running" && vm["name"] == "first", "{vm}");
    Ok(())
}
