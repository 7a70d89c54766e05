//! Randomness fit for keys.

pub use crate::bindings::golem::provider::random::bytes;
