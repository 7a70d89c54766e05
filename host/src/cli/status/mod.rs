//! `status`: one screen that says how the provider is. Asks the one that runs; looks for itself where none does.

mod screen;

use std::{process::ExitCode, time::Duration};

use clap::Args;
use console::Term;
use jiff::Timestamp;

use super::print::{self, print};
use crate::{
    admin::AdminClient,
    plugins::catalog::Catalog,
    settings::Settings,
    status::{Health, Status, at_rest},
};

pub const STATUS: &str = "\
Shows how the provider is: whether it runs, what it has and what of it is let, its machines, its plugins, and what is wrong \
with what to do about it. Where none runs, it looks for itself at what a start would find.

Exit status: 0 it runs and nothing is wrong, 1 something is, 2 it does not run.";

const EVERY: Duration = Duration::from_secs(2);
/// Longer than any provider takes that is not stuck.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct Arguments {
    /// For programs; with --watch, an object a line
    #[arg(long)]
    json: bool,
    /// Go on showing it, every two seconds, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

impl Arguments {
    /// # Errors
    /// Standard output cannot be written.
    pub async fn run(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        loop {
            let status = find_out(settings).await?;
            self.show(&status)?;
            if !self.watch {
                return Ok(exit_code(&status));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    fn show(&self, status: &Status) -> anyhow::Result<()> {
        match (self.json, self.watch) {
            (true, false) => print::print_json(status)?,
            (true, true) => print(&format!("{}\n", serde_json::to_string(status)?))?,
            (false, false) => {
                print(&screen::of(status, Timestamp::now(), print::width()))?;
            }
            (false, true) => {
                let text = screen::of(status, Timestamp::now(), print::width());
                let terminal = Term::stdout();
                if terminal.is_term() {
                    terminal.clear_screen()?;
                    print(&text)?;
                } else {
                    print(&format!("{text}\n"))?;
                }
            }
        }
        Ok(())
    }
}

fn exit_code(status: &Status) -> ExitCode {
    match status.health {
        Health::Healthy => ExitCode::SUCCESS,
        Health::Issues => ExitCode::from(1),
        Health::Down => ExitCode::from(2),
    }
}

/// Absent where none runs, or the one that does gives no answer.
///
/// # Errors
/// No client can be made.
pub async fn of_the_one_that_runs(settings: &Settings) -> anyhow::Result<Option<Status>> {
    let Some(client) = AdminClient::connect(&settings.data_dir).await? else { return Ok(None) };
    Ok(match tokio::time::timeout(ANSWER_DEADLINE, client.status()).await {
        Ok(Ok(status)) => Some(status),
        Ok(Err(_)) | Err(_) => None,
    })
}

/// From the provider that runs, or from what is there without it.
async fn find_out(settings: &Settings) -> anyhow::Result<Status> {
    if let Some(status) = of_the_one_that_runs(settings).await? {
        return Ok(status);
    }
    // Before the first start nothing is made just to look.
    let listed = match settings.data_dir.is_dir() {
        true => Catalog::offline(settings.into())?.list().await,
        false => Vec::new(),
    };
    let settings = settings.clone();
    Ok(tokio::task::spawn_blocking(move || at_rest(&settings, listed)).await?)
}
