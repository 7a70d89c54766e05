//! `cargo xtask examples`: builds the plugins under `sdk/examples`, which are written in other languages than Rust, with the tools
//! that their authors would use.
//!
//! They are built anew only when something that goes into them has changed: their own files, the contract, or the tool.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::ui::{self, Step};
use crate::venv::Venv;
use crate::workspace::Workspace;

/// Makes components out of Python.
const COMPONENTIZE_PY: Venv = Venv {
    name: "componentize-py",
    purpose: "build the plugin that is written in Python",
    proof: &["componentize-py", "--version"],
};

/// The example in Python, below `sdk/examples`.
const IN_PYTHON: &str = "noticeboard-python";
const WORLD: &str = "discovery-advertiser";

/// Builds the example plugins that are written in other languages
///
/// They end up in target/examples-built/. What builds them is installed into the cache directory.
#[derive(clap::Args)]
pub struct Arguments {}

pub fn main(_: &Arguments) -> Result<()> {
    let component = build(&Workspace::find()?)?;
    ui::note(format!("the example in Python: {}", component.display()));
    Ok(())
}

/// Builds the example in Python, unless it is there as it would be built. Gives its component.
///
/// # Errors
/// When there is no Python, when the tool cannot be had, or when it refuses the example.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    let example = workspace.root.join("sdk/examples").join(IN_PYTHON);
    let contract = workspace.root.join("wit");
    let built = workspace.target.join("examples-built");
    let component = built.join(format!("{IN_PYTHON}.wasm"));
    let inputs = Inputs::read(&[&example, &contract])?;
    let stamp = built.join(format!("{IN_PYTHON}.inputs.json"));
    if component.is_file() && fs::read_to_string(&stamp).is_ok_and(|text| text == inputs.text()) {
        ui::note(format!("unchanged {}", component.display()));
        return Ok(component);
    }
    let tools = COMPONENTIZE_PY.install_as(workspace, &example.join("requirements.txt"))?;
    let step = Step::start("building the example plugin in Python", Some("10 s"));
    fs::create_dir_all(&built).with_context(|| format!("making {}", built.display()))?;
    // Python leaves compiled files beside those that it reads.
    let sources = built.join(format!("{IN_PYTHON}-src"));
    copy_sources(&example.join("src"), &sources)?;
    let made = built.join(format!("{IN_PYTHON}.made"));
    let mut command = Command::new(tools.join("componentize-py"));
    command.arg("--wit-path").arg(&contract).args(["--world", WORLD, "componentize"]);
    command.args(["--stub-wasi", "--python-path"]).arg(&sources).arg("--output").arg(&made);
    ui::run_logged(command.arg("app"), &workspace.log(IN_PYTHON))?;
    let manifest =
        fs::read_to_string(example.join("plugin.toml")).context("reading plugin.toml")?;
    let bytes = fs::read(&made).with_context(|| format!("reading {}", made.display()))?;
    let packed = golem_provider_sdk_pack::pack(&bytes, Some(&manifest))?;
    fs::write(&component, packed).with_context(|| format!("writing {}", component.display()))?;
    fs::write(&stamp, inputs.text()).context("noting what it was built from")?;
    fs::remove_file(&made).with_context(|| format!("removing {}", made.display()))?;
    step.done();
    Ok(component)
}

/// Everything that a component is made of, by path.
#[derive(Debug, PartialEq)]
struct Inputs(BTreeMap<PathBuf, String>);

impl Inputs {
    /// The text files in these directories and below them. Others are not the author's.
    fn read(directories: &[&Path]) -> Result<Inputs> {
        let mut inputs = BTreeMap::new();
        let mut left: Vec<PathBuf> = directories.iter().map(|path| path.to_path_buf()).collect();
        while let Some(directory) = left.pop() {
            for path in entries(&directory)? {
                if path.is_dir() {
                    left.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    inputs.insert(path, text);
                }
            }
        }
        Ok(Inputs(inputs))
    }

    /// Names without what lies above them: the same checkout elsewhere is the same.
    fn text(&self) -> String {
        let named = self.0.iter().map(|(path, text)| {
            serde_json::json!([path.file_name().map(OsStr::to_string_lossy), text])
        });
        serde_json::Value::from_iter(named).to_string()
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = || format!("listing {}", directory.display());
    let entries = fs::read_dir(directory).with_context(listing)?;
    entries.map(|entry| Ok(entry.with_context(listing)?.path())).collect()
}

/// The Python files of a directory, in an otherwise empty one.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("clearing {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for path in entries(from)? {
        if let (Some("py"), Some(name)) =
            (path.extension().and_then(OsStr::to_str), path.file_name())
        {
            fs::copy(&path, to.join(name))
                .with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_built_anew_when_and_only_when_something_in_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let read = || Inputs::read(&[directory.path()]).unwrap().text();
        fs::create_dir(directory.path().join("src")).unwrap();
        fs::write(directory.path().join("src/app.py"), "one").unwrap();
        let before = read();
        fs::write(directory.path().join("src/app.pyc"), [0xff, 0xfe]).unwrap();
        assert_eq!(read(), before);
        fs::write(directory.path().join("src/app.py"), "two").unwrap();
        assert_ne!(read(), before);
    }
}
