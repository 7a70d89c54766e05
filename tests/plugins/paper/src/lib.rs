//! A well-behaved VM backend without a hypervisor: its machines are files, so they are made in milliseconds, outlive the
//! provider as real ones do, and can be looked at and broken by a test.
//!
//! ```text
//! machines/<id>/machine.json      what the machine is and what it was last asked to be; written before anything else
//! machines/<id>/disk              as good as a disk
//! machines/<id>/authorized_keys   who may log in
//! machines/<id>/power             exists while the machine runs; holds when it was switched on
//! trash/<id>                      a machine whose deletion has begun
//! ```
//! What a machine is doing follows from `machine.json` and `power` alone: one that should run and has no `power` has
//! crashed, so a test crashes a machine by removing that file.
//!
//! Each call takes several small steps, and [`Settings::step_ms`] passes between two of them, so that a provider can be ended
//! between any two. Every call can be repeated. SSH is a stand-in server that the settings name; nothing here speaks to it.

use std::{net::SocketAddr, time::Duration};

use golem_provider_sdk::{
    Description, Error, Finding, Plugin, Result, VmBackend,
    clock::{self, Deadline},
    export_vm_backend, files, progress, settings,
    vm_backend::{BootLimits, Endpoint, Image, Instance, PowerState, Spec},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

/// The only image.
const IMAGE: &str = "paper";
const MACHINES: &str = "machines";
const TRASH: &str = "trash";

/// What a test can set.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    /// Where the machines' SSH server is.
    ssh: SocketAddr,
    /// From a start until SSH answers.
    #[serde(default)]
    boot_ms: u32,
    /// From being asked to stop until the machine has shut down.
    #[serde(default)]
    shutdown_ms: u32,
    /// Between two steps of a call.
    #[serde(default)]
    step_ms: u32,
    #[serde(default = "many")]
    parallel_boots: u32,
    #[serde(default = "a_minute_ms")]
    boot_timeout_ms: u32,
    fault: Option<Fault>,
}

/// A promise that is not kept, to see whether somebody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// A delete fails, and says so.
    DeleteFails,
    /// What is called deleted is still there, under another name.
    DeleteLeavesFiles,
    /// A create calls itself finished before it is.
    CreateNotesTooEarly,
    /// A create takes what is there for what was asked for.
    CreateTakesAnything,
    /// A stop answers before the machine is off.
    StopDoesNotWait,
    /// A machine is ready as soon as it is started.
    ReadyTooSoon,
    /// A start begins the machine anew.
    StartRestarts,
    /// The list has running machines alone.
    ListMissesStopped,
    /// A key is taken for a machine that is off.
    KeyForStopped,
}

fn many() -> u32 {
    64
}

fn a_minute_ms() -> u32 {
    60_000
}

impl Settings {
    fn load() -> Result<Self> {
        settings::get()
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Here a call may be cut off.
    fn step(&self) {
        if self.step_ms > 0 {
            clock::sleep(Duration::from_millis(self.step_ms.into()));
        }
    }
}

/// `machine.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Machine {
    hostname: String,
    cpu_cores: u32,
    memory_mib: u64,
    storage_mib: u64,
    image: String,
    /// Those it was made with.
    ssh_authorized_keys: Vec<String>,
    /// Those that came later.
    added_ssh_keys: Vec<String>,
    /// Has `create` come to its end?
    created: bool,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Running,
    Stopped,
}

/// `power`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Power {
    on_since_unix_ms: u64,
}

impl Machine {
    fn new(spec: &Spec) -> Self {
        Self {
            hostname: spec.hostname.clone(),
            cpu_cores: spec.cpu_cores,
            memory_mib: spec.memory_mib,
            storage_mib: spec.storage_mib,
            image: spec.image.clone(),
            ssh_authorized_keys: spec.ssh_authorized_keys.clone(),
            added_ssh_keys: Vec::new(),
            created: false,
            wanted: Wanted::Running,
        }
    }

