//! A component of the world `vm-backend`, as a [`VmBackend`]: values are converted, limits are set, failures explained.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, Lower};

use super::{
    bindings::{
        Error, exports::golem::provider::plugin as wit_plugin, exports::golem::provider::vms,
    },
    call::PluginContext,
    component::{CallError, PluginComponent},
    health::{Degraded, FAILURES_IN_A_ROW, Health},
    limits::{self, CallLimits},
    text::plain_owned,
    vm_backend::{
        BackendError, BackendErrorKind, BootLimits, Image, Instance, InstanceSpec, PowerState,
        ProgressSink, VmBackend,
    },
};

/// A VM backend behind the plugin contract.
pub struct VmComponent {
    component: Arc<PluginComponent>,
    plugin: Arc<PluginContext>,
    limits: limits::Functions,
    health: Health,
}

/// What a plugin says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub license: String,
    /// JSON Schema.
    pub settings_schema: String,
}

/// One thing that a plugin's probe noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    pub message: String,
    pub remedy: Option<String>,
}

impl Finding {
    pub fn blocks(&self) -> bool {
        self.severity == Severity::Blocking
    }

    /// What was noticed, and what to do about it.
    pub fn sentence(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}; {remedy}", self.message),
            None => self.message.clone(),
        }
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    /// The plugin cannot work on this machine.
    Blocking,
}

impl VmComponent {
    pub(super) fn new(
        component: impl Into<Arc<PluginComponent>>,
        plugin: Arc<PluginContext>,
        limits: limits::Functions,
    ) -> Self {
        Self { component: component.into(), plugin, limits, health: Health::default() }
    }

    /// What the plugin says of itself.
    pub async fn describe(&self) -> Result<Description, BackendError> {
        let answer = self
            .component
            .describe(&self.plugin, self.limits.describe)
            .await
            .map_err(|error| self.failed("describe", &error))?;
        let schema = answer.settings_schema;
        if schema.len() > limits::SCHEMA_BYTES {
            return Err(self.wrong(format_args!(
                "a settings schema of {} bytes, of which {} are taken",
                schema.len(),
                limits::SCHEMA_BYTES
            )));
        }
        let name = |text| plain_owned(text, limits::NAME_BYTES);
        Ok(Description {
            name: name(answer.name),
            version: name(answer.version),
            summary: name(answer.summary),
            license: name(answer.license),
            settings_schema: schema,
        })
    }

    /// Can the plugin work here?
    pub async fn probe(&self) -> Result<Vec<Finding>, BackendError> {
        let findings: Vec<wit_plugin::Finding> =
            self.call("probe", self.limits.probe, None, ()).await?;
        self.check_length("findings", findings.len(), limits::LISTED)?;
        Ok(findings
            .into_iter()
            .map(|finding| Finding {
                severity: match finding.severity {
                    wit_plugin::Severity::Info => Severity::Info,
                    wit_plugin::Severity::Warning => Severity::Warning,
                    wit_plugin::Severity::Blocking => Severity::Blocking,
                },
                message: plain_owned(finding.message, limits::TEXT_BYTES),
                remedy: finding.remedy.map(|remedy| plain_owned(remedy, limits::TEXT_BYTES)),
            })
            .collect())
    }

    async fn call<Arguments, T>(
        &self,
        function: &'static str,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        arguments: Arguments,
    ) -> Result<T, BackendError>
    where
        Arguments: ComponentNamedList + Lower + Send + Sync,
        Result<T, Error>: ComponentType + Lift + Send + Sync + 'static,
    {
        let name = &self.plugin.name;
        self.health.admit(function, Instant::now()).map_err(|degraded| {
            let message = format!("the VM backend {name} is degraded: {degraded}");
            BackendError::new(BackendErrorKind::Unavailable, message)
        })?;
        let call = self.component.call(&self.plugin, limits, progress, function, arguments);
        let outcome: Result<Result<T, Error>, CallError> = call.await;
        match outcome {
            Ok(answer) => {
                if self.health.answered(function) {
                    tracing::info!(plugin.name = %name, "`{function}` of the plugin {name} works again");
                }
                answer.map_err(BackendError::from)
            }
            // Too many at a time is not the plugin's fault.
            Err(error @ CallError::Crowded(_)) => Err(self.failed(function, &error)),
            Err(error) => {
                if self.health.failed(function, Instant::now()) {
                    tracing::error!(
                        plugin.name = %name,
                        "the plugin {name} is degraded: `{function}` has failed {FAILURES_IN_A_ROW} times in a row and is tried again with growing pauses; install another version of it, or report it to its author"
                    );
                }
                Err(self.failed(function, &error))
            }
        }
    }

