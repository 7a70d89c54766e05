//! Finds the plugins, loads them with their settings and grants, and chooses the default.
//!
//! A plugin is one of the bundled ones, or a file `NAME.wasm` in the plugin directory, which takes the place of a bundled one
//! of the same name. Beside it, or alone for a bundled one, `NAME.toml` holds what the operator has to say:
//!
//! ```toml
//! [settings]              # the plugin's own settings, checked against its schema
//! accelerator = "tcg"
//!
//! [grants]                # what it may use beyond what comes with a bundled plugin
//! files = ["/srv/images/"]
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::{
    bundled,
    call::{MemoryShare, PluginContext, PluginDirectory},
    component::{LoadError, PluginComponent},
    engine::{Engine, EngineError},
    imports::{Machine, Services, StateStore, http, log::PluginLog},
    limits,
    manifest::{GrantList, Grants, Manifest, ManifestError},
    text,
    vm_backend::{BackendError, VmBackend},
    vm_component::{Finding, Severity, VmComponent},
};

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

/// Loads plugins.
pub struct Catalog {
    engine: Engine,
    services: Arc<Services>,
    config: CatalogConfig,
    limits: limits::Functions,
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
    #[error("{file} is wrong: {source}", file = file.display())]
    Configuration { file: PathBuf, source: Box<toml::de::Error> },
    #[error("the plugin {name} from {origin} cannot be loaded: {source}")]
    Load { name: String, origin: String, source: LoadError },
    #[error("the plugin {name} from {origin}: {source}")]
    Manifest { name: String, origin: String, source: ManifestError },
    #[error("cannot make the directory {directory} for the plugin {name}: {source}", directory = directory.display())]
    Directory { name: String, directory: PathBuf, source: io::Error },
    #[error("the settings of the plugin {name} are wrong: {problem} (they are set in {file} under [settings], or as GOLEM_PROVIDER_PLUGIN_{variable}_<KEY>)", file = file.display(), variable = name.to_uppercase().replace('-', "_"))]
    Settings { name: String, file: PathBuf, problem: String },
    #[error("the plugin in {origin} calls itself `{found}`; its file has to be named so too")]
    OtherName { origin: String, found: String },
    #[error("the plugin {name} does not answer: {source}")]
    Silent { name: String, source: BackendError },
    #[error("loading the plugin {name} was broken off: {source}")]
    BrokenOff { name: String, source: tokio::task::JoinError },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PluginFile {
    settings: toml::Table,
    grants: GrantList,
}

/// A loaded VM backend and what its probe said.
#[derive(Clone)]
pub struct ProbedBackend {
    pub backend: Arc<dyn VmBackend>,
    pub version: String,
    pub findings: Vec<Finding>,
}

impl ProbedBackend {
    /// Can it work on this machine?
    pub fn works(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Blocking)
    }
}

