//! For tests of this crate: a backend in memory that fails, hangs and lies on request, and a provider's VM service around
//! it that can be killed and started again.
//!
//! The machines live in the backend and survive the service, as real ones do.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tempfile::TempDir;

use super::{
    Backends, Deadlines, NewVm, Ownership, Resources, VmName, VmService, VmServiceConfig,
    VmServiceParts,
};
use crate::{
    plugins::{
        Failure, FailureKind,
        vm_backend::{
            BootLimits, Image, Instance, InstanceSpec, PowerState, Progress, ProgressSink,
            VmBackend,
        },
    },
    ports::PortAllocator,
    proxy::{Proxy, ProxyConfig},
    resources::{Measurement, Monitor, Rules, Tracker},
    store::Store,
};

/// The calls a backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Images,
    Limits,
    Create,
    Start,
    AwaitReady,
    Stop,
    Delete,
    Inspect,
    InspectAll,
    AddKey,
}

impl Call {
    pub const ALL: [Call; 10] = [
        Call::Images,
        Call::Limits,
        Call::Create,
        Call::Start,
        Call::AwaitReady,
        Call::Stop,
        Call::Delete,
        Call::Inspect,
        Call::InspectAll,
        Call::AddKey,
    ];
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Does nothing and says so.
    Fail(FailureKind),
    /// Does what was asked, then says that it failed.
    FailAfter(FailureKind),
    /// Does nothing and never returns.
    Hang,
    /// Does what was asked and never returns.
    HangAfter,
    /// Does nothing and says it is done; lists nothing.
    Lie,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub power: PowerState,
    pub spec: InstanceSpec,
    pub keys: Vec<String>,
}

/// A hypervisor in memory. Clones are the same one.
#[derive(Clone)]
pub struct MemoryBackend {
    world: Arc<Mutex<World>>,
}

struct World {
    machines: BTreeMap<String, Machine>,
    /// Where every machine's SSH is said to be.
    ssh: SocketAddr,
    limits: BootLimits,
    boot_time: Duration,
    /// The next calls of a kind go wrong like this.
    faults: HashMap<Call, VecDeque<Fault>>,
    /// Every call of a kind goes wrong like this.
    always: HashMap<Call, Fault>,
    calls: Vec<(Call, String)>,
    booting: usize,
    most_booting: usize,
}

impl Default for MemoryBackend {
    fn default() -> Self {
        let world = World {
            machines: BTreeMap::new(),
            ssh: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)),
            limits: BootLimits { parallel_boots: 4, boot_timeout: Duration::from_millis(400) },
            boot_time: Duration::ZERO,
            faults: HashMap::new(),
            always: HashMap::new(),
            calls: Vec::new(),
            booting: 0,
            most_booting: 0,
        };
        MemoryBackend { world: Arc::new(Mutex::new(world)) }
    }
}

impl MemoryBackend {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The next call of this kind goes wrong; queued behind those said before.
    pub fn next(&self, call: Call, fault: Fault) {
        self.world().faults.entry(call).or_default().push_back(fault);
    }

    /// Every call of this kind goes wrong from now on.
    pub fn always(&self, call: Call, fault: Fault) {
        self.world().always.insert(call, fault);
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        let mut world = self.world();
        world.faults.clear();
        world.always.clear();
    }

    pub fn set_boot_time(&self, boot_time: Duration) {
        self.world().boot_time = boot_time;
    }

    pub fn set_parallel_boots(&self, parallel_boots: usize) {
        self.world().limits.parallel_boots = parallel_boots;
    }

    pub fn set_ssh(&self, ssh: SocketAddr) {
        self.world().ssh = ssh;
    }

    /// The machine dies, or a person changes it behind the provider's back.
    pub fn set_power(&self, id: &str, power: PowerState) {
        if let Some(machine) = self.world().machines.get_mut(id) {
            machine.power = power;
        }
    }

    /// A machine that nobody asked for.
    pub fn plant(&self, id: &str) {
        let spec = InstanceSpec {
            id: id.to_owned(),
            hostname: id.to_owned(),
            cpu_cores: 1,
            memory_mib: 1024,
            storage_mib: 10240,
            image: "24.04".to_owned(),
            ssh_authorized_keys: Vec::new(),
        };
        let machine = Machine { power: PowerState::Running, spec, keys: Vec::new() };
        self.world().machines.insert(id.to_owned(), machine);
    }

    /// The machine vanishes.
    pub fn remove(&self, id: &str) {
        self.world().machines.remove(id);
    }

    pub fn machines(&self) -> BTreeMap<String, Machine> {
        self.world().machines.clone()
    }

    pub fn count(&self, call: Call) -> usize {
        self.world().calls.iter().filter(|(made, _)| *made == call).count()
    }

    /// The most machines that booted at the same time.
    pub fn most_booting(&self) -> usize {
        self.world().most_booting
    }

