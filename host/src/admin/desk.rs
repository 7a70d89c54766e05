//! Plugins of a running provider, changed one change at a time: a new version takes over only when it has been loaded, linked,
//! described and probed; anything wrong leaves the one that works in its place.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use tokio::sync::Mutex;

use super::protocol::PluginReport;
use crate::{
    discovery::{Advertising, Selection},
    payments::streams::Verifiers,
    plugins::{
        Kind, Severity,
        catalog::{Catalog, Loaded as LoadedPlugin, PluginError, Probed},
        installation::{Grant, InstallError, Listed},
    },
    status::state_of,
    vms::{Backends, VmError, VmService},
};

/// Where plugins are managed. Clones are the same desk.
#[derive(Clone)]
pub struct PluginDesk(Arc<Inner>);

struct Inner {
    catalog: Arc<Catalog>,
    vms: VmService,
    advertising: Advertising,
    verifiers: Verifiers,
    /// Held during a change: what was loaded last of each plugin.
    turn: Mutex<Loaded>,
}

/// By plugin: what its component and its configuration were.
type Loaded = BTreeMap<String, Fingerprint>;

/// Changes when a plugin has to be loaded anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fingerprint([u8; 32]);

/// A change to the plugins was not made.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("the plugin {name} cannot work on this machine: {reason}")]
    Blocked { name: String, reason: String },
    #[error(transparent)]
    Vms(#[from] VmError),
    #[error("there is no advertiser `{name}`: known are {known}")]
    UnknownAdvertiser { name: String, known: String },
    #[error("new machines are made by one backend; name one plugin")]
    OneBackend,
    #[error("there is no payment verifier `{name}`: known are {known}")]
    UnknownVerifier { name: String, known: String },
    #[error("payments are read by one plugin; name one")]
    OneVerifier,
    #[error(
        "this provider takes no payments until it starts with GOLEM_PROVIDER_PAYMENT_VERIFIER or GOLEM_PROVIDER_STREAM_PAYMENT_ADDRESS set"
    )]
    NoPayments,
}

impl PluginDesk {
    pub fn new(
        catalog: Arc<Catalog>,
        vms: VmService,
        advertising: Advertising,
        verifiers: Verifiers,
    ) -> Self {
        Self(Arc::new(Inner { catalog, vms, advertising, verifiers, turn: Mutex::default() }))
    }

    fn verifiers(&self) -> &Verifiers {
        &self.0.verifiers
    }

    fn advertising(&self) -> &Advertising {
        &self.0.advertising
    }

    fn backends(&self) -> &Backends {
        self.0.vms.backends()
    }

    pub fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    /// All plugins there are.
    pub async fn list(&self) -> Vec<PluginReport> {
        let listed = self.0.catalog.list().await;
        listed.into_iter().map(|listed| self.report_on(listed)).collect()
    }

    /// What one plugin is doing.
    fn report_on(&self, mut listed: Listed) -> PluginReport {
        let backends = self.backends();
        let (state, degraded) = state_of(&listed, backends, self.advertising(), self.verifiers());
        if !degraded.is_empty() {
            let texts: Vec<String> = degraded.iter().map(ToString::to_string).collect();
            listed.problem = Some(texts.join("; "));
        }
        let in_use = self.advertising().names().contains(&listed.name)
            || backends.default_name().is_ok_and(|default| default == listed.name)
            || self.verifiers().chosen().as_deref() == Some(listed.name.as_str());
        PluginReport { listed, state, in_use }
    }

    /// Installs a component and lets it take the next call.
    ///
    /// # Errors
    /// It cannot be used, or not be written; then everything is as it was.
    pub async fn install(
        &self,
        file: &Path,
        sha256: &str,
        grants: &[Grant],
    ) -> Result<PluginReport, DeskError> {
        let mut turn = self.0.turn.lock().await;
        let loaded = self.0.catalog.install(file, sha256, grants).await?;
        let name = loaded.about.name.clone();
        let report = self.switch(loaded).await;
        self.remember(&mut turn, &name).await;
        Ok(report)
    }

