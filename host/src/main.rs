//! The program `golem-provider`: hands the command line to `cli`, and the provider to run.

use std::process::ExitCode;

fn main() -> ExitCode {
    golem_provider::cli::main(|settings| Ok(golem_provider::node::run(settings)?))
}
