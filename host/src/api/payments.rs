//! Payment streams, as long as this provider takes no payments: there are none.

use axum::{Json, Router, http::StatusCode, routing::get};

use super::{error::ApiError, versioned, vms::AnyState};

pub fn routes() -> Router<AnyState> {
    Router::new().route(&versioned("/payments/streams"), get(streams))
}

/// All payment streams
///
/// An empty list: this provider takes no payments.
#[utoipa::path(get, path = "/payments/streams", context_path = "/api/v1", tag = "payments",
    responses((status = 200, body = Vec<Object>)))]
pub async fn streams() -> Json<[(); 0]> {
    Json([])
}

/// The payment stream of a VM
///
/// Refused: this provider takes no payments.
#[utoipa::path(get, path = "/vms/{id}/stream", context_path = "/api/v1", tag = "payments",
    params(("id" = String, Path, description = "Name or instance id")),
    responses((status = 400, body = super::error::ErrorBody)))]
pub async fn stream() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "payments_off",
        "this provider takes no payments, so its VMs have no payment streams",
    )
}
