//! The provider and money: its identity on the chain ([`wallet`]), test money ([`faucet`]), and what machines cost
//! ([`pricing`]). What it has on a chain is asked of `chains`.
//!
//! It is built from the settings and called by the composition root, by `cli`, and for what it knows by `api` and `admin`. It
//! calls `store`, and nothing further out.

pub mod faucet;
pub mod pricing;
pub mod streams;
pub mod wallet;

pub use wallet::{Wallet, WalletError};
