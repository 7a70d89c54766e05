//! One loaded plugin: compiled, linked, bounded, ready to be called.

use std::{collections::HashMap, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};
use wasmtime::{
    Store, Trap,
    component::{
        Component, ComponentExportIndex, ComponentNamedList, ComponentType, HasSelf, InstancePre,
        Lift, Linker, Lower, ResourceTableError,
    },
};

use super::{
    bindings::{
        discovery_advertiser::DiscoveryAdvertiserPre,
        payment_verifier::PaymentVerifierPre,
        vm_backend::{VmBackend, VmBackendPre},
    },
    call::{CallState, MemoryRefused, PluginContext},
    engine::{Engine, EngineError},
    kind::Kind,
    limits::{CALLS_PER_PLUGIN, CallLimits, HANDED_OVER_BYTES, HANDLES_PER_CALL, TEXT_BYTES},
    plugin::Description,
    text,
    turns::Meter,
    vm_backend::ProgressSink,
};

/// The version of `wit/` that this provider links.
pub const CONTRACT: &str = "golem:provider@0.1.0";

/// A component that fits one of the worlds. Each call runs in an instance of its own.
pub(super) struct PluginComponent {
    engine: Engine,
    pre: Pre,
    /// Where each function is in an instance: looking all of them up, and comparing all their types, would take most of the
    /// time of a short call.
    functions: HashMap<&'static str, ComponentExportIndex>,
    calls: Semaphore,
}

/// Linked, and found to export what its kind has to.
enum Pre {
    VmBackend(VmBackendPre<CallState>),
    DiscoveryAdvertiser(DiscoveryAdvertiserPre<CallState>),
    PaymentVerifier(PaymentVerifierPre<CallState>),
}

