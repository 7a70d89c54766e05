//! Streams that machines are paid by.
//!
//! ```text
//! verifiers   which plugin reads the contract
//! funding     what a stream is worth at a moment        ┐ pure
//! verdict     may a machine start, must it stop         ┘
//! model       what is kept of a stream
//! ```

pub mod funding;
pub mod model;
pub mod verdict;
mod verifiers;

pub use model::{
    PaymentStatus, Payout, PayoutKind, PayoutState, Stream, StreamKey, Suspension, Ticket,
};
pub use verdict::PaymentState;
pub use verifiers::{NoVerifier, Verifiers};
