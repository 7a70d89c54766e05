//! `GET /health`: whether the provider answers. Outside of the rate limit, so that whoever watches it may ask often.

use axum::{Json, Router, routing::get};
use serde::Serialize;
use utoipa::ToSchema;

use super::{PREFIX, versioned};

const PATH: &str = "/health";

/// That the provider answers.
#[derive(Serialize, ToSchema)]
pub struct Health {
    #[schema(example = "ok")]
    status: &'static str,
    /// The provider's version.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

pub fn routes() -> Router {
    Router::new().route(PATH, get(health)).route(&versioned(PATH), get(health))
}

/// Whether the provider answers
#[utoipa::path(get, path = "/health", tag = "provider", responses((status = 200, body = Health)))]
pub async fn health() -> Json<Health> {
    Json(Health { status: "ok", version: env!("CARGO_PKG_VERSION") })
}

/// Whether a path is the one of this resource.
pub fn is_health(path: &str) -> bool {
    path.strip_prefix(PREFIX).unwrap_or(path) == PATH
}