/// The interface that all kinds export. `describe` is not called by name: see [`PluginComponent::describe`].
const PLUGIN: (&str, &[&str]) = ("golem:provider/plugin", &["probe"]);

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
        "it does not fit the world `{kind}` of {CONTRACT}: {cause}; install a version of it that was made for this provider"
    )]
    NotThisWorld { kind: Kind, cause: String },
    #[error(
        "it exports no interface that makes it a plugin: one of {known} has to be exported once; see the worlds in `wit/`",
        known = Kind::ALL.map(|kind| versioned(kind.interface())).join(", ")
    )]
    NoKind,
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
        let other_contract = |cause: String| {
            let made_for = foreign_contract(&component)?;
            Some(LoadError::OtherContract { made_for, cause })
        };
        let Some(kind) = kind_of(&component) else {
            let cause = "its interfaces are of another version".to_owned();
            return Err(other_contract(cause).unwrap_or(LoadError::NoKind));
        };
        let pre = link(&component, kind).map_err(|error| {
            let cause = text::plain(&format!("{error:#}"), TEXT_BYTES);
            other_contract(cause.clone()).unwrap_or(LoadError::NotThisWorld { kind, cause })
        })?;
        let mut functions = HashMap::new();
        for (interface, names) in [PLUGIN, (kind.interface(), kind.functions())] {
            let interface = component.get_export_index(None, versioned(interface));
            for name in names {
                let function = interface
                    .and_then(|interface| component.get_export_index(Some(&interface), name))
                    .ok_or_else(|| LoadError::NotThisWorld {
                        kind,
                        cause: format!("it has no `{name}`"),
                    })?;
                functions.insert(*name, function);
            }
        }
        let calls = Semaphore::new(CALLS_PER_PLUGIN);
        Ok(Self { engine: engine.clone(), pre, functions, calls })
    }

    pub fn kind(&self) -> Kind {
        match self.pre {
            Pre::VmBackend(_) => Kind::VmBackend,
            Pre::DiscoveryAdvertiser(_) => Kind::DiscoveryAdvertiser,
            Pre::PaymentVerifier(_) => Kind::PaymentVerifier,
        }
    }

    /// Asks the plugin what it is, and compares the types of everything that it exports with what they have to be.
    pub async fn describe(
        &self,
        plugin: &Arc<PluginContext>,
        limits: CallLimits,
    ) -> Result<Description, CallError> {
        let describe = async |store: &mut Store<CallState>| {
            // The same record in each world, but every world has a type of its own for it.
            macro_rules! describe {
                ($pre:expr) => {{
                    let instance = $pre.instantiate_async(&mut *store).await?;
                    let said = instance.golem_provider_plugin().call_describe(store).await?;
                    Ok(Description {
                        name: said.name,
                        version: said.version,
                        summary: said.summary,
                        license: said.license,
                        settings_schema: said.settings_schema,
                    })
                }};
            }
            match &self.pre {
                Pre::VmBackend(pre) => describe!(pre),
                Pre::DiscoveryAdvertiser(pre) => describe!(pre),
                Pre::PaymentVerifier(pre) => describe!(pre),
            }
        };
        self.run(plugin, limits, None, describe).await
    }

    /// Calls a function of its kind, or `probe`, by its name.
    pub async fn call<Arguments, Answer>(
        &self,
        plugin: &Arc<PluginContext>,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        function: &str,
        arguments: Arguments,
    ) -> Result<Answer, CallError>
    where
        Arguments: ComponentNamedList + Lower + Send + Sync,
        Answer: Lift + ComponentType + Send + Sync + 'static,
    {
        let call = async |store: &mut Store<CallState>| {
            let instance = self.pre.instance().instantiate_async(&mut *store).await?;
            let index = self
                .functions
                .get(function)
                .ok_or_else(|| wasmtime::format_err!("`{function}` is not looked up at load"))?;
            let function = instance.get_typed_func::<Arguments, (Answer,)>(&mut *store, index)?;
            let (answer,) = function.call_async(store, arguments).await?;
            Ok(answer)
        };
        self.run(plugin, limits, progress, call).await
    }

    /// Runs one call in a fresh instance, within its limits. Whatever the guest does, it costs this call alone.
    async fn run<T>(
        &self,
        plugin: &Arc<PluginContext>,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        call: impl AsyncFnOnce(&mut Store<CallState>) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        let state = CallState::new(Arc::clone(plugin), progress);
        let mut store = Store::new(self.pre.instance().engine(), state);
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
            let mut work = pin!(call(&mut store));
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

impl Pre {
    fn instance(&self) -> &InstancePre<CallState> {
        match self {
            Self::VmBackend(pre) => pre.instance_pre(),
            Self::DiscoveryAdvertiser(pre) => pre.instance_pre(),
            Self::PaymentVerifier(pre) => pre.instance_pre(),
        }
    }
}

/// Told by what it exports; absent where that is none of the kinds, or more than one.
fn kind_of(component: &Component) -> Option<Kind> {
    let mut kinds = Kind::ALL
        .into_iter()
        .filter(|kind| component.get_export_index(None, versioned(kind.interface())).is_some());
    kinds.next().filter(|_| kinds.next().is_none())
}

/// An interface's name with the version of the contract.
fn versioned(interface: &str) -> String {
    let version = CONTRACT.rsplit_once('@').map_or("", |(_, version)| version);
    format!("{interface}@{version}")
}

fn link(component: &Component, kind: Kind) -> wasmtime::Result<Pre> {
    let mut linker = Linker::new(component.engine());
    // All worlds import the same.
    VmBackend::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    let instance = linker.instantiate_pre(component)?;
    Ok(match kind {
        Kind::VmBackend => Pre::VmBackend(VmBackendPre::new(instance)?),
        Kind::DiscoveryAdvertiser => {
            Pre::DiscoveryAdvertiser(DiscoveryAdvertiserPre::new(instance)?)
        }
        Kind::PaymentVerifier => Pre::PaymentVerifier(PaymentVerifierPre::new(instance)?),
    })
}

/// The version of the contract that a component names, if it is another one than ours.
fn foreign_contract(component: &Component) -> Option<String> {
    let ours = CONTRACT.rsplit_once('@').map_or("", |(_, version)| version);
    let component_type = component.component_type();
    let imports = component_type.imports(component.engine()).map(|(name, _)| name.to_owned());
    let exports = component_type.exports(component.engine()).map(|(name, _)| name.to_owned());
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