    fn was_made_for(&self, spec: &Spec) -> bool {
        (&self.hostname, self.cpu_cores, self.memory_mib, self.storage_mib)
            == (&spec.hostname, spec.cpu_cores, spec.memory_mib, spec.storage_mib)
            && (&self.image, &self.ssh_authorized_keys) == (&spec.image, &spec.ssh_authorized_keys)
    }

    fn authorized_keys(&self) -> String {
        self.ssh_authorized_keys
            .iter()
            .chain(&self.added_ssh_keys)
            .map(|key| format!("{key}\n"))
            .collect()
    }
}

/// Where a machine's files are.
struct Paths {
    id: String,
}

impl Paths {
    fn of(id: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if id.is_empty() || id.len() > 100 || !id.bytes().all(allowed) {
            return Err(Error::InvalidArgument(format!("`{id}` cannot name a machine")));
        }
        Ok(Self { id: id.to_owned() })
    }

    fn directory(&self) -> String {
        format!("{MACHINES}/{}", self.id)
    }

    fn file(&self, name: &str) -> String {
        format!("{MACHINES}/{}/{name}", self.id)
    }

    fn machine(&self) -> String {
        self.file("machine.json")
    }

    fn power(&self) -> String {
        self.file("power")
    }

    fn trash(&self) -> String {
        format!("{TRASH}/{}", self.id)
    }

    fn load(&self) -> Result<Option<Machine>> {
        read_json(&self.machine())
    }

    fn existing(&self) -> Result<Machine> {
        self.load()?.ok_or_else(|| Error::NotFound(format!("there is no machine {}", self.id)))
    }

    fn save(&self, machine: &Machine) -> Result<()> {
        write_json(&self.machine(), machine)
    }

    fn write_keys(&self, machine: &Machine) -> Result<()> {
        files::write(&self.file("authorized_keys"), machine.authorized_keys().as_bytes())
    }

    /// What the machine is doing.
    fn inspect(&self, settings: &Settings) -> Result<Instance> {
        let machine = self.existing()?;
        let power: Option<Power> = read_json(&self.power())?;
        let state = match (&power, machine.wanted) {
            (Some(_), Wanted::Stopped) => PowerState::Stopping,
            (Some(power), Wanted::Running) if boot_left(power, settings).is_zero() => {
                PowerState::Running
            }
            (Some(_), Wanted::Running) => PowerState::Starting,
            (None, Wanted::Running) if machine.created => PowerState::Crashed,
            (None, _) => PowerState::Stopped,
        };
        let runs = power.is_some();
        let Settings { ssh, .. } = settings;
        Ok(Instance {
            id: self.id.clone(),
            power: state,
            ssh: runs.then(|| Endpoint { address: ssh.ip().to_string(), port: ssh.port() }),
            ip_address: runs.then(|| "192.0.2.1".to_owned()),
            detail: (state == PowerState::Crashed)
                .then(|| "the power was cut from outside".to_owned()),
        })
    }

    /// Switches a machine on, unless it is.
    fn switch_on(&self, machine: &mut Machine, settings: &Settings) -> Result<()> {
        let runs = files::exists(&self.power())?;
        if machine.wanted == Wanted::Stopped {
            if runs {
                return Err(Error::FailedPrecondition(format!(
                    "the machine {} is still stopping; start it again when it has stopped",
                    self.id
                )));
            }
            machine.wanted = Wanted::Running;
            self.save(machine)?;
            settings.step();
        }
        if runs {
            return Ok(());
        }
        self.write_keys(machine)?;
        settings.step();
        write_json(&self.power(), &Power { on_since_unix_ms: clock::unix_ms() })
    }
}

