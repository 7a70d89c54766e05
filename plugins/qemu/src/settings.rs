//! What an operator can set for this plugin, as types in which wrong values cannot be written down.
//!
//! The JSON form is kebab-case and refuses unknown keys; [`schema`] describes it to the provider. Everything has a
//! default, so that `{}` is a working configuration. Pure: nothing here asks the provider for anything but
//! [`load`], which the entry points in `lib.rs` call once per call.

use core::{fmt, net::Ipv4Addr, str::FromStr};
use std::collections::BTreeMap;

use golem_provider_sdk::{Result, settings};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Images by alias, in addition to the bundled ones; an alias that is bundled is replaced.
    pub images: BTreeMap<String, ImageEntry>,
    pub accelerator: AcceleratorChoice,
    /// How much memory QEMU may keep translated code in, when it emulates.
    pub tb_size_mib: u32,
    pub internet: Internet,
    /// Networks that guests may reach although they are private, such as a mirror in the operator's own network.
    pub allow_networks: Vec<Network>,
    /// The firmware file for machines that boot by UEFI (aarch64): a path, or a name that QEMU knows.
    pub firmware: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            images: BTreeMap::new(),
            accelerator: AcceleratorChoice::Auto,
            tb_size_mib: 256,
            internet: Internet::Auto,
            allow_networks: Vec::new(),
            firmware: None,
        }
    }
}

/// Which accelerator runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM if a guest really runs well on it, else emulation.
    Auto,
    Kvm,
    Tcg,
}

/// May guests reach the internet?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Internet {
    /// Where they can be kept away from the machine's own services and networks, else not.
    Auto,
    /// Never.
    Off,
    /// Always, even if nothing keeps them away from the machine's own services and networks.
    Unprotected,
}

/// One entry of the catalog, as an operator writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageEntry {
    pub description: String,
    /// An `https://` address, or an absolute path.
    pub source: String,
    pub sha256: Option<String>,
    pub sha512: Option<String>,
    /// An account beside root that the keys log in to.
    pub user: Option<String>,
    pub direct_boot: Option<DirectBootEntry>,
}

/// A kernel that QEMU starts itself, which saves the time of firmware and boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DirectBootEntry {
    /// An `https://` address, or an absolute path.
    pub kernel: String,
    pub kernel_sha256: String,
    pub initrd: String,
    pub initrd_sha256: String,
    /// The kernel's command line.
    pub append: String,
}

/// An IPv4 network in CIDR notation; a bare address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: Ipv4Addr,
    prefix_bits: u8,
}

/// What is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IPv4 network such as `192.168.1.10/32`")]
pub struct NotANetwork(String);

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> core::result::Result<Self, NotANetwork> {
        let wrong = || NotANetwork(text.to_owned());
        let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix_bits: u8 = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(wrong)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
        if address.to_bits() & !mask != 0 {
            return Err(wrong());
        }
        Ok(Self { address, prefix_bits })
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> core::result::Result<Self, NotANetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_bits)
    }
}

/// The settings of this call.
pub fn load() -> Result<Settings> {
    settings::get()
}

/// The JSON Schema of the settings.
pub fn schema() -> String {
    let sha256 = json!({ "type": "string", "pattern": "^[0-9a-fA-F]{64}$" });
    let source = json!({ "type": "string", "pattern": "^(https://|/).+" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "images": {
                "description": "Images by alias, in addition to the bundled ones",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["description", "source"],
                    "oneOf": [{ "required": ["sha256"] }, { "required": ["sha512"] }],
                    "properties": {
                        "description": { "type": "string" },
                        "source": source,
                        "sha256": sha256,
                        "sha512": { "type": "string", "pattern": "^[0-9a-fA-F]{128}$" },
                        "user": { "type": "string", "pattern": "^[a-z_][a-z0-9_-]{0,31}$" },
                        "direct-boot": {
                            "type": "object",
                            "additionalProperties": false,
                            "required": ["kernel", "kernel-sha256", "initrd", "initrd-sha256", "append"],
                            "properties": {
                                "kernel": source,
                                "kernel-sha256": sha256,
                                "initrd": source,
                                "initrd-sha256": sha256,
                                "append": { "type": "string" }
                            }
                        }
                    }
                }
            },
            "accelerator": {
                "description": "auto tries whether KVM really runs a guest",
                "enum": ["auto", "kvm", "tcg"],
                "default": "auto"
            },
            "tb-size-mib": {
                "description": "Memory for translated code per emulated machine, in MiB",
                "type": "integer", "minimum": 32, "maximum": 4096, "default": 256
            },
            "internet": {
                "description": "auto: only where guests can be kept away from this machine's services and networks",
                "enum": ["auto", "off", "unprotected"],
                "default": "auto"
            },
            "allow-networks": {
                "description": "Private IPv4 networks that guests may reach all the same",
                "type": "array",
                "items": { "type": "string", "pattern": "^[0-9.]+(/[0-9]{1,2})?$" },
                "default": []
            },
            "firmware": {
                "description": "UEFI firmware for aarch64 machines: a path, or a name that QEMU knows",
                "type": "string"
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
    fn no_settings_at_all_are_the_defaults() {
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = serde_json::from_str::<Settings>(r#"{"acelerator":"tcg"}"#).unwrap_err();
        assert!(error.to_string().contains("acelerator"));
    }

    #[test]
    fn a_network_is_read_and_written_in_cidr_notation() {
        for (text, shown) in
            [("10.1.2.3", "10.1.2.3/32"), ("10.0.0.0/8", "10.0.0.0/8"), ("0.0.0.0/0", "0.0.0.0/0")]
        {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
        for wrong in ["", "10.0.0.1/8", "10.0.0.0/33", "::1", "example.org", "10.0.0.0/8; drop"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_schema_names_every_setting() {
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let named: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        let text = r#"{"images":{},"accelerator":"kvm","tb-size-mib":64,"internet":"off","allow-networks":["10.0.0.1"],"firmware":"f"}"#;
        serde_json::from_str::<Settings>(text).unwrap();
        let known: serde_json::Value = serde_json::from_str(text).unwrap();
        let mut known: Vec<&String> = known.as_object().unwrap().keys().collect();
        known.sort();
        let mut named = named;
        named.sort();
        assert_eq!(named, known);
    }
}
