//! Keeps the prices: asks the source from time to time, keeps the last good rate, and tells whoever watches.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rust_decimal::Decimal;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_USD_PER_GLM, MIN_USD_PER_GLM, PriceChange, PriceSource, Prices, Rate,
    judge::{Suspect, Verdict, judge},
    source::SourceError,
};
use crate::{
    settings::PricingSettings,
    store::{RateRecord, Store, StoreError},
};

/// How often a source that answers is asked. CoinGecko takes a few questions a minute from one address.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// After a failure, doubled with each further one up to [`EVERY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// How much of a pause is left to chance, so that providers that lost a source together do not come back together.
const JITTER_PERCENT: u32 = 20;

/// The prices. Clones are the same ones.
#[derive(Clone)]
pub struct Pricing(Arc<Inner>);

struct Inner {
    prices: watch::Sender<Prices>,
    store: Store,
    min_delta_percent: Decimal,
    /// Held while an answer is judged and kept.
    suspect: Mutex<Suspect>,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Believed,
    /// It may be true, but has to be said again.
    Doubted,
    Nothing,
}

impl Pricing {
    /// With the rate that was known when the provider last ran.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(settings: &PricingSettings, store: Store) -> Result<Self, StoreError> {
        let known = store.glm_rate().await?;
        let known = known.filter(|known| (MIN_USD_PER_GLM..=MAX_USD_PER_GLM).contains(&known.usd));
        let prices = Prices::new(settings.usd, known.map(Rate::from));
        Ok(Self(Arc::new(Inner {
            prices: watch::Sender::new(prices),
            store,
            min_delta_percent: settings.min_delta_percent,
            suspect: Mutex::default(),
        })))
    }

    /// The prices that count, now and whenever they change. That a rate is confirmed is no change, though its time is
    /// seen by whoever looks.
    pub fn watch(&self) -> watch::Receiver<Prices> {
        self.0.prices.subscribe()
    }

    /// The prices that count.
    pub fn now(&self) -> Prices {
        self.0.prices.borrow().clone()
    }

    /// From now on machines cost this, until the provider ends. Answers the prices that count.
    pub fn set_usd(&self, change: &PriceChange) -> Prices {
        self.0.prices.send_if_modified(|prices| {
            let usd = change.apply(prices.usd);
            let changed = prices.usd != usd;
            if changed {
                *prices = Prices::new(usd, prices.rate.take());
            }
            changed
        });
        let prices = self.now();
        let usd = prices.usd;
        tracing::info!(
            "a month costs {} USD for a core, {} for a GB of memory, {} for a GB of storage",
            usd.per_core,
            usd.per_gb_ram,
            usd.per_gb_storage
        );
        prices
    }

    /// Follows the source until `stop`.
    pub async fn follow(self, source: PriceSource, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let asked = source.usd_per_glm();
            let Some(said) = stop.run_until_cancelled(asked).await else { return };
            failures = match self.take(said, source.name(), Timestamp::now()).await {
                // What is doubted is asked again after the usual pause: a source that repeats itself confirms nothing.
                Heard::Believed | Heard::Doubted => 0,
                Heard::Nothing => failures + 1,
            };
            let pause = tokio::time::sleep(pause(failures, chance_percent()));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Judges an answer and keeps what is believed.
    async fn take(
        &self,
        said: Result<Decimal, SourceError>,
        source: &str,
        now: Timestamp,
    ) -> Heard {
        let mut suspect = self.0.suspect.lock().await;
        let last = self.0.prices.borrow().rate.clone();
        let said = match said {
            Ok(said) => said,
            Err(error) => {
                self.complain(source, &error.to_string(), last.as_ref(), now);
                return Heard::Nothing;
            }
        };
        let last_usd = last.as_ref().map(|rate| rate.usd_per_glm);
        let counts = match judge(last_usd, said, self.0.min_delta_percent, &mut suspect) {
            Verdict::Adopt => said,
            Verdict::Confirm => last_usd.unwrap_or(said),
            Verdict::Doubt { left } => {
                let times = if left == 1 { "once".to_owned() } else { format!("{left} times") };
                let why = format!("it says {said} USD, and has to say so {times} more");
                self.complain(source, &why, last.as_ref(), now);
                return Heard::Doubted;
            }
            Verdict::Refuse => {
                let why = format!("it says {said} USD, which cannot be");
                self.complain(source, &why, last.as_ref(), now);
                return Heard::Nothing;
            }
        };
        let rate = Rate { usd_per_glm: counts, at: now, source: source.to_owned() };
        // Kept first: what is advertised is known after a crash.
        if let Err(error) = self.0.store.save_glm_rate(RateRecord::from(rate.clone())).await {
            tracing::warn!("the price of GLM is not kept for the next start: {error}");
        }
        let changed = self.0.prices.send_if_modified(|prices| {
            let new = Prices::new(prices.usd, Some(rate));
            let changed = new.glm != prices.glm;
            *prices = new;
            changed
        });
        if changed {
            tracing::info!(source, "a GLM costs {counts} USD");
        }
        Heard::Believed
    }

    fn complain(&self, source: &str, why: &str, last: Option<&Rate>, now: Timestamp) {
        match last {
            Some(rate) => tracing::warn!(
                source,
                "no new price of GLM, {} USD of {} s ago counts on: {why}",
                rate.usd_per_glm,
                rate.age(now).as_secs()
            ),
            None => tracing::warn!(
                source,
                "no price of GLM, so machines have no price in GLM yet: {why}"
            ),
        }
    }
}

