//! From the request for a VM to the first login, beside the same machine started by hand: QEMU with the arguments that the
//! provider has given it, a fresh disk over the same image, and a copy of the same seed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use golem_provider_benches::{
    Options, processes,
    processes::Running,
    progress,
    rows::{Row, note},
};
use golem_provider_tests::{Image, Key, KeyKind, Provider, Setup, Ssh, ports, wait};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinSet};

/// Of the time that the machine takes without the provider.
const TARGET: f64 = 1.1;

/// An emulated machine takes half a minute on an idle processor.
const BOOT_DEADLINE: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let options = Options::read()?;
    processes::provider_binary()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: Options) -> Result<()> {
    // Its log is shown at its end, and nobody wants to read there what went well.
    let setup = Setup::new()?.with("LOG", "error").with_images(&[Image::for_tests()?])?;
    let provider = setup.start().await?;
    let key = Key::generate(KeyKind::Ed25519).await?;
    let rounds = options.choose(1, 3);
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    let mut accelerator = None;
    // The first machine brings the image into the provider's store, which happens once for each image.
    for round in 0..=rounds {
        let name = format!("boot-{round}");
        progress(format!("create → first login, {name} of boot-{rounds}"));
        let seconds = through_provider(&provider, &key, &name).await?;
        let machines = provider.machines();
        let [machine] = machines.as_slice() else {
            bail!("there are {} machines instead of one", machines.len());
        };
        accelerator = accelerator.or_else(|| value_of(&machine.arguments, "-accel"));
        let directory = tempfile::tempdir().context("making a directory")?;
        let copy = Copy::of(&machine.arguments, directory.path())?;
        provider.client().delete(&format!("/vms/{name}")).await?.expect(200)?;
        if round == 0 {
            continue;
        }
        ours.push(seconds);
        progress(format!("the same machine by hand, {round} of {rounds}"));
        by_hand.push(copy.boot(&key).await?);
    }
    note(&format!(
        "machines were run by QEMU with -accel {}",
        accelerator.as_deref().unwrap_or("unknown")
    ));
    Row::of("create → first SSH login", "s", &ours)
        .beside("QEMU by hand", &by_hand)
        .at_most_times(TARGET)
        .print();
    Ok(())
}

/// How many seconds it took.
async fn through_provider(provider: &Provider, key: &Key, name: &str) -> Result<f64> {
    let request = json!({
        "name": name, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10, "ssh_key": key.public,
    });
    let begun = Instant::now();
    let made = provider.client().post("/vms", &request).await?.expect(201)?;
    let port = made["ssh_port"].as_u64().context("the VM has no port")?;
    Ssh::to(u16::try_from(port)?)?.run(key, "true").await?;
    Ok(begun.elapsed().as_secs_f64())
}

/// What it takes to start a machine again as another one.
struct Copy {
    arguments: Vec<String>,
    directory: PathBuf,
    disk: PathBuf,
    base: String,
    size: String,
    port: u16,
}

impl Copy {
    /// Of a machine that runs with these arguments.
    fn of(arguments: &[String], directory: &Path) -> Result<Copy> {
        let drive = |id: &str| -> Result<PathBuf> {
            let beginning = format!("id={id},");
            let drive = arguments.iter().find(|argument| argument.starts_with(&beginning));
            let file = drive
                .and_then(|drive| drive.split(',').find_map(|option| option.strip_prefix("file=")));
            file.map(PathBuf::from).with_context(|| format!("QEMU has no drive {id}"))
        };
        let (disk, seed) = (drive("disk")?, drive("seed")?);
        let original = disk.parent().context("a disk without a directory")?.to_owned();
        let own =
            |file: &Path| -> Result<PathBuf> {
                Ok(directory.join(file.strip_prefix(&original).with_context(|| {
                    format!("{} is not beside the machine's disk", file.display())
                })?))
            };
        fs::copy(&seed, own(&seed)?).context("copying the seed")?;
        fs::create_dir(directory.join("sockets")).context("making a directory for sockets")?;

        let information = Command::new("qemu-img")
            .args(["info", "--force-share", "--output=json"])
            .arg(&disk)
            .output()
            .context("starting qemu-img")?;
        let information: Value =
            serde_json::from_slice(&information.stdout).context("reading what qemu-img says")?;
        let base = information["full-backing-filename"].as_str().context("no image below")?;
        let size = information["virtual-size"].as_u64().context("a disk without a size")?;
        let port = ports::free_block()?.api;
        let (from, to) = (original.display().to_string(), directory.display().to_string());
        let arguments = arguments
            .iter()
            // The kernel ends the last one as it ends all of them.
            .filter(|argument| !argument.is_empty())
            .map(|argument| {
                argument
                    .replace(&from, &to)
                    .replace("hostfwd=tcp:127.0.0.1:0-", &format!("hostfwd=tcp:127.0.0.1:{port}-"))
            })
            .collect();
        Ok(Copy {
            arguments,
            disk: own(&disk)?,
            directory: directory.to_owned(),
            base: base.to_owned(),
            size: size.to_string(),
            port,
        })
    }

    /// How many seconds it takes until somebody has logged in.
    async fn boot(&self, key: &Key) -> Result<f64> {
        let begun = Instant::now();
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &self.base])
            .arg(&self.disk)
            .arg(&self.size)
            .status()
            .context("starting qemu-img")?;
        if !made.success() {
            bail!("qemu-img ended with {made}");
        }
        let (program, arguments) = self.arguments.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.directory).stderr(Stdio::inherit());
        let mut machine = Running::start("QEMU by hand", &mut command)?;
        wait::within("a boot by hand", BOOT_DEADLINE, answers(&mut machine, self.port)).await??;
        Ssh::to(self.port)?.run(key, "true").await?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// Waits for the banner of an SSH server behind QEMU's user network, which accepts connections long before the guest
/// does, tries to pass each on at intervals that grow, and delivers those too that were given up. So none is.
async fn answers(machine: &mut Running, port: u16) -> Result<()> {
    const STAGGER: Duration = Duration::from_secs(4);
    const KNOCKS: usize = 3;
    let mut knocks = JoinSet::new();
    loop {
        machine.check_alive()?;
        if knocks.len() < KNOCKS {
            knocks.spawn(async move {
                let mut banner = [0; 4];
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
                stream.read_exact(&mut banner).await.ok()?;
                (&banner == b"SSH-").then_some(())
            });
        }
        match tokio::time::timeout(STAGGER, knocks.join_next()).await {
            Ok(Some(Ok(Some(())))) => return Ok(()),
            // Refused, or the machine's network is not there yet.
            Ok(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Err(_) => {}
        }
    }
}

fn value_of(arguments: &[String], flag: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == flag)?;
    arguments.get(at + 1).cloned()
}
