//! What several tests look at.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use golem_provider_tests::{Client, Provider, database, ports, wait};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Semaphore, SemaphorePermit},
};

/// How long a boot may take with another one beside it.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(300);

/// The right to boot one machine at a time, held for a whole test. Another test may have one beside it.
pub async fn machine() -> Result<SemaphorePermit<'static>> {
    machines(1).await
}

/// The right to boot so many at a time, which are two at most.
pub async fn machines(count: u32) -> Result<SemaphorePermit<'static>> {
    static MACHINES: Semaphore = Semaphore::const_new(2);
    Ok(MACHINES.acquire_many(count).await?)
}

/// Says in the test's output how far it has come and when.
pub struct Steps(Instant);

impl Steps {
    pub fn begin() -> Steps {
        Steps(Instant::now())
    }

    pub fn next(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.0.elapsed().as_secs_f32());
    }
}

/// What the QEMU plugin has fetched to boot machines from, with the contents.
pub struct StoredImages(BTreeMap<PathBuf, Vec<u8>>);

impl StoredImages {
    pub fn of(provider: &Provider) -> Result<Self> {
        let directory = provider.data_dir().join("vms/qemu/images");
        let mut stored = BTreeMap::new();
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let contents = fs::read(&path)?;
            stored.insert(path, contents);
        }
        ensure!(!stored.is_empty(), "nothing is stored in {}", directory.display());
        Ok(Self(stored))
    }

    /// Puts files in their place that differ from them in one way each: a byte, or their end. What has a file open keeps it.
    pub fn damage(self) -> Result<Self> {
        for (index, (path, contents)) in self.0.iter().enumerate() {
            let mut damaged = contents.clone();
            match index % 2 {
                0 => damaged[contents.len() / 2] ^= 1,
                _ => damaged.truncate(contents.len() / 2),
            }
            let beside = path.with_extension("damaged");
            fs::write(&beside, damaged)?;
            fs::rename(beside, path)?;
        }
        Ok(self)
    }

    /// Sees to it that every file is as it was, and that the operator was told.
    pub fn assert_mended(&self, provider: &Provider) -> Result<()> {
        let log = provider.log()?;
        for (path, contents) in &self.0 {
            ensure!(fs::read(path)? == *contents, "{} is not as it was", path.display());
            let told = format!("{} is not what was fetched any more", path.display());
            ensure!(log.contains(&told), "nobody was told: {told}");
        }
        Ok(())
    }
}

/// The text in a field.
pub fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("no text in {field} of {value}"))
}

/// The SSH port in a VM or in the answer of `/access`.
pub fn ssh_port(value: &Value) -> Result<u16> {
    let port = value["ssh_port"].as_u64().with_context(|| format!("no ssh_port in {value}"))?;
    Ok(u16::try_from(port)?)
}

/// The VM as clients are promised it, with this status.
pub async fn vm(client: &Client, id: &str, status: &str) -> Result<Value> {
    let vm = client.get(&format!("/vms/{id}")).await?.expect(200)?;
    assert_shape(&vm, status)?;
    Ok(vm)
}

/// Sees to it that everything is in a VM's JSON that clients read.
pub fn assert_shape(vm: &Value, status: &str) -> Result<()> {
    ensure!(vm["status"] == status, "not {status}: {vm}");
    let (id, name) = (text(vm, "id")?, text(vm, "name")?);
    let stamp = id
        .strip_prefix(&format!("golem-{name}-"))
        .with_context(|| format!("{id} is no instance id of {name}"))?;
    let stamp: String =
        stamp.chars().map(|char| if char.is_ascii_digit() { '9' } else { char }).collect();
    ensure!(stamp.starts_with("99999999-999999"), "{id} has no date and time");
    for field in ["cpu", "memory", "storage"] {
        ensure!(vm["resources"][field].is_u64(), "no {field} in {vm}");
    }
    for field in ["created_at", "updated_at"] {
        let time = text(vm, field)?;
        ensure!(time.contains('T') && time.ends_with('Z'), "{field} is no time in UTC: {vm}");
    }
    for field in ["ip_address", "ssh_port", "error_message"] {
        ensure!(vm.get(field).is_some(), "{field} is missing in {vm}");
    }
    if status == "creating" {
        ensure!(vm["ip_address"].is_null() && vm["ssh_port"].is_null(), "too early: {vm}");
    }
    Ok(())
}

