//! What an operator can set for this plugin. `{}` is a working configuration. Pure, but for [`load`].

use golem_provider_sdk::{Result, advertiser::Schedule, settings};
use serde::Deserialize;
use serde_json::json;

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// How often the provider looks after its entity although nothing has changed. Each transaction costs gas.
    pub interval_seconds: u32,
    /// How often prices alone may change it.
    pub price_interval_seconds: u32,
    /// Changes that come closer together go out as one.
    pub minimum_gap_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval_seconds: 3600, price_interval_seconds: 14_400, minimum_gap_ms: 10_000 }
    }
}

impl Settings {
    pub fn schedule(&self) -> Schedule {
        Schedule {
            interval_seconds: self.interval_seconds,
            minimum_gap_ms: self.minimum_gap_ms,
            price_interval_seconds: self.price_interval_seconds,
        }
    }
}

/// The settings of this call.
pub fn load() -> Result<Settings> {
    settings::get()
}

/// The JSON Schema of the settings.
pub fn schema() -> String {
    let seconds = |about: &str, default: u32| {
        json!({
            "description": about, "type": "integer", "minimum": 1, "maximum": 2_592_000, "default": default
        })
    };
    let defaults = Settings::default();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "interval-seconds": seconds(
                "How often the entry is looked after although nothing has changed; it lasts four times as long",
                defaults.interval_seconds
            ),
            "price-interval-seconds": seconds(
                "How often a change of the prices in GLM alone goes out", defaults.price_interval_seconds
            ),
            "minimum-gap-ms": {
                "description": "Changes that come closer together than this go out as one",
                "type": "integer", "minimum": 100, "maximum": 3_600_000, "default": defaults.minimum_gap_ms
            },
        }
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_to_be_set_and_misspellings_are_refused() {
        let settings: Settings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, Settings::default());
        assert!(serde_json::from_str::<Settings>(r#"{"intervall-seconds": 5}"#).is_err());
        assert!(serde_json::from_str::<serde_json::Value>(&schema()).is_ok());
    }
}
