//! Whether a signed request counts: fresh by this computer's clock, signed by whom it says, and never seen before.
//!
//! Used nonces are in the database too, so that a restart makes none of them fresh. A request that changes something waits until its
//! nonce is there; one that only reads does not wait, as no read waits for the disk. All the same it is written before
//! the provider ends, unless that crashes within the same moment.

use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::Address;
use jiff::Timestamp;

use super::{
    credentials::{Credentials, Unproven},
    nonces::{FRESH_FOR, Nonces, Unusable, is_fresh},
    statement::Asked,
};
use crate::store::{Store, StoreError, UsedNonce};

/// Lets signed requests in, each once. Clones are the same.
#[derive(Clone)]
pub struct Gatekeeper(Arc<Inner>);

struct Inner {
    /// Whom requests have to be signed for.
    provider: Address,
    store: Store,
    nonces: Mutex<Nonces>,
}

/// Why a signed request does not count.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the request was signed at {signed}, and it is {now} here; a signature counts for {} s to either side, so sign the \
         request anew, with a clock that is right",
        FRESH_FOR.as_secs()
    )]
    Stale { signed: u64, now: u64 },
    #[error(
        "the signature is not that of {address} for this request at the provider {provider}; what is signed is method, path with \
         query, body, time and nonce, exactly as they are sent"
    )]
    Unproven { address: Address, provider: Address },
    #[error(
        "a request with this nonce has been answered already; sign each request anew, with another nonce"
    )]
    Replayed,
    #[error("too many signed requests; there is room again in {retry_after_seconds} s")]
    NoRoom { retry_after_seconds: u64 },
    #[error("the provider could not write its database: {0}")]
    Store(#[from] StoreError),
}

impl Gatekeeper {
    /// For the provider of this address.
    ///
    /// # Errors
    /// What was used before cannot be read.
    pub async fn open(provider: Address, store: Store) -> Result<Self, StoreError> {
        let used = store.used_nonces().await?.into_iter();
        let used = used.map(|UsedNonce { address, nonce, timestamp }| (address, nonce, timestamp));
        let nonces = Mutex::new(Nonces::restored(used));
        Ok(Self(Arc::new(Inner { provider, store, nonces })))
    }

    /// Whom requests have to be signed for.
    pub fn provider(&self) -> Address {
        self.0.provider
    }

    /// Whether a request counts; if it does, it never will again. `changes`: it is more than a question.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn admit(
        &self,
        credentials: Credentials,
        asked: Asked<'_>,
        changes: bool,
    ) -> Result<Address, Refused> {
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        let stale = Refused::Stale { signed: credentials.timestamp, now };
        // Cheaper than the signature.
        if !is_fresh(credentials.timestamp, now) {
            return Err(stale);
        }
        let Inner { provider, store, nonces } = &*self.0;
        let unproven =
            |Unproven| Refused::Unproven { address: credentials.address, provider: *provider };
        // On this thread: it takes less than handing it to another would in the worst case, and clients have a limit.
        credentials.check(*provider, asked).map_err(unproven)?;
        let Credentials { address, nonce, timestamp, .. } = credentials;
        {
            let mut nonces = nonces.lock().unwrap_or_else(PoisonError::into_inner);
            nonces.use_up(address, nonce.clone(), timestamp, now).map_err(|why| match why {
                Unusable::Stale => stale,
                Unusable::Used => Refused::Replayed,
                Unusable::NoRoom { retry_after } => {
                    Refused::NoRoom { retry_after_seconds: retry_after.as_secs() }
                }
            })?;
        }
        let used = UsedNonce { address, nonce, timestamp };
        let over = now.saturating_sub(FRESH_FOR.as_secs());
        if changes {
            store.keep_nonce(used, over).await?;
        } else {
            store.keep_nonce_soon(used, over);
        }
        Ok(address)
    }
}
