//! `cargo xtask contracts`: compiles the contracts in `contracts/src` that the tests put on a chain of their own.
//!
//! What they compile to is committed in `contracts/artifacts`, one file for each contract with its `abi` and `bytecode`, so that
//! whoever builds the tests needs no compiler for them. The same sources give the same bytes everywhere: the compiler's
//! version is in `contracts/package.json`, its settings are here.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::npm::Npm;
use crate::ui::{self, Step};
use crate::workspace::Workspace;

const SOLC: Npm =
    Npm { name: "solc", versions: "contracts", purpose: "compile contracts for tests" };

/// Passes a question in JSON from standard input to the compiler, and its answer to standard output.
const ASK: &str =
    "process.stdout.write(require('solc').compile(require('fs').readFileSync(0, 'utf8')))";

/// Compiles the Solidity that tests use into contracts/artifacts
///
/// Only needed after a change in contracts/src: the results are committed.
#[derive(clap::Args)]
pub struct Arguments {
    /// Change nothing; fail if the artifacts are not what the sources compile to
    #[arg(long)]
    check: bool,
}

/// What becomes of a contract, by its name.
type Artifacts = BTreeMap<String, Value>;

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    if arguments.check { check(&workspace) } else { write(&workspace) }
}

/// # Errors
/// When the artifacts are not what the sources compile to, or that cannot be found out.
pub fn check(workspace: &Workspace) -> Result<()> {
    let compiled = compile(workspace)?;
    let committed = read(&workspace.root.join("contracts/artifacts"))?;
    let stale = differences(&compiled, &committed);
    if !stale.is_empty() {
        bail!(
            "contracts/artifacts is not what contracts/src compiles to ({}). Run `cargo xtask contracts` and commit what it writes",
            stale.join(", ")
        );
    }
    Ok(())
}

