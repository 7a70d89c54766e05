//! Puts the status of a provider that runs together.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    NetworkSection, PaymentsSection, ProviderSection, ResourcesSection, Running, Sections, Status,
    plugins, vms,
};
use crate::{
    discovery::Advertising,
    payments::{
        pricing::Prices,
        streams::{Streams, Verifiers},
    },
    plugins::catalog::Catalog,
    ports::verification::Reachability,
    proxy::Proxy,
    resources::Minimums,
    settings::Settings,
    telemetry::LogTarget,
    vms::{Phase, VmService},
};

/// Looks at everything that a status is made of. Clones look at the same.
#[derive(Clone)]
pub struct Observer(Arc<Inner>);

struct Inner {
    provider: ProviderSection,
    minimums: Minimums,
    max_vms: u32,
    parts: ObserverParts,
}

/// What is looked at.
pub struct ObserverParts {
    pub catalog: Arc<Catalog>,
    pub vms: VmService,
    pub proxy: Proxy,
    pub advertising: Advertising,
    pub verifiers: Verifiers,
    /// Absent where no payments are taken.
    pub streams: Option<Streams>,
    pub prices: watch::Receiver<Prices>,
    pub reachability: watch::Receiver<Reachability>,
}

impl Observer {
    /// For a provider that is ready from now on.
    pub fn new(settings: &Settings, minimums: Minimums, parts: ObserverParts) -> Observer {
        let running = Running {
            pid: std::process::id(),
            since: Timestamp::now(),
            log: LogTarget::of_this_process(&settings.log),
        };
        Observer(Arc::new(Inner {
            provider: ProviderSection::new(settings, Some(running)),
            minimums,
            max_vms: settings.vms.max_vms,
            parts,
        }))
    }

    /// How the provider is now. Asks no backend.
    pub async fn status(&self) -> Status {
        let Inner { provider, minimums, max_vms, parts } = self.0.as_ref();
        let listed = parts.catalog.list().await;
        let (vms, proxy) = vms::sections(&parts.vms, &parts.proxy, *max_vms);
        Status::of(Sections {
            provider: provider.clone(),
            resources: Some(ResourcesSection {
                amounts: parts.vms.resources(),
                minimums: *minimums,
            }),
            vms,
            plugins: plugins::section(
                listed,
                parts.vms.backends(),
                &parts.advertising,
                &parts.verifiers,
                Timestamp::now(),
            ),
            network: Some(NetworkSection::of(
                parts.reachability.borrow().clone(),
                &parts.advertising,
            )),
            prices: Some(parts.prices.borrow().clone()),
            payments: parts.streams.as_ref().map(|streams| {
                let running = parts.vms.list().into_iter().filter(|vm| vm.phase == Phase::Running);
                let machines: Vec<_> = running.map(|vm| (vm.id.clone(), vm.name.clone())).collect();
                PaymentsSection::of(streams, &machines)
            }),
            proxy: Some(proxy),
            start: None,
        })
    }
}