    /// Tells the operator of a call without an answer, and makes an answer of it.
    fn failed(&self, function: &str, error: &CallError) -> BackendError {
        let kind = match error {
            CallError::TooLong(_) | CallError::Runaway(_) => BackendErrorKind::DeadlineExceeded,
            CallError::Crowded(_) => BackendErrorKind::Unavailable,
            CallError::Memory(_) | CallError::HandedOver | CallError::Handles => {
                BackendErrorKind::ResourceExhausted
            }
            CallError::Panic(_) | CallError::Trap(_) => BackendErrorKind::Internal,
        };
        let name = &self.plugin.name;
        let line = format!(
            "`{function}` of the plugin {name} failed: {error}; if this goes on, update the plugin or report it to its author"
        );
        if self.plugin.log.take(line.len()) {
            tracing::error!(plugin.name = %name, "{line}");
        }
        BackendError::new(kind, format!("{}{error}", self.no_answer(function)))
    }

    /// How the text of an error begins that the plugin did not answer: the call ended without an answer.
    pub(super) fn no_answer(&self, function: &str) -> String {
        format!("`{function}` of the VM backend {} failed: ", self.plugin.name)
    }

    /// The plugin answered something that makes no sense.
    fn wrong(&self, answer: impl std::fmt::Display) -> BackendError {
        BackendError::new(
            BackendErrorKind::Internal,
            format!(
                "the VM backend {} answered {answer}; this is a fault of the plugin: update it or report it to its author",
                self.plugin.name
            ),
        )
    }

    fn check_length(&self, what: &str, length: usize, most: usize) -> Result<(), BackendError> {
        if length <= most {
            return Ok(());
        }
        Err(self.wrong(format_args!("{length} {what}, of which {most} are taken")))
    }

    fn instance(&self, instance: vms::Instance) -> Result<Instance, BackendError> {
        let ssh = instance
            .ssh
            .map(|endpoint| -> Result<SocketAddr, BackendError> {
                let address: IpAddr = endpoint.address.parse().map_err(|_| {
                    let address = plain_owned(endpoint.address, limits::NAME_BYTES);
                    self.wrong(format_args!("`{address}`, which is no IP address"))
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
        &self.plugin.name
    }

    fn degraded(&self) -> Vec<Degraded> {
        self.health.degraded(Instant::now())
    }

    async fn images(&self) -> Result<Vec<Image>, BackendError> {
        let images: Vec<vms::Image> = self.call("images", self.limits.look_up, None, ()).await?;
        self.check_length("images", images.len(), limits::LISTED)?;
        Ok(images
            .into_iter()
            .map(|image| Image {
                alias: plain_owned(image.alias, limits::NAME_BYTES),
                description: plain_owned(image.description, limits::TEXT_BYTES),
            })
            .collect())
    }

    async fn limits(&self) -> Result<BootLimits, BackendError> {
        let limits: vms::BootLimits = self.call("limits", self.limits.probe, None, ()).await?;
        Ok(BootLimits {
            parallel_boots: (limits.parallel_boots as usize).max(1),
            boot_timeout: Duration::from_millis(limits.boot_timeout_ms.into())
                .min(self.limits.await_ready.deadline),
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
        let instance: vms::Instance =
            self.call("create", self.limits.create, Some(progress), (&spec,)).await?;
        self.instance(instance)
    }

    async fn start(&self, id: &str, progress: ProgressSink) -> Result<Instance, BackendError> {
        let instance: vms::Instance =
            self.call("start", self.limits.start, Some(progress), (id,)).await?;
        self.instance(instance)
    }

    async fn await_ready(
        &self,
        id: &str,
        progress: ProgressSink,
    ) -> Result<Instance, BackendError> {
        let instance: vms::Instance =
            self.call("await-ready", self.limits.await_ready, Some(progress), (id,)).await?;
        self.instance(instance)
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<Instance, BackendError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let stop = self.limits.stop;
        let limits = CallLimits { deadline: stop.deadline + grace, ..stop };
        let instance: vms::Instance = self.call("stop", limits, None, (id, grace_ms)).await?;
        self.instance(instance)
    }

    async fn delete(&self, id: &str) -> Result<(), BackendError> {
        self.call("delete", self.limits.delete, None, (id,)).await
    }

    async fn inspect(&self, id: &str) -> Result<Instance, BackendError> {
        let instance: vms::Instance =
            self.call("inspect", self.limits.look_up, None, (id,)).await?;
        self.instance(instance)
    }

    async fn inspect_all(&self) -> Result<Vec<Instance>, BackendError> {
        let instances: Vec<vms::Instance> =
            self.call("inspect-all", self.limits.look_up, None, ()).await?;
        self.check_length("machines", instances.len(), limits::MACHINES)?;
        instances.into_iter().map(|instance| self.instance(instance)).collect()
    }

    async fn add_ssh_key(&self, id: &str, key: &str) -> Result<(), BackendError> {
        self.call("add-ssh-key", self.limits.add_ssh_key, None, (id, key)).await
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
        Self { kind, message: plain_owned(message, limits::TEXT_BYTES) }
    }
}
