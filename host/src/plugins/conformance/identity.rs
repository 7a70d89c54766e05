//! Is it a plugin, what does it say of itself, and can it work here?

use std::{collections::BTreeSet, sync::Arc};

use super::{
    Bed, Report,
    expect::success,
    record::{Missed, Recorder, Tried},
};
use crate::plugins::{
    harness::{Harness, Loaded},
    kind::Kind,
    plugin::{Description, Finding, Plugin, Severity},
    vm_backend::VmBackend,
};

/// The loaded plugin, if the rest of the suite can be tried on it.
pub async fn check<Facade>(
    harness: &Harness,
    kind: Kind,
    facade: impl FnOnce(Arc<Plugin>) -> Facade,
    recorder: &mut Recorder,
    report: &mut Report,
) -> Option<Loaded<Facade>> {
    let failed = |error: crate::plugins::harness::HarnessError| Missed::Failed(error.to_string());
    let component = recorder
        .check("plugin", "it is a component that fits the world of its kind", async {
            let component = harness.compile().await.map(Arc::new).map_err(failed)?;
            match component.kind() {
                found if found == kind => Ok(component),
                found => Err(Missed::Failed(format!("it is a plugin of the kind `{found}`"))),
            }
        })
        .await?;
    let description = recorder
        .check(
            "describe",
            "it answers without settings, grants and files, and always the same",
            async {
                let description = harness.describe(&component).await.map_err(failed)?;
                let again = harness.describe(&component).await.map_err(failed)?;
                match again == description {
                    true => Ok(description),
                    false => Err(Missed::failed("it answered differently the second time")),
                }
            },
        )
        .await?;
    report.plugin = Some(description.clone());
    let identity = async { well_formed(&description) };
    recorder
        .check("describe", "name, version, licence and summary are well-formed", identity)
        .await;
    let schema = async { schema_is_valid(&description.settings_schema) };
    recorder.check("describe", "the settings' schema is a JSON Schema of an object", schema).await;
    recorder
        .check("settings", "they fit the plugin's own schema", async {
            harness.check_settings(&description).await.map_err(|error| {
                Missed::Failed(format!("{error}; give the plugin's settings with --settings"))
            })
        })
        .await?;
    recorder
        .check("probe", "without any grant it answers, or fails with a reason", async {
            let name = &description.name;
            let bare = harness.bare(&component, name, harness.settings_json(), "ungranted");
            let bare = bare.map_err(failed)?;
            match bare.probe().await {
                Err(error) if error.message.starts_with(&bare.no_answer("probe")) => {
                    Err(Missed::Failed(error.message))
                }
                Err(error) if error.message.trim().is_empty() => {
                    Err(Missed::failed("it fails without a text for people"))
                }
                Ok(_) | Err(_) => Ok(()),
            }
        })
        .await;
    let loaded = harness.ready(component, &description, facade);
    let probed = recorder
        .check("probe", "it answers, and says of every problem what to do", async {
            let loaded = loaded.map_err(failed)?;
            let findings = success("`probe`", loaded.probe().await)?;
            helpful(&findings)?;
            Ok((loaded, findings))
        })
        .await;
    let (loaded, findings) = probed?;
    let blocking = |finding: &&Finding| finding.severity == Severity::Blocking;
    report.blocked = findings.iter().any(|finding| blocking(&finding));
    report.findings = findings;
    (!report.blocked).then_some(loaded)
}

