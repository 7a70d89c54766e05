//! The program as a shell sees it: what it prints where, and its exit status. Nothing here starts a provider.

// Helpers of tests are no tests themselves to the linter.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_golem-provider"))
        .args(arguments)
        .env_clear()
        .env("HOME", home.path())
        .envs(environment.iter().copied())
        .current_dir(home.path())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_goes_to_standard_output_and_is_a_success() {
    let output = run(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("GOLEM_PROVIDER_DATA_DIR"));
    assert!(output.stderr.is_empty());
}

#[test]
fn the_version_is_that_of_the_release() {
    let output = run(&["--version"], &[]);
    assert_eq!(text(&output.stdout), concat!("golem-provider ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_command_line_is_status_2() {
    assert_eq!(run(&["begin"], &[]).status.code(), Some(2));
}

#[test]
fn all_wrong_settings_are_told_at_once_before_anything_starts() {
    let environment = [("GOLEM_PROVIDER_PROT", "7466"), ("GOLEM_PROVIDER_MAX_VMS", "many")];
    let output = run(&["dev"], &environment);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("GOLEM_PROVIDER_PROT") && told.contains("GOLEM_PROVIDER_PORT"), "{told}");
    assert!(told.contains("GOLEM_PROVIDER_MAX_VMS") && told.contains("many"), "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn secrets_are_not_shown_among_the_settings() {
    let key = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
    let output =
        run(&["config", "show", "--json"], &[("GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY", key)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY"));
    assert!(!text(&output.stdout).contains(key));
}
