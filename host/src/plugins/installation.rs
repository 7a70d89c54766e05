//! Installing, removing, granting: what an operator does to the plugin directory, each a change that is whole or not made.
//!
//! A component is loaded as it will run, under the grants that it will have, before anything on the disk is changed. Called by
//! the command line where no provider runs, and by `admin` where one does, so that both do the same.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use super::manifest::GrantKind;
use super::{
    bundled,
    catalog::{About, Catalog, Introduced, PluginError, Probed, read_component},
    configuration::{ConfigurationError, ConfigurationFile, Editor, GrantTable, Installed},
    imports::locate,
    kind::Kind,
    manifest::{Ask, Pin, ProgramGrant},
    plugin::Finding,
};
use crate::whole_file;

/// One thing to be granted or revoked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grant {
    pub kind: GrantKind,
    /// A program's name or path, an origin, a path, a chain, a contract; `true` for what is granted or not.
    pub value: String,
}

impl From<&Ask> for Grant {
    fn from(ask: &Ask) -> Self {
        Self { kind: ask.kind, value: ask.value.clone() }
    }
}

/// A change was not made.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error("`{0}` is no plugin's name, which has 1 to 64 lower-case letters, digits and dashes")]
    Name(String),
    #[error("the plugin {name} cannot work on this machine: {}", findings.join("; "))]
    Blocked { name: String, findings: Vec<String> },
    #[error("the program `{program}` cannot be granted: {source}")]
    Program { program: String, source: io::Error },
    #[error("cannot write {file}: {source}", file = file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error(
        "the plugin {0} comes with the provider and cannot be removed; to switch it off: golem-provider plugin disable {0}"
    )]
    Bundled(String),
    #[error("there is no plugin `{name}` to remove in {directory}", directory = directory.display())]
    NotInstalled { name: String, directory: PathBuf },
    #[error("{file} is another file than the one that was shown; look at it and install it again", file = .0.display())]
    Another(PathBuf),
    #[error("the change was broken off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// One plugin in a list, whether it can be loaded or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    pub name: String,
    /// `bundled`, or the file.
    pub origin: String,
    pub enabled: bool,
    pub version: Option<String>,
    pub kind: Option<Kind>,
    pub summary: Option<String>,
    pub license: Option<String>,
    pub sha256: Option<String>,
    /// What it asks for and does not have, as `kind value`.
    pub not_granted: Vec<String>,
    /// Why it cannot be used, if it cannot.
    pub problem: Option<String>,
}

impl Catalog {
    /// Every plugin there is, described without being probed.
    pub async fn list(&self) -> Vec<Listed> {
        let mut listed = Vec::new();
        for name in self.names().await {
            listed.push(self.listed(&name).await);
        }
        listed
    }

    /// One plugin, as in the list.
    pub async fn listed(&self, name: &str) -> Listed {
        let file = self.plugin_dir().join(format!("{name}.wasm"));
        let from_file = tokio::fs::try_exists(&file).await.unwrap_or(false);
        let (about, enabled, problem) = match self.describe(name).await {
            Ok((about, enabled)) => (Some(about), enabled, None),
            Err(error) => (None, true, Some(error.to_string())),
        };
        let about = about.as_ref();
        Listed {
            name: name.to_owned(),
            origin: if from_file { file.display().to_string() } else { "bundled".to_owned() },
            enabled,
            version: about.map(|about| about.version.clone()),
            kind: about.map(|about| about.kind),
            summary: about.map(|about| about.summary.clone()),
            license: about.map(|about| about.license.clone()),
            sha256: about.map(|about| about.sha256.clone()),
            not_granted: about.map_or_else(Vec::new, |about| {
                about.missing.iter().map(|ask| ask.kind.arguments(&ask.value)).collect()
            }),
            problem,
        }
    }

    /// Changes whenever a plugin's component or configuration does. Absent where there is no component of that name.
    pub async fn fingerprint(&self, name: &str) -> Option<[u8; 32]> {
        let source = self.component_file(name).await.ok()?;
        let file = ConfigurationFile::of(self.plugin_dir(), name);
        let configuration = tokio::fs::read(file.path()).await.unwrap_or_default();
        let digest = Sha256::new()
            .chain_update(Sha256::digest(&source.bytes))
            .chain_update(configuration)
            .finalize();
        Some(digest.into())
    }

