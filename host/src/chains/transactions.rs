//! Transactions with the provider's key.
//!
//! One chain's transactions go one after the other, and the number of the next one (its nonce) is what the chain has
//! confirmed: so there is never more than one under way, and one that hangs is replaced instead of followed.
//!
//! ```text
//!  look at the chain ──▶ sign ──▶ send ──▶ wait for the receipt ──▶ done
//!        ▲                          │          │  after a while: the same with a better offer, or as it is
//!        └── number taken, base fee ┘          └─ out of time: it hangs; whoever comes next takes its place
//! ```
//!
//! What hangs is remembered before it is sent, so that a call that is cut off anywhere is like one that ran out of time. After a
//! restart it is not known any more; then the node says that a better offer is needed. A chain that was reset has other numbers,
//! and what hung on it is forgotten.

use std::{sync::Arc, time::Duration};

use alloy::{
    consensus::{SignableTransaction, TxEip1559},
    eips::eip2718::Encodable2718,
    network::TxSignerSync,
    primitives::{Address, B256, Bytes, TxKind, U64, U256},
    signers::local::PrivateKeySigner,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};

use super::{
    error::{ChainError, RpcError},
    fees::{self, Fees, Market, TooExpensive},
    nodes::{AskChain, ask},
    refusal::{self, Refusal},
};

/// Between two looks for a receipt.
const POLL: Duration = Duration::from_secs(1);

/// Between two looks at the chain while a receipt is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A transaction that was not mined for so long is sent again.
const SEND_AGAIN: Duration = Duration::from_secs(20);

/// Blocks that passed a transaction over: then it offers too little. Where no blocks are made, a better offer would not help.
const PASSED_OVER: u64 = 3;

/// Of one transaction, until a node takes it. The offer doubles with some of them.
const ATTEMPTS: u32 = 24;

/// Between two attempts after something changed under our feet.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// Offers of one transaction whose receipts are looked for.
const REMEMBERED: usize = 8;

/// What is to be done on a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub to: Address,
    pub data: Bytes,
    pub value_wei: U256,
    /// What the node estimates, and a fifth more, where it is absent.
    pub gas_limit: Option<u64>,
}

/// A transaction that was mined.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub transaction_hash: B256,
    pub block_number: U64,
    status: U64,
    pub gas_used: U64,
    pub logs: Vec<Event>,
}

/// What a contract wrote down about a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Event {
    pub address: Address,
    pub topics: Vec<B256>,
    pub data: Bytes,
}

impl Receipt {
    /// Otherwise it was mined, cost its gas, and did nothing.
    pub fn succeeded(&self) -> bool {
        self.status == U64::from(1)
    }
}

/// The transactions of one chain, in order. Held by one caller at a time.
#[derive(Debug, Default)]
pub struct Sequence(Mutex<Option<Hanging>>);

/// A transaction that was sent, or nearly, and of which it is not known yet what became of it.
#[derive(Debug, Clone)]
struct Hanging {
    chain_id: u64,
    nonce: u64,
    call: Call,
    gas_limit: u64,
    fees: Fees,
    raw: Bytes,
    /// One for each offer, the latest last.
    hashes: Vec<B256>,
    /// Of other calls with the same number, whose place this one is to take.
    replaced: Vec<B256>,
    /// The latest block when it was sent.
    block: u64,
}

/// A chain at one moment, as far as it matters to us.
#[derive(Debug, Clone, Copy)]
struct Moment {
    chain_id: u64,
    /// Confirmed transactions of ours, which is the number of the next one.
    nonce: u64,
    balance_wei: U256,
    block: u64,
    market: Market,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Block {
    number: U64,
    base_fee_per_gas: U256,
}

/// Whoever sends: a key on a chain.
pub struct Sender<'a> {
    pub chain: Arc<dyn AskChain>,
    pub sequence: &'a Sequence,
    pub signer: &'a PrivateKeySigner,
    /// Nothing is sent that costs more for a unit of gas.
    pub max_gas_price_wei: u128,
}