    /// Runs one call with whatever was ordered to go wrong with it.
    async fn call<T>(
        &self,
        call: Call,
        id: &str,
        lie: impl FnOnce(&mut World) -> T,
        work: impl FnOnce(&mut World) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // Like a real one: never done at once.
        tokio::task::yield_now().await;
        let fault = {
            let mut world = self.world();
            world.calls.push((call, id.to_owned()));
            let next = world.faults.get_mut(&call).and_then(VecDeque::pop_front);
            next.or_else(|| world.always.get(&call).copied())
        };
        let failed =
            |kind| Err(Failure::new(kind, format!("{call:?} went wrong, as the test wanted")));
        match fault {
            None => work(&mut self.world()),
            Some(Fault::Fail(kind)) => failed(kind),
            Some(Fault::FailAfter(kind)) => {
                let _ = work(&mut self.world());
                failed(kind)
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::HangAfter) => {
                let _ = work(&mut self.world());
                std::future::pending().await
            }
            Some(Fault::Lie) => Ok(lie(&mut self.world())),
        }
    }
}

impl World {
    fn instance(&self, id: &str) -> Result<Instance, Failure> {
        let machine = self.machines.get(id).ok_or_else(|| no_machine(id))?;
        Ok(self.seen(id, machine.power))
    }

    fn seen(&self, id: &str, power: PowerState) -> Instance {
        let runs =
            matches!(power, PowerState::Starting | PowerState::Running | PowerState::Stopping);
        Instance {
            id: id.to_owned(),
            power,
            ssh: runs.then_some(self.ssh),
            ip_address: runs.then(|| "10.0.2.15".to_owned()),
            detail: None,
        }
    }

    fn machine(&mut self, id: &str) -> Result<&mut Machine, Failure> {
        self.machines.get_mut(id).ok_or_else(|| no_machine(id))
    }

    fn start(&mut self, id: &str) -> Result<Instance, Failure> {
        let machine = self.machine(id)?;
        if !matches!(machine.power, PowerState::Running) {
            machine.power = PowerState::Starting;
        }
        self.instance(id)
    }
}

fn no_machine(id: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("there is no machine {id}"))
}

#[async_trait]
impl VmBackend for MemoryBackend {
    fn name(&self) -> &str {
        "memory"
    }

    async fn images(&self) -> Result<Vec<Image>, Failure> {
        let images = || {
            ["22.04", "24.04"]
                .map(|alias| Image { alias: alias.to_owned(), description: alias.to_owned() })
                .to_vec()
        };
        self.call(Call::Images, "", |_| images(), |_| Ok(images())).await
    }

    async fn limits(&self) -> Result<BootLimits, Failure> {
        self.call(Call::Limits, "", |world| world.limits, |world| Ok(world.limits)).await
    }

    async fn create(
        &self,
        spec: &InstanceSpec,
        progress: ProgressSink,
    ) -> Result<Instance, Failure> {
        progress(Progress { stage: "preparing the disk".to_owned(), percent: Some(50) });
        let id = spec.id.as_str();
        self.call(
            Call::Create,
            id,
            |world| world.seen(id, PowerState::Starting),
            |world| {
                let machine = || Machine {
                    power: PowerState::Stopped,
                    spec: spec.clone(),
                    keys: spec.ssh_authorized_keys.clone(),
                };
                world.machines.entry(id.to_owned()).or_insert_with(machine);
                world.start(id)
            },
        )
        .await
    }

    async fn start(&self, id: &str, _progress: ProgressSink) -> Result<Instance, Failure> {
        self.call(
            Call::Start,
            id,
            |world| world.seen(id, PowerState::Starting),
            |world| world.start(id),
        )
        .await
    }

    async fn await_ready(&self, id: &str, _progress: ProgressSink) -> Result<Instance, Failure> {
        struct Booting<'a>(&'a MemoryBackend);
        impl Drop for Booting<'_> {
            fn drop(&mut self) {
                self.0.world().booting -= 1;
            }
        }
        let boot_time = {
            let mut world = self.world();
            world.booting += 1;
            world.most_booting = world.most_booting.max(world.booting);
            world.boot_time
        };
        let _booting = Booting(self);
        if !boot_time.is_zero() {
            tokio::time::sleep(boot_time).await;
        }
        self.call(
            Call::AwaitReady,
            id,
            |world| world.seen(id, PowerState::Running),
            |world| {
                let machine = world.machine(id)?;
                if machine.power == PowerState::Starting {
                    machine.power = PowerState::Running;
                }
                if machine.power != PowerState::Running {
                    let message = "the machine ended while it booted";
                    return Err(Failure::new(FailureKind::FailedPrecondition, message));
                }
                world.instance(id)
            },
        )
        .await
    }

    async fn stop(&self, id: &str, _grace: Duration) -> Result<Instance, Failure> {
        self.call(
            Call::Stop,
            id,
            |world| world.seen(id, PowerState::Stopped),
            |world| {
                world.machine(id)?.power = PowerState::Stopped;
                world.instance(id)
            },
        )
        .await
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        self.call(
            Call::Delete,
            id,
            |_| (),
            |world| {
                world.machines.remove(id);
                Ok(())
            },
        )
        .await
    }

    async fn inspect(&self, id: &str) -> Result<Instance, Failure> {
        self.call(
            Call::Inspect,
            id,
            |world| world.seen(id, PowerState::Stopped),
            |world| world.instance(id),
        )
        .await
    }

    async fn inspect_all(&self) -> Result<Vec<Instance>, Failure> {
        let all = |world: &mut World| {
            Ok(world.machines.iter().map(|(id, machine)| world.seen(id, machine.power)).collect())
        };
        self.call(Call::InspectAll, "", |_| Vec::new(), all).await
    }

    async fn add_ssh_key(&self, id: &str, key: &str) -> Result<(), Failure> {
        self.call(
            Call::AddKey,
            id,
            |_| (),
            |world| {
                let machine = world.machine(id)?;
                if machine.power != PowerState::Running {
                    return Err(Failure::new(FailureKind::FailedPrecondition, "it does not run"));
                }
                if !machine.keys.iter().any(|have| have == key) {
                    machine.keys.push(key.to_owned());
                }
                Ok(())
            },
        )
        .await
    }
}

