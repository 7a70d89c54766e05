//! The decisions: may a machine start on this payment, and must one stop? Functions from values to values.
//!
//! Two principles. Nothing starts on a payment that is not known to be good. Nothing stops for what is not known to be bad: a
//! chain that does not answer is no evidence against a requestor, and what was known before holds until the clock passes it.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde::{Deserialize, Serialize};

use super::funding::{Funding, overdrawn, sensible};
use crate::plugins::payment_verifier::{Payment, Standing};

/// What absorbs the rounding of requestors who compute in binary floating point.
const RATE_TOLERANCE_WEI: u64 = 2;

/// Requestors pay for an hour in advance unless told otherwise.
const USUAL_DEPOSIT: Duration = Duration::from_secs(3600);

/// A stream is stopped with a quarter of what it was ever paid for still ahead, where that is less than the threshold: who pays for
/// an hour gets three quarters of one at least, and the rest back.
const SHARE_KEPT: u64 = 4;

/// What the operator asks of streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A machine is stopped when less than this is left.
    pub min_remaining: Duration,
    /// What a new stream may lack of the usual deposit: the time from its opening to the request.
    pub create_grace: Duration,
}

impl Rules {
    /// What has to be left for a machine to start: a new stream with the usual deposit is always enough, but for the grace, and
    /// whatever starts would not have to stop again at once.
    fn needed_to_start(&self, payment: &Payment, funding: &Funding) -> u64 {
        let usual = USUAL_DEPOSIT.saturating_sub(self.create_grace);
        self.min_remaining.min(usual).as_secs().max(self.needed_to_run(payment, funding))
    }

    /// With less than this left, a machine on this stream stops.
    fn needed_to_run(&self, payment: &Payment, funding: &Funding) -> u64 {
        self.min_remaining.as_secs().min(funding.paid_seconds(payment) / SHARE_KEPT)
    }
}

/// What a machine needs of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    pub payee: Address,
    /// What it may be paid in.
    pub tokens: Vec<Address>,
    /// What a machine of its size costs.
    pub rate_wei_per_second: U256,
}

/// Why no machine starts on a payment. Says what the requestor can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "there is no stream of that number in this provider's contract; open one to {payee}, and wait until its transaction is confirmed"
    )]
    Unknown { payee: Address },
    #[error("the stream was terminated; open a new one, and name it as `stream_id`")]
    Closed,
    #[error(
        "recipient mismatch: the stream pays {found}, and this provider is {needed}; open one to {needed}"
    )]
    OtherPayee { found: Address, needed: Address },
    #[error(
        "the stream pays in the token {found}, and this provider takes {}; open one with that",
        listed(accepted)
    )]
    OtherToken { found: Address, accepted: Vec<Address> },
    #[error("no deposit: the stream was opened without money; open one with a deposit")]
    NoDeposit,
    #[error("stream not started: it begins in {in_seconds} s; ask again then")]
    NotStarted { in_seconds: u64 },
    #[error(
        "stream halted: the contract's oracle has stopped it; open a new one, and name it as `stream_id`"
    )]
    Halted,
    #[error(
        "the stream pays {found} wei a second, and a machine of this size costs {needed}; open one with at least that rate"
    )]
    TooCheap { found: U256, needed: U256 },
    #[error("the stream has run out; top it up by at least {top_up_wei} wei, or open a new one")]
    RanOut { top_up_wei: U256 },
    #[error(
        "the stream has {remaining_seconds} s left, and {needed_seconds} s are needed; top it up by at least {top_up_wei} wei"
    )]
    TooShort { remaining_seconds: u64, needed_seconds: u64, top_up_wei: U256 },
    #[error(
        "the stream's numbers cannot be right (more was withdrawn than has run up, or they pass 128 bits); open a new one"
    )]
    Nonsense,
}

impl Refusal {
    /// In a word, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "stream_unknown",
            Self::Closed => "stream_terminated",
            Self::OtherPayee { .. } => "stream_recipient_mismatch",
            Self::OtherToken { .. } => "stream_token_not_accepted",
            Self::NoDeposit => "stream_no_deposit",
            Self::NotStarted { .. } => "stream_not_started",
            Self::Halted => "stream_halted",
            Self::TooCheap { .. } => "stream_rate_too_low",
            Self::RanOut { .. } => "stream_ran_out",
            Self::TooShort { .. } => "stream_too_short",
            Self::Nonsense => "stream_nonsense",
        }
    }
}

fn listed(addresses: &[Address]) -> String {
    let name = |address: &Address| match address.is_zero() {
        true => "the chain's own coin".to_owned(),
        false => address.to_string(),
    };
    addresses.iter().map(name).collect::<Vec<_>>().join(" or ")
}

