//! Requests that are signed: `Authorization: Golem …`. What such a line says is the business of `owners`; here it is found, held
//! against the request that it came with, and told in this API's words.
//!
//! A request without such a line is nobody's, and costs no more than a look for it; other schemes mean nothing here. With
//! one, it is answered only if the signature counts, whatever it asks for: whoever signs wants to know that it was wrong.

use std::convert::Infallible;

use axum::{
    extract::{FromRequestParts, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};

use super::{error::ApiError, limits};
use crate::{
    owners::{Address, Asked, Credentials, Gatekeeper, Malformed, Refused, SCHEME},
    vms::{NotAdmitted, NotThePayer, Ownership},
};

/// Who has proven to send a request; `None`: nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller(pub Option<Address>);

/// Only [`admitted`] puts it into requests.
#[derive(Debug, Clone, Copy)]
struct Proven(Address);

impl Caller {
    pub fn of(parts: &Parts) -> Self {
        Self(parts.extensions.get::<Proven>().map(|Proven(address)| *address))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(parts))
    }
}

/// Whether there is a signature to check.
pub fn is_signed(headers: &HeaderMap) -> bool {
    headers.get_all(header::AUTHORIZATION).iter().any(|line| credentials(line.as_bytes()).is_some())
}

/// What stands behind the scheme, in a line of the scheme.
fn credentials(line: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = line.trim_ascii_start().split_at_checked(SCHEME.len())?;
    let ends = rest.first().is_none_or(u8::is_ascii_whitespace);
    (scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) && ends).then_some(rest)
}

/// The request, from now on its signer's, if the signature counts.
///
/// # Errors
/// 401 if it does not, with the reason; 408 and 413 if the body cannot be read.
pub async fn admitted(gatekeeper: &Gatekeeper, request: Request) -> Result<Request, ApiError> {
    let credentials = only_credentials(request.headers()).map_err(ApiError::from)?;
    let (mut parts, body) = request.into_parts();
    let limits::Body(body) = limits::Body::read(body).await?;
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let asked = Asked::new(parts.method.as_str(), path, &body);
    let signer = gatekeeper.admit(credentials, asked, !parts.method.is_safe()).await?;
    parts.extensions.insert(Proven(signer));
    Ok(Request::from_parts(parts, body.into()))
}

fn only_credentials(headers: &HeaderMap) -> Result<Credentials, Malformed> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Err(Malformed::Shape) };
    let text = credentials(line.as_bytes()).and_then(|rest| std::str::from_utf8(rest).ok());
    Credentials::parse(text.ok_or(Malformed::Shape)?)
}

/// What to do about a signature that is missing.
const HOW: &str = "sign it: `golem-provider sign-request` makes the Authorization header";

impl ApiError {
    fn unauthorized(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }

    /// 401 for a create without a signature, where each needs one.
    pub fn only_signed() -> Self {
        let detail = format!("this provider makes VMs for signed requests alone; {HOW}");
        Self::unauthorized("signature_required", detail)
    }
}

/// Whether the caller may see and change what belongs so.
///
/// # Errors
/// 401 and 403. `what` it is about, for people.
pub fn check_owner(ownership: Ownership, caller: Caller, what: &str) -> Result<(), ApiError> {
    ownership.admits(caller.0).map_err(|why| match why {
        NotAdmitted::Unsigned => {
            let detail = format!("{what} has an owner, who has to sign this request; {HOW}");
            ApiError::unauthorized("signature_required", detail)
        }
        NotAdmitted::NotTheOwner => {
            let detail = format!("{what} belongs to another address than the one that signed");
            ApiError::new(StatusCode::FORBIDDEN, "not_the_owner", detail)
        }
    })
}

impl From<Malformed> for ApiError {
    fn from(error: Malformed) -> Self {
        let detail = format!("the Authorization header cannot be read: {error}");
        Self::unauthorized("signature_malformed", detail)
    }
}

impl From<Refused> for ApiError {
    fn from(error: Refused) -> Self {
        let detail = error.to_string();
        match error {
            Refused::Stale { .. } => Self::unauthorized("signature_expired", detail),
            Refused::Unproven { .. } => Self::unauthorized("signature_invalid", detail),
            Refused::Replayed => Self::unauthorized("signature_replayed", detail),
            Refused::NoRoom { retry_after_seconds } => {
                Self::too_many("too_many_signatures", detail, retry_after_seconds)
            }
            Refused::Store(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_failed", detail)
            }
        }
    }
}

impl From<NotThePayer> for ApiError {
    fn from(error: NotThePayer) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not_the_payer", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let line = |line: &&str| {
            (header::AUTHORIZATION, HeaderValue::from_bytes(line.as_bytes()).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn other_schemes_mean_nothing() {
        for lines in [
            &[][..],
            &["Bearer abc"],
            &["Basic Z29sZW06Z29sZW0="],
            &["Golems x"],
            &["Gole"],
            &[""],
            &["Bearer Golem x"],
        ] {
            assert!(!is_signed(&headers(lines)), "{lines:?}");
        }
        for lines in [&["Golem"][..], &["golem x"], &["GOLEM  x"], &["Bearer abc", "Golem x"]] {
            assert!(is_signed(&headers(lines)), "{lines:?}");
            assert_eq!(only_credentials(&headers(lines)), Err(Malformed::Shape), "{lines:?}");
        }
    }
}
