//! The provider's durable state.

mod error;

pub use error::StoreError;