/// Which image machines are made from here.
pub async fn offers(
    bed: &Bed<'_>,
    wanted: Option<&str>,
    recorder: &mut Recorder,
) -> Option<String> {
    let plugin = &bed.plugin;
    let image = recorder
        .check("images", "there is at least one, and each alias once", async {
            let images = success("`images`", plugin.images().await)?;
            let mut aliases = BTreeSet::new();
            for image in &images {
                if image.alias.trim().is_empty() || image.description.trim().is_empty() {
                    return Err(Missed::failed("an image without an alias or a description"));
                }
                if !aliases.insert(image.alias.as_str()) {
                    return Err(Missed::Failed(format!("`{}` is there twice", image.alias)));
                }
            }
            let first = images.first().map(|image| image.alias.clone());
            let first = first.ok_or_else(|| Missed::failed("there is none"))?;
            match wanted {
                Some(wanted) if !aliases.contains(wanted) => Err(Missed::Failed(format!(
                    "there is no `{wanted}`; known are {}",
                    aliases.into_iter().collect::<Vec<_>>().join(", ")
                ))),
                Some(wanted) => Ok(wanted.to_owned()),
                None => Ok(first),
            }
        })
        .await;
    recorder
        .check("limits", "a boot has time to end", async {
            let limits = success("`limits`", plugin.limits().await)?;
            match limits.boot_timeout.as_millis() {
                0 => Err(Missed::failed("`boot-timeout-ms` is 0")),
                _ => Ok(()),
            }
        })
        .await;
    recorder
        .check("inspect-all", "it answers before there is any machine", async {
            let all = success("`inspect-all`", plugin.inspect_all().await)?;
            match all.iter().find(|instance| bed.machines.are(&instance.id)) {
                Some(instance) => Err(Missed::Failed(format!("it lists {}", instance.id))),
                None => Ok(()),
            }
        })
        .await;
    image
}

fn well_formed(description: &Description) -> Tried<()> {
    let Description { name, version, summary, license, .. } = description;
    let name_fits = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    let mut wrong = Vec::new();
    if !name_fits {
        wrong.push(format!("the name `{name}` is not 1 to 64 of a-z, 0-9 and `-`"));
    }
    if let Err(error) = semver::Version::parse(version) {
        wrong.push(format!("the version `{version}` is no semantic version: {error}"));
    }
    if summary.trim().is_empty() {
        wrong.push("the summary is empty".to_owned());
    }
    if !looks_like_spdx(license) {
        wrong.push(format!("the licence `{license}` is no SPDX expression, such as Apache-2.0"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(Missed::Failed(wrong.join("; "))) }
}

/// Identifiers with `AND`, `OR` and `WITH` between them. Whether they are on SPDX' list is not looked up.
fn looks_like_spdx(license: &str) -> bool {
    let license = license.replace(['(', ')'], " ");
    let words: Vec<&str> = license.split_whitespace().collect();
    let identifier =
        |word: &str| word.bytes().all(|c| c.is_ascii_alphanumeric() || b".-+:".contains(&c));
    words.len() % 2 == 1
        && words.iter().enumerate().all(|(index, word)| match index % 2 {
            0 => identifier(word) && !matches!(*word, "AND" | "OR" | "WITH"),
            _ => matches!(*word, "AND" | "OR" | "WITH"),
        })
}

fn schema_is_valid(text: &str) -> Tried<()> {
    let schema: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| Missed::Failed(format!("it is no JSON: {error}")))?;
    if let Err(error) = jsonschema::meta::validate(&schema) {
        return Err(Missed::Failed(format!("{}: {error}", error.instance_path())));
    }
    jsonschema::validator_for(&schema).map_err(|error| Missed::Failed(error.to_string()))?;
    match schema["type"].as_str() {
        Some("object") => Ok(()),
        _ => Err(Missed::failed("its `type` is not `object`, which settings always are")),
    }
}

fn helpful(findings: &[Finding]) -> Tried<()> {
    for finding in findings {
        if finding.message.trim().is_empty() {
            return Err(Missed::failed("a finding has no message"));
        }
        let helps = finding.remedy.as_ref().is_some_and(|remedy| !remedy.trim().is_empty());
        if finding.severity == Severity::Blocking && !helps {
            return Err(Missed::Failed(format!(
                "the blocking finding \"{}\" does not say what the operator can do",
                finding.message
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_identifiers_with_words_between() {
        for right in [
            "Apache-2.0",
            "MIT OR Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "GPL-2.0-or-later WITH Classpath-exception-2.0",
        ] {
            assert!(looks_like_spdx(right), "{right}");
        }
        for wrong in ["", "my own", "MIT/Apache", "MIT OR", "free, really"] {
            assert!(!looks_like_spdx(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_schema_has_to_be_one_and_describe_an_object() {
        assert!(schema_is_valid(r#"{"type":"object","additionalProperties":false}"#).is_ok());
        for wrong in [
            "",
            "[]",
            r#"{"type":"string"}"#,
            r#"{"type":"objekt"}"#,
            r#"{"type":"object","required":"a"}"#,
        ] {
            assert!(schema_is_valid(wrong).is_err(), "{wrong}");
        }
    }
}
