//! A component of the world `vm-backend`, as a [`VmBackend`]: values are converted, limits are set.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use super::{
    bindings::vm_backend::exports::golem::provider::vms,
    failure::Failure,
    health::Degraded,
    limits::{self, CallLimits},
    plugin::Plugin,
    text::plain_owned,
    vm_backend::{BootLimits, Image, Instance, InstanceSpec, PowerState, ProgressSink, VmBackend},
};

/// A VM backend behind the plugin contract.
#[derive(Clone)]
pub struct VmComponent(Arc<Plugin>);

impl VmComponent {
    pub(super) fn new(plugin: Arc<Plugin>) -> Self {
        Self(plugin)
    }

    fn instance(&self, instance: vms::Instance) -> Result<Instance, Failure> {
        let ssh = instance
            .ssh
            .map(|endpoint| -> Result<SocketAddr, Failure> {
                let address: IpAddr = endpoint.address.parse().map_err(|_| {
                    let address = plain_owned(endpoint.address, limits::NAME_BYTES);
                    self.0.wrong(format_args!("`{address}`, which is no IP address"))
                })?;
                Ok(SocketAddr::new(address, endpoint.port))
            })
            .transpose()?;
        Ok(Instance {
            id: plain_owned(instance.id, limits::NAME_BYTES),
            power: match instance.power {
                vms::PowerState::Starting => PowerState::Starting,
                vms::PowerState::Running => PowerState::Running,
                vms::PowerState::Stopping => PowerState::Stopping,
                vms::PowerState::Stopped => PowerState::Stopped,
                vms::PowerState::Crashed => PowerState::Crashed,
            },
            ssh,
            ip_address: instance.ip_address.map(|text| plain_owned(text, limits::NAME_BYTES)),
            detail: instance.detail.map(|text| plain_owned(text, limits::TEXT_BYTES)),
        })
    }
}

#[async_trait]
impl VmBackend for VmComponent {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn degraded(&self) -> Vec<Degraded> {
        self.0.degraded()
    }

    async fn images(&self) -> Result<Vec<Image>, Failure> {
        let images: Vec<vms::Image> =
            self.0.call("images", self.0.limits.look_up, None, ()).await?;
        self.0.check_length("images", images.len(), limits::LISTED)?;
        Ok(images
            .into_iter()
            .map(|image| Image {
                alias: plain_owned(image.alias, limits::NAME_BYTES),
                description: plain_owned(image.description, limits::TEXT_BYTES),
            })
            .collect())
    }

    async fn limits(&self) -> Result<BootLimits, Failure> {
        let limits: vms::BootLimits = self.0.call("limits", self.0.limits.probe, None, ()).await?;
        Ok(BootLimits {
            parallel_boots: (limits.parallel_boots as usize).max(1),
            boot_timeout: Duration::from_millis(limits.boot_timeout_ms.into())
                .min(self.0.limits.await_ready.deadline),
        })
    }

    async fn create(
        &self,
        spec: &InstanceSpec,
        progress: ProgressSink,
    ) -> Result<Instance, Failure> {
        let spec = vms::Spec {
            id: spec.id.clone(),
            hostname: spec.hostname.clone(),
            cpu_cores: spec.cpu_cores,
            memory_mib: spec.memory_mib,
            storage_mib: spec.storage_mib,
            image: spec.image.clone(),
            ssh_authorized_keys: spec.ssh_authorized_keys.clone(),
        };
        let instance: vms::Instance =
            self.0.call("create", self.0.limits.create, Some(progress), (&spec,)).await?;
        self.instance(instance)
    }

    async fn start(&self, id: &str, progress: ProgressSink) -> Result<Instance, Failure> {
        let instance: vms::Instance =
            self.0.call("start", self.0.limits.start, Some(progress), (id,)).await?;
        self.instance(instance)
    }

    async fn await_ready(&self, id: &str, progress: ProgressSink) -> Result<Instance, Failure> {
        let instance: vms::Instance =
            self.0.call("await-ready", self.0.limits.await_ready, Some(progress), (id,)).await?;
        self.instance(instance)
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<Instance, Failure> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let stop = self.0.limits.stop;
        let limits = CallLimits { deadline: stop.deadline + grace, ..stop };
        let instance: vms::Instance = self.0.call("stop", limits, None, (id, grace_ms)).await?;
        self.instance(instance)
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        self.0.call("delete", self.0.limits.delete, None, (id,)).await
    }

    async fn inspect(&self, id: &str) -> Result<Instance, Failure> {
        let instance: vms::Instance =
            self.0.call("inspect", self.0.limits.look_up, None, (id,)).await?;
        self.instance(instance)
    }

    async fn inspect_all(&self) -> Result<Vec<Instance>, Failure> {
        let instances: Vec<vms::Instance> =
            self.0.call("inspect-all", self.0.limits.look_up, None, ()).await?;
        self.0.check_length("machines", instances.len(), limits::MACHINES)?;
        instances.into_iter().map(|instance| self.instance(instance)).collect()
    }

    async fn add_ssh_key(&self, id: &str, key: &str) -> Result<(), Failure> {
        self.0.call("add-ssh-key", self.0.limits.add_ssh_key, None, (id, key)).await
    }
}
