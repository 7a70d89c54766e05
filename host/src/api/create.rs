//! The body of `POST /vms`: from whatever a client sends to a [`NewVm`], or to everything that is wrong with it. Pure.
//!
//! Three spellings of a size are in use. The first that is present counts, and has to be complete.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, schema::Schema},
};

use super::{
    error::ApiError,
    fields::{self, Fields, Location, Problems},
    openapi,
};
use crate::vms::{
    NewVm, Ownership, Resources, SshPublicKey, VmName,
    model::{CPU_CORES, MAX_STORAGE_GB, MEMORY_GB, MIN_STORAGE_GB, NAMED_SIZES, SizeField},
};

/// What a client asks for, read by [`read`].
pub struct CreateBody;

impl PartialSchema for CreateBody {
    fn schema() -> RefOr<Schema> {
        let storage = json!({"type": "integer", "minimum": MIN_STORAGE_GB, "maximum": MAX_STORAGE_GB, "description": "GB."});
        let cores = json!({"type": "integer", "enum": CPU_CORES, "description": "Cores."});
        let memory = json!({"type": "integer", "enum": MEMORY_GB, "description": "GB."});
        let absent = || json!({"type": "null"});
        let mut names = NAMED_SIZES.map(|(name, _)| Value::from(name)).to_vec();
        names.push(Value::Null);
        openapi::schema(json!({
            "description": "A machine to make. The first of the three ways to tell its size that is present counts.",
            "example": {"name": "my-webserver", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20},
            "allOf": [
                {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {
                            "type": "string", "minLength": 3, "maxLength": 64, "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$",
                            "description": "Lower-case letters, digits and single dashes; no dash at either end.",
                        },
                        "image": {
                            "type": ["string", "null"], "maxLength": MAX_IMAGE_LENGTH, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
                            "description": "An image the provider knows; its default where none is given.",
                        },
                        "backend": {
                            "type": ["string", "null"], "maxLength": MAX_BACKEND_LENGTH, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$",
                            "description": "Which of the provider's backends makes the machine; its default where none is given.",
                        },
                        "ssh_key": key_schema("An OpenSSH public key that logs in as root. One can be added later.", true),
                        "stream_id": stream_schema(),
                    },
                },
                {
                    "anyOf": [
                        {
                            "type": "object",
                            "description": "The size as existing clients spell it.",
                            "required": ["resources"],
                            "properties": {"resources": {
                                "type": "object",
                                "required": NESTED,
                                "properties": {"cpu": cores, "memory": memory, "storage": storage},
                            }},
                        },
                        {
                            "type": "object",
                            "description": "The size, flat.",
                            "required": FLAT,
                            "properties": {"resources": absent(), "cpu_cores": cores, "memory_gb": memory, "storage_gb": storage},
                        },
                        {
                            "type": "object",
                            "description": "The size by name: small 1/1/10, medium 2/4/20, large 4/8/40, xlarge 8/16/80. Small where no size is given.",
                            "properties": {
                                "resources": absent(), "cpu_cores": absent(), "memory_gb": absent(), "storage_gb": absent(),
                                "size": {"type": ["string", "null"], "enum": names},
                            },
                        },
                    ],
                },
            ],
        }))
    }
}

impl ToSchema for CreateBody {
    fn name() -> Cow<'static, str> {
        "CreateVm".into()
    }
}

/// A key to add, read by [`read_key`].
pub struct KeyBody;

impl PartialSchema for KeyBody {
    fn schema() -> RefOr<Schema> {
        let key = key_schema("An OpenSSH public key.", false);
        openapi::schema(json!({
            "description": "A key to add. One of `key` and `public_key` is needed; `key` counts where both are there.",
            "allOf": [
                {
                    "type": "object",
                    "properties": {"name": {"type": ["string", "null"], "description": "A label; nothing is done with it."}},
                },
                {
                    "anyOf": [
                        {"type": "object", "required": ["key"], "properties": {"key": key}},
                        {
                            "type": "object",
                            "required": ["public_key"],
                            "properties": {"key": {"type": "null"}, "public_key": key},
                        },
                    ],
                },
            ],
        }))
    }
}

