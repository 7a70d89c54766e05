//! `evm`: questions to the chains that the operator configured.

use std::time::Duration;

use tokio::time::timeout;

use super::ethereum::{ChainFailure, RpcRefusal};
use crate::plugins::{
    bindings::{
        Error,
        golem::provider::evm::{Failure, Host, RpcError},
    },
    call::CallState,
    failure::{self, FailureKind},
    limits::{EVM_REQUESTS, HTTP_BODY_BYTES, TEXT_BYTES},
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
        self.plugin
            .grants
            .evm(&chain, &method)
            .map_err(|refused| Failure::Provider(refused.into()))?;
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

    async fn request_all(
        &mut self,
        chain: String,
        requests: Vec<(String, String)>,
    ) -> Result<Vec<Result<String, RpcError>>, Error> {
        if requests.is_empty() || requests.len() > EVM_REQUESTS {
            return Err(Error::InvalidArgument(format!(
                "{} questions at once to the chain {chain}, where there may be 1 to {EVM_REQUESTS}",
                requests.len()
            )));
        }
        for (method, _) in &requests {
            self.plugin.grants.evm(&chain, method)?;
        }
        let asking = self.plugin.services.ethereum.request_all(&chain, &requests);
        let answers = timeout(REQUEST, asking).await.map_err(|_| {
            Error::Unavailable(format!(
                "no node of {chain} answered {} questions within {} s",
                requests.len(),
                REQUEST.as_secs()
            ))
        })??;
        let bytes: usize = answers.iter().flatten().map(String::len).sum();
        if bytes > HTTP_BODY_BYTES {
            return Err(Error::ResourceExhausted(format!(
                "the node of {chain} answers with {bytes} bytes, of which {HTTP_BODY_BYTES} are taken; ask less at once"
            )));
        }
        Ok(answers.into_iter().map(|answer| answer.map_err(RpcError::from)).collect())
    }
}

impl From<EvmRefused> for Error {
    fn from(refused: EvmRefused) -> Self {
        match refused {
            EvmRefused::NotGranted(refused) => refused.into(),
            EvmRefused::Method(text) => Self::PermissionDenied(text),
        }
    }
}

impl From<RpcRefusal> for RpcError {
    fn from(RpcRefusal { code, message, data }: RpcRefusal) -> Self {
        Self { code, message: text::plain(&message, TEXT_BYTES), data }
    }
}

impl From<ChainFailure> for Failure {
    fn from(failure: ChainFailure) -> Self {
        match failure {
            ChainFailure::Rpc(refusal) => Self::Rpc(refusal.into()),
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