impl Sender<'_> {
    /// Signs, sends, and waits until it is mined.
    ///
    /// # Errors
    /// After [`ChainError::NotMined`] and [`ChainError::Unreachable`] it may still be mined; after any other, never.
    pub async fn send(&self, call: Call, waits: Duration) -> Result<Receipt, ChainError> {
        let deadline = Instant::now() + waits;
        let late = || ChainError::Late { chain: self.name(), waited: waits };
        let mut hanging = timeout_at(deadline, self.sequence.0.lock()).await.map_err(|_| late())?;
        let sending = self.until_sent(&call, &mut hanging);
        let sent = match timeout_at(deadline, sending).await {
            Ok(sent) => sent?,
            // It was about to be sent, or was.
            Err(_) => {
                let ours = hanging.as_ref().filter(|hanging| hanging.call == call);
                return Err(match ours.and_then(|hanging| hanging.hashes.last()) {
                    Some(hash) => self.not_mined(*hash, waits, None),
                    None => late(),
                });
            }
        };
        if let Some(receipt) = sent {
            *hanging = None;
            return Ok(receipt);
        }
        let mut lately = None;
        let waiting = self.until_mined(&mut hanging, &mut lately);
        match timeout_at(deadline, waiting).await {
            Ok(outcome) => {
                *hanging = None;
                outcome
            }
            Err(_) => {
                let hash = hanging.as_ref().and_then(|hanging| hanging.hashes.last().copied());
                Err(self.not_mined(hash.unwrap_or_default(), waits, lately))
            }
        }
    }

    fn name(&self) -> String {
        self.chain.name().to_owned()
    }

    fn not_mined(&self, hash: B256, waited: Duration, lately: Option<String>) -> ChainError {
        ChainError::NotMined { chain: self.name(), hash, waited, lately }
    }

    /// Until a node has taken it. A receipt where it turns out to have been mined before.
    async fn until_sent(
        &self,
        call: &Call,
        hanging: &mut Option<Hanging>,
    ) -> Result<Option<Receipt>, ChainError> {
        let mut floor: Option<Fees> = None;
        let mut last_refusal = None;
        for _ in 0..ATTEMPTS {
            let now = self.look().await?;
            let same_place = |it: &Hanging| it.chain_id == now.chain_id && it.nonce == now.nonce;
            if let Some(before) = hanging.as_ref().filter(|before| !same_place(before)) {
                // Mined, or of a chain that was reset.
                if let Some(receipt) =
                    self.mined(&before.hashes).await?.filter(|_| before.call == *call)
                {
                    return Ok(Some(receipt));
                }
                *hanging = None;
                floor = None;
            }
            let before = hanging.clone();
            let gas_limit = match (call.gas_limit, &before) {
                (Some(given), _) => given,
                (None, Some(before)) if before.call == *call => before.gas_limit,
                (None, _) => self.estimate(call, &now).await?,
            };
            // One that hangs because no blocks are made is not helped by a better offer.
            if let Some(before) = before.as_ref().filter(|before| {
                before.call == *call && now.block < before.block + PASSED_OVER && floor.is_none()
            }) {
                match self.broadcast(&before.raw).await {
                    Ok(()) => return Ok(None),
                    Err(Refused { means: Refusal::Known, .. }) => return Ok(None),
                    Err(Refused { means: Refusal::NumberTaken, .. }) => {
                        sleep(ATTEMPT_PAUSE).await;
                        continue;
                    }
                    Err(Refused { means: Refusal::Other, error })
                        if matches!(error, ChainError::Unreachable { .. }) =>
                    {
                        return Err(error);
                    }
                    // A better offer may help after all.
                    Err(_) => {}
                }
            }
            let outbidding = before.as_ref().map(|before| before.fees.outbidding());
            let at_least = match (floor, outbidding) {
                (Some(floor), Some(other)) => Some(Fees {
                    most_wei: floor.most_wei.max(other.most_wei),
                    tip_wei: floor.tip_wei.max(other.tip_wei),
                }),
                (floor, outbidding) => floor.or(outbidding),
            };
            let fees = self.offer(&now, at_least)?;
            self.check_balance(call, gas_limit, fees, &now)?;
            let signed = self.sign(call, gas_limit, fees, &now)?;
            let (raw, hash) = signed;
            *hanging =
                Some(succeeding(before.as_ref(), call, gas_limit, fees, &now, raw.clone(), hash));
            let Err(Refused { means, error }) = self.broadcast(&raw).await else {
                return Ok(None);
            };
            match means {
                Refusal::Known => return Ok(None),
                Refusal::Underbid => floor = Some(fees.doubled()),
                Refusal::BelowBaseFee => sleep(ATTEMPT_PAUSE).await,
                Refusal::NumberTaken | Refusal::NumberTooHigh => {
                    // Was it ours that was mined in this moment? Then the next look finds its receipt, or that it was another call.
                    if let Some(sent) = hanging.as_ref() {
                        if let Some(receipt) = self.mined(&sent.hashes).await? {
                            return Ok(Some(receipt));
                        }
                        if self.mined(&sent.replaced).await?.is_some() {
                            *hanging = None;
                            return Err(ChainError::Superseded { chain: self.name() });
                        }
                    }
                    *hanging = None;
                    sleep(ATTEMPT_PAUSE).await;
                }
                Refusal::TooPoor => {
                    *hanging = before;
                    return Err(self.too_poor(call, gas_limit, fees, &now));
                }
                Refusal::Other => {
                    // A node that took it may have been cut off before it said so.
                    if !matches!(error, ChainError::Unreachable { .. }) {
                        *hanging = before;
                    }
                    return Err(error);
                }
            }
            last_refusal = Some(error);
        }
        Err(last_refusal.unwrap_or_else(|| ChainError::Superseded { chain: self.name() }))
    }

    /// Until there is a receipt. Whatever the nodes say meanwhile ends nothing: it was sent.
    async fn until_mined(
        &self,
        hanging: &mut Option<Hanging>,
        lately: &mut Option<String>,
    ) -> Result<Receipt, ChainError> {
        let mut looked_at = Instant::now();
        let mut sent_at = Instant::now();
        // A node that lags behind may not have the receipt of what another one calls mined.
        let mut seen_mined = 0;
        loop {
            let Some(mut sent) = hanging.clone() else {
                return Err(ChainError::Superseded { chain: self.name() });
            };
            match self.mined(&sent.hashes).await {
                Ok(Some(receipt)) => return Ok(receipt),
                Ok(None) => *lately = None,
                Err(error) => *lately = Some(error.to_string()),
            }
            sleep(POLL).await;
            if looked_at.elapsed() < LOOK_EVERY {
                continue;
            }
            looked_at = Instant::now();
            let Ok(now) = self.look().await else { continue };
            if now.chain_id != sent.chain_id {
                continue;
            }
            if now.nonce > sent.nonce {
                seen_mined += 1;
                if seen_mined == 3 {
                    return match self.mined(&sent.hashes).await {
                        Ok(Some(receipt)) => Ok(receipt),
                        _ => Err(ChainError::Superseded { chain: self.name() }),
                    };
                }
                continue;
            }
            if sent_at.elapsed() < SEND_AGAIN {
                continue;
            }
            sent_at = Instant::now();
            if now.block >= sent.block + PASSED_OVER
                && let Ok(fees) = self.offer(&now, Some(sent.fees.outbidding()))
                && self.check_balance(&sent.call, sent.gas_limit, fees, &now).is_ok()
                && let Ok((raw, hash)) = self.sign(&sent.call, sent.gas_limit, fees, &now)
            {
                let call = sent.call.clone();
                sent = succeeding(Some(&sent), &call, sent.gas_limit, fees, &now, raw, hash);
                *hanging = Some(sent.clone());
            }
            if let Err(Refused { error, means: Refusal::Other }) = self.broadcast(&sent.raw).await {
                *lately = Some(error.to_string());
            }
        }
    }

    async fn look(&self) -> Result<Moment, ChainError> {
        let chain = &*self.chain;
        let us = self.signer.address();
        let (chain_id, nonce, balance_wei, block, tip_wei): (U64, U64, U256, Block, U256) = tokio::try_join!(
            ask(chain, "eth_chainId", json!([])),
            ask(chain, "eth_getTransactionCount", (us, "latest")),
            ask(chain, "eth_getBalance", (us, "latest")),
            ask(chain, "eth_getBlockByNumber", ("latest", false)),
            ask(chain, "eth_maxPriorityFeePerGas", json!([])),
        )?;
        let market = Market {
            base_wei: block.base_fee_per_gas.saturating_to(),
            tip_wei: tip_wei.saturating_to(),
        };
        Ok(Moment {
            chain_id: chain_id.to(),
            nonce: nonce.to(),
            balance_wei,
            block: block.number.to(),
            market,
        })
    }

    async fn estimate(&self, call: &Call, now: &Moment) -> Result<u64, ChainError> {
        let transaction = json!({
            "from": self.signer.address(), "to": call.to, "data": call.data, "value": call.value_wei,
        });
        let estimated: Result<U64, _> =
            ask(&*self.chain, "eth_estimateGas", (transaction, "latest")).await;
        match estimated {
            Ok(gas) => {
                let gas: u64 = gas.to();
                Ok(gas.saturating_add(gas / 5))
            }
            Err(ChainError::Refused(RpcError { message, .. }))
                if refusal::read(&message) == Refusal::TooPoor =>
            {
                /// Of a transaction that does nothing.
                const LEAST_GAS: u64 = 21_000;
                let fees = self.offer(now, None)?;
                Err(self.too_poor(call, LEAST_GAS, fees, now))
            }
            Err(error) => Err(error),
        }
    }

    fn offer(&self, now: &Moment, floor: Option<Fees>) -> Result<Fees, ChainError> {
        let most_wei = self.max_gas_price_wei;
        fees::offer(now.market, floor, most_wei).map_err(|TooExpensive { price_wei }| {
            ChainError::GasTooExpensive { chain: self.name(), price_wei, most_wei }
        })
    }

    fn check_balance(
        &self,
        call: &Call,
        gas_limit: u64,
        fees: Fees,
        now: &Moment,
    ) -> Result<(), ChainError> {
        match self.too_poor(call, gas_limit, fees, now) {
            ChainError::InsufficientBalance { has_wei, needed_wei, .. }
                if has_wei >= needed_wei =>
            {
                Ok(())
            }
            poor => Err(poor),
        }
    }

    fn too_poor(&self, call: &Call, gas_limit: u64, fees: Fees, now: &Moment) -> ChainError {
        let gas_wei = U256::from(gas_limit).saturating_mul(U256::from(fees.most_wei));
        ChainError::InsufficientBalance {
            chain: self.name(),
            address: self.signer.address(),
            has_wei: now.balance_wei,
            needed_wei: call.value_wei.saturating_add(gas_wei),
        }
    }

    /// The transaction as it is sent, and its hash.
    fn sign(
        &self,
        call: &Call,
        gas_limit: u64,
        fees: Fees,
        now: &Moment,
    ) -> Result<(Bytes, B256), ChainError> {
        let mut transaction = TxEip1559 {
            chain_id: now.chain_id,
            nonce: now.nonce,
            gas_limit,
            max_fee_per_gas: fees.most_wei,
            max_priority_fee_per_gas: fees.tip_wei,
            to: TxKind::Call(call.to),
            value: call.value_wei,
            input: call.data.clone(),
            ..TxEip1559::default()
        };
        sign(&mut transaction, self.signer)
    }

    async fn broadcast(&self, raw: &Bytes) -> Result<(), Refused> {
        let sent: Result<B256, _> = ask(&*self.chain, "eth_sendRawTransaction", [raw]).await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                let means = match &error {
                    ChainError::Refused(RpcError { message, .. }) => refusal::read(message),
                    _ => Refusal::Other,
                };
                Err(Refused { means, error })
            }
        }
    }

    /// The receipt of one of them, if any was mined.
    async fn mined(&self, hashes: &[B256]) -> Result<Option<Receipt>, ChainError> {
        for hash in hashes.iter().rev() {
            let receipt: Option<Receipt> =
                ask(&*self.chain, "eth_getTransactionReceipt", [hash]).await?;
            if receipt.is_some() {
                return Ok(receipt);
            }
        }
        Ok(None)
    }
}

