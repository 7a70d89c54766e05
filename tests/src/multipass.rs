//! VMs by a stand-in for Multipass: the program `tests/programs/multipass`, from outside. How it behaves, and what it can be
//! told to do wrong, is written there.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::Image;

/// The plugin's name, and the program's.
pub const NAME: &str = "multipass";
/// An image that Multipass itself knows.
pub const IMAGE: &str = "24.04";
/// The alias of the image that the stand-in really boots.
pub const REAL_IMAGE: &str = "real";

const PROGRAM: &str = include_str!("../programs/multipass");

/// How machines by the stand-in behave, and how the plugin is set.
#[derive(Debug, Clone)]
pub struct Multipass {
    control: Map<String, Value>,
    network: String,
    images: toml::Table,
}

/// One command that was given to the stand-in.
#[derive(Debug, Clone)]
pub struct Call {
    pub arguments: Vec<String>,
    pub stdin: String,
    /// How it ended.
    pub code: i64,
}

impl Call {
    /// Absent for the entry that is made when a command begins.
    fn ended(entry: &Value) -> Option<Call> {
        let words = entry["arguments"].as_array()?.iter();
        Some(Call {
            arguments: words.filter_map(|word| word.as_str().map(str::to_owned)).collect(),
            stdin: entry["stdin"].as_str()?.to_owned(),
            code: entry["code"].as_i64()?,
        })
    }
}

impl Multipass {
    /// Machines on paper that do everything at once, with addresses that no other test has.
    pub fn on_paper() -> Multipass {
        static NETWORKS: AtomicU8 = AtomicU8::new(1);
        // Another test program that runs at the same time has another second byte.
        let program = 64 + std::process::id() % 128;
        let network = format!("127.{program}.{}", NETWORKS.fetch_add(1, Ordering::Relaxed));
        let control = Map::from_iter([("network".to_owned(), json!(network))]);
        Multipass { control, network, images: toml::Table::new() }
    }

    /// Machines by QEMU that boot this image, which is called [`REAL_IMAGE`] here.
    ///
    /// # Errors
    /// When the image cannot be booted directly.
    pub fn booting(image: &Image) -> Result<Multipass> {
        let mut multipass = Multipass::on_paper();
        let boot = image.direct_boot().context("the test image has no kernel beside it")?;
        multipass.control.insert(
            "real".to_owned(),
            json!({ "kernel": boot.kernel, "initrd": boot.initrd, "append": boot.append }),
        );
        let entry = [("description", "for tests"), ("source", &format!("file://{}", boot.disk))]
            .map(|(key, value)| (key.to_owned(), value.into()));
        multipass.images.insert(REAL_IMAGE.to_owned(), toml::Table::from_iter(entry).into());
        Ok(multipass)
    }

    /// Sets one of the stand-in's switches.
    #[must_use]
    pub fn with(mut self, switch: &str, value: impl Into<Value>) -> Multipass {
        self.control.insert(switch.to_owned(), value.into());
        self
    }

    /// The address that a machine's SSH server has after the `number`th start of all machines together, or of this machine alone
    /// if it keeps its address. Begins with 1.
    pub fn address(&self, number: u8) -> String {
        format!("{}.{number}", self.network)
    }

    /// The text of the plugin's configuration file. Nothing waits long for a launch: a look follows.
    pub(crate) fn configuration(&self) -> Result<String> {
        let mut settings = toml::Table::new();
        for key in ["launch-patience-s", "download-patience-s"] {
            settings.insert(key.to_owned(), 2.into());
        }
        settings.insert("images".to_owned(), self.images.clone().into());
        let grants = toml::Table::from_iter([(
            "programs".to_owned(),
            toml::Value::Array(vec![NAME.into()]),
        )]);
        let tables = [("settings", settings), ("grants", grants)]
            .map(|(key, table)| (key.to_owned(), toml::Value::Table(table)));
        toml::to_string(&toml::Table::from_iter(tables)).context("writing the configuration")
    }

    /// Puts the program into the directory, and answers where it lies.
    pub(crate) fn install(&self, directory: &Path) -> Result<PathBuf> {
        let programs = directory.join("bin");
        let program = programs.join(NAME);
        fs::create_dir_all(&programs)
            .and_then(|()| fs::write(&program, PROGRAM))
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("installing {}", program.display()))?;
        Standing { directory: directory.to_owned() }.write_control(&self.control)?;
        Ok(programs)
    }
}

/// A stand-in that a provider uses.
#[derive(Debug, Clone)]
pub struct Standing {
    directory: PathBuf,
}

impl Standing {
    pub(crate) fn at(directory: PathBuf) -> Standing {
        Standing { directory }
    }

    /// Sets one of its switches, from the next command on.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set(&self, switch: &str, value: impl Into<Value>) -> Result<()> {
        let mut control = self.read("control.json")?.as_object().cloned().unwrap_or_default();
        control.insert(switch.to_owned(), value.into());
        self.write_control(&control)
    }

    fn write_control(&self, control: &Map<String, Value>) -> Result<()> {
        let file = self.directory.join("control.json");
        let draft = self.directory.join("control.json.test");
        fs::write(&draft, Value::Object(control.clone()).to_string())
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// What the daemon knows of its machines, by name, also of those that are only being prepared.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn instances(&self) -> Result<Map<String, Value>> {
        let known = self.read("daemon.json")?;
        Ok(known["instances"].as_object().cloned().unwrap_or_default())
    }

    /// Every command of this name that was given and has ended.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn calls(&self, command: &str) -> Result<Vec<Call>> {
        let text = match fs::read_to_string(self.directory.join("calls.jsonl")) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).context("reading the stand-in's calls"),
        };
        let calls: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect::<Result<_>>()?;
        let ended = calls.iter().filter_map(Call::ended);
        Ok(ended
            .filter(|call| call.arguments.first().is_some_and(|name| name == command))
            .collect())
    }

    /// Keys that were added to a machine on paper.
    ///
    /// # Errors
    /// When none were.
    pub fn added_keys(&self, name: &str) -> Result<String> {
        let file = self.directory.join("machines").join(name).join("authorized_keys");
        fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Gives it a command, as its owner would by hand.
    ///
    /// # Errors
    /// When that fails.
    pub fn by_hand(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(self.directory.join("bin").join(NAME))
            .args(arguments)
            .output()
            .context("starting the stand-in for multipass")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "multipass {arguments:?}: {said}");
        Ok(output)
    }

    fn read(&self, name: &str) -> Result<Value> {
        let file = self.directory.join(name);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        serde_json::from_str(&text).with_context(|| file.display().to_string())
    }
}
