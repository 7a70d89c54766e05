//! What machines may be paid by: the price now, and every price that requestors may still have before them. Somebody who reads an
//! advertisement, opens a stream at its price and asks for a machine is not refused because the price rose meanwhile.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    payments::pricing::{MonthlyPrices, Prices, wei_per_second},
    resources::Amounts,
};

/// More changes than this within the time are not remembered: the oldest is forgotten.
const REMEMBERED: usize = 256;

/// The prices in GLM that count.
pub struct Quotes {
    prices: watch::Receiver<Prices>,
    /// How long a price that was told still counts.
    memory: Duration,
    /// With the moment until which each counts.
    past: Mutex<VecDeque<(Instant, MonthlyPrices)>>,
}

impl Quotes {
    pub fn new(prices: watch::Receiver<Prices>, memory: Duration) -> Self {
        Self { prices, memory, past: Mutex::default() }
    }

    /// The lowest rate that a machine of this size may be paid by, in wei a second. `None` while nobody knows what GLM is worth.
    pub fn rate_wei_per_second(&self, size: Amounts) -> Option<u128> {
        let now = wei_per_second(self.prices.borrow().glm.as_ref()?, size)?;
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|(until, _)| *until > Instant::now());
        let told = past.iter().filter_map(|(_, glm)| wei_per_second(glm, size));
        Some(told.min().map_or(now, |told| told.min(now)))
    }

    /// Remembers prices as they change; for ever.
    pub async fn follow(&self) {
        let mut prices = self.prices.clone();
        let mut last = prices.borrow_and_update().glm;
        while prices.changed().await.is_ok() {
            let next = prices.borrow_and_update().glm;
            if let Some(old) = last.filter(|_| last != next) {
                let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
                if past.len() == REMEMBERED {
                    past.pop_front();
                }
                past.push_back((Instant::now() + self.memory, old));
            }
            last = next;
        }
        // Prices do not change any more: whoever waits for this goes on waiting for something else.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;

    use super::*;

    fn prices(per_core: i64) -> Prices {
        let monthly = |per_core| MonthlyPrices {
            per_core: Decimal::from(per_core),
            per_gb_ram: Decimal::ZERO,
            per_gb_storage: Decimal::ZERO,
        };
        Prices { usd: monthly(5), glm: (per_core > 0).then(|| monthly(per_core)), rate: None }
    }

    #[tokio::test(start_paused = true)]
    async fn a_price_that_was_told_counts_for_a_while_after_it_rose() {
        let (sender, receiver) = watch::channel(prices(0));
        let quotes = std::sync::Arc::new(Quotes::new(receiver, Duration::from_secs(900)));
        let following = tokio::spawn({
            let quotes = std::sync::Arc::clone(&quotes);
            async move { quotes.follow().await }
        });
        tokio::task::yield_now().await;
        let size = Amounts { cpu_cores: 1, memory_gb: 1, storage_gb: 10 };
        let month = 730 * 3600;
        let rate = |glm: u128| Some(glm * 1_000_000_000_000_000_000 / month);
        assert_eq!(quotes.rate_wei_per_second(size), None);
        for (price, counts) in [(10, 10), (12, 10), (8, 8), (20, 8)] {
            sender.send(prices(price)).unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(quotes.rate_wei_per_second(size), rate(counts));
        }
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(quotes.rate_wei_per_second(size), rate(20));
        following.abort();
    }
}
