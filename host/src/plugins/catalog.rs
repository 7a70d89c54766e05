//! Finds the plugins, loads them with their settings and grants, and chooses the default.
//!
//! A plugin is one of the bundled ones, or a file `NAME.wasm` in the plugin directory, which takes the place of a bundled one
//! of the same name. Beside it, or alone for a bundled one, `NAME.toml` holds what the operator has to say (see
//! `configuration`). Loading is all or nothing: compile, link, describe, check the settings, probe. Whoever asked goes on
//! with what it had when any of that fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use serde::Serialize;
use tokio::io::AsyncReadExt;

use super::{
    advertiser::Advertiser,
    advertiser_component::AdvertiserComponent,
    bundled,
    call::{MemoryShare, PluginContext, PluginDirectory},
    component::{CONTRACT, LoadError, PluginComponent},
    configuration::{Configuration, ConfigurationError, ConfigurationFile},
    engine::{Engine, EngineError},
    failure::Failure,
    harness::MemoryState,
    imports::{
        Ethereum, Machine, Services, StateStore, ethereum::NoEthereum, fetched::Fetched, http,
        log::PluginLog,
    },
    kind::Kind,
    limits,
    manifest::{Ask, Grants, Manifest, ManifestError},
    payment_component::PaymentComponent,
    payment_verifier::PaymentVerifier,
    plugin::{Description, Finding, Plugin, Severity},
    schema::{self, Secrets, Setting},
    vm_backend::VmBackend,
    vm_component::VmComponent,
};
use crate::settings::Settings;

/// Where a bundled plugin comes from.
const BUNDLED_ORIGIN: &str = "this binary";

/// Where plugins are, and what was set for them.
#[derive(Debug, Clone)]
pub struct CatalogConfig {
    /// For `NAME.wasm` and `NAME.toml`. Need not exist.
    pub plugin_dir: PathBuf,
    /// Each plugin's own directory is made in here, under its name.
    pub vm_data_dir: PathBuf,
    /// Compiled code.
    pub cache_dir: PathBuf,
    /// Single settings from the environment, by plugin and key; they win over the file.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
}

impl From<&Settings> for CatalogConfig {
    fn from(settings: &Settings) -> Self {
        Self {
            plugin_dir: settings.plugin_dir.clone(),
            vm_data_dir: settings.vm_data_dir(),
            cache_dir: settings.data_dir.join("cache").join("plugins"),
            settings: settings.plugins.clone(),
        }
    }
}

/// Loads plugins.
pub struct Catalog {
    engine: Engine,
    services: Arc<Services>,
    config: CatalogConfig,
    limits: limits::Functions,
    /// What all versions of a plugin of one name share, for as long as this process lives.
    shared: Mutex<BTreeMap<String, Shared>>,
}

/// The directory that a component is linked with.
#[derive(Clone, Copy)]
enum Workplace<'a> {
    /// That of the plugin of this name.
    Own(&'a str),
    /// One that is removed afterwards.
    Passing(&'a Path),
}

/// Two versions of a plugin work in the same directory while one takes over from the other.
#[derive(Clone)]
struct Shared {
    directory: Arc<PluginDirectory>,
    fetched: Arc<Fetched>,
}

/// Plugins cannot be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("there is no plugin `{name}`: known are {known}; others go into {directory} as `{name}.wasm`", directory = directory.display())]
    Unknown { name: String, known: String, directory: PathBuf },
    #[error(
        "{file} is larger than the {} MiB that a plugin may have", limits::COMPONENT_BYTES >> 20, file = file.display()
    )]
    TooLarge { file: PathBuf },
    #[error(
        "compiling the plugin {name} from {origin} takes longer than {} s; install another version of it", limits::COMPILE.as_secs()
    )]
    Uncompilable { name: String, origin: String },
    #[error("cannot read {file}: {source}", file = file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error(
        "the plugin {name} is switched off; to switch it on: golem-provider plugin enable {name}"
    )]
    Disabled { name: String },
    #[error("the plugin {name} from {origin} cannot be loaded: {source}")]
    Load { name: String, origin: String, source: LoadError },
    #[error("the plugin {name} from {origin}: {source}")]
    Manifest { name: String, origin: String, source: ManifestError },
    #[error("cannot make the directory {directory} for the plugin {name}: {source}", directory = directory.display())]
    Directory { name: String, directory: PathBuf, source: io::Error },
    #[error("the settings of the plugin {name} are wrong: {problem} (they are set in {file} under [settings], or as GOLEM_PROVIDER_PLUGIN_{variable}<KEY>)", file = file.display(), variable = variable_prefix(name))]
    Settings { name: String, file: PathBuf, problem: String },
    #[error("the plugin in {origin} calls itself `{found}`; its file has to be named so too")]
    OtherName { origin: String, found: String },
    #[error(
        "the manifest of the plugin in {origin} says that its {what} is `{stated}`, and the plugin itself says `{found}`; build and pack it anew, or get it anew"
    )]
    Disagrees { origin: String, what: &'static str, stated: String, found: String },
    #[error("the plugin {name} does not answer: {source}")]
    Silent { name: String, source: Failure },
    #[error("loading the plugin {name} was broken off: {source}")]
    BrokenOff { name: String, source: tokio::task::JoinError },
}

