//! A provider whose machines are in memory: the real API, VM service, store, tracker and proxy, without plugins.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use golem_provider::{
    api::{Api, ApiState},
    owners::Gatekeeper,
    payments::pricing::Prices,
    plugins::{
        Failure, VmBackend,
        vm_backend::{BootLimits, Image, Instance, InstanceSpec, PowerState, ProgressSink},
    },
    ports::PortAllocator,
    proxy::{Proxy, ProxyConfig},
    resources::{Monitor, Rules, Thresholds, Tracker},
    settings::{self, Inputs, Overrides},
    store::Store,
    vms::{Backends, VmService, VmServiceConfig, VmServiceParts},
};
use tempfile::TempDir;
use tokio::sync::watch;

/// What a VM of the benchmarks is called.
pub const VM: &str = "web";

/// The request that makes it.
pub const VM_REQUEST: &str = r#"{"name": "web", "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10}"#;

/// Where reads go.
pub const VM_PATH: &str = "/api/v1/vms/web";
pub const INFO_PATH: &str = "/api/v1/provider/info";

/// The image of [`MemoryBackend`].
const IMAGE: &str = "24.04";

/// A provider and the directory that it works in.
pub struct Provider {
    pub api: Api,
    _directory: TempDir,
}

impl Provider {
    /// # Errors
    /// When a part of it cannot be started.
    pub async fn start() -> Result<Provider> {
        let directory = tempfile::tempdir().context("making a directory")?;
        let environment = [
            ("GOLEM_ENVIRONMENT", "development"),
            ("GOLEM_PROVIDER_RATE_LIMIT_PER_MINUTE", "0"),
            ("GOLEM_PROVIDER_PUBLIC_IP", "203.0.113.5"),
            ("GOLEM_PROVIDER_COUNTRY", "SE"),
        ];
        let inputs = Inputs {
            environment: environment.map(|(key, value)| (key.into(), value.into())).to_vec(),
            working_dir: None,
            home_dir: Some(directory.path().to_owned()),
        };
        let settings =
            settings::resolve(&inputs, &Overrides::default()).context("reading settings")?;
        let monitor = Monitor::start(directory.path().join("vms")).await?;
        let everything = Thresholds { cpu_percent: 100, memory_percent: 100, storage_percent: 100 };
        let rules = Rules { thresholds: everything, ..Rules::default() };
        let ports = golem_provider_tests::ports::free_block()?.ssh;
        let bind = [127, 0, 0, 1].into();
        let store = Store::open(directory.path()).await?;
        let vms = VmService::start(VmServiceParts {
            store: store.clone(),
            proxy: Proxy::new(ProxyConfig { bind, ..ProxyConfig::default() }),
            backends: Backends::new(Arc::new(MemoryBackend::default()), Vec::new()),
            resources: Tracker::new(rules, monitor),
            ports: PortAllocator::new(ports)?,
            config: VmServiceConfig {
                default_image: IMAGE.to_owned(),
                ..VmServiceConfig::default()
            },
        })
        .await?;
        let id = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
        let prices = watch::Sender::new(Prices::new(settings.pricing.usd, None)).subscribe();
        let state = ApiState::new(&settings, id.to_owned(), vms, prices);
        // As it is in what operators run, so that every request is looked at for a signature.
        let gatekeeper = Gatekeeper::open(id.parse()?, store).await?;
        let api = Api::new(state.with_gatekeeper(gatekeeper));
        Ok(Provider { api, _directory: directory })
    }
}

/// A hypervisor that does everything at once.
#[derive(Default)]
struct MemoryBackend {
    machines: Mutex<Vec<String>>,
}

fn running(id: &str) -> Instance {
    Instance {
        id: id.to_owned(),
        power: PowerState::Running,
        ssh: Some(([127, 0, 0, 1], 9).into()),
        ip_address: Some("10.0.2.15".to_owned()),
        detail: None,
    }
}

#[async_trait]
impl VmBackend for MemoryBackend {
    fn name(&self) -> &str {
        "memory"
    }

    async fn images(&self) -> Result<Vec<Image>, Failure> {
        Ok(vec![Image { alias: IMAGE.to_owned(), description: "nothing".to_owned() }])
    }

    async fn limits(&self) -> Result<BootLimits, Failure> {
        Ok(BootLimits { parallel_boots: 4, boot_timeout: Duration::from_secs(10) })
    }

    async fn create(
        &self,
        spec: &InstanceSpec,
        _progress: ProgressSink,
    ) -> Result<Instance, Failure> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.push(spec.id.clone());
        Ok(running(&spec.id))
    }

    async fn start(&self, id: &str, _progress: ProgressSink) -> Result<Instance, Failure> {
        Ok(running(id))
    }

    async fn await_ready(&self, id: &str, _progress: ProgressSink) -> Result<Instance, Failure> {
        Ok(running(id))
    }

    async fn stop(&self, id: &str, _grace: Duration) -> Result<Instance, Failure> {
        Ok(Instance { power: PowerState::Stopped, ..running(id) })
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.retain(|machine| machine != id);
        Ok(())
    }

    async fn inspect(&self, id: &str) -> Result<Instance, Failure> {
        Ok(running(id))
    }

    async fn inspect_all(&self) -> Result<Vec<Instance>, Failure> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(machines.iter().map(|id| running(id)).collect())
    }

    async fn add_ssh_key(&self, _id: &str, _key: &str) -> Result<(), Failure> {
        Ok(())
    }
}
