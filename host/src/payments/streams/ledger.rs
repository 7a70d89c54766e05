//! What streams have earned, what was collected of that, and what should be collected now. Pure.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use jiff::Timestamp;
use rust_decimal::{Decimal, RoundingStrategy};
use serde::{Deserialize, Serialize};

use super::{
    funding::Funding,
    model::{Payout, PayoutKind, PayoutState, Stream},
};
use crate::{
    chains::in_whole,
    plugins::payment_verifier::{Payment, Standing},
    settings::WithdrawalSettings,
};

/// After a transaction that failed; doubled with each further one of the stream.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);

/// In tables and in JSON, of an amount in USD.
const USD_DIGITS: u32 = 6;

/// Of tokens: GLM's, and of all coins.
const TOKEN_DIGITS: u32 = 18;

/// Transactions that a report shows of one stream, the newest ones.
const SHOWN_PAYOUTS: usize = 50;

/// The sums of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// What has run up. Of a stream that its payer ended, what the provider collected itself: what it was paid in that moment
    /// stands nowhere but on the chain.
    pub vested_wei: U256,
    /// What the provider has of that.
    pub withdrawn_wei: U256,
    /// What it could collect now.
    pub withdrawable_wei: U256,
    /// Spent on collecting, in the chain's coin.
    pub gas_wei: U256,
    pub remaining_seconds: u64,
}

impl Account {
    /// At this time, which is the chain's. `payouts` are those of the stream.
    pub fn of<'a>(
        stream: &Stream,
        payouts: impl IntoIterator<Item = &'a Payout>,
        chain_time: u64,
    ) -> Account {
        let (mut collected, mut at_the_end, mut gas_wei) = (U256::ZERO, U256::ZERO, U256::ZERO);
        for payout in payouts {
            gas_wei = gas_wei.saturating_add(payout.gas_wei.unwrap_or_default());
            let sum = match payout.kind {
                PayoutKind::Withdraw => &mut collected,
                PayoutKind::Terminate => &mut at_the_end,
            };
            *sum = sum.saturating_add(payout.amount_wei.unwrap_or_default());
        }
        let funding = Funding::at(&stream.payment, chain_time);
        // Contracts do not count what they paid out at the end. What was read may be older than what was collected.
        let withdrawn_wei = stream.payment.withdrawn_wei.max(collected).saturating_add(at_the_end);
        let is_over = stream.payment.standing == Standing::Closed || !at_the_end.is_zero();
        let vested_wei = match is_over {
            true => withdrawn_wei,
            false => funding.vested_wei.max(withdrawn_wei),
        };
        Account {
            vested_wei,
            withdrawn_wei,
            withdrawable_wei: match stream.settled {
                true => U256::ZERO,
                false => vested_wei.saturating_sub(withdrawn_wei),
            },
            gas_wei,
            remaining_seconds: if is_over { 0 } else { funding.remaining_seconds },
        }
    }
}

/// What is to be sent for a stream, as its contract has it at this time of the chain; nothing where there is nothing to collect.
///
/// A machine that is gone is not paid for any longer: where time is left on its stream, the stream is ended, in the same transaction
/// that collects, and the payer has the rest back. Where that has failed once, such as with a payer that rejects coin, the stream is
/// left to its payer, and what runs up is collected.
pub fn wanted<'a>(
    payment: &Payment,
    chain_time: u64,
    is_released: bool,
    payouts: impl IntoIterator<Item = &'a Payout>,
) -> Option<(PayoutKind, U256)> {
    let funding = Funding::at(payment, chain_time);
    if payment.standing == Standing::Closed || funding.withdrawable_wei.is_zero() {
        return None;
    }
    let cannot_end = payouts
        .into_iter()
        .any(|payout| (payout.kind, payout.state) == (PayoutKind::Terminate, PayoutState::Failed));
    let ends = is_released
        && payment.standing == Standing::Open
        && funding.remaining_seconds > 0
        && !cannot_end;
    let kind = if ends { PayoutKind::Terminate } else { PayoutKind::Withdraw };
    Some((kind, funding.withdrawable_wei))
}

