//! The WebAssembly engine: how code is compiled, where instances live, and how a call is stopped.
//!
//! - Instances come from a pooling allocator with copy-on-write images, so that a fresh one per call costs microseconds. What
//!   does not fit into the pool, such as a component that brings the runtime of a language along, gets instances that are
//!   made on demand. The code is the same for both, so it is compiled once, and whether it fits is found out when it is loaded.
//! - Epochs interrupt guests that do not stop by themselves. The epoch advances every [`TICK`] while calls are under way;
//!   what becomes of an interrupted guest is decided in `turns.rs`.
//! - Compiled code is kept on disk under the component's hash and everything of the engine that it depends on.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::Duration,
};

use sha2::{Digest, Sha256};
use wasmtime::{
    Config, Enabled, Engine as WasmEngine, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::Component,
};

use super::{
    limits::{
        CONCURRENT_CALLS, CORE_INSTANCES_PER_COMPONENT, MEMORIES_PER_COMPONENT,
        MEMORY_PER_CALL_BYTES, TABLES_PER_COMPONENT, TEXT_BYTES,
    },
    text,
    turns::Turns,
};

use crate::whole_file;

/// How often a running guest gives way.
pub const TICK: Duration = Duration::from_millis(10);

/// Memory that stays with a pool slot between calls: about what a small guest touches, so that it need not be mapped anew.
const KEEP_RESIDENT_BYTES: usize = 256 << 10;

/// How the binary form of a core module begins; a component has another number there.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// The compiler and the pool, shared by all plugins. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Absent where no pool could be reserved.
    pooled: Option<WasmEngine>,
    /// Compiles, and runs what does not fit into the pool.
    on_demand: WasmEngine,
    ticker: Arc<Ticker>,
    turns: Turns,
    cache: Option<Arc<Path>>,
}

/// The engine could not be set up, or a component could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot set up the plugin engine: {0:#}")]
    Setup(wasmtime::Error),
    #[error("this is not a WebAssembly component that can be run here: {0}")]
    Compile(String),
    #[error(
        "this is a WebAssembly core module and not a component; make a component of it, for instance with `wasm-tools component new`"
    )]
    CoreModule,
    #[error("cannot start the thread that ends runaway plugins: {0}")]
    Ticker(std::io::Error),
}

impl Engine {
    /// `cache` is a directory for compiled code, made if absent. Without one, everything is compiled at each start.
    pub fn new(cache: Option<PathBuf>) -> Result<Self, EngineError> {
        let on_demand =
            WasmEngine::new(&configuration(Allocation::OnDemand)).map_err(EngineError::Setup)?;
        // Where address space is limited (`ulimit -v`, small containers) the pool cannot be reserved.
        let pooled = WasmEngine::new(&configuration(Allocation::Pooling))
            .inspect_err(|error| {
                tracing::warn!(
                    "plugin calls will be slower, since no pool of instances could be reserved: {error:#}"
                );
            })
            .ok();
        let cache = cache.and_then(|directory| match prepare_cache(&directory) {
            Ok(()) => Some(Arc::from(directory)),
            Err(error) => {
                tracing::warn!(
                    "compiled plugins are not kept, so starts are slower: {}: {error}",
                    directory.display()
                );
                None
            }
        });
        let engines = pooled.iter().chain([&on_demand]).cloned().collect();
        let ticker = Arc::new(Ticker::start(engines).map_err(EngineError::Ticker)?);
        Ok(Self { pooled, on_demand, ticker, turns: Turns::new(), cache })
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Keeps the epoch advancing until the guard is dropped.
    pub(super) fn begin_call(&self) -> CallGuard {
        CallGuard::new(Arc::clone(&self.ticker))
    }

    /// Compiles a component, or takes the code that was compiled earlier. Blocks for up to seconds. Instances of it are made by
    /// the engine that [`Component::engine`] names.
    pub(super) fn compile(&self, bytes: &[u8]) -> Result<Component, EngineError> {
        if bytes.starts_with(CORE_MODULE) {
            return Err(EngineError::CoreModule);
        }
        // What the compiler quotes of a component is the component's own text.
        let failed = |error: wasmtime::Error| {
            EngineError::Compile(text::plain(&format!("{error:#}"), TEXT_BYTES))
        };
        let file = self.cache.as_ref().map(|cache| cache.join(self.cache_name(bytes)));
        if let Some(component) = file.as_ref().and_then(|file| self.load_file(file)) {
            return Ok(component);
        }
        let code = self.on_demand.precompile_component(bytes).map_err(failed)?;
        if let Some(file) = &file {
            match whole_file::replace(file, &code) {
                // The mapped file costs less memory than the copy that the compiler left.
                Ok(()) => {
                    if let Some(component) = self.load_file(file) {
                        return Ok(component);
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot keep compiled code in {}: {error}", file.display());
                }
            }
        }
        // SAFETY: this is what the compiler has just made, and nobody else has had it.
        self.allocate(|engine| unsafe { Component::deserialize(engine, &code) }).map_err(failed)
    }

    /// Where instances of a component come from: the pool if it fits there, else they are made one by one.
    fn allocate(
        &self,
        load: impl Fn(&WasmEngine) -> wasmtime::Result<Component>,
    ) -> wasmtime::Result<Component> {
        if let Some(pooled) = &self.pooled {
            match load(pooled) {
                Ok(component) => return Ok(component),
                Err(error) => tracing::debug!("a plugin is run outside of the pool: {error:#}"),
            }
        }
        load(&self.on_demand)
    }

    fn cache_name(&self, bytes: &[u8]) -> String {
        let mut compatibility = DefaultHasher::new();
        self.on_demand.precompile_compatibility_hash().hash(&mut compatibility);
        format!("{}-{:016x}.cwasm", hex::encode(Sha256::digest(bytes)), compatibility.finish())
    }

    fn load_file(&self, file: &Path) -> Option<Component> {
        if let Err(error) = only_ours(file) {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!("compiling anew instead of loading {}: {error}", file.display());
            }
            return None;
        }
        // SAFETY: `only_ours` has just seen that this file and the directory it lies in belong to this user, and that
        // nobody else may write to them. `whole_file` is all that writes there: complete, synced files, whose names
        // carry the hash of the component and of everything in the engine that compiled code depends on.
        match self.allocate(|engine| unsafe { Component::deserialize_file(engine, file) }) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!("compiling anew instead of loading {}: {error:#}", file.display());
                None
            }
        }
    }
}