/// How a plugin's settings begin in the environment, after what all plugins have in common.
fn variable_prefix(name: &str) -> String {
    let end = if name.contains('-') { "__" } else { "_" };
    name.to_uppercase().replace('-', "_") + end
}

/// A loaded plugin and what its probe said.
#[derive(Clone)]
pub struct Probed {
    pub plugin: Loaded,
    pub about: About,
    pub findings: Vec<Finding>,
}

/// A loaded plugin, behind the trait of its kind.
#[derive(Clone)]
pub enum Loaded {
    VmBackend(Arc<dyn VmBackend>),
    Advertiser(Arc<dyn Advertiser>),
    PaymentVerifier(Arc<dyn PaymentVerifier>),
}

impl Loaded {
    fn new(plugin: Plugin) -> Self {
        let plugin = Arc::new(plugin);
        match plugin.kind() {
            Kind::VmBackend => Self::VmBackend(Arc::new(VmComponent::new(plugin))),
            Kind::DiscoveryAdvertiser => {
                Self::Advertiser(Arc::new(AdvertiserComponent::new(plugin)))
            }
            Kind::PaymentVerifier => Self::PaymentVerifier(Arc::new(PaymentComponent::new(plugin))),
        }
    }
}

/// What is known of a plugin that was loaded.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    pub name: String,
    pub version: String,
    pub kind: Kind,
    pub summary: String,
    pub license: String,
    /// The version of the contract that it was made for.
    pub contract: &'static str,
    /// Of the component, as hex.
    pub sha256: String,
    /// Where the component comes from, for people.
    pub origin: String,
    /// All that it asks for.
    pub asks: Vec<Ask>,
    /// What of that is not granted.
    pub missing: Vec<Ask>,
    /// Absent where nothing of the component was run and its manifest does not say.
    #[serde(skip)]
    pub settings_schema: Option<String>,
}

/// By whom a component is introduced.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Introduced {
    /// By its own `describe`, with which its manifest has to agree.
    ByItself,
    /// By its manifest, as far as it has one that says who it is: then none of its code runs.
    ByManifest,
}

/// A component's bytes and where they are from.
#[derive(Clone)]
pub(super) struct Source {
    pub origin: String,
    pub bytes: Vec<u8>,
}

impl Probed {
    /// Can it work on this machine?
    pub fn works(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Blocking)
    }
}

impl Catalog {
    /// Sets the engine up. Blocks shortly.
    pub fn new(
        config: CatalogConfig,
        state: Arc<dyn StateStore>,
        ethereum: Arc<dyn Ethereum>,
    ) -> Result<Self, CatalogError> {
        let engine = Engine::new(Some(config.cache_dir.clone()))?;
        let services = Arc::new(Services {
            machine: Machine::this(),
            http: http::Client::default(),
            state,
            ethereum,
            script: None,
        });
        let shared = Mutex::default();
        Ok(Self { engine, services, config, limits: limits::FUNCTIONS, shared })
    }

    /// For a look at plugins where no provider runs: there is neither chain nor key, and what a plugin keeps is forgotten.
    ///
    /// # Errors
    /// The engine cannot be set up.
    pub fn offline(config: CatalogConfig) -> Result<Self, CatalogError> {
        Self::new(config, Arc::new(MemoryState::default()), Arc::new(NoEthereum))
    }

    /// For tests of what happens when a call takes too long.
    #[cfg(test)]
    pub(super) fn limits_mut(&mut self) -> &mut limits::Functions {
        &mut self.limits
    }

