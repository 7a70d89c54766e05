//! What is known of the transactions of one chain that are not over for everybody: the one that hangs, and those with a key whose
//! callers were not told yet, or have not said that they are done.
//!
//! It is written down ([`Memory`]) before anything is sent, and read back by the first that needs it.

use std::{sync::Arc, time::Duration};

use alloy::primitives::{Address, B256, Bytes, Keccak256};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{MappedMutexGuard, Mutex, MutexGuard},
    time::timeout,
};

use super::{Call, Receipt};
use crate::chains::{error::ChainError, fees::Fees};

/// Offers with one number whose receipts are looked for.
const REMEMBERED: usize = 16;

/// Receipts that are kept for callers that have not said that they are done. Whoever asks has few calls under way.
const KEPT: usize = 64;

/// For a look at the sequence while somebody sends.
const LOOK_WAITS: Duration = Duration::from_secs(10);

/// Where it is written down what hangs on a chain, so that it outlives the process. One text for each chain.
#[async_trait]
pub trait Memory: Send + Sync + 'static {
    /// What was written last, if anything.
    async fn recall(&self, chain: &str) -> Result<Option<String>, MemoryError>;

    /// Returns when it is safe.
    async fn remember(&self, chain: &str, text: String) -> Result<(), MemoryError>;
}

/// For whoever sends nothing that matters after it has ended.
pub struct NoMemory;

#[async_trait]
impl Memory for NoMemory {
    async fn recall(&self, _: &str) -> Result<Option<String>, MemoryError> {
        Ok(None)
    }

    async fn remember(&self, _: &str, _: String) -> Result<(), MemoryError> {
        Ok(())
    }
}

/// What hangs cannot be written down or read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MemoryError(pub String);

/// The transactions of one chain, in order. Held by one caller at a time.
pub struct Sequence {
    memory: Arc<dyn Memory>,
    /// Absent until it was read back.
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    hanging: Option<Hanging>,
    #[serde(default)]
    finished: Vec<Finished>,
}

/// A transaction that was sent, or nearly, and of which it is not known yet what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hanging {
    pub chain_id: u64,
    pub from: Address,
    pub nonce: u64,
    pub call: Call,
    pub gas_limit: u64,
    pub fees: Fees,
    pub raw: Bytes,
    /// All that were signed with this number, the latest last. Some may be of other calls, whose place this one is to take.
    pub offers: Vec<Offer>,
    /// The latest block when it was sent.
    pub block: u64,
}

/// A transaction that was signed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Offer {
    pub hash: B256,
    pub identity: B256,
    pub key: Option<String>,
}

/// A call with a key that was mined.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Finished {
    chain_id: u64,
    identity: B256,
    key: String,
    receipt: Receipt,
}

/// What tells a call from others, whatever is offered for it.
pub(super) fn identity(call: &Call) -> B256 {
    let mut hash = Keccak256::new();
    hash.update(call.to);
    hash.update(call.value_wei.to_be_bytes::<32>());
    let key = call.key.as_deref().unwrap_or_default();
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(&call.data);
    hash.finalize()
}

impl Hanging {
    pub fn identity(&self) -> B256 {
        identity(&self.call)
    }

    /// Of the latest offer.
    pub fn hash(&self) -> B256 {
        self.offers.last().map(|offer| offer.hash).unwrap_or_default()
    }

    pub fn own_offers(&self) -> Vec<Offer> {
        let identity = self.identity();
        self.offers.iter().filter(|offer| offer.identity == identity).cloned().collect()
    }
}

impl Offer {
    /// All with one number, this one being the next.
    pub fn after(before: Option<&Hanging>, call: &Call, hash: B256) -> Vec<Offer> {
        let mut offers = before.map(|before| before.offers.clone()).unwrap_or_default();
        offers.push(Offer { hash, identity: identity(call), key: call.key.clone() });
        offers.drain(..offers.len().saturating_sub(REMEMBERED));
        offers
    }
}