/// Can nothing more come of this payment at this time of the chain, unless somebody pays in?
pub fn is_over(payment: &Payment, chain_time: u64) -> bool {
    let funding = Funding::at(payment, chain_time);
    match payment.standing {
        Standing::Closed => true,
        Standing::Halted => funding.withdrawable_wei.is_zero(),
        Standing::Open => funding.withdrawable_wei.is_zero() && funding.remaining_seconds == 0,
    }
}

/// Is it time to look whether something is to be collected of this stream? `payouts` are those of the stream, oldest first.
///
/// While its machine is there, as the operator says. Once that is gone it is settled: at once, whatever the operator says of
/// withdrawals in general, and where that was not the end of it, once an interval.
pub fn is_due(
    stream: &Stream,
    payouts: &[&Payout],
    rules: &WithdrawalSettings,
    now: Timestamp,
) -> bool {
    let since = |then: Timestamp| Duration::try_from(now.duration_since(then)).unwrap_or_default();
    if stream.settled || payouts.iter().any(|payout| payout.state == PayoutState::Planned) {
        return false;
    }
    let failed =
        payouts.iter().rev().take_while(|payout| payout.state == PayoutState::Failed).count();
    if let Some(last) = payouts.last().filter(|_| failed > 0)
        && since(last.updated_at) < pause(u32::try_from(failed).unwrap_or(u32::MAX))
    {
        return false;
    }
    let mined = payouts.iter().rev().find(|payout| payout.state == PayoutState::Mined);
    let collected_at = mined.map(|payout| payout.updated_at);
    if let Some(released_at) = stream.released_at {
        return collected_at.is_none_or(|at| at < released_at || since(at) >= rules.interval);
    }
    let account = Account::of(stream, payouts.iter().copied(), stream.chain_time(now));
    rules.enabled
        && since(collected_at.unwrap_or(stream.bound_at)) >= rules.interval
        && is_enough(account.withdrawable_wei, rules)
}

/// Is it as much as the operator wants to be collected at a time?
pub fn is_enough(amount_wei: U256, rules: &WithdrawalSettings) -> bool {
    !amount_wei.is_zero() && amount_wei >= U256::from(rules.min_wei)
}

/// Is it more than collecting it costs? A coin counts as much as a whole token, since nobody says what chains' coins are worth: right
/// where streams are in the coin itself, about right where coin and GLM cost about the same. Where the coin is worth much more,
/// the operator's smallest amount has to see to it.
pub fn is_worth_it(amount_wei: U256, gas_cost_wei: U256) -> bool {
    amount_wei > gas_cost_wei
}

/// How long after so many failures in a row nothing is tried.
pub fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LONGEST_PAUSE)
}

/// What one of a token is worth, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenPrice {
    pub token: Option<Address>,
    pub usd: Option<Decimal>,
}

impl TokenPrice {
    fn of(&self, token: Address) -> Option<Decimal> {
        self.usd.filter(|_| self.token == Some(token))
    }
}

/// An amount of a token, as people and programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// In its smallest part.
    pub wei: String,
    /// In whole tokens.
    pub token: String,
    /// Absent where nobody knows what the token is worth.
    pub usd: Option<String>,
}

impl Amount {
    fn new(wei: U256, usd_per_token: Option<Decimal>) -> Amount {
        Amount {
            wei: wei.to_string(),
            token: in_whole(wei),
            usd: usd_per_token
                .and_then(|price| in_usd(wei, price))
                .map(|usd| usd.normalize().to_string()),
        }
    }
}

/// Absent where it is more than anybody has.
fn in_usd(wei: U256, usd_per_token: Decimal) -> Option<Decimal> {
    let wei = i128::try_from(u128::try_from(wei).ok()?).ok()?;
    let tokens = Decimal::try_from_i128_with_scale(wei, TOKEN_DIGITS).ok()?;
    let usd = tokens.checked_mul(usd_per_token)?;
    Some(usd.round_dp_with_strategy(USD_DIGITS, RoundingStrategy::MidpointAwayFromZero))
}

/// All streams that ever were, and what came of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    pub streams: Vec<StreamReport>,
    /// For each token, zero being the chain's own coin.
    pub earnings: Vec<Earnings>,
    /// What a whole GLM was worth for the amounts in USD, as far as that is known.
    pub usd_per_glm: Option<String>,
}

