//! Where this machine is reached: which of several answers counts, and the asking.
//!
//! A source is a URL that answers with the address it was asked from, as text or as `{"ip": …}`. One of them may be wrong, old
//! or bought; what more than half of them say, and at least two where there are two, is taken.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::http;
use crate::settings::public_ip::is_public;

/// How long a source may take.
const DEADLINE: Duration = Duration::from_secs(8);

/// The longest answer of a source, in bytes.
const MAX_ANSWER: usize = 4 * 1024;

/// Where requestors reach this machine, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicAddress {
    pub address: IpAddr,
    pub origin: AddressOrigin,
}

/// How an address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressOrigin {
    /// The operator has set it.
    Setting,
    /// Several others see this machine there.
    Sources,
    /// An interface of this machine has it.
    Interface,
    /// It is this computer's own, for trying things out.
    Development,
}

/// The address that the answers of `asked` sources agree on.
pub fn agreed(answers: &[IpAddr], asked: usize) -> Option<IpAddr> {
    let mut counts = BTreeMap::<IpAddr, usize>::new();
    for answer in answers {
        *counts.entry(*answer).or_default() += 1;
    }
    let (address, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (count * 2 > answers.len() && count >= asked.min(2)).then_some(address)
}

/// The address in a source's answer, if it holds one that the internet can reach.
pub fn read(body: &[u8]) -> Option<IpAddr> {
    #[derive(Deserialize)]
    struct Answer {
        ip: String,
    }
    let text = std::str::from_utf8(body).ok()?.trim();
    let address = match serde_json::from_str::<Answer>(text) {
        Ok(Answer { ip }) => ip.trim().parse::<IpAddr>(),
        Err(_) => text.parse(),
    };
    address.ok().map(|address| address.to_canonical()).filter(|address| is_public(*address))
}

/// Asks all sources at the same time.
pub async fn ask(client: &reqwest::Client, sources: &[String]) -> Option<IpAddr> {
    let asking = sources.iter().map(async |source| {
        let answer = async {
            let response = client.get(source).send().await.map_err(|error| http::reason(&error))?;
            if !response.status().is_success() {
                return Err(format!("answered {}", response.status()));
            }
            let body = http::bounded(response, MAX_ANSWER).await?;
            read(&body).ok_or_else(|| "answered no public address".to_owned())
        };
        let answer = tokio::time::timeout(DEADLINE, answer).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
        if let Err(reason) = &answer {
            tracing::debug!(
                source = http::shown(source),
                "a source of the public address: {reason}"
            );
        }
        answer.ok()
    });
    let answers: Vec<IpAddr> = join_all(asking).await.into_iter().flatten().collect();
    let agreed = agreed(&answers, sources.len());
    if agreed.is_none() && !answers.is_empty() {
        tracing::warn!(?answers, "the sources of the public address do not agree");
    }
    agreed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([8, 8, 8, last])
    }

    #[test]
    fn more_than_half_of_those_that_answered_decide_and_at_least_two_where_there_are_two() {
        for (answers, asked, expected) in [
            (&[][..], 3, None),
            (&[1], 1, Some(1)),
            (&[1], 2, None), // one voice of several is not enough
            (&[1, 1], 2, Some(1)),
            (&[1, 2], 2, None),
            (&[1, 1, 2], 3, Some(1)),
            (&[1, 2, 3], 3, None),
            (&[1, 1, 2, 2], 4, None),
            (&[2, 1, 2, 2], 5, Some(2)),
        ] {
            let given: Vec<IpAddr> = answers.iter().copied().map(ip).collect();
            assert_eq!(agreed(&given, asked), expected.map(ip), "{answers:?} of {asked}");
        }
    }

    #[test]
    fn text_and_json_are_understood_and_nothing_else() {
        for (body, expected) in [
            ("8.8.8.8", Some("8.8.8.8")),
            (" 8.8.8.8\n", Some("8.8.8.8")),
            (r#"{"ip": "8.8.8.8", "country": "SE"}"#, Some("8.8.8.8")),
            ("2a01:4f8::1", Some("2a01:4f8::1")),
            ("::ffff:8.8.8.8", Some("8.8.8.8")),
            ("10.0.0.1", None), // nobody on the internet sees that
            ("127.0.0.1", None),
            ("<html>8.8.8.8</html>", None),
            (r#"{"ip": 8}"#, None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(read(body.as_bytes()), expected, "{body}");
        }
        assert_eq!(read(&[0xff, 0xfe]), None);
    }

    proptest! {
        #[test]
        fn liars_in_the_minority_do_not_move_a_provider(honest in 2usize..8, lies in prop::collection::vec(2u8..9, 0..7)) {
            prop_assume!(lies.len() < honest);
            let mut answers = vec![ip(1); honest];
            answers.extend(lies.iter().copied().map(ip));
            prop_assert_eq!(agreed(&answers, answers.len()), Some(ip(1)));
        }
    }
}