/// How long a machine that was switched on has still to boot. A clock that was set back ends the boot.
fn boot_left(power: &Power, settings: &Settings) -> Duration {
    let elapsed_ms = clock::unix_ms().checked_sub(power.on_since_unix_ms);
    let left_ms =
        elapsed_ms.map_or(0, |elapsed_ms| u64::from(settings.boot_ms).saturating_sub(elapsed_ms));
    Duration::from_millis(left_ms)
}

struct Paper;

impl Plugin for Paper {
    fn describe() -> Description {
        let milliseconds = json!({ "type": "integer", "minimum": 0, "maximum": 3_600_000 });
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["ssh"],
            "properties": {
                "ssh": { "description": "IP address and port of the machines' SSH server", "type": "string" },
                "boot-ms": milliseconds,
                "shutdown-ms": milliseconds,
                "step-ms": milliseconds,
                "parallel-boots": { "type": "integer", "minimum": 1 },
                "boot-timeout-ms": { "type": "integer", "minimum": 1 },
                "fault": { "type": "string" },
            },
        });
        Description {
            // A benchmark of many plugins puts other names in its place, for which it has to stand there in one piece.
            name: std::hint::black_box("paper").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary: "Machines on paper, for tests".into(),
            license: env!("CARGO_PKG_LICENSE").into(),
            settings_schema: schema.to_string(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        Settings::load()?;
        Ok(vec![Finding::info("machines exist on paper only")])
    }
}

impl VmBackend for Paper {
    fn images() -> Result<Vec<Image>> {
        Ok(vec![Image { alias: IMAGE.into(), description: "A machine on paper".into() }])
    }

    fn limits() -> Result<BootLimits> {
        let settings = Settings::load()?;
        Ok(BootLimits {
            parallel_boots: settings.parallel_boots,
            boot_timeout_ms: settings.boot_timeout_ms,
        })
    }

    fn create(spec: Spec) -> Result<Instance> {
        let settings = Settings::load()?;
        let paths = Paths::of(&spec.id)?;
        if spec.image != IMAGE {
            return Err(Error::InvalidArgument(format!("there is no image `{}`", spec.image)));
        }
        let mut machine = match paths.load()? {
            Some(machine)
                if machine.was_made_for(&spec) || settings.has(Fault::CreateTakesAnything) =>
            {
                machine
            }
            Some(_) => {
                return Err(Error::AlreadyExists(format!(
                    "the machine {} exists and differs from what was asked for",
                    spec.id
                )));
            }
            None => {
                let mut machine = Machine::new(&spec);
                machine.created = settings.has(Fault::CreateNotesTooEarly);
                paths.save(&machine)?;
                machine.created = false;
                machine
            }
        };
        settings.step();
        if !machine.created {
            progress::stage("making the disk");
            let unfinished = paths.file("disk.new");
            files::write(&unfinished, b"as good as a disk\n")?;
            settings.step();
            files::rename(&unfinished, &paths.file("disk"))?;
            settings.step();
            progress::stage("starting the machine");
            paths.switch_on(&mut machine, &settings)?;
            settings.step();
            machine.created = true;
            paths.save(&machine)?;
        }
        paths.inspect(&settings)
    }

    fn start(id: String) -> Result<Instance> {
        let settings = Settings::load()?;
        let paths = Paths::of(&id)?;
        let mut machine = paths.existing()?;
        if settings.has(Fault::StartRestarts) {
            files::remove(&paths.power())?;
        }
        if !files::exists(&paths.file("disk"))? {
            return Err(Error::FailedPrecondition(format!(
                "the machine {id} was never finished: create it again, or delete it"
            )));
        }
        paths.switch_on(&mut machine, &settings)?;
        if !machine.created {
            settings.step();
            machine.created = true;
            paths.save(&machine)?;
        }
        paths.inspect(&settings)
    }