/// A stream, in the words of the operator's commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    pub stream_id: String,
    pub contract: String,
    pub chain: String,
    pub token: String,
    pub payer: String,
    /// The machine, by its instance id and by its requestor's name for it.
    pub vm_id: String,
    pub vm_name: String,
    pub state: StreamState,
    pub bound_at: Timestamp,
    /// When its machine was deleted.
    pub released_at: Option<Timestamp>,
    /// When the chain was last asked.
    pub as_of: Timestamp,
    pub remaining_seconds: u64,
    pub rate_wei_per_second: String,
    pub deposit: Amount,
    pub earned: Amount,
    pub withdrawn: Amount,
    pub withdrawable: Amount,
    /// What is to be collected although its machine is gone.
    pub owed: Amount,
    /// In the chain's coin.
    pub gas_wei: String,
    /// The newest ones, oldest first.
    pub transactions: Vec<PayoutReport>,
}

/// How a stream stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamState {
    /// It pays for a machine.
    Running,
    /// It is over, and its machine is there.
    Ended,
    /// Its machine was stopped since nobody paid.
    Unpaid,
    /// Its machine is gone, and something is to be collected or may still run up.
    Owed,
    /// Nothing more can come of it.
    Settled,
}

/// A transaction of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutReport {
    pub kind: PayoutKind,
    pub state: PayoutState,
    pub planned_at: Timestamp,
    pub updated_at: Timestamp,
    pub expected: Amount,
    /// Once it was mined.
    pub amount: Option<Amount>,
    pub transaction: Option<String>,
    pub gas_wei: Option<String>,
    pub error: Option<String>,
}

/// What all streams in one token came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earnings {
    pub chain: String,
    pub token: String,
    pub streams: u64,
    pub earned: Amount,
    pub withdrawn: Amount,
    pub withdrawable: Amount,
    pub owed: Amount,
    /// In the chain's coin.
    pub gas_wei: String,
}

impl Ledger {
    pub fn new(
        streams: &[Stream],
        payouts: &[Payout],
        price: TokenPrice,
        now: Timestamp,
    ) -> Ledger {
        let mut reports = Vec::new();
        let mut sums: Vec<((String, Address), u64, [U256; 5])> = Vec::new();
        for stream in streams {
            let payouts: Vec<&Payout> =
                payouts.iter().filter(|payout| payout.key == stream.key).collect();
            let account = Account::of(stream, payouts.iter().copied(), stream.chain_time(now));
            let owed_wei = match stream.released_at {
                Some(_) => account.withdrawable_wei,
                None => U256::ZERO,
            };
            let place = (stream.chain.clone(), stream.payment.token);
            let index = sums.iter().position(|(other, ..)| *other == place).unwrap_or_else(|| {
                sums.push((place, 0, [U256::ZERO; 5]));
                sums.len() - 1
            });
            let (_, count, sum) = &mut sums[index];
            *count += 1;
            let Account { vested_wei, withdrawn_wei, withdrawable_wei, gas_wei, .. } = account;
            let amounts = [vested_wei, withdrawn_wei, withdrawable_wei, owed_wei, gas_wei];
            for (sum, amount) in sum.iter_mut().zip(amounts) {
                *sum = sum.saturating_add(amount);
            }
            let usd = price.of(stream.payment.token);
            reports.push(StreamReport::new(stream, &payouts, account, owed_wei, usd));
        }
        let earnings = |((chain, token), streams, sums): ((String, Address), u64, [U256; 5])| {
            let amount = |wei| Amount::new(wei, price.of(token));
            let [earned, withdrawn, withdrawable, owed, gas] = sums;
            Earnings {
                chain,
                token: token.to_checksum(None),
                streams,
                earned: amount(earned),
                withdrawn: amount(withdrawn),
                withdrawable: amount(withdrawable),
                owed: amount(owed),
                gas_wei: gas.to_string(),
            }
        };
        Ledger {
            streams: reports,
            earnings: sums.into_iter().map(earnings).collect(),
            usd_per_glm: price.usd.map(|usd| usd.to_string()),
        }
    }
}

