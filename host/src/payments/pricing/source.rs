//! Asks a server that answers as CoinGecko does: `GET {url}/simple/price?ids=golem,…&vs_currencies=usd`, answered by
//! `{"golem": {"usd": 0.25}}`.
//!
//! The number is taken as it is written, never through a float.

use std::{collections::BTreeMap, time::Duration};

use reqwest::Url;
use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::{MAX_USD_PER_GLM, MIN_USD_PER_GLM};
use crate::{
    http_client::{self, AskError},
    settings::PriceSourceSettings,
};

/// From the question to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// An answer has fifty.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// More digits than any price has.
const MAX_NUMBER_BYTES: usize = 40;

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct PriceSource {
    client: reqwest::Client,
    question: Url,
    name: String,
    ids: Vec<String>,
}

/// There is no price.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the answer is not what was asked for")]
    Malformed,
    #[error("the answer has no price of {}", .0.join(" or "))]
    Absent(Vec<String>),
    #[error("the answer says {said}, which cannot be the price of GLM in USD")]
    Absurd { said: String },
}

impl PriceSource {
    /// # Errors
    /// The URL is none, or no client can be made.
    pub fn new(settings: &PriceSourceSettings) -> Result<Self, SourceError> {
        let base = settings.url.trim_end_matches('/');
        let mut question =
            Url::parse(&format!("{base}/simple/price")).map_err(|_| SourceError::Malformed)?;
        question
            .query_pairs_mut()
            .append_pair("ids", &settings.ids.join(","))
            .append_pair("vs_currencies", "usd");
        Ok(Self {
            client: http_client::client(DEADLINE)?,
            // Neither a path nor a password in it is anybody's business.
            name: question.origin().ascii_serialization(),
            question,
            ids: settings.ids.clone(),
        })
    }

    /// What it is called where its answers are shown: its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a GLM costs in USD: the price of the first id that has a possible one.
    ///
    /// # Errors
    /// None comes in time, or the answer is no price.
    pub async fn usd_per_glm(&self) -> Result<Decimal, SourceError> {
        let request = self.client.get(self.question.clone());
        let answer = http_client::ask(request, MAX_ANSWER_BYTES).await?;
        read(&answer, &self.ids)
    }
}

fn read(answer: &[u8], ids: &[String]) -> Result<Decimal, SourceError> {
    let answer: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(answer).map_err(|_| SourceError::Malformed)?;
    let mut absurd = None;
    for id in ids {
        let prices = answer.get(id).and_then(|prices| {
            serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(prices.get()).ok()
        });
        let Some(said) = prices.as_ref().and_then(|prices| prices.get("usd")) else { continue };
        match number(said.get()) {
            Some(price) if (MIN_USD_PER_GLM..=MAX_USD_PER_GLM).contains(&price) => {
                return Ok(price);
            }
            _ => {
                absurd =
                    absurd.or_else(|| Some(said.get().chars().take(MAX_NUMBER_BYTES).collect()))
            }
        }
    }
    Err(match absurd {
        Some(said) => SourceError::Absurd { said },
        None => SourceError::Absent(ids.to_vec()),
    })
}

/// A JSON number, exactly.
fn number(text: &str) -> Option<Decimal> {
    if text.len() > MAX_NUMBER_BYTES || text.starts_with('"') {
        return None;
    }
    let number = match text.contains(['e', 'E']) {
        true => Decimal::from_scientific(text).ok()?,
        // More digits than fit are rounded in the last one.
        false => text.parse().ok()?,
    };
    Some(number.normalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(answer: &str) -> Result<String, String> {
        let ids = ["golem".to_owned(), "golem-network-tokens".to_owned()];
        let price = read(answer.as_bytes(), &ids);
        price.map(|price| price.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_price_is_read_as_it_is_written() {
        for (written, read) in [
            ("0.1", "0.1"),
            ("0.30000000000000004", "0.30000000000000004"),
            ("0.2500", "0.25"),
            ("2.5e-1", "0.25"),
            ("25E-2", "0.25"),
            ("1", "1"),
        ] {
            let answer = format!(r#"{{"golem": {{"usd": {written}}}}}"#);
            assert_eq!(said(&answer).as_deref(), Ok(read));
        }
    }

    #[test]
    fn the_first_id_with_a_possible_price_counts() {
        let second = r#"{"golem-network-tokens":{"usd":0.2},"bitcoin":{"usd":100000}}"#;
        assert_eq!(said(second).as_deref(), Ok("0.2"));
        let both = r#"{"golem-network-tokens":{"usd":0.2},"golem":{"usd":0.3}}"#;
        assert_eq!(said(both).as_deref(), Ok("0.3"));
        let zero = r#"{"golem-network-tokens":{"usd":0.2},"golem":{"usd":0}}"#;
        assert_eq!(said(zero).as_deref(), Ok("0.2"));
        for empty in [r#"{"golem":{}}"#, r#"{"golem":null,"golem-network-tokens":{"usd":0.2}}"#] {
            assert_eq!(said(empty).is_ok(), empty.contains("0.2"), "{empty}");
        }
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for (answer, why) in [
            ("", "not what was asked"),
            ("<html>", "not what was asked"),
            ("[]", "not what was asked"),
            ("{}", "no price of golem or golem-network-tokens"),
            (r#"{"golem":{"usd":0}}"#, "says 0,"),
            (r#"{"golem":{"usd":0.0}}"#, "says 0.0,"),
            (r#"{"golem":{"usd":-0.25}}"#, "says -0.25,"),
            (r#"{"golem":{"usd":1e-30}}"#, "says 1e-30,"),
            (r#"{"golem":{"usd":1e300}}"#, "says 1e300,"),
            (r#"{"golem":{"usd":99999999}}"#, "says 99999999,"),
            (r#"{"golem":{"usd":"0.25"}}"#, "cannot be the price"),
            (r#"{"golem":{"usd":null}}"#, "says null,"),
            (r#"{"golem":{"usd":[0.25]}}"#, "cannot be the price"),
        ] {
            let error = said(answer).unwrap_err();
            assert!(error.contains(why), "{answer}: {error}");
        }
        let long = format!(r#"{{"golem":{{"usd":0.{}}}}}"#, "1".repeat(1000));
        assert!(said(&long).unwrap_err().len() < 150);
    }
}
