//! The provider and money: its identity on the chain ([`wallet`]), what it has there ([`chain`]), test money ([`faucet`]), and
//! what machines cost ([`pricing`]). [`http`] is how servers of others are asked.
//!
//! It is built from the settings and called by the composition root, by `cli`, and for what it knows by `api` and `admin`. It
//! calls `store`, and nothing further out.

pub mod chain;
pub mod faucet;
pub mod http;
pub mod pricing;
pub mod wallet;

pub use wallet::{Wallet, WalletError};
