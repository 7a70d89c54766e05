//! `cargo xtask run`: from a fresh clone to a running provider.

use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::guest_toolchain::Preference;
use crate::ui::{self, Step};
use crate::workspace::{Workspace, cargo};
use crate::{announce, image, plugins, provider_files, setup};

const SETTINGS_PREFIX: &str = "GOLEM_PROVIDER_";
const DEFAULT_IMAGE: &str = "DEFAULT_VM_IMAGE";

/// Where the published cloud images are; when this cannot be reached, an image is built here.
const IMAGE_SITE: (&str, u16) = ("cloud-images.ubuntu.com", 443);
const IMAGE_SITE_TIMEOUT: Duration = Duration::from_secs(3);

/// Sets up, builds and starts the provider in development mode
///
/// Installs what is missing, builds plugins and provider, prepares a disk image where the
/// published ones cannot be downloaded, starts `golem-provider dev` in the foreground and prints
/// the lines to try it with. Settings come from the environment or a .env file, as always.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which images virtual machines are made from
    #[arg(long, value_enum, default_value_t = ImageChoice::Auto)]
    image: ImageChoice,

    #[command(flatten)]
    guest: Preference,

    /// Arguments for `golem-provider dev`
    #[arg(last = true)]
    provider: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum ImageChoice {
    /// The published ones if they can be reached, else one built on this machine
    Auto,
    /// One built on this machine
    #[value(name = "debian-12")]
    Local,
    /// The published cloud images, downloaded when first used
    Published,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let workspace = Workspace::find()?;
    let local_image = match arguments.image {
        ImageChoice::Local => true,
        ImageChoice::Published => false,
        ImageChoice::Auto => !image_site_answers(),
    };
    let toolchain = setup::install(&workspace, local_image, &arguments.guest)?;
    plugins::build(&workspace, toolchain)?;
    let provider = build_provider(&workspace)?;

    let settings = Settings::of(&provider)?;
    let Settings { port, data_dir, .. } = &settings;
    if announce::answers(*port) {
        bail!(
            "a provider runs already on port {port}: \
             stop it, or choose another port with {SETTINGS_PREFIX}PORT"
        );
    }

    provider_files::make_data_directory(data_dir)?;
    let mut command = Command::new(provider);
    command.arg("dev").args(&arguments.provider);
    if local_image {
        let catalog = image::build(&workspace)?;
        let config = settings.plugin_dir.join("qemu.toml");
        provider_files::offer_image(&config, &catalog, image::ALIAS)?;
        if !settings.has_default_image {
            command.env(format!("{SETTINGS_PREFIX}{DEFAULT_IMAGE}"), image::ALIAS);
        }
    }
    let public_key = public_key(data_dir)?;
    announce::in_background(*port, &public_key)?;
    ui::note(format!("starting golem-provider dev, data in {}", data_dir.display()));
    let error = command.exec();
    Err(error).context("starting golem-provider")
}

/// Builds the provider as it is shipped; gives its path.
///
/// # Errors
/// When it does not compile.
pub fn build_provider(workspace: &Workspace) -> Result<PathBuf> {
    let step =
        Step::start_loud("building the provider", "seconds; five to ten minutes the first time");
    ui::run_shown(
        cargo()
            .args(["build", "--release", "--package", "golem-provider"])
            .current_dir(&workspace.root),
    )?;
    step.done();
    Ok(workspace.target.join("release/golem-provider"))
}

/// Whether the published images could be downloaded.
fn image_site_answers() -> bool {
    let step = Step::start(format!("looking whether {} can be reached", IMAGE_SITE.0), None);
    let (send, receive) = mpsc::channel();
    // A thread of its own, since looking up a name has no time-out. It ends with the process.
    std::thread::spawn(move || {
        let reached = IMAGE_SITE
            .to_socket_addrs()
            .into_iter()
            .flatten()
            .any(|address| TcpStream::connect_timeout(&address, IMAGE_SITE_TIMEOUT).is_ok());
        // Nobody listens any more when it came too late.
        let _ = send.send(reached);
    });
    let reached = receive.recv_timeout(IMAGE_SITE_TIMEOUT).unwrap_or(false);
    if reached {
        step.done();
    } else {
        step.gave_up("so an image is built on this machine");
    }
    reached
}

