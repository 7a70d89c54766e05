//! A call of a plugin with a record of 200 bytes in and out, in a fresh instance, as the provider makes every call; beside
//! the same call by wasmtime alone, without limits, deadline, interruption or a runtime: in a fresh instance, and on one that
//! is kept.

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
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store,
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
    let alone = Alone::load()?;

    let rounds = options.choose(3, 9);
    let time = Duration::from_millis(options.choose(300, 1000));
    for callers in CALLERS {
        let (mut ours, mut fresh, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=rounds {
            progress(format!("plugin calls, callers: {callers}, round {round} of {rounds}"));
            ours.push(runtime.block_on(call_fresh(&loaded.backend, callers, time))?);
            fresh.push(alone.call(Instances::Fresh, callers, time)?);
            kept.push(alone.call(Instances::Kept, callers, time)?);
        }
        let name = if callers == 1 { "1 caller".to_owned() } else { format!("{callers} callers") };
        let references =
            [("wasmtime alone, fresh instance", fresh), ("wasmtime alone, kept instance", kept)];
        for (reference, theirs) in &references {
            let row = |what: &str, unit: &'static str, value: fn(&Measured) -> f64, limit| {
                let of = |all: &[Measured]| all.iter().map(value).collect::<Vec<f64>>();
                let values = of(&ours);
                let row = Row::of(format!("{what}, {name}"), unit, &values)
                    .beside(*reference, &of(theirs));
                match limit {
                    Some(limit) if callers == 1 => row.at_most(limit),
                    _ => row,
                }
                .print();
            };
            row("plugin call, p50", "µs", |one| one.p50_us, Some(TARGET_US));
            row("plugin call, p99", "µs", |one| one.p99_us, None);
            row("plugin calls", "/s", |one| one.per_second, None);
        }
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
struct Alone {
    pre: bindings::VmBackendPre<()>,
}

/// What becomes of an instance after a call.
#[derive(Clone, Copy, PartialEq)]
enum Instances {
    /// Every call of a caller is made in the same one.
    Kept,
    /// Every call has its own, out of a pool.
    Fresh,
}

impl Alone {
    fn load() -> Result<Alone> {
        let mut pool = PoolingAllocationConfig::new();
        // As the provider's, but for the number: a caller has its next instance before it lets go of the last.
        pool.max_memory_size(128 << 20)
            .total_memories(256)
            .linear_memory_keep_resident(256 << 10)
            .table_keep_resident(256 << 10)
            .pagemap_scan(Enabled::Auto);
        let mut config = Config::new();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(config.wasm_component_model(true))?;
        let component = Component::from_binary(&engine, &plugin::component(plugin::NAME)?)?;
        let mut linker = Linker::new(&engine);
        // The function that is called uses none of them.
        linker.define_unknown_imports_as_traps(&component)?;
        Ok(Alone { pre: bindings::VmBackendPre::new(linker.instantiate_pre(&component)?)? })
    }

    /// Each caller is a thread, all of which share the cores.
    fn call(&self, instances: Instances, callers: usize, time: Duration) -> Result<Measured> {
        let end = Instant::now() + time;
        let durations = std::thread::scope(|scope| {
            let callers: Vec<_> =
                (0..callers).map(|_| scope.spawn(|| self.call_until(instances, end))).collect();
            let mut durations = Vec::new();
            for caller in callers {
                let of_caller = caller.join();
                durations.extend(of_caller.map_err(|_| anyhow::anyhow!("a caller panicked"))??);
            }
            Ok::<_, anyhow::Error>(durations)
        })?;
        Ok(Measured::of(&durations, time))
    }

    fn call_until(&self, instances: Instances, end: Instant) -> Result<Vec<Duration>> {
        let record = plugin::record();
        let instantiate = || {
            let mut store = Store::new(self.pre.engine(), ());
            self.pre.instantiate(&mut store).map(|instance| (store, instance))
        };
        let (mut store, mut instance) = instantiate()?;
        let mut durations = Vec::new();
        while Instant::now() < end {
            let begun = Instant::now();
            if instances == Instances::Fresh {
                (store, instance) = instantiate()?;
            }
            let answer = instance.golem_provider_vms().call_inspect(&mut store, &record)?;
            durations.push(begun.elapsed());
            debug_assert!(answer.is_ok());
        }
        Ok(durations)
    }
}
