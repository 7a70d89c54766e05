//! What the provider has on a chain: one question at a time, each with a deadline.
//!
//! The URL of a node often has a key in it, so no error shows it, nor what a node says beyond a line.

use std::time::Duration;

use alloy::{
    network::TransactionBuilder,
    primitives::{Address, Bytes, U256},
    providers::{Provider, ProviderBuilder, RootProvider},
    rpc::types::TransactionRequest,
    transports::{RpcError, TransportErrorKind},
};
use reqwest::Url;

use super::http::{self, AskError};
use crate::settings::Secret;

/// For one question.
const DEADLINE: Duration = Duration::from_secs(15);

/// `balanceOf(address)` of an ERC-20 token.
const BALANCE_OF: [u8; 4] = [0x70, 0xa0, 0x82, 0x31];

/// A node of a chain.
pub struct Chain(RootProvider);

/// A node did not say what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("the node's URL is none")]
    Url,
    #[error("the node: {0}")]
    Ask(#[from] AskError),
    #[error("the node answers with an error: {0}")]
    Refused(String),
    #[error("the node's answer is not what was asked for")]
    Malformed,
    #[error("there is no token at {0} on this chain")]
    NoToken(Address),
}

impl Chain {
    /// # Errors
    /// The URL is none. Nothing is asked yet.
    pub fn new(url: &Secret) -> Result<Self, ChainError> {
        let url = Url::parse(url.expose()).map_err(|_| ChainError::Url)?;
        let client = http::client(DEADLINE)?;
        let provider = ProviderBuilder::new().disable_recommended_fillers();
        Ok(Self(provider.connect_reqwest(client, url)))
    }

    /// The chain's number.
    ///
    /// # Errors
    /// See [`ChainError`]; so for every call here.
    pub async fn id(&self) -> Result<u64, ChainError> {
        self.0.get_chain_id().await.map_err(reason)
    }

    /// What an address has of the chain's own coin, in wei.
    pub async fn balance_wei(&self, address: Address) -> Result<U256, ChainError> {
        self.0.get_balance(address).await.map_err(reason)
    }

    /// What an address has of a token, in its smallest part.
    pub async fn token_balance_wei(
        &self,
        token: Address,
        address: Address,
    ) -> Result<U256, ChainError> {
        let mut call = BALANCE_OF.to_vec();
        call.extend_from_slice(address.into_word().as_slice());
        let request = TransactionRequest::default().with_to(token).with_input(Bytes::from(call));
        let answer = self.0.call(request).latest().await.map_err(reason)?;
        match answer.len() {
            // Where there is no contract, a call succeeds with nothing.
            0 => Err(ChainError::NoToken(token)),
            32 => Ok(U256::from_be_slice(&answer)),
            _ => Err(ChainError::Malformed),
        }
    }
}

fn reason(error: RpcError<TransportErrorKind>) -> ChainError {
    match error {
        RpcError::ErrorResp(payload) => {
            ChainError::Refused(format!("{} ({})", http::one_line(&payload.message), payload.code))
        }
        RpcError::Transport(kind) => match kind {
            TransportErrorKind::HttpError(error)
            | TransportErrorKind::HttpErrorWithRetryAfter { error, .. } => AskError::Status {
                status: reqwest::StatusCode::from_u16(error.status)
                    .unwrap_or(reqwest::StatusCode::BAD_GATEWAY),
                said: http::one_line(&error.body),
            }
            .into(),
            TransportErrorKind::Custom(error) | TransportErrorKind::NonRetryable(error) => {
                match error.downcast::<reqwest::Error>() {
                    Ok(error) => http::reason(*error).into(),
                    Err(_) => AskError::BrokenOff.into(),
                }
            }
            _ => AskError::BrokenOff.into(),
        },
        _ => ChainError::Malformed,
    }
}

/// An amount with 18 digits after the point, such as wei as ETH, without zeros at its end.
pub fn in_whole(wei: U256) -> String {
    let unit = U256::from(1_000_000_000_000_000_000_u64);
    let (whole, rest) = wei.div_rem(unit);
    let rest = format!("{:0>18}", rest.to_string());
    match rest.trim_end_matches('0') {
        "" => whole.to_string(),
        digits => format!("{whole}.{digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_shown_to_the_last_wei() {
        for (wei, shown) in [
            ("0", "0"),
            ("1", "0.000000000000000001"),
            ("1000000000000000000", "1"),
            ("10000000000000000", "0.01"),
            ("10000500000000000000001", "10000.500000000000000001"),
        ] {
            assert_eq!(in_whole(wei.parse().unwrap()), shown);
        }
        assert!(
            in_whole(U256::MAX)
                .starts_with("115792089237316195423570985008687907853269984665640564039457.")
        );
    }
}
