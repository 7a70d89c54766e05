//! Payment streams: those of all VMs, and that of one.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::{
    error::{ApiError, ErrorBody},
    signed::Caller,
    versioned,
    vms::{AnyState, ThisVm},
};
use crate::{payments::streams::GateError, store::StoreError};

pub fn routes() -> Router<AnyState> {
    Router::new().route(&versioned("/payments/streams"), get(streams))
}

/// All payment streams
///
/// Those of VMs that there are. Streams of VMs that were made by signed requests are told to their owners alone. One that the
/// chain could not be asked about says so in its `reason`, with what was known last. Empty where this provider takes no payments.
#[utoipa::path(get, path = "/payments/streams", context_path = "/api/v1", tag = "payments",
    responses(
        (status = 200, body = Vec<Object>),
        (status = 503, description = "The provider cannot read its database", body = ErrorBody),
    ))]
pub async fn streams(
    State(state): State<AnyState>,
    Caller(caller): Caller,
) -> Result<Response, ApiError> {
    let Some(streams) = &state.streams else {
        return Ok(Json([(); 0]).into_response());
    };
    let mut views = streams.views().await.map_err(|error| unreadable(&error))?;
    let may_see =
        |name: &str| state.vms.get(name).is_ok_and(|vm| vm.ownership.admits(caller).is_ok());
    views.retain(|view| may_see(&view.vm_id));
    Ok(Json(views).into_response())
}

/// The payment stream of a VM
///
/// As it stands in the contract at this moment, and what follows from that.
#[utoipa::path(get, path = "/vms/{id}/stream", context_path = "/api/v1", tag = "payments",
    params(("id" = String, Path, description = "Name or instance id")),
    responses(
        (status = 200, body = Object),
        (status = 400, description = "This provider takes no payments", body = ErrorBody),
        (status = 403, description = "Another's", body = ErrorBody),
        (status = 404, description = "No such VM, or one that no stream pays for", body = ErrorBody),
        (status = 502, description = "The chain cannot be asked", body = ErrorBody),
        (status = 503, description = "The provider cannot read its database", body = ErrorBody),
    ))]
pub async fn stream(
    State(state): State<AnyState>,
    vm: Result<ThisVm, ApiError>,
) -> Result<Response, ApiError> {
    let Some(streams) = &state.streams else {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "payments_off",
            "this provider takes no payments, so its VMs have no payment streams",
        ));
    };
    let ThisVm(vm) = vm?;
    let view = streams.view(&vm.id).await.map_err(|error| unreadable(&error))?;
    let view = view.ok_or_else(|| {
        let text = format!("Not Found: no stream mapped for VM '{}'", vm.name);
        ApiError::new(StatusCode::NOT_FOUND, "no_stream", text)
    })?;
    if view.lookup_failed {
        return Err(ApiError::new(StatusCode::BAD_GATEWAY, "stream_lookup_failed", view.reason));
    }
    Ok(Json(view).into_response())
}

fn unreadable(error: &StoreError) -> ApiError {
    tracing::error!("the streams cannot be told: {error}");
    let text = "the provider could not read its database; try again later";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "database_failed", text)
}

impl From<GateError> for ApiError {
    fn from(error: GateError) -> Self {
        let text = error.to_string();
        let refused = |code| ApiError::new(StatusCode::BAD_REQUEST, code, text.clone());
        let not_now = |code| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, text.clone());
        let answer = match &error {
            GateError::NoStream { .. } => refused("stream_needed"),
            GateError::BadReference(_) => refused("stream_bad_reference"),
            GateError::Refused { refusal, .. } => refused(refusal.code()),
            GateError::Store(error) => unreadable(error),
            GateError::NoPrice => not_now("no_price"),
            GateError::ChainSilent { .. } => not_now("chain_unreachable"),
            GateError::NoVerifier(_) | GateError::Misconfigured { .. } => {
                not_now("payments_unreadable")
            }
        };
        match error.retry_after() {
            Some(after) => answer.retry_after(after.as_secs()),
            None => answer,
        }
    }
}