    /// What a plugin of the catalog is, and whether it is switched on.
    async fn describe(&self, name: &str) -> Result<(About, bool), PluginError> {
        let configuration = self.configuration(name).await?;
        let enabled = configuration.is_enabled();
        let source = self.component_file(name).await?;
        let by_itself = Introduced::ByItself;
        Ok((self.describe_as(Some(name), source, configuration, by_itself).await?, enabled))
    }

    /// What a file that might be installed is, and what of its asks would still have to be granted. None of its code runs
    /// where its manifest says who it is.
    ///
    /// # Errors
    /// It is no plugin that fits this provider.
    pub async fn inspect(&self, file: &Path) -> Result<About, InstallError> {
        let source = read_component(file).await?;
        let mut about = self.examine(source.clone()).await?;
        check_name(&about.name)?;
        let configuration = self.configuration(&about.name).await?;
        let by_manifest = Introduced::ByManifest;
        let described =
            self.describe_as(Some(&about.name), source, configuration, by_manifest).await?;
        about.missing = described.missing;
        Ok(about)
    }

    /// Puts a component into the plugin directory with these grants besides those it has. It is loaded and probed before;
    /// when anything is wrong, nothing has changed. `sha256` is that of the component which the grants were given to.
    ///
    /// # Errors
    /// See [`InstallError`].
    pub async fn install(
        &self,
        file: &Path,
        sha256: &str,
        grants: &[Grant],
    ) -> Result<Probed, InstallError> {
        // Read once: what is looked at is what is loaded and written.
        let source = read_component(file).await?;
        if sha256_of(&source.bytes) != sha256 {
            return Err(InstallError::Another(file.to_owned()));
        }
        let name = self.examine(source.clone()).await?.name;
        check_name(&name)?;
        let mut configuration = self.configuration(&name).await?;
        let pins = pins(grants).await?;
        for (grant, pin) in grants.iter().zip(&pins) {
            add_to(&mut configuration.grants, grant, pin.as_ref());
        }
        configuration.enabled = Some(true);
        let bytes = source.bytes.clone();
        let loaded = self.load(&name, source, configuration).await?;
        refuse_blocked(&name, &loaded)?;

        let installed = Installed {
            version: loaded.about.version.clone(),
            sha256: loaded.about.sha256.clone(),
        };
        let configuration_file = ConfigurationFile::of(self.plugin_dir(), &name);
        let component_file = self.plugin_dir().join(format!("{name}.wasm"));
        let grants = grants.to_vec();
        tokio::task::spawn_blocking(move || -> Result<(), InstallError> {
            configuration_file.edit(|editor| {
                editor.set_enabled(true);
                editor.set_installed(&installed);
                grant_all(editor, &grants, &pins)
            })?;
            whole_file::replace(&component_file, &bytes)
                .map_err(|source| InstallError::Write { file: component_file, source })
        })
        .await??;
        Ok(loaded)
    }

