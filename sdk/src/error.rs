//! Why a call failed, as the provider understands it.

pub use crate::bindings::golem::provider::types::Error;

/// What every fallible function of the contract answers.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// The text for people, whatever the kind.
    pub fn message(&self) -> &str {
        match self {
            Self::NotFound(text)
            | Self::AlreadyExists(text)
            | Self::InvalidArgument(text)
            | Self::FailedPrecondition(text)
            | Self::ResourceExhausted(text)
            | Self::Unavailable(text)
            | Self::DeadlineExceeded(text)
            | Self::PermissionDenied(text)
            | Self::Unsupported(text)
            | Self::Internal(text) => text,
        }
    }

    /// The same kind of error, with what was being done in front of its text.
    #[must_use]
    pub fn context(mut self, doing: impl core::fmt::Display) -> Self {
        match &mut self {
            Self::NotFound(text)
            | Self::AlreadyExists(text)
            | Self::InvalidArgument(text)
            | Self::FailedPrecondition(text)
            | Self::ResourceExhausted(text)
            | Self::Unavailable(text)
            | Self::DeadlineExceeded(text)
            | Self::PermissionDenied(text)
            | Self::Unsupported(text)
            | Self::Internal(text) => *text = format!("{doing}: {text}"),
        }
        self
    }
}
