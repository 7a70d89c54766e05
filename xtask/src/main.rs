//! What a checkout needs around the provider itself: setting a machine up, building the plugins
//! and a disk image, running, testing and measuring.
//!
//! Each sub-command lives in the module of its name and is written in terms of the ones before
//! it: [`setup`] → [`plugins`] → [`image`], [`api_checker`], [`network`], [`contracts`], [`examples`] → [`run`], [`test`], [`bench`]. Below them are [`workspace`] (where
//! things are), [`guest_toolchain`] (how plugins are compiled), [`provider_files`] (what is written
//! into a provider's data directory), [`announce`] (what is printed once it is up), [`anvil`], [`npm`] and [`venv`] (what tests
//! use from npm and of Python), [`packages`] (what is needed from the distribution) and [`ui`] (progress).
//!
//! Nothing here is part of the provider, and nothing here is needed on a machine that only runs
//! the finished binary.

mod announce;
mod anvil;
mod api_checker;
mod bench;
mod contracts;
mod examples;
mod guest_toolchain;
mod image;
mod network;
mod npm;
mod packages;
mod plugins;
mod provider_files;
mod run;
mod setup;
mod test;
mod ui;
mod venv;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets a machine up, builds plugins and images, runs, tests and measures the provider.
///
/// `make run` and `make test` call `run` and `test`, which include all the others. Everything can
/// be repeated: what is done already is found and passed over.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Arguments),
    Plugins(plugins::Arguments),
    Image(image::Arguments),
    Run(run::Arguments),
    Test(test::Arguments),
    ApiChecker(api_checker::Arguments),
    Network(network::Arguments),
    Contracts(contracts::Arguments),
    Examples(examples::Arguments),
    Bench(bench::Arguments),
    #[command(hide = true)]
    Announce(announce::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(arguments) => setup::main(&arguments),
        Command::Plugins(arguments) => plugins::main(&arguments),
        Command::Image(arguments) => image::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Test(arguments) => test::main(&arguments),
        Command::ApiChecker(arguments) => api_checker::main(&arguments),
        Command::Network(arguments) => network::main(&arguments),
        Command::Contracts(arguments) => contracts::main(&arguments),
        Command::Examples(arguments) => examples::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Announce(arguments) => announce::main(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