/// What outlives the service: the data directory, the machines, and what the operator set.
pub struct Fixture {
    pub directory: TempDir,
    pub backend: MemoryBackend,
    pub ports: Range<u16>,
    pub machine: Measurement,
    pub config: VmServiceConfig,
}

/// A VM service that runs, with what it was made of.
pub struct Node {
    pub service: VmService,
    pub proxy: Proxy,
    pub store: Store,
}

const GB: u64 = 1 << 30;

impl Default for Fixture {
    /// A large machine with ten ports, whose time limits are short enough for tests to reach them.
    fn default() -> Self {
        let deadlines = Deadlines {
            create: Duration::from_millis(400),
            start: Duration::from_millis(400),
            boot: Duration::from_secs(60),
            boot_slack: Duration::ZERO,
            stop_slack: Duration::from_millis(400),
            delete: Duration::from_millis(400),
            ask: Duration::from_millis(400),
            add_key: Duration::from_millis(400),
        };
        let config = VmServiceConfig {
            max_vms: 100,
            stop_grace: Duration::from_millis(10),
            deadlines,
            reconcile_every: Duration::from_millis(40),
            retry_every: Duration::from_millis(20),
            ..VmServiceConfig::default()
        };
        let machine = Measurement {
            cpu_cores: 64,
            memory_total_bytes: 256 * GB,
            memory_available_bytes: 256 * GB,
            storage_total_bytes: 4000 * GB,
            storage_free_bytes: 4000 * GB,
            vm_bytes_written: 0,
        };
        Fixture {
            directory: tempfile::tempdir().unwrap(),
            backend: MemoryBackend::default(),
            ports: free_ports(10),
            machine,
            config,
        }
    }
}

impl Fixture {
    /// A provider starts on what is there.
    pub async fn start(&self) -> Node {
        self.start_with(Backends::new(Arc::new(self.backend.clone()), Vec::new())).await
    }

    pub async fn start_with(&self, backends: Backends) -> Node {
        let store = Store::open(self.directory.path()).await.unwrap();
        let proxy =
            Proxy::new(ProxyConfig { bind: Ipv4Addr::LOCALHOST.into(), ..ProxyConfig::default() });
        let parts = VmServiceParts {
            store: store.clone(),
            proxy: proxy.clone(),
            backends,
            resources: Tracker::new(Rules::default(), Monitor::fixed(self.machine)),
            ports: PortAllocator::new(self.ports.clone()).unwrap(),
            config: self.config.clone(),
        };
        Node { service: VmService::start(parts).await.unwrap(), proxy, store }
    }
}

impl Node {
    /// The provider's process dies: whatever was under way ends where it is.
    pub async fn kill(self) {
        self.service.kill().await;
        self.end().await;
    }

    /// The provider is stopped as an operator stops it.
    pub async fn stop(self, stop_vms: bool) {
        self.service.shutdown(stop_vms, Duration::from_secs(2)).await;
        self.end().await;
    }

    async fn end(self) {
        self.proxy.shutdown(Duration::from_secs(5)).await;
        self.store.close().await;
    }
}

/// A small VM of that name.
pub fn small(name: &str) -> NewVm {
    NewVm {
        payment: None,
        backend: None,
        name: VmName::parse(name).unwrap(),
        resources: Resources::new(1, 1, 10).unwrap(),
        image: None,
        ssh_key: None,
        ownership: Ownership::Nobody,
    }
}

/// As many ports in a row that nothing listens on, and that no other test of this process gets. Below the range from
/// which the kernel takes ports for outgoing connections.
pub fn free_ports(count: u16) -> Range<u16> {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time begin in different places.
    let offset = u16::try_from(std::process::id() % u32::from(LAST - FIRST)).unwrap();
    loop {
        let taken = NEXT.fetch_add(count, Ordering::Relaxed);
        let start = FIRST + (offset + taken) % (LAST - FIRST);
        let range = start..start + count;
        if range.clone().all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return range;
        }
    }
}
