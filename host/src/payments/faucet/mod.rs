//! Test money: a faucet gives some to whoever has done a piece of work, which a captcha server hands out and checks.
//!
//! ```text
//! challenge ──► puzzles solved ──► redeemed for a token ──► the faucet sends money to the address
//! ```
//!
//! [`Faucet::request`] asks; the puzzles are solved on threads of their own, which end with the question. No error shows the
//! captcha's key.

mod captcha;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use alloy::primitives::{Address, U256};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use self::captcha::{CaptchaError, Challenge};
use crate::{
    http_client::{self, AskError},
    settings::Secret,
};

/// For one question; a faucet may wait for its chain.
const DEADLINE: Duration = Duration::from_secs(60);
/// For all puzzles. Two processors take five seconds for the usual ones.
const SOLVE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// A challenge of fifty puzzles has three thousand.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
const MAX_HASH_CHARS: usize = 80;

/// Whoever has more than this, 0.01 ETH, needs no test money.
pub const ENOUGH_WEI: U256 = U256::from_limbs([10_000_000_000_000_000, 0, 0, 0]);

/// A faucet, and the captcha server before it.
pub struct Faucet {
    client: Client,
    faucet: Url,
    challenge: Url,
    redeem: Url,
}

/// What is being done, for whoever waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many puzzles are to be solved.
    Puzzles(usize),
    /// One more is.
    Solved,
    /// The faucet is asked.
    Asking,
}

/// There is no money.
#[derive(Debug, thiserror::Error)]
pub enum FaucetError {
    #[error("the URL of the {0} is none")]
    Url(&'static str),
    #[error("the captcha server: {0}")]
    CaptchaServer(#[source] AskError),
    #[error(transparent)]
    Captcha(#[from] CaptchaError),
    #[error("the captcha server does not accept the solutions{0}")]
    NotRedeemed(String),
    #[error("the faucet: {0}")]
    Faucet(#[source] AskError),
    #[error("the faucet's answer names no transaction")]
    NoTransaction,
}

#[derive(Deserialize)]
struct Redeemed {
    success: bool,
    token: Option<String>,
    message: Option<String>,
}

/// Stops the threads of a question that nobody waits for any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Faucet {
    /// # Errors
    /// A URL is none.
    pub fn new(
        faucet: &str,
        captcha: &str,
        captcha_key: Option<&Secret>,
    ) -> Result<Self, FaucetError> {
        let url = |base: &str, path: &str, what| {
            let text = format!("{}{path}", base.trim_end_matches('/'));
            Url::parse(&text).map_err(|_| FaucetError::Url(what))
        };
        let captcha = match captcha_key {
            Some(key) => format!("{}/{}", captcha.trim_end_matches('/'), key.expose()),
            None => captcha.to_owned(),
        };
        Ok(Self {
            client: http_client::client(DEADLINE).map_err(FaucetError::Faucet)?,
            faucet: url(faucet, "/api/faucet", "faucet")?,
            challenge: url(&captcha, "/api/challenge", "captcha server")?,
            redeem: url(&captcha, "/api/redeem", "captcha server")?,
        })
    }

    /// Asks for money for this address. Gives the transaction that brings it, which may not have been mined yet.
    ///
    /// # Errors
    /// See [`FaucetError`].
    pub async fn request(
        &self,
        address: Address,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<String, FaucetError> {
        let progress = Arc::new(progress);
        let answer = self.ask(&self.challenge, None).await.map_err(FaucetError::CaptchaServer)?;
        let challenge = Challenge::read(&answer)?;
        progress(Progress::Puzzles(challenge.len()));
        let redemption = solve(challenge, Arc::clone(&progress)).await?;
        let answer =
            self.ask(&self.redeem, Some(redemption)).await.map_err(FaucetError::CaptchaServer)?;
        let token = match serde_json::from_slice(&answer) {
            Ok(Redeemed { success: true, token: Some(token), .. }) => token,
            Ok(Redeemed { message, .. }) => {
                let why = message.map(|message| format!(": {}", http_client::one_line(&message)));
                return Err(FaucetError::NotRedeemed(why.unwrap_or_default()));
            }
            Err(_) => return Err(CaptchaError::Malformed.into()),
        };
        progress(Progress::Asking);
        let wish = json!({ "address": address.to_checksum(None), "captchaToken": token });
        let answer = self.ask(&self.faucet, Some(wish)).await.map_err(FaucetError::Faucet)?;
        transaction(&answer).ok_or(FaucetError::NoTransaction)
    }

    async fn ask(&self, url: &Url, body: Option<Value>) -> Result<Vec<u8>, AskError> {
        let mut request = self.client.post(url.clone());
        if let Some(body) = body {
            request = request.json(&body);
        }
        http_client::ask(request, MAX_ANSWER_BYTES).await
    }
}

async fn solve(
    challenge: Challenge,
    progress: Arc<impl Fn(Progress) + Send + Sync + 'static>,
) -> Result<Value, CaptchaError> {
    let stop = StopOnDrop(Arc::default());
    let stopped = Arc::clone(&stop.0);
    let solving = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + SOLVE_DEADLINE;
        let nonces = challenge.solve(deadline, &stopped, &|| progress(Progress::Solved))?;
        Ok(challenge.redemption(&nonces))
    });
    let solved = solving.await.map_err(|_| CaptchaError::BrokenOff)?;
    drop(stop);
    solved
}

/// The hash in a faucet's answer; different ones call it differently.
fn transaction(answer: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let hash = ["txHash", "tx", "hash"].iter().find_map(|key| answer[key].as_str())?;
    let plain = hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (plain && !hash.is_empty() && hash.len() <= MAX_HASH_CHARS).then(|| hash.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transaction_is_found_under_each_of_its_names() {
        for key in ["txHash", "tx", "hash"] {
            let answer = json!({ key: "0x12ab" }).to_string();
            assert_eq!(transaction(answer.as_bytes()).as_deref(), Some("0x12ab"));
        }
        for answer in ["", "[]", r#"{"hash":1}"#, r#"{"hash":"\u001b[31m"}"#, r#"{"tx":""}"#] {
            assert_eq!(transaction(answer.as_bytes()), None, "{answer}");
        }
    }
}