/// How long to wait after so many failures in a row; `chance` is from 0 to 100.
fn pause(failures: u32, chance: u32) -> Duration {
    let whole = match failures {
        0 => EVERY,
        _ => EVERY.min(FIRST_RETRY * 2_u32.pow((failures - 1).min(16))),
    };
    whole - whole * JITTER_PERCENT * chance.min(100) / 10_000
}

fn chance_percent() -> u32 {
    // Without chance all wait the whole time, which is no harm.
    getrandom::u32().unwrap_or_default() % 101
}

impl From<RateRecord> for Rate {
    fn from(record: RateRecord) -> Self {
        Self { usd_per_glm: record.usd, at: record.at, source: record.source }
    }
}

impl From<Rate> for RateRecord {
    fn from(rate: Rate) -> Self {
        Self { usd: rate.usd_per_glm, at: rate.at, source: rate.source }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::payments::pricing::MonthlyPrices;

    fn decimal(text: &str) -> Decimal {
        Decimal::from_str_exact(text).unwrap()
    }

    fn settings() -> PricingSettings {
        PricingSettings {
            usd: MonthlyPrices {
                per_core: decimal("5"),
                per_gb_ram: decimal("2"),
                per_gb_storage: decimal("0.1"),
            },
            source: None,
            min_delta_percent: Decimal::ONE,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    async fn say(pricing: &Pricing, said: &str, second: i64) -> Heard {
        pricing.take(Ok(decimal(said)), "https://prices.example", at(second)).await
    }

    fn glm_per_core(pricing: &Pricing) -> Option<String> {
        pricing.now().glm.map(|glm| glm.per_core.to_string())
    }

    #[tokio::test]
    async fn without_a_rate_there_is_no_price_in_glm_and_with_one_it_outlives_the_source() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let pricing = Pricing::open(&settings(), store.clone()).await.unwrap();
        assert_eq!((pricing.now().glm, pricing.now().rate), (None, None));
        let nothing = pricing.take(Err(SourceError::Malformed), "x", at(0)).await;
        assert_eq!(nothing, Heard::Nothing);
        assert_eq!(pricing.now().glm, None);

        assert_eq!(say(&pricing, "0.25", 1).await, Heard::Believed);
        assert_eq!(glm_per_core(&pricing).as_deref(), Some("20"));
        let nothing = pricing.take(Err(SourceError::Malformed), "x", at(2)).await;
        assert_eq!(nothing, Heard::Nothing);
        assert_eq!(say(&pricing, "0", 3).await, Heard::Nothing);
        assert_eq!(say(&pricing, "2500", 4).await, Heard::Doubted);
        assert_eq!(glm_per_core(&pricing).as_deref(), Some("20"));
        assert_eq!(pricing.now().rate.unwrap().age(at(61)).as_secs(), 60);
        store.close().await;

        let store = Store::open(dir.path()).await.unwrap();
        let again = Pricing::open(&settings(), store).await.unwrap();
        assert_eq!(again.now(), pricing.now());
    }

    #[tokio::test]
    async fn who_watches_is_told_of_changes_that_count_and_of_no_others() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let pricing = Pricing::open(&settings(), store).await.unwrap();
        let mut watching = pricing.watch();
        assert_eq!(say(&pricing, "0.25", 1).await, Heard::Believed);
        assert!(watching.has_changed().unwrap());
        watching.mark_unchanged();
        assert_eq!(say(&pricing, "0.2501", 2).await, Heard::Believed);
        assert!(!watching.has_changed().unwrap());
        let rate = watching.borrow().rate.clone().unwrap();
        assert_eq!((rate.usd_per_glm, rate.at), (decimal("0.25"), at(2)));
        pricing.set_usd(&PriceChange { usd_per_core: Some(decimal("5.0")), ..Default::default() });
        assert!(!watching.has_changed().unwrap());
        pricing.set_usd(&PriceChange { usd_per_core: Some(decimal("10")), ..Default::default() });
        assert_eq!(pricing.now().usd, MonthlyPrices { per_core: decimal("10"), ..settings().usd });
        assert!(watching.has_changed().unwrap());
        assert_eq!(glm_per_core(&pricing).as_deref(), Some("40"));
    }

    #[test]
    fn pauses_grow_with_failures_up_to_the_usual_one() {
        let seconds = |failures| pause(failures, 0).as_secs();
        assert_eq!([0, 1, 2, 3, 8, 9, 1000].map(seconds), [300, 2, 4, 8, 256, 300, 300]);
        assert_eq!((pause(0, 100).as_secs(), pause(1, 50).as_millis()), (240, 1800));
    }
}