    /// Takes over what has changed on the disk, unless this desk did it.
    pub(super) async fn follow(&self, name: &str) -> Result<(), DeskError> {
        let mut turn = self.0.turn.lock().await;
        let now = self.fingerprint(name).await;
        if now.is_some() && turn.get(name) == now.as_ref() {
            return Ok(());
        }
        match self.load_and_switch(&mut turn, name).await {
            Err(DeskError::Plugin(PluginError::Disabled { .. } | PluginError::Unknown { .. })) => {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    async fn remember(&self, turn: &mut Loaded, name: &str) {
        match self.fingerprint(name).await {
            Some(fingerprint) => drop(turn.insert(name.to_owned(), fingerprint)),
            None => drop(turn.remove(name)),
        }
    }

    /// Absent where there is no component of that name.
    async fn fingerprint(&self, name: &str) -> Option<Fingerprint> {
        self.0.catalog.fingerprint(name).await.map(Fingerprint)
    }

    /// Loads a plugin anew, after its file or its configuration has changed.
    ///
    /// # Errors
    /// It cannot be used; then the one that was loaded goes on, unless it was switched off.
    pub async fn reload(&self, name: &str) -> Result<PluginReport, DeskError> {
        let mut turn = self.0.turn.lock().await;
        self.load_and_switch(&mut turn, name).await
    }

    async fn load_and_switch(
        &self,
        turn: &mut Loaded,
        name: &str,
    ) -> Result<PluginReport, DeskError> {
        // Also of what turns out to be wrong: it is not tried again before it changes.
        self.remember(turn, name).await;
        match self.0.catalog.load_named(name).await {
            Ok(loaded) if loaded.works() => Ok(self.switch(loaded).await),
            Ok(loaded) => {
                report(&loaded);
                let reasons = loaded.findings.iter().filter(|finding| finding.blocks());
                let reason = reasons.map(|finding| finding.sentence()).collect::<Vec<_>>();
                Err(DeskError::Blocked { name: name.to_owned(), reason: reason.join("; ") })
            }
            Err(error @ (PluginError::Disabled { .. } | PluginError::Unknown { .. })) => {
                let reason = match &error {
                    PluginError::Disabled { .. } => error.to_string(),
                    _ => format!("the plugin '{name}' was removed"),
                };
                tracing::info!(plugin.name = name, "{reason}");
                self.advertising().remove(name);
                self.verifiers().remove(name, reason.clone());
                self.backends().remove(name, reason);
                self.0.vms.backends_have_changed();
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn switch(&self, loaded: Probed) -> PluginReport {
        let about = loaded.about.clone();
        report(&loaded);
        let known = |names: Vec<String>| names.contains(&about.name);
        // It may come back as another kind than it was.
        let another_kind =
            || format!("the plugin '{}' is of the kind {} now", about.name, about.kind);
        if about.kind != Kind::VmBackend {
            self.backends().remove(&about.name, another_kind());
        }
        if about.kind != Kind::DiscoveryAdvertiser {
            self.advertising().remove(&about.name);
        }
        if about.kind != Kind::PaymentVerifier {
            self.verifiers().remove(&about.name, another_kind());
        }
        let is_new = match loaded.plugin {
            LoadedPlugin::VmBackend(backend) => {
                let is_new = !known(self.backends().names());
                self.backends().install(backend);
                if self.backends().default_name().is_err() {
                    // Whatever was the default before could not work.
                    let _ = self.backends().make_default(&about.name);
                }
                is_new
            }
            LoadedPlugin::Advertiser(advertiser) => {
                let is_new =
                    !self.advertising().known().iter().any(|known| known.name() == about.name);
                self.advertising().install(advertiser);
                is_new
            }
            LoadedPlugin::PaymentVerifier(verifier) => {
                let is_new = !known(self.verifiers().names());
                self.verifiers().install(verifier);
                is_new
            }
        };
        self.0.vms.backends_have_changed();
        tracing::info!(
            plugin.name = about.name,
            plugin.version = about.version,
            plugin.sha256 = about.sha256,
            "the plugin {} {} {}",
            about.name,
            about.version,
            if is_new { "is there now" } else { "takes the calls from now on" }
        );
        self.report_on(self.0.catalog.listed(&about.name).await)
    }

    /// Takes an installed plugin away. A bundled one of its name takes its place; VMs of one that has none stay as they are.
    ///
    /// # Errors
    /// There is none to be removed.
    pub async fn remove(&self, name: &str) -> Result<(), DeskError> {
        let mut turn = self.0.turn.lock().await;
        self.0.catalog.remove(name).await?;
        match self.load_and_switch(&mut turn, name).await {
            Err(DeskError::Plugin(PluginError::Unknown { .. })) => Ok(()),
            other => other.map(drop),
        }
    }

    /// # Errors
    /// There is no such plugin, or it cannot be used.
    pub async fn set_enabled(&self, name: &str, enabled: bool) -> Result<(), DeskError> {
        let mut turn = self.0.turn.lock().await;
        self.0.catalog.set_enabled(name, enabled).await?;
        match self.load_and_switch(&mut turn, name).await {
            Err(DeskError::Plugin(PluginError::Disabled { .. })) if !enabled => Ok(()),
            other => other.map(drop),
        }
    }

    /// # Errors
    /// There is no such plugin, or it cannot be used afterwards.
    pub async fn grant(&self, name: &str, grants: &[Grant]) -> Result<(), DeskError> {
        let mut turn = self.0.turn.lock().await;
        self.0.catalog.grant(name, grants).await?;
        self.load_and_switch(&mut turn, name).await.map(drop)
    }

    /// # Errors
    /// There is no such plugin, or it cannot be used afterwards.
    pub async fn revoke(&self, name: &str, grants: &[Grant]) -> Result<(), DeskError> {
        let mut turn = self.0.turn.lock().await;
        self.0.catalog.revoke(name, grants).await?;
        self.load_and_switch(&mut turn, name).await.map(drop)
    }

    /// These plugins are used from now on, until the provider ends: the one that makes new VMs, or all that advertise.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn use_plugins(&self, kind: Kind, names: &[String]) -> Result<(), DeskError> {
        match kind {
            Kind::VmBackend => {
                let [name] = names else { return Err(DeskError::OneBackend) };
                self.backends().make_default(name)?;
                tracing::info!(plugin.name = name, "new machines are made by {name}");
            }
            Kind::DiscoveryAdvertiser => {
                let known: Vec<String> = self
                    .advertising()
                    .known()
                    .iter()
                    .map(|known| known.name().to_owned())
                    .collect();
                if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
                    let (name, known) = (unknown.clone(), known.join(", "));
                    return Err(DeskError::UnknownAdvertiser { name, known });
                }
                self.advertising().select(Selection::Named(names.iter().cloned().collect()));
                tracing::info!("this provider is listed with {}", names.join(", "));
            }
            Kind::PaymentVerifier => {
                let [name] = names else { return Err(DeskError::OneVerifier) };
                if !self.verifiers().are_wanted() {
                    return Err(DeskError::NoPayments);
                }
                if !self.verifiers().choose(name) {
                    let known = self.verifiers().names().join(", ");
                    return Err(DeskError::UnknownVerifier { name: name.clone(), known });
                }
                tracing::info!(plugin.name = name, "payments are read by {name}");
            }
        }
        Ok(())
    }
}

/// Tells the operator what a probe found.
pub fn report(probed: &Probed) {
    let name = &probed.about.name;
    for finding in &probed.findings {
        let text = finding.sentence();
        match finding.severity {
            Severity::Info => tracing::info!(plugin.name = name, "{text}"),
            Severity::Warning => tracing::warn!(plugin.name = name, "{text}"),
            Severity::Blocking => tracing::error!(plugin.name = name, "{text}"),
        }
    }
}
