//! Why a plugin did not do what was asked, whatever its kind. Mirrors `types.error` of `wit/types.wit`.

/// Why a plugin could not do what was asked, with a message for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

/// The variants of `types.error` in `wit/types.wit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    DeadlineExceeded,
    PermissionDenied,
    Unsupported,
    Internal,
}

impl FailureKind {
    /// As the contract calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::InvalidArgument => "invalid-argument",
            Self::FailedPrecondition => "failed-precondition",
            Self::ResourceExhausted => "resource-exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::PermissionDenied => "permission-denied",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal",
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
