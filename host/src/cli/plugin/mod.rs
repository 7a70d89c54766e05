//! `plugin …`: what an operator does about plugins. A provider that runs is asked to do it at once; where none runs, the same
//! is done to its files, and counts from the next start on. What the author of a plugin does with it is in `author`, and needs
//! neither a provider nor its settings.

mod ask;
mod author;
mod show;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::{on_runtime, overridden};
use crate::{
    admin::{AdminClient, InstallRequest, PluginReport, PluginState},
    plugins::{
        Kind,
        catalog::{About, Catalog},
        installation::{Grant, GrantKind, Listed, check_name, grants_for},
    },
    settings::{self, Settings},
};

#[derive(Debug, Subcommand)]
pub enum Plugin {
    #[command(flatten)]
    Author(author::Author),
    /// List all plugins: the bundled ones and those that were installed
    List(Output),
    /// Show what a component is and what it asks for, without installing it
    Inspect(Inspect),
    /// Show what can be set for a plugin, and what is set: golem-provider plugin settings qemu
    #[command(long_about = SETTINGS)]
    Settings(Name),
    /// Install a component, or a newer version of it, after showing what it asks for
    #[command(long_about = INSTALL)]
    Install(Install),
    /// Remove an installed component; its settings and grants are kept
    Remove(Name),
    /// Switch a plugin on
    Enable(Name),
    /// Switch a plugin off; VMs that it made stay as they are until it is back
    Disable(Name),
    /// Let a plugin use something: golem-provider plugin grant qemu files /srv/images
    Grant(Change),
    /// Take a grant away: golem-provider plugin revoke qemu programs nft
    Revoke(Change),
    /// Choose the plugin that makes new VMs, or all that list this provider: golem-provider plugin use vm-backend qemu
    Use(Use),
}

const SETTINGS: &str = "\
Shows what can be set for a plugin: each setting with its type, its default, what it is for, what is set and where. What is \
secret is shown as <hidden>.

Settings are made in NAME.toml in the plugin directory, under [settings], or one by one as variables \
GOLEM_PROVIDER_PLUGIN_NAME_KEY, which win. A provider that runs takes over a change of the file within seconds.

Exit status: 0 shown, 1 there is no such plugin, or it cannot say.";

const INSTALL: &str = "\
Installs a component, or a newer version of one. What it asks for and why is shown, and granted only with your consent: \
by answering, with --yes for all of it, or with --grant for some of it. A component that was installed before asks again \
only for what is new.

A provider that runs loads and probes the new version first and switches to it at once; calls under way end with the old \
one. When anything is wrong, nothing changes.

Exit status: 0 installed, 1 not installed, 2 the command line is wrong, or consent is needed and nobody can be asked.";

