//! Money out: collects what streams owe, by itself as the operator says, and when told to.
//!
//! ```text
//!             planned (a row) ─▶ signed, written down ─▶ sent ─▶ mined ─▶ the row says what came ─▶ forgotten by `chains`
//!                 ▲                        │
//!                 └── after a crash: the row is there, and `chains` knows whether its transaction is. The same call is sent
//!                     with the same key, which is mined once, whatever happens in between.
//! ```
//!
//! One transaction at a time. Nothing is sent that a node says would fail, that could take more gas than [`GAS_CAP`], or that costs
//! more gas than it brings, unless the operator asks for it by hand. Calls go to the contract of the stream, which has to be the one
//! that the plugin is set to now, for tokens that it accepts now. What fails waits, longer each time.
//!
//! A stream whose machine is gone is settled by the same task, whether withdrawals are enabled or not: ended where time is left on it,
//! so that its payer has the rest back, and collected until nothing is owed. It is found by its row, so that a delete waits for
//! nothing and a crash forgets nothing.

use std::{collections::HashMap, fmt::Display, sync::Arc, time::Duration};

use alloy::primitives::{Address, U256};
use async_trait::async_trait;
use rust_decimal::Decimal;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{self, Ledger, TokenPrice, Withdrawal, WithdrawalOutcome},
    live::PaymentRules,
    model::{
        NewPayout, Payout, PayoutKind, PayoutResult, PayoutState, Stream, StreamKey, StreamReading,
        now,
    },
    verifiers::Verifiers,
};
use crate::{
    chains::{self, Call, ChainError, Chains, Quote, Receipt},
    faults::{self, FaultPoint},
    payments::pricing::Prices,
    plugins::{
        Failure, PaymentVerifier,
        payment_verifier::{Event, MAX_READ, PaymentCall},
    },
    store::{Store, StoreError},
};

/// No call may take more gas, whatever its plugin says: an honest one takes a fifth of it.
pub const GAS_CAP: u64 = 300_000;

/// How long a transaction is waited for at a time. One that is not mined by then is taken up again later.
const MINED_WITHIN: Duration = Duration::from_secs(120);

/// How long the operator's own withdrawal waits for another one to end.
const TURN_WITHIN: Duration = Duration::from_secs(150);

/// Between two looks at the rows, at most.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What the collector needs of a chain.
#[async_trait]
pub trait Purse: Send + Sync + 'static {
    /// What a call would cost now; refused where it would fail.
    async fn quote(&self, chain: &str, call: &Call) -> Result<Quote, ChainError>;

    /// Signs, sends, waits. A call with a key is done once.
    async fn send(&self, chain: &str, call: Call, waits: Duration) -> Result<Receipt, ChainError>;

    /// Was the call with this key signed, and not forgotten since?
    async fn has_under_way(&self, chain: &str, key: &str) -> Result<bool, ChainError>;

    /// What came of the call with this key is written down elsewhere.
    async fn forget(&self, chain: &str, key: &str);
}

#[async_trait]
impl Purse for Chains {
    async fn quote(&self, chain: &str, call: &Call) -> Result<Quote, ChainError> {
        Self::quote(self, chain, call).await
    }

    async fn send(&self, chain: &str, call: Call, waits: Duration) -> Result<Receipt, ChainError> {
        self.send_transaction(chain, call, waits).await
    }

    async fn has_under_way(&self, chain: &str, key: &str) -> Result<bool, ChainError> {
        Self::has_under_way(self, chain, key).await
    }

    async fn forget(&self, chain: &str, key: &str) {
        Self::forget(self, chain, key).await;
    }
}

/// Collects what streams owe. Clones are the same.
#[derive(Clone)]
pub struct Collector(Arc<Inner>);

/// What a collector is made of.
pub struct CollectorParts {
    pub store: Store,
    pub verifiers: Verifiers,
    pub purse: Arc<dyn Purse>,
    pub rules: watch::Receiver<PaymentRules>,
    pub prices: watch::Receiver<Prices>,
    /// The token that the prices are of.
    pub glm: Option<Address>,
}

