//! What a plugin says of itself in its manifest, put together out of its package, its `plugin.toml` and its exports.

use serde::{Deserialize, Serialize};

use crate::PackError;

/// How packages of plugins are called, before the plugin's own name.
const PACKAGE_PREFIX: &str = "golem-plugin-";

/// The table `[plugin]` of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Identity {
    pub name: String,
    /// A semantic version.
    pub version: String,
    pub summary: String,
    /// An SPDX expression.
    pub license: String,
    /// As its world is called, such as `vm-backend`.
    pub kind: String,
    /// The contract that it was made for, such as `golem:provider@0.1.0`.
    pub contract: String,
    /// The JSON Schema of its settings. Absent where whoever packed it could not ask the plugin.
    pub settings_schema: Option<String>,
}

/// What a package says in `Cargo.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// With or without `golem-plugin-` in front.
    pub name: String,
    pub version: String,
    pub description: String,
    pub license: String,
}

/// The table `[plugin]` of a `plugin.toml`: whatever the package does not say, or not rightly.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stated {
    name: Option<String>,
    version: Option<String>,
    summary: Option<String>,
    license: Option<String>,
}

/// Of what kind a plugin is, by what it exports, and for which contract it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub kind: String,
    pub contract: String,
}

impl Made {
    /// From the names of exported interfaces, such as `golem:provider/vms@0.1.0`.
    pub fn of(exports: impl IntoIterator<Item = String>) -> Option<Self> {
        exports.into_iter().find_map(|export| {
            let (interface, version) = export.split_once('@')?;
            let kind = match interface {
                "golem:provider/vms" => "vm-backend",
                "golem:provider/advertisements" => "discovery-advertiser",
                "golem:provider/payments" => "payment-verifier",
                _ => return None,
            };
            Some(Self { kind: kind.to_owned(), contract: format!("golem:provider@{version}") })
        })
    }
}

/// The whole manifest as it goes into the component. Without a package and without a table `[plugin]` it has no identity.
pub(crate) fn manifest(
    stated: Option<&str>,
    package: Option<&Package>,
    made: Option<Made>,
    settings_schema: Option<&str>,
) -> Result<Option<String>, PackError> {
    let wrong = |error: toml::de::Error| PackError::Manifest(error.to_string());
    let mut table: toml::Table = match stated {
        Some(text) => toml::from_str(text).map_err(wrong)?,
        None => toml::Table::new(),
    };
    let own = table.remove("plugin");
    if own.is_none() && package.is_none() {
        return Ok(stated.map(str::to_owned));
    }
    let own: Stated =
        own.map(toml::Value::try_into).transpose().map_err(wrong)?.unwrap_or_default();
    let package = package.cloned().unwrap_or_default();
    let name = package.name.strip_prefix(PACKAGE_PREFIX).unwrap_or(&package.name).to_owned();
    let given = |what: &'static str, own: Option<String>, of_package: String| {
        own.or(Some(of_package)).filter(|text| !text.trim().is_empty()).ok_or_else(|| {
            PackError::Manifest(format!(
                "it has no {what}: say it in Cargo.toml, or under [plugin] in plugin.toml"
            ))
        })
    };
    let made = made.ok_or(PackError::NoKind)?;
    let identity = Identity {
        name: given("name", own.name, name)?,
        version: given("version", own.version, package.version)?,
        summary: given("description", own.summary, package.description)?,
        license: given("license", own.license, package.license)?,
        kind: made.kind,
        contract: made.contract,
        settings_schema: settings_schema.map(str::to_owned),
    };
    let failed = |error: toml::ser::Error| PackError::Manifest(error.to_string());
    table.insert("plugin".to_owned(), toml::Value::try_from(identity).map_err(failed)?);
    toml::to_string(&table).map(Some).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Package {
        Package {
            name: "golem-plugin-mine".into(),
            version: "1.2.3".into(),
            description: "Mine".into(),
            license: "MIT".into(),
        }
    }

    fn made() -> Option<Made> {
        let exports = ["golem:provider/plugin@0.1.0", "golem:provider/vms@0.1.0"];
        Made::of(exports.map(str::to_owned))
    }

    #[test]
    fn a_manifest_says_what_the_package_says_and_what_it_asks_for() {
        let asked = "[[grants.programs]]\nname = \"sh\"\nreason = \"x\"\n";
        let text = manifest(Some(asked), Some(&package()), made(), Some("{}")).unwrap().unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        let identity: Identity = table["plugin"].clone().try_into().unwrap();
        assert_eq!((identity.name.as_str(), identity.version.as_str()), ("mine", "1.2.3"));
        assert_eq!(identity.kind, "vm-backend");
        assert_eq!(identity.contract, "golem:provider@0.1.0");
        assert_eq!(identity.settings_schema.as_deref(), Some("{}"));
        assert_eq!(table["grants"]["programs"][0]["name"].as_str(), Some("sh"));
    }

    #[test]
    fn the_authors_own_word_wins_and_what_nobody_says_is_asked_for() {
        let own = "[plugin]\nname = \"other\"\n";
        let text = manifest(Some(own), Some(&package()), made(), None).unwrap().unwrap();
        assert!(text.contains("name = \"other\"") && text.contains("1.2.3"), "{text}");
        let error = manifest(Some(own), None, made(), None).unwrap_err().to_string();
        assert!(error.contains("no version") && error.contains("plugin.toml"), "{error}");
        assert!(manifest(Some("[plugin]\nnmae = \"x\"\n"), None, made(), None).is_err());
        assert!(matches!(manifest(None, Some(&package()), None, None), Err(PackError::NoKind)));
        assert_eq!(manifest(None, None, None, None).unwrap(), None);
    }
}
