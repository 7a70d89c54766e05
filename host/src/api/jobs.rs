//! `GET /vms/jobs/{job_id}`: how far a VM that was asked for with `async=true` has come.

use axum::{
    Json, Router,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    error::{ApiError, ErrorBody},
    signed::{Caller, check_owner},
    time, versioned,
    vms::AnyState,
};
use crate::vms::Job;

/// The making of a VM.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobBody<'a> {
    #[schema(value_type = String, format = "uuid")]
    job_id: Uuid,
    /// The VM's name.
    vm_id: &'a str,
    /// `creating`, `ready` or `failed`.
    #[schema(example = "creating")]
    status: &'a str,
    /// Why it failed.
    error: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time::serialize")]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time::serialize")]
    updated_at: Timestamp,
}

impl<'a> JobBody<'a> {
    pub fn of(job: &'a Job) -> Self {
        Self {
            job_id: job.id,
            vm_id: &job.vm_name,
            status: job.status.as_str(),
            error: job.error.as_deref(),
            created_at: job.created_at,
            updated_at: job.updated_at,
        }
    }
}

pub fn routes() -> Router<AnyState> {
    Router::new().route(&versioned("/vms/jobs/{job_id}"), get(job))
}

/// How far a VM has come
#[utoipa::path(get, path = "/vms/jobs/{job_id}", context_path = "/api/v1", tag = "vms",
    params(("job_id" = String, Path, description = "What `POST /vms?async=true` answered")),
    responses(
        (status = 200, body = JobBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, body = ErrorBody),
    ))]
pub async fn job(
    State(state): State<AnyState>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let id = id.ok().and_then(|Path(text)| text.parse::<Uuid>().ok());
    let unknown = || {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "job_not_found",
            "Not Found: there is no such job; they are kept for a day",
        )
    };
    let job = id.and_then(|id| state.vms.job(&id)).ok_or_else(unknown)?;
    check_owner(job.ownership, caller, "this job")?;
    Ok(Json(JobBody::of(&job)).into_response())
}
