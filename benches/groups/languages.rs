//! An advertiser in Python beside the same one in Rust, both loaded by the provider's engine as a provider does: what they take on
//! the disk, to compile, to load, for a call, and in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use golem_provider::plugins::{Advertiser, harness::Harness};
use golem_provider_benches::{
    Options,
    processes::{Role, in_role},
    progress,
    rows::{Row, median, note},
};
use golem_provider_tests::{component, noticeboard, processes::Process};
use serde::{Deserialize, Serialize};

const RUST: &str = "the same in Rust";
const MIB: f64 = (1 << 20) as f64;

/// What one program measured that loaded one component.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    load_ms: f64,
    call_us: f64,
    loaded_mib: f64,
    in_call_mib: f64,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(role) = Role::of_this_process()? {
        let measured = runtime.block_on(measure(
            &role.argument::<PathBuf>(0)?,
            &role.argument::<PathBuf>(1)?,
            Duration::from_millis(role.argument(2)?),
        ))?;
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let options = Options::read()?;
    let Some(python) = noticeboard::python_component()? else {
        note("the example in Python is not built: cargo xtask examples");
        return Ok(());
    };
    let files = [python, component("noticeboard")?];
    let megabytes = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.len() as f64 / 1e6);
    let sizes = [megabytes(&files[0])?, megabytes(&files[1])?];
    Row::of("component", "MB", &sizes[..1]).beside(RUST, &sizes[1..]).print();

    let rounds = options.choose(1, 3);
    let mut compile_ms = [Vec::new(), Vec::new()];
    let mut compiled_mb = [Vec::new(), Vec::new()];
    let mut caches = Vec::new();
    for round in 1..=rounds {
        progress(format!("compiling both, round {round} of {rounds}"));
        caches.clear();
        for (language, file) in files.iter().enumerate() {
            let cache = tempfile::tempdir().context("making a directory")?;
            let begun = Instant::now();
            runtime.block_on(harness(file, cache.path())?.load_advertiser())?;
            compile_ms[language].push(begun.elapsed().as_secs_f64() * 1e3);
            let code = fs::read_dir(cache.path())?.next().context("nothing was compiled")??;
            compiled_mb[language].push(megabytes(&code.path())?);
            caches.push(cache);
        }
    }
    Row::of("compiled code", "MB", &compiled_mb[0]).beside(RUST, &compiled_mb[1]).print();
    Row::of("compile and load", "ms", &compile_ms[0]).beside(RUST, &compile_ms[1]).print();

    let rounds = options.choose(3, 9);
    let milliseconds = options.choose("300", "1000");
    let mut measured = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        progress(format!("loading and calling both, round {round} of {rounds}"));
        for (language, (file, cache)) in files.iter().zip(&caches).enumerate() {
            let (file, cache) = (file.to_string_lossy(), cache.path().to_string_lossy());
            let (file, cache): (&str, &str) = (&file, &cache);
            let mut command = in_role("load", [file, cache, milliseconds], None)?;
            measured[language].push(run(&mut command)?);
        }
    }
    let row = |what: &str, unit, value: fn(&Measured) -> f64| {
        let of = |all: &[Measured]| all.iter().map(value).collect::<Vec<f64>>();
        Row::of(what, unit, &of(&measured[0])).beside(RUST, &of(&measured[1])).print();
    };
    row("load compiled code, describe", "ms", |one| one.load_ms);
    row("call of a fresh instance, p50", "µs", |one| one.call_us);
    row("memory of a program that has loaded it", "MiB", |one| one.loaded_mib);
    row("most memory of that program with one call at a time", "MiB", |one| one.in_call_mib);
    Ok(())
}

fn run(command: &mut Command) -> Result<Measured> {
    let output = command.output().context("starting this program in its other role")?;
    if !output.status.success() {
        bail!("it ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("reading what it measured")
}

fn harness(file: &Path, cache: &Path) -> Result<Harness> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(Harness::new(bytes)?.compiled_in(cache))
}

/// In a program of its own, whose memory is that of one component.
async fn measure(file: &Path, cache: &Path, time: Duration) -> Result<Measured> {
    let begun = Instant::now();
    let plugin = harness(file, cache)?.load_advertiser().await?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    let this = Process::with_id(std::process::id())?;
    let loaded_mib = this.resident_bytes()? as f64 / MIB;
    // From here on the kernel counts the most memory anew.
    fs::write("/proc/self/clear_refs", "5").context("resetting the count of memory")?;
    let end = Instant::now() + time;
    let mut durations = Vec::new();
    while Instant::now() < end || durations.is_empty() {
        let begun = Instant::now();
        // Reads the settings and answers a record: what a call costs that does nothing.
        plugin.schedule().await?;
        durations.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    let most = this.status("VmHWM")?;
    let kib: f64 =
        most.first().context("the kernel does not say how much memory it was")?.parse()?;
    let in_call_mib = kib / 1024.0;
    Ok(Measured { load_ms, call_us: median(&durations), loaded_mib, in_call_mib })
}
