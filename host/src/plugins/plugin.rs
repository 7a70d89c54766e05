//! One plugin of whatever kind, ready to be called: what it says of itself, its probe, and calls that are watched over.
//!
//! The facades of the kinds (`vm_component`, `advertiser_component`) convert values; everything that is the same for all of
//! them is here: whether a call is let through, what its failure is called, and what the operator reads of it.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, Lower};

use super::{
    bindings::{Error, vm_backend::exports::golem::provider::plugin as wit_plugin},
    call::PluginContext,
    component::{CallError, PluginComponent},
    failure::{Failure, FailureKind},
    health::{Degraded, FAILURES_IN_A_ROW, Health},
    kind::Kind,
    limits::{self, CallLimits},
    text::plain_owned,
    vm_backend::ProgressSink,
};

/// A component with what it was given to work with.
pub struct Plugin {
    component: Arc<PluginComponent>,
    context: Arc<PluginContext>,
    pub(super) limits: limits::Functions,
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

impl Plugin {
    pub(super) fn new(
        component: impl Into<Arc<PluginComponent>>,
        context: Arc<PluginContext>,
        limits: limits::Functions,
    ) -> Self {
        Self { component: component.into(), context, limits, health: Health::default() }
    }

    pub fn name(&self) -> &str {
        &self.context.name
    }

    pub fn kind(&self) -> Kind {
        self.component.kind()
    }

    /// Functions that have failed too often in a row.
    pub fn degraded(&self) -> Vec<Degraded> {
        self.health.degraded(Instant::now())
    }

    /// What the plugin says of itself.
    pub async fn describe(&self) -> Result<Description, Failure> {
        let answer = self
            .component
            .describe(&self.context, self.limits.describe)
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
    pub async fn probe(&self) -> Result<Vec<Finding>, Failure> {
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
                message: self.shown(finding.message),
                remedy: finding.remedy.map(|remedy| self.shown(remedy)),
            })
            .collect())
    }

    pub(super) async fn call<Arguments, T>(
        &self,
        function: &'static str,
        limits: CallLimits,
        progress: Option<ProgressSink>,
        arguments: Arguments,
    ) -> Result<T, Failure>
    where
        Arguments: ComponentNamedList + Lower + Send + Sync,
        Result<T, Error>: ComponentType + Lift + Send + Sync + 'static,
    {
        let name = self.name();
        self.health.admit(function, Instant::now()).map_err(|degraded| {
            let message = format!("the {} {name} is degraded: {degraded}", self.kind().noun());
            Failure::new(FailureKind::Unavailable, message)
        })?;
        let call = self.component.call(&self.context, limits, progress, function, arguments);
        let outcome: Result<Result<T, Error>, CallError> = call.await;
        match outcome {
            Ok(answer) => {
                if self.health.answered(function) {
                    tracing::info!(plugin.name = %name, "`{function}` of the plugin {name} works again");
                }
                answer.map_err(|error| {
                    let Failure { kind, message } = Failure::from(error);
                    Failure { kind, message: self.shown(message) }
                })
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
    fn failed(&self, function: &str, error: &CallError) -> Failure {
        let kind = match error {
            CallError::TooLong(_) | CallError::Runaway(_) => FailureKind::DeadlineExceeded,
            CallError::Crowded(_) => FailureKind::Unavailable,
            CallError::Memory(_) | CallError::HandedOver | CallError::Handles => {
                FailureKind::ResourceExhausted
            }
            CallError::Panic(_) | CallError::Trap(_) => FailureKind::Internal,
        };
        let name = self.name();
        let line = format!(
            "`{function}` of the plugin {name} failed: {error}; if this goes on, update the plugin or report it to its author"
        );
        if self.context.log.take(line.len()) {
            tracing::error!(plugin.name = %name, "{line}");
        }
        Failure::new(kind, format!("{}{error}", self.no_answer(function)))
    }

    /// A text of the plugin as people see it.
    fn shown(&self, text: String) -> String {
        plain_owned(self.context.hide(text), limits::TEXT_BYTES)
    }

    /// How the text of an error begins that the plugin did not answer: the call ended without an answer.
    pub(super) fn no_answer(&self, function: &str) -> String {
        format!("`{function}` of the {} {} failed: ", self.kind().noun(), self.name())
    }

    /// The plugin answered something that makes no sense.
    pub(super) fn wrong(&self, answer: impl std::fmt::Display) -> Failure {
        Failure::new(
            FailureKind::Internal,
            format!(
                "the {} {} answered {answer}; this is a fault of the plugin: update it or report it to its author",
                self.kind().noun(),
                self.name()
            ),
        )
    }

    pub(super) fn check_length(
        &self,
        what: &str,
        length: usize,
        most: usize,
    ) -> Result<(), Failure> {
        if length <= most {
            return Ok(());
        }
        Err(self.wrong(format_args!("{length} {what}, of which {most} are taken")))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, message) = match error {
            Error::NotFound(message) => (FailureKind::NotFound, message),
            Error::AlreadyExists(message) => (FailureKind::AlreadyExists, message),
            Error::InvalidArgument(message) => (FailureKind::InvalidArgument, message),
            Error::FailedPrecondition(message) => (FailureKind::FailedPrecondition, message),
            Error::ResourceExhausted(message) => (FailureKind::ResourceExhausted, message),
            Error::Unavailable(message) => (FailureKind::Unavailable, message),
            Error::DeadlineExceeded(message) => (FailureKind::DeadlineExceeded, message),
            Error::PermissionDenied(message) => (FailureKind::PermissionDenied, message),
            Error::Unsupported(message) => (FailureKind::Unsupported, message),
            Error::Internal(message) => (FailureKind::Internal, message),
        };
        Self { kind, message }
    }
}