/// May a machine start on this payment, as it stood at a block of this time?
pub fn may_start(
    payment: Option<&Payment>,
    needs: &Needs,
    rules: &Rules,
    now: u64,
) -> Result<Funding, Refusal> {
    let payment = payment.ok_or(Refusal::Unknown { payee: needs.payee })?;
    match payment.standing {
        Standing::Closed => return Err(Refusal::Closed),
        Standing::Halted => return Err(Refusal::Halted),
        Standing::Open => {}
    }
    if payment.payee != needs.payee {
        return Err(Refusal::OtherPayee { found: payment.payee, needed: needs.payee });
    }
    if !needs.tokens.contains(&payment.token) {
        let accepted = needs.tokens.clone();
        return Err(Refusal::OtherToken { found: payment.token, accepted });
    }
    if payment.deposit_wei.is_zero() {
        return Err(Refusal::NoDeposit);
    }
    let funding = Funding::at(payment, now);
    if !sensible(payment) || overdrawn(payment, &funding) {
        return Err(Refusal::Nonsense);
    }
    let starts_in = payment.start_time.saturating_sub(U256::from(now));
    if !starts_in.is_zero() {
        return Err(Refusal::NotStarted { in_seconds: starts_in.saturating_to() });
    }
    let rate = payment.rate_wei_per_second;
    let needed = needs.rate_wei_per_second;
    // A rate of zero pays for nothing, whatever the machine costs.
    if rate.is_zero() || rate.saturating_add(U256::from(RATE_TOLERANCE_WEI)) < needed {
        return Err(Refusal::TooCheap { found: rate, needed });
    }
    let needed_seconds = rules.needed_to_start(payment, &funding);
    let lacking = |seconds: u64| rate.saturating_mul(U256::from(seconds));
    if funding.remaining_seconds == 0 {
        // What passed since the end is paid first.
        let gap = U256::from(now).saturating_sub(funding.end).saturating_to::<u64>();
        let top_up_wei = lacking(gap.saturating_add(needed_seconds.max(1)));
        return Err(Refusal::RanOut { top_up_wei });
    }
    if funding.remaining_seconds < needed_seconds {
        return Err(Refusal::TooShort {
            remaining_seconds: funding.remaining_seconds,
            needed_seconds,
            top_up_wei: lacking(needed_seconds - funding.remaining_seconds),
        });
    }
    Ok(funding)
}

/// What is known of a running machine's payment.
#[derive(Debug, Clone, Copy)]
pub enum Evidence<'a> {
    /// The chain answered: this stands at a block of this time.
    Read { payment: &'a Payment, now: u64 },
    /// The chain answered that there is no such payment. `settled`: for long enough that no reorganisation explains it.
    Absent { last: &'a Payment, now: u64, settled: bool },
    /// The chain did not answer: the last that was read, and what the clock says by now.
    Silent { last: &'a Payment, now: u64 },
}

/// How a machine's payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    Funded,
    /// Paid for, but less is left than the operator asks for.
    RunningLow,
    RanOut,
    Halted,
    Terminated,
    /// There is no such payment on the chain.
    Missing,
}

impl PaymentState {
    pub const ALL: [Self; 6] = [
        Self::Funded,
        Self::RunningLow,
        Self::RanOut,
        Self::Halted,
        Self::Terminated,
        Self::Missing,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Funded => "funded",
            Self::RunningLow => "running_low",
            Self::RanOut => "ran_out",
            Self::Halted => "halted",
            Self::Terminated => "terminated",
            Self::Missing => "missing",
        }
    }
}

/// What follows for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub state: PaymentState,
    /// Must it stop?
    pub stop: bool,
    /// What is left, in seconds.
    pub remaining_seconds: u64,
    /// It stops in so many seconds unless money comes. Absent where it has to stop already.
    pub stops_in_seconds: Option<u64>,
    /// Is it the chain's own word, so that what is kept for a machine may be given up for it in the end?
    pub proven: bool,
}

/// Must a machine stop that runs on this payment?
pub fn verdict(evidence: Evidence<'_>, rules: &Rules) -> Verdict {
    match evidence {
        Evidence::Read { payment, now } => of_standing(payment, now, rules),
        Evidence::Absent { settled: true, .. } => Verdict {
            state: PaymentState::Missing,
            stop: true,
            remaining_seconds: 0,
            stops_in_seconds: None,
            proven: true,
        },
        Evidence::Absent { last, now, settled: false } | Evidence::Silent { last, now } => {
            of_clock(last, now)
        }
    }
}

