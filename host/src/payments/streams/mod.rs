//! Streams that machines are paid by.
//!
//! ```text
//! requests ─▶ gate ──────────▶ ticket, bound in the transaction that admits the machine
//!               │
//! plugin ◀─ verifiers ◀─ monitor ──▶ machines        stopped, deleted
//!               │           │
//!            verdict ◀── funding                     pure: what a stream is worth, what follows from that
//!                           │
//!                         book ──▶ statuses          what is known now, for the API
//!
//! plugin ◀─ collector ──▶ chains, rows                withdrawals, and settling when a machine is gone
//!               │
//!            ledger                                  pure: sums, what is due
//! ```
//!
//! `model` is what is kept of a stream, `quotes` what a machine may be paid by, `view` how a stream is shown, `live` what the
//! operator may change while all this runs. Time is the chain's, a block's timestamp; this machine's clock is asked only when
//! the chain does not answer.
//!
//! Calls `store`, `chains` and the traits of `plugins`, and machines through a trait of its own. Called by `api`, `admin` and the
//! composition root; `vms` and `store` know a [`Ticket`] and a [`Stream`] as values.

mod book;
mod collector;
pub mod funding;
mod gate;
pub mod ledger;
pub mod live;
mod machines;
pub mod model;
mod monitor;
mod quotes;
#[cfg(test)]
mod tests;
pub mod verdict;
mod verifiers;
mod view;

use std::{sync::Arc, time::Duration};

use alloy::primitives::Address;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;

use self::{
    book::{Book, Trouble},
    gate::Gate,
    monitor::Reading,
    quotes::Quotes,
    verdict::Rules,
};
pub use self::{
    collector::{Collector, CollectorParts, GAS_CAP, Purse, WithdrawError},
    gate::GateError,
    live::{LiveRules, NotAllowed, PaymentRules, RulesChange},
    machines::{MachineState, Machines},
    model::{
        NewPayout, PaymentStatus, Payout, PayoutKind, PayoutResult, PayoutState, Stream, StreamKey,
        StreamReading, Suspension, Ticket,
    },
    verdict::{PaymentState, Refusal},
    verifiers::{NoVerifier, Verifiers},
    view::StreamView,
};
use crate::{
    payments::pricing::Prices,
    resources::Amounts,
    settings::PaymentSettings,
    store::{Store, StoreError},
};

/// The streams of this provider's machines. Clones are the same.
#[derive(Clone)]
pub struct Streams(Arc<Inner>);

/// What streams are made of.
pub struct StreamsParts {
    pub store: Store,
    pub verifiers: Verifiers,
    /// The provider, which streams have to pay.
    pub payee: Address,
    pub prices: watch::Receiver<Prices>,
    /// How long a price counts after it rose.
    pub price_memory: Duration,
    pub rules: watch::Receiver<PaymentRules>,
}

struct Inner {
    store: Store,
    gate: Gate,
    book: Book,
    rules: watch::Receiver<PaymentRules>,
    create_grace: Duration,
    /// Held while streams are read and written down.
    reading: Mutex<()>,
    /// Streams are looked at without waiting for the interval.
    wake: Notify,
}

