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
//! What hangs is written down before it is sent (`journal`), so that a call that is cut off anywhere, also by the end of the
//! process, is like one that ran out of time: the same call again finds that it was mined, or sends it again with its number. A chain
//! that was reset has other numbers, and what hung on it is forgotten.
//!
//! A call that must not be done twice, whatever happens between its receipt and what its caller makes of that, has a `key`: asked for
//! again, it is answered with the receipt that it had, until its caller is done with it.

mod journal;

use std::{sync::Arc, time::Duration};

use alloy::{
    consensus::{SignableTransaction, TxEip1559},
    eips::eip2718::Encodable2718,
    network::TxSignerSync,
    primitives::{Address, B256, Bytes, TxKind, U64, U256},
    signers::local::PrivateKeySigner,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use journal::{Hanging, Journal, Offer, identity};
pub use journal::{Memory, MemoryError, NoMemory, Sequence};

use super::{
    error::{ChainError, RpcError},
    fees::{self, Fees, Market, TooExpensive},
    nodes::{AskChain, ask},
    refusal::{self, Refusal},
};
use crate::faults::{self, FaultPoint};

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

/// What the chain's nodes tell may lag behind what others of them told. So often they are asked before a number that is not the
/// expected one is taken for the truth.
const LOOKS: u32 = 3;

/// What is to be done on a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub to: Address,
    pub data: Bytes,
    pub value_wei: U256,
    /// What the node estimates, and a fifth more, where it is absent.
    pub gas_limit: Option<u64>,
    /// What makes it different from another call with the same data, where it is to be done once and no second time.
    pub key: Option<String>,
}

/// What a call would cost if it was sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote {
    /// That it would use, by the node's estimate.
    pub gas: u64,
    /// For a unit of gas, the tip included.
    pub price_wei: u128,
}

impl Quote {
    pub fn cost_wei(&self) -> U256 {
        U256::from(self.gas).saturating_mul(U256::from(self.price_wei))
    }
}

/// A transaction that was mined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub transaction_hash: B256,
    pub block_number: U64,
    status: U64,
    pub gas_used: U64,
    /// Some nodes leave it away.
    #[serde(default)]
    effective_gas_price: Option<U256>,
    /// On chains that keep their data on another one: what that costs.
    #[serde(default)]
    l1_fee: Option<U256>,
    pub logs: Vec<Event>,
}

