//! The command line: one file per sub-command, and what they share.
//!
//! [`main`] parses, reads the settings, sets up logging and hands over; it decides the exit status and nothing else.
//! Whatever serves is given to it by `main.rs`, so that this module knows the settings and no service.
//!
//! Exit status: 0 when all went well, 1 when it failed while working, 2 when command line or settings are wrong, in which
//! case nothing was started. `status`, `stop` and `doctor` have meanings of their own for 1 and 2, which their help tells.

mod config;
mod daemon;
mod doctor;
mod help;
mod logs;
mod payment_rules;
mod plugin;
mod port_checker;
mod pricing;
mod print;
mod service;
mod sign_request;
mod start;
mod status;
mod stop;
mod streams;
mod vm;
mod wallet;

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    settings::{self, Origin, Overrides, Settings},
    telemetry,
};

/// Rents out virtual machines of this computer on the Golem Network.
#[derive(Debug, Parser)]
#[command(name = "golem-provider", version, long_about = help::ABOUT, after_long_help = help::after())]
#[command(subcommand_required = true, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Offer machines: start the provider, in the foreground or with --daemon
    #[command(long_about = start::START, after_long_help = help::after())]
    Start(start::Arguments),
    /// Try things out: start for this computer alone, without network, payments or port checks
    #[command(long_about = start::DEV, after_long_help = help::after())]
    Dev(start::Arguments),
    /// End the provider that runs
    #[command(long_about = stop::STOP)]
    Stop(stop::Arguments),
    /// Show how the provider is, what it has, and what is wrong
    #[command(long_about = status::STATUS)]
    Status(status::Arguments),
    /// Show what the provider has written
    #[command(long_about = logs::LOGS)]
    Logs(logs::Arguments),
    /// Find out what would keep a provider from doing its work here, and what to do about it
    #[command(long_about = doctor::DOCTOR)]
    Doctor(doctor::Arguments),
    /// Run the provider as a service of systemd
    #[command(subcommand, long_about = service::SERVICE)]
    Service(service::Service),
    /// Look at the settings, and change those for payments
    #[command(subcommand)]
    Config(config::Config),
    /// Write, test, install, grant, switch and look at plugins
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    /// Look at the prices of machines, and change them
    #[command(subcommand)]
    Pricing(pricing::Pricing),
    /// What machines have earned: look at it, and withdraw it
    #[command(subcommand, long_about = streams::STREAMS)]
    Streams(streams::Streams),
    /// The provider's key, its money, and test money
    #[command(subcommand)]
    Wallet(wallet::Command),
    /// Do something to a VM, whoever it belongs to
    #[command(subcommand)]
    Vm(vm::Command),
    /// Sign a request, as a requestor: what it makes belongs to the signer
    #[command(long_about = sign_request::ABOUT, after_long_help = sign_request::AFTER)]
    SignRequest(sign_request::SignRequest),
    /// Check ports for providers: serve /check-ports
    #[command(long_about = port_checker::ABOUT, after_long_help = port_checker::AFTER)]
    PortChecker(port_checker::PortChecker),
}

/// What was wrong with command line or settings.
const WRONG_USAGE: u8 = 2;