enum Allocation {
    Pooling,
    OnDemand,
}

fn configuration(allocation: Allocation) -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.wasm_component_model(true);
    if let Allocation::Pooling = allocation {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(CONCURRENT_CALLS)
            // So much of each that as many calls as there may be find their part, whatever the other plugins are like.
            .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
            .max_memories_per_component(MEMORIES_PER_COMPONENT)
            .max_tables_per_component(TABLES_PER_COMPONENT)
            .total_core_instances(CONCURRENT_CALLS * CORE_INSTANCES_PER_COMPONENT)
            .total_memories(CONCURRENT_CALLS * MEMORIES_PER_COMPONENT)
            .total_tables(CONCURRENT_CALLS * TABLES_PER_COMPONENT)
            .total_stacks(CONCURRENT_CALLS)
            .max_memory_size(MEMORY_PER_CALL_BYTES)
            .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
            .table_keep_resident(KEEP_RESIDENT_BYTES)
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

fn prepare_cache(directory: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Neither this file nor its directory can have been written by anybody else.
fn only_ours(file: &Path) -> std::io::Result<()> {
    let ours = rustix::process::geteuid().as_raw();
    for path in file.parent().into_iter().chain([file]) {
        let metadata = fs::symlink_metadata(path)?;
        if metadata.uid() != ours || metadata.mode() & 0o022 != 0 {
            return Err(std::io::Error::other(format!(
                "{} could be written by other users; it must belong to this user alone",
                path.display()
            )));
        }
    }
    Ok(())
}

/// How long the ticker goes on after the last call: calls that follow each other closely need not wake it.
const IDLE_TICKS: u32 = 100;

/// A thread of its own, since a runtime whose workers are all busy in guests could not run a task that stops them.
/// It sleeps while no call is under way, and ends with the last [`Engine`].
struct Ticker {
    shared: Arc<TickerShared>,
    thread: Thread,
}

#[derive(Default)]
struct TickerShared {
    calls: AtomicUsize,
    ended: AtomicBool,
    /// It is parked, or about to be: whoever begins a call wakes it.
    asleep: AtomicBool,
}

impl Ticker {
    fn start(engines: Vec<WasmEngine>) -> std::io::Result<Self> {
        let shared = Arc::new(TickerShared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("plugin-epoch".into())
            .spawn(move || of_thread.run(&engines))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    // The order of all these operations matters to both sides, so all of them are sequentially consistent: a call that
    // does not see the ticker asleep is seen by it before it sleeps.

    fn begin(&self) {
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    fn end(&self) {
        self.shared.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl TickerShared {
    fn run(&self, engines: &[WasmEngine]) {
        let mut idle_ticks = 0;
        while !self.ended.load(Ordering::SeqCst) {
            if self.calls.load(Ordering::SeqCst) > 0 {
                idle_ticks = 0;
            } else if idle_ticks >= IDLE_TICKS {
                self.sleep_until_a_call();
            } else {
                idle_ticks += 1;
            }
            std::thread::sleep(TICK);
            for engine in engines {
                engine.increment_epoch();
            }
        }
    }

    fn sleep_until_a_call(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.calls.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

/// While one of these lives, the epoch advances.
pub(super) struct CallGuard {
    ticker: Arc<Ticker>,
}

impl CallGuard {
    fn new(ticker: Arc<Ticker>) -> Self {
        ticker.begin();
        Self { ticker }
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.ticker.end();
    }
}