impl Sequence {
    pub fn new(memory: Arc<dyn Memory>) -> Self {
        Self { memory, known: Mutex::new(None) }
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// What hangs cannot be read back.
    pub(super) async fn open<'a>(&'a self, chain: &'a str) -> Result<Journal<'a>, ChainError> {
        let mut known = self.known.lock().await;
        if known.is_none() {
            let read = self.memory.recall(chain).await.map_err(|error| unsafe_now(chain, error))?;
            let read = read.and_then(|text| {
                serde_json::from_str(&text)
                    .inspect_err(|error| {
                        tracing::error!(
                            chain,
                            "what was under way on the chain {chain} cannot be read and is forgotten: {error}"
                        );
                    })
                    .ok()
            });
            *known = Some(read.unwrap_or_default());
        }
        let known = MutexGuard::map(known, Option::get_or_insert_default);
        Ok(Journal { chain, memory: &*self.memory, known })
    }

    /// Was the call with this key signed, and is its receipt still to come, or to be taken?
    ///
    /// # Errors
    /// Somebody else is sending, or what hangs cannot be read back.
    pub async fn has_under_way(&self, chain: &str, key: &str) -> Result<bool, ChainError> {
        let journal = self.look(chain).await?;
        let has = |offer: &Offer| offer.key.as_deref() == Some(key);
        Ok(journal.known.hanging.as_ref().is_some_and(|hanging| hanging.offers.iter().any(has))
            || journal.known.finished.iter().any(|finished| finished.key == key))
    }

    /// Its caller has written down what came of the call with this key, and does not ask for it again.
    pub async fn forget(&self, chain: &str, key: &str) {
        // One that is kept for longer does no harm.
        if let Ok(mut journal) = self.look(chain).await {
            let mut known = journal.known.clone();
            let before = known.finished.len();
            known.finished.retain(|finished| finished.key != key);
            if known.finished.len() != before {
                journal.replace(known).await;
            }
        }
    }

    async fn look<'a>(&'a self, chain: &'a str) -> Result<Journal<'a>, ChainError> {
        let late = |_| ChainError::Late { chain: chain.to_owned(), waited: LOOK_WAITS };
        timeout(LOOK_WAITS, self.open(chain)).await.map_err(late)?
    }
}

/// A sequence that was read back, held.
pub(super) struct Journal<'a> {
    chain: &'a str,
    memory: &'a dyn Memory,
    known: MappedMutexGuard<'a, Known>,
}

impl Journal<'_> {
    pub fn hanging(&self) -> Option<&Hanging> {
        self.known.hanging.as_ref()
    }

    /// What came of a call with a key on this chain.
    pub fn finished(&self, call: &Call, chain_id: u64) -> Option<&Receipt> {
        let key = call.key.as_deref()?;
        let identity = identity(call);
        let mut same = self.known.finished.iter().filter(|finished| {
            finished.key == key && finished.identity == identity && finished.chain_id == chain_id
        });
        same.next().map(|finished| &finished.receipt)
    }

    /// This hangs from now on. Written down when this returns.
    ///
    /// # Errors
    /// It cannot be written down, and may not be sent; what hung before does.
    pub async fn hold(&mut self, hanging: Option<Hanging>) -> Result<(), ChainError> {
        let before = self.known.clone();
        let known = Known { hanging, ..before.clone() };
        // Known before it is written: who is cut off in here may have left it on the disk.
        *self.known = known.clone();
        self.write(&known).await.inspect_err(|_| *self.known = before)
    }

    /// Nothing hangs any more.
    pub async fn clear(&mut self) {
        let known = Known { hanging: None, ..self.known.clone() };
        self.replace(known).await;
    }

    /// One with the number of what hangs was mined.
    pub async fn finish(&mut self, offer: &Offer, chain_id: u64, receipt: &Receipt) {
        let mut known = Known { hanging: None, ..self.known.clone() };
        if let Some(key) = &offer.key {
            let (identity, key, receipt) = (offer.identity, key.clone(), receipt.clone());
            known.finished.push(Finished { chain_id, identity, key, receipt });
            let too_many = known.finished.len().saturating_sub(KEPT);
            known.finished.drain(..too_many);
        }
        self.replace(known).await;
    }

    /// What is over is over, written down or not: where it could not be, the next start finds its receipt.
    async fn replace(&mut self, known: Known) {
        let written = self.write(&known).await;
        *self.known = known;
        if let Err(error) = written {
            tracing::warn!(chain = self.chain, "{error}");
        }
    }

    async fn write(&self, known: &Known) -> Result<(), ChainError> {
        let text = serde_json::to_string(known).map_err(|error| MemoryError(error.to_string()));
        let written = match text {
            Ok(text) => self.memory.remember(self.chain, text).await,
            Err(error) => Err(error),
        };
        written.map_err(|error| unsafe_now(self.chain, error))
    }
}

fn unsafe_now(chain: &str, MemoryError(reason): MemoryError) -> ChainError {
    ChainError::Memory { chain: chain.to_owned(), reason }
}
