//! The arithmetic of prices: decimals and whole numbers, nothing rounded but where it says so.

use rust_decimal::{Decimal, RoundingStrategy};

use super::MonthlyPrices;
use crate::resources::Amounts;

/// GLM has as many digits after the point as ETH: the smallest part is a wei.
const GLM_DIGITS: u32 = 18;
/// What a month is, for all of the network: 730 hours.
const SECONDS_A_MONTH: u128 = 730 * 3600;

/// These prices in GLM, rounded to the nearest wei. `None` where a price would be lost by that, or does not fit.
pub fn in_glm(usd: &MonthlyPrices, usd_per_glm: Decimal) -> Option<MonthlyPrices> {
    let convert = |price: Decimal| {
        let exact = price.checked_div(usd_per_glm)?;
        let rounded =
            exact.round_dp_with_strategy(GLM_DIGITS, RoundingStrategy::MidpointAwayFromZero);
        (rounded.is_zero() == price.is_zero()).then(|| rounded.normalize())
    };
    Some(MonthlyPrices {
        per_core: convert(usd.per_core)?,
        per_gb_ram: convert(usd.per_gb_ram)?,
        per_gb_storage: convert(usd.per_gb_storage)?,
    })
}

/// What a machine of this size costs a month, in the currency of the prices. `None` where that does not fit.
pub fn month_of(prices: &MonthlyPrices, size: Amounts) -> Option<Decimal> {
    let part = |price: Decimal, amount: u64| price.checked_mul(Decimal::from(amount));
    let sum = part(prices.per_core, size.cpu_cores)?
        .checked_add(part(prices.per_gb_ram, size.memory_gb)?)?
        .checked_add(part(prices.per_gb_storage, size.storage_gb)?)?;
    Some(sum.normalize())
}

/// What a machine of this size costs a second, in wei, rounded down: what a requestor computes from prices in GLM. `None` where
/// a price is no whole number of wei, or the result does not fit.
pub fn wei_per_second(glm: &MonthlyPrices, size: Amounts) -> Option<u128> {
    let part = |price: Decimal, amount: u64| wei(price)?.checked_mul(amount.into());
    let a_month = part(glm.per_core, size.cpu_cores)?
        .checked_add(part(glm.per_gb_ram, size.memory_gb)?)?
        .checked_add(part(glm.per_gb_storage, size.storage_gb)?)?;
    Some(a_month / SECONDS_A_MONTH)
}

fn wei(glm: Decimal) -> Option<u128> {
    let glm = glm.normalize();
    let factor = 10_u128.checked_pow(GLM_DIGITS.checked_sub(glm.scale())?)?;
    u128::try_from(glm.mantissa()).ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::payments::pricing::{MAX_USD_PER_GLM, MIN_USD_PER_GLM};

    fn decimal(text: &str) -> Decimal {
        Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text)).unwrap()
    }

    fn prices(per_core: &str, per_gb_ram: &str, per_gb_storage: &str) -> MonthlyPrices {
        MonthlyPrices {
            per_core: decimal(per_core),
            per_gb_ram: decimal(per_gb_ram),
            per_gb_storage: decimal(per_gb_storage),
        }
    }

    #[test]
    fn the_rate_of_a_size_is_the_one_that_requestors_compute() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/rate_vectors.json"))
                .unwrap();
        let vectors = vectors["vectors"].as_array().unwrap();
        assert!(vectors.len() > 10);
        for vector in vectors {
            let text = |key: &str| vector[key].as_str().unwrap();
            let amount = |key: &str| vector[key].as_u64().unwrap();
            let glm = prices(text("core"), text("ram"), text("storage"));
            let size = Amounts {
                cpu_cores: amount("cpu"),
                memory_gb: amount("memory"),
                storage_gb: amount("storage_gb"),
            };
            let rate = wei_per_second(&glm, size).unwrap();
            assert_eq!(rate.to_string(), text("exact_floor_rate"), "{vector}");
            let month = month_of(&glm, size).unwrap();
            assert_eq!(month, decimal(text("requestor_glm_month")).normalize(), "{vector}");
        }
    }

    #[test]
    fn prices_are_divided_to_the_last_wei() {
        let glm = in_glm(&prices("5.0", "2", "0.1"), decimal("0.3")).unwrap();
        let expected =
            prices("16.666666666666666667", "6.666666666666666667", "0.333333333333333333");
        assert_eq!(glm, expected);
        let free = in_glm(&prices("0", "0.0", "0"), decimal("0.3")).unwrap();
        assert_eq!(free, prices("0", "0", "0"));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_not_rounded() {
        assert_eq!(in_glm(&prices("1", "1", "1"), Decimal::ZERO), None);
        assert_eq!(in_glm(&prices("0.000000000000000001", "1", "1"), decimal("1000")), None);
        let size = Amounts { cpu_cores: 16, memory_gb: 64, storage_gb: 1000 };
        let too_fine = prices("0.0000000000000000001", "0", "0");
        assert_eq!(wei_per_second(&too_fine, size), None);
        let huge = MonthlyPrices { per_core: Decimal::MAX, ..prices("0", "0", "0") };
        assert_eq!((month_of(&huge, size), wei_per_second(&huge, size)), (None, None));
        assert_eq!(wei_per_second(&prices("-1", "0", "0"), size), None);
    }

    proptest! {
        /// Whatever the settings and the source may say: there is a price, none is zero, and each is right to half a wei.
        #[test]
        fn every_price_and_rate_that_is_accepted_gives_a_price_in_glm(
            nanos in prop::array::uniform3(0_i64..=1_000_000_000_000_000),
            mantissa in 1_i64..=1_000_000_000_000, scale in 0_u32..=12,
        ) {
            let rate = Decimal::new(mantissa, scale);
            prop_assume!((MIN_USD_PER_GLM..=MAX_USD_PER_GLM).contains(&rate));
            let [per_core, per_gb_ram, per_gb_storage] = nanos.map(|nanos| Decimal::new(nanos, 9));
            let usd = MonthlyPrices { per_core, per_gb_ram, per_gb_storage };
            let glm = in_glm(&usd, rate).unwrap();
            for (usd, glm) in [(per_core, glm.per_core), (per_gb_ram, glm.per_gb_ram), (per_gb_storage, glm.per_gb_storage)] {
                prop_assert_eq!(usd.is_zero(), glm.is_zero());
                let off = (glm * rate - usd).abs();
                prop_assert!(off <= rate * Decimal::new(1, 18) || off <= usd * Decimal::new(1, 20), "{} {}", usd, glm);
            }
            let size = Amounts { cpu_cores: 16, memory_gb: 64, storage_gb: 1000 };
            prop_assert!(month_of(&glm, size).is_some());
            prop_assert!(wei_per_second(&glm, size).is_some());
        }
    }
}
