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

/// Exports what every plugin has, for the export macro of each kind, which adds the interface of its kind to `Export`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_plugin {
    ($plugin:ty) => {
        use $crate::bindings::exports::golem::provider::plugin;

        pub struct Export;

        impl plugin::Guest for Export {
            fn describe() -> plugin::Description {
                $crate::log::report_panics();
                <$plugin as $crate::Plugin>::describe()
            }
            fn probe() -> $crate::Result<Vec<plugin::Finding>> {
                $crate::log::report_panics();
                <$plugin as $crate::Plugin>::probe()
            }
        }

        $crate::bindings::export_plugin_bindings!(Export with_types_in $crate::bindings);
    };
}