/// What this command has to know of the provider's settings, as the provider itself reads them.
struct Settings {
    data_dir: PathBuf,
    plugin_dir: PathBuf,
    port: u16,
    /// Whether the operator chose the image of a machine that names none.
    has_default_image: bool,
}

/// One setting, as `golem-provider config show --json` lists it.
#[derive(Deserialize)]
struct Setting {
    key: String,
    value: Option<String>,
    origin: String,
}

impl Settings {
    /// Asks the provider.
    ///
    /// # Errors
    /// When a setting is wrong; the provider has said which by then.
    fn of(provider: &Path) -> Result<Settings> {
        let mut command = Command::new(provider);
        // The subcommand `dev` means this environment; here it has to be said.
        command.env("GOLEM_ENVIRONMENT", "development");
        command.args(["config", "show", "--json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().context("starting golem-provider")?;
        if !output.status.success() {
            bail!("golem-provider cannot start with these settings");
        }
        let list = serde_json::from_slice(&output.stdout).context("reading the settings")?;
        Settings::from_list(list)
    }

    fn from_list(list: Vec<Setting>) -> Result<Settings> {
        let find = |name: &str| {
            let key = format!("{SETTINGS_PREFIX}{name}");
            list.iter().find(|setting| setting.key == key)
        };
        let value = |name: &str| {
            let value = find(name).and_then(|setting| setting.value.as_deref());
            value.with_context(|| format!("golem-provider does not say {SETTINGS_PREFIX}{name}"))
        };
        Ok(Settings {
            data_dir: value("DATA_DIR")?.into(),
            plugin_dir: value("PLUGIN_DIR")?.into(),
            port: value("PORT")?.parse().context("reading the port")?,
            has_default_image: find(DEFAULT_IMAGE).is_some_and(|image| image.origin != "default"),
        })
    }
}

/// The user's own public key; where there is none, that of a pair made for trying things out.
fn public_key(data_dir: &Path) -> Result<PathBuf> {
    let own = std::env::home_dir().map(|home| home.join(".ssh"));
    let names = ["id_ed25519", "id_ecdsa", "id_rsa"];
    let own = own.into_iter().flat_map(|directory| names.map(|name| directory.join(name)));
    for private in own.filter(|private| private.exists()) {
        let public = private.with_extension("pub");
        if public.exists() {
            return Ok(public);
        }
    }
    let private = data_dir.join("dev-ssh-key");
    let public = data_dir.join("dev-ssh-key.pub");
    if !public.exists() {
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "golem-provider-dev", "-f"])
            .arg(&private);
        ui::run_shown(&mut command)?;
        ui::note(format!("made a key pair for trying things out: {}", private.display()));
    }
    Ok(public)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(default_image_origin: &str) -> Settings {
        let text = format!(
            r#"[{{"key": "GOLEM_ENVIRONMENT", "value": "production", "origin": "default"}},
                {{"key": "GOLEM_PROVIDER_DATA_DIR", "value": "/data", "origin": "environment"}},
                {{"key": "GOLEM_PROVIDER_PLUGIN_DIR", "value": "/data/plugins", "origin": "default"}},
                {{"key": "GOLEM_PROVIDER_COUNTRY", "value": null, "origin": "default"}},
                {{"key": "GOLEM_PROVIDER_PORT", "value": "7777", "origin": "/data/.env"}},
                {{"key": "GOLEM_PROVIDER_DEFAULT_VM_IMAGE", "value": "x", "origin": "{default_image_origin}"}}]"#
        );
        Settings::from_list(serde_json::from_str(&text).unwrap()).unwrap()
    }

    #[test]
    fn what_the_provider_says_of_its_settings_is_understood() {
        let settings = listed("default");
        assert_eq!((settings.port, settings.data_dir), (7777, PathBuf::from("/data")));
        assert_eq!(settings.plugin_dir, PathBuf::from("/data/plugins"));
    }

    #[test]
    fn an_operators_default_image_is_not_replaced_by_the_local_one() {
        assert!(!listed("default").has_default_image);
        assert!(listed("environment").has_default_image);
        assert!(listed("/data/.env").has_default_image);
    }
}
