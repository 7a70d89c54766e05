//! `GET /provider/info`: who this provider is, where it is paid and what makes its machines. Written once for each state of
//! that, since clients ask for it all the time.

use std::{
    net::IpAddr,
    sync::{PoisonError, RwLock},
};

use axum::{
    Router, body::Bytes, extract::State, http::header, response::IntoResponse, response::Response,
    routing::get,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{versioned, vms::AnyState};
use crate::{
    settings::{Settings, keys::NO_ADDRESS},
    vms::Backends,
};

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
    /// What machines can be made by; a request may name one of them.
    #[schema(example = json!(["qemu"]))]
    pub backends: Vec<String>,
    /// What makes a machine whose request names no backend.
    #[schema(example = "qemu")]
    pub default_backend: Option<String>,
}

impl ProviderInfo {
    pub fn new(settings: &Settings, provider_id: String) -> Self {
        let identity = &settings.identity;
        let or_none = |address: &Option<String>| address.clone().unwrap_or(NO_ADDRESS.to_owned());
        Self {
            provider_id,
            stream_payment_address: or_none(&settings.payments.contract),
            glm_token_address: or_none(&settings.chains.glm_token),
            ip_address: identity.public_ip,
            country: identity.country.clone(),
            platform: platform(),
            name: identity.name.clone(),
            backends: Vec::new(),
            default_backend: None,
        }
    }
}

/// The answer with what it tells of: the revision of the backends, and the provider's address.
struct Written {
    revision: u64,
    address: Option<IpAddr>,
    bytes: Bytes,
}

/// The answer, as it was written last.
pub struct WrittenInfo {
    info: ProviderInfo,
    written: RwLock<Written>,
}

impl WrittenInfo {
    pub fn new(info: ProviderInfo, backends: &Backends) -> Self {
        let written = RwLock::new(write(&info, backends, info.ip_address));
        Self { info, written }
    }

    fn bytes(&self, backends: &Backends, address: Option<IpAddr>) -> Bytes {
        {
            let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
            if written.revision == backends.revision() && written.address == address {
                return written.bytes.clone();
            }
        }
        let written = write(&self.info, backends, address);
        let bytes = written.bytes.clone();
        *self.written.write().unwrap_or_else(PoisonError::into_inner) = written;
        bytes
    }
}

fn write(info: &ProviderInfo, backends: &Backends, address: Option<IpAddr>) -> Written {
    // First, so that what changes meanwhile is told by the next answer.
    let revision = backends.revision();
    let info = ProviderInfo {
        ip_address: address,
        backends: backends.names(),
        default_backend: backends.default_name().ok(),
        ..info.clone()
    };
    // Texts and nothing else: writing them cannot fail.
    let bytes = Bytes::from(serde_json::to_vec(&info).unwrap_or_default());
    Written { revision, address, bytes }
}

/// The network's word for this machine's architecture.
pub fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn routes() -> Router<AnyState> {
    Router::new().route(&versioned("/provider/info"), get(info))
}

/// Who this provider is and where it is paid
#[utoipa::path(get, path = "/provider/info", context_path = "/api/v1", tag = "provider", responses((status = 200, body = ProviderInfo)))]
pub async fn info(State(state): State<AnyState>) -> Response {
    let bytes = state.info.bytes(state.vms.backends(), state.public_address());
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}
