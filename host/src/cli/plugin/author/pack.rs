//! `plugin pack`: makes a plugin's file out of a compiled module, or of a component that other tools made, and its manifest.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Unusable, read, read_text};
use crate::plugins::manifest::Manifest;

#[derive(Debug, Args)]
pub struct Pack {
    /// What the compiler made, such as target/wasm32-unknown-unknown/release/golem_plugin_NAME.wasm, or a component that the
    /// tools of another language made
    #[arg(value_name = "MODULE_OR_COMPONENT")]
    made: PathBuf,
    /// What the plugin asks for, and why [default: plugin.toml here, if there is one]
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// The plugin's file: its name is the plugin's name
    #[arg(short, long, value_name = "NAME.wasm")]
    output: PathBuf,
}

impl Pack {
    pub fn run(&self) -> Result<ExitCode, Unusable> {
        let made = read(&self.made)?;
        let usual = PathBuf::from("plugin.toml");
        let file = self.manifest.as_ref().or_else(|| usual.is_file().then_some(&usual));
        let manifest = file.map(|file| read_text(file)).transpose()?;
        let component = golem_provider_sdk_pack::pack(&made, manifest.as_deref())
            .map_err(|error| Unusable::file("pack", &self.made, error))?;
        if let Some(file) = file {
            Manifest::of_component(&component)
                .map_err(|error| Unusable::file("use", file, error))?;
        }
        std::fs::write(&self.output, &component)
            .map_err(|error| Unusable::file("write", &self.output, error))?;
        let asks = match file {
            Some(file) => format!("with what it asks for in {}", file.display()),
            None => "without a manifest: it asks for nothing".to_owned(),
        };
        println!("{} ({} KB), {asks}", self.output.display(), component.len().div_ceil(1000));
        Ok(ExitCode::SUCCESS)
    }
}
