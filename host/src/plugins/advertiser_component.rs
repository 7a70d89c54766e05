//! A component of the world `discovery-advertiser`, as an [`Advertiser`]: values are converted, limits are set.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rust_decimal::Decimal;

use super::{
    advertiser::{
        Advertisement, Advertiser, Change, Listing, Prices, Published, Query, Resources, Schedule,
    },
    bindings::discovery_advertiser::exports::golem::provider::advertisements as wit,
    failure::Failure,
    health::Degraded,
    limits,
    plugin::Plugin,
    text::plain_owned,
};

/// No place is asked more often than this, whatever its plugin says.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
const SHORTEST_GAP: Duration = Duration::from_millis(100);
/// Longer ones are as good as never, and would overflow what is computed with them.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// An advertiser behind the plugin contract.
#[derive(Clone)]
pub struct AdvertiserComponent(Arc<Plugin>);

impl AdvertiserComponent {
    pub(super) fn new(plugin: Arc<Plugin>) -> Self {
        Self(plugin)
    }

    fn listings(&self, listings: Vec<wit::Listing>) -> Result<Vec<Listing>, Failure> {
        self.0.check_length("listings", listings.len(), limits::LISTED)?;
        Ok(listings.into_iter().map(listing).collect())
    }
}

#[async_trait]
impl Advertiser for AdvertiserComponent {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn degraded(&self) -> Vec<Degraded> {
        self.0.degraded()
    }

    async fn schedule(&self) -> Result<Schedule, Failure> {
        let schedule = self.schedule_as_said().await?;
        let seconds =
            |seconds: u32| Duration::from_secs(seconds.into()).clamp(SHORTEST_INTERVAL, LONGEST);
        Ok(Schedule {
            interval: seconds(schedule.interval_seconds),
            minimum_gap: Duration::from_millis(schedule.minimum_gap_ms.into())
                .clamp(SHORTEST_GAP, LONGEST),
            price_interval: seconds(schedule.price_interval_seconds),
        })
    }

    async fn publish(&self, advertisement: &Advertisement) -> Result<Published, Failure> {
        self.publish_as_written(&in_writing(advertisement)).await
    }

    async fn withdraw(&self, provider_id: &str) -> Result<(), Failure> {
        self.0.call("withdraw", self.0.limits.withdraw, None, (provider_id,)).await
    }

    async fn look_up(&self, provider_id: &str) -> Result<Vec<Listing>, Failure> {
        let found = self.0.call("look-up", self.0.limits.entries, None, (provider_id,)).await?;
        self.listings(found)
    }

    async fn search(&self, query: &Query) -> Result<Vec<Listing>, Failure> {
        let mut found = self.search_as_answered(query).await?;
        // One that answers more than it was asked for is read as far as it was asked.
        found.truncate(query.limit as usize);
        Ok(found)
    }
}

/// As the conformance suite calls it: nothing is put right, neither in what is said nor in what is answered.
impl AdvertiserComponent {
    pub(super) async fn schedule_as_said(&self) -> Result<wit::Schedule, Failure> {
        self.0.call("get-schedule", self.0.limits.describe, None, ()).await
    }

    pub(super) async fn publish_as_written(
        &self,
        advertisement: &wit::Advertisement,
    ) -> Result<Published, Failure> {
        let published: wit::Published =
            self.0.call("publish", self.0.limits.publish, None, (advertisement,)).await?;
        Ok(Published {
            change: match published.change {
                wit::Change::Created => Change::Created,
                wit::Change::Updated => Change::Updated,
                wit::Change::Renewed => Change::Renewed,
                wit::Change::Unchanged => Change::Unchanged,
            },
            expires_in: expiry(published.expires_in_seconds),
            reference: published.reference.map(|text| plain_owned(text, limits::NAME_BYTES)),
        })
    }

    pub(super) async fn search_as_answered(&self, query: &Query) -> Result<Vec<Listing>, Failure> {
        let query = wit::Query {
            min_cpu_cores: query.min_cpu_cores,
            min_memory_gb: query.min_memory_gb,
            min_storage_gb: query.min_storage_gb,
            network: query.network.clone(),
            payments_network: query.payments_network.clone(),
            limit: query.limit.clamp(1, limits::LISTED as u32),
        };
        let found = self.0.call("search", self.0.limits.search, None, (&query,)).await?;
        self.listings(found)
    }
}

/// As the contract has it.
pub(super) fn in_writing(advertisement: &Advertisement) -> wit::Advertisement {
    wit::Advertisement {
        provider_id: advertisement.provider_id.clone(),
        name: advertisement.name.clone(),
        ip_address: advertisement.ip_address.to_string(),
        country: advertisement.country.clone(),
        platform: advertisement.platform.clone(),
        network: advertisement.network.clone(),
        payments_network: advertisement.payments_network.clone(),
        available: wit::Resources {
            cpu_cores: advertisement.available.cpu_cores,
            memory_gb: advertisement.available.memory_gb,
            storage_gb: advertisement.available.storage_gb,
        },
        usd: written(&advertisement.usd),
        glm: advertisement.glm.as_ref().map(written),
    }
}

fn expiry(seconds: Option<u64>) -> Option<Duration> {
    seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST))
}

fn listing(listing: wit::Listing) -> Listing {
    let name = |text| plain_owned(text, limits::NAME_BYTES);
    Listing {
        provider_id: name(listing.provider_id),
        ip_address: name(listing.ip_address),
        name: listing.name.map(name),
        country: listing.country.map(name),
        platform: listing.platform.map(name),
        network: listing.network.map(name),
        payments_network: listing.payments_network.map(name),
        available: Resources {
            cpu_cores: listing.available.cpu_cores,
            memory_gb: listing.available.memory_gb,
            storage_gb: listing.available.storage_gb,
        },
        usd: listing.usd.as_ref().and_then(read),
        glm: listing.glm.as_ref().and_then(read),
        owner: listing.owner.map(name),
        expires_in: expiry(listing.expires_in_seconds),
    }
}

fn written(prices: &Prices) -> wit::Prices {
    let text = |price: Decimal| price.normalize().to_string();
    wit::Prices {
        per_core_month: text(prices.per_core_month),
        per_gb_ram_month: text(prices.per_gb_ram_month),
        per_gb_storage_month: text(prices.per_gb_storage_month),
    }
}

/// Absent where any of them is no number: strangers write listings.
fn read(prices: &wit::Prices) -> Option<Prices> {
    let number = |text: &str| {
        let decimal = Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text));
        decimal.ok().map(|decimal| decimal.normalize())
    };
    Some(Prices {
        per_core_month: number(&prices.per_core_month)?,
        per_gb_ram_month: number(&prices.per_gb_ram_month)?,
        per_gb_storage_month: number(&prices.per_gb_storage_month)?,
    })
}
