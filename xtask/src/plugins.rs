//! `cargo xtask plugins`: compiles the crates under `plugins/` and makes components of them.
//!
//! The host embeds what lies in `target/plugins/` when it is built, so this comes before every
//! build of the host. A component is written only when it changed, so that the host is rebuilt
//! only then.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use golem_provider_sdk_pack::Manifest;
use serde::Deserialize;

use crate::guest_toolchain::{GuestToolchain, Preference, TARGET};
use crate::ui::{self, Step};
use crate::workspace::{PluginCrate, Workspace};

/// The cargo profile of what is shipped as a component.
const PROFILE: &str = "plugin";

/// Builds the plugins as WebAssembly components into target/plugins/
///
/// Every crate under plugins/ is compiled for wasm32-unknown-unknown and turned into a component
/// target/plugins/NAME.wasm, which the provider embeds when it is built.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    guest: Preference,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    let toolchain = GuestToolchain::find_or_install(&arguments.guest, &workspace)?;
    build(&workspace, toolchain)
}

/// Builds every plugin of the workspace.
///
/// # Errors
/// When one does not compile, or is no valid component.
pub fn build(workspace: &Workspace, toolchain: GuestToolchain) -> Result<()> {
    let what = format!("building plugins with {}", toolchain.description());
    let step = Step::start_loud(what, "seconds; a minute or two the first time");
    let modules = compile(workspace, toolchain)?;
    let directory = workspace.components();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for plugin in &workspace.plugins {
        let Some(module) = modules.get(&plugin.package) else {
            bail!(
                "{}: not a cdylib, so there is no WebAssembly module to make a component of",
                plugin.package
            );
        };
        let component = pack(module, plugin)
            .with_context(|| format!("making a component of {}", plugin.package))?;
        write_if_changed(&directory.join(format!("{}.wasm", plugin.name)), &component)?;
    }
    remove_others(&directory, &workspace.plugins)?;
    step.done();
    Ok(())
}

/// One line of cargo's messages, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Compiles all plugins at once; the modules by the name of the crate.
fn compile(workspace: &Workspace, toolchain: GuestToolchain) -> Result<HashMap<String, PathBuf>> {
    if workspace.plugins.is_empty() {
        return Ok(HashMap::new());
    }
    let mut command = toolchain.cargo_build();
    command
        .args(["--profile", PROFILE, "--lib", "--message-format", "json-render-diagnostics"])
        // A directory of its own: the host's build and this one do not wait for each other.
        .arg("--target-dir")
        .arg(workspace.target.join("guest"))
        .current_dir(&workspace.root);
    for plugin in &workspace.plugins {
        command.args(["--package", &plugin.package]);
    }
    let output = run_cargo(&mut command)?;

    let mut modules = HashMap::new();
    for line in output.lines() {
        let message: Message = serde_json::from_str(line).context("reading cargo's messages")?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        let module = message
            .filenames
            .iter()
            .find(|file| file.extension().is_some_and(|extension| extension == "wasm"));
        let (Some(id), Some(module)) = (message.package_id, module) else {
            continue;
        };
        if let Some(plugin) = workspace.plugins.iter().find(|plugin| names(&id, &plugin.package)) {
            modules.insert(plugin.package.clone(), module.clone());
        }
    }
    Ok(modules)
}

/// Runs cargo with its progress on the terminal; gives its standard output.
fn run_cargo(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("compiling the plugins for {TARGET} failed");
    }
    String::from_utf8(output.stdout).context("reading cargo's messages")
}

/// Whether a package id (`path+file:///…/plugins/qemu#golem-plugin-qemu@0.1.0`) is of `package`.
fn names(id: &str, package: &str) -> bool {
    let last = id.rsplit('#').next().unwrap_or(id);
    last.split('@').next() == Some(package)
}

/// Its settings' schema is left for the plugin itself to say: there is no engine here to ask it.
fn pack(module: &Path, plugin: &PluginCrate) -> Result<Vec<u8>> {
    let bytes = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
    let manifest = &plugin.manifest;
    let stated = match fs::read_to_string(manifest) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", manifest.display())),
    };
    let manifest =
        Manifest { stated: stated.as_deref(), package: Some(&plugin.says), settings_schema: None };
    Ok(golem_provider_sdk_pack::pack(&bytes, manifest)?)
}

fn write_if_changed(file: &Path, bytes: &[u8]) -> Result<()> {
    let size = format!("{} KB", bytes.len().div_ceil(1000));
    if fs::read(file).is_ok_and(|present| present == bytes) {
        ui::note(format!("unchanged {} ({size})", file.display()));
        return Ok(());
    }
    fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))?;
    ui::note(format!("wrote {} ({size})", file.display()));
    Ok(())
}

/// Removes components of plugins that are no longer in the workspace.
fn remove_others(directory: &Path, plugins: &[PluginCrate]) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let path = entry?.path();
        let is_component = path.extension().is_some_and(|extension| extension == "wasm");
        let is_known = plugins
            .iter()
            .any(|plugin| path.file_stem().is_some_and(|stem| stem == plugin.name.as_str()));
        if is_component && !is_known {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(name: &str) -> PluginCrate {
        PluginCrate {
            package: format!("golem-plugin-{name}"),
            name: name.to_owned(),
            manifest: PathBuf::new(),
            says: golem_provider_sdk_pack::Package::default(),
        }
    }

    #[test]
    fn a_package_is_known_by_cargos_id_for_it() {
        assert!(names("path+file:///x/plugins/qemu#golem-plugin-qemu@0.1.0", "golem-plugin-qemu"));
        assert!(!names(
            "path+file:///x/plugins/qemu2#golem-plugin-qemu2@0.1.0",
            "golem-plugin-qemu"
        ));
    }

    #[test]
    fn a_component_that_did_not_change_keeps_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.wasm");
        write_if_changed(&file, b"one").unwrap();
        let long_ago =
            std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
        write_if_changed(&file, b"one").unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), long_ago);
        write_if_changed(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
    }

    #[test]
    fn a_plugin_that_left_the_workspace_leaves_no_component_to_embed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["qemu.wasm", "old.wasm", "notes.txt"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        remove_others(directory.path(), &[plugin("qemu")]).unwrap();
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["notes.txt", "qemu.wasm"]);
    }
}
