//! `evm`: questions to the chains that the operator configured.

use std::time::Duration;

use tokio::time::timeout;

use super::ethereum::ChainFailure;
use crate::plugins::{
    bindings::{
        Error,
        golem::provider::evm::{Failure, Host, RpcError},
    },
    call::CallState,
    failure::{self, FailureKind},
    limits::{HTTP_BODY_BYTES, TEXT_BYTES},
    manifest::EvmRefused,
    text,
};

/// Retries on other nodes included.
const REQUEST: Duration = Duration::from_secs(30);

impl Host for CallState {
    async fn request(
        &mut self,
        chain: String,
        method: String,
        params: String,
    ) -> Result<String, Failure> {
        self.plugin.grants.evm(&chain, &method).map_err(|refused| match refused {
            EvmRefused::NotGranted(refused) => Failure::Provider(refused.into()),
            EvmRefused::Method(text) => Failure::Provider(Error::PermissionDenied(text)),
        })?;
        let asking = self.plugin.services.ethereum.request(&chain, &method, &params);
        let answer = timeout(REQUEST, asking).await.map_err(|_| {
            Failure::Provider(Error::Unavailable(format!(
                "no node of {chain} answered {method} within {} s",
                REQUEST.as_secs()
            )))
        })??;
        if answer.len() > HTTP_BODY_BYTES {
            return Err(Failure::Provider(Error::ResourceExhausted(format!(
                "the node of {chain} answers {method} with {} bytes, of which {HTTP_BODY_BYTES} are taken",
                answer.len()
            ))));
        }
        Ok(answer)
    }
}

impl From<ChainFailure> for Failure {
    fn from(failure: ChainFailure) -> Self {
        match failure {
            ChainFailure::Rpc { code, message, data } => {
                Self::Rpc(RpcError { code, message: text::plain(&message, TEXT_BYTES), data })
            }
            ChainFailure::Provider(failure) => Self::Provider(failure.into()),
        }
    }
}

impl From<failure::Failure> for Error {
    fn from(failure: failure::Failure) -> Self {
        let text = failure.message;
        match failure.kind {
            FailureKind::NotFound => Self::NotFound(text),
            FailureKind::AlreadyExists => Self::AlreadyExists(text),
            FailureKind::InvalidArgument => Self::InvalidArgument(text),
            FailureKind::FailedPrecondition => Self::FailedPrecondition(text),
            FailureKind::ResourceExhausted => Self::ResourceExhausted(text),
            FailureKind::Unavailable => Self::Unavailable(text),
            FailureKind::DeadlineExceeded => Self::DeadlineExceeded(text),
            FailureKind::PermissionDenied => Self::PermissionDenied(text),
            FailureKind::Unsupported => Self::Unsupported(text),
            FailureKind::Internal => Self::Internal(text),
        }
    }
}