impl StreamReport {
    fn new(
        stream: &Stream,
        payouts: &[&Payout],
        account: Account,
        owed_wei: U256,
        usd: Option<Decimal>,
    ) -> StreamReport {
        let amount = |wei| Amount::new(wei, usd);
        let state = match (stream.settled, stream.released_at, stream.suspended) {
            (true, ..) => StreamState::Settled,
            (_, Some(_), _) => StreamState::Owed,
            (_, _, Some(_)) => StreamState::Unpaid,
            _ if account.remaining_seconds == 0 => StreamState::Ended,
            _ => StreamState::Running,
        };
        let transaction = |payout: &&Payout| PayoutReport {
            kind: payout.kind,
            state: payout.state,
            planned_at: payout.planned_at,
            updated_at: payout.updated_at,
            expected: amount(payout.expected_wei),
            amount: payout.amount_wei.map(amount),
            transaction: payout.transaction.clone(),
            gas_wei: payout.gas_wei.map(|wei| wei.to_string()),
            error: payout.error.clone(),
        };
        let shown = &payouts[payouts.len().saturating_sub(SHOWN_PAYOUTS)..];
        StreamReport {
            stream_id: stream.key.reference.clone(),
            contract: stream.key.contract.to_checksum(None),
            chain: stream.chain.clone(),
            token: stream.payment.token.to_checksum(None),
            payer: stream.payment.payer.to_checksum(None),
            vm_id: stream.vm_id.clone(),
            vm_name: stream.vm_name.clone(),
            state,
            bound_at: stream.bound_at,
            released_at: stream.released_at,
            as_of: stream.read_at,
            remaining_seconds: account.remaining_seconds,
            rate_wei_per_second: stream.payment.rate_wei_per_second.to_string(),
            deposit: amount(stream.payment.deposit_wei),
            earned: amount(account.vested_wei),
            withdrawn: amount(account.withdrawn_wei),
            withdrawable: amount(account.withdrawable_wei),
            owed: amount(owed_wei),
            gas_wei: account.gas_wei.to_string(),
            transactions: shown.iter().map(transaction).collect(),
        }
    }
}

/// What came of an attempt to collect what one stream owes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    pub stream_id: String,
    pub contract: String,
    pub vm_id: String,
    pub vm_name: String,
    pub token: String,
    pub outcome: WithdrawalOutcome,
    pub kind: Option<PayoutKind>,
    /// What the provider got, to the wei.
    pub amount: Option<Amount>,
    pub gas_wei: Option<String>,
    pub transaction: Option<String>,
    /// Why it is not `collected`, in words.
    pub reason: Option<String>,
}

/// In a word, what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithdrawalOutcome {
    Collected,
    /// There was nothing to collect.
    Nothing,
    /// Collecting it would cost more than it is.
    NotWorthIt,
    /// It was sent and not mined yet; it is looked after.
    Pending,
    Failed,
}

