//! Amounts of a chain's coin, for people.

use alloy::primitives::U256;

/// A coin's unit, in its smallest part, has so many digits.
const UNIT_WEI: U256 = U256::from_limbs([1_000_000_000_000_000_000, 0, 0, 0]);
const WEI_PER_GWEI: u128 = 1_000_000_000;

/// An amount with 18 digits after the point, such as wei as ETH, without zeros at its end.
pub fn in_whole(wei: U256) -> String {
    let (whole, rest) = wei.div_rem(UNIT_WEI);
    with_fraction(&whole.to_string(), &format!("{:0>18}", rest.to_string()))
}

/// A price of gas in gwei, in the same way.
pub fn in_gwei(wei: u128) -> String {
    let (whole, rest) = (wei / WEI_PER_GWEI, wei % WEI_PER_GWEI);
    with_fraction(&whole.to_string(), &format!("{rest:0>9}"))
}

fn with_fraction(whole: &str, fraction: &str) -> String {
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        digits => format!("{whole}.{digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_to_the_last_wei() {
        for (wei, shown) in [
            ("0", "0"),
            ("1", "0.000000000000000001"),
            ("1000000000000000000", "1"),
            ("10000000000000000", "0.01"),
            ("10000500000000000000001", "10000.500000000000000001"),
        ] {
            assert_eq!(in_whole(wei.parse().unwrap()), shown);
        }
        assert!(
            in_whole(U256::MAX)
                .starts_with("115792089237316195423570985008687907853269984665640564039457.")
        );
        assert_eq!(in_gwei(2_500_000_001), "2.500000001");
        assert_eq!(in_gwei(200_000_000_000), "200");
    }
}
