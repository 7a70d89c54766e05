//! `cargo xtask test`: everything that has to hold before a change goes in.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::guest_toolchain::Preference;
use crate::ui::{self, Step};
use crate::workspace::{Workspace, cargo};
use crate::{api_checker, contracts, examples, image, network, packages, plugins, setup};

/// Where the end-to-end tests find the image that machines are made from.
const CATALOG_VARIABLE: &str = "GOLEM_TEST_IMAGE_CATALOG";

/// Where they find what holds the API against its document.
const SCHEMATHESIS_VARIABLE: &str = "GOLEM_TEST_SCHEMATHESIS";

/// Where they find what stands for the Golem Network: a program, and two directories of programs.
const ANVIL_VARIABLE: &str = "GOLEM_TEST_ANVIL";
const DISCOVERY_VARIABLE: &str = "GOLEM_TEST_DISCOVERY";
const GOLEM_BASE_VARIABLE: &str = "GOLEM_TEST_GOLEM_BASE";

/// Where they find the plugin that is written in Python.
const PYTHON_VARIABLE: &str = "GOLEM_TEST_NOTICEBOARD_PYTHON";

/// Sets up, checks format and lints, runs every test
///
/// The tests include end-to-end ones that boot virtual machines from an image built on this
/// machine. What fails cheaply comes first.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    guest: Preference,

    /// Arguments for `cargo test --workspace`, for instance the name of a test
    #[arg(last = true)]
    cargo: Vec<String>,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let workspace = Workspace::find()?;
    check_format(&workspace)?;
    let toolchain = setup::install(&workspace, true, &arguments.guest)?;
    let missing = packages::missing(packages::TEST);
    if let Err(error) = packages::install(&missing, &workspace.log("apt-test")) {
        // The tests that need them say what they could not do, and fail where `CI` is set.
        ui::note(format!("going on without: {error:#}"));
    }
    plugins::build(&workspace, toolchain)?;
    lint(&workspace)?;
    let catalog = image::build(&workspace)?;
    let schemathesis = api_checker::install(&workspace)?;
    let network = network::install(&workspace)?;
    contracts::check(&workspace)?;
    // The tests of it say what they could not do, and fail where `CI` is set.
    let in_python = examples::build(&workspace)
        .inspect_err(|error| ui::note(format!("going on without the example in Python: {error:#}")))
        .ok();

    let step =
        Step::start_loud("testing the whole workspace", "twenty minutes; longer the first time");
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(&arguments.cargo)
        .env(CATALOG_VARIABLE, catalog)
        .env(SCHEMATHESIS_VARIABLE, schemathesis)
        .env(ANVIL_VARIABLE, network.anvil)
        .env(DISCOVERY_VARIABLE, network.discovery)
        .env(GOLEM_BASE_VARIABLE, network.golem_base)
        .envs(in_python.map(|component| (PYTHON_VARIABLE, component)))
        .current_dir(&workspace.root);
    let (totals, passed) = run_tests(&mut command)?;
    if passed && totals.failed == 0 {
        step.done();
    }
    println!("{} in {}", totals.sentence(), ui::seconds(started.elapsed()));
    if !passed {
        bail!("some tests failed or did not compile");
    }
    Ok(())
}

/// `cargo fmt --check`, where rustfmt is installed.
fn check_format(workspace: &Workspace) -> Result<()> {
    if !component_is_there("fmt") {
        ui::note("rustfmt is not installed: the format is not checked");
        return Ok(());
    }
    let step = Step::start("checking the format", None);
    let mut command = cargo();
    ui::run_shown(command.args(["fmt", "--all", "--check"]).current_dir(&workspace.root))
        .context("the format is not rustfmt's (`make fmt` puts it right)")?;
    step.done();
    Ok(())
}

/// `cargo clippy`, where it is installed, with every warning an error.
fn lint(workspace: &Workspace) -> Result<()> {
    if !component_is_there("clippy") {
        ui::note("clippy is not installed: nothing is linted");
        return Ok(());
    }
    let step = Step::start_loud("linting", "seconds; a few minutes the first time");
    let mut command = cargo();
    command
        .args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        .current_dir(&workspace.root);
    ui::run_shown(&mut command).context("there are lints")?;
    step.done();
    Ok(())
}

fn component_is_there(subcommand: &str) -> bool {
    ui::output_of(cargo().args([subcommand, "--version"])).is_some()
}

/// What the tests of all crates came to.
#[derive(Debug, Default, PartialEq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; passes over others.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn sentence(&self) -> String {
        format!(
            "In all: {} tests passed, {} failed, {} ignored,",
            self.passed, self.failed, self.ignored
        )
    }
}

/// Runs the tests with their output on the terminal; whether all of them passed.
fn run_tests(command: &mut Command) -> Result<(Totals, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let mut totals = Totals::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading the tests' output")?;
            println!("{line}");
            totals.add(&line);
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    Ok((totals, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sums_over_all_crates() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ] {
            totals.add(line);
        }
        assert_eq!(totals, Totals { passed: 7, failed: 2, ignored: 1 });
    }
}
