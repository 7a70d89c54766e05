//! A call of a plugin with a record of 200 bytes in and out, in a fresh instance, as the provider makes every call; beside
//! the same call on an instance that is kept, by wasmtime alone: without limits, deadline, interruption or a runtime.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use golem_provider::plugins::VmBackend;
use golem_provider_benches::{
    Options, plugin, progress,
    rows::{self, Row, quantile},
};
use wasmtime::{
    Config, Engine, Store,
    component::{Component, Linker},
};

mod bindings {
    wasmtime::component::bindgen!({ path: "../wit", world: "vm-backend" });
}

/// The longest p50 of one caller.
const TARGET_US: f64 = 15.0;

const CALLERS: [usize; 2] = [1, 64];

fn main() -> Result<()> {
    let options = Options::read()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    progress("loading the plugin twice");
    let loaded = runtime.block_on(plugin::load(None))?;
    let kept = Kept::load()?;

    let rounds = options.choose(3, 9);
    let time = Duration::from_millis(options.choose(300, 1000));
    for callers in CALLERS {
        let (mut fresh, mut other) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(format!("plugin calls, {callers} callers, round {round} of {rounds}"));
            fresh.push(runtime.block_on(call_fresh(&loaded.backend, callers, time))?);
            other.push(kept.call(callers, time)?);
        }
        let name = if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") };
        let of = |measured: &[Measured], value: fn(&Measured) -> f64| -> Vec<f64> {
            measured.iter().map(value).collect()
        };
        let p50 = (of(&fresh, |one| one.p50_us), of(&other, |one| one.p50_us));
        let row = Row::of(format!("plugin call, fresh instance, {name}, p50"), "µs", &p50.0)
            .beside("instance that is kept", &p50.1);
        if callers == 1 { row.at_most(TARGET_US) } else { row }.print();
        let p99 = (of(&fresh, |one| one.p99_us), of(&other, |one| one.p99_us));
        Row::of(format!("plugin call, fresh instance, {name}, p99"), "µs", &p99.0)
            .beside("instance that is kept", &p99.1)
            .print();
        let rate = (of(&fresh, |one| one.per_second), of(&other, |one| one.per_second));
        Row::of(format!("plugin calls, fresh instance, {name}"), "/s", &rate.0)
            .beside("instance that is kept", &rate.1)
            .print();
    }
    Ok(())
}

/// What one round came to.
struct Measured {
    p50_us: f64,
    p99_us: f64,
    per_second: f64,
}

impl Measured {
    fn of(durations: &[Duration], time: Duration) -> Measured {
        let micros: Vec<f64> = durations.iter().map(|one| one.as_secs_f64() * 1e6).collect();
        Measured {
            p50_us: rows::median(&micros),
            p99_us: quantile(&micros, 0.99),
            per_second: micros.len() as f64 / time.as_secs_f64(),
        }
    }
}

async fn call_fresh(
    backend: &Arc<dyn VmBackend>,
    callers: usize,
    time: Duration,
) -> Result<Measured> {
    let end = Instant::now() + time;
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let backend = Arc::clone(backend);
            tokio::spawn(async move {
                let record = plugin::record();
                let mut durations = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    let answer = backend.inspect(&record).await?;
                    durations.push(begun.elapsed());
                    debug_assert_eq!(answer.id, record);
                    // A call that does not wait for anything would keep the other callers of this thread from theirs.
                    tokio::task::yield_now().await;
                }
                Ok::<_, anyhow::Error>(durations)
            })
        })
        .collect();
    let mut durations = Vec::new();
    for caller in callers {
        durations.extend(caller.await.context("a caller broke off")??);
    }
    Ok(Measured::of(&durations, time))
}

/// The plugin without the provider.
struct Kept {
    engine: Engine,
    component: Component,
    linker: Linker<()>,
}

impl Kept {
    fn load() -> Result<Kept> {
        let engine = Engine::new(Config::new().wasm_component_model(true))?;
        let component = Component::from_binary(&engine, &plugin::component()?)?;
        let mut linker = Linker::new(&engine);
        // The function that is called uses none of them.
        linker.define_unknown_imports_as_traps(&component)?;
        Ok(Kept { engine, component, linker })
    }

    /// Each caller has an instance, all of which share the cores.
    fn call(&self, callers: usize, time: Duration) -> Result<Measured> {
        let record = plugin::record();
        let end = Instant::now() + time;
        let durations = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..callers)
                .map(|_| {
                    scope.spawn(|| -> Result<Vec<Duration>> {
                        let mut store = Store::new(&self.engine, ());
                        let plugin = bindings::VmBackend::instantiate(
                            &mut store,
                            &self.component,
                            &self.linker,
                        )?;
                        let vms = plugin.golem_provider_vms();
                        let mut durations = Vec::new();
                        while Instant::now() < end {
                            let begun = Instant::now();
                            let answer = vms.call_inspect(&mut store, &record)?;
                            durations.push(begun.elapsed());
                            debug_assert!(answer.is_ok());
                        }
                        Ok(durations)
                    })
                })
                .collect();
            let mut durations = Vec::new();
            for caller in callers {
                let of_caller = caller.join();
                durations.extend(of_caller.map_err(|_| anyhow::anyhow!("a caller panicked"))??);
            }
            Ok::<_, anyhow::Error>(durations)
        })?;
        Ok(Measured::of(&durations, time))
    }
}
