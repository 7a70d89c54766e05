//! A plugin's settings under its own JSON Schema: are they right, which of them are secret, what can be set at all.
//!
//! A setting whose schema has `"writeOnly": true` is secret: what the operator has set there is in no error, no list and no log
//! line. Pure; a schema is somebody else's, so every walk through one has an end.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{limits, text};

/// What is shown in a secret's place.
pub const HIDDEN: &str = "<hidden>";

/// Steps of one walk through a schema and the settings. Whatever lies beyond counts as secret.
const MOST_STEPS: usize = 10_000;
/// Shorter texts are found in too many others to be cut out of them.
const SHORTEST_SECRET: usize = 4;

/// One thing that can be set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    pub name: String,
    /// As the schema has it, or its values; empty if it may be anything.
    #[serde(rename = "type")]
    pub kind: String,
    pub description: Option<String>,
    pub default: Option<Value>,
    /// What is set, if something is; secrets are [`HIDDEN`].
    pub value: Option<Value>,
    pub secret: bool,
    /// Where it is set: a file or a variable. Absent where the default counts.
    pub origin: Option<String>,
}

/// Texts that nobody may read.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    pub fn of(schema: &str, settings: &Value) -> Self {
        let mut texts = Vec::new();
        for pointer in pointers(schema, settings) {
            collect(settings.pointer(&pointer), &mut texts);
        }
        // One may be part of another.
        texts.sort_by_key(|text: &String| std::cmp::Reverse(text.len()));
        Self(texts)
    }

    /// The text without them.
    pub fn hide(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| match text.contains(secret) {
            true => text.replace(secret, HIDDEN),
            false => text,
        })
    }
}

fn collect(value: Option<&Value>, texts: &mut Vec<String>) {
    match value {
        Some(Value::String(text)) if text.len() >= SHORTEST_SECRET => texts.push(text.clone()),
        Some(Value::Number(number)) if number.to_string().len() >= SHORTEST_SECRET => {
            texts.push(number.to_string());
        }
        Some(Value::Array(items)) => items.iter().for_each(|item| collect(Some(item), texts)),
        Some(Value::Object(fields)) => {
            fields.values().for_each(|field| collect(Some(field), texts))
        }
        _ => {}
    }
}

/// The settings with secrets hidden.
pub(super) fn redacted(schema: &str, settings: &Value) -> Value {
    let mut shown = settings.clone();
    for pointer in pointers(schema, settings) {
        if let Some(secret) = shown.pointer_mut(&pointer) {
            *secret = HIDDEN.into();
        }
    }
    shown
}

/// Everything that can be set, and everything that is set.
pub(super) fn listed(
    schema: &str,
    settings: &Value,
    origin: impl Fn(&str) -> Option<String>,
) -> Vec<Setting> {
    let shown = redacted(schema, settings);
    let schema: Value = serde_json::from_str(schema).unwrap_or_default();
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let set = settings.as_object().unwrap_or(&none);
    let mut names: Vec<&String> = properties.keys().chain(set.keys()).collect();
    names.sort();
    names.dedup();
    let plain = |text: &str| text::plain(text, limits::NAME_BYTES);
    names
        .into_iter()
        .map(|name| {
            let property = resolved(&schema, properties.get(name).unwrap_or(&Value::Null));
            let secret = property["writeOnly"] == true;
            Setting {
                name: plain(name),
                kind: plain(&kind(property)),
                description: property["description"].as_str().map(plain),
                default: property.get("default").filter(|_| !secret).cloned(),
                value: shown.get(name).cloned(),
                secret,
                origin: set.get(name).and_then(|_| origin(name)),
            }
        })
        .collect()
}

fn kind(property: &Value) -> String {
    let joined = |values: &[Value]| {
        let shown = values.iter().map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        shown.collect::<Vec<_>>().join(" | ")
    };
    match (&property["enum"], &property["type"]) {
        (Value::Array(values), _) | (_, Value::Array(values)) => joined(values),
        (_, Value::String(name)) => name.clone(),
        _ => String::new(),
    }
}

