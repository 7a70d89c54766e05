//! Ethereum chains that the operator configured.

pub use crate::bindings::golem::provider::evm::{Failure, RpcError};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, bindings::golem::provider::evm as import};

/// The chain that providers are listed on.
pub const GOLEM_BASE: &str = "golem-base";

/// The chain that providers are paid on.
pub const PAYMENTS: &str = "payments";

/// Asks a node. `params` becomes a JSON array: give a tuple or a slice. Grant: `evm`.
///
/// # Errors
/// [`Failure::Rpc`] when a node answered with an error, [`Failure::Provider`] when none answered as it should.
pub fn request<T: DeserializeOwned>(
    chain: &str,
    method: &str,
    params: impl Serialize,
) -> Result<T, Failure> {
    let params = serde_json::to_string(&params)
        .map_err(|error| Error::Internal(format!("the parameters of {method}: {error}")))?;
    let answer = import::request(chain, method, &params)?;
    serde_json::from_str(&answer).map_err(|error| {
        let text = format!("the node of {chain} answers {method} with something else: {error}");
        Failure::Provider(Error::Unavailable(text))
    })
}

/// Asks one node several things at once. The `params` are JSON arrays; answers come in the order of the questions.
///
/// # Errors
/// When no node answered as it should. What a node answers to one question as an error stands in its place.
pub fn request_all(
    chain: &str,
    requests: &[(&str, serde_json::Value)],
) -> crate::Result<Vec<Result<serde_json::Value, RpcError>>> {
    let requests: Vec<(String, String)> = requests
        .iter()
        .map(|(method, params)| ((*method).to_owned(), params.to_string()))
        .collect();
    let answers = import::request_all(chain, &requests)?;
    let read = |answer: String| {
        serde_json::from_str(&answer).map_err(|error| {
            Error::Unavailable(format!("the node of {chain} answers with something else: {error}"))
        })
    };
    answers
        .into_iter()
        .map(|answer| match answer {
            Ok(answer) => read(answer).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        })
        .collect()
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Provider(error)
    }
}

/// For callers to whom the node's refusal is one more reason not to go on.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Provider(error) => error,
            Failure::Rpc(RpcError { code, message, .. }) => {
                Self::Unavailable(format!("the node refuses: {message} (code {code})"))
            }
        }
    }
}