impl Streams {
    pub fn new(settings: &PaymentSettings, parts: StreamsParts) -> Self {
        let StreamsParts { store, verifiers, payee, prices, price_memory, rules } = parts;
        let quotes = Quotes::new(prices, price_memory);
        Self(Arc::new(Inner {
            store,
            gate: Gate { payee, confirmations: settings.confirmations, verifiers, quotes },
            book: Book::default(),
            rules,
            create_grace: settings.create_grace,
            reading: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    /// Does a machine have to be paid for?
    pub fn are_wanted(&self) -> bool {
        self.0.gate.verifiers.are_wanted()
    }

    /// Does a machine have to be paid for whose request was signed so? The provider's own need not, as those of `doctor`.
    pub fn demand(&self, signer: Option<Address>) -> bool {
        self.are_wanted() && signer != Some(self.0.gate.payee)
    }

    /// Looks at the stream that is to pay for a new machine of this size. Whoever gets a ticket binds it with the machine.
    ///
    /// # Errors
    /// Why the machine is not made, for its requestor.
    pub async fn admit(&self, reference: Option<&str>, size: Amounts) -> Result<Ticket, GateError> {
        self.0.gate.admit(reference, size, &self.0.rules()).await
    }

    /// May a machine that rests start again? One that no stream was ever bound to may.
    ///
    /// # Errors
    /// Why it may not, for its requestor.
    pub async fn may_start(&self, vm_id: &str) -> Result<(), GateError> {
        // Out of the store, not the book, which is empty until the first look: nothing starts for not having been looked at yet.
        match self.0.store.stream_of_vm(vm_id).await? {
            Some(stream) if self.are_wanted() => self.0.gate.renew(&stream, &self.0.rules()).await,
            _ => Ok(()),
        }
    }

    /// From now on this ticket's stream pays for a machine that there is, in the place of the one before.
    ///
    /// # Errors
    /// It pays, or has paid, for another one; or the database cannot be written.
    pub async fn rebind(
        &self,
        ticket: Ticket,
        vm_id: &str,
        vm_name: &str,
    ) -> Result<(), StoreError> {
        self.0.store.rebind_stream(ticket.bind(vm_id, vm_name, model::now())).await
    }

    /// Something about a machine or its stream has changed: streams are looked at now, and not only after the interval.
    pub fn look_soon(&self) {
        self.0.wake.notify_one();
    }

    /// How the payment of this machine stands, as of the last look. Never waits.
    pub fn status(&self, vm_id: &str) -> Option<Arc<PaymentStatus>> {
        self.0.book.status(vm_id)
    }

    /// Why the chain cannot be asked, as of the last look.
    pub fn silent(&self) -> Option<String> {
        match self.0.book.trouble()? {
            Trouble::Silent(reason) => Some(reason),
            Trouble::Misconfigured(_) => None,
        }
    }

    /// Why no paid machine can be made, where something that the operator can mend is in the way.
    pub fn blocked(&self) -> Option<String> {
        if !self.are_wanted() {
            return None;
        }
        let missing = self.0.gate.verifiers.current().err().map(|missing| missing.reason);
        missing.or_else(|| match self.0.book.trouble()? {
            Trouble::Misconfigured(reason) => Some(reason),
            Trouble::Silent(_) => None,
        })
    }

    /// Are machines stopped that nobody pays for?
    pub fn monitor_enabled(&self) -> bool {
        self.0.rules.borrow().monitor.enabled
    }

    /// The stream of a machine as it stands now, freshly read where that is possible. Absent where it has none.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn view(&self, vm_id: &str) -> Result<Option<StreamView>, StoreError> {
        let stream = self.0.store.stream_of_vm(vm_id).await?;
        Ok(self.0.views(stream.into_iter().collect()).await.pop())
    }

    /// The streams of all machines there are, as they stand now.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn views(&self) -> Result<Vec<StreamView>, StoreError> {
        let streams = self.0.store.streams().await?;
        let of_machines = streams.into_iter().filter(|stream| stream.released_at.is_none());
        Ok(self.0.views(of_machines.collect()).await)
    }

    /// Looks at streams and does what follows, until told to stop.
    pub async fn watch_over(self, machines: Arc<dyn Machines>, stop: CancellationToken) {
        let inner = self.0;
        let rules = inner.rules.clone();
        let monitor = monitor::run(Arc::clone(&inner), machines, rules, stop);
        tokio::select! {
            () = monitor => {}
            // Never ends.
            () = inner.gate.quotes.follow() => {}
        }
    }
}

impl Inner {
    /// What counts for streams now.
    fn rules(&self) -> Rules {
        self.rules_of(&self.rules.borrow())
    }

    fn rules_of(&self, rules: &PaymentRules) -> Rules {
        Rules { min_remaining: rules.min_remaining, create_grace: self.create_grace }
    }

    async fn views(&self, streams: Vec<Stream>) -> Vec<StreamView> {
        if streams.is_empty() {
            return Vec::new();
        }
        let payee = self.gate.payee;
        let readings = self.read_all(&streams).await;
        let trouble = self.book.trouble();
        let now = model::now();
        let view = |stream: Stream| {
            let (payment, time, problem) = match readings.get(&stream.key) {
                Some(Reading { payment: Some(payment), latest, .. }) => {
                    (payment.clone(), latest.time, None)
                }
                Some(Reading { payment: None, latest, .. }) => {
                    (stream.payment.clone(), latest.time, Some(view::Problem::Unknown))
                }
                None => {
                    let other = "it belongs to another contract than the one that is configured";
                    let why = trouble.as_ref().map_or(other, Trouble::reason).to_owned();
                    let time = stream.chain_time(now);
                    (stream.payment.clone(), time, Some(view::Problem::Silent(why)))
                }
            };
            StreamView::new(&stream, payment, time, payee, problem)
        };
        streams.into_iter().map(view).collect()
    }
}
