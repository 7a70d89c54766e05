//! A component of the world `payment-verifier`, as a [`PaymentVerifier`]: texts become numbers, answers that make no sense are
//! refused.

use std::sync::Arc;

use alloy::primitives::{Address, B256, U256};
use async_trait::async_trait;

use super::{
    bindings::payment_verifier::exports::golem::provider::payments as wit,
    failure::Failure,
    health::Degraded,
    limits,
    payment_verifier::{
        Changes, Event, MAX_READ, Moment, Payment, PaymentCall, PaymentVerifier, Payout, Snapshot,
        Standing, Terms,
    },
    plugin::Plugin,
    text::plain_owned,
};

/// A verifier behind the plugin contract.
#[derive(Clone)]
pub struct PaymentComponent(Arc<Plugin>);

impl PaymentComponent {
    pub(super) fn new(plugin: Arc<Plugin>) -> Self {
        Self(plugin)
    }

    /// As the plugin says it, whatever that is.
    pub(super) async fn read_as_answered(
        &self,
        references: &[String],
        confirmations: u32,
    ) -> Result<wit::Snapshot, Failure> {
        self.0.call("read", self.0.limits.read_payments, None, (references, confirmations)).await
    }

    fn quantity(&self, text: &str) -> Result<U256, Failure> {
        // The parser would take hexadecimal and underscores as well.
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let read = digits.then(|| text.parse().ok()).flatten();
        read.ok_or_else(|| self.0.wrong(format_args!("`{}` where a number was due", shown(text))))
    }

    fn address(&self, text: &str) -> Result<Address, Failure> {
        let read = text.strip_prefix("0x").and_then(|digits| digits.parse().ok());
        read.ok_or_else(|| self.0.wrong(format_args!("`{}` where an address was due", shown(text))))
    }

    fn moment(&self, moment: &wit::Moment) -> Result<Moment, Failure> {
        let hash: Option<B256> =
            moment.hash.strip_prefix("0x").and_then(|digits| digits.parse().ok());
        let hash =
            hash.ok_or_else(|| self.0.wrong(format_args!("`{}` as a hash", shown(&moment.hash))))?;
        Ok(Moment { number: moment.number, hash, time: moment.time })
    }

    fn payment(&self, payment: &wit::Payment) -> Result<Payment, Failure> {
        Ok(Payment {
            standing: match payment.standing {
                wit::Standing::Open => Standing::Open,
                wit::Standing::Halted => Standing::Halted,
                wit::Standing::Closed => Standing::Closed,
            },
            token: self.address(&payment.token)?,
            payer: self.address(&payment.payer)?,
            payee: self.address(&payment.payee)?,
            rate_wei_per_second: self.quantity(&payment.rate_per_second)?,
            start_time: self.quantity(&payment.start_time)?,
            stop_time: self.quantity(&payment.stop_time)?,
            deposit_wei: self.quantity(&payment.deposit)?,
            withdrawn_wei: self.quantity(&payment.withdrawn)?,
        })
    }

    fn reference(&self, text: String) -> Result<String, Failure> {
        let fits = !text.is_empty() && text.len() <= limits::NAME_BYTES;
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(text);
        }
        Err(self.0.wrong(format_args!("`{}` as the reference of a payment", shown(&text))))
    }
}

fn shown(text: &str) -> String {
    plain_owned(text.to_owned(), limits::NAME_BYTES)
}

#[async_trait]
impl PaymentVerifier for PaymentComponent {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn degraded(&self) -> Vec<Degraded> {
        self.0.degraded()
    }

    async fn terms(&self) -> Result<Terms, Failure> {
        let terms: wit::Terms = self.0.call("get-terms", self.0.limits.describe, None, ()).await?;
        self.0.check_length("tokens", terms.tokens.len(), limits::LISTED)?;
        let tokens = terms.tokens.iter().map(|token| self.address(token));
        Ok(Terms {
            chain: plain_owned(terms.chain, limits::NAME_BYTES),
            contract: self.address(&terms.contract)?,
            tokens: tokens.collect::<Result<_, _>>()?,
        })
    }

    async fn check_reference(&self, reference: &str) -> Result<String, Failure> {
        let checked =
            self.0.call("check-reference", self.0.limits.describe, None, (reference,)).await?;
        self.reference(checked)
    }

    async fn read(&self, references: &[String], confirmations: u32) -> Result<Snapshot, Failure> {
        let snapshot = self.read_as_answered(references, confirmations).await?;
        if snapshot.payments.len() != references.len() || references.len() > MAX_READ {
            return Err(self.0.wrong(format_args!(
                "{} payments to {} references",
                snapshot.payments.len(),
                references.len()
            )));
        }
        let payments = snapshot.payments.iter();
        let payments = payments.map(|one| one.as_ref().map(|one| self.payment(one)).transpose());
        Ok(Snapshot {
            at: self.moment(&snapshot.at)?,
            latest: self.moment(&snapshot.latest)?,
            payments: payments.collect::<Result<_, _>>()?,
        })
    }

    async fn changed_since(&self, block: u64) -> Result<Changes, Failure> {
        let changes: wit::Changes =
            self.0.call("changed-since", self.0.limits.read_payments, None, (block,)).await?;
        self.0.check_length("changed payments", changes.references.len(), limits::MACHINES)?;
        let references = changes.references.into_iter().map(|one| self.reference(one));
        Ok(Changes {
            up_to_block: changes.up_to_block,
            references: references.collect::<Result<_, _>>()?,
        })
    }

    async fn collect(&self, reference: &str) -> Result<PaymentCall, Failure> {
        let call: wit::Call =
            self.0.call("collect", self.0.limits.write_call, None, (reference,)).await?;
        Ok(PaymentCall { data: call.data, gas_limit: call.gas_limit })
    }

    async fn close(&self, reference: &str) -> Result<PaymentCall, Failure> {
        let call: wit::Call =
            self.0.call("close", self.0.limits.write_call, None, (reference,)).await?;
        Ok(PaymentCall { data: call.data, gas_limit: call.gas_limit })
    }

    async fn payouts(&self, events: &[Event]) -> Result<Vec<Payout>, Failure> {
        let events: Vec<wit::Event> = events
            .iter()
            .map(|event| wit::Event {
                address: Address::from(event.address).to_checksum(None),
                topics: event.topics.iter().map(|topic| topic.to_vec()).collect(),
                data: event.data.clone(),
            })
            .collect();
        let payouts: Vec<wit::Payout> =
            self.0.call("payouts", self.0.limits.describe, None, (&events[..],)).await?;
        self.0.check_length("payouts", payouts.len(), limits::LISTED)?;
        let payout = |payout: wit::Payout| {
            Ok(Payout {
                reference: self.reference(payout.reference)?,
                amount_wei: self.quantity(&payout.amount)?,
            })
        };
        payouts.into_iter().map(payout).collect()
    }
}
