//! The arithmetic of a stream: until when it is paid for, and what has run up. Pure, in 256 bits, and nothing in it overflows:
//! contracts hold numbers that no clock and no purse ever reaches.

use alloy::primitives::U256;

use crate::plugins::payment_verifier::{Payment, Standing};

/// What a stream is worth at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funding {
    /// Until then the machine is paid for; in seconds since 1970-01-01 UTC. What the contract calls the end may be later: money
    /// that came after an end pays for the gap first.
    pub end: U256,
    /// From now to that; zero once it is over.
    pub remaining_seconds: u64,
    /// What has run up since the beginning.
    pub vested_wei: U256,
    /// What of that is still to be collected.
    pub withdrawable_wei: U256,
}

impl Funding {
    /// Of a stream at this time, which is a block's.
    pub fn at(payment: &Payment, now: u64) -> Self {
        let Payment { start_time, stop_time, rate_wei_per_second: rate, .. } = *payment;
        let deposit = payment.deposit_wei;
        let now = U256::from(now);
        // Nothing that costs nothing is paid for.
        let seconds_paid = deposit.checked_div(rate).unwrap_or_default();
        let end = stop_time.min(start_time.saturating_add(seconds_paid));
        let elapsed = now.min(stop_time).saturating_sub(start_time);
        let vested_wei = elapsed.saturating_mul(rate).min(deposit);
        let (end, withdrawable_wei) = match payment.standing {
            // Everything was paid out when it was closed.
            Standing::Closed => (end.min(now), U256::ZERO),
            Standing::Open | Standing::Halted => {
                (end, vested_wei.saturating_sub(payment.withdrawn_wei))
            }
        };
        let remaining_seconds = end.saturating_sub(now).saturating_to();
        Self { end, remaining_seconds, vested_wei, withdrawable_wei }
    }

    /// For how long the stream was ever paid, in seconds.
    pub fn paid_seconds(&self, payment: &Payment) -> u64 {
        self.end.saturating_sub(payment.start_time).saturating_to()
    }
}

/// Has the payee taken more than the rate explains? Then the contract does not do what streams do.
pub fn overdrawn(payment: &Payment, funding: &Funding) -> bool {
    payment.withdrawn_wei > funding.vested_wei || payment.withdrawn_wei > payment.deposit_wei
}

/// Are the numbers such as an honest stream has them? A rate and a deposit above 128 bits buy a wrapped duration at best.
pub fn sensible(payment: &Payment) -> bool {
    let most = U256::from(u128::MAX);
    let times = [payment.start_time, payment.stop_time];
    let amounts = [payment.rate_wei_per_second, payment.deposit_wei, payment.withdrawn_wei];
    amounts.iter().all(|amount| *amount <= most)
        && times.iter().all(|time| *time <= U256::from(u64::MAX))
}

#[cfg(test)]
pub(super) mod tests {
    use alloy::primitives::Address;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// A number as the recorded answers have it: JSON's own, or a text where it is too large for that.
    fn number(value: &Value) -> U256 {
        value.as_str().map_or_else(|| value.to_string(), str::to_owned).parse().unwrap()
    }

    /// Name, time of the block, and what the contract had, of every recorded state.
    pub fn recorded() -> Vec<(String, u64, Option<Payment>, Value)> {
        let states = include_str!("../../../../tests/vectors/stream_states.json");
        let states: Value = serde_json::from_str(states).unwrap();
        let read = |case: &Value| {
            let stream = &case["decoded"];
            let address = |field: &str| stream[field].as_str().unwrap().parse().unwrap();
            let payer: Address = address("sender");
            let payee: Address = address("recipient");
            let payment = Payment {
                standing: match stream["halted"].as_bool().unwrap() {
                    _ if payee.is_zero() => Standing::Closed,
                    true => Standing::Halted,
                    false => Standing::Open,
                },
                token: address("token"),
                payer,
                payee,
                rate_wei_per_second: number(&stream["ratePerSecond"]),
                start_time: number(&stream["startTime"]),
                stop_time: number(&stream["stopTime"]),
                deposit_wei: number(&stream["deposit"]),
                withdrawn_wei: number(&stream["withdrawn"]),
            };
            let name = case["case"].as_str().unwrap().to_owned();
            let now = case["now"].as_u64().unwrap();
            (name, now, (!payer.is_zero()).then_some(payment), case.clone())
        };
        let cases: Vec<_> = states["cases"].as_array().unwrap().iter().map(read).collect();
        assert_eq!(cases.len(), 42);
        cases
    }

