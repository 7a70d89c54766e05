//! What an operator can set for this plugin. `{}` is a working configuration. Pure, but for [`load`].

use core::time::Duration;
use std::collections::BTreeMap;

use golem_provider_sdk::{Error, Result, settings};
use serde::Deserialize;
use serde_json::json;

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Images by alias, in addition to the two that are always there; an alias that is there is replaced.
    pub images: BTreeMap<String, ImageEntry>,
    /// How many machines may be launched or started at the same time. The daemon does most of its work one thing after the
    /// other, so more of them only make each other late.
    pub parallel_boots: u32,
    /// How long a launch may take altogether, the download of its image included.
    pub launch_timeout_s: u32,
    /// How long Multipass is first given for a launch whose image it has fetched before, until we look whether the machine
    /// is there: `multipass launch` itself returns only when the machine has booted.
    pub launch_patience_s: u32,
    /// The same for an image that it may have to download: a download does not survive the command that asked for it.
    pub download_patience_s: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            parallel_boots: 2,
            launch_timeout_s: 3000,
            launch_patience_s: 15,
            download_patience_s: 600,
        }
    }
}

/// One image, as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageEntry {
    pub description: String,
    /// What `multipass launch` is to launch: a name that `multipass find` shows, or a `file://` or `https://` address.
    pub source: String,
}

impl Settings {
    /// All images by alias.
    ///
    /// They are named here and not asked of `multipass find`: that needs the network, takes seconds, and offers old releases
    /// and appliances that no operator decided to rent out.
    pub fn catalog(&self) -> BTreeMap<String, ImageEntry> {
        let bundled = [("24.04", "Ubuntu 24.04 LTS"), ("22.04", "Ubuntu 22.04 LTS")];
        let mut catalog: BTreeMap<String, ImageEntry> = bundled
            .into_iter()
            .map(|(alias, description)| {
                let entry =
                    ImageEntry { description: description.to_owned(), source: alias.to_owned() };
                (alias.to_owned(), entry)
            })
            .collect();
        catalog.extend(self.images.clone());
        catalog
    }

    /// What to launch for an alias.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such image.
    pub fn source_of(&self, alias: &str) -> Result<String> {
        let catalog = self.catalog();
        match catalog.get(alias) {
            Some(entry) => Ok(entry.source.clone()),
            None => {
                let known: Vec<&str> = catalog.keys().map(String::as_str).collect();
                Err(Error::InvalidArgument(format!(
                    "there is no image `{alias}`: known are {}",
                    known.join(", ")
                )))
            }
        }
    }

    pub fn launch_timeout(&self) -> Duration {
        Duration::from_secs(self.launch_timeout_s.into())
    }

    /// How long the first `multipass launch` may take.
    pub fn patience(&self, image_was_fetched: bool) -> Duration {
        let seconds =
            if image_was_fetched { self.launch_patience_s } else { self.download_patience_s };
        Duration::from_secs(seconds.into())
    }
}

/// The settings of this call.
pub fn load() -> Result<Settings> {
    settings::get()
}

/// The JSON Schema of the settings.
pub fn schema() -> String {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "images": {
                "description": "Images by alias, in addition to 24.04 and 22.04",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["description", "source"],
                    "properties": {
                        "description": { "type": "string" },
                        "source": {
                            "description": "A name out of `multipass find`, or a file:// or https:// address",
                            "type": "string",
                            "pattern": "^(file:///[^\\s]+|https://[^\\s]+|[A-Za-z0-9][A-Za-z0-9.:-]*)$"
                        }
                    }
                }
            },
            "parallel-boots": {
                "description": "How many machines may boot at the same time",
                "type": "integer", "minimum": 1, "maximum": 64, "default": 2
            },
            "launch-timeout-s": {
                "description": "How long a launch may take altogether, the download of an image included, in seconds",
                "type": "integer", "minimum": 10, "maximum": 3500, "default": 3000
            },
            "launch-patience-s": {
                "description": "How long a launch of a fetched image is waited for before looking whether the machine is there, in seconds",
                "type": "integer", "minimum": 1, "maximum": 3500, "default": 15
            },
            "download-patience-s": {
                "description": "The same for an image that may have to be downloaded first",
                "type": "integer", "minimum": 1, "maximum": 3500, "default": 600
            }
        }
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn no_settings_at_all_are_the_defaults_and_offer_two_images() {
        let settings = serde_json::from_str::<Settings>("{}").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.source_of("24.04").unwrap(), "24.04");
        assert_eq!(settings.source_of("22.04").unwrap(), "22.04");
    }

    #[test]
    fn an_operator_adds_and_replaces_images() {
        let settings: Settings = serde_json::from_str(
            r#"{"images": {"24.04": {"description": "ours", "source": "file:///srv/24.img"}, "d": {"description": "Debian", "source": "https://example.org/d.img"}}}"#,
        )
        .unwrap();
        assert_eq!(settings.source_of("24.04").unwrap(), "file:///srv/24.img");
        assert_eq!(settings.source_of("d").unwrap(), "https://example.org/d.img");
        let error = settings.source_of("xyz").unwrap_err();
        assert_eq!(error.message(), "there is no image `xyz`: known are 22.04, 24.04, d");
    }

    #[test]
    fn the_schema_names_every_setting_and_its_default() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let mut defaults: serde_json::Map<_, _> = properties
            .iter()
            .filter_map(|(key, property)| Some((key.clone(), property.get("default")?.clone())))
            .collect();
        assert_eq!(defaults.len() + 1, properties.len(), "all but the images");
        defaults.insert("images".to_owned(), json!({}));
        let settings: Settings = serde_json::from_value(defaults.into()).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = serde_json::from_str::<Settings>(r#"{"imagse":{}}"#).unwrap_err();
        assert!(error.to_string().contains("imagse"));
    }
}