impl ToSchema for KeyBody {
    fn name() -> Cow<'static, str> {
        "AddSshKey".into()
    }
}

fn stream_schema() -> Value {
    json!({
        "type": ["integer", "string", "null"], "minimum": 0, "maximum": u64::MAX,
        "minLength": 1, "maxLength": MAX_STREAM_LENGTH, "pattern": "^[!-~]+$",
        "description": "The payment stream, where the provider takes payments. As a text where its number passes 64 bits.",
    })
}

fn key_schema(description: &str, or_null: bool) -> Value {
    let kind = if or_null { json!(["string", "null"]) } else { json!("string") };
    json!({
        "type": kind,
        "format": "ssh-public-key",
        "description": description,
        "example": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio me",
    })
}

/// The longest image name that is looked at, in characters.
const MAX_IMAGE_LENGTH: usize = 256;
/// The longest reference of a payment: numbers of 256 bits have 78 digits.
const MAX_STREAM_LENGTH: usize = 256;
/// The longest backend name that is looked at, in characters.
const MAX_BACKEND_LENGTH: usize = 64;

/// What is to be made, which belongs to nobody yet: a body says nothing about that.
///
/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    pub vm: NewVm,
    /// What is to pay for it, unchecked.
    pub stream: Option<String>,
}

/// # Errors
/// 422 with everything that is wrong.
pub fn read(body: &[u8]) -> Result<Wanted, ApiError> {
    let object = fields::object(body)?;
    let fields = Fields::of(&object);
    let mut problems = Problems::default();
    let name = name(&fields, &mut problems);
    let resources = resources(&fields, &mut problems);
    let image = choice("image", MAX_IMAGE_LENGTH, &fields, &mut problems);
    let backend = choice("backend", MAX_BACKEND_LENGTH, &fields, &mut problems);
    let ssh_key = fields
        .text("ssh_key", &mut problems)
        .and_then(|text| key(text, fields.location("ssh_key"), &mut problems));
    let stream = stream(&fields, &mut problems);
    problems.check()?;
    match (name, resources) {
        (Some(name), Some(resources)) => {
            let vm = NewVm {
                name,
                resources,
                backend,
                image,
                ssh_key,
                ownership: Ownership::Nobody,
                payment: None,
            };
            Ok(Wanted { vm, stream })
        }
        // Each is `None` only together with a problem, which has been returned.
        _ => Err(ApiError::internal()),
    }
}

fn name(fields: &Fields<'_>, problems: &mut Problems) -> Option<VmName> {
    if !fields.has("name") {
        problems.add(fields.location("name"), "missing", "a VM needs a name");
    }
    let parsed = VmName::parse(fields.text("name", problems)?);
    parsed
        .map_err(|error| problems.add(fields.location("name"), "value_error", error.to_string()))
        .ok()
}

/// A name that the provider knows or does not.
fn choice(
    field: &'static str,
    max_length: usize,
    fields: &Fields<'_>,
    problems: &mut Problems,
) -> Option<String> {
    let name = fields.text(field, problems).filter(|name| !name.is_empty())?;
    if name.chars().count() > max_length || name.chars().any(char::is_control) {
        let msg = format!("{field} has to be a name of at most {max_length} characters");
        problems.add(fields.location(field), "value_error", msg);
    }
    Some(name.to_owned())
}

/// The reference of a payment: a number, or a text.
fn stream(fields: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    const NAME: &str = "stream_id";
    let Some(text) = fields.get(NAME)?.as_str() else {
        return fields.whole(NAME, problems).map(|number| number.to_string());
    };
    let fits = (1..=MAX_STREAM_LENGTH).contains(&text.len());
    if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let msg = format!(
            "{NAME} has to be the number of a stream, or a text of at most {MAX_STREAM_LENGTH} characters"
        );
        problems.add(fields.location(NAME), "value_error", msg);
    }
    Some(text.to_owned())
}

