//! (being built)

pub mod proxy;
