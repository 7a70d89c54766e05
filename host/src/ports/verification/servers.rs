//! Asking one server, which may be down, slow, mistaken or hostile: its answer is a ballot or a fault, within bounded time and
//! memory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use reqwest::{StatusCode, header::RETRY_AFTER};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::{Host, Url};

use super::{
    http,
    report::{ServerHealth, ServerKind},
    verdict::Ballot,
};
use crate::settings::public_ip::is_public;

/// The longest answer of a server, in bytes: a few hundred for each port of a chunk.
const MAX_ANSWER: usize = 256 * 1024;

/// Where other providers are found that check ports.
#[async_trait]
pub trait PeerSource: Send + Sync {
    /// Base URLs of other providers' APIs, such as `http://203.0.113.7:7466`. Some may be gone or hostile. Empty when none are
    /// known; never waits for long.
    async fn base_urls(&self) -> Vec<String>;
}

/// One who can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckServer {
    pub url: String,
    pub kind: ServerKind,
}

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub health: ServerHealth,
    pub detail: String,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl Fault {
    fn new(health: ServerHealth, detail: impl Into<String>) -> Fault {
        Fault { health, detail: detail.into(), retry_after: None }
    }
}

#[derive(Serialize)]
struct Question<'a> {
    provider_ip: IpAddr,
    ports: &'a [u16],
}

#[derive(Deserialize)]
struct Answer {
    results: BTreeMap<String, Value>,
}

/// What a server says of these ports of `address`.
///
/// # Errors
/// It has not answered within `deadline`, or nothing that counts.
pub async fn ask(
    client: &reqwest::Client,
    server: &CheckServer,
    address: IpAddr,
    ports: &[u16],
    deadline: Duration,
) -> Result<Ballot, Fault> {
    let answer = async {
        let url = format!("{}/check-ports", server.url.trim_end_matches('/'));
        let question = client.post(url).json(&Question { provider_ip: address, ports });
        let response = question
            .send()
            .await
            .map_err(|error| Fault::new(ServerHealth::Down, http::reason(&error)))?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = http::bounded(response, MAX_ANSWER)
            .await
            .map_err(|detail| Fault::new(ServerHealth::Nonsense, detail))?;
        if status == StatusCode::OK {
            return read(&body, ports).map_err(|detail| Fault::new(ServerHealth::Nonsense, detail));
        }
        let health = match status {
            StatusCode::TOO_MANY_REQUESTS => ServerHealth::RateLimited,
            _ if status.is_client_error() => ServerHealth::Refuses,
            _ => ServerHealth::Down,
        };
        Err(Fault { health, detail: refusal(status, &body), retry_after })
    };
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", deadline.as_secs());
        Err(Fault::new(ServerHealth::Slow, detail))
    })
}

/// What an answer says of the ports that were asked for. Everything else in it is passed over.
fn read(body: &[u8], asked: &[u16]) -> Result<Ballot, String> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| "its answer is not the JSON of a port-check server".to_owned())?;
    let said = |port: &u16| {
        let open = answer.results.get(&port.to_string())?.get("accessible")?.as_bool()?;
        Some((*port, open))
    };
    let ballot: Ballot = asked.iter().filter_map(said).collect();
    match ballot.is_empty() {
        true => Err("its answer tells of none of the ports".to_owned()),
        false => Ok(ballot),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let said = serde_json::from_slice::<Value>(body).ok();
    let said = said.as_ref().and_then(|said| said.get("detail")?.as_str()).map(http::plain);
    match said {
        Some(said) => format!("answers {}: {said}", status.as_u16()),
        None => format!("answers {}", status.as_u16()),
    }
}

/// Those of a source's peers that may be asked, without doubles and ourselves: whoever advertises an address decides where we
/// connect to, so it has to be written as one, and a public one unless we are on a private network ourselves.
pub fn acceptable_peers(urls: Vec<String>, own: SocketAddr) -> Vec<CheckServer> {
    let private_too = !is_public(own.ip());
    let mut hosts = Vec::new();
    let mut peers = Vec::new();
    for url in urls {
        let Ok(parsed) = Url::parse(&url) else { continue };
        let address = match parsed.host() {
            Some(Host::Ipv4(address)) => IpAddr::from(address),
            Some(Host::Ipv6(address)) => IpAddr::from(address).to_canonical(),
            _ => continue,
        };
        // One machine has one vote, however many providers it says it is.
        let voter = (address, parsed.port_or_known_default().filter(|_| private_too));
        let is_own = address == own.ip() && voter.1.is_none_or(|port| port == own.port());
        let acceptable = matches!(parsed.scheme(), "http" | "https")
            && !is_own
            && (private_too || is_public(address))
            && !hosts.contains(&voter);
        if acceptable {
            hosts.push(voter);
            peers.push(CheckServer { url, kind: ServerKind::Peer });
        }
    }
    peers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_was_asked_and_is_told_in_the_known_form_counts() {
        for (body, expected) in [
            (
                r#"{"success": true, "results": {"1": {"accessible": true, "error": null}, "2": {"accessible": false, "error": "x"}}, "message": ""}"#,
                Ok(vec![(1, true), (2, false)]),
            ),
            (
                r#"{"success": false, "results": {"1": {"accessible": false}}}"#,
                Ok(vec![(1, false)]),
            ),
            (
                r#"{"results": {"1": {"accessible": "yes"}, "2": {"accessible": true}}}"#,
                Ok(vec![(2, true)]),
            ),
            (r#"{"results": {"3": {"accessible": true}}}"#, Err(())), // nobody asked for that
            (r#"{"results": {}}"#, Err(())),
            (r#"{"results": [true]}"#, Err(())),
            (r#"{"success": true}"#, Err(())),
            ("<html>", Err(())),
            ("", Err(())),
        ] {
            let expected = expected.map(Ballot::from_iter);
            assert_eq!(read(body.as_bytes(), &[1, 2]).map_err(drop), expected, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_us_believe_in_ports_we_did_not_ask_for(body in any::<Vec<u8>>(), asked in prop::collection::vec(1u16..9, 1..5)) {
            if let Ok(ballot) = read(&body, &asked) {
                prop_assert!(ballot.keys().all(|port| asked.contains(port)));
            }
        }
    }

    #[test]
    fn peers_are_public_addresses_other_than_ours_each_once() {
        let urls = [
            "http://8.8.8.8:7466",
            "http://8.8.8.8:7467",
            "https://9.9.9.9",
            "http://10.0.0.1:7466",
            "http://127.0.0.1:22",
            "http://[::1]:22",
            "http://router.local",
            "ftp://8.8.4.4",
            "http://1.2.3.4:7466",
            "nonsense",
        ];
        let urls: Vec<String> = urls.map(str::to_owned).to_vec();
        let peers = acceptable_peers(urls, "1.2.3.4:7466".parse().unwrap());
        let urls: Vec<&str> = peers.iter().map(|peer| peer.url.as_str()).collect();
        assert_eq!(urls, ["http://8.8.8.8:7466", "https://9.9.9.9"]);

        let urls = ["http://10.0.0.1:7466", "http://10.0.0.1:7467", "http://10.0.0.2:7466"];
        let urls: Vec<String> = urls.map(str::to_owned).to_vec();
        let peers = acceptable_peers(urls, "10.0.0.1:7466".parse().unwrap());
        let urls: Vec<&str> = peers.iter().map(|peer| peer.url.as_str()).collect();
        assert_eq!(urls, ["http://10.0.0.1:7467", "http://10.0.0.2:7466"]);
    }
}
