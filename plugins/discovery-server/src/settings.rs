//! What an operator can set for this plugin. `{}` is a working configuration. Pure, but for [`load`].

use golem_provider_sdk::{Error, Result, advertiser::Schedule, settings};
use serde::Deserialize;
use serde_json::json;

const URL: &str = "http://discovery.golem.network:9001";

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Of the server, without the path of its API.
    pub url: String,
    /// Between two posts when nothing changes. The server forgets after 300.
    pub interval_seconds: u32,
    /// Between two posts when the prices alone change.
    pub price_interval_seconds: u32,
    /// Between any two posts. The server takes 100 requests a minute.
    pub minimum_gap_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: URL.to_owned(),
            interval_seconds: 240,
            price_interval_seconds: 900,
            minimum_gap_ms: 2000,
        }
    }
}

impl Settings {
    fn check(self) -> Result<Self> {
        let rest = self.url.strip_prefix("http://").or_else(|| self.url.strip_prefix("https://"));
        let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
        match host {
            Some(host) if !host.is_empty() => Ok(self),
            _ => Err(Error::InvalidArgument(format!(
                "`{}` is no address of a discovery server, such as {URL}",
                self.url
            ))),
        }
    }

    pub fn schedule(&self) -> Schedule {
        Schedule {
            interval_seconds: self.interval_seconds,
            minimum_gap_ms: self.minimum_gap_ms,
            price_interval_seconds: self.price_interval_seconds,
        }
    }
}

/// The operator's settings.
pub fn load() -> Result<Settings> {
    settings::get::<Settings>()?.check()
}

/// JSON Schema of [`Settings`].
pub fn schema() -> String {
    let default = Settings::default();
    let whole = |minimum: u32, default: u32, description: &str| {
        json!({
            "type": "integer", "minimum": minimum, "maximum": 2_592_000, "default": default,
            "description": description,
        })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "url": {
                "type": "string", "default": default.url,
                "description": "the discovery server; GOLEM_PROVIDER_DISCOVERY_URL sets it too",
            },
            "interval-seconds": whole(1, default.interval_seconds, "between two posts when nothing changes; the server forgets after 300 s"),
            "price-interval-seconds": whole(1, default.price_interval_seconds, "between two posts when only the price of GLM changes"),
            "minimum-gap-ms": whole(100, default.minimum_gap_ms, "between any two posts"),
        },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_is_a_working_configuration_and_the_schema_knows_every_setting() {
        let nothing: Settings = serde_json::from_str("{}").unwrap();
        assert_eq!(nothing, Settings::default());
        assert!(nothing.check().is_ok());
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let mut named: Vec<&str> =
            schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        named.sort_unstable();
        assert_eq!(named, ["interval-seconds", "minimum-gap-ms", "price-interval-seconds", "url"]);
    }

    #[test]
    fn what_is_no_address_of_a_server_is_named() {
        for wrong in ["", "discovery.golem.network", "ftp://a.example", "http://", "http:///x"] {
            let settings = Settings { url: wrong.into(), ..Settings::default() };
            assert!(settings.check().is_err(), "{wrong}");
        }
    }
}
