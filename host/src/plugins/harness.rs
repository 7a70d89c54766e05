//! A plugin in the real engine, outside of a provider: for its author's tests, and for the conformance suite.
//!
//! [`Harness`] says what the plugin finds: settings, grants, and, where a [`Script`] is given, what programs, servers and the
//! clock answer. [`Harness::load`] does what a provider does with a plugin, in a directory that is gone afterwards. The
//! limits of calls, the checks of grants and the conversion of values are the provider's own.
//!
//! It may call everything beside it in this folder but `catalog`, which finds plugins; here they are given.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use alloy::signers::{SignerSync, local::PrivateKeySigner};
use async_trait::async_trait;
use tempfile::TempDir;

pub use super::{
    advertiser::{
        Advertisement, Advertiser, Change, Listing, Prices, Published, Query, Resources, Schedule,
    },
    advertiser_component::AdvertiserComponent,
    failure::{Failure, FailureKind},
    imports::ethereum,
    kind::Kind,
    payment_component::PaymentComponent,
    payment_verifier,
    plugin::{Description, Finding, Plugin, Severity},
    script::{Answer, Asked, Reply, Script},
    vm_backend::{
        BootLimits, Image, Instance, InstanceSpec, PowerState, Progress, ProgressSink, VmBackend,
    },
    vm_component::VmComponent,
};
use super::{
    call::{MemoryShare, PluginContext, PluginDirectory},
    component::{LoadError, PluginComponent},
    configuration::Configuration,
    engine::{Engine, EngineError},
    imports::{
        Ethereum, Machine, Services, StateError, StateStore,
        ethereum::{ChainFailure, NoEthereum, Receipt, RpcRefusal, Transaction},
        http,
        log::PluginLog,
        process,
    },
    limits::{self, CallLimits},
    manifest::{GrantList, Grants, Manifest, ManifestError},
    schema::{self, Secrets},
};
use crate::settings::keys::NO_ADDRESS;

/// A plugin and what it finds. Made by [`Harness::new`], then told what is different from the usual. A clone has the same
/// directory and the same durable values.
#[derive(Clone)]
pub struct Harness {
    component: Vec<u8>,
    settings: serde_json::Value,
    asked_is_granted: bool,
    grants: GrantList,
    revoked: GrantList,
    script: Option<Arc<Script>>,
    ethereum: Arc<dyn Ethereum>,
    /// Where compiled code is kept; within the directory if none was named.
    cache: Option<PathBuf>,
    limits: limits::Functions,
    state: Arc<MemoryState>,
    directory: Arc<TempDir>,
}

/// How long a caller waits for each kind of call.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// `images`, `inspect`, `inspect-all`.
    pub ask: Duration,
    pub create: Duration,
    pub start: Duration,
    /// `await-ready`.
    pub boot: Duration,
    /// Beyond the grace.
    pub stop: Duration,
    pub delete: Duration,
    pub add_key: Duration,
}

impl Deadlines {
    /// The same for every call.
    pub fn all(deadline: Duration) -> Self {
        Self {
            ask: deadline,
            create: deadline,
            start: deadline,
            boot: deadline,
            stop: deadline,
            delete: deadline,
            add_key: deadline,
        }
    }
}

/// The plugin could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    #[error("cannot make a directory for the plugin: {0}")]
    Directory(io::Error),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{0}")]
    Silent(Failure),
    #[error("this is a plugin of the kind `{found}`, and one of the kind `{wanted}` was wanted")]
    OtherKind { found: Kind, wanted: Kind },
    #[error("the settings are wrong: {0}")]
    Settings(String),
    #[error("loading was broken off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

impl Harness {
    /// A component in an empty directory, without settings, with what its manifest asks for granted, on the real machine.
    ///
    /// # Errors
    /// When there is no room for a directory.
    pub fn new(component: impl Into<Vec<u8>>) -> Result<Self, HarnessError> {
        let directory = tempfile::Builder::new()
            .prefix("golem-plugin-")
            .tempdir()
            .map_err(HarnessError::Directory)?;
        Ok(Self {
            component: component.into(),
            settings: serde_json::json!({}),
            asked_is_granted: true,
            grants: GrantList::default(),
            revoked: GrantList::default(),
            script: None,
            ethereum: Arc::new(NoEthereum),
            cache: None,
            limits: limits::FUNCTIONS,
            state: Arc::default(),
            directory: Arc::new(directory),
        })
    }

    /// The operator's settings: a JSON object.
    #[must_use]
    pub fn settings(mut self, settings: serde_json::Value) -> Self {
        self.settings = settings;
        self
    }