fn write(workspace: &Workspace) -> Result<()> {
    let artifacts = compile(workspace)?;
    let directory = workspace.root.join("contracts/artifacts");
    if directory.exists() {
        fs::remove_dir_all(&directory).context("clearing contracts/artifacts")?;
    }
    fs::create_dir_all(&directory).context("making contracts/artifacts")?;
    for (name, artifact) in &artifacts {
        let file = directory.join(format!("{name}.json"));
        fs::write(&file, written(artifact)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    ui::note(format!("{} contracts in {}", artifacts.len(), directory.display()));
    Ok(())
}

fn compile(workspace: &Workspace) -> Result<Artifacts> {
    let solc = SOLC
        .install(workspace, |directory| directory.join("node_modules/solc/soljson.js").exists())?;
    let step = Step::start("compiling the contracts for tests", Some("3 s"));
    let question = question(&workspace.root.join("contracts/src"))?.to_string();
    let mut node = Command::new("node")
        .args(["-e", ASK])
        .current_dir(solc)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting node")?;
    // It reads all of it before it writes anything.
    let mut stdin = node.stdin.take().context("node has no standard input")?;
    stdin.write_all(question.as_bytes()).context("handing the contracts to solc")?;
    drop(stdin);
    let output = node.wait_with_output().context("waiting for solc")?;
    anyhow::ensure!(output.status.success(), "solc ended with {}", output.status);
    let answer = serde_json::from_slice(&output.stdout).context("reading what solc answered")?;
    let artifacts = artifacts(&answer)?;
    step.done();
    Ok(artifacts)
}

/// What solc reads ("standard JSON").
fn question(sources: &Path) -> Result<Value> {
    let mut contents = BTreeMap::new();
    for (name, text) in files(sources, "sol")? {
        contents.insert(format!("{name}.sol"), json!({ "content": text }));
    }
    Ok(json!({
        "language": "Solidity",
        "sources": contents,
        "settings": {
            "evmVersion": "cancun",
            "optimizer": { "enabled": true, "runs": 200 },
            // Nothing that depends on comments or on names of files.
            "metadata": { "appendCBOR": false, "bytecodeHash": "none" },
            "outputSelection": { "*": { "*": ["abi", "evm.bytecode.object"] } },
        },
    }))
}

/// Contracts that can be put on a chain, of what solc answered.
fn artifacts(answer: &Value) -> Result<Artifacts> {
    let complaints: Vec<&str> = answer["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|error| error["formattedMessage"].as_str())
        .collect();
    anyhow::ensure!(complaints.is_empty(), "solc complains:\n{}", complaints.join("\n"));
    let files = answer["contracts"].as_object().context("solc answered no contracts")?;
    let contracts = files.values().filter_map(Value::as_object).flatten();
    let mut artifacts = Artifacts::new();
    for (name, contract) in contracts {
        let bytecode = contract["evm"]["bytecode"]["object"].as_str().unwrap_or_default();
        // An interface has none.
        if bytecode.is_empty() {
            continue;
        }
        let artifact = json!({ "abi": contract["abi"], "bytecode": format!("0x{bytecode}") });
        anyhow::ensure!(
            artifacts.insert(name.clone(), artifact).is_none(),
            "there are two contracts {name}"
        );
    }
    Ok(artifacts)
}

/// One line for each entry of the ABI, so that changes can be read.
fn written(artifact: &Value) -> Result<String> {
    let abi = artifact["abi"].as_array().context("a contract without an ABI")?;
    let lines: Vec<String> = abi.iter().map(|entry| format!("    {entry}")).collect();
    Ok(format!(
        "{{\n  \"abi\": [\n{}\n  ],\n  \"bytecode\": {}\n}}\n",
        lines.join(",\n"),
        artifact["bytecode"]
    ))
}

fn read(directory: &Path) -> Result<Artifacts> {
    let mut artifacts = Artifacts::new();
    for (name, text) in files(directory, "json")? {
        let artifact = serde_json::from_str(&text).with_context(|| format!("reading {name}"))?;
        artifacts.insert(name, artifact);
    }
    Ok(artifacts)
}

/// The names that are missing on one side, or mean something else there.
fn differences(one: &Artifacts, other: &Artifacts) -> Vec<String> {
    let mut names: Vec<String> = one.keys().chain(other.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| one.get(name) != other.get(name));
    names
}

/// The texts of the files with this extension in a directory, by name without it.
fn files(directory: &Path, extension: &str) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    let Ok(entries) = fs::read_dir(directory) else { return Ok(texts) };
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", directory.display()))?.path();
        if path.extension().is_none_or(|found| found != extension) {
            continue;
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_stem().and_then(|name| name.to_str());
        texts.insert(name.context("a file's name is no text")?.to_owned(), text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_stale_when_it_differs_is_missing_or_has_no_source() {
        let artifacts = |names: &[(&str, &str)]| -> Artifacts {
            let artifact = |code: &str| json!({ "abi": [{ "type": "receive" }], "bytecode": code });
            names.iter().map(|(name, code)| ((*name).to_owned(), artifact(code))).collect()
        };
        let compiled = artifacts(&[("A", "0x01"), ("B", "0x02"), ("C", "0x03")]);
        let committed = artifacts(&[("A", "0x01"), ("B", "0x00"), ("D", "0x04")]);
        assert_eq!(differences(&compiled, &committed), ["B", "C", "D"]);
        let text = written(&compiled["A"]).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), compiled["A"]);
    }

    #[test]
    fn what_solc_complains_of_is_shown_and_interfaces_become_nothing() {
        let contract = |code: &str| json!({ "abi": [], "evm": { "bytecode": { "object": code } } });
        let answer =
            json!({ "contracts": { "a.sol": { "A": contract("60"), "I": contract("") } } });
        let artifacts = artifacts(&answer).unwrap();
        assert_eq!(artifacts.keys().collect::<Vec<_>>(), ["A"]);
        assert_eq!(artifacts["A"]["bytecode"], "0x60");
        let answer = json!({ "errors": [{ "formattedMessage": "line 3: expected ;" }] });
        let error = super::artifacts(&answer).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
    }
}
