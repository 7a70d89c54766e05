//! A component of the world `vm-backend`, as a [`VmBackend`]: values are converted, limits are set, failures explained.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use wasmtime::Store;

use super::{
    bindings::{
        self, Error, exports::golem::provider::plugin as wit_plugin, exports::golem::provider::vms,
    },
    call::{CallLimits, CallState, PluginContext},
    component::{CallError, PluginComponent},
    vm_backend::{
        BackendError, BackendErrorKind, BootLimits, Image, Instance, InstanceSpec, PowerState,
        ProgressSink, VmBackend,
    },
};

/// How long each call may take. Waiting is cheap; what these bound is how long somebody is left without an answer.
mod limits {
    use super::{CallLimits, Duration};

    const fn limits(deadline_s: u64, computing_s: u64) -> CallLimits {
        CallLimits {
            deadline: Duration::from_secs(deadline_s),
            computing: Duration::from_secs(computing_s),
        }
    }

    /// Computed from the component alone.
    pub const DESCRIBE: CallLimits = limits(5, 1);
    /// May try accelerators and set up a firewall.
    pub const PROBE: CallLimits = limits(60, 2);
    /// Answers what is known already.
    pub const LOOK_UP: CallLimits = limits(30, 2);
    /// May download gigabytes over a slow line.
    pub const CREATE: CallLimits = limits(3600, 10);
    pub const START: CallLimits = limits(120, 5);
    /// Above the longest `boot-timeout` that is sensible anywhere.
    pub const AWAIT_READY: CallLimits = limits(1800, 30);
    /// On top of the grace that the machine is given.
    pub const STOP: CallLimits = limits(60, 5);
    pub const DELETE: CallLimits = limits(120, 5);
    pub const ADD_SSH_KEY: CallLimits = limits(60, 5);
}

/// Longest `boot-timeout` taken from a plugin.
const MAX_BOOT_TIMEOUT: Duration = limits::AWAIT_READY.deadline;

/// A VM backend behind the plugin contract.
pub struct VmComponent {
    component: PluginComponent,
    plugin: Arc<PluginContext>,
}

/// What a plugin says of itself.
#[derive(Debug, Clone)]
pub struct Description {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub license: String,
    /// JSON Schema.
    pub settings_schema: String,
}

/// One thing that a plugin's probe noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub message: String,
    pub remedy: Option<String>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warning,
    /// The plugin cannot work on this machine.
    Blocking,
}

impl VmComponent {
    pub(super) fn new(component: PluginComponent, plugin: Arc<PluginContext>) -> Self {
        Self { component, plugin }
    }

    /// What the plugin says of itself.
    pub async fn describe(&self) -> Result<Description, BackendError> {
        let answer = self
            .call("describe", limits::DESCRIBE, None, async |instance, store| {
                instance.golem_provider_plugin().call_describe(store).await.map(Ok)
            })
            .await?;
        let wit_plugin::Description { name, version, summary, license, settings_schema } = answer;
        Ok(Description { name, version, summary, license, settings_schema })
    }

    /// Can the plugin work here?
    pub async fn probe(&self) -> Result<Vec<Finding>, BackendError> {
        let findings = self
            .call("probe", limits::PROBE, None, async |instance, store| {
                instance.golem_provider_plugin().call_probe(store).await
            })
            .await?;
        Ok(findings
            .into_iter()
            .map(|finding| Finding {
                severity: match finding.severity {
                    wit_plugin::Severity::Info => Severity::Info,
                    wit_plugin::Severity::Warning => Severity::Warning,
                    wit_plugin::Severity::Blocking => Severity::Blocking,
                },
                message: finding.message,
                remedy: finding.remedy,
            })
            .collect())
    }

    async fn call<T>(
        &self,
        function: &str,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        call: impl AsyncFnOnce(
            &bindings::VmBackend,
            &mut Store<CallState>,
        ) -> wasmtime::Result<Result<T, Error>>,
    ) -> Result<T, BackendError> {
        match self.component.call(&self.plugin, limits, progress, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => {
                let kind = match &error {
                    CallError::TooLong(_) | CallError::Runaway(_) => {
                        BackendErrorKind::DeadlineExceeded
                    }
                    CallError::Memory(_) => BackendErrorKind::ResourceExhausted,
                    CallError::Panic(_) | CallError::Trap(_) => BackendErrorKind::Internal,
                };
                let name = &self.plugin.name;
                tracing::error!(plugin.name = %name, "`{function}` of the plugin {name} failed: {error}");
                Err(BackendError::new(
                    kind,
                    format!("`{function}` of the VM backend {name} failed: {error}"),
                ))
            }
        }
    }

    fn instance(&self, instance: vms::Instance) -> Result<Instance, BackendError> {
        let ssh = instance
            .ssh
            .map(|endpoint| -> Result<SocketAddr, BackendError> {
                let address: IpAddr = endpoint.address.parse().map_err(|_| {
                    BackendError::new(
                        BackendErrorKind::Internal,
                        format!(
                            "the VM backend {} answered `{}`, which is no IP address",
                            self.plugin.name, endpoint.address
                        ),
                    )
                })?;
                Ok(SocketAddr::new(address, endpoint.port))
            })
            .transpose()?;
        Ok(Instance {
            id: instance.id,
            power: match instance.power {
                vms::PowerState::Starting => PowerState::Starting,
                vms::PowerState::Running => PowerState::Running,
                vms::PowerState::Stopping => PowerState::Stopping,
                vms::PowerState::Stopped => PowerState::Stopped,
                vms::PowerState::Crashed => PowerState::Crashed,
            },
            ssh,
            ip_address: instance.ip_address,
            detail: instance.detail,
        })
    }
}

