//! Is a rate believed? A function from what is known and what was said to what is done, without a clock of its own.
//!
//! A rate that is off by more than [`MAX_JUMP`] is believed only when the source keeps saying so: one wrong answer would sell
//! machines for next to nothing, or for so much that nobody comes. Real crashes are followed a few questions later.

use rust_decimal::Decimal;

/// Nothing outside of these is the price of GLM.
pub const MIN_USD_PER_GLM: Decimal = Decimal::from_parts(1, 0, 0, false, 4);
pub const MAX_USD_PER_GLM: Decimal = Decimal::from_parts(10_000, 0, 0, false, 0);

/// How much higher or lower a rate may be than the last one to be believed at once.
const MAX_JUMP: Decimal = Decimal::from_parts(2, 0, 0, false, 0);
/// How often in a row a jump has to be said.
const CONFIRMATIONS: u32 = 3;
/// How far apart, in percent, answers that confirm one another may be.
const AGREEMENT_PERCENT: Decimal = Decimal::from_parts(10, 0, 0, false, 0);

/// What is done with a rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It counts from now on.
    Adopt,
    /// It is so close to the last one that that one stays, confirmed.
    Confirm,
    /// The last one counts on, until this one has been said `left` more times.
    Doubt { left: u32 },
    /// It is no price of GLM.
    Refuse,
}

/// A jump that was said, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspect(Option<(Decimal, u32)>);

/// Judges `said`; `last` is the rate that counts.
pub fn judge(
    last: Option<Decimal>,
    said: Decimal,
    min_delta_percent: Decimal,
    suspect: &mut Suspect,
) -> Verdict {
    if !(MIN_USD_PER_GLM..=MAX_USD_PER_GLM).contains(&said) {
        return Verdict::Refuse;
    }
    let Some(last) = last.filter(|last| *last > Decimal::ZERO) else {
        *suspect = Suspect::default();
        return Verdict::Adopt;
    };
    if said > last * MAX_JUMP || said * MAX_JUMP < last {
        let times = match suspect.0 {
            Some((before, times)) if within(before, said, AGREEMENT_PERCENT) => times + 1,
            _ => 1,
        };
        if times < CONFIRMATIONS {
            *suspect = Suspect(Some((said, times)));
            return Verdict::Doubt { left: CONFIRMATIONS - times };
        }
    }
    *suspect = Suspect::default();
    // A change of exactly the smallest one that counts does count.
    let close = said == last
        || (within(last, said, min_delta_percent) && !at(last, said, min_delta_percent));
    if close { Verdict::Confirm } else { Verdict::Adopt }
}

fn within(one: Decimal, other: Decimal, percent: Decimal) -> bool {
    (one - other).abs() * Decimal::ONE_HUNDRED <= one * percent
}

fn at(one: Decimal, other: Decimal, percent: Decimal) -> bool {
    (one - other).abs() * Decimal::ONE_HUNDRED == one * percent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::from_str_exact(text).unwrap()
    }

    fn once(last: Option<&str>, said: &str) -> Verdict {
        judge(last.map(decimal), decimal(said), Decimal::ONE, &mut Suspect::default())
    }

    #[test]
    fn one_answer_is_judged_by_what_is_known() {
        let doubt = Verdict::Doubt { left: 2 };
        for (last, said, verdict) in [
            (None, "0.25", Verdict::Adopt),
            (None, "0", Verdict::Refuse),
            (None, "-0.25", Verdict::Refuse),
            (None, "0.00001", Verdict::Refuse),
            (None, "10001", Verdict::Refuse),
            (Some("0.25"), "0", Verdict::Refuse),
            (Some("0.25"), "0.25", Verdict::Confirm),
            (Some("0.25"), "0.2524", Verdict::Confirm),
            (Some("0.25"), "0.2476", Verdict::Confirm),
            (Some("0.25"), "0.2525", Verdict::Adopt),
            (Some("0.25"), "0.2475", Verdict::Adopt),
            (Some("0.25"), "0.5", Verdict::Adopt),
            (Some("0.25"), "0.125", Verdict::Adopt),
            (Some("0.25"), "0.501", doubt.clone()),
            (Some("0.25"), "0.1249", doubt),
        ] {
            assert_eq!(once(last, said), verdict, "{said} after {last:?}");
        }
    }

    #[test]
    fn with_no_smallest_change_every_change_counts() {
        let judge = |said: &str| {
            judge(Some(decimal("0.25")), decimal(said), Decimal::ZERO, &mut Suspect::default())
        };
        assert_eq!(judge("0.25"), Verdict::Confirm);
        assert_eq!(judge("0.250001"), Verdict::Adopt);
    }

    #[test]
    fn a_jump_counts_once_it_has_been_said_three_times_in_a_row() {
        let mut suspect = Suspect::default();
        let mut say =
            |said: &str| judge(Some(decimal("0.25")), decimal(said), Decimal::ONE, &mut suspect);
        assert_eq!(say("0.01"), Verdict::Doubt { left: 2 });
        assert_eq!(say("0.0105"), Verdict::Doubt { left: 1 });
        // Something else in between, plausible or not, begins it anew.
        assert_eq!(say("0.25"), Verdict::Confirm);
        assert_eq!(say("0.01"), Verdict::Doubt { left: 2 });
        assert_eq!(say("0.01"), Verdict::Doubt { left: 1 });
        assert_eq!(say("100"), Verdict::Doubt { left: 2 });
        assert_eq!(say("0.01"), Verdict::Doubt { left: 2 });
        assert_eq!(say("0.01"), Verdict::Doubt { left: 1 });
        assert_eq!(say("0.0098"), Verdict::Adopt);
    }

    proptest! {
        #[test]
        fn a_single_answer_never_more_than_doubles_or_halves_a_rate(
            last in 1_i64..=100_000_000, said in 0_i64..=200_000_000,
        ) {
            let (last, said) = (Decimal::new(last, 4), Decimal::new(said, 4));
            if judge(Some(last), said, Decimal::ONE, &mut Suspect::default()) == Verdict::Adopt {
                prop_assert!(said <= last * MAX_JUMP && said * MAX_JUMP >= last);
                prop_assert!(said > Decimal::ZERO);
            }
        }
    }
}