impl Catalog {
    /// Sets the engine up. Blocks shortly.
    pub fn new(config: CatalogConfig, state: Arc<dyn StateStore>) -> Result<Self, CatalogError> {
        let engine = Engine::new(Some(config.cache_dir.clone()))?;
        let services = Arc::new(Services {
            machine: Machine::this(),
            http: http::Client::default(),
            state,
            script: None,
        });
        Ok(Self { engine, services, config, limits: limits::FUNCTIONS })
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

    /// Loads a VM backend by name, checks its settings, and asks whether it can work here.
    pub async fn load_vm_backend(&self, name: &str) -> Result<ProbedBackend, PluginError> {
        let (origin, bytes) = self.component_file(name).await?;
        let configuration_file = self.config.plugin_dir.join(format!("{name}.toml"));
        let file = read_configuration(&configuration_file).await?;
        let manifest_error = |source| PluginError::Manifest {
            name: name.to_owned(),
            origin: origin.clone(),
            source,
        };
        let manifest = Manifest::of_component(&bytes).map_err(manifest_error)?;
        let reviewed =
            bundled::find(name).map(Manifest::of_component).transpose().map_err(manifest_error)?;
        let grants =
            Grants::new(&manifest, reviewed.as_ref(), &file.grants, configuration_file.clone())
                .map_err(manifest_error)?;
        let settings =
            self.settings(name, file.settings).map_err(|problem| PluginError::Settings {
                name: name.to_owned(),
                file: configuration_file.clone(),
                problem,
            })?;
        let directory = self.config.vm_data_dir.join(name);
        let engine = self.engine.clone();
        let opened = directory.clone();
        let loading = tokio::task::spawn_blocking(move || {
            (PluginComponent::load(&engine, &bytes), PluginDirectory::open(&opened))
        });
        // The compiler cannot be stopped; it ends by itself, and nobody waits for it.
        let loaded = tokio::time::timeout(limits::COMPILE, loading).await.map_err(|_| {
            PluginError::Uncompilable { name: name.to_owned(), origin: origin.clone() }
        })?;
        let (component, directory) = loaded
            .map_err(|source| PluginError::BrokenOff { name: name.to_owned(), source })
            .map(|(component, opened)| (component, opened.map_err(|source| (directory, source))))?;
        let component = component.map_err(|source| PluginError::Load {
            name: name.to_owned(),
            origin: origin.clone(),
            source,
        })?;
        let directory = directory.map_err(|(directory, source)| PluginError::Directory {
            name: name.to_owned(),
            directory,
            source,
        })?;
        let context = PluginContext {
            name: name.to_owned(),
            grants,
            settings: settings.to_string(),
            directory,
            downloads: http::Downloads::default(),
            log: PluginLog::default(),
            memory: MemoryShare::default(),
            services: Arc::clone(&self.services),
        };
        let backend = VmComponent::new(component, Arc::new(context), self.limits);
        let silent = |source| PluginError::Silent { name: name.to_owned(), source };
        let description = backend.describe().await.map_err(silent)?;
        if description.name != name {
            return Err(PluginError::OtherName { origin, found: description.name });
        }
        check_settings_within(limits::CHECK_SETTINGS, description.settings_schema, settings)
            .await
            .map_err(|problem| PluginError::Settings {
                name: name.to_owned(),
                file: configuration_file,
                problem,
            })?;
        tracing::debug!(
            plugin.name = %name,
            "loaded {name} {} from {origin} ({}): {}",
            description.version,
            description.license,
            description.summary
        );
        let findings = backend.probe().await.map_err(silent)?;
        Ok(ProbedBackend { backend: Arc::new(backend), version: description.version, findings })
    }

    async fn component_file(&self, name: &str) -> Result<(String, Vec<u8>), PluginError> {
        let file = self.config.plugin_dir.join(format!("{name}.wasm"));
        match read_bounded(&file, limits::COMPONENT_BYTES).await {
            Ok(None) => Err(PluginError::TooLarge { file }),
            Ok(Some(bytes)) => Ok((file.display().to_string(), bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match bundled::find(name) {
                Some(bytes) => Ok(("this binary".into(), bytes.to_vec())),
                None => Err(PluginError::Unknown {
                    name: name.to_owned(),
                    known: self.names().await.join(", "),
                    directory: self.config.plugin_dir.clone(),
                }),
            },
            Err(source) => Err(PluginError::Read { file, source }),
        }
    }

    /// The file's settings with those of the environment over them.
    fn settings(&self, name: &str, file: toml::Table) -> Result<serde_json::Value, String> {
        let mut settings = serde_json::to_value(file).map_err(|error| error.to_string())?;
        let single = self
            .config
            .settings
            .get(&name.replace('-', "_"))
            .or_else(|| self.config.settings.get(name));
        if let (Some(object), Some(single)) = (settings.as_object_mut(), single) {
            for (key, text) in single {
                // `64` and `true` are a number and a truth value; what is no JSON is a text.
                let value = serde_json::from_str(text).unwrap_or_else(|_| text.clone().into());
                object.insert(key.clone(), value);
            }
        }
        Ok(settings)
    }
}

/// The whole file; absent if it is larger than that.
async fn read_bounded(file: &Path, most_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(file).await?;
    file.take(most_bytes + 1).read_to_end(&mut bytes).await?;
    Ok((bytes.len() as u64 <= most_bytes).then_some(bytes))
}

async fn read_configuration(file: &Path) -> Result<PluginFile, PluginError> {
    match tokio::fs::read_to_string(file).await {
        Ok(text) => toml::from_str(&text).map_err(|source| PluginError::Configuration {
            file: file.to_owned(),
            source: Box::new(source),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(PluginFile::default()),
        Err(source) => Err(PluginError::Read { file: file.to_owned(), source }),
    }
}

/// Checks on a thread of its own, which is left to itself if it takes too long: nothing can end it, and a runtime would wait
/// for it.
pub(super) async fn check_settings_within(
    limit: Duration,
    schema: String,
    settings: serde_json::Value,
) -> Result<(), String> {
    let (answer, checked) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("plugin-settings".into())
        .spawn(move || answer.send(check_settings(&schema, &settings)))
        .map_err(|error| format!("no thread could be started to check them: {error}"))?;
    match tokio::time::timeout(limit, checked).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            Err("the plugin's schema broke the check, which is a fault of the plugin".into())
        }
        Err(_) => Err(format!(
            "checking them takes longer than {} s, which is a fault of the plugin's schema",
            limit.as_secs_f32()
        )),
    }
}

/// All that is wrong, in one line.
fn check_settings(schema: &str, settings: &serde_json::Value) -> Result<(), String> {
    let schema = serde_json::from_str(schema).map_err(|error| {
        text::plain(
            &format!("the plugin's schema is no JSON, which is a fault of the plugin: {error}"),
            limits::TEXT_BYTES,
        )
    })?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| {
        text::plain(
            &format!("the plugin's schema is wrong, which is a fault of the plugin: {error}"),
            limits::TEXT_BYTES,
        )
    })?;
    let problems: Vec<String> = validator
        .iter_errors(settings)
        .map(|error| match error.instance_path().to_string() {
            path if path.is_empty() => error.to_string(),
            path => format!("{}: {error}", path.trim_start_matches('/').replace('/', ".")),
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_settings_are_named_with_their_place() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": { "accelerator": { "enum": ["auto", "kvm", "tcg"] }, "tb": { "type": "integer" } }
        })
        .to_string();
        assert!(check_settings(&schema, &json!({"accelerator": "tcg", "tb": 64})).is_ok());
        let problems =
            check_settings(&schema, &json!({"accelerator": "xen", "tb": "x"})).unwrap_err();
        assert!(problems.contains("accelerator: ") && problems.contains("tb: "), "{problems}");
        assert!(check_settings(&schema, &json!({"speed": 1})).unwrap_err().contains("speed"));
    }

    #[tokio::test]
    async fn a_schema_that_multiplies_itself_does_not_hold_the_provider() {
        // Each level is tried twice, and the last one never fits.
        let levels = (0..22).map(|level| {
            let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
            (level.to_string(), json!({ "anyOf": [next.clone(), next] }))
        });
        let mut levels: serde_json::Map<String, serde_json::Value> = levels.collect();
        levels.insert("22".into(), json!(false));
        let schema = json!({ "$ref": "#/$defs/0", "$defs": levels }).to_string();
        let limit = Duration::from_millis(10);
        let problem = check_settings_within(limit, schema, json!({})).await.unwrap_err();
        assert!(problem.contains("takes longer than 0.01 s"), "{problem}");
    }
}
