//! A place where requestors look for providers, as the rest of the provider sees it: the trait [`Advertiser`] and the values it
//! speaks in.
//!
//! They mirror `wit/advertisements.wit`, which says what each call promises. The components that implement it are behind
//! `advertiser_component.rs`.

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;
use rust_decimal::Decimal;
use serde::Serialize;

use super::{failure::Failure, health::Degraded};

/// Lists the provider in one place.
///
/// Every call ends by itself within a deadline of its own, and is safe to repeat. Callers make one call at a time.
#[async_trait]
pub trait Advertiser: Send + Sync + 'static {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Functions of it that have failed too often in a row. Never waits.
    fn degraded(&self) -> Vec<Degraded> {
        Vec::new()
    }

    /// When the place wants to hear of the provider.
    async fn schedule(&self) -> Result<Schedule, Failure>;

    /// Makes our entry say this.
    async fn publish(&self, advertisement: &Advertisement) -> Result<Published, Failure>;

    /// Takes our entry away; none is a success.
    async fn withdraw(&self, provider_id: &str) -> Result<(), Failure>;

    /// Every entry under this id, as a requestor sees it.
    async fn look_up(&self, provider_id: &str) -> Result<Vec<Listing>, Failure>;

    /// The providers that a requestor would find.
    async fn search(&self, query: &Query) -> Result<Vec<Listing>, Failure>;
}

/// What the provider says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advertisement {
    /// The provider's address, with the checksum of EIP-55.
    pub provider_id: String,
    pub name: String,
    pub ip_address: IpAddr,
    /// ISO 3166, two letters, upper case.
    pub country: Option<String>,
    /// `x86_64` or `arm64`.
    pub platform: String,
    pub network: String,
    pub payments_network: String,
    pub available: Resources,
    pub usd: Prices,
    /// Absent while nobody knows what GLM is worth.
    pub glm: Option<Prices>,
}

/// What is free for new machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resources {
    pub cpu_cores: u32,
    pub memory_gb: u32,
    pub storage_gb: u32,
}

/// Monthly prices in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Prices {
    pub per_core_month: Decimal,
    pub per_gb_ram_month: Decimal,
    pub per_gb_storage_month: Decimal,
}

/// When a place wants to hear of the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// After so long at most, also when nothing has changed.
    pub interval: Duration,
    /// Between two publications.
    pub minimum_gap: Duration,
    /// Between two changes of the prices alone.
    pub price_interval: Duration,
}

/// What came of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub change: Change,
    /// Until the entry is gone if nobody renews it.
    pub expires_in: Option<Duration>,
    /// How people find the entry.
    pub reference: Option<String>,
}

/// What a publication did to the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Created,
    Updated,
    Renewed,
    Unchanged,
}

impl Change {
    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Renewed => "renewed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// An entry as a requestor sees it; what a place does not keep is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    pub provider_id: String,
    /// Anybody may have written it: no address for all we know.
    pub ip_address: String,
    pub name: Option<String>,
    pub country: Option<String>,
    pub platform: Option<String>,
    pub network: Option<String>,
    pub payments_network: Option<String>,
    pub available: Resources,
    pub usd: Option<Prices>,
    pub glm: Option<Prices>,
    /// The address that provably made the entry.
    pub owner: Option<String>,
    pub expires_in: Option<Duration>,
}

impl Listing {
    /// Is it an entry of the provider with this address? Where a place can prove who made an entry, strangers' entries under
    /// our id are not ours.
    pub fn is_of(&self, provider_id: &str) -> bool {
        let by_us = self.owner.as_ref().is_none_or(|owner| owner.eq_ignore_ascii_case(provider_id));
        by_us && self.provider_id.eq_ignore_ascii_case(provider_id)
    }

    /// What it says otherwise than this, as far as the place keeps it; nothing if it says the same.
    pub fn differences(&self, said: &Advertisement) -> Vec<&'static str> {
        let kept = |found: &Option<String>, said: &str| {
            found.as_ref().is_none_or(|found| found.eq_ignore_ascii_case(said))
        };
        let country = said.country.as_ref().is_none_or(|said| kept(&self.country, said));
        let glm = match (&self.glm, &said.glm) {
            (Some(found), Some(said)) => found.are_about(said),
            (Some(_), None) => false,
            (None, _) => true,
        };
        let alike = [
            ("ip-address", self.ip_address == said.ip_address.to_string()),
            ("country", country),
            ("name", kept(&self.name, &said.name)),
            ("platform", kept(&self.platform, &said.platform)),
            ("network", kept(&self.network, &said.network)),
            ("payments-network", kept(&self.payments_network, &said.payments_network)),
            ("available", self.available == said.available),
            ("usd", self.usd.is_none_or(|found| found.are_about(&said.usd))),
            ("glm", glm),
        ];
        alike.into_iter().filter(|(_, alike)| !alike).map(|(field, _)| field).collect()
    }
}

impl Prices {
    /// A place may keep prices as binary floating-point numbers, which have 15 digits.
    fn are_about(&self, said: &Self) -> bool {
        let same = |found: Decimal, said: Decimal| {
            let tolerance = (said.abs() * Decimal::new(1, 12)).max(Decimal::new(1, 18));
            (found - said).abs() <= tolerance
        };
        same(self.per_core_month, said.per_core_month)
            && same(self.per_gb_ram_month, said.per_gb_ram_month)
            && same(self.per_gb_storage_month, said.per_gb_storage_month)
    }
}

/// What a requestor asks for; absent is anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pub min_cpu_cores: Option<u32>,
    pub min_memory_gb: Option<u32>,
    pub min_storage_gb: Option<u32>,
    pub network: Option<String>,
    pub payments_network: Option<String>,
    /// 1 to 1000.
    pub limit: u32,
}
