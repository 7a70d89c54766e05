//! What the provider is paid by: so far its identity on the chain, in [`wallet`].
//!
//! It is built from the settings and called by the composition root and, for what it knows, by `api`. It calls nothing
//! further out.

pub mod wallet;

pub use wallet::{Wallet, WalletError};
