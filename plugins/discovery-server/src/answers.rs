//! What the server's statuses and errors mean. Pure.

use golem_provider_sdk::{Error, Result, http::Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Errors look like this, where the server is well.
#[derive(Deserialize)]
struct Refusal {
    detail: Detail,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Detail {
    Coded { code: String, message: String },
    Other(serde_json::Value),
}

/// What is shown of a text that somebody else wrote.
const SHOWN_CHARS: usize = 300;

/// The answer's value; absent if the server knows no such provider.
pub fn read<T: DeserializeOwned>(doing: &str, response: &Response) -> Result<Option<T>> {
    match response.status {
        200..=299 => serde_json::from_slice(&response.body).map(Some).map_err(|error| {
            Error::Unavailable(format!(
                "{doing}: the server answers something else than expected: {error}"
            ))
        }),
        404 if is_refusal(&response.body) => Ok(None),
        _ => Err(failed(doing, response)),
    }
}

/// A success whose body is not looked at; `true` unless the server knows no such provider.
pub fn done(doing: &str, response: &Response) -> Result<bool> {
    match response.status {
        200..=299 => Ok(true),
        404 if is_refusal(&response.body) => Ok(false),
        _ => Err(failed(doing, response)),
    }
}

/// A 404 of the server's own, and not one of whatever else is at this address.
fn is_refusal(body: &[u8]) -> bool {
    matches!(serde_json::from_slice::<Refusal>(body), Ok(Refusal { detail: Detail::Coded { .. } }))
}

fn failed(doing: &str, response: &Response) -> Error {
    let status = response.status;
    let said = said(&response.body);
    match status {
        429 => Error::ResourceExhausted(format!("{doing}: the server asks for patience: {said}")),
        // What it really answers to too many requests within a minute, as plain text.
        500 => Error::ResourceExhausted(format!(
            "{doing}: the server answers 500, as it does after too many requests: {said}"
        )),
        404 => Error::FailedPrecondition(format!(
            "{doing}: there is no discovery server at this address (404); check GOLEM_PROVIDER_DISCOVERY_URL"
        )),
        400..=499 => {
            Error::FailedPrecondition(format!("{doing}: the server refuses ({status}): {said}"))
        }
        _ => Error::Unavailable(format!("{doing}: the server answers {status}: {said}")),
    }
}

fn said(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { detail: Detail::Coded { code, message } }) => format!("{message} ({code})"),
        Ok(Refusal { detail: Detail::Other(value) }) => value.to_string(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Response {
        Response { status, headers: Vec::new(), body: body.into() }
    }

    #[test]
    fn an_unknown_provider_is_told_from_a_wrong_address() {
        let unknown = r#"{"detail":{"code":"ADV_004","message":"Advertisement not found"}}"#;
        assert_eq!(read::<u8>("looking", &response(404, unknown)), Ok(None));
        assert_eq!(done("deleting", &response(404, unknown)), Ok(false));
        for other in [r#"{"detail":"Not Found"}"#, "<html>"] {
            let error = read::<u8>("looking", &response(404, other)).unwrap_err();
            assert!(
                matches!(&error, Error::FailedPrecondition(text) if text.contains("DISCOVERY_URL"))
            );
        }
    }

    #[test]
    fn too_many_requests_are_a_reason_to_wait_also_as_the_500_that_it_really_is() {
        for status in [429, 500] {
            let error = done("posting", &response(status, "Internal Server Error")).unwrap_err();
            assert!(matches!(error, Error::ResourceExhausted(_)), "{status}");
        }
        assert!(matches!(done("x", &response(503, "")), Err(Error::Unavailable(_))));
        let refused = r#"{"detail":[{"loc":["body","country"],"msg":"bad"}]}"#;
        let error = done("posting", &response(422, refused)).unwrap_err();
        assert!(matches!(&error, Error::FailedPrecondition(text) if text.contains("country")));
    }

    #[test]
    fn what_is_no_json_is_no_answer() {
        assert!(matches!(read::<u8>("x", &response(200, "<html>")), Err(Error::Unavailable(_))));
        assert_eq!(read::<u8>("x", &response(200, "7")), Ok(Some(7)));
    }
}