    /// Settings and grants as an operator writes them, in the form of a plugin's configuration file.
    ///
    /// # Errors
    /// When the text cannot be understood.
    pub fn configured(mut self, text: &str) -> Result<Self, HarnessError> {
        let wrong = |error: &dyn std::fmt::Display| HarnessError::Settings(error.to_string());
        let configuration: Configuration = toml::from_str(text).map_err(|error| wrong(&error))?;
        self.settings =
            serde_json::to_value(configuration.settings).map_err(|error| wrong(&error))?;
        self.grants = configuration.grants;
        self.revoked = configuration.revoked;
        Ok(self)
    }

    /// Grants beyond what the manifest asks for.
    #[must_use]
    pub fn grants(mut self, grants: GrantList) -> Self {
        self.grants = grants;
        self
    }

    /// Nothing is granted but what [`grants`](Self::grants) names, whatever the manifest asks for.
    #[must_use]
    pub fn without_asked_grants(mut self) -> Self {
        self.asked_is_granted = false;
        self
    }

    /// What programs, servers and the clock answer, instead of the machine's own.
    #[must_use]
    pub fn script(mut self, script: Script) -> Self {
        self.script = Some(Arc::new(script));
        self
    }

    /// The chains and the key that the plugin finds. Without it there are none.
    #[must_use]
    pub fn ethereum(mut self, ethereum: Arc<dyn Ethereum>) -> Self {
        self.ethereum = ethereum;
        self
    }