/// What a client may say when it starts a VM, read by [`read_start`].
pub struct StartBody;

impl PartialSchema for StartBody {
    fn schema() -> RefOr<Schema> {
        openapi::schema(json!({
            "description": "Another stream that is to pay from now on, in the place of one that has ended. May be left out.",
            "type": "object",
            "properties": {"stream_id": stream_schema()},
        }))
    }
}

impl ToSchema for StartBody {
    fn name() -> Cow<'static, str> {
        "StartVm".into()
    }
}

/// The stream that is to pay from now on, where one is named.
///
/// # Errors
/// 422 with everything that is wrong.
pub fn read_start(body: &[u8]) -> Result<Option<String>, ApiError> {
    // Clients from before have nothing to say, and some libraries write that down.
    if body.is_empty() || body.trim_ascii() == b"null" {
        return Ok(None);
    }
    let object = fields::object(body)?;
    let mut problems = Problems::default();
    let stream = stream(&Fields::of(&object), &mut problems);
    problems.check()?;
    Ok(stream)
}

/// Reads an SSH key, or says what is wrong with it.
pub fn key(text: &str, location: Location, problems: &mut Problems) -> Option<SshPublicKey> {
    SshPublicKey::parse(text)
        .map_err(|error| problems.add(location, "value_error", error.to_string()))
        .ok()
}

