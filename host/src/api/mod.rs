//! The HTTP API, as `http` clients of the network know it, under `/api/v1`.
//!
//! ```text
//! server   connections: how many, how slow      ┐
//! edge     every request: id, client, limit,    ├ once, for all resources
//!          log line, panics, form of errors     ┘
//! vms jobs provider summary health payments openapi     one file per resource, handlers beside their routes
//! create fields limits client request_id error          what they share
//! ```
//!
//! Handlers read as the happy path: they turn a request into values of the domain, call [`VmService`], and turn the answer
//! into JSON; whatever fails is an [`error::ApiError`] by `?`. Reading calls never wait for a backend or the disk.
//! Changing calls go on when their client goes away: the work belongs to the service, a request only waits for it.
//!
//! This module may call `vms` and read `settings`; only the composition root calls it. Only this module knows axum.

mod client;
mod create;
mod edge;
mod error;
mod fields;
mod health;
mod jobs;
mod limits;
mod openapi;
mod payments;
mod provider;
mod request_id;
mod server;
mod summary;
#[cfg(test)]
mod tests;
mod vms;

use std::sync::Arc;

use axum::Router;

use crate::{
    settings::{ApiSettings, Environment, PricingSettings, Settings},
    vms::VmService,
};

pub use client::Peer;
pub use provider::ProviderInfo;
pub use server::Server;

/// The current version of the API, as a path.
pub const PREFIX: &str = "/api/v1";

/// What the API needs of the rest of the provider.
#[derive(Clone)]
pub struct ApiState {
    pub vms: VmService,
    pub info: ProviderInfo,
    pub environment: Environment,
    pub pricing: PricingSettings,
    pub settings: ApiSettings,
}

impl ApiState {
    /// `provider_id` is the address of the provider's key.
    pub fn new(settings: &Settings, provider_id: String, vms: VmService) -> Self {
        Self {
            vms,
            info: ProviderInfo::new(&settings.identity, provider_id),
            environment: settings.environment,
            pricing: settings.pricing,
            settings: settings.api.clone(),
        }
    }
}

/// Everything that is answered.
pub fn router(state: ApiState) -> Router {
    let info = provider::answer(&state.info);
    let document = openapi::answer();
    let edge = edge::Edge::new(&state.settings);
    let cors = edge::cors(&state.settings.cors_origins);
    let resources = Router::new()
        .merge(vms::routes())
        .merge(jobs::routes())
        .merge(payments::routes())
        .merge(summary::routes())
        .with_state(Arc::new(state))
        .merge(info)
        .merge(health::routes())
        .merge(document.clone());
    Router::new()
        .nest(PREFIX, resources)
        .merge(health::routes())
        .merge(document)
        .layer((cors, axum::middleware::from_fn_with_state(Arc::new(edge), edge::pass)))
}