    /// The names of all plugins there are: the bundled ones in their order, then those of the directory.
    pub async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            bundled::BUNDLED.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut found = BTreeSet::new();
        // A directory that is not there or cannot be read holds no plugins; loading one by name says why.
        if let Ok(mut entries) = tokio::fs::read_dir(&self.config.plugin_dir).await {
            while let Ok(Some(entry)) = entries.next_entry().await {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "wasm")
                    && let Some(name) = path.file_stem().and_then(|name| name.to_str())
                {
                    found.insert(name.to_owned());
                }
            }
        }
        found.retain(|name| !names.contains(name));
        names.extend(found);
        names
    }

    /// Where `NAME.wasm` and `NAME.toml` are.
    pub fn plugin_dir(&self) -> &Path {
        &self.config.plugin_dir
    }

    /// Loads a plugin by name, checks its settings, and asks whether it can work here.
    pub async fn load_named(&self, name: &str) -> Result<Probed, PluginError> {
        let configuration = self.configuration(name).await?;
        if !configuration.is_enabled() {
            return Err(PluginError::Disabled { name: name.to_owned() });
        }
        let source = self.component_file(name).await?;
        self.load(name, source, configuration).await
    }

    /// What the operator says about a plugin.
    pub(super) async fn configuration(&self, name: &str) -> Result<Configuration, PluginError> {
        let file = ConfigurationFile::of(&self.config.plugin_dir, name);
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let read =
            read.map_err(|source| PluginError::BrokenOff { name: name.to_owned(), source })?;
        Ok(read?)
    }

    /// Loads a component as the plugin `name`, under a configuration that need not be on the disk yet.
    pub(super) async fn load(
        &self,
        name: &str,
        source: Source,
        configuration: Configuration,
    ) -> Result<Probed, PluginError> {
        let by_itself = Introduced::ByItself;
        let (plugin, about, settings) =
            self.link(Some(name), Workplace::Own(name), source, configuration, by_itself).await?;
        let wrong_settings = |problem| PluginError::Settings {
            name: name.to_owned(),
            file: ConfigurationFile::of(&self.config.plugin_dir, name).path().to_owned(),
            problem,
        };
        let schema = about.settings_schema.clone().unwrap_or_default();
        schema::check_within(limits::CHECK_SETTINGS, schema, settings)
            .await
            .map_err(wrong_settings)?;
        tracing::debug!(
            plugin.name = %name,
            "loaded {name} {} from {} ({}): {}",
            about.version,
            about.origin,
            about.license,
            about.summary
        );
        let silent = |source| PluginError::Silent { name: name.to_owned(), source };
        let findings = plugin.probe().await.map_err(silent)?;
        Ok(Probed { plugin: Loaded::new(plugin), about, findings })
    }

    /// What a component is and asks for. Nothing of it runs but its `describe`, which needs nothing, and that only where its
    /// manifest does not say who it is.
    pub(super) async fn examine(&self, source: Source) -> Result<About, PluginError> {
        self.describe_as(None, source, Configuration::default(), Introduced::ByManifest).await
    }

    /// Everything that can be set for a plugin, and what is set.
    ///
    /// # Errors
    /// There is no such plugin, or it cannot say what can be set.
    pub async fn settings_of(&self, name: &str) -> Result<Vec<Setting>, PluginError> {
        let configuration = self.configuration(name).await?;
        let file = ConfigurationFile::of(&self.config.plugin_dir, name).path().to_owned();
        let source = self.component_file(name).await?;
        let settings = self.settings(name, configuration.settings.clone()).map_err(|problem| {
            PluginError::Settings { name: name.to_owned(), file: file.clone(), problem }
        })?;
        let about =
            self.describe_as(Some(name), source, configuration, Introduced::ByItself).await?;
        let variables = self.variables(name);
        let origin = |key: &str| {
            Some(match variables.is_some_and(|variables| variables.contains_key(key)) {
                true => "the environment".to_owned(),
                false => file.display().to_string(),
            })
        };
        Ok(schema::listed(&about.settings_schema.unwrap_or_default(), &settings, origin))
    }

    /// What a component is, and what it would have as the plugin `name` under this configuration. It gets nothing to work
    /// with: a provider that runs may be at work in its directory.
    pub(super) async fn describe_as(
        &self,
        name: Option<&str>,
        source: Source,
        configuration: Configuration,
        introduced: Introduced,
    ) -> Result<About, PluginError> {
        let passing = passing_directory(self.config.cache_dir.clone()).await;
        let directory = passing.map_err(|error| PluginError::Directory {
            name: name.map_or_else(|| stem(&source.origin), str::to_owned),
            directory: self.config.cache_dir.clone(),
            source: error,
        })?;
        let passing = Workplace::Passing(directory.path());
        Ok(self.link(name, passing, source, configuration, introduced).await?.1)
    }

    /// Compiles, links and introduces.
    async fn link(
        &self,
        name: Option<&str>,
        workplace: Workplace<'_>,
        source: Source,
        configuration: Configuration,
        introduced: Introduced,
    ) -> Result<(Plugin, About, serde_json::Value), PluginError> {
        let Source { origin, bytes } = source;
        // What is not known by name yet is called as its file is.
        let file_name = name.map_or_else(|| stem(&origin), str::to_owned);
        let manifest_error = |source| PluginError::Manifest {
            name: file_name.clone(),
            origin: origin.clone(),
            source,
        };
        let manifest = Manifest::of_component(&bytes).map_err(manifest_error)?;
        let reviewed = name
            .and_then(bundled::find)
            .map(Manifest::of_component)
            .transpose()
            .map_err(manifest_error)?;
        let grants = Grants::new(
            &file_name,
            &manifest,
            reviewed.as_ref(),
            &configuration.grants,
            &configuration.revoked,
        )
        .map_err(manifest_error)?;
        let settings = self.settings(&file_name, configuration.settings).map_err(|problem| {
            PluginError::Settings {
                name: file_name.clone(),
                file: ConfigurationFile::of(&self.config.plugin_dir, &file_name).path().to_owned(),
                problem,
            }
        })?;
        let grants = grants.with_settings(&settings);
        let shared = match workplace {
            Workplace::Own(name) => self.shared(name).await?,
            Workplace::Passing(directory) => {
                open_directory(&file_name, directory.to_owned()).await?
            }
        };
        let asks = manifest.asks();
        let missing = grants.missing(&asks);
        let sha256 = super::installation::sha256_of(&bytes);
        let engine = self.engine.clone();
        let loading = tokio::task::spawn_blocking(move || PluginComponent::load(&engine, &bytes));
        // The compiler cannot be stopped; it ends by itself, and nobody waits for it.
        let loaded = tokio::time::timeout(limits::COMPILE, loading).await.map_err(|_| {
            PluginError::Uncompilable { name: file_name.clone(), origin: origin.clone() }
        })?;
        let component = loaded
            .map_err(|source| PluginError::BrokenOff { name: file_name.clone(), source })?
            .map_err(|source| PluginError::Load {
                name: file_name.clone(),
                origin: origin.clone(),
                source,
            })?;
        let context = PluginContext {
            name: file_name.clone(),
            grants,
            settings: settings.to_string(),
            directory: shared.directory,
            fetched: shared.fetched,
            log: PluginLog::default(),
            memory: MemoryShare::default(),
            services: Arc::clone(&self.services),
            secrets: OnceLock::new(),
        };
        let context = Arc::new(context);
        let plugin = Plugin::new(component, Arc::clone(&context), self.limits);
        let stated = manifest.description();
        let (description, schema) = match stated.as_ref() {
            Some(stated) if introduced == Introduced::ByManifest => {
                let schema = manifest.identity().and_then(|stated| stated.settings_schema.clone());
                (stated.clone(), schema)
            }
            _ => {
                let silent = |source| PluginError::Silent { name: file_name.clone(), source };
                let description = plugin.describe().await.map_err(silent)?;
                if let Some(stated) = &stated {
                    agree(&origin, stated, &description)?;
                }
                let schema = Some(description.settings_schema.clone());
                (description, schema)
            }
        };
        if let Some(identity) = manifest.identity()
            && identity.kind != plugin.kind().world()
        {
            let (stated, found) = (identity.kind.clone(), plugin.kind().world().to_owned());
            let stated = super::text::plain(&stated, limits::NAME_BYTES);
            return Err(PluginError::Disagrees { origin, what: "kind", stated, found });
        }
        // Nothing was given to the plugin to tell before this.
        let _ = context.secrets.set(Secrets::of(schema.as_deref().unwrap_or_default(), &settings));
        if let Some(name) = name
            && description.name != name
        {
            return Err(PluginError::OtherName { origin, found: description.name });
        }
        let about = About {
            name: description.name,
            version: description.version,
            kind: plugin.kind(),
            summary: description.summary,
            license: description.license,
            contract: CONTRACT,
            sha256,
            origin,
            asks,
            missing,
            settings_schema: schema,
        };
        Ok((plugin, about, settings))
    }

    /// The plugin's directory, opened once: what was half written when the provider died is cleared away then, and never
    /// while another version of the plugin works there.
    async fn shared(&self, name: &str) -> Result<Shared, PluginError> {
        let known = |shared: &BTreeMap<String, Shared>| shared.get(name).cloned();
        if let Some(shared) = known(&self.shared.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(shared);
        }
        let opened = open_directory(name, self.config.vm_data_dir.join(name)).await?;
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(shared.entry(name.to_owned()).or_insert(opened).clone())
    }

    /// The component that counts for this name.
    pub(super) async fn component_file(&self, name: &str) -> Result<Source, PluginError> {
        let file = self.config.plugin_dir.join(format!("{name}.wasm"));
        match read_bounded(&file, limits::COMPONENT_BYTES).await {
            Ok(None) => Err(PluginError::TooLarge { file }),
            Ok(Some(bytes)) => Ok(Source { origin: file.display().to_string(), bytes }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match bundled::find(name) {
                Some(bytes) => Ok(Source { origin: BUNDLED_ORIGIN.into(), bytes: bytes.to_vec() }),
                None => Err(PluginError::Unknown {
                    name: name.to_owned(),
                    known: self.names().await.join(", "),
                    directory: self.config.plugin_dir.clone(),
                }),
            },
            Err(source) => Err(PluginError::Read { file, source }),
        }
    }

    /// What the environment says about a plugin.
    fn variables(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        let settings = &self.config.settings;
        settings.get(&name.replace('-', "_")).or_else(|| settings.get(name))
    }

    /// The file's settings with those of the environment over them.
    fn settings(&self, name: &str, file: toml::Table) -> Result<serde_json::Value, String> {
        let mut settings = serde_json::to_value(file).map_err(|error| error.to_string())?;
        if let (Some(object), Some(single)) = (settings.as_object_mut(), self.variables(name)) {
            for (key, text) in single {
                // `64` and `true` are a number and a truth value; what is no JSON is a text.
                let value = serde_json::from_str(text).unwrap_or_else(|_| text.clone().into());
                object.insert(key.clone(), value);
            }
        }
        Ok(settings)
    }
}