struct Inner {
    store: Store,
    verifiers: Verifiers,
    purse: Arc<dyn Purse>,
    rules: watch::Receiver<PaymentRules>,
    prices: watch::Receiver<Prices>,
    glm: Option<Address>,
    /// Held by whoever collects: one transaction at a time.
    turn: Mutex<Pauses>,
    wake: Notify,
}

/// Streams that are left alone for a while, for what is no row: nobody answered, or there is not enough yet.
#[derive(Default)]
struct Pauses(HashMap<StreamKey, (u32, Instant)>);

impl Pauses {
    fn rests(&self, key: &StreamKey) -> bool {
        self.0.get(key).is_some_and(|(_, until)| Instant::now() < *until)
    }

    /// Longer each time.
    fn rest(&mut self, key: &StreamKey) {
        let (times, until) = self.0.entry(key.clone()).or_insert((0, Instant::now()));
        *times = times.saturating_add(1);
        *until = Instant::now() + ledger::pause(*times);
    }
}

/// No withdrawal can be tried.
#[derive(Debug, thiserror::Error)]
pub enum WithdrawError {
    #[error("no machine was ever bound to the stream {reference} of the contract {contract}")]
    Unknown { contract: Address, reference: String },
    #[error(
        "another withdrawal has been under way for {} s; try again later",
        TURN_WITHIN.as_secs()
    )]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stream with the plugin that reads it, whose settings say that both mean the same contract.
struct Readable {
    stream: Stream,
    verifier: Arc<dyn PaymentVerifier>,
}

