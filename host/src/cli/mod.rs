//! The command line: one file per sub-command, and what they share.
//!
//! [`main`] parses, reads the settings, sets up logging and hands over; it decides the exit status and nothing else.
//! Whatever serves is given to it by `main.rs`, so that this module knows the settings and no service.
//!
//! Exit status: 0 when all went well, 1 when it failed while working, 2 when command line or settings are wrong, in which
//! case nothing was started.

mod config;
mod help;
mod plugin;
mod port_checker;
mod start;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    settings::{self, Overrides, Settings},
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
    /// Offer machines: start the provider and stay in the foreground
    #[command(long_about = start::START, after_long_help = help::after())]
    Start(start::Arguments),
    /// Try things out: start for this computer alone, without network, payments or port checks
    #[command(long_about = start::DEV, after_long_help = help::after())]
    Dev(start::Arguments),
    /// Look at the settings
    #[command(subcommand)]
    Config(config::Config),
    /// Write, test, install, grant, switch and look at plugins
    #[command(subcommand)]
    Plugin(plugin::Plugin),
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
        Ok(Cli { command: Command::PortChecker(command) }) => return exit_code(command.run()),
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
        Command::Config(_) | Command::PortChecker(_) => Overrides::default(),
        Command::Plugin(command) => match command.of_an_author() {
            // Needs no provider, and no settings of one.
            Some(command) => return command.run(),
            None => Overrides::default(),
        },
    };
    let settings = match settings::load(&overrides) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("golem-provider: {error}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let done = match cli.command {
        Command::Start(_) | Command::Dev(_) => start(settings, serve),
        Command::Config(command) => {
            command.run(&settings, &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Command::Plugin(command) => match command.run(&settings) {
            Ok(plugin::Outcome::Done) => Ok(()),
            Ok(plugin::Outcome::NeedsConsent) => return ExitCode::from(WRONG_USAGE),
            Err(error) => Err(error),
        },
        Command::PortChecker(command) => command.run(),
    };
    exit_code(done)
}

fn exit_code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("golem-provider: {}", told(&error));
            ExitCode::FAILURE
        }
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
    settings: Settings,
    serve: impl FnOnce(Settings) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    telemetry::init(&settings.log)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    serve(settings)
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
            Command::Config(_) | Command::Plugin(_) | Command::PortChecker(_) => {
                unreachable!("the line starts a provider")
            }
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