/// What a contract wrote down about a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

    /// What it cost beside what it moved, if the node says so.
    pub fn cost_wei(&self) -> Option<U256> {
        let gas = self.effective_gas_price?.checked_mul(U256::from(self.gas_used))?;
        gas.checked_add(self.l1_fee.unwrap_or_default())
    }
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
    /// After [`ChainError::NotMined`] and [`ChainError::Unreachable`] it may still be mined. After any other it will not be, unless
    /// an earlier attempt at the same call was sent: [`Sequence::has_under_way`] knows.
    pub async fn send(&self, call: Call, waits: Duration) -> Result<Receipt, ChainError> {
        let deadline = Instant::now() + waits;
        let late = || ChainError::Late { chain: self.name(), waited: waits };
        let opening = self.sequence.open(self.chain.name());
        let mut journal = timeout_at(deadline, opening).await.map_err(|_| late())??;
        let sending = self.until_sent(&call, &mut journal);
        let sent = match timeout_at(deadline, sending).await {
            Ok(sent) => sent?,
            // It was about to be sent, or was.
            Err(_) => {
                let wanted = identity(&call);
                let ours = journal.hanging().filter(|hanging| hanging.identity() == wanted);
                return Err(match ours {
                    Some(hanging) => self.not_mined(hanging.hash(), waits, None),
                    None => late(),
                });
            }
        };
        if let Some(receipt) = sent {
            return Ok(receipt);
        }
        let mut lately = None;
        let waiting = self.until_mined(&mut journal, &mut lately);
        match timeout_at(deadline, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let hash = journal.hanging().map(Hanging::hash);
                Err(self.not_mined(hash.unwrap_or_default(), waits, lately))
            }
        }
    }

    /// What the call would cost now. Nothing is sent.
    ///
    /// # Errors
    /// It would fail, or take more gas than its limit, or no node answers.
    pub async fn quote(&self, call: &Call) -> Result<Quote, ChainError> {
        let now = self.look().await?;
        let gas = self.estimated(call, &now).await?;
        let Market { base_wei, tip_wei } = now.market;
        Ok(Quote { gas, price_wei: base_wei.saturating_add(tip_wei) })
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
        journal: &mut Journal<'_>,
    ) -> Result<Option<Receipt>, ChainError> {
        let wanted = identity(call);
        let us = self.signer.address();
        let mut floor: Option<Fees> = None;
        let mut last_refusal = None;
        let mut looks = 0;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let now = self.look().await?;
            if let Some(receipt) = journal.finished(call, now.chain_id) {
                return Ok(Some(receipt.clone()));
            }
            if let Some(before) = journal.hanging().cloned()
                && !(before.chain_id == now.chain_id
                    && before.from == us
                    && before.nonce == now.nonce)
            {
                // Mined, or of a chain that was reset, or another key's.
                match self.mined(&before.offers).await? {
                    Some((offer, receipt)) => {
                        journal.finish(&offer, before.chain_id, &receipt).await;
                        if offer.identity == wanted {
                            return Ok(Some(receipt));
                        }
                    }
                    None if looks < LOOKS
                        && before.chain_id == now.chain_id
                        && before.from == us =>
                    {
                        looks += 1;
                        sleep(POLL).await;
                        continue;
                    }
                    None => journal.clear().await,
                }
                floor = None;
            }
            attempts += 1;
            let before = journal.hanging().cloned();
            let same = before.as_ref().filter(|before| before.identity() == wanted);
            let gas_limit = match (call.gas_limit, same) {
                (Some(given), _) => given,
                (None, Some(before)) => before.gas_limit,
                (None, None) => with_room(self.estimated(call, &now).await?),
            };
            // One that hangs because no blocks are made is not helped by a better offer.
            if let Some(before) = same.filter(|before| {
                before.gas_limit == gas_limit
                    && now.block < before.block + PASSED_OVER
                    && floor.is_none()
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
            let (raw, hash) = self.sign(call, gas_limit, fees, &now)?;
            let hanging = Hanging {
                chain_id: now.chain_id,
                from: us,
                nonce: now.nonce,
                call: call.clone(),
                gas_limit,
                fees,
                raw: raw.clone(),
                offers: Offer::after(before.as_ref(), call, hash),
                block: now.block,
            };
            journal.hold(Some(hanging)).await?;
            faults::reached(FaultPoint::TransactionWritten);
            let Err(Refused { means, error }) = self.broadcast(&raw).await else {
                faults::reached(FaultPoint::TransactionSent);
                return Ok(None);
            };
            match means {
                Refusal::Known => return Ok(None),
                Refusal::Underbid => floor = Some(fees.doubled()),
                Refusal::BelowBaseFee => sleep(ATTEMPT_PAUSE).await,
                Refusal::NumberTaken | Refusal::NumberTooHigh => {
                    // Was it one of ours that was mined in this moment?
                    let offers =
                        journal.hanging().map(|sent| sent.offers.clone()).unwrap_or_default();
                    let chain_id = now.chain_id;
                    if let Some((offer, receipt)) = self.mined(&offers).await? {
                        journal.finish(&offer, chain_id, &receipt).await;
                        return match offer.identity == wanted {
                            true => Ok(Some(receipt)),
                            false => Err(ChainError::Superseded { chain: self.name() }),
                        };
                    }
                    // The node that says so may have it, and another one no receipt yet: the next look decides.
                    sleep(ATTEMPT_PAUSE).await;
                }
                Refusal::TooPoor => {
                    journal.hold(before).await?;
                    return Err(self.too_poor(call, gas_limit, fees, &now));
                }
                Refusal::Other => {
                    // A node that took it may have been cut off before it said so.
                    if !matches!(error, ChainError::Unreachable { .. }) {
                        journal.hold(before).await?;
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
        journal: &mut Journal<'_>,
        lately: &mut Option<String>,
    ) -> Result<Receipt, ChainError> {
        let mut looked_at = Instant::now();
        let mut sent_at = Instant::now();
        // A node that lags behind may not have the receipt of what another one calls mined.
        let mut seen_mined = 0;
        loop {
            let Some(mut sent) = journal.hanging().cloned() else {
                return Err(ChainError::Superseded { chain: self.name() });
            };
            match self.mined(&sent.own_offers()).await {
                Ok(Some((offer, receipt))) => {
                    faults::reached(FaultPoint::TransactionMined);
                    journal.finish(&offer, sent.chain_id, &receipt).await;
                    return Ok(receipt);
                }
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
                if seen_mined < LOOKS {
                    continue;
                }
                return match self.mined(&sent.offers).await {
                    Ok(Some((offer, receipt))) => {
                        journal.finish(&offer, sent.chain_id, &receipt).await;
                        match offer.identity == sent.identity() {
                            true => Ok(receipt),
                            false => Err(ChainError::Superseded { chain: self.name() }),
                        }
                    }
                    Ok(None) => {
                        journal.clear().await;
                        Err(ChainError::Superseded { chain: self.name() })
                    }
                    // Whether it was ours is not known yet.
                    Err(_) => continue,
                };
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
                let offers = Offer::after(Some(&sent), &sent.call, hash);
                let better = Hanging { fees, raw, offers, block: now.block, ..sent.clone() };
                // What cannot be written down is not sent; the offer that stands may still be taken.
                match journal.hold(Some(better.clone())).await {
                    Ok(()) => sent = better,
                    Err(error) => *lately = Some(error.to_string()),
                }
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

    /// The gas that it would use; refused where it would fail, or take more than it may.
    async fn estimated(&self, call: &Call, now: &Moment) -> Result<u64, ChainError> {
        let mut transaction = json!({
            "from": self.signer.address(), "to": call.to, "data": call.data, "value": call.value_wei,
        });
        if let Some(most) = call.gas_limit {
            transaction["gas"] = json!(U64::from(most));
        }
        let estimated: Result<U64, _> =
            ask(&*self.chain, "eth_estimateGas", (transaction, "latest")).await;
        match estimated {
            Ok(gas) => Ok(gas.to()),
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

    /// The one of them that was mined, if any was.
    async fn mined(&self, offers: &[Offer]) -> Result<Option<(Offer, Receipt)>, ChainError> {
        for offer in offers.iter().rev() {
            let receipt: Option<Receipt> =
                ask(&*self.chain, "eth_getTransactionReceipt", [offer.hash]).await?;
            if let Some(receipt) = receipt {
                return Ok(Some((offer.clone(), receipt)));
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

/// The limit for a call whose gas was estimated: what it does may change until it is mined.
fn with_room(gas: u64) -> u64 {
    gas.saturating_add(gas / 5)
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