impl Withdrawal {
    pub(super) fn new(stream: &Stream, outcome: WithdrawalOutcome) -> Withdrawal {
        Withdrawal {
            stream_id: stream.key.reference.clone(),
            contract: stream.key.contract.to_checksum(None),
            vm_id: stream.vm_id.clone(),
            vm_name: stream.vm_name.clone(),
            token: stream.payment.token.to_checksum(None),
            outcome,
            kind: None,
            amount: None,
            gas_wei: None,
            transaction: None,
            reason: None,
        }
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Withdrawal {
        self.reason = Some(reason.into());
        self
    }

    pub(super) fn worth(mut self, wei: U256, price: TokenPrice, token: Address) -> Withdrawal {
        self.amount = Some(Amount::new(wei, price.of(token)));
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::funding::tests::any_payment, super::model::StreamKey, *};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn rules(enabled: bool, min_wei: u128) -> WithdrawalSettings {
        WithdrawalSettings { enabled, interval: Duration::from_secs(600), min_wei }
    }

    /// Opened, bound and read at second 0, 100 wei a second, for an hour.
    fn stream() -> Stream {
        Stream {
            key: StreamKey { contract: Address::repeat_byte(0xc0), reference: "7".into() },
            verifier: "a".into(),
            chain: "payments".into(),
            vm_id: "golem-1".into(),
            vm_name: "one".into(),
            bound_at: at(0),
            payment: Payment {
                standing: Standing::Open,
                token: Address::ZERO,
                payer: Address::repeat_byte(1),
                payee: Address::repeat_byte(2),
                rate_wei_per_second: U256::from(100),
                start_time: U256::from(5000),
                stop_time: U256::from(8600),
                deposit_wei: U256::from(360_000),
                withdrawn_wei: U256::ZERO,
            },
            read_block: 1,
            read_block_time: 5000,
            read_at: at(0),
            suspended: None,
            released_at: None,
            settled: false,
        }
    }

    fn payout(kind: PayoutKind, state: PayoutState, second: i64, amount: Option<u64>) -> Payout {
        Payout {
            id: 1,
            key: stream().key,
            chain: "payments".into(),
            kind,
            state,
            planned_at: at(second),
            updated_at: at(second),
            expected_wei: U256::from(1),
            amount_wei: amount.map(U256::from),
            transaction: None,
            gas_wei: Some(U256::from(9)),
            error: None,
        }
    }

    use PayoutKind::{Terminate, Withdraw};
    use PayoutState::{Failed, Mined, Planned};

    #[test]
    fn what_was_collected_counts_even_where_the_contract_was_read_before_or_forgot_it() {
        let mut stream = stream();
        let collected = payout(Withdraw, Mined, 100, Some(10_000));
        let account = Account::of(&stream, [&collected], 5200);
        assert_eq!(account.withdrawable_wei, U256::from(10_000));
        stream.payment.withdrawn_wei = U256::from(10_000);
        assert_eq!(Account::of(&stream, [&collected], 5200), account);

        let ended = payout(Terminate, Mined, 200, Some(10_000));
        stream.payment.standing = Standing::Closed;
        let account = Account::of(&stream, [&collected, &ended], 9000);
        assert_eq!(
            (account.vested_wei, account.withdrawn_wei),
            (U256::from(20_000), U256::from(20_000))
        );
        assert_eq!((account.withdrawable_wei, account.gas_wei), (U256::ZERO, U256::from(18)));
        assert_eq!(account.remaining_seconds, 0);
    }

    #[test]
    fn a_running_stream_is_collected_once_an_interval_and_only_when_that_is_wanted_and_enough() {
        let stream = stream();
        assert!(!is_due(&stream, &[], &rules(true, 0), at(599)));
        assert!(is_due(&stream, &[], &rules(true, 0), at(600)));
        assert!(!is_due(&stream, &[], &rules(false, 0), at(6000)));
        assert!(!is_due(&stream, &[], &rules(true, 60_001), at(600)));
        assert!(is_due(&stream, &[], &rules(true, 60_000), at(600)));
        let mined = payout(Withdraw, Mined, 600, Some(60_000));
        assert!(!is_due(&stream, &[&mined], &rules(true, 0), at(1199)));
        assert!(is_due(&stream, &[&mined], &rules(true, 0), at(1200)));
        let planned = payout(Withdraw, Planned, 1200, None);
        assert!(!is_due(&stream, &[&mined, &planned], &rules(true, 0), at(9000)));
        let settled = Stream { settled: true, ..stream };
        assert!(!is_due(&settled, &[], &rules(true, 0), at(9000)));
    }

    #[test]
    fn what_failed_waits_longer_each_time() {
        let stream = stream();
        let failed = payout(Withdraw, Failed, 1000, None);
        assert!(!is_due(&stream, &[&failed], &rules(true, 0), at(1059)));
        assert!(is_due(&stream, &[&failed], &rules(true, 0), at(1060)));
        assert!(!is_due(&stream, &[&failed, &failed], &rules(true, 0), at(1119)));
        assert!(is_due(&stream, &[&failed, &failed], &rules(true, 0), at(1120)));
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn what_a_machine_that_is_gone_has_earned_is_collected_at_once_whatever_the_settings_say() {
        let stream = Stream { released_at: Some(at(100)), ..stream() };
        assert!(is_due(&stream, &[], &rules(false, u128::MAX), at(100)));
        let before = payout(Withdraw, Mined, 99, Some(1));
        assert!(is_due(&stream, &[&before], &rules(false, 0), at(100)));
        let after = payout(Withdraw, Mined, 101, Some(1));
        assert!(!is_due(&stream, &[&after], &rules(false, 0), at(700)));
        assert!(is_due(&stream, &[&after], &rules(false, 0), at(701)));
    }

    #[test]
    fn a_stream_is_ended_where_its_machine_is_gone_and_time_is_left_unless_that_failed_before() {
        let payment = stream().payment;
        assert_eq!(wanted(&payment, 5000, true, []), None);
        assert_eq!(wanted(&payment, 5010, false, []), Some((Withdraw, U256::from(1000))));
        assert_eq!(wanted(&payment, 5010, true, []), Some((Terminate, U256::from(1000))));
        assert_eq!(wanted(&payment, 8600, true, []), Some((Withdraw, U256::from(360_000))));
        let rejected = payout(Terminate, Failed, 10, None);
        assert_eq!(wanted(&payment, 5010, true, [&rejected]), Some((Withdraw, U256::from(1000))));
        let halted =
            Payment { standing: Standing::Halted, stop_time: U256::from(5005), ..payment.clone() };
        assert_eq!(wanted(&halted, 9000, true, []), Some((Withdraw, U256::from(500))));
        let closed = Payment { standing: Standing::Closed, ..payment };
        assert_eq!(wanted(&closed, 9000, true, []), None);
        assert!(is_over(&closed, 5000));
    }

    #[test]
    fn the_ledger_has_every_amount_in_wei_in_tokens_and_in_usd_where_it_is_worth_something() {
        let glm = Address::repeat_byte(0x70);
        let whole = U256::from(10).pow(U256::from(18));
        let mut in_glm = stream();
        in_glm.payment.token = glm;
        in_glm.payment.rate_wei_per_second = whole;
        in_glm.payment.deposit_wei = whole * U256::from(3600);
        in_glm.released_at = Some(at(10));
        let price = TokenPrice { token: Some(glm), usd: Some("0.25".parse().unwrap()) };
        let in_coin =
            Stream { key: StreamKey { reference: "8".into(), ..stream().key }, ..stream() };
        let collected = payout(Withdraw, Mined, 1, Some(1_000_000_000_000_000_000));
        let ledger = Ledger::new(&[in_glm, in_coin], &[collected], price, at(100));
        let [first, second] = &ledger.streams[..] else { panic!("{ledger:?}") };
        assert_eq!((first.state, second.state), (StreamState::Owed, StreamState::Running));
        assert_eq!(first.earned.token, "100");
        assert_eq!(first.earned.usd.as_deref(), Some("25"));
        assert_eq!((first.withdrawn.token.as_str(), first.owed.token.as_str()), ("1", "99"));
        assert_eq!(first.transactions.len(), 1);
        assert_eq!((second.earned.wei.as_str(), &second.earned.usd), ("10000", &None));
        assert_eq!(
            (second.earned.token.as_str(), second.owed.wei.as_str()),
            ("0.00000000000001", "0")
        );
        assert_eq!(ledger.earnings.len(), 2);
        assert_eq!(ledger.earnings[0].withdrawable.usd.as_deref(), Some("24.75"));
        let text = serde_json::to_string(&ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
    }

    proptest! {
        #[test]
        fn what_is_collected_is_never_more_than_what_has_run_up(
            payment in any_payment(), now in any::<u64>(), is_released in any::<bool>(),
        ) {
            if let Some((_, amount)) = wanted(&payment, now, is_released, []) {
                let vested = Funding::at(&payment, now).vested_wei;
                prop_assert!(!amount.is_zero() && amount <= vested);
                prop_assert!(!is_over(&payment, now) && payment.standing != Standing::Closed);
            }
            let stream = Stream { payment, ..stream() };
            let account = Account::of(&stream, [], now);
            prop_assert!(account.withdrawable_wei <= account.vested_wei);
            prop_assert!(account.withdrawn_wei <= account.vested_wei);
        }
    }
}
