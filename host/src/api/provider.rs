//! `GET /provider/info`: who this provider is and where it is paid. It never changes, so it is written once.

use std::net::IpAddr;

use axum::{Router, body::Bytes, http::header, response::IntoResponse, routing::get};
use serde::Serialize;
use utoipa::ToSchema;

use super::versioned;
use crate::settings::{IdentitySettings, keys::NO_ADDRESS};

/// Who this provider is and where it is paid.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ProviderInfo {
    /// The provider's Ethereum address; payment streams go to it.
    #[schema(example = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")]
    pub provider_id: String,
    /// The contract of the payment streams. Zero: no payments are taken.
    #[schema(example = "0x0000000000000000000000000000000000000000")]
    pub stream_payment_address: String,
    /// The contract of the GLM token.
    #[schema(example = "0x0000000000000000000000000000000000000000")]
    pub glm_token_address: String,
    /// Where this provider is reached, where that is known.
    #[schema(value_type = Option<String>, example = "203.0.113.5")]
    pub ip_address: Option<IpAddr>,
    /// Two letters.
    #[schema(example = "SE")]
    pub country: Option<String>,
    /// Of the machines: `x86_64` or `arm64`.
    #[schema(value_type = String, example = "x86_64")]
    pub platform: &'static str,
    /// The provider's name in listings.
    pub name: String,
}

impl ProviderInfo {
    pub fn new(identity: &IdentitySettings, provider_id: String) -> Self {
        Self {
            provider_id,
            stream_payment_address: NO_ADDRESS.to_owned(),
            glm_token_address: NO_ADDRESS.to_owned(),
            ip_address: identity.public_ip,
            country: identity.country.clone(),
            platform: platform(),
            name: identity.name.clone(),
        }
    }
}

/// The network's word for this machine's architecture.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    }
}

/// The route with its one answer.
pub fn answer<S: Clone + Send + Sync + 'static>(info: &ProviderInfo) -> Router<S> {
    // Texts and nothing else: writing them cannot fail.
    let body = Bytes::from(serde_json::to_vec(info).unwrap_or_default());
    Router::new().route(
        &versioned("/provider/info"),
        get(async move || ([(header::CONTENT_TYPE, "application/json")], body).into_response()),
    )
}

/// Who this provider is and where it is paid
#[utoipa::path(get, path = "/provider/info", context_path = "/api/v1", tag = "provider", responses((status = 200, body = ProviderInfo)))]
#[expect(dead_code, reason = "describes the route that `answer` makes")]
pub fn info() {}