/// Polls as the existing client does, every two seconds and without minding errors, until the VM runs.
pub async fn running(client: &Client, name: &str) -> Result<Value> {
    let pause = Duration::from_secs(2);
    let what = format!("{name} to run");
    let vm = wait::until(&what, BOOT_DEADLINE, pause, async || {
        let answer = client.get(&format!("/vms/{name}")).await?;
        ensure!(answer.status != 429, "a client that polls every 2 s is limited");
        let vm = answer.json()?;
        ensure!(vm["status"] != "error", "{vm}");
        Ok((vm["status"] == "running").then_some(vm))
    });
    let vm = vm.await?;
    assert_shape(&vm, "running")?;
    Ok(vm)
}

/// Cores, GB of memory and GB of storage that VMs hold.
pub async fn held(client: &Client) -> Result<Value> {
    Ok(client.get("/summary").await?.expect(200)?["resources"]["allocated"].clone())
}

/// What [`held`] answers when nothing is held.
pub fn nothing() -> Value {
    json!({ "cpu": 0, "memory": 0, "storage": 0 })
}

/// Sees to it that this port listens for this computer alone, as it has to in development.
pub fn assert_only_here(port: u16) -> Result<()> {
    let listeners = ports::listeners(port)?;
    ensure!(!listeners.is_empty(), "nobody listens on port {port}");
    ensure!(listeners.iter().all(IpAddr::is_loopback), "port {port} is open on {listeners:?}");
    Ok(())
}

/// Sees to it that whoever connects to this port is told at once that there is nobody.
pub async fn assert_resets(port: u16) -> Result<()> {
    let connect = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.read(&mut [0; 1]).await
    };
    match wait::within("a connection to a stopped VM", Duration::from_secs(5), connect).await? {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("a connection to port {port} is not reset, it ends with {other:?}"),
    }
}

/// Sees to it that nothing of a deleted VM is left, of a provider that has no other.
pub async fn assert_no_trace(provider: &Provider, vm: &Value) -> Result<()> {
    let client = provider.client();
    let (id, name) = (text(vm, "id")?, text(vm, "name")?);
    for id in [id, name] {
        let path = format!("/vms/{id}");
        client.get(&path).await?.refusal(404)?;
        let refusal = client.delete(&path).await?.refusal(404)?;
        ensure!(refusal.contains("Not Found"), "the existing client does not know: {refusal}");
    }
    ensure!(client.get("/vms").await?.expect(200)? == json!([]), "VMs are left");
    assert_nothing_held(provider).await?;
    let files = provider.files_named(id)?;
    ensure!(files.is_empty(), "files are left: {files:?}");
    for mention in [id, name] {
        let rows = database::rows_that_mention(&provider.data_dir(), mention)?;
        ensure!(rows.is_empty(), "rows are left: {rows:?}");
    }
    Ok(())
}

/// Sees to it that no process runs, no port is taken and no resources are held.
pub async fn assert_nothing_held(provider: &Provider) -> Result<()> {
    let machines = provider.machines();
    ensure!(machines.is_empty(), "processes are left: {machines:?}");
    let taken: Vec<u16> = provider.ssh_ports().filter(|port| !ports::can_be_bound(*port)).collect();
    ensure!(taken.is_empty(), "ports are left open: {taken:?}");
    let held = held(provider.client()).await?;
    ensure!(held == nothing(), "resources are left held: {held}");
    Ok(())
}