    /// Takes an installed component out of the plugin directory. Its settings and grants stay, so that it can come back; a
    /// bundled one of the same name counts again.
    ///
    /// # Errors
    /// There is none, or it cannot be removed.
    pub async fn remove(&self, name: &str) -> Result<(), InstallError> {
        check_name(name)?;
        let directory = self.plugin_dir().to_owned();
        let file = directory.join(format!("{name}.wasm"));
        match tokio::fs::remove_file(&file).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match bundled::find(name) {
                    Some(_) => InstallError::Bundled(name.to_owned()),
                    None => InstallError::NotInstalled { name: name.to_owned(), directory },
                });
            }
            Err(source) => return Err(InstallError::Write { file, source }),
        }
        self.edit(name, |editor| {
            editor.forget_installed();
            Ok(())
        })
        .await
    }

    /// Switches a plugin on or off, from the next load on.
    ///
    /// # Errors
    /// There is none of that name, or its configuration cannot be written.
    pub async fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), InstallError> {
        check_name(name)?;
        self.component_file(name).await?;
        self.edit(name, move |editor| {
            editor.set_enabled(enabled);
            Ok(())
        })
        .await
    }

    /// Grants, from the next load on. A program is granted as the file that its name leads to now.
    ///
    /// # Errors
    /// There is no plugin of that name, no such program, or the configuration cannot be written.
    pub async fn grant(&self, name: &str, grants: &[Grant]) -> Result<(), InstallError> {
        check_name(name)?;
        self.component_file(name).await?;
        let pins = pins(grants).await?;
        let grants = grants.to_vec();
        self.edit(name, move |editor| {
            for grant in &grants {
                editor.remove(GrantTable::Revoked, grant.kind, &name_of(grant))?;
            }
            grant_all(editor, &grants, &pins)
        })
        .await
    }

    /// Takes grants away, from the next load on; also those that come with a bundled plugin.
    ///
    /// # Errors
    /// There is no plugin of that name, or its configuration cannot be written.
    pub async fn revoke(&self, name: &str, grants: &[Grant]) -> Result<(), InstallError> {
        check_name(name)?;
        self.component_file(name).await?;
        let grants = grants.to_vec();
        let is_bundled = bundled::find(name).is_some();
        self.edit(name, move |editor| {
            for grant in &grants {
                let (kind, value) = (grant.kind, name_of(grant));
                editor.remove(GrantTable::Granted, kind, &value)?;
                if is_bundled {
                    editor.add(GrantTable::Revoked, kind, &value, None)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn edit(
        &self,
        name: &str,
        change: impl FnOnce(&mut Editor) -> Result<(), ConfigurationError> + Send + 'static,
    ) -> Result<(), InstallError> {
        let file = ConfigurationFile::of(self.plugin_dir(), name);
        tokio::task::spawn_blocking(move || file.edit(change)).await??;
        Ok(())
    }
}

/// # Errors
/// It cannot be a plugin's name.
pub fn check_name(name: &str) -> Result<(), InstallError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good =
        (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-');
    if good { Ok(()) } else { Err(InstallError::Name(name.to_owned())) }
}

fn refuse_blocked(name: &str, loaded: &Probed) -> Result<(), InstallError> {
    if loaded.works() {
        return Ok(());
    }
    let findings = loaded.findings.iter().filter(|finding| finding.blocks()).map(Finding::sentence);
    Err(InstallError::Blocked { name: name.to_owned(), findings: findings.collect() })
}

/// A program's name, where it was given with its path.
fn name_of(grant: &Grant) -> String {
    match grant.kind {
        GrantKind::Programs => {
            let name = Path::new(&grant.value).file_name();
            name.map_or_else(|| grant.value.clone(), |name| name.to_string_lossy().into_owned())
        }
        _ => grant.value.clone(),
    }
}

/// The files of the programs among the grants.
async fn pins(grants: &[Grant]) -> Result<Vec<Option<Pin>>, InstallError> {
    let grants = grants.to_vec();
    tokio::task::spawn_blocking(move || {
        let pin = |grant: &Grant| {
            if grant.kind != GrantKind::Programs {
                return Ok(None);
            }
            let path = Path::new(&grant.value);
            let found =
                if path.is_absolute() { Some(path.to_owned()) } else { locate(&grant.value) };
            let failed = |source| InstallError::Program { program: grant.value.clone(), source };
            let path = found.ok_or_else(|| {
                failed(io::Error::new(
                    io::ErrorKind::NotFound,
                    "it is not installed; give its path",
                ))
            })?;
            Pin::of(&name_of(grant), &path).map(Some).map_err(failed)
        };
        grants.iter().map(pin).collect()
    })
    .await?
}

fn grant_all(
    editor: &mut Editor,
    grants: &[Grant],
    pins: &[Option<Pin>],
) -> Result<(), ConfigurationError> {
    for (grant, pin) in grants.iter().zip(pins) {
        editor.add(GrantTable::Granted, grant.kind, &name_of(grant), pin.as_ref())?;
    }
    Ok(())
}

fn add_to(list: &mut super::manifest::GrantList, grant: &Grant, pin: Option<&Pin>) {
    match grant.kind {
        GrantKind::Programs => {
            let name = name_of(grant);
            list.programs.retain(|program| program.name() != name);
            list.programs.push(match pin {
                Some(pin) => ProgramGrant::Pinned(pin.clone()),
                None => ProgramGrant::Named(name),
            });
        }
        GrantKind::Http => list.http.push(grant.value.clone()),
        GrantKind::Sockets => list.sockets.push(PathBuf::from(&grant.value)),
        GrantKind::Files => list.files.push(PathBuf::from(&grant.value)),
        GrantKind::Loopback => list.loopback = true,
        GrantKind::Messages => list.messages = true,
        GrantKind::Evm => list.evm.push(grant.value.clone()),
        GrantKind::Transactions => list.transactions.push(grant.value.clone()),
    }
}

/// What a component is known by, as hex.
pub fn sha256_of(component: &[u8]) -> String {
    hex::encode(Sha256::digest(component))
}

/// What `plugin install` would add, without repetitions.
pub fn grants_for(asks: &[Ask]) -> Vec<Grant> {
    asks.iter().map(Grant::from).collect::<BTreeSet<_>>().into_iter().collect()
}
