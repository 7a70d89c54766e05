//! One loaded plugin: compiled, linked, bounded, ready to be called.

use std::{future::poll_fn, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};
use wasmtime::{
    Store, Trap,
    component::{Component, HasSelf, Linker, ResourceTableError},
};

use super::{
    bindings::{self, VmBackendPre},
    call::{CallState, MemoryRefused, PluginContext},
    engine::{Engine, EngineError},
    limits::{CALLS_PER_PLUGIN, CallLimits, HANDED_OVER_BYTES, HANDLES_PER_CALL, TEXT_BYTES},
    text,
    turns::Meter,
    vm_backend::ProgressSink,
};

/// The version of `wit/` that this provider links.
pub const CONTRACT: &str = "golem:provider@0.1.0";

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
    #[error(
        "it does not fit the world `vm-backend` of {CONTRACT}: {0}; install a version of it that was made for this provider"
    )]
    NotThisWorld(String),
}

/// A call ended without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("it took longer than {} s and was given up", .0.as_secs_f32())]
    TooLong(Duration),
    #[error("it could not begin within {} s, because {CALLS_PER_PLUGIN} calls of it were under way", .0.as_secs_f32())]
    Crowded(Duration),
    #[error("it computed for more than {} s without an end and was stopped", .0.as_secs_f32())]
    Runaway(Duration),
    #[error(transparent)]
    Memory(MemoryRefused),
    #[error("it handed over more than {} MiB at once", HANDED_OVER_BYTES >> 20)]
    HandedOver,
    #[error("it had more than {HANDLES_PER_CALL} files, streams and other things open at once")]
    Handles,
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
            let cause = text::plain(&format!("{error:#}"), TEXT_BYTES);
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
        store.limiter(|state| state);
        store.set_hostcall_fuel(HANDED_OVER_BYTES);
        let meter = Meter::new(self.engine.turns());
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback({
            let meter = Arc::clone(&meter);
            move |_| Ok(meter.tick(limits.computing))
        });
        let mut begun = false;
        let outcome = timeout(limits.deadline, async {
            // The semaphore is never closed, so that it always gives a permit in the end.
            let _permit =
                self.calls.acquire().await.map_err(|error| wasmtime::format_err!("{error}"))?;
            begun = true;
            let _ticking = self.engine.begin_call();
            let mut work = pin!(async {
                let instance = self.pre.instantiate_async(&mut store).await?;
                call(&instance, &mut store).await
            });
            poll_fn(|context| meter.poll(work.as_mut(), context)).await
        })
        .await;
        let state = store.data_mut();
        let dropped = plugin.log.dropped_to_tell();
        if dropped > 0 {
            tracing::warn!(
                plugin.name = %plugin.name,
                "the plugin {} logs too much; {dropped} lines were not kept",
                plugin.name
            );
        }
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(explain(&error, state, limits)),
            Err(_) if !begun => Err(CallError::Crowded(limits.deadline)),
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

/// What ended the call, in words for people. Where it ended goes to the log.
fn explain(error: &wasmtime::Error, state: &mut CallState, limits: CallLimits) -> CallError {
    let explained = if let Some(message) = state.panic.take() {
        CallError::Panic(message)
    } else if let Some(refused) = error.downcast_ref::<MemoryRefused>() {
        CallError::Memory(*refused)
    } else if let Some(ResourceTableError::Full) = error.downcast_ref() {
        CallError::Handles
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        match trap {
            Trap::Interrupt => CallError::Runaway(limits.computing),
            trap => CallError::Trap(trap.to_string()),
        }
    } else {
        match error.root_cause().to_string() {
            // The engine's own type for this is not public.
            cause if cause.contains("fuel allocated for hostcalls") => CallError::HandedOver,
            cause => CallError::Trap(text::plain(&cause, TEXT_BYTES)),
        }
    };
    let plugin = &state.plugin;
    // Names of functions in it are the plugin's own text.
    let place = text::plain(&format!("{error:#}"), TEXT_BYTES);
    if plugin.log.take(place.len()) {
        tracing::error!(plugin.name = %plugin.name, "a call of the plugin {} ended here: {place}", plugin.name);
    }
    explained
}
