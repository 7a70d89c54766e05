//! What the API says when it refuses or fails: one error type that knows its status, code and text.
//!
//! Handlers return it with `?`. It travels as a response without a body; [`render`], called once by the middleware, writes
//! the JSON, because only there the request's id is known, and gives every other failing response (a wrong method,
//! say) the same form. Causes that are no business of the client's are logged where they are met, not sent.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::request_id::RequestId;
use crate::{owners::SCHEME, plugins::FailureKind, vms::VmError};

/// A refusal or failure, as a client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    /// Stable, for programs.
    code: &'static str,
    detail: Detail,
    retry_after_seconds: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum Detail {
    /// For people.
    Text(String),
    Problems(Vec<Problem>),
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Where: `body` or `query`, then the field.
    #[schema(value_type = Vec<String>, example = json!(["body", "resources", "cpu"]))]
    pub loc: Vec<&'static str>,
    /// For people.
    #[schema(value_type = String)]
    pub msg: String,
    /// Of what kind, for programs.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "value_error")]
    pub kind: &'static str,
}

/// The body of a refusal or failure.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody<'a> {
    /// What failed, on what, and what to do.
    #[schema(value_type = String, example = "Not Found: this provider has no VM 'my-webserver'")]
    detail: &'a Detail,
    /// Stable, for programs.
    #[schema(example = "vm_not_found")]
    code: &'a str,
    /// The id that the provider's log lines about this request carry.
    #[schema(example = "6b1f3c2a-42")]
    request_id: &'a str,
}

/// The body of a 422.
#[derive(ToSchema)]
#[schema(as = ValidationError)]
#[expect(dead_code, reason = "describes the form that `ErrorBody` takes with a list of problems")]
pub struct ValidationBody {
    /// Everything that is wrong with the request.
    detail: Vec<Problem>,
    #[schema(example = "validation_failed")]
    code: String,
    request_id: String,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: Detail::Text(detail.into()), retry_after_seconds: None }
    }

    /// With when it makes sense to ask again.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }

    /// 422 with everything that is wrong.
    pub fn validation(problems: Vec<Problem>) -> Self {
        let detail = Detail::Problems(problems);
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            code: "validation_failed",
            detail,
            retry_after_seconds: None,
        }
    }

    /// 429.
    pub fn rate_limited(retry_after_seconds: u64) -> Self {
        let detail =
            format!("too many requests from this address; try again in {retry_after_seconds} s");
        Self::too_many("rate_limited", detail, retry_after_seconds)
    }

    /// 429 for another reason.
    pub fn too_many(code: &'static str, detail: String, retry_after_seconds: u64) -> Self {
        Self {
            retry_after_seconds: Some(retry_after_seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, code, detail)
        }
    }

    /// Something that should not happen; the cause is in the log.
    pub fn internal() -> Self {
        let detail = "the provider made a mistake; its operator finds the cause in the log under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    /// What an unexplained failing status means.
    fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::NOT_FOUND => (
                "not_found",
                "Not Found: there is nothing at this address; see /openapi.json for what there is",
            ),
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method_not_allowed", "this address does not take that method; see /openapi.json")
            }
            _ => ("failed", status.canonical_reason().unwrap_or("the request failed")),
        };
        Self::new(status, code, detail)
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    /// For people.
    pub fn detail(&self) -> String {
        match &self.detail {
            Detail::Text(text) => text.clone(),
            Detail::Problems(problems) => format!("{problems:?}"),
        }
    }

    #[cfg(test)]
    pub fn problems(&self) -> &[Problem] {
        match &self.detail {
            Detail::Problems(problems) => problems,
            Detail::Text(_) => &[],
        }
    }
}

impl From<VmError> for ApiError {
    fn from(error: VmError) -> Self {
        let (status, code) = match &error {
            // Existing clients look for these two words, in these capitals.
            VmError::NotFound { id } => {
                let detail = format!("Not Found: this provider has no VM '{id}'");
                return Self::new(StatusCode::NOT_FOUND, "vm_not_found", detail);
            }
            VmError::NameTaken { .. } => (StatusCode::CONFLICT, "name_in_use"),
            VmError::UnknownBackend { .. } => (StatusCode::BAD_REQUEST, "unknown_backend"),
            VmError::UnknownImage { .. } => (StatusCode::BAD_REQUEST, "unknown_image"),
            VmError::Insufficient { .. } => (StatusCode::CONFLICT, "insufficient_resources"),
            VmError::NoPort { .. } => (StatusCode::CONFLICT, "no_port"),
            VmError::NoVerifiedPort { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "ports_not_verified")
            }
            VmError::StreamTaken { .. } => (StatusCode::BAD_REQUEST, "stream_taken"),
            VmError::TooManyVms { .. } => (StatusCode::CONFLICT, "too_many_vms"),
            VmError::Busy { .. } => (StatusCode::CONFLICT, "vm_busy"),
            VmError::WrongState { .. } => (StatusCode::CONFLICT, "wrong_state"),
            VmError::Cancelled { .. } => (StatusCode::CONFLICT, "vm_deleted"),
            VmError::NoBackend { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no_backend"),
            VmError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            VmError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, "database_failed"),
            VmError::Backend { source, .. } => of_backend(source.kind),
        };
        Self::new(status, code, error.to_string())
    }
}

fn of_backend(kind: FailureKind) -> (StatusCode, &'static str) {
    match kind {
        FailureKind::NotFound => (StatusCode::BAD_GATEWAY, "backend_lost_the_vm"),
        FailureKind::AlreadyExists => (StatusCode::CONFLICT, "backend_already_exists"),
        FailureKind::InvalidArgument => (StatusCode::BAD_REQUEST, "backend_invalid_argument"),
        FailureKind::FailedPrecondition => (StatusCode::CONFLICT, "backend_failed_precondition"),
        FailureKind::ResourceExhausted => {
            (StatusCode::SERVICE_UNAVAILABLE, "backend_resource_exhausted")
        }
        FailureKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "backend_unavailable"),
        FailureKind::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, "backend_deadline_exceeded"),
        FailureKind::PermissionDenied => (StatusCode::BAD_GATEWAY, "backend_permission_denied"),
        FailureKind::Unsupported => (StatusCode::NOT_IMPLEMENTED, "backend_unsupported"),
        FailureKind::Internal => (StatusCode::BAD_GATEWAY, "backend_failed"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static(SCHEME);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a failing response its body; other responses stay as they are. Where the provider is at fault, what it failed
/// with comes back too, for the log.
pub fn render(response: Response, id: &RequestId) -> (Response, Option<ApiError>) {
    if !response.status().is_client_error() && !response.status().is_server_error() {
        return (response, None);
    }
    let (mut parts, _) = response.into_parts();
    let error =
        parts.extensions.remove::<ApiError>().unwrap_or_else(|| ApiError::of_status(parts.status));
    let body = ErrorBody { detail: &error.detail, code: error.code, request_id: id.as_str() };
    // Texts and lists of texts: writing them cannot fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let failure = parts.status.is_server_error().then_some(error);
    (Response::from_parts(parts, Body::from(body)), failure)
}