fn of_standing(payment: &Payment, now: u64, rules: &Rules) -> Verdict {
    let over = |state| Verdict {
        state,
        stop: true,
        remaining_seconds: 0,
        stops_in_seconds: None,
        proven: true,
    };
    match payment.standing {
        Standing::Closed => return over(PaymentState::Terminated),
        Standing::Halted => return over(PaymentState::Halted),
        Standing::Open => {}
    }
    let funding = Funding::at(payment, now);
    let remaining_seconds = funding.remaining_seconds;
    if remaining_seconds == 0 {
        return over(PaymentState::RanOut);
    }
    let needed = rules.needed_to_run(payment, &funding);
    let is_low = remaining_seconds < rules.min_remaining.as_secs();
    Verdict {
        state: if is_low { PaymentState::RunningLow } else { PaymentState::Funded },
        stop: remaining_seconds < needed,
        remaining_seconds,
        stops_in_seconds: (remaining_seconds >= needed)
            .then(|| remaining_seconds.saturating_sub(needed)),
        proven: true,
    }
}

/// By what was known last, and the time alone: only its end stops a machine.
fn of_clock(last: &Payment, now: u64) -> Verdict {
    let remaining_seconds = match last.standing {
        Standing::Open => Funding::at(last, now).remaining_seconds,
        Standing::Halted | Standing::Closed => 0,
    };
    let state = match (last.standing, remaining_seconds) {
        (Standing::Halted, _) => PaymentState::Halted,
        (Standing::Closed, _) => PaymentState::Terminated,
        (Standing::Open, 0) => PaymentState::RanOut,
        (Standing::Open, _) => PaymentState::Funded,
    };
    Verdict {
        state,
        stop: remaining_seconds == 0,
        remaining_seconds,
        stops_in_seconds: (remaining_seconds > 0).then_some(remaining_seconds),
        proven: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::funding::tests::{any_payment, recorded},
        *,
    };

    const RULES: Rules =
        Rules { min_remaining: Duration::from_secs(3600), create_grace: Duration::from_secs(300) };

    fn needs(payment: &Payment) -> Needs {
        Needs {
            payee: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC".parse().unwrap(),
            tokens: vec![
                Address::ZERO,
                "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512".parse().unwrap(),
            ],
            rate_wei_per_second: payment.rate_wei_per_second,
        }
    }

    #[test]
    fn every_recorded_state_serves_or_is_refused_as_it_should_be() {
        let expected = |name: &str| match name {
            name if name.starts_with("unknown id") => "stream_unknown",
            name if name.contains("terminated") => "stream_terminated",
            name if name.contains("halted") => "stream_halted",
            name if name.starts_with("token junk") || name.contains("fee-on-transfer") => {
                "stream_token_not_accepted"
            }
            "  ... all vested" => "stream_token_not_accepted",
            "  ... later" => "stream_token_not_accepted",
            "ETH fresh (same block)"
            | "ERC20 fresh"
            | "ERC20 topUp 1 h"
            | "ERC20 with stray msg.value (ETH is stuck)"
            | "stream from provider to itself"
            | "ETH rate=1 wei/s for 1 h (dust)"
            | "ETH from contract that rejects refunds" => "",
            name if name.contains("mid") => "stream_too_short",
            name if name.contains("deposit with remainder") => "stream_too_short",
            name if name.contains("before expiry") => "stream_too_short",
            _ => "stream_ran_out",
        };
        for (name, now, payment, _) in recorded() {
            let needs = payment.as_ref().map_or_else(
                || Needs {
                    payee: Address::repeat_byte(1),
                    tokens: vec![],
                    rate_wei_per_second: U256::from(1),
                },
                needs,
            );
            let outcome = may_start(payment.as_ref(), &needs, &RULES, now);
            let code = outcome.as_ref().err().map_or("", Refusal::code);
            assert_eq!(code, expected(&name), "{name}: {outcome:?}");
        }
    }

    #[test]
    fn every_recorded_state_stops_a_machine_exactly_when_nothing_is_paid_any_more() {
        for (name, now, payment, _) in recorded() {
            let Some(payment) = payment else { continue };
            let found = verdict(Evidence::Read { payment: &payment, now }, &RULES);
            let over = name.contains("terminated") || name.contains("halted");
            let nothing_left = Funding::at(&payment, now).remaining_seconds == 0;
            if over || nothing_left {
                assert!(found.stop && found.remaining_seconds == 0, "{name}: {found:?}");
            }
        }
    }

    #[test]
    fn the_usual_deposit_of_an_hour_starts_a_machine_and_keeps_it_for_three_quarters() {
        let rate = U256::from(951_293_759_512_u64);
        let payment = Payment {
            standing: Standing::Open,
            token: Address::ZERO,
            payer: Address::repeat_byte(1),
            payee: Address::repeat_byte(2),
            rate_wei_per_second: rate,
            start_time: U256::from(1000),
            stop_time: U256::from(1000 + 3599),
            deposit_wei: rate * U256::from(3600) - U256::from(1),
            withdrawn_wei: U256::ZERO,
        };
        let needs = Needs {
            payee: payment.payee,
            tokens: vec![Address::ZERO],
            rate_wei_per_second: rate + U256::from(2),
        };
        assert!(may_start(Some(&payment), &needs, &RULES, 1000 + 290).is_ok());
        let late = may_start(Some(&payment), &needs, &RULES, 1000 + 310).unwrap_err();
        assert_eq!(
            late,
            Refusal::TooShort {
                remaining_seconds: 3289,
                needed_seconds: 3300,
                top_up_wei: rate * U256::from(11)
            }
        );
        let at = |now| verdict(Evidence::Read { payment: &payment, now }, &RULES);
        assert_eq!(at(1000).state, PaymentState::RunningLow);
        assert!(!at(1000 + 2690).stop && at(1000 + 2710).stop);
    }

    #[test]
    fn a_stream_for_a_day_is_stopped_with_the_threshold_left() {
        let payment = Payment {
            standing: Standing::Open,
            token: Address::ZERO,
            payer: Address::repeat_byte(1),
            payee: Address::repeat_byte(2),
            rate_wei_per_second: U256::from(10),
            start_time: U256::ZERO,
            stop_time: U256::from(86_400),
            deposit_wei: U256::from(864_000),
            withdrawn_wei: U256::ZERO,
        };
        let at = |now| verdict(Evidence::Read { payment: &payment, now }, &RULES);
        assert_eq!(at(82_799).state, PaymentState::Funded);
        assert_eq!(at(82_799).stops_in_seconds, Some(1));
        let low = at(82_801);
        assert_eq!((low.state, low.stop), (PaymentState::RunningLow, true));
        assert_eq!(at(86_400).state, PaymentState::RanOut);
    }

    proptest! {
        #[test]
        fn nothing_starts_on_a_stream_that_pays_too_little_or_not_us(
            payment in any_payment(), now in any::<u64>(), rate in any::<u64>(), min in 0..100_000_u64,
        ) {
            let rules = Rules { min_remaining: Duration::from_secs(min), ..RULES };
            let needs = Needs {
                payee: payment.payee, tokens: vec![payment.token], rate_wei_per_second: U256::from(rate),
            };
            if let Ok(funding) = may_start(Some(&payment), &needs, &rules, now) {
                prop_assert_eq!(payment.standing, Standing::Open);
                prop_assert!(funding.remaining_seconds > 0);
                prop_assert!(funding.remaining_seconds >= min.min(3300));
                prop_assert!(payment.rate_wei_per_second + U256::from(2) >= needs.rate_wei_per_second);
                prop_assert!(payment.deposit_wei - funding.vested_wei >= payment.rate_wei_per_second);
                // And whoever may start is not stopped in the same moment.
                let found = verdict(Evidence::Read { payment: &payment, now }, &rules);
                prop_assert!(!found.stop);
            }
            let other = Needs { payee: Address::repeat_byte(9), ..needs.clone() };
            prop_assert!(may_start(Some(&payment), &other, &rules, now).is_err());
            let other = Needs { tokens: vec![Address::repeat_byte(9)], ..needs };
            prop_assert!(may_start(Some(&payment), &other, &rules, now).is_err());
        }

        #[test]
        fn an_error_stops_nothing_before_the_clock_has_passed_what_was_paid(
            payment in any_payment(), now in any::<u64>(), settled in Just(false),
        ) {
            for evidence in [
                Evidence::Silent { last: &payment, now },
                Evidence::Absent { last: &payment, now, settled },
            ] {
                let found = verdict(evidence, &RULES);
                let paid = payment.standing == Standing::Open && Funding::at(&payment, now).remaining_seconds > 0;
                prop_assert_eq!(found.stop, !paid);
                prop_assert!(!found.proven);
            }
        }

        #[test]
        fn what_has_to_stop_has_to_stop_at_every_later_time(
            payment in any_payment(), now in any::<u64>(), later in any::<u64>(),
        ) {
            let (now, later) = (now.min(later), now.max(later));
            for evidence in [
                |payment, now| Evidence::Read { payment, now },
                |last, now| Evidence::Silent { last, now },
            ] {
                let (first, then) = (verdict(evidence(&payment, now), &RULES), verdict(evidence(&payment, later), &RULES));
                prop_assert!(!first.stop || then.stop);
                prop_assert!(first.remaining_seconds >= then.remaining_seconds);
            }
        }
    }
}
