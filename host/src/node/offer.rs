//! Out of which parts of the provider its offer to requestors is made.

use tokio::sync::watch;

use crate::{
    api,
    discovery::{Free, Identity, Reach, Sources},
    payments::pricing::{self, MonthlyPrices},
    plugins::advertiser::Prices,
    ports::verification::{NotAdvertisable, Reachability},
    resources::Rules,
    settings::Settings,
    vms::VmService,
};

/// What the provider's offer to requestors is made of.
pub(super) fn sources(
    settings: &Settings,
    provider_id: String,
    vms: VmService,
    prices: watch::Receiver<pricing::Prices>,
    reachability: watch::Receiver<Reachability>,
) -> Sources {
    let reached = reachability.clone();
    Sources {
        identity: Identity {
            provider_id,
            name: settings.identity.name.clone(),
            country: settings.identity.country.clone(),
            platform: api::platform().to_owned(),
            network: settings.discovery.network.clone(),
            payments_network: settings.discovery.payments_network.clone(),
        },
        minimums: Rules::from(&settings.resources).minimums,
        free: Box::new(move || {
            let report = vms.resources();
            let there = vms.list().len();
            let machines = reachability.borrow().max_vms;
            let machines = machines.saturating_sub(u32::try_from(there).unwrap_or(u32::MAX));
            let held = report.allocated;
            let held = (held.cpu_cores, held.memory_gb, held.storage_gb, there);
            (Free { amounts: report.available, machines }, held)
        }),
        prices: Box::new(move || {
            let prices = prices.borrow();
            let told = |monthly: MonthlyPrices| Prices {
                per_core_month: monthly.per_core,
                per_gb_ram_month: monthly.per_gb_ram,
                per_gb_storage_month: monthly.per_gb_storage,
            };
            (told(prices.usd), prices.glm.map(told))
        }),
        reach: Box::new(move || match reached.borrow().may_be_advertised() {
            Ok(address) => Reach::At(address),
            Err(pending @ NotAdvertisable::Pending) => Reach::Unknown(pending.to_string()),
            Err(reason) => Reach::Not(reason.to_string()),
        }),
    }
}
