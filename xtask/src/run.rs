//! `cargo xtask run`: from a fresh clone to a running provider.

use std::collections::HashMap;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest_toolchain::Preference;
use crate::ui::{self, Step};
use crate::workspace::{Workspace, cargo};
use crate::{announce, image, plugins, provider_files, setup};

const SETTINGS_PREFIX: &str = "GOLEM_PROVIDER_";
const DEFAULT_PORT: u16 = 7466;

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
    let settings = Settings::read()?;
    let port = settings.port()?;
    if announce::answers(port) {
        bail!(
            "a provider runs already on port {port}: stop it, or choose another port with {SETTINGS_PREFIX}PORT"
        );
    }

    let local_image = match arguments.image {
        ImageChoice::Local => true,
        ImageChoice::Published => false,
        ImageChoice::Auto => !image_site_answers(),
    };
    let toolchain = setup::install(&workspace, local_image, &arguments.guest)?;
    plugins::build(&workspace, toolchain)?;
    let provider = build_provider(&workspace)?;

    let mut command = Command::new(provider);
    command.arg("dev").args(&arguments.provider);
    if local_image {
        let catalog = image::build(&workspace)?;
        let config = settings.data_dir.join("plugins/qemu.toml");
        provider_files::offer_image(&config, &catalog, image::ALIAS)?;
        if settings.get("DEFAULT_VM_IMAGE").is_none() {
            command.env(format!("{SETTINGS_PREFIX}DEFAULT_VM_IMAGE"), image::ALIAS);
        }
    }
    let public_key = public_key(&settings.data_dir)?;
    announce::in_background(port, &public_key)?;
    ui::note(format!("starting golem-provider dev, data in {}", settings.data_dir.display()));
    let error = command.exec();
    Err(error).context("starting golem-provider")
}

fn build_provider(workspace: &Workspace) -> Result<PathBuf> {
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

/// What this command has to know of the provider's settings, read the way the provider does: the
/// environment wins over `.env` here, which wins over `.env` in the data directory.
struct Settings {
    data_dir: PathBuf,
    files: Vec<HashMap<String, String>>,
}

impl Settings {
    fn read() -> Result<Settings> {
        let mut settings =
            Settings { data_dir: PathBuf::new(), files: vec![dotenv(Path::new(".env"))?] };
        settings.data_dir = match settings.get("DATA_DIR") {
            Some(directory) => PathBuf::from(directory),
            None => std::env::home_dir().context("HOME is not set")?.join(".golem/provider"),
        };
        settings.files.push(dotenv(&settings.data_dir.join(".env"))?);
        Ok(settings)
    }

    /// The setting `name` (without its prefix), if it is set and not empty.
    fn get(&self, name: &str) -> Option<String> {
        let name = format!("{SETTINGS_PREFIX}{name}");
        let from_files = || self.files.iter().find_map(|file| file.get(&name).cloned());
        std::env::var(&name).ok().or_else(from_files).filter(|value| !value.is_empty())
    }

    fn port(&self) -> Result<u16> {
        match self.get("PORT") {
            None => Ok(DEFAULT_PORT),
            Some(text) => {
                text.parse().with_context(|| format!("{SETTINGS_PREFIX}PORT={text} is not a port"))
            }
        }
    }
}

fn dotenv(file: &Path) -> Result<HashMap<String, String>> {
    if !file.exists() {
        return Ok(HashMap::new());
    }
    let pairs =
        dotenvy::from_path_iter(file).with_context(|| format!("reading {}", file.display()))?;
    pairs.collect::<Result<_, _>>().with_context(|| format!("reading {}", file.display()))
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
        fs::create_dir_all(data_dir).with_context(|| format!("making {}", data_dir.display()))?;
        let mut command = Command::new("ssh-keygen");
        command
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "golem-provider-dev", "-f"])
            .arg(&private);
        ui::run_shown(&mut command)?;
        ui::note(format!("made a key pair for trying things out: {}", private.display()));
    }
    Ok(public)
}
