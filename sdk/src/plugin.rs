//! What every plugin says of itself.

pub use crate::bindings::exports::golem::provider::plugin::{Description, Finding, Severity};

use crate::Result;

/// Implemented by every plugin, whatever its kind.
pub trait Plugin {
    /// Name, version, licence and the JSON Schema of the settings. May not use anything that the provider offers: it is
    /// called before grants and settings are known.
    fn describe() -> Description;

    /// Can the plugin work on this machine, with its present settings? Any [`Severity::Blocking`] finding means no, and
    /// carries what the operator should do. An error means that it could not be found out.
    fn probe() -> Result<Vec<Finding>>;
}

impl Finding {
    /// Something worth knowing.
    pub fn info(message: impl Into<String>) -> Self {
        Self { severity: Severity::Info, message: message.into(), remedy: None }
    }

    /// It works, at a cost.
    pub fn warning(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, message: message.into(), remedy: Some(remedy.into()) }
    }

    /// It cannot work until this is mended.
    pub fn blocking(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Blocking, message: message.into(), remedy: Some(remedy.into()) }
    }
}