    /// Where compiled code is kept from one test to the next. Compiling takes a debug build seconds.
    #[must_use]
    pub fn compiled_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache = Some(directory.into());
        self
    }

    /// How long whoever calls the plugin waits, where that is less than a plugin may take in any case.
    #[must_use]
    pub fn deadlines(mut self, deadlines: &Deadlines) -> Self {
        let within = |limits: &mut CallLimits, deadline: Duration| {
            limits.deadline = limits.deadline.min(deadline);
            limits.computing = limits.computing.min(deadline);
        };
        let limits = &mut self.limits;
        within(&mut limits.look_up, deadlines.ask);
        within(&mut limits.create, deadlines.create);
        within(&mut limits.start, deadlines.start);
        within(&mut limits.await_ready, deadlines.boot);
        within(&mut limits.stop, deadlines.stop);
        within(&mut limits.delete, deadlines.delete);
        within(&mut limits.add_ssh_key, deadlines.add_key);
        self
    }

    /// No call at all takes longer than this: for tests of plugins that hang.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        let mut harness = self.deadlines(&Deadlines::all(deadline));
        let limits = &mut harness.limits;
        let advertising =
            [&mut limits.publish, &mut limits.withdraw, &mut limits.entries, &mut limits.search];
        for limits in advertising {
            limits.deadline = limits.deadline.min(deadline);
        }
        harness
    }

    /// A key that was made for this and belongs to nobody, and no chain.
    #[must_use]
    pub fn own_key(self) -> Self {
        self.ethereum(Arc::new(KeyAlone(PrivateKeySigner::random())))
    }

    /// The address of the key that the plugin finds, if it finds one.
    pub(super) fn address(&self) -> Option<String> {
        Some(self.ethereum.address()).filter(|address| address != NO_ADDRESS)
    }

    /// The chains and the key that the plugin finds.
    pub(super) fn chains(&self) -> Arc<dyn Ethereum> {
        Arc::clone(&self.ethereum)
    }

    /// Leaves [`root`](Self::root) where it is when all is over. Before anything is loaded.
    pub fn keep(&mut self) {
        if let Some(directory) = Arc::get_mut(&mut self.directory) {
            directory.disable_cleanup(true);
        }
    }

    /// Everything that is made: the plugin's directory and the compiled code.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// The plugin's durable values, which outlive [`Loaded`].
    pub fn state(&self) -> &Arc<MemoryState> {
        &self.state
    }

    /// Compiles the component, asks it what it is, and checks the settings, as a provider does. Calling it again is a provider
    /// that starts anew: directory and durable values are what they were, and nothing else is.
    ///
    /// # Errors
    /// Why a provider would not take the plugin.
    pub async fn load(&self) -> Result<Loaded, HarnessError> {
        self.load_as(Kind::VmBackend, VmComponent::new).await
    }

    /// The same for an advertiser.
    ///
    /// # Errors
    /// Why a provider would not take the plugin.
    pub async fn load_advertiser(&self) -> Result<Loaded<AdvertiserComponent>, HarnessError> {
        self.load_as(Kind::DiscoveryAdvertiser, AdvertiserComponent::new).await
    }

    /// The same for a payment verifier.
    ///
    /// # Errors
    /// Why a provider would not take the plugin.
    pub async fn load_payment_verifier(&self) -> Result<Loaded<PaymentComponent>, HarnessError> {
        self.load_as(Kind::PaymentVerifier, PaymentComponent::new).await
    }

    async fn load_as<Facade>(
        &self,
        wanted: Kind,
        facade: impl FnOnce(Arc<Plugin>) -> Facade,
    ) -> Result<Loaded<Facade>, HarnessError> {
        let component = Arc::new(self.compile().await?);
        if component.kind() != wanted {
            return Err(HarnessError::OtherKind { found: component.kind(), wanted });
        }
        let description = self.describe(&component).await?;
        self.check_settings(&description).await?;
        self.ready(component, &description, facade)
    }

    /// What the component says of itself, and its kind. It has nothing to work with.
    ///
    /// # Errors
    /// It is no plugin, or does not answer.
    pub async fn introduced(&self) -> Result<(Description, Kind), HarnessError> {
        let component = Arc::new(self.compile().await?);
        Ok((self.describe(&component).await?, component.kind()))
    }

    /// The first step of [`load`](Self::load).
    pub(super) async fn compile(&self) -> Result<PluginComponent, HarnessError> {
        let bytes = self.component.clone();
        let cache = self.cache.clone().unwrap_or_else(|| self.root().join("compiled"));
        tokio::task::spawn_blocking(move || {
            let engine = Engine::new(Some(cache))?;
            Ok(PluginComponent::load(&engine, &bytes)?)
        })
        .await?
    }

    /// The second step: in an empty directory, with neither settings nor grants.
    pub(super) async fn describe(
        &self,
        component: &Arc<PluginComponent>,
    ) -> Result<Description, HarnessError> {
        let plugin = self.bare(component, "plugin", "{}".to_owned(), "undescribed")?;
        plugin.describe().await.map_err(HarnessError::Silent)
    }

    /// The third step.
    pub(super) async fn check_settings(&self, of: &Description) -> Result<(), HarnessError> {
        schema::check_within(
            limits::CHECK_SETTINGS,
            of.settings_schema.clone(),
            self.settings.clone(),
        )
        .await
        .map_err(HarnessError::Settings)
    }

    /// The last step.
    pub(super) fn ready<Facade>(
        &self,
        component: Arc<PluginComponent>,
        description: &Description,
        facade: impl FnOnce(Arc<Plugin>) -> Facade,
    ) -> Result<Loaded<Facade>, HarnessError> {
        let manifest = Manifest::of_component(&self.component)?;
        let reviewed = self.asked_is_granted.then_some(&manifest);
        let grants =
            Grants::new(&description.name, &manifest, reviewed, &self.grants, &self.revoked)?
                .with_settings(&self.settings);
        let path = self.root().join("vms").join(plain_name(&description.name));
        let directory = PluginDirectory::open(&path).map_err(HarnessError::Directory)?;
        let services = self.services(Arc::clone(&self.state));
        let context = Arc::new(self.context(
            &description.name,
            self.settings.to_string(),
            grants,
            directory,
            services,
        ));
        // Nobody else has it yet.
        let _ = context.secrets.set(Secrets::of(&description.settings_schema, &self.settings));
        let plugin = Arc::new(Plugin::new(component, Arc::clone(&context), self.limits));
        Ok(Loaded {
            facade: facade(Arc::clone(&plugin)),
            plugin,
            description: description.clone(),
            context,
            script: self.script.clone(),
            _directory: Arc::clone(&self.directory),
        })
    }

    /// The plugin with nothing granted to it, in another directory and without durable values.
    pub(super) fn bare(
        &self,
        component: &Arc<PluginComponent>,
        name: &str,
        settings: String,
        directory: &str,
    ) -> Result<Plugin, HarnessError> {
        let path = self.root().join(directory);
        let directory = PluginDirectory::open(&path).map_err(HarnessError::Directory)?;
        let services = self.services(Arc::default());
        let context = self.context(name, settings, Grants::default(), directory, services);
        Ok(Plugin::new(Arc::clone(component), Arc::new(context), self.limits))
    }

    pub(super) fn settings_json(&self) -> String {
        self.settings.to_string()
    }

    fn services(&self, state: Arc<MemoryState>) -> Arc<Services> {
        Arc::new(Services {
            machine: Machine::this(),
            http: http::Client::default(),
            state,
            ethereum: Arc::clone(&self.ethereum),
            script: self.script.clone(),
        })
    }

    fn context(
        &self,
        name: &str,
        settings: String,
        grants: Grants,
        directory: PluginDirectory,
        services: Arc<Services>,
    ) -> PluginContext {
        PluginContext {
            name: name.to_owned(),
            grants,
            settings,
            directory: Arc::new(directory),
            fetched: Arc::default(),
            log: PluginLog::default(),
            memory: MemoryShare::default(),
            services,
            secrets: OnceLock::new(),
        }
    }
}

