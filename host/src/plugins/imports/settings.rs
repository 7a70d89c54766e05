//! `settings`: what the operator set for this plugin. Validated when the plugin was loaded.

use crate::plugins::{bindings::golem::provider::settings::Host, call::CallState};

impl Host for CallState {
    fn json(&mut self) -> String {
        self.plugin.settings.clone()
    }
}