/// A node did not take a transaction.
struct Refused {
    means: Refusal,
    error: ChainError,
}

/// What hangs from now on, in the place of what did.
fn succeeding(
    before: Option<&Hanging>,
    call: &Call,
    gas_limit: u64,
    fees: Fees,
    now: &Moment,
    raw: Bytes,
    hash: B256,
) -> Hanging {
    let (mut hashes, mut replaced) = match before {
        Some(before) if before.call == *call => (before.hashes.clone(), before.replaced.clone()),
        Some(before) => (Vec::new(), [&before.replaced[..], &before.hashes].concat()),
        None => (Vec::new(), Vec::new()),
    };
    hashes.push(hash);
    for list in [&mut hashes, &mut replaced] {
        list.drain(..list.len().saturating_sub(REMEMBERED));
    }
    Hanging {
        chain_id: now.chain_id,
        nonce: now.nonce,
        call: call.clone(),
        gas_limit,
        fees,
        raw,
        hashes,
        replaced,
        block: now.block,
    }
}

/// The transaction as it is sent, and its hash.
fn sign(
    transaction: &mut TxEip1559,
    signer: &PrivateKeySigner,
) -> Result<(Bytes, B256), ChainError> {
    let signature = signer
        .sign_transaction_sync(transaction)
        .map_err(|error| ChainError::Signing(error.to_string()))?;
    let signed = transaction.clone().into_signed(signature);
    Ok((Bytes::from(signed.encoded_2718()), *signed.hash()))
}

#[cfg(test)]
mod tests;
