//! `cargo xtask bench`: what the provider costs, each figure beside a reference of the same run.
//!
//! The measuring is done by the programs of the crate `golem-provider-benches`, one for each group; here they are built, run
//! one after the other, and what they print is made into one table.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::guest_toolchain::Preference;
use crate::ui::{self, Step};
use crate::workspace::{Workspace, cargo};
use crate::{examples, image, packages, plugins, run, setup};

const PACKAGE: &str = "golem-provider-benches";

/// Tells the programs where the provider is that they start.
const BINARY_VARIABLE: &str = "GOLEM_PROVIDER_BINARY";
/// Tells them where the image is that machines are made from.
const CATALOG_VARIABLE: &str = "GOLEM_TEST_IMAGE_CATALOG";

/// Measures what the provider costs and prints one table
///
/// Each row stands beside a reference that was measured in the same run, and says whether the target is met. Takes about
/// twenty minutes in all, and a machine that does nothing else; missing programs such as HAProxy are installed.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure; everything, when nothing is named
    #[arg(value_enum)]
    groups: Vec<Group>,

    /// Fewer and shorter rounds: a first impression
    #[arg(long)]
    quick: bool,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    guest: Preference,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Group {
    /// Calls of a plugin
    Plugin,
    /// A plugin in Python beside the same one in Rust
    Languages,
    /// From start to first answer; idle memory
    Start,
    /// Reads of the HTTP API
    Api,
    /// The TCP proxy
    Proxy,
    /// From create to the first SSH login
    Boot,
}

impl Group {
    /// The name of its program.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    let groups = match arguments.groups.as_slice() {
        [] => Group::value_variants(),
        named => named,
    };
    let boots = groups.contains(&Group::Boot);
    let toolchain = setup::install(&workspace, boots, &arguments.guest)?;
    packages::install(&packages::missing(packages::BENCH), &workspace.log("apt-bench"))
        .context("installing what the provider is compared with")?;
    plugins::build(&workspace, toolchain)?;
    if groups.contains(&Group::Languages) {
        examples::build(&workspace)?;
    }
    let provider = run::build_provider(&workspace)?;
    let catalog = boots.then(|| image::build(&workspace)).transpose()?;
    build(&workspace)?;

    let mut table = Table { rows: Vec::new(), notes: Vec::new() };
    for group in groups {
        let name = group.name();
        let started = Instant::now();
        eprintln!("--> measuring: {name}");
        measure(&workspace, &name, arguments.quick, &provider, catalog.as_deref(), &mut table)
            .with_context(|| format!("measuring the group {name}"))?;
        ui::note(format!("{name} took {}", ui::seconds(started.elapsed())));
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&table).context("writing JSON")?);
    } else {
        print!("{}", table.text());
    }
    Ok(())
}

fn build(workspace: &Workspace) -> Result<()> {
    let step = Step::start_loud("building the benchmarks", "a minute; longer the first time");
    let mut command = cargo();
    command.args(["bench", "--package", PACKAGE, "--no-run"]).current_dir(&workspace.root);
    ui::run_shown(&mut command)?;
    step.done();
    Ok(())
}

fn measure(
    workspace: &Workspace,
    group: &str,
    quick: bool,
    provider: &Path,
    catalog: Option<&Path>,
    table: &mut Table,
) -> Result<()> {
    let mut command = cargo();
    command
        .args(["bench", "--quiet", "--package", PACKAGE, "--bench", group, "--"])
        .args(quick.then_some("--quick"))
        .env(BINARY_VARIABLE, provider)
        .envs(catalog.map(|catalog| (CATALOG_VARIABLE, catalog)))
        .current_dir(&workspace.root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("starting cargo bench")?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading what was measured")?;
            table.add(group, &line).with_context(|| format!("reading `{line}`"))?;
        }
    }
    let status = child.wait().context("waiting for the benchmark")?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    Ok(())
}

/// One line of a benchmark.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Row(Row),
    Note { note: String },
}

/// One figure, as `golem_provider_benches::rows` prints it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    #[serde(default)]
    group: String,
    what: String,
    unit: String,
    value: f64,
    reference: Option<Reference>,
    target: Option<String>,
    met: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Reference {
    name: String,
    value: f64,
    ratio: f64,
}

#[derive(Serialize)]
struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    fn add(&mut self, group: &str, line: &str) -> Result<()> {
        match serde_json::from_str(line)? {
            Line::Row(row) => self.rows.push(Row { group: group.to_owned(), ..row }),
            Line::Note { note } => self.notes.push(format!("{group}: {note}")),
        }
        Ok(())
    }

    /// In Markdown, which can be read as it is.
    fn text(&self) -> String {
        let header = ["What", "Measured", "Beside", "Ratio", "Target", "Met"].map(str::to_owned);
        let rows: Vec<[String; 6]> =
            std::iter::once(header).chain(self.rows.iter().map(Row::cells)).collect();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        let mut text = String::new();
        for (number, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(widths) {
                // Writing to a `String` cannot fail.
                let _ = write!(text, "| {cell:<width$} ");
            }
            text.push_str("|\n");
            if number == 0 {
                for width in widths {
                    let _ = write!(text, "|{:-<1$}", "", width + 2);
                }
                text.push_str("|\n");
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let reference = self.reference.as_ref();
        [
            self.what.clone(),
            format!("{} {}", figure(self.value), self.unit),
            reference
                .map(|other| format!("{}: {}", other.name, figure(other.value)))
                .unwrap_or_default(),
            reference.map(|other| format!("{:.2}", other.ratio)).unwrap_or_default(),
            self.target.clone().unwrap_or_default(),
            match self.met {
                Some(true) => "yes".to_owned(),
                Some(false) => "NO".to_owned(),
                None => String::new(),
            },
        ]
    }
}

/// Three digits, or all that are before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_print_becomes_one_table() {
        let mut table = Table { rows: Vec::new(), notes: Vec::new() };
        let row = r#"{"what":"start","unit":"ms","value":151.26,"reference":{"name":"bare axum","value":3.0,"ratio":50.42},"target":"≤ 150 ms","met":false}"#;
        table.add("start", row).unwrap();
        table.add("start", r#"{"what":"memory","unit":"MiB","value":31.5}"#).unwrap();
        table.add("proxy", r#"{"note":"HAProxy is not installed"}"#).unwrap();
        assert!(table.add("start", "Compiling").is_err());
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "| start  | 151 ms   | bare axum: 3.00 | 50.42 | ≤ 150 ms | NO  |");
        assert_eq!(lines[3], "| memory | 31.5 MiB |                 |       |          |     |");
        assert_eq!(lines[5], "proxy: HAProxy is not installed");
    }
}
