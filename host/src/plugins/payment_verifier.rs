//! A contract that requestors pay through, as the rest of the provider sees it: the trait [`PaymentVerifier`] and the values it
//! speaks in.
//!
//! They mirror `wit/payments.wit`, which says what each call promises. The components that implement it are behind
//! `payment_component.rs`. Numbers are as wide as contracts have them: whoever computes with them does so checked.

use alloy::primitives::{Address, B256, U256};
use async_trait::async_trait;

pub use super::imports::ethereum::Event;
use super::{failure::Failure, health::Degraded};

/// Reads what requestors pay, and writes the calls that collect it. Decides, signs and sends nothing.
///
/// Every call ends by itself within a deadline of its own, and is safe to repeat.
#[async_trait]
pub trait PaymentVerifier: Send + Sync + 'static {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Functions of it that have failed too often in a row. Never waits.
    fn degraded(&self) -> Vec<Degraded> {
        Vec::new()
    }

    /// How requestors pay here.
    async fn terms(&self) -> Result<Terms, Failure>;

    /// The one spelling of a reference.
    async fn check_reference(&self, reference: &str) -> Result<String, Failure>;

    /// Payments as they stand, all at one block; at most [`MAX_READ`], each reference as `check_reference` gave it.
    async fn read(&self, references: &[String], confirmations: u32) -> Result<Snapshot, Failure>;

    /// Payments that something happened to after this block.
    async fn changed_since(&self, block: u64) -> Result<Changes, Failure>;

    /// The call that gives the payee what has run up.
    async fn collect(&self, reference: &str) -> Result<PaymentCall, Failure>;

    /// The call that ends the payment.
    async fn close(&self, reference: &str) -> Result<PaymentCall, Failure>;

    /// What the payee got by a call that was mined.
    async fn payouts(&self, events: &[Event]) -> Result<Vec<Payout>, Failure>;
}

/// Payments that are read at once.
pub const MAX_READ: usize = 500;

/// How requestors pay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Its name among the configured ones.
    pub chain: String,
    /// What holds the payments, and what every call goes to.
    pub contract: Address,
    /// What it may be paid in; zero is the chain's own coin.
    pub tokens: Vec<Address>,
}

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub number: u64,
    pub hash: B256,
    /// Its timestamp, in seconds since 1970-01-01 UTC.
    pub time: u64,
}

/// What has become of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// By a third party; what has run up is the payee's.
    Halted,
    /// Paid out and over, whatever the other fields say.
    Closed,
}

/// A payment as its contract has it. Times are seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    pub standing: Standing,
    /// Zero is the chain's own coin.
    pub token: Address,
    pub payer: Address,
    pub payee: Address,
    pub rate_wei_per_second: U256,
    pub start_time: U256,
    /// May be later than the deposit pays for.
    pub stop_time: U256,
    /// All that was ever paid in.
    pub deposit_wei: U256,
    pub withdrawn_wei: U256,
}

/// Payments at one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The block that was read.
    pub at: Moment,
    /// The newest one.
    pub latest: Moment,
    /// In the order that was asked; absent: at that block there was none.
    pub payments: Vec<Option<Payment>>,
}

/// Payments that something happened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Looked at up to here.
    pub up_to_block: u64,
    pub references: Vec<String>,
}

/// A call of the contract in the terms, without money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentCall {
    pub data: Vec<u8>,
    pub gas_limit: u64,
}

/// Money that the payee got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payout {
    pub reference: String,
    pub amount_wei: U256,
}