/// The name of a file without its directory and its end.
fn stem(origin: &str) -> String {
    let stem = Path::new(origin).file_stem();
    super::text::plain(&stem.unwrap_or_default().to_string_lossy(), limits::NAME_BYTES)
}

/// What a component's manifest states has to be what the component says.
fn agree(origin: &str, stated: &Description, found: &Description) -> Result<(), PluginError> {
    let both = [("name", &stated.name, &found.name), ("version", &stated.version, &found.version)];
    match both.into_iter().find(|(_, stated, found)| stated != found) {
        None => Ok(()),
        Some((what, stated, found)) => Err(PluginError::Disagrees {
            origin: origin.to_owned(),
            what,
            stated: stated.clone(),
            found: found.clone(),
        }),
    }
}

/// An empty one, which is gone with the value: also when what needs it is broken off.
async fn passing_directory(parent: PathBuf) -> std::io::Result<tempfile::TempDir> {
    let made = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&parent)?;
        tempfile::Builder::new().prefix("examined-").tempdir_in(parent)
    });
    made.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

async fn open_directory(name: &str, directory: PathBuf) -> Result<Shared, PluginError> {
    let path = directory.clone();
    let opened = tokio::task::spawn_blocking(move || PluginDirectory::open(&path))
        .await
        .map_err(|source| PluginError::BrokenOff { name: name.to_owned(), source })?
        .map_err(|source| PluginError::Directory { name: name.to_owned(), directory, source })?;
    Ok(Shared { directory: Arc::new(opened), fetched: Arc::default() })
}

/// A component that somebody wants to install.
pub(super) async fn read_component(file: &Path) -> Result<Source, PluginError> {
    match read_bounded(file, limits::COMPONENT_BYTES).await {
        Ok(Some(bytes)) => Ok(Source { origin: file.display().to_string(), bytes }),
        Ok(None) => Err(PluginError::TooLarge { file: file.to_owned() }),
        Err(source) => Err(PluginError::Read { file: file.to_owned(), source }),
    }
}

/// The whole file; absent if it is larger than that.
async fn read_bounded(file: &Path, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(file).await?;
    file.take(most_bytes + 1).read_to_end(&mut bytes).await?;
    Ok((bytes.len() as u64 <= most_bytes).then_some(bytes))
}