#[derive(Debug, Args)]
pub struct Output {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// The component, a .wasm file
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Install {
    /// The component, a .wasm file
    file: PathBuf,
    /// Grant everything that it asks for
    #[arg(long, short, conflicts_with = "grants")]
    yes: bool,
    /// Grant this and nothing else, such as --grant programs=multipass; repeat it for more
    #[arg(long = "grant", value_name = "KIND=VALUE", value_parser = parse_grant)]
    grants: Vec<Grant>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Name {
    /// The plugin's name
    #[arg(value_parser = parse_name)]
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Change {
    /// The plugin's name
    #[arg(value_parser = parse_name)]
    name: String,
    kind: GrantKind,
    /// A program's name or path, an origin such as https://example.com, a path, or `true`
    #[arg(required = true)]
    values: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub struct Use {
    /// What for: vm-backend, discovery-advertiser or payment-verifier
    kind: Kind,
    /// The plugin's name; several may advertise
    #[arg(value_parser = parse_name, required = true)]
    names: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// How a command ended.
pub enum Outcome {
    Done,
    /// Nobody was there to be asked.
    NeedsConsent,
}

fn parse_name(text: &str) -> Result<String, String> {
    check_name(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_grant(text: &str) -> Result<Grant, String> {
    let (kind, value) =
        text.split_once('=').ok_or("write KIND=VALUE, such as http=https://example.com")?;
    let kind = <GrantKind as clap::ValueEnum>::from_str(kind, false).map_err(|_| {
        format!("`{kind}` is none of {}", GrantKind::ALL.map(GrantKind::as_str).join(", "))
    })?;
    Ok(Grant { kind, value: value.to_owned() })
}

impl Plugin {
    /// Is it one of those that need no settings?
    pub fn of_an_author(&self) -> Option<&author::Author> {
        match self {
            Self::Author(command) => Some(command),
            _ => None,
        }
    }

    /// # Errors
    /// What was asked for could not be done.
    pub fn run(self, settings: &Settings) -> anyhow::Result<Outcome> {
        on_runtime(self.carry_out(settings))?
    }

    async fn carry_out(self, settings: &Settings) -> anyhow::Result<Outcome> {
        let running = AdminClient::connect(&settings.data_dir).await?;
        match self {
            Self::Author(_) => bail!("this command is carried out without a provider"),
            Self::List(output) => {
                let reports = match &running {
                    Some(client) => client.plugins().await?,
                    None => offline(settings)?.list().await.into_iter().map(idle).collect(),
                };
                show::list(&reports, output.json)?;
            }
            Self::Inspect(Inspect { file, output }) => {
                let about = inspect(&offline(settings)?, &file).await?;
                show::about(&about, output.json)?;
            }
            Self::Settings(Name { name, output }) => {
                show::settings(&name, &offline(settings)?.settings_of(&name).await?, output.json)?;
            }
            Self::Install(install) => return install.carry_out(settings, running).await,
            Self::Remove(Name { name, output }) => {
                match &running {
                    Some(client) => client.remove(&name).await?,
                    None => offline(settings)?.remove(&name).await?,
                }
                show::done(&output, &name, &format!("the plugin {name} was removed"))?;
            }
            Self::Enable(Name { name, output }) => {
                set_enabled(settings, running, &name, true).await?;
                show::done(&output, &name, &format!("the plugin {name} is switched on"))?;
            }
            Self::Disable(Name { name, output }) => {
                set_enabled(settings, running, &name, false).await?;
                show::done(&output, &name, &format!("the plugin {name} is switched off"))?;
            }
            Self::Grant(change) => {
                let grants = change.grants();
                match &running {
                    Some(client) => client.grant(&change.name, grants).await?,
                    None => offline(settings)?.grant(&change.name, &grants).await?,
                }
                let what = change.sentence("may use");
                show::done(&change.output, &change.name, &what)?;
            }
            Self::Revoke(change) => {
                let grants = change.grants();
                match &running {
                    Some(client) => client.revoke(&change.name, grants).await?,
                    None => offline(settings)?.revoke(&change.name, &grants).await?,
                }
                let what = change.sentence("may no longer use");
                show::done(&change.output, &change.name, &what)?;
            }
            Self::Use(Use { kind, names, output }) => {
                let (key, does) = match kind {
                    Kind::VmBackend => ("GOLEM_PROVIDER_VM_BACKEND", "new VMs are made by"),
                    Kind::DiscoveryAdvertiser => {
                        ("GOLEM_PROVIDER_ADVERTISER_TYPE", "this provider is listed by")
                    }
                    Kind::PaymentVerifier => {
                        ("GOLEM_PROVIDER_PAYMENT_VERIFIER", "payments are read by")
                    }
                };
                if kind != Kind::DiscoveryAdvertiser && names.len() > 1 {
                    bail!("{does} one plugin; name one");
                }
                match &running {
                    Some(client) => client.use_plugins(kind, &names).await?,
                    None => {
                        let known = offline(settings)?.names().await;
                        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
                            bail!("there is no plugin `{name}`; known are {}", known.join(", "));
                        }
                    }
                }
                let file = settings.data_dir.join(".env");
                settings::write_setting(&file, key, &names.join(","))
                    .with_context(|| format!("cannot write {}", file.display()))?;
                let names = names.join(", ");
                let mut what = format!("{does} {names}");
                if let Some(origin) = overridden(settings, key, &file) {
                    what += &format!(
                        " until the next start; {origin} says otherwise for later: change {key} there"
                    );
                }
                show::done(&output, &names, &what)?;
            }
        }
        Ok(Outcome::Done)
    }
}

async fn set_enabled(
    settings: &Settings,
    running: Option<AdminClient>,
    name: &str,
    enabled: bool,
) -> anyhow::Result<()> {
    match running {
        Some(client) => client.set_enabled(name, enabled).await?,
        None => offline(settings)?.set_enabled(name, enabled).await?,
    }
    Ok(())
}

impl Change {
    fn grants(&self) -> Vec<Grant> {
        let grant = |value: &String| Grant { kind: self.kind, value: value.clone() };
        self.values.iter().map(grant).collect()
    }

    fn sentence(&self, may: &str) -> String {
        format!("the plugin {} {may}: {} {}", self.name, self.kind.as_str(), self.values.join(", "))
    }
}

impl Install {
    async fn carry_out(
        self,
        settings: &Settings,
        running: Option<AdminClient>,
    ) -> anyhow::Result<Outcome> {
        let file = absolute(&self.file)?;
        let catalog = offline(settings)?;
        let about = inspect(&catalog, &file).await?;
        let Some(grants) = self.consent(&about)? else { return Ok(Outcome::NeedsConsent) };
        let report = match running {
            Some(client) => {
                let sha256 = about.sha256.clone();
                client.install(&InstallRequest { file, sha256, grants }).await?
            }
            None => {
                let loaded = catalog.install(&file, &about.sha256, &grants).await?;
                idle(catalog.listed(&loaded.about.name).await)
            }
        };
        show::installed(&report, self.output.json)?;
        Ok(Outcome::Done)
    }

    /// What is granted; nothing at all where consent is needed and nobody can be asked.
    fn consent(&self, about: &About) -> anyhow::Result<Option<Vec<Grant>>> {
        if !self.grants.is_empty() {
            return Ok(Some(self.grants.clone()));
        }
        let wanted = grants_for(&about.missing);
        if self.yes || wanted.is_empty() {
            return Ok(Some(wanted));
        }
        ask::consent(about).map(|yes| yes.then_some(wanted))
    }
}

/// How long nothing is said.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a component is. Says that it is being compiled, where that takes long: so it is with one that brings the runtime of a
/// language along, the first time that it is seen here.
async fn inspect(catalog: &Catalog, file: &Path) -> anyhow::Result<About> {
    let mut work = pin!(catalog.inspect(file));
    if let Ok(about) = tokio::time::timeout(PATIENCE, work.as_mut()).await {
        return Ok(about?);
    }
    let what = format!("compiling {} for this machine", file.display());
    let waiting = ProgressBar::new_spinner().with_message(what.clone());
    if waiting.is_hidden() {
        eprintln!("{what} …");
    }
    waiting.enable_steady_tick(Duration::from_millis(200));
    let about = work.await;
    waiting.finish_and_clear();
    Ok(about?)
}

fn absolute(file: &Path) -> anyhow::Result<PathBuf> {
    file.canonicalize().with_context(|| format!("cannot read {}", file.display()))
}

fn idle(listed: Listed) -> PluginReport {
    let state = match (&listed.problem, listed.enabled) {
        (Some(_), _) => PluginState::Unusable,
        (None, false) => PluginState::Disabled,
        (None, true) => PluginState::Idle,
    };
    PluginReport { listed, state, in_use: false }
}

/// The plugins of a provider that does not run.
fn offline(settings: &Settings) -> anyhow::Result<Catalog> {
    Ok(Catalog::offline(settings.into())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_on_the_command_line_has_a_kind_and_a_value() {
        let grant = parse_grant("http=https://a.example/?x=y").unwrap();
        assert_eq!((grant.kind, grant.value.as_str()), (GrantKind::Http, "https://a.example/?x=y"));
        assert!(parse_grant("programs").is_err());
        assert!(parse_grant("files:/tmp").is_err());
        assert!(parse_grant("money=all").unwrap_err().contains("none of programs"));
    }
}
