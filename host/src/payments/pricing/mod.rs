//! What machines cost: in USD, as the operator says, and in GLM, by the rate that a price source gives.
//!
//! ```text
//! source ──► judge ──► Pricing ──► watch::Receiver<Prices>    whoever shows or advertises prices
//! (HTTP)     (pure)      │
//!                        └► store                             the last good rate, which outlives a restart
//! ```
//!
//! `convert` is the arithmetic, exact to the last digit; `judge` decides whether a rate is believed; `source` asks. A price in
//! GLM is never zero by mistake: without a new rate the last good one counts on, with its age, and without any there is none.
//! How often prices are advertised is the business of whoever does that.
//!
//! Calls `store`; called by the composition root, `api` and `admin`.

mod convert;
mod judge;
mod service;
mod source;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

pub use convert::{in_glm, month_of, wei_per_second};
pub use judge::{MAX_USD_PER_GLM, MIN_USD_PER_GLM};
pub use service::Pricing;
pub use source::{PriceSource, SourceError};

pub use crate::settings::MonthlyPrices;

/// What machines cost at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    pub usd: MonthlyPrices,
    /// Absent, and never zero, as long as no rate is known; at most 18 digits after the point.
    pub glm: Option<MonthlyPrices>,
    pub rate: Option<Rate>,
}

/// The price of GLM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    #[serde(with = "rust_decimal::serde::str")]
    pub usd_per_glm: Decimal,
    /// When a source last said so, or something so close that it was left as it is.
    pub at: Timestamp,
    /// The origin of the source's URL.
    pub source: String,
}

/// New prices in USD; what is absent stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceChange {
    #[serde(default, with = "rust_decimal::serde::str_option")]
    pub usd_per_core: Option<Decimal>,
    #[serde(default, with = "rust_decimal::serde::str_option")]
    pub usd_per_gb_ram: Option<Decimal>,
    #[serde(default, with = "rust_decimal::serde::str_option")]
    pub usd_per_gb_storage: Option<Decimal>,
}

impl PriceChange {
    pub fn apply(&self, usd: MonthlyPrices) -> MonthlyPrices {
        MonthlyPrices {
            per_core: self.usd_per_core.unwrap_or(usd.per_core),
            per_gb_ram: self.usd_per_gb_ram.unwrap_or(usd.per_gb_ram),
            per_gb_storage: self.usd_per_gb_storage.unwrap_or(usd.per_gb_storage),
        }
    }

    /// Those that change.
    pub fn prices(&self) -> impl Iterator<Item = Decimal> {
        [self.usd_per_core, self.usd_per_gb_ram, self.usd_per_gb_storage].into_iter().flatten()
    }
}

impl Prices {
    pub fn new(usd: MonthlyPrices, rate: Option<Rate>) -> Self {
        let glm = rate.as_ref().and_then(|rate| in_glm(&usd, rate.usd_per_glm));
        Self { usd, glm, rate }
    }
}

impl Rate {
    /// How long ago it was confirmed; zero where the clock went back.
    pub fn age(&self, now: Timestamp) -> std::time::Duration {
        now.duration_since(self.at).try_into().unwrap_or_default()
    }
}
