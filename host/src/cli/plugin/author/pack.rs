//! `plugin pack`: makes a plugin's file out of a compiled module, or of a component that other tools made, and its manifest,
//! which says who it is and what it asks for.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use golem_provider_sdk_pack::{Manifest as Parts, Package, pack};

use super::{Unusable, read, read_text};
use crate::plugins::{
    harness::{Description, Harness, HarnessError, Kind},
    manifest::Manifest,
};

pub const ABOUT: &str = "\
Makes a plugin's file of a compiled module. Its manifest goes into it: name, version, description and licence from \
Cargo.toml, or from [plugin] in plugin.toml; its kind and the contract from what it exports; the schema of its settings from \
the plugin itself; and what it asks for from plugin.toml.

Exit status: 0 written, 2 something that is needed is wrong or missing.";

#[derive(Debug, Args)]
pub struct Pack {
    /// What the compiler made, such as target/wasm32-unknown-unknown/release/golem_plugin_NAME.wasm, or a component that the
    /// tools of another language made
    #[arg(value_name = "MODULE_OR_COMPONENT")]
    made: PathBuf,
    /// What the plugin asks for, and why [default: plugin.toml here, if there is one]
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// Its package, which says who it is [default: Cargo.toml here, if there is one]
    #[arg(long, value_name = "Cargo.toml")]
    package: Option<PathBuf>,
    /// The plugin's file: its name is the plugin's name
    #[arg(short, long, value_name = "NAME.wasm")]
    output: PathBuf,
}

impl Pack {
    pub fn run(&self) -> Result<ExitCode, Unusable> {
        let made = read(&self.made)?;
        let usual = |given: &Option<PathBuf>, usual: &str| {
            given.clone().or_else(|| Some(PathBuf::from(usual)).filter(|file| file.is_file()))
        };
        let file = usual(&self.manifest, "plugin.toml");
        let stated = file.as_deref().map(read_text).transpose()?;
        let package = usual(&self.package, "Cargo.toml");
        let package = package.as_deref().map(package_in).transpose()?;
        let packed = |settings_schema: Option<&str>| {
            let parts =
                Parts { stated: stated.as_deref(), package: package.as_ref(), settings_schema };
            pack(&made, parts).map_err(|error| Unusable::file("pack", &self.made, error))
        };
        let mut component = packed(None)?;
        let manifest = |component: &[u8]| {
            let file = file.as_deref().unwrap_or(&self.made);
            Manifest::of_component(component).map_err(|error| Unusable::file("use", file, error))
        };
        if let Some(said) = manifest(&component)?.description() {
            let (describes, _) = introduced(&component)
                .map_err(|error| Unusable::file("use", &self.made, error))?;
            agree(&said, &describes)?;
            component = packed(Some(&describes.settings_schema))?;
            manifest(&component)?;
        }
        std::fs::write(&self.output, &component)
            .map_err(|error| Unusable::file("write", &self.output, error))?;
        let asks = match file {
            Some(file) => format!("with what it asks for in {}", file.display()),
            None => "without a plugin.toml: it asks for nothing".to_owned(),
        };
        println!("{} ({} KB), {asks}", self.output.display(), component.len().div_ceil(1000));
        Ok(ExitCode::SUCCESS)
    }
}

/// What the plugin says of itself, in the engine.
fn introduced(component: &[u8]) -> Result<(Description, Kind), HarnessError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HarnessError::Directory)?;
    runtime.block_on(async { Harness::new(component)?.introduced().await })
}

/// A provider refuses a plugin whose manifest says something else than the plugin.
fn agree(stated: &Description, describes: &Description) -> Result<(), Unusable> {
    let both =
        [("name", &stated.name, &describes.name), ("version", &stated.version, &describes.version)];
    match both.into_iter().find(|(_, stated, describes)| stated != describes) {
        None => Ok(()),
        Some((what, stated, describes)) => Err(Unusable(format!(
            "the {what} is `{stated}` in Cargo.toml or plugin.toml, and `{describes}` in `describe`: make them the same"
        ))),
    }
}

/// What a `Cargo.toml` says, with what it has from its workspace.
fn package_in(file: &Path) -> Result<Package, Unusable> {
    let table = parsed(file)?;
    let package = table.get("package").and_then(toml::Value::as_table);
    let package = package.ok_or_else(|| Unusable::file("use", file, "it has no [package]"))?;
    let own = |key: &str| -> Result<String, Unusable> {
        match package.get(key) {
            Some(toml::Value::String(text)) => Ok(text.clone()),
            Some(toml::Value::Table(_)) => of_the_workspace(file, key),
            _ => Ok(String::new()),
        }
    };
    Ok(Package {
        name: own("name")?,
        version: own("version")?,
        description: own("description")?,
        license: own("license")?,
    })
}

fn of_the_workspace(file: &Path, key: &str) -> Result<String, Unusable> {
    let file = file.canonicalize().map_err(|error| Unusable::file("use", file, error))?;
    for directory in file.ancestors().skip(1) {
        let root = directory.join("Cargo.toml");
        if !root.is_file() {
            continue;
        }
        let table = parsed(&root)?;
        let shared = table.get("workspace").and_then(|workspace| workspace.get("package"));
        if let Some(text) = shared.and_then(|package| package.get(key)?.as_str()) {
            return Ok(text.to_owned());
        }
    }
    Err(Unusable::file("use", &file, format!("no workspace says what its {key} is")))
}

fn parsed(file: &Path) -> Result<toml::Table, Unusable> {
    toml::from_str(&read_text(file)?).map_err(|error| Unusable::file("use", file, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_says_who_it_is_also_by_way_of_its_workspace() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = directory.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            file
        };
        write("Cargo.toml", "[workspace.package]\nversion = \"2.0.0\"\n");
        let file = write(
            "mine/Cargo.toml",
            "[package]\nname = \"golem-plugin-mine\"\nversion.workspace = true\nlicense = \"MIT\"\n",
        );
        let package = package_in(&file).unwrap();
        assert_eq!((package.version.as_str(), package.license.as_str()), ("2.0.0", "MIT"));
        assert_eq!(package.description, "");
        let file = write("other/Cargo.toml", "[package]\nname = \"x\"\nlicense.workspace = true\n");
        assert!(package_in(&file).is_err());
    }
}
