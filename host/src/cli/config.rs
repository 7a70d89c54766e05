//! `config …`: every setting that counts, and where it comes from; and those for payments, changed while the provider runs.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use super::payment_rules::{self, Monitor, Withdraw};
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print every setting with its value and where that comes from; secrets are hidden
    Show(Show),
    /// Change what happens to machines that nobody pays for
    #[command(long_about = payment_rules::MONITOR)]
    Monitor(Monitor),
    /// Change when earnings are withdrawn
    #[command(long_about = payment_rules::WITHDRAW)]
    Withdraw(Withdraw),
}

#[derive(Debug, Args)]
pub struct Show {
    /// For programs: a list of {"key", "value", "origin"}
    #[arg(long)]
    json: bool,
}

impl Config {
    /// # Errors
    /// When `out` cannot be written (that its reader has gone is none), or what was to be changed cannot be.
    pub fn run(&self, settings: &Settings, out: &mut impl Write) -> anyhow::Result<()> {
        let Show { json } = match self {
            Self::Show(show) => show,
            Self::Monitor(monitor) => return monitor.run(settings),
            Self::Withdraw(withdraw) => return withdraw.run(settings),
        };
        let written = match json {
            true => serde_json::to_writer_pretty(&mut *out, &settings.effective)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out)),
            false => table(settings, out),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }
}

fn table(settings: &Settings, out: &mut impl Write) -> io::Result<()> {
    let width = settings.effective.iter().map(|key| key.key.len()).max().unwrap_or_default();
    for key in &settings.effective {
        let value = key.value.as_deref().unwrap_or("(not set)");
        writeln!(out, "{:width$}  {value}  [{}]", key.key, key.origin)?;
    }
    settings.warnings.iter().try_for_each(|warning| writeln!(out, "note: {warning}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Inputs, Overrides, resolve};

    fn shown(json: bool) -> String {
        let environment = [
            ("GOLEM_PROVIDER_PORT", "7777".to_owned()),
            ("GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY", "ab".repeat(32)),
        ];
        let inputs = Inputs {
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            working_dir: None,
            home_dir: Some("/home/of/nobody".into()),
        };
        let settings = resolve(&inputs, &Overrides::default()).unwrap();
        let mut out = Vec::new();
        Config::Show(Show { json }).run(&settings, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_setting_is_shown_with_its_origin_and_secrets_are_hidden() {
        let text = shown(false);
        let line = |key: &str| {
            text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap().to_owned()
        };
        assert!(line("GOLEM_PROVIDER_PORT").ends_with("  7777  [environment]"));
        assert!(
            line("GOLEM_PROVIDER_DATA_DIR")
                .ends_with("  /home/of/nobody/.golem/provider  [default]")
        );
        assert!(line("GOLEM_PROVIDER_ETHEREUM_PRIVATE_KEY").ends_with("  <hidden>  [environment]"));
        assert!(!text.contains("abab"));

        let json: serde_json::Value = serde_json::from_str(&shown(true)).unwrap();
        let port = json
            .as_array()
            .unwrap()
            .iter()
            .find(|key| key["key"] == "GOLEM_PROVIDER_PORT")
            .unwrap();
        assert_eq!(
            (port["value"].as_str(), port["origin"].as_str()),
            (Some("7777"), Some("environment"))
        );
    }
}