    #[test]
    fn every_recorded_state_is_worth_what_its_contract_says() {
        for (name, now, payment, case) in recorded() {
            let Some(payment) = payment else { continue };
            let funding = Funding::at(&payment, now);
            assert_eq!(funding.vested_wei, number(&case["contract_vested"]), "{name}");
            let payable = number(&case["contract_payable_to_provider"]);
            assert_eq!(funding.withdrawable_wei, payable, "{name}");
            assert!(!overdrawn(&payment, &funding), "{name}");
        }
    }

    #[test]
    fn money_that_comes_after_the_end_pays_for_the_gap_first() {
        let states = recorded();
        let (_, now, payment, _) =
            states.iter().find(|state| state.0.contains("AFTER expiry")).unwrap();
        let funding = Funding::at(payment.as_ref().unwrap(), *now);
        // Ten minutes were paid in forty minutes after the end.
        assert_eq!(funding.remaining_seconds, 0);
        assert!(payment.as_ref().unwrap().stop_time > U256::from(*now));
    }

    pub fn any_payment() -> impl Strategy<Value = Payment> {
        let wide = || {
            prop_oneof![
                any::<[u8; 32]>().prop_map(U256::from_be_bytes),
                any::<u64>().prop_map(U256::from),
                (0..4_000_000_000_u64).prop_map(U256::from),
                (0..10_000_u64).prop_map(U256::from),
            ]
        };
        let standing =
            prop_oneof![Just(Standing::Open), Just(Standing::Halted), Just(Standing::Closed)];
        (standing, wide(), wide(), wide(), wide(), wide()).prop_map(
            |(standing, rate, start_time, stop_time, deposit, withdrawn)| Payment {
                standing,
                token: Address::ZERO,
                payer: Address::repeat_byte(1),
                payee: Address::repeat_byte(2),
                rate_wei_per_second: rate,
                start_time,
                stop_time,
                deposit_wei: deposit,
                withdrawn_wei: withdrawn,
            },
        )
    }

    proptest! {
        #[test]
        fn vested_is_never_above_the_deposit_and_time_only_adds_to_it(
            payment in any_payment(), now in any::<u64>(), later in any::<u64>(),
        ) {
            let (now, later) = (now.min(later), now.max(later));
            let (first, then) = (Funding::at(&payment, now), Funding::at(&payment, later));
            prop_assert!(then.vested_wei <= payment.deposit_wei);
            prop_assert!(first.vested_wei <= then.vested_wei);
            prop_assert!(first.withdrawable_wei <= first.vested_wei);
            prop_assert!(first.remaining_seconds >= then.remaining_seconds);
            prop_assert!(then.end <= payment.stop_time);
        }

        #[test]
        fn what_is_paid_for_is_never_more_than_what_was_paid_in(
            rate in 1..u64::MAX, seconds in 0..1_000_000_u64, rest in any::<u64>(), start in 0..4_000_000_000_u64,
        ) {
            let deposit = U256::from(rate) * U256::from(seconds) + U256::from(rest % rate);
            let payment = Payment {
                standing: Standing::Open, token: Address::ZERO, payer: Address::repeat_byte(1), payee: Address::repeat_byte(2),
                rate_wei_per_second: U256::from(rate), start_time: U256::from(start), stop_time: U256::MAX,
                deposit_wei: deposit, withdrawn_wei: U256::ZERO,
            };
            prop_assert_eq!(Funding::at(&payment, start).remaining_seconds, seconds);
        }
    }
}
