//! HTTP and HTTPS to granted hosts.

pub use crate::bindings::golem::provider::http::{
    Checksum, Method, Request, Response, download, send,
};

use core::time::Duration;

use serde::de::DeserializeOwned;

use crate::{Error, Result, clock};

impl Request {
    /// A request without headers and body.
    pub fn new(method: Method, url: impl Into<String>, timeout: Duration) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout_ms: clock::millis(timeout),
        }
    }

    /// With one header more.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With a body of JSON, and the header that says so.
    #[must_use]
    pub fn json(self, body: Vec<u8>) -> Self {
        Self { body, ..self.header("content-type", "application/json") }
    }
}

/// The body of what is at an address. A status other than 2xx is [`Error::NotFound`] (404, 410) or [`Error::Unavailable`].
pub fn get(url: &str, timeout: Duration) -> Result<Vec<u8>> {
    let response = send(&Request::new(Method::Get, url, timeout))?;
    accepted(url, response)
}

/// The same, as JSON.
pub fn get_json<T: DeserializeOwned>(url: &str, timeout: Duration) -> Result<T> {
    serde_json::from_slice(&get(url, timeout)?)
        .map_err(|error| Error::Unavailable(format!("{url} answers no JSON as expected: {error}")))
}

fn accepted(url: &str, response: Response) -> Result<Vec<u8>> {
    let status = response.status;
    match status {
        200..=299 => Ok(response.body),
        404 | 410 => Err(Error::NotFound(format!("{url} answers {status}"))),
        _ => Err(Error::Unavailable(format!("{url} answers {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_is_not_there_is_told_from_a_server_that_fails() {
        let answer = |status| {
            accepted("https://a.example/", Response { status, headers: vec![], body: vec![1] })
        };
        assert_eq!(answer(204), Ok(vec![1]));
        assert!(matches!(answer(404), Err(Error::NotFound(_))));
        assert!(matches!(answer(302), Err(Error::Unavailable(_))));
        assert!(matches!(answer(503), Err(Error::Unavailable(_))));
    }
}
