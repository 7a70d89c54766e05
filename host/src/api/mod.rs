//! The HTTP API, as `http` clients of the network know it, under `/api/v1`.
//!
//! ```text
//! server   connections: how many, how slow      ┐
//! pages    browsers: calls from other origins   ├ once, for all resources
//! edge     every request: id, client, limit,    │
//!          log line, panics, form of errors     ┘
//! vms jobs provider summary health payments openapi port_check     one file per resource, handlers beside their routes
//! create fields limits client request_id signed error written  what they share
//! ```
//!
//! Handlers read as the happy path: they turn a request into values of the domain, call [`VmService`], and turn the answer
//! into JSON; whatever fails is an [`error::ApiError`] by `?`. Reading calls never wait for a backend or the disk.
//! Changing calls go on when their client goes away: the work belongs to the service, a request only waits for it.
//!
//! This module may call `vms` and `owners`, look at the prices of `payments`, at what `ports` has found out and at how `discovery` is doing,
//! and read `settings`; only the composition root calls it. Only this module knows axum.

mod client;
mod create;
mod edge;
mod error;
mod fields;
mod health;
mod jobs;
mod limits;
mod openapi;
mod pages;
mod payments;
pub mod port_check;
mod provider;
mod request_id;
mod server;
mod signed;
mod summary;
#[cfg(test)]
mod tests;
mod time;
mod vms;
mod written;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{Router, extract::Request, response::Response};
use tokio::sync::watch;

use crate::{
    discovery::Advertising,
    owners::Gatekeeper,
    payments::{
        pricing::Prices,
        streams::{Collector, PaymentStatus, Streams},
    },
    ports::verification::{Reachability, VerifierConfig},
    settings::{ApiSettings, Environment, Settings},
    vms::{Vm, VmService},
};

use port_check::PortCheckRules;

pub use limits::MAX_BODY;
pub use provider::{ProviderInfo, platform};
pub use server::{Answer, Server};

/// The current version of the API, as a path.
pub const PREFIX: &str = "/api/v1";

/// What the API needs of the rest of the provider.
#[derive(Clone)]
pub struct ApiState {
    pub vms: VmService,
    info: Arc<provider::WrittenInfo>,
    pub environment: Environment,
    pub pricing: watch::Receiver<Prices>,
    pub settings: ApiSettings,
    written: Arc<written::WrittenVms>,
    reachability: watch::Receiver<Reachability>,
    /// Absent where nobody advertises.
    advertising: Option<Advertising>,
    /// Absent where nobody can prove who they are.
    gatekeeper: Option<Gatekeeper>,
    /// Absent where no payments are taken.
    streams: Option<Streams>,
    /// What streams owe is collected by it.
    collector: Option<Collector>,
    port_checks: Option<PortCheckRules>,
}

impl ApiState {
    /// `provider_id` is the address of the provider's key.
    pub fn new(
        settings: &Settings,
        provider_id: String,
        vms: VmService,
        pricing: watch::Receiver<Prices>,
    ) -> Self {
        let at_first = VerifierConfig::new(settings).at_first(settings.ports.range.clone());
        // Without a sender it stays as it is.
        let (_, reachability) = watch::channel(at_first);
        let serves = settings.reachability.serve_peers;
        let allow_private = settings.environment == Environment::Development;
        Self {
            reachability,
            advertising: None,
            gatekeeper: None,
            streams: None,
            collector: None,
            port_checks: serves
                .then(|| PortCheckRules { allow_private, ..PortCheckRules::default() }),
            info: Arc::new(provider::WrittenInfo::new(
                ProviderInfo::new(settings, provider_id),
                vms.backends(),
            )),
            vms,
            environment: settings.environment,
            pricing,
            settings: settings.api.clone(),
            written: Arc::default(),
        }
    }
}

impl ApiState {
    /// With where the provider is reached as somebody else finds it out.
    #[must_use]
    pub fn with_reachability(self, reachability: watch::Receiver<Reachability>) -> Self {
        Self { reachability, ..self }
    }

    /// With how it is advertised.
    #[must_use]
    pub fn with_advertising(self, advertising: Advertising) -> Self {
        Self { advertising: Some(advertising), ..self }
    }

    /// With somebody who lets signed requests in.
    #[must_use]
    pub fn with_gatekeeper(self, gatekeeper: Gatekeeper) -> Self {
        Self { gatekeeper: Some(gatekeeper), ..self }
    }

    /// With streams that machines have to be paid by.
    #[must_use]
    pub fn with_streams(self, streams: Streams) -> Self {
        Self { streams: Some(streams), ..self }
    }

    /// With somebody who settles streams whose machines are gone.
    #[must_use]
    pub fn with_collector(self, collector: Collector) -> Self {
        Self { collector: Some(collector), ..self }
    }

    /// How the payment of a VM stands, where a stream pays for it.
    fn payment(&self, vm: &Vm) -> Option<Arc<PaymentStatus>> {
        self.streams.as_ref()?.status(&vm.id)
    }

    /// Something was done to a VM that its stream has to be looked at for.
    fn streams_have_changed(&self) {
        if let Some(streams) = &self.streams {
            streams.look_soon();
        }
        if let Some(collector) = &self.collector {
            collector.settle_soon();
        }
    }

    /// Where this provider is reached, where that is known.
    fn public_address(&self) -> Option<IpAddr> {
        self.reachability.borrow().address.map(|known| known.address)
    }
}

/// Answers requests.
#[derive(Clone)]
pub struct Api(Arc<edge::Edge>);

impl Api {
    pub fn new(state: ApiState) -> Self {
        let (settings, gatekeeper) = (state.settings.clone(), state.gatekeeper.clone());
        let edge = edge::Edge::new(&settings, routes(state)).with_gatekeeper(gatekeeper);
        Self(Arc::new(edge))
    }
}

impl Answer for Api {
    async fn answer(&self, peer: SocketAddr, request: Request) -> Response {
        self.0.answer(peer, request).await
    }
}

/// Everything that is answered.
fn routes(state: ApiState) -> Router {
    let port_checks = state.port_checks.clone().map(port_check::routes);
    Router::new()
        .merge(provider::routes())
        .merge(vms::routes())
        .merge(jobs::routes())
        .merge(payments::routes())
        .merge(summary::routes())
        .with_state(Arc::new(state))
        .merge(health::routes())
        .merge(openapi::answer())
        .merge(port_checks.unwrap_or_default())
}

/// A path with the version before it. Routes are given whole paths: nesting would cost each request a copy of its own.
fn versioned(path: &str) -> String {
    format!("{PREFIX}{path}")
}
