//! The gate: may this machine be made, or started again, on that stream? Asks the chain, decides by `verdict`, makes nothing.

use std::time::Duration;

use alloy::primitives::{Address, U256};

use super::{
    model::{self, Stream, StreamKey, Ticket},
    quotes::Quotes,
    verdict::{Needs, Refusal, Rules, may_start},
    verifiers::{NoVerifier, Verifiers},
};
use crate::{
    plugins::{
        Failure, FailureKind, PaymentVerifier,
        payment_verifier::{Moment, Payment, Terms},
    },
    resources::Amounts,
    store::StoreError,
};

/// Why no machine is made or started.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error(
        "this provider is paid by streams: open one to {payee} that pays at least {rate} wei a second, and name it as `stream_id`"
    )]
    NoStream { payee: Address, rate: U256 },
    /// Says what a reference looks like.
    #[error("{0}")]
    BadReference(String),
    #[error("stream {reference}: {refusal}")]
    Refused { reference: String, refusal: Refusal },
    #[error(
        "no price of GLM is known yet, so that no stream can be checked; ask again in a minute"
    )]
    NoPrice,
    #[error("stream lookup failed: {reason}; ask again in a minute")]
    ChainSilent { reason: String },
    #[error(transparent)]
    NoVerifier(#[from] NoVerifier),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The contract is none, or another one.
    #[error("this provider cannot check payments until its operator has mended this: {reason}")]
    Misconfigured { reason: String },
}

impl GateError {
    /// When it makes sense to ask again, where that may change anything by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoPrice | Self::ChainSilent { .. } => Some(Duration::from_secs(30)),
            Self::NoVerifier(_) | Self::Misconfigured { .. } => Some(Duration::from_secs(300)),
            Self::NoStream { .. }
            | Self::BadReference(_)
            | Self::Refused { .. }
            | Self::Store(_) => None,
        }
    }

    pub(super) fn of(failure: Failure) -> Self {
        let reason = failure.message;
        match failure.kind {
            FailureKind::InvalidArgument => Self::BadReference(reason),
            FailureKind::Unavailable
            | FailureKind::DeadlineExceeded
            | FailureKind::ResourceExhausted => Self::ChainSilent { reason },
            _ => Self::Misconfigured { reason },
        }
    }
}

/// What a payment was read at.
struct Blocks {
    at: Moment,
    latest: Moment,
}

/// What the gate goes by.
pub(super) struct Gate {
    /// Whom streams have to pay.
    pub payee: Address,
    pub confirmations: u32,
    pub verifiers: Verifiers,
    pub quotes: Quotes,
}

impl Gate {
    /// Looks at the stream that is to pay for a machine of this size. It is bound when the machine is admitted.
    pub async fn admit(
        &self,
        reference: Option<&str>,
        size: Amounts,
        rules: &Rules,
    ) -> Result<Ticket, GateError> {
        let verifier = self.verifiers.current()?;
        let rate = self.quotes.rate_wei_per_second(size).ok_or(GateError::NoPrice)?;
        let rate_wei_per_second = U256::from(rate);
        let Some(reference) = reference else {
            return Err(GateError::NoStream { payee: self.payee, rate: rate_wei_per_second });
        };
        let reference = verifier.check_reference(reference).await.map_err(GateError::of)?;
        let terms = verifier.terms().await.map_err(GateError::of)?;
        let needs = self.needs(&terms, rate_wei_per_second);
        let (payment, read) = self.examine(&*verifier, &reference, &needs, rules).await?;
        Ok(Ticket {
            key: StreamKey { contract: terms.contract, reference },
            verifier: verifier.name().to_owned(),
            chain: terms.chain,
            payment,
            read_block: read.at.number,
            read_block_time: read.latest.time,
            read_at: model::now(),
        })
    }

    /// Looks again at the stream of a machine that is to start. It pays what it was found to pay when it was bound.
    pub async fn renew(&self, stream: &Stream, rules: &Rules) -> Result<(), GateError> {
        let verifier = self.verifiers.current()?;
        let reference = &stream.key.reference;
        let terms = verifier.terms().await.map_err(GateError::of)?;
        if terms.contract != stream.key.contract || verifier.name() != stream.verifier {
            let reason = format!(
                "stream {reference} is in another contract ({}) than the one that is configured",
                stream.key.contract
            );
            return Err(GateError::Misconfigured { reason });
        }
        let needs = self.needs(&terms, stream.payment.rate_wei_per_second);
        self.examine(&*verifier, reference, &needs, rules).await.map(drop)
    }

    fn needs(&self, terms: &Terms, rate_wei_per_second: U256) -> Needs {
        Needs { payee: self.payee, tokens: terms.tokens.clone(), rate_wei_per_second }
    }

    /// Reads a payment and judges it. Answers it with the blocks of that.
    async fn examine(
        &self,
        verifier: &dyn PaymentVerifier,
        reference: &str,
        needs: &Needs,
        rules: &Rules,
    ) -> Result<(Payment, Blocks), GateError> {
        let references = [reference.to_owned()];
        let snapshot =
            verifier.read(&references, self.confirmations).await.map_err(GateError::of)?;
        let payment = snapshot.payments.into_iter().next().flatten();
        let refused = |refusal| GateError::Refused { reference: reference.to_owned(), refusal };
        may_start(payment.as_ref(), needs, rules, snapshot.latest.time).map_err(refused)?;
        let unknown = || refused(Refusal::Unknown { payee: needs.payee });
        let payment = payment.ok_or_else(unknown)?;
        Ok((payment, Blocks { at: snapshot.at, latest: snapshot.latest }))
    }
}