/// A plugin's own word for itself, as the name of a directory.
fn plain_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = name.chars().take(100).map(plain).collect();
    if name.is_empty() { "plugin".to_owned() } else { name }
}

/// A plugin that can be called, by the trait of its kind.
pub struct Loaded<Facade = VmComponent> {
    facade: Facade,
    plugin: Arc<Plugin>,
    description: Description,
    context: Arc<PluginContext>,
    script: Option<Arc<Script>>,
    _directory: Arc<TempDir>,
}

impl<Facade> std::ops::Deref for Loaded<Facade> {
    type Target = Facade;

    fn deref(&self) -> &Facade {
        &self.facade
    }
}

impl<Facade> Loaded<Facade> {
    /// Can the plugin work here?
    ///
    /// # Errors
    /// It could not be found out.
    pub async fn probe(&self) -> Result<Vec<Finding>, Failure> {
        self.plugin.probe().await
    }

    /// What the plugin says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The plugin's own directory, as it sees it under `files`.
    pub fn directory(&self) -> &Path {
        &self.context.directory.path
    }

    /// The script that it runs on, if it was given one.
    pub fn script(&self) -> Option<&Script> {
        self.script.as_deref()
    }

    /// The ids and command lines of real programs that it left running.
    ///
    /// # Errors
    /// When the machine's processes cannot be listed.
    pub fn left_running(&self) -> Result<Vec<(u32, String)>, Failure> {
        let own =
            process::own_processes(self.context.grants.programs(), &self.context.directory.path)?;
        let line = |process: super::bindings::golem::provider::process::Running| {
            (process.pid, format!("{} {}", process.program, process.arguments.join(" ")))
        };
        Ok(own.into_iter().map(line).collect())
    }
}

/// A key without a chain.
struct KeyAlone(PrivateKeySigner);

#[async_trait]
impl Ethereum for KeyAlone {
    fn address(&self) -> String {
        self.0.address().to_checksum(None)
    }

    async fn sign_message(&self, message: &[u8]) -> Result<[u8; 65], Failure> {
        let signed = self.0.sign_message_sync(message);
        let failed = |error: alloy::signers::Error| {
            Failure::new(FailureKind::Internal, format!("cannot sign: {error}"))
        };
        Ok(signed.map_err(failed)?.as_bytes())
    }

    async fn request(&self, _: &str, _: &str, _: &str) -> Result<String, ChainFailure> {
        Err(ChainFailure::Provider(no_chain()))
    }

    async fn request_all(
        &self,
        _: &str,
        _: &[(String, String)],
    ) -> Result<Vec<Result<String, RpcRefusal>>, Failure> {
        Err(no_chain())
    }

    async fn send_transaction(
        &self,
        _: &str,
        _: Transaction,
        _: Duration,
    ) -> Result<Receipt, ChainFailure> {
        Err(ChainFailure::Provider(no_chain()))
    }
}

fn no_chain() -> Failure {
    let message = "there is no chain here, as the plugin is only being tested";
    Failure::new(FailureKind::FailedPrecondition, message)
}

/// A place for progress that nobody reads.
pub fn unheard() -> ProgressSink {
    Arc::new(|_| {})
}

/// Durable values that last as long as a test.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<BTreeMap<(String, String), Vec<u8>>>);

impl MemoryState {
    fn values(&self) -> MutexGuard<'_, BTreeMap<(String, String), Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All values of all plugins, by key.
    pub fn all(&self) -> Vec<(String, Vec<u8>)> {
        self.values().iter().map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }
}

#[async_trait]
impl StateStore for MemoryState {
    async fn get(&self, plugin: &str, key: &str) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.values().get(&(plugin.into(), key.into())).cloned())
    }

    async fn set(
        &self,
        plugin: &str,
        key: &str,
        value: Vec<u8>,
        room_bytes: u64,
    ) -> Result<bool, StateError> {
        let mut values = self.values();
        let others = values.iter().filter(|((owner, other), _)| owner == plugin && other != key);
        let present: usize = others.map(|((_, other), value)| other.len() + value.len()).sum();
        let fits = (present + key.len() + value.len()) as u64 <= room_bytes;
        if fits {
            values.insert((plugin.into(), key.into()), value);
        }
        Ok(fits)
    }

    async fn delete(&self, plugin: &str, key: &str) -> Result<(), StateError> {
        self.values().remove(&(plugin.into(), key.into()));
        Ok(())
    }

    async fn keys(&self, plugin: &str, prefix: &str) -> Result<Vec<String>, StateError> {
        let values = self.values();
        let keys = values.keys().filter(|(owner, key)| owner == plugin && key.starts_with(prefix));
        Ok(keys.map(|(_, key)| key.clone()).collect())
    }
}