    fn await_ready(id: String) -> Result<Instance> {
        let settings = Settings::load()?;
        let paths = Paths::of(&id)?;
        loop {
            let machine = paths.existing()?;
            let left = match read_json(&paths.power())? {
                Some(power) if machine.wanted == Wanted::Running => boot_left(&power, &settings),
                _ => {
                    return Err(Error::FailedPrecondition(format!(
                        "the machine {id} does not run any more"
                    )));
                }
            };
            if left.is_zero() || settings.has(Fault::ReadyTooSoon) {
                return paths.inspect(&settings);
            }
            // In pieces, so that a machine that is switched off meanwhile is noticed.
            clock::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn stop(id: String, grace: Duration) -> Result<Instance> {
        let settings = Settings::load()?;
        let paths = Paths::of(&id)?;
        let mut machine = paths.existing()?;
        if machine.wanted != Wanted::Stopped {
            machine.wanted = Wanted::Stopped;
            paths.save(&machine)?;
            settings.step();
        }
        if files::exists(&paths.power())? && !settings.has(Fault::StopDoesNotWait) {
            let shutdown = Duration::from_millis(settings.shutdown_ms.into());
            let deadline = Deadline::after(shutdown.min(grace));
            while !deadline.has_passed() {
                clock::sleep(deadline.remaining().min(Duration::from_millis(100)));
            }
            files::remove(&paths.power())?;
            settings.step();
        }
        paths.inspect(&settings)
    }

    fn delete(id: String) -> Result<()> {
        let settings = Settings::load()?;
        let paths = Paths::of(&id)?;
        if settings.has(Fault::DeleteFails) {
            return Err(Error::Internal("the paper does not burn".to_owned()));
        }
        if files::exists(&paths.directory())? {
            // In one step it is no longer a machine, and what an earlier call left in the way goes first.
            files::create_directory(TRASH)?;
            settings.step();
            files::remove(&paths.trash())?;
            settings.step();
            files::rename(&paths.directory(), &paths.trash())?;
            settings.step();
        }
        if settings.has(Fault::DeleteLeavesFiles) {
            return Ok(());
        }
        files::remove(&paths.trash())
    }

    fn inspect(id: String) -> Result<Instance> {
        Paths::of(&id)?.inspect(&Settings::load()?)
    }

    fn inspect_all() -> Result<Vec<Instance>> {
        let settings = Settings::load()?;
        let names = match files::list_directory(MACHINES) {
            Ok(names) => names,
            Err(Error::NotFound(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut instances = Vec::new();
        for name in names {
            match Paths::of(&name)?.inspect(&settings) {
                Ok(instance)
                    if instance.ssh.is_none() && settings.has(Fault::ListMissesStopped) => {}
                Ok(instance) => instances.push(instance),
                // Deleted since the list was made, or not yet begun.
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(instances)
    }

    fn add_ssh_key(id: String, key: String) -> Result<()> {
        let settings = Settings::load()?;
        let paths = Paths::of(&id)?;
        let mut machine = paths.existing()?;
        let runs = machine.wanted == Wanted::Running && files::exists(&paths.power())?;
        if !runs && !settings.has(Fault::KeyForStopped) {
            return Err(Error::FailedPrecondition(format!(
                "the machine {id} does not run; start it first"
            )));
        }
        let known =
            machine.ssh_authorized_keys.contains(&key) || machine.added_ssh_keys.contains(&key);
        if !known {
            machine.added_ssh_keys.push(key);
            paths.save(&machine)?;
            settings.step();
        }
        paths.write_keys(&machine)
    }
}

fn read_json<T: DeserializeOwned>(path: &str) -> Result<Option<T>> {
    files::read_to_string(path)?
        .map(|text| {
            serde_json::from_str(&text)
                .map_err(|error| Error::Internal(format!("{path} is damaged: {error}")))
        })
        .transpose()
}

fn write_json<T: Serialize>(path: &str, value: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Internal(format!("cannot write {path} as JSON: {error}")))?;
    files::write(path, &text)
}

export_vm_backend!(Paper);