#[async_trait]
impl VmBackend for VmComponent {
    fn name(&self) -> &str {
        &self.plugin.name
    }

    async fn images(&self) -> Result<Vec<Image>, BackendError> {
        let images = self
            .call("images", limits::LOOK_UP, None, async |instance, store| {
                instance.golem_provider_vms().call_images(store).await
            })
            .await?;
        Ok(images
            .into_iter()
            .map(|image| Image { alias: image.alias, description: image.description })
            .collect())
    }

    async fn limits(&self) -> Result<BootLimits, BackendError> {
        let limits = self
            .call("limits", limits::PROBE, None, async |instance, store| {
                instance.golem_provider_vms().call_limits(store).await
            })
            .await?;
        Ok(BootLimits {
            parallel_boots: (limits.parallel_boots as usize).max(1),
            boot_timeout: Duration::from_millis(limits.boot_timeout_ms.into())
                .min(MAX_BOOT_TIMEOUT),
        })
    }

    async fn create(
        &self,
        spec: &InstanceSpec,
        progress: ProgressSink,
    ) -> Result<Instance, BackendError> {
        let spec = vms::Spec {
            id: spec.id.clone(),
            hostname: spec.hostname.clone(),
            cpu_cores: spec.cpu_cores,
            memory_mib: spec.memory_mib,
            storage_mib: spec.storage_mib,
            image: spec.image.clone(),
            ssh_authorized_keys: spec.ssh_authorized_keys.clone(),
        };
        let instance = self
            .call("create", limits::CREATE, Some(progress), async |instance, store| {
                instance.golem_provider_vms().call_create(store, &spec).await
            })
            .await?;
        self.instance(instance)
    }

    async fn start(&self, id: &str, progress: ProgressSink) -> Result<Instance, BackendError> {
        let instance = self
            .call("start", limits::START, Some(progress), async |instance, store| {
                instance.golem_provider_vms().call_start(store, id).await
            })
            .await?;
        self.instance(instance)
    }

    async fn await_ready(
        &self,
        id: &str,
        progress: ProgressSink,
    ) -> Result<Instance, BackendError> {
        let instance = self
            .call("await-ready", limits::AWAIT_READY, Some(progress), async |instance, store| {
                instance.golem_provider_vms().call_await_ready(store, id).await
            })
            .await?;
        self.instance(instance)
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<Instance, BackendError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let limits = CallLimits { deadline: limits::STOP.deadline + grace, ..limits::STOP };
        let instance = self
            .call("stop", limits, None, async |instance, store| {
                instance.golem_provider_vms().call_stop(store, id, grace_ms).await
            })
            .await?;
        self.instance(instance)
    }

    async fn delete(&self, id: &str) -> Result<(), BackendError> {
        self.call("delete", limits::DELETE, None, async |instance, store| {
            instance.golem_provider_vms().call_delete(store, id).await
        })
        .await
    }

    async fn inspect(&self, id: &str) -> Result<Instance, BackendError> {
        let instance = self
            .call("inspect", limits::LOOK_UP, None, async |instance, store| {
                instance.golem_provider_vms().call_inspect(store, id).await
            })
            .await?;
        self.instance(instance)
    }

    async fn inspect_all(&self) -> Result<Vec<Instance>, BackendError> {
        let instances = self
            .call("inspect-all", limits::LOOK_UP, None, async |instance, store| {
                instance.golem_provider_vms().call_inspect_all(store).await
            })
            .await?;
        instances.into_iter().map(|instance| self.instance(instance)).collect()
    }

    async fn add_ssh_key(&self, id: &str, key: &str) -> Result<(), BackendError> {
        self.call("add-ssh-key", limits::ADD_SSH_KEY, None, async |instance, store| {
            instance.golem_provider_vms().call_add_ssh_key(store, id, key).await
        })
        .await
    }
}

impl From<Error> for BackendError {
    fn from(error: Error) -> Self {
        let (kind, message) = match error {
            Error::NotFound(message) => (BackendErrorKind::NotFound, message),
            Error::AlreadyExists(message) => (BackendErrorKind::AlreadyExists, message),
            Error::InvalidArgument(message) => (BackendErrorKind::InvalidArgument, message),
            Error::FailedPrecondition(message) => (BackendErrorKind::FailedPrecondition, message),
            Error::ResourceExhausted(message) => (BackendErrorKind::ResourceExhausted, message),
            Error::Unavailable(message) => (BackendErrorKind::Unavailable, message),
            Error::DeadlineExceeded(message) => (BackendErrorKind::DeadlineExceeded, message),
            Error::PermissionDenied(message) => (BackendErrorKind::PermissionDenied, message),
            Error::Unsupported(message) => (BackendErrorKind::Unsupported, message),
            Error::Internal(message) => (BackendErrorKind::Internal, message),
        };
        Self { kind, message }
    }
}
