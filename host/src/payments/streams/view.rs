//! How a stream is shown: in the fields and with the words that requestors' programs read.

use alloy::primitives::{Address, U256};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{funding::Funding, model::Stream};
use crate::plugins::payment_verifier::{Payment, Standing};

/// A stream as `GET /vms/{id}/stream` tells it.
#[derive(Debug, Clone, Serialize)]
pub struct StreamView {
    /// The requestor's name of the machine.
    pub vm_id: String,
    pub stream_id: StreamId,
    pub chain: OnChain,
    pub computed: Computed,
    /// Could a machine run on it now?
    pub verified: bool,
    /// `ok`, or why not.
    pub reason: String,
    /// The chain could not be asked: this is what was known last.
    #[serde(skip)]
    pub lookup_failed: bool,
}

/// What stands in the contract, under its own names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OnChain {
    pub token: String,
    pub sender: String,
    pub recipient: String,
    pub start_time: Number,
    pub stop_time: Number,
    pub rate_per_second: Number,
    pub deposit: Number,
    pub withdrawn: Number,
    pub halted: bool,
    #[serde(rename = "ratePerSecond_str")]
    pub rate_per_second_str: String,
    #[serde(rename = "deposit_str")]
    pub deposit_str: String,
    #[serde(rename = "withdrawn_str")]
    pub withdrawn_str: String,
}

/// What follows from that.
#[derive(Debug, Clone, Serialize)]
pub struct Computed {
    /// The newest block's time; by this machine's clock where the chain cannot be asked.
    pub now: u64,
    pub remaining_seconds: u64,
    pub vested_wei: Number,
    pub withdrawable_wei: Number,
    pub vested_wei_str: String,
    pub withdrawable_wei_str: String,
}

/// A JSON number of any size, as existing clients read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number(pub U256);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error as _;
        // Decimal digits are a JSON number.
        let digits = RawValue::from_string(self.0.to_string()).map_err(S::Error::custom)?;
        digits.serialize(serializer)
    }
}

/// A stream's reference: a number where it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamId(pub String);

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_number = self.0.bytes().all(|byte| byte.is_ascii_digit());
        match self.0.parse().ok().filter(|_| is_number) {
            Some(number) => Number(number).serialize(serializer),
            None => self.0.serialize(serializer),
        }
    }
}

/// What a stream's numbers do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// The contract has no such stream any more.
    Unknown,
    /// The chain could not be asked, and why.
    Silent(String),
}

impl StreamView {
    /// `problem` is why it is not as it should be, where its numbers do not say that.
    pub(super) fn new(
        stream: &Stream,
        payment: Payment,
        now: u64,
        payee: Address,
        problem: Option<Problem>,
    ) -> Self {
        let funding = Funding::at(&payment, now);
        let lookup_failed = matches!(problem, Some(Problem::Silent(_)));
        let reason = match problem {
            Some(Problem::Unknown) => Some("unknown stream".to_owned()),
            Some(Problem::Silent(why)) => Some(format!("stream lookup failed: {why}")),
            None => reason(&payment, now, payee).map(str::to_owned),
        };
        Self {
            vm_id: stream.vm_name.clone(),
            stream_id: StreamId(stream.key.reference.clone()),
            chain: OnChain {
                token: payment.token.to_checksum(None),
                sender: payment.payer.to_checksum(None),
                recipient: payment.payee.to_checksum(None),
                start_time: Number(payment.start_time),
                stop_time: Number(payment.stop_time),
                rate_per_second: Number(payment.rate_wei_per_second),
                deposit: Number(payment.deposit_wei),
                withdrawn: Number(payment.withdrawn_wei),
                halted: payment.standing == Standing::Halted,
                rate_per_second_str: payment.rate_wei_per_second.to_string(),
                deposit_str: payment.deposit_wei.to_string(),
                withdrawn_str: payment.withdrawn_wei.to_string(),
            },
            computed: Computed {
                now,
                remaining_seconds: funding.remaining_seconds,
                vested_wei: Number(funding.vested_wei),
                withdrawable_wei: Number(funding.withdrawable_wei),
                vested_wei_str: funding.vested_wei.to_string(),
                withdrawable_wei_str: funding.withdrawable_wei.to_string(),
            },
            verified: reason.is_none(),
            reason: reason.unwrap_or_else(|| "ok".to_owned()),
            lookup_failed,
        }
    }
}

/// Is this payment one that a machine of ours could run on now? Else why not, in the words that requestors' programs know.
fn reason(payment: &Payment, now: u64, payee: Address) -> Option<&'static str> {
    match payment.standing {
        Standing::Closed => Some("stream terminated"),
        _ if payment.payee != payee => Some("recipient mismatch"),
        _ if payment.deposit_wei.is_zero() => Some("no deposit"),
        _ if payment.start_time > U256::from(now) => Some("stream not started"),
        Standing::Halted => Some("stream halted"),
        Standing::Open if Funding::at(payment, now).remaining_seconds == 0 => {
            Some("stream ran out")
        }
        Standing::Open => None,
    }
}
