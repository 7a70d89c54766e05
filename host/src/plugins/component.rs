//! One loaded plugin: compiled, linked, bounded, ready to be called.

use std::sync::Arc;

use tokio::{sync::Semaphore, time::timeout};
use wasmtime::{
    Store, Trap, UpdateDeadline,
    component::{Component, HasSelf, Linker},
};

use super::{
    bindings::{self, VmBackendPre},
    call::{CallLimits, CallState, PluginContext},
    engine::{CONCURRENT_CALLS, Engine, EngineError, TICK},
    vm_backend::ProgressSink,
};

/// The version of `wit/` that this provider links.
pub const CONTRACT: &str = "golem:provider@0.1.0";

/// Calls of one plugin under way at the same time: half of the pool, so that one plugin cannot starve the others.
const CALLS_PER_PLUGIN: usize = CONCURRENT_CALLS as usize / 2;

/// A component that fits one of the worlds. Each call runs in an instance of its own.
pub(super) struct PluginComponent {
    engine: Engine,
    pre: VmBackendPre<CallState>,
    calls: Semaphore,
}

/// A component cannot be used as a plugin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "it was made for {made_for}, and this provider offers {CONTRACT}: {cause}; install a plugin or a provider that fit together"
    )]
    OtherContract { made_for: String, cause: String },
    #[error("it does not fit the world `vm-backend` of {CONTRACT}: {0}")]
    NotThisWorld(String),
}

/// A call ended without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("it took longer than {} s", .0.as_secs_f32())]
    TooLong(std::time::Duration),
    #[error("it computed for more than {} s without an end and was stopped", .0.as_secs_f32())]
    Runaway(std::time::Duration),
    #[error("it asked for {0} bytes of memory, which is more than a plugin's call may have")]
    Memory(usize),
    #[error("it panicked: {0}")]
    Panic(String),
    #[error("it broke off: {0}")]
    Trap(String),
}

impl PluginComponent {
    /// Compiles and links; blocks for up to seconds.
    pub fn load(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        let component = engine.compile(bytes)?;
        let pre = link(engine, &component).map_err(|error| {
            let cause = format!("{error:#}");
            match foreign_contract(engine, &component) {
                Some(made_for) => LoadError::OtherContract { made_for, cause },
                None => LoadError::NotThisWorld(cause),
            }
        })?;
        Ok(Self { engine: engine.clone(), pre, calls: Semaphore::new(CALLS_PER_PLUGIN) })
    }

    /// Runs one call in a fresh instance, within its limits. Whatever the guest does, it costs this call alone.
    pub async fn call<T>(
        &self,
        plugin: &Arc<PluginContext>,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        call: impl AsyncFnOnce(&bindings::VmBackend, &mut Store<CallState>) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        let mut store =
            Store::new(self.engine.wasm(), CallState::new(Arc::clone(plugin), progress));
        store.limiter(|state| &mut state.memory);
        let mut ticks_left = limits.computing.as_millis() / TICK.as_millis();
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            ticks_left = ticks_left.saturating_sub(1);
            Ok(if ticks_left == 0 { UpdateDeadline::Interrupt } else { UpdateDeadline::Yield(1) })
        });
        let outcome = timeout(limits.deadline, async {
            // The semaphore is never closed, so that it always gives a permit in the end.
            let _permit =
                self.calls.acquire().await.map_err(|error| wasmtime::format_err!("{error}"))?;
            let _ticking = self.engine.begin_call();
            let instance = self.pre.instantiate_async(&mut store).await?;
            call(&instance, &mut store).await
        })
        .await;
        let state = store.data_mut();
        if state.log.dropped() > 0 {
            tracing::warn!(
                plugin.name = %plugin.name,
                "the plugin logged too much in one call; {} lines were not kept",
                state.log.dropped()
            );
        }
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(explain(&error, state, limits)),
            Err(_) => Err(CallError::TooLong(limits.deadline)),
        }
    }
}

fn link(engine: &Engine, component: &Component) -> wasmtime::Result<VmBackendPre<CallState>> {
    let mut linker = Linker::new(engine.wasm());
    bindings::VmBackend::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    VmBackendPre::new(linker.instantiate_pre(component)?)
}

/// The version of the contract that a component names, if it is another one than ours.
fn foreign_contract(engine: &Engine, component: &Component) -> Option<String> {
    let ours = CONTRACT.rsplit_once('@').map_or("", |(_, version)| version);
    let component_type = component.component_type();
    let imports = component_type.imports(engine.wasm()).map(|(name, _)| name.to_owned());
    let exports = component_type.exports(engine.wasm()).map(|(name, _)| name.to_owned());
    imports
        .chain(exports)
        .filter(|name| name.starts_with("golem:provider/"))
        .filter_map(|name| name.rsplit_once('@').map(|(_, version)| version.to_owned()))
        .find(|version| version != ours)
        .map(|version| format!("golem:provider@{version}"))
}

/// What ended the call, in words for people. The whole of it goes to the log.
fn explain(error: &wasmtime::Error, state: &mut CallState, limits: CallLimits) -> CallError {
    if let Some(message) = state.panic.take() {
        tracing::error!(plugin.name = %state.plugin.name, "the plugin panicked: {message}; {error:?}");
        return CallError::Panic(message);
    }
    if let Some(bytes) = state.memory.refused_bytes {
        return CallError::Memory(bytes);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => CallError::Runaway(limits.computing),
        trap => {
            tracing::error!(plugin.name = %state.plugin.name, "a call of the plugin failed: {error:?}");
            CallError::Trap(
                trap.map_or_else(|| error.root_cause().to_string(), ToString::to_string),
            )
        }
    }
}
