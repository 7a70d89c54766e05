//! Who asks: requests that carry the signature of an Ethereum key, and why none of them counts twice.
//!
//! Whoever signs a request proves to be an address; what such a request makes belongs to that address (see
//! [`crate::vms::Ownership`]). There are no accounts and no sessions: each request is signed for itself, for one provider, and
//! counts once, within a minute.
//!
//! ```text
//! statement    the text that is signed: what is asked, of whom, when       ┐
//! credentials  how the signature travels, one line; making and checking it ├ values in, values out
//! nonces       which have been used, for as long as one could be replayed  ┘
//! gatekeeper   these three with a clock and the store: may this request count?
//! ```
//!
//! The gatekeeper calls `store`, the rest calls nothing. Called by `api`, by the composition root, and by `cli`, which signs with
//! the same code that is checked with.

mod credentials;
mod gatekeeper;
mod nonces;
mod statement;

pub use alloy::primitives::Address;

pub use credentials::{Credentials, Malformed, SCHEME, Unproven, address};
pub use gatekeeper::{Gatekeeper, Refused};
pub use nonces::{FRESH_FOR, is_fresh};
pub use statement::{Asked, InvalidNonce, Nonce, Statement};
