//! What is kept of a stream, from the moment a machine is bound to it until nothing more can come of it.

use alloy::primitives::{Address, U256};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::verdict::PaymentState;
use crate::plugins::payment_verifier::Payment;

/// The present time as records keep it, in whole milliseconds.
pub(super) fn now() -> Timestamp {
    let now = Timestamp::now();
    // Every present time in milliseconds is within what a timestamp can hold.
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

/// A payment, wherever it stands: unlike a number, it means the same under another contract.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    pub contract: Address,
    /// As the plugin spells it, such as `42`.
    pub reference: String,
}

/// A stream that a machine was bound to. No other machine ever gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub key: StreamKey,
    /// The plugin that reads it.
    pub verifier: String,
    /// The chain it is on, as `chains` knows it.
    pub chain: String,
    /// The machine, by its instance id and by its requestor's name for it.
    pub vm_id: String,
    pub vm_name: String,
    pub bound_at: Timestamp,
    /// As it was read last.
    pub payment: Payment,
    /// The block of that.
    pub read_block: u64,
    /// The time of the newest block then, in seconds since 1970-01-01 UTC.
    pub read_block_time: u64,
    /// When that was, by this machine's clock.
    pub read_at: Timestamp,
    /// Set when its machine was stopped for the want of money, until it starts again.
    pub suspended: Option<Suspension>,
    /// Set when its machine was deleted; what is owed then is still collected.
    pub released_at: Option<Timestamp>,
    /// Nothing more can come of it.
    pub settled: bool,
}

/// A machine was stopped because nobody paid for it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspension {
    pub at: Timestamp,
    pub state: PaymentState,
}

/// What is bound to a machine in the moment that it is admitted: a stream that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    pub key: StreamKey,
    pub verifier: String,
    pub chain: String,
    pub payment: Payment,
    pub read_block: u64,
    pub read_block_time: u64,
    pub read_at: Timestamp,
}

impl Ticket {
    /// Who pays, and so owns the machine.
    pub fn payer(&self) -> Address {
        self.payment.payer
    }

    /// The stream of this machine from now on.
    pub fn bind(self, vm_id: &str, vm_name: &str, now: Timestamp) -> Stream {
        Stream {
            key: self.key,
            verifier: self.verifier,
            chain: self.chain,
            vm_id: vm_id.to_owned(),
            vm_name: vm_name.to_owned(),
            bound_at: now,
            payment: self.payment,
            read_block: self.read_block,
            read_block_time: self.read_block_time,
            read_at: self.read_at,
            suspended: None,
            released_at: None,
            settled: false,
        }
    }
}

impl Stream {
    /// The time on the chain by now, as far as this machine's clock tells: blocks go on while nobody answers.
    pub fn chain_time(&self, now: Timestamp) -> u64 {
        let passed = now.duration_since(self.read_at).as_secs().max(0).unsigned_abs();
        self.read_block_time.saturating_add(passed)
    }
}

/// How a machine's payment stands, for those who look at the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PaymentStatus {
    pub stream_id: String,
    pub state: PaymentState,
    pub remaining_seconds: u64,
    /// It is stopped in so many seconds unless the stream is topped up.
    pub stops_in_seconds: Option<u64>,
    /// It was stopped because nobody paid, and is deleted then unless the stream is topped up and it is started again.
    pub deleted_at: Option<Timestamp>,
    /// When the chain was last asked with success.
    pub as_of: Timestamp,
    /// Whether it answered at the last attempt.
    pub chain_reachable: bool,
    /// What the requestor should do, if anything.
    pub warning: Option<String>,
}

/// A transaction that collects money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payout {
    /// In the order in which they were planned.
    pub id: i64,
    pub key: StreamKey,
    pub chain: String,
    pub kind: PayoutKind,
    pub state: PayoutState,
    pub planned_at: Timestamp,
    pub updated_at: Timestamp,
    /// What was to be collected when it was planned.
    pub expected_wei: U256,
    /// What the provider got. Known once it was mined.
    pub amount_wei: Option<U256>,
    /// Of the transaction that was mined, or of the last one that was sent.
    pub transaction: Option<String>,
    pub gas_wei: Option<U256>,
    /// Why it failed.
    pub error: Option<String>,
}

/// A stream as it stood at a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReading {
    pub payment: Payment,
    pub block: u64,
    /// In seconds since 1970-01-01 UTC.
    pub block_time: u64,
    /// When it was read, by this machine's clock.
    pub at: Timestamp,
}

/// A transaction that is to collect money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPayout {
    pub key: StreamKey,
    pub chain: String,
    pub kind: PayoutKind,
    pub planned_at: Timestamp,
    pub expected_wei: U256,
}

/// What is known of a transaction that collects money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayoutResult {
    pub state: PayoutState,
    pub amount_wei: Option<U256>,
    pub transaction: Option<String>,
    pub gas_wei: Option<U256>,
    pub error: Option<String>,
}

/// What a transaction does to its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayoutKind {
    /// Collects what has run up.
    Withdraw,
    /// Ends the stream: the payer gets back the rest.
    Terminate,
}

/// How far a transaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayoutState {
    /// Written down; perhaps sent.
    Planned,
    Mined,
    /// It was mined and did nothing, or will never be mined.
    Failed,
}
