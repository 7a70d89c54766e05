//! Reading JSON from clients: a body becomes an object whose fields are taken one by one, and all problems are collected.
//!
//! Unknown fields are ignored, since clients of other versions send more. `null` counts as absent.

use serde_json::{Map, Value};

use super::error::{ApiError, Problem};

/// Where a field is: `body`, then names.
pub type Location = Vec<&'static str>;

/// An object being read.
pub struct Fields<'a> {
    object: &'a Map<String, Value>,
    location: Location,
}

/// What is wrong so far.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, loc: Location, kind: &'static str, msg: impl Into<String>) {
        self.0.push(Problem { loc, msg: msg.into(), kind });
    }

    /// # Errors
    /// When anything is wrong.
    pub fn check(self) -> Result<(), ApiError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(ApiError::validation(self.0)),
        }
    }
}

/// Reads a body that has to be a JSON object.
///
/// # Errors
/// When it is none.
pub fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let refuse = |kind, msg: String| {
        let mut problems = Problems::default();
        problems.add(vec!["body"], kind, msg);
        problems.check()
    };
    if body.trim_ascii().is_empty() {
        refuse("missing", "the request needs a body, a JSON object".into())?;
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => {
            refuse("dict_type", "the body has to be a JSON object".into()).map(|()| Map::new())
        }
        Err(error) => {
            refuse("json_invalid", format!("the body is not JSON: {error}")).map(|()| Map::new())
        }
    }
}

impl<'a> Fields<'a> {
    pub fn of(object: &'a Map<String, Value>) -> Self {
        Self { object, location: vec!["body"] }
    }

    pub fn location(&self, name: &'static str) -> Location {
        [self.location.as_slice(), &[name]].concat()
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub fn text(&self, name: &'static str, problems: &mut Problems) -> Option<&'a str> {
        let value = self.get(name)?;
        if !value.is_string() {
            problems.add(
                self.location(name),
                "string_type",
                format!("{name} has to be a text, not {}", kind(value)),
            );
        }
        value.as_str()
    }

    /// A whole number that is not negative; `2.0` is one too.
    pub fn whole(&self, name: &'static str, problems: &mut Problems) -> Option<u64> {
        let value = self.get(name)?;
        // Beyond 2^53 a float no longer names one whole number.
        let from_float = || {
            value
                .as_f64()
                .filter(|n| n.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(n))
                .map(|n| n as u64)
        };
        let number = value.as_u64().or_else(from_float);
        if number.is_none() {
            let msg = format!("{name} has to be a whole number of at least 0, not {}", kind(value));
            problems.add(
                self.location(name),
                if value.is_number() { "value_error" } else { "int_type" },
                msg,
            );
        }
        number
    }

    /// The object in a field.
    pub fn inner(&self, name: &'static str, problems: &mut Problems) -> Option<Fields<'a>> {
        let value = self.get(name)?;
        if !value.is_object() {
            problems.add(
                self.location(name),
                "dict_type",
                format!("{name} has to be an object, not {}", kind(value)),
            );
        }
        Some(Fields { object: value.as_object()?, location: self.location(name) })
    }
}

/// A value in words. Texts are not repeated.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "true or false".into(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
