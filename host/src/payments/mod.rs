//! The provider and money: its identity on the chain ([`wallet`]), test money ([`faucet`]), what machines cost ([`pricing`]), and
//! how they are paid for ([`streams`]). What it has on a chain is asked of `chains`.
//!
//! It is built from the settings and called by the composition root, by `cli`, and for what it knows by `api`, `admin` and `status`;
//! `vms` and `store` know what it keeps of a stream as values. It calls `store`, `chains` and the traits of `plugins`, and nothing
//! further out.

pub mod faucet;
pub mod pricing;
pub mod streams;
pub mod wallet;

pub use wallet::{Wallet, WalletError};