/// The fields of a size: cores, memory, storage.
type Names = [&'static str; 3];
const NESTED: Names = ["cpu", "memory", "storage"];
const FLAT: Names = ["cpu_cores", "memory_gb", "storage_gb"];

fn resources(fields: &Fields<'_>, problems: &mut Problems) -> Option<Resources> {
    if fields.has("resources") {
        let inner = fields.inner("resources", problems)?;
        spelled(&inner, NESTED, problems)
    } else if FLAT.iter().any(|name| fields.has(name)) {
        spelled(fields, FLAT, problems)
    } else {
        let size = match fields.has("size") {
            true => fields.text("size", problems)?,
            false => NAMED_SIZES[0].0,
        };
        let Some((_, size)) = NAMED_SIZES.iter().find(|(name, _)| *name == size) else {
            let names = NAMED_SIZES.map(|(name, _)| name).join(", ");
            problems.add(fields.location("size"), "enum", format!("size has to be one of {names}"));
            return None;
        };
        Some(*size)
    }
}

/// All three fields of a spelling.
fn spelled(fields: &Fields<'_>, names: Names, problems: &mut Problems) -> Option<Resources> {
    for name in names.iter().filter(|name| !fields.has(name)) {
        let given =
            names.iter().filter(|name| fields.has(name)).copied().collect::<Vec<_>>().join(" and ");
        let msg = match given.as_str() {
            "" => format!("{name} is missing; a size has {}", names.join(", ")),
            given => {
                format!("{name} is missing; {given} alone is no size, it has {}", names.join(", "))
            }
        };
        problems.add(fields.location(name), "missing", msg);
    }
    match names.map(|name| fields.whole(name, problems)) {
        [Some(cpu), Some(memory), Some(storage)] => {
            checked(fields, names, [cpu, memory, storage], problems)
        }
        _ => None,
    }
}

fn checked(
    fields: &Fields<'_>,
    names: Names,
    sizes: [u64; 3],
    problems: &mut Problems,
) -> Option<Resources> {
    // What does not fit is as far out of range as the largest number that does.
    let [cpu, memory, storage] = sizes.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    let resources = Resources::new(cpu, memory, storage);
    let wrong = resources.map_err(|wrong| {
        for problem in wrong {
            let name = match problem.field {
                SizeField::Cpu => names[0],
                SizeField::Memory => names[1],
                SizeField::Storage => names[2],
            };
            problems.add(fields.location(name), "value_error", problem.message);
        }
    });
    wrong.ok()
}

/// Whether a query's value means yes. Clients write it as Python, JavaScript and shells do.
pub fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// The key in the body of `POST /vms/{id}/ssh-keys`.
///
/// # Errors
/// 422 with everything that is wrong.
pub fn read_key(body: &[u8]) -> Result<SshPublicKey, ApiError> {
    let object = fields::object(body)?;
    let fields = Fields::of(&object);
    let mut problems = Problems::default();
    let name = if fields.has("key") || !fields.has("public_key") { "key" } else { "public_key" };
    if !fields.has(name) {
        problems.add(
            fields.location(name),
            "missing",
            "an SSH public key is needed, as `key` or `public_key`",
        );
    }
    // A label of the client's; nothing is done with it.
    fields.text("name", &mut problems);
    let parsed = fields
        .text(name, &mut problems)
        .and_then(|text| key(text, fields.location(name), &mut problems));
    problems.check()?;
    parsed.ok_or_else(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio alice";

    fn size(body: Value) -> [u32; 3] {
        let Resources { cpu_cores, memory_gb, storage_gb } =
            read(body.to_string().as_bytes()).unwrap().vm.resources;
        [cpu_cores, memory_gb, storage_gb]
    }

    /// The places and kinds of all problems.
    fn wrong(body: &str) -> Vec<String> {
        let error = read(body.as_bytes()).unwrap_err();
        error
            .problems()
            .iter()
            .map(|problem| format!("{} {}", problem.loc.join("."), problem.kind))
            .collect()
    }

    #[test]
    fn all_three_spellings_of_a_size_are_read_and_the_first_that_is_present_counts() {
        let nested = json!({"cpu": 4, "memory": 8, "storage": 40});
        for (body, expected) in [
            (json!({"name": "abc", "resources": nested}), [4, 8, 40]),
            (json!({"name": "abc", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20}), [2, 4, 20]),
            (json!({"name": "abc", "size": "small"}), [1, 1, 10]),
            (json!({"name": "abc", "size": "medium"}), [2, 4, 20]),
            (json!({"name": "abc", "size": "large"}), [4, 8, 40]),
            (json!({"name": "abc", "size": "xlarge"}), [8, 16, 80]),
            (json!({"name": "abc"}), [1, 1, 10]),
            (
                json!({"name": "abc", "resources": null, "cpu_cores": null, "size": null}),
                [1, 1, 10],
            ),
            (
                json!({"name": "abc", "resources": nested, "cpu_cores": 1, "size": "no size"}),
                [4, 8, 40],
            ),
            (
                json!({"name": "abc", "cpu_cores": 2, "memory_gb": 4, "storage_gb": 20, "size": "large"}),
                [2, 4, 20],
            ),
            (
                json!({"name": "abc", "cpu_cores": 2.0, "memory_gb": 4e0, "storage_gb": 20}),
                [2, 4, 20],
            ),
        ] {
            assert_eq!(size(body.clone()), expected, "{body}");
        }
    }

    #[test]
    fn a_size_that_is_not_complete_is_refused_and_what_is_missing_is_named() {
        for (body, expected) in [
            (
                json!({"name": "abc", "cpu_cores": 2}),
                &["body.memory_gb missing", "body.storage_gb missing"][..],
            ),
            (
                json!({"name": "abc", "cpu_cores": 2, "size": "large"}),
                &["body.memory_gb missing", "body.storage_gb missing"],
            ),
            (
                json!({"name": "abc", "resources": {"cpu": 1, "memory": 1}}),
                &["body.resources.storage missing"],
            ),
            (
                json!({"name": "abc", "resources": {}, "cpu_cores": 1, "memory_gb": 1, "storage_gb": 10}),
                &[
                    "body.resources.cpu missing",
                    "body.resources.memory missing",
                    "body.resources.storage missing",
                ],
            ),
        ] {
            assert_eq!(wrong(&body.to_string()), expected, "{body}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let body = json!({
            "name": "No Name", "resources": {"cpu": 3, "memory": true, "storage": -1}, "image": 24.04, "ssh_key": "ssh-rsa x",
            "stream_id": -5,
        });
        assert_eq!(
            wrong(&body.to_string()),
            [
                "body.name value_error",
                "body.resources.memory int_type",
                "body.resources.storage value_error",
                "body.image string_type",
                "body.ssh_key value_error",
                "body.stream_id value_error",
            ]
        );
        let body = json!({"name": "abc", "cpu_cores": 3, "memory_gb": 5, "storage_gb": 9});
        assert_eq!(
            wrong(&body.to_string()),
            [
                "body.cpu_cores value_error",
                "body.memory_gb value_error",
                "body.storage_gb value_error"
            ]
        );
    }

    #[test]
    fn what_is_no_json_object_is_refused_with_the_reason() {
        for (body, expected) in [
            ("", "body missing"),
            ("  ", "body missing"),
            ("{\"name\": ", "body json_invalid"),
            ("[1]", "body dict_type"),
            ("null", "body dict_type"),
            ("{}", "body.name missing"),
            ("{\"name\": \"abc\", \"size\": \"huge\"}", "body.size enum"),
            ("{\"name\": \"abc\", \"resources\": 3}", "body.resources dict_type"),
            (
                "{\"name\": \"abc\", \"cpu_cores\": 99999999999999999999, \"memory_gb\": 1, \"storage_gb\": 10}",
                "body.cpu_cores value_error",
            ),
            (&"[".repeat(100_000), "body json_invalid"),
        ] {
            assert_eq!(wrong(body), [expected], "{body:.60}");
        }
    }

    #[test]
    fn image_and_key_are_passed_on_and_unknown_fields_are_ignored() {
        let body = json!({"name": "abc", "image": "debian-12", "ssh_key": KEY, "stream_id": 7, "later": {"x": []}});
        let vm = read(body.to_string().as_bytes()).unwrap().vm;
        assert_eq!((vm.name.as_str(), vm.image.as_deref()), ("abc", Some("debian-12")));
        assert_eq!(vm.ssh_key.unwrap().to_string(), KEY);
        let vm = read(br#"{"name": "abc", "image": ""}"#).unwrap().vm;
        assert_eq!((vm.image, vm.ssh_key), (None, None));
    }

    #[test]
    fn a_key_to_add_is_read_under_both_names() {
        for body in [
            json!({"key": KEY}),
            json!({"public_key": KEY, "name": "laptop"}),
            json!({"key": KEY, "public_key": "x"}),
        ] {
            assert_eq!(read_key(body.to_string().as_bytes()).unwrap().to_string(), KEY);
        }
        for body in ["{}", "{\"key\": 3}", "{\"key\": \"x\"}", "[]", "{\"public_key\": \"\"}"] {
            assert_eq!(read_key(body.as_bytes()).unwrap_err().problems().len(), 1, "{body}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let names = "name|resources|cpu|memory|storage|cpu_cores|memory_gb|storage_gb|size|image|ssh_key|stream_id|[a-z]{1,4}";
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0u32..70).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            "small|large|my-vm|24.04".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 12, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(names, inner, 0..12)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_read_or_refused_with_reasons(body in any_json()) {
            if let Err(error) = read(body.to_string().as_bytes()) {
                prop_assert!(!error.problems().is_empty(), "{error:?}");
            }
            if let Err(error) = read_key(body.to_string().as_bytes()) {
                prop_assert!(!error.problems().is_empty(), "{error:?}");
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_with_reasons(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let error = read(&body).unwrap_err();
            prop_assert!(!error.problems().is_empty(), "{error:?}");
        }
    }
}