/// Does what the command line says. `serve` runs the provider until it is told to stop.
pub fn main(serve: impl FnOnce(Settings) -> anyhow::Result<()>) -> ExitCode {
    let parsed =
        Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        // Needs no settings of a provider.
        Ok(Cli { command: Command::PortChecker(command) }) => {
            return exit_code(command.run().map(|()| ExitCode::SUCCESS));
        }
        Ok(Cli { command: Command::SignRequest(command) }) => {
            return exit_code(command.run().map(|()| ExitCode::SUCCESS));
        }
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come here too, and are no failure. A closed standard output is none either.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(WRONG_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let overrides = match &cli.command {
        Command::Start(arguments) => arguments.overrides(false),
        Command::Dev(arguments) => arguments.overrides(true),
        Command::Config(_)
        | Command::PortChecker(_)
        | Command::SignRequest(_)
        | Command::Vm(_)
        | Command::Pricing(_)
        | Command::Wallet(_)
        | Command::Stop(_)
        | Command::Status(_)
        | Command::Streams(_)
        | Command::Logs(_)
        | Command::Doctor(_)
        | Command::Service(_) => Overrides::default(),
        Command::Plugin(command) => match command.of_an_author() {
            // Needs no provider, and no settings of one.
            Some(command) => return command.run(),
            None => Overrides::default(),
        },
    };
    let settings = match settings::load(&overrides) {
        Ok(settings) => settings,
        Err(error) => {
            if let Command::Doctor(doctor) = &cli.command {
                return exit_code(doctor.without_settings(&error));
            }
            eprintln!("golem-provider: {error}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    exit_code(match cli.command {
        Command::Start(arguments) | Command::Dev(arguments) => match arguments.daemon {
            true => on_runtime(daemon::start(&settings)).flatten(),
            false => start(settings, arguments.detached, serve),
        },
        Command::Pricing(command) => command.run(&settings).map(|()| ExitCode::SUCCESS),
        Command::Wallet(command) => command.run(&settings).map(|outcome| match outcome {
            wallet::Outcome::Done => ExitCode::SUCCESS,
            wallet::Outcome::Incomplete => ExitCode::FAILURE,
            wallet::Outcome::NotAsked => ExitCode::from(WRONG_USAGE),
        }),
        Command::PortChecker(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::SignRequest(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Vm(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Stop(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Streams(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Status(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Logs(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Doctor(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Service(command) => on_runtime(command.run(&settings)).flatten(),
        Command::Config(command) => {
            command.run(&settings, &mut std::io::stdout().lock()).map(|()| ExitCode::SUCCESS)
        }
        Command::Plugin(command) => command.run(&settings).map(|outcome| match outcome {
            plugin::Outcome::Done => ExitCode::SUCCESS,
            plugin::Outcome::NeedsConsent => ExitCode::from(WRONG_USAGE),
        }),
    })
}

/// Says what went wrong, if anything did.
fn exit_code(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("golem-provider: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// Runs what a command does asynchronously, to its end.
///
/// # Errors
/// There is no runtime.
fn on_runtime<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// Where a setting comes from, if that counts more than this file does.
fn overridden(settings: &Settings, key: &str, file: &Path) -> Option<String> {
    let key = settings.effective.iter().find(|effective| effective.key == key)?;
    match &key.origin {
        Origin::Default => None,
        Origin::File(from) if from == file => None,
        other => Some(other.to_string()),
    }
}

/// The error with its causes, each said once: many messages name their cause themselves.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        match told.contains(&cause) {
            true => told,
            false if told.is_empty() => cause,
            false => format!("{told}: {cause}"),
        }
    })
}

fn start(
    mut settings: Settings,
    is_detached: bool,
    serve: impl FnOnce(Settings) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    if is_detached {
        daemon::detach();
        settings.log.file = Some(telemetry::log_file(&settings.data_dir));
        // Nobody should have to wonder what keeps the directory busy that it was started in.
        std::env::set_current_dir(&settings.data_dir)?;
    }
    telemetry::init(&settings.log)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let served = serve(settings);
    if let Err(error) = &served
        && is_detached
    {
        // Beside standard error, where only the one who started it looks.
        tracing::error!("{}", told(error));
    }
    served.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn overrides(line: &str) -> Overrides {
        match parse(line).unwrap().command {
            Command::Start(arguments) => arguments.overrides(false),
            Command::Dev(arguments) => arguments.overrides(true),
            _ => unreachable!("the line starts a provider"),
        }
    }

    #[test]
    fn a_cause_that_a_message_names_already_is_not_said_again() {
        let cause = || std::io::Error::other("no such thing");
        let named = anyhow::Error::new(cause()).context("cannot read x: no such thing");
        assert_eq!(told(&named), "cannot read x: no such thing");
        let unnamed = anyhow::Error::new(cause()).context("cannot read x");
        assert_eq!(told(&unnamed), "cannot read x: no such thing");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn known_command_lines_are_understood() {
        let dev =
            |stop| Overrides { development: true, stop_vms_on_exit: stop, ..Overrides::default() };
        let start = |stop| Overrides { stop_vms_on_exit: stop, ..Overrides::default() };
        let unverified = Overrides { skip_port_verification: true, ..Overrides::default() };
        assert_eq!(overrides("golem-provider start --no-verify-port"), unverified);
        assert_eq!(overrides("golem-provider start"), start(None));
        assert_eq!(overrides("golem-provider start --stop-vms-on-exit"), start(Some(true)));
        assert_eq!(overrides("golem-provider start --keep-vms-on-exit"), start(Some(false)));
        assert_eq!(overrides("golem-provider dev"), dev(None));
        assert_eq!(overrides("golem-provider dev --stop-vms-on-exit"), dev(Some(true)));
    }

    #[test]
    fn wrong_command_lines_are_refused_with_status_2() {
        for line in [
            "golem-provider",
            "golem-provider starte",
            "golem-provider start --stop-vms-on-exit --keep-vms-on-exit",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), i32::from(WRONG_USAGE), "{line}");
        }
    }

    #[test]
    fn help_names_every_key_and_the_exit_statuses() {
        for command in
            ["golem-provider --help", "golem-provider start --help", "golem-provider dev --help"]
        {
            let help = parse(command).unwrap_err().to_string();
            for key in
                settings::keys::ALL.iter().map(|key| key.description()).filter(|key| !key.later)
            {
                assert!(help.contains(key.name), "{} is not in {command}", key.name);
            }
            assert!(help.contains("Exit status"), "{help}");
        }
    }
}