/// What a reference within the schema leads to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..16 {
        let Some(target) = schema["$ref"].as_str().and_then(|to| to.strip_prefix('#')) else {
            break;
        };
        let Some(found) = root.pointer(target) else { break };
        schema = found;
    }
    schema
}

/// Where in the settings secrets are, as JSON pointers.
fn pointers(schema: &str, settings: &Value) -> Vec<String> {
    let everything = || vec![String::new()];
    let Ok(root) = serde_json::from_str::<Value>(schema) else { return everything() };
    let mut found = Vec::new();
    let mut steps = 0;
    let mut waiting = vec![(&root, settings, String::new())];
    while let Some((schema, value, pointer)) = waiting.pop() {
        steps += 1;
        if steps > MOST_STEPS {
            return everything();
        }
        // What stands beside a reference counts too.
        if schema["writeOnly"] == true || resolved(&root, schema)["writeOnly"] == true {
            found.push(pointer);
            continue;
        }
        let target = resolved(&root, schema);
        let target = (!std::ptr::eq(schema, target)).then_some(target);
        for schema in [schema].into_iter().chain(target) {
            let alternatives = ["allOf", "anyOf", "oneOf"].into_iter();
            let alternatives = alternatives.filter_map(|key| schema[key].as_array()).flatten();
            let branches = ["if", "then", "else"].into_iter().filter_map(|key| schema.get(key));
            for other in alternatives.chain(branches) {
                waiting.push((other, value, pointer.clone()));
            }
            match value {
                Value::Object(fields) => {
                    for (name, field) in fields {
                        let place =
                            format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                        let named = schema["properties"].get(name);
                        let patterns = schema["patternProperties"].as_object();
                        let patterns = patterns.into_iter().flat_map(Map::values);
                        let others = schema.get("additionalProperties");
                        for of_field in named.into_iter().chain(patterns).chain(others) {
                            waiting.push((of_field, field, place.clone()));
                        }
                    }
                }
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        let prefix = schema["prefixItems"].get(index);
                        for of_item in prefix.into_iter().chain(schema.get("items")) {
                            waiting.push((of_item, item, format!("{pointer}/{index}")));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Checks on a thread of its own, which is left to itself if it takes too long: nothing can end it, and a runtime would wait
/// for it.
pub(super) async fn check_within(
    limit: Duration,
    schema: String,
    settings: Value,
) -> Result<(), String> {
    let (answer, checked) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("plugin-settings".into())
        .spawn(move || answer.send(check(&schema, &settings)))
        .map_err(|error| format!("no thread could be started to check them: {error}"))?;
    match tokio::time::timeout(limit, checked).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            Err("the plugin's schema broke the check, which is a fault of the plugin".into())
        }
        Err(_) => Err(format!(
            "checking them takes longer than {} s, which is a fault of the plugin's schema",
            limit.as_secs_f32()
        )),
    }
}

/// All that is wrong, in one line, without the value of a secret.
fn check(text: &str, settings: &Value) -> Result<(), String> {
    let fault = |what: &str, error: &dyn std::fmt::Display| {
        text::plain(
            &format!("the plugin's schema {what}, which is a fault of the plugin: {error}"),
            limits::TEXT_BYTES,
        )
    };
    let schema = serde_json::from_str(text).map_err(|error| fault("is no JSON", &error))?;
    let validator =
        jsonschema::validator_for(&schema).map_err(|error| fault("is wrong", &error))?;
    let secrets = pointers(text, settings);
    let problems: Vec<String> = validator
        .iter_errors(settings)
        .map(|error| {
            let place = error.instance_path().to_string();
            let within = |inner: &str, outer: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            // A message may repeat the value that it is about, and all that is in it.
            let tells =
                secrets.iter().any(|secret| within(secret, &place) || within(&place, secret));
            let message = match tells {
                true => error.masked_with(HIDDEN).to_string(),
                false => error.to_string(),
            };
            match place.trim_start_matches('/').replace('/', ".") {
                place if place.is_empty() => message,
                place => format!("{place}: {message}"),
            }
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_settings_are_named_with_their_place() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": { "accelerator": { "enum": ["auto", "kvm", "tcg"] }, "tb": { "type": "integer" } }
        })
        .to_string();
        assert!(check(&schema, &json!({"accelerator": "tcg", "tb": 64})).is_ok());
        let problems = check(&schema, &json!({"accelerator": "xen", "tb": "x"})).unwrap_err();
        assert!(problems.contains("accelerator: ") && problems.contains("tb: "), "{problems}");
        assert!(problems.contains("xen"), "{problems}");
        assert!(check(&schema, &json!({"speed": 1})).unwrap_err().contains("speed"));
    }

    fn with_secrets() -> String {
        json!({
            "type": "object",
            "properties": {
                "token": { "type": "string", "minLength": 20, "writeOnly": true },
                "url": { "type": "string", "default": "https://a.example", "description": "Where" },
                "accounts": { "items": { "$ref": "#/$defs/account" } },
                "nested": { "additionalProperties": { "writeOnly": true } },
            },
            "$defs": { "account": { "properties": { "password": { "writeOnly": true, "type": "integer" } } } },
            "anyOf": [{ "required": ["absent"] }],
        })
        .to_string()
    }

    #[test]
    fn no_error_shows_a_secret() {
        let settings = json!({
            "token": "hunter2", "accounts": [{ "name": "a", "password": "swordfish" }],
            "nested": { "key": "opensesame" }, "url": 7,
        });
        let problems = check(&with_secrets(), &settings).unwrap_err();
        assert!(problems.contains("token") && problems.contains("accounts.0.password"));
        assert!(problems.contains("url: 7 is not"), "{problems}");
        for secret in ["hunter2", "swordfish", "opensesame"] {
            assert!(!problems.contains(secret), "{problems}");
        }
        let shown = redacted(&with_secrets(), &settings);
        assert_eq!(shown["accounts"][0], json!({ "name": "a", "password": HIDDEN }));
        assert_eq!((&shown["token"], &shown["url"]), (&json!(HIDDEN), &json!(7)));
        let secrets = Secrets::of(&with_secrets(), &settings);
        let line = secrets.hide("hunter2 and swordfish open nothing, opensesame does".into());
        assert_eq!(line, format!("{HIDDEN} and {HIDDEN} open nothing, {HIDDEN} does"));
    }

    #[test]
    fn settings_are_listed_with_what_they_are_and_where_they_are_set() {
        let settings = json!({ "token": "hunter2-hunter2-hunter2", "old": 1 });
        let origin = |name: &str| Some(format!("the file of {name}"));
        let all = listed(&with_secrets(), &settings, origin);
        let names: Vec<&str> = all.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!(names, ["accounts", "nested", "old", "token", "url"]);
        let token = &all[3];
        assert!(token.secret && token.value == Some(json!(HIDDEN)));
        assert_eq!(token.origin.as_deref(), Some("the file of token"));
        let url = &all[4];
        assert_eq!((url.kind.as_str(), url.description.as_deref()), ("string", Some("Where")));
        assert_eq!(url.default, Some(json!("https://a.example")));
        assert_eq!((&url.value, &url.origin), (&None, &None));
    }

    #[test]
    fn where_a_schema_cannot_be_read_everything_is_secret() {
        let settings = json!({ "a": "something" });
        assert_eq!(redacted("{", &settings), json!(HIDDEN));
        let mut schema = json!({ "type": "object" });
        for _ in 0..14 {
            schema = json!({ "anyOf": [schema.clone(), schema] });
        }
        assert_eq!(redacted(&schema.to_string(), &settings), json!(HIDDEN));
    }

    #[tokio::test]
    async fn a_schema_that_multiplies_itself_does_not_hold_the_provider() {
        // Each level is tried twice, and the last one never fits.
        let levels = (0..22).map(|level| {
            let next = json!({ "$ref": format!("#/$defs/{}", level + 1) });
            (level.to_string(), json!({ "anyOf": [next.clone(), next] }))
        });
        let mut levels: serde_json::Map<String, Value> = levels.collect();
        levels.insert("22".into(), json!(false));
        let schema = json!({ "$ref": "#/$defs/0", "$defs": levels }).to_string();
        let limit = Duration::from_millis(10);
        let problem = check_within(limit, schema, json!({})).await.unwrap_err();
        assert!(problem.contains("takes longer than 0.01 s"), "{problem}");
    }
}