impl Collector {
    pub fn new(parts: CollectorParts) -> Self {
        let CollectorParts { store, verifiers, purse, rules, prices, glm } = parts;
        Self(Arc::new(Inner {
            store,
            verifiers,
            purse,
            rules,
            prices,
            glm,
            turn: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// The machine of a stream is gone: it is settled now, and not only at the next look. Waits for nothing.
    pub fn settle_soon(&self) {
        self.0.wake.notify_one();
    }

    /// Everything that was ever earned, by what was read last and this machine's clock.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn ledger(&self) -> Result<Ledger, StoreError> {
        let (streams, payouts) = tokio::try_join!(self.0.store.streams(), self.0.store.payouts())?;
        Ok(Ledger::new(&streams, &payouts, self.0.price(), now()))
    }

    /// Collects what a stream owes, however little it is, and waits until it is mined or for two minutes.
    ///
    /// # Errors
    /// Nothing was tried. What was tried and has failed is no error but an outcome.
    pub async fn withdraw(&self, key: StreamKey) -> Result<Withdrawal, WithdrawError> {
        let inner = Arc::clone(&self.0);
        // A caller that goes away leaves it to end.
        let withdrawing = tokio::spawn(async move {
            let mut pauses =
                timeout(TURN_WITHIN, inner.turn.lock()).await.map_err(|_| WithdrawError::Busy)?;
            let Some(stream) = inner.store.stream(key.clone()).await? else {
                let StreamKey { contract, reference } = key;
                return Err(WithdrawError::Unknown { contract, reference });
            };
            pauses.0.remove(&key);
            let payouts = inner.store.payouts().await?;
            let planned = payouts
                .iter()
                .find(|payout| payout.key == key && payout.state == PayoutState::Planned);
            match planned {
                Some(planned) => inner.resume(&stream, planned).await,
                None => inner.withdraw_now(stream, &payouts).await,
            }
        });
        match withdrawing.await {
            Ok(done) => done,
            Err(_) => Err(WithdrawError::Store(StoreError::Closed)),
        }
    }

    /// One look at everything.
    #[cfg(test)]
    pub(super) async fn round(&self) -> Result<(), StoreError> {
        self.0.round().await
    }

    /// Takes up what was under way, and then collects whatever is due, until `stop`. A withdrawal that is under way then is cut off,
    /// as by a crash.
    pub async fn run(self, stop: CancellationToken) {
        let inner = self.0;
        let mut rules = inner.rules.clone();
        loop {
            let now = rules.borrow_and_update().withdrawals;
            match stop.run_until_cancelled(inner.round()).await {
                None => return,
                Some(Err(error)) => tracing::error!("nothing can be collected: {error}"),
                Some(Ok(())) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                // Nobody is left to change them: then they stay.
                Ok(()) = rules.changed() => {}
                () = inner.wake.notified() => {}
                () = sleep(now.interval.min(LOOK_EVERY)) => {}
            }
        }
    }
}

impl Inner {
    fn price(&self) -> TokenPrice {
        let usd: Option<Decimal> = self.prices.borrow().rate.as_ref().map(|rate| rate.usd_per_glm);
        TokenPrice { token: self.glm, usd }
    }

    /// One look at everything.
    async fn round(&self) -> Result<(), StoreError> {
        let mut pauses = self.turn.lock().await;
        let streams = self.store.streams().await?;
        let payouts = self.store.payouts().await?;
        let of = |key: &StreamKey| streams.iter().find(|stream| stream.key == *key);
        for planned in payouts.iter().filter(|payout| payout.state == PayoutState::Planned) {
            let Some(stream) = of(&planned.key).filter(|stream| !pauses.rests(&stream.key)) else {
                continue;
            };
            let done = self.resume(stream, planned).await;
            self.tell(stream, &done.map_err(from_withdraw)?, &mut pauses);
        }
        let rules = self.rules.borrow().withdrawals;
        let mut due: Vec<(&Stream, Vec<&Payout>)> = Vec::new();
        for stream in streams.iter().filter(|stream| !pauses.rests(&stream.key)) {
            let payouts: Vec<&Payout> =
                payouts.iter().filter(|payout| payout.key == stream.key).collect();
            if ledger::is_due(stream, &payouts, &rules, now()) {
                due.push((stream, payouts));
            }
        }
        for some in due.chunks(MAX_READ) {
            let (read, problem) = self.read(some.iter().map(|(stream, _)| *stream)).await;
            for (stream, payouts) in some {
                let Some((read, time)) =
                    read.iter().find(|(read, _)| read.stream.key == stream.key)
                else {
                    let why = problem.clone().unwrap_or_else(|| "it is not there".to_owned());
                    let failed = Withdrawal::new(stream, WithdrawalOutcome::Failed).because(why);
                    self.tell(stream, &failed, &mut pauses);
                    continue;
                };
                let done = self.collect_due(read, *time, payouts).await.map_err(from_withdraw)?;
                self.tell(stream, &done, &mut pauses);
            }
        }
        Ok(())
    }

    /// Into the log, and what did not work is left alone for a while.
    fn tell(&self, stream: &Stream, done: &Withdrawal, pauses: &mut Pauses) {
        let reason = done.reason.as_deref().unwrap_or_default();
        let (vm, reference) = (&stream.vm_name, &stream.key.reference);
        match done.outcome {
            WithdrawalOutcome::Collected => {
                pauses.0.remove(&stream.key);
            }
            WithdrawalOutcome::Nothing | WithdrawalOutcome::NotWorthIt => {
                tracing::debug!(vm.id = stream.vm_id, stream = reference, "{reason}");
                pauses.rest(&stream.key);
            }
            WithdrawalOutcome::Pending | WithdrawalOutcome::Failed => {
                tracing::warn!(
                    vm.id = stream.vm_id,
                    stream = reference,
                    "{vm}: what stream {reference} owes is not collected yet: {reason}"
                );
                pauses.rest(&stream.key);
            }
        }
    }

    /// All that belong to a contract that is asked now, as they stand, written down; with the chain's time. And why others could not
    /// be read.
    async fn read<'a>(
        &self,
        streams: impl Iterator<Item = &'a Stream>,
    ) -> (Vec<(Readable, u64)>, Option<String>) {
        let mut by_verifier: HashMap<&str, Vec<&Stream>> = HashMap::new();
        for stream in streams {
            by_verifier.entry(&stream.verifier).or_default().push(stream);
        }
        let (mut found, mut problem) = (Vec::new(), None);
        for (name, streams) in by_verifier {
            if let Err(error) = self.read_of(name, &streams, &mut found).await {
                problem = Some(error);
            }
        }
        (found, problem)
    }

    async fn read_of(
        &self,
        verifier: &str,
        streams: &[&Stream],
        found: &mut Vec<(Readable, u64)>,
    ) -> Result<(), String> {
        let words = |error: Failure| error.to_string();
        let verifier = self.verifier(verifier)?;
        let terms = verifier.terms().await.map_err(words)?;
        let mut foreign = None;
        let ours: Vec<&Stream> = streams
            .iter()
            .copied()
            .filter(|stream| {
                let same = stream.key.contract == terms.contract && stream.chain == terms.chain;
                if !same {
                    foreign = Some(format!(
                        "it is of the contract {}, and {} is set to {} now; set that back to collect it",
                        stream.key.contract,
                        verifier.name(),
                        terms.contract
                    ));
                } else if !terms.tokens.contains(&stream.payment.token) {
                    foreign = Some(format!(
                        "it pays in the token {}, which is not accepted any more: see GOLEM_PROVIDER_GLM_TOKEN_ADDRESS",
                        stream.payment.token
                    ));
                }
                same && terms.tokens.contains(&stream.payment.token)
            })
            .collect();
        let references: Vec<String> =
            ours.iter().map(|stream| stream.key.reference.clone()).collect();
        if references.is_empty() {
            return foreign.map_or(Ok(()), Err);
        }
        let snapshot = verifier.read(&references, 1).await.map_err(words)?;
        for (stream, payment) in ours.into_iter().zip(snapshot.payments) {
            // One that is not there may be back after a reorganisation of the chain.
            let Some(payment) = payment else { continue };
            if !terms.tokens.contains(&payment.token) {
                foreign = Some(format!("it pays in the token {} now", payment.token));
                continue;
            }
            let reading = StreamReading {
                payment,
                block: snapshot.at.number,
                block_time: snapshot.latest.time,
                at: now(),
            };
            let saved = self.store.save_reading(stream.key.clone(), reading.clone()).await;
            saved.map_err(|error| error.to_string())?;
            let stream = Stream {
                payment: reading.payment,
                read_block: reading.block,
                read_block_time: reading.block_time,
                read_at: reading.at,
                ..stream.clone()
            };
            found.push((Readable { stream, verifier: Arc::clone(&verifier) }, snapshot.at.time));
        }
        foreign.map_or(Ok(()), Err)
    }

    fn verifier(&self, name: &str) -> Result<Arc<dyn PaymentVerifier>, String> {
        self.verifiers.named(name).ok_or_else(|| {
            format!(
                "the plugin {name}, which reads it, is not there; see golem-provider plugin list"
            )
        })
    }

    /// What the rules say of a stream that was just read.
    async fn collect_due(
        &self,
        read: &Readable,
        time: u64,
        payouts: &[&Payout],
    ) -> Result<Withdrawal, WithdrawError> {
        let stream = &read.stream;
        let is_released = stream.released_at.is_some();
        let wanted = ledger::wanted(&stream.payment, time, is_released, payouts.iter().copied());
        let rules = self.rules.borrow().withdrawals;
        match wanted {
            // Less than it seemed by the clock.
            Some((_, amount)) if !is_released && !ledger::is_enough(amount, &rules) => {
                let text = "less has run up than the operator wants to collect at a time";
                Ok(Withdrawal::new(stream, WithdrawalOutcome::NotWorthIt).because(text))
            }
            Some((kind, amount)) => self.collect(read, kind, amount, false).await,
            None => self.nothing(stream, time).await,
        }
    }

    async fn nothing(&self, stream: &Stream, time: u64) -> Result<Withdrawal, WithdrawError> {
        if stream.released_at.is_some() && ledger::is_over(&stream.payment, time) {
            self.store.settle_stream(stream.key.clone()).await?;
            tracing::info!(
                vm.id = stream.vm_id,
                stream = stream.key.reference,
                "stream {} is settled",
                stream.key.reference
            );
        }
        let text = "there is nothing to collect";
        Ok(Withdrawal::new(stream, WithdrawalOutcome::Nothing).because(text))
    }

    /// By hand.
    async fn withdraw_now(
        &self,
        stream: Stream,
        payouts: &[Payout],
    ) -> Result<Withdrawal, WithdrawError> {
        let (read, problem) = self.read(std::iter::once(&stream)).await;
        let Some((read, time)) = read.first() else {
            let why = problem.unwrap_or_else(|| "the contract has no such stream now".to_owned());
            return Ok(Withdrawal::new(&stream, WithdrawalOutcome::Failed).because(why));
        };
        let payouts = payouts.iter().filter(|payout| payout.key == stream.key);
        let is_released = stream.released_at.is_some();
        match ledger::wanted(&read.stream.payment, *time, is_released, payouts) {
            Some((kind, amount)) => self.collect(read, kind, amount, true).await,
            None => self.nothing(&read.stream, *time).await,
        }
    }

    /// Plans, sends, writes down. Ending falls back to collecting where it cannot be.
    async fn collect(
        &self,
        read: &Readable,
        kind: PayoutKind,
        expected_wei: U256,
        by_hand: bool,
    ) -> Result<Withdrawal, WithdrawError> {
        let done = self.try_once(read, kind, expected_wei, by_hand).await?;
        match (kind, done.outcome) {
            (PayoutKind::Terminate, WithdrawalOutcome::Failed) if done.kind.is_some() => {
                tracing::info!(
                    vm.id = read.stream.vm_id,
                    stream = read.stream.key.reference,
                    "stream {} cannot be ended ({}); what it owes is collected",
                    read.stream.key.reference,
                    done.reason.as_deref().unwrap_or_default()
                );
                self.try_once(read, PayoutKind::Withdraw, expected_wei, by_hand).await
            }
            _ => Ok(done),
        }
    }

    /// `kind` of the answer is set where a row says what came of it.
    async fn try_once(
        &self,
        read: &Readable,
        kind: PayoutKind,
        expected_wei: U256,
        by_hand: bool,
    ) -> Result<Withdrawal, WithdrawError> {
        let Readable { stream, verifier } = read;
        let failed = |reason: &dyn Display| {
            Withdrawal::new(stream, WithdrawalOutcome::Failed).because(reason.to_string())
        };
        let call = match written(verifier.as_ref(), kind, &stream.key.reference).await {
            Ok(call) => call,
            Err(failure) => return Ok(failed(&failure)),
        };
        let plan = NewPayout {
            key: stream.key.clone(),
            chain: stream.chain.clone(),
            kind,
            planned_at: now(),
            expected_wei,
        };
        match self.purse.quote(&stream.chain, &chain_call(stream, call.clone(), None)).await {
            Ok(quote) if !by_hand && !ledger::is_worth_it(expected_wei, quote.cost_wei()) => {
                let text = format!(
                    "collecting {} wei would cost {} wei of gas now",
                    expected_wei,
                    quote.cost_wei()
                );
                return Ok(Withdrawal::new(stream, WithdrawalOutcome::NotWorthIt).because(text));
            }
            Ok(_) => {}
            Err(ChainError::Refused(refusal)) if let Some(why) = refusal.failed_call() => {
                let row = self.store.plan_payout(plan).await?;
                let why = format!("it would fail, and was not sent: {why}");
                return self.fail(stream, &row, None, None, why).await;
            }
            Err(error) => return Ok(failed(&error)),
        }
        let row = self.store.plan_payout(plan).await?;
        faults::reached(FaultPoint::PayoutPlanned);
        self.send(read, &row, call).await
    }

    /// What an earlier attempt, or an earlier run of the provider, has left.
    async fn resume(&self, stream: &Stream, planned: &Payout) -> Result<Withdrawal, WithdrawError> {
        let pending = |reason: &dyn Display| {
            let pending = Withdrawal::new(stream, WithdrawalOutcome::Pending);
            Withdrawal { kind: Some(planned.kind), ..pending.because(reason.to_string()) }
        };
        match self.purse.has_under_way(&planned.chain, &key_of(planned)).await {
            Ok(true) => {}
            // Nothing was ever signed for it.
            Ok(false) => return self.send_unsigned(stream, planned).await,
            Err(error) => return Ok(pending(&error)),
        }
        let verifier = match self.verifier(&stream.verifier) {
            Ok(verifier) => verifier,
            Err(missing) => return Ok(pending(&missing)),
        };
        match written(verifier.as_ref(), planned.kind, &stream.key.reference).await {
            Ok(call) => {
                let read = Readable { stream: stream.clone(), verifier };
                self.send(&read, planned, call).await
            }
            Err(failure) => Ok(pending(&failure)),
        }
    }

    /// Sends what was planned when the provider ended, if it is still to be sent.
    async fn send_unsigned(
        &self,
        stream: &Stream,
        planned: &Payout,
    ) -> Result<Withdrawal, WithdrawError> {
        let pending = |reason: String| {
            let pending = Withdrawal::new(stream, WithdrawalOutcome::Pending);
            Withdrawal { kind: Some(planned.kind), ..pending.because(reason) }
        };
        let (read, problem) = self.read(std::iter::once(stream)).await;
        let Some((read, time)) = read.first() else {
            let why = problem.unwrap_or_else(|| "the contract has no such stream now".to_owned());
            return Ok(pending(why));
        };
        let wanted = ledger::wanted(&read.stream.payment, *time, false, []);
        if wanted.is_none() {
            let why = "there was nothing to collect any more".to_owned();
            return self.fail(stream, planned, None, None, why).await;
        }
        let call = written(read.verifier.as_ref(), planned.kind, &stream.key.reference).await;
        let call = match call {
            Ok(call) => call,
            Err(failure) => return Ok(pending(failure.to_string())),
        };
        match self.purse.quote(&stream.chain, &chain_call(stream, call.clone(), None)).await {
            Ok(_) => self.send(read, planned, call).await,
            Err(ChainError::Refused(refusal)) if let Some(why) = refusal.failed_call() => {
                let why = format!("it would fail, and was not sent: {why}");
                self.fail(stream, planned, None, None, why).await
            }
            Err(error) => Ok(pending(error.to_string())),
        }
    }

    async fn send(
        &self,
        read: &Readable,
        row: &Payout,
        call: PaymentCall,
    ) -> Result<Withdrawal, WithdrawError> {
        let Readable { stream, verifier } = read;
        let key = key_of(row);
        let call = chain_call(stream, call, Some(key.clone()));
        let receipt = match self.purse.send(&row.chain, call.clone(), MINED_WITHIN).await {
            Ok(receipt) => receipt,
            Err(error) => return self.not_mined(stream, row, &key, error).await,
        };
        faults::reached(FaultPoint::PayoutUnwritten);
        let hash = Some(receipt.transaction_hash.to_string());
        let gas_wei = receipt.cost_wei();
        if !receipt.succeeded() {
            let why = match self.purse.quote(&row.chain, &Call { key: None, ..call }).await {
                Err(ChainError::Refused(refusal)) => refusal.failed_call(),
                _ => None,
            };
            let why = why.map_or_else(
                || "it was mined, and the contract refused it".to_owned(),
                |why| format!("it was mined, and the contract refused it: {why}"),
            );
            let failed = self.fail(stream, row, hash, gas_wei, why).await?;
            self.purse.forget(&row.chain, &key).await;
            return Ok(failed);
        }
        let (amount_wei, error) = paid(verifier.as_ref(), &receipt, &stream.key).await;
        let result = PayoutResult {
            state: PayoutState::Mined,
            amount_wei,
            transaction: hash.clone(),
            gas_wei,
            error: error.clone(),
        };
        self.store.save_payout(row.id, result, now()).await?;
        faults::reached(FaultPoint::PayoutWritten);
        self.purse.forget(&row.chain, &key).await;
        tracing::info!(
            vm.id = stream.vm_id,
            stream = stream.key.reference,
            transaction = hash,
            "{} wei came from stream {} of {}",
            amount_wei.unwrap_or_default(),
            stream.key.reference,
            stream.vm_name
        );
        self.after_payout(read).await;
        let mut done = Withdrawal::new(stream, WithdrawalOutcome::Collected);
        if let Some(wei) = amount_wei {
            done = done.worth(wei, self.price(), stream.payment.token);
        }
        Ok(Withdrawal {
            kind: Some(row.kind),
            gas_wei: gas_wei.map(|wei| wei.to_string()),
            transaction: hash,
            reason: error,
            ..done
        })
    }

    /// It was not mined now. Perhaps it will be, and then it stays planned.
    async fn not_mined(
        &self,
        stream: &Stream,
        row: &Payout,
        key: &str,
        error: ChainError,
    ) -> Result<Withdrawal, WithdrawError> {
        let is_sent = match &error {
            ChainError::NotMined { .. } => Ok(true),
            _ => self.purse.has_under_way(&row.chain, key).await,
        };
        if let Ok(false) = is_sent {
            return self.fail(stream, row, None, None, error.to_string()).await;
        }
        let transaction = match &error {
            ChainError::NotMined { hash, .. } => Some(hash.to_string()),
            _ => row.transaction.clone(),
        };
        let result = PayoutResult {
            state: PayoutState::Planned,
            amount_wei: None,
            transaction: transaction.clone(),
            gas_wei: None,
            error: Some(error.to_string()),
        };
        self.store.save_payout(row.id, result, now()).await?;
        let pending = Withdrawal::new(stream, WithdrawalOutcome::Pending);
        let pending = pending.because(error.to_string());
        Ok(Withdrawal { kind: Some(row.kind), transaction, ..pending })
    }

    async fn fail(
        &self,
        stream: &Stream,
        row: &Payout,
        transaction: Option<String>,
        gas_wei: Option<U256>,
        why: String,
    ) -> Result<Withdrawal, WithdrawError> {
        let result = PayoutResult {
            state: PayoutState::Failed,
            amount_wei: None,
            transaction: transaction.clone(),
            gas_wei,
            error: Some(why.clone()),
        };
        self.store.save_payout(row.id, result, now()).await?;
        Ok(Withdrawal {
            kind: Some(row.kind),
            transaction,
            gas_wei: gas_wei.map(|wei| wei.to_string()),
            ..Withdrawal::new(stream, WithdrawalOutcome::Failed).because(why)
        })
    }

    /// The stream as it stands after money came of it. Where it cannot be read now, the next look does.
    async fn after_payout(&self, read: &Readable) {
        let (found, _) = self.read(std::iter::once(&read.stream)).await;
        if let Some((read, time)) = found.first()
            && ledger::is_over(&read.stream.payment, *time)
            && let Err(error) = self.nothing(&read.stream, *time).await
        {
            tracing::warn!("{error}");
        }
    }
}

fn from_withdraw(error: WithdrawError) -> StoreError {
    match error {
        WithdrawError::Store(error) => error,
        // Both are answers to an operator's command alone.
        WithdrawError::Unknown { reference, .. } => StoreError::NoRecord(reference),
        WithdrawError::Busy => StoreError::Closed,
    }
}

/// What makes the transaction of a row different from all others.
fn key_of(row: &Payout) -> String {
    format!("payout-{}", row.id)
}

async fn written(
    verifier: &dyn PaymentVerifier,
    kind: PayoutKind,
    reference: &str,
) -> Result<PaymentCall, Failure> {
    match kind {
        PayoutKind::Withdraw => verifier.collect(reference).await,
        PayoutKind::Terminate => verifier.close(reference).await,
    }
}

fn chain_call(stream: &Stream, call: PaymentCall, key: Option<String>) -> Call {
    Call {
        to: stream.key.contract,
        data: call.data.into(),
        value_wei: U256::ZERO,
        gas_limit: Some(call.gas_limit.min(GAS_CAP)),
        key,
    }
}

/// What came with this receipt of this stream, or why nobody can tell.
async fn paid(
    verifier: &dyn PaymentVerifier,
    receipt: &Receipt,
    key: &StreamKey,
) -> (Option<U256>, Option<String>) {
    let event = |event: &chains::Event| Event {
        address: event.address.into(),
        topics: event.topics.iter().map(|topic| (*topic).into()).collect(),
        data: event.data.to_vec(),
    };
    let events: Vec<Event> = receipt.logs.iter().map(event).collect();
    match verifier.payouts(&events).await {
        Ok(payouts) => {
            let ours = payouts.iter().filter(|payout| payout.reference == key.reference);
            let sum = ours.fold(U256::ZERO, |sum, payout| sum.saturating_add(payout.amount_wei));
            (Some(sum), None)
        }
        Err(failure) => (None, Some(format!("how much it was cannot be told: {failure}"))),
    }
}
