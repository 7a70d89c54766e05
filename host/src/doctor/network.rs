//! The servers that the settings name, and the clock, by what those servers say the time is.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::{Url, header::DATE};

use super::{Check, output_of};
use crate::settings::{Environment, Origin, Settings};

const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn checks(settings: Arc<Settings>, online: bool) -> Vec<Check> {
    let endpoints = endpoints(&settings);
    let synchronised = async {
        let asked =
            output_of("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).await;
        asked.filter(|(went_well, _)| *went_well).map(|(_, text)| text.trim() == "yes")
    };
    if !online {
        let mut checks = vec![of_clock(&[], synchronised.await)];
        checks.extend(
            endpoints
                .iter()
                .map(|endpoint| Check::skipped(endpoint.name, "not asked, as --offline says")),
        );
        return checks;
    }
    let client = match reqwest::Client::builder().timeout(ANSWER_DEADLINE).build() {
        Ok(client) => client,
        Err(error) => {
            let sentence = format!("no HTTP client can be made: {error}");
            return vec![Check::fail(
                "network",
                sentence,
                "are the system's certificates installed (ca-certificates)?",
            )];
        }
    };
    let asking = join_all(endpoints.iter().map(|endpoint| endpoint.ask(&client)));
    let (answers, synchronised) = tokio::join!(asking, synchronised);
    let skews: Vec<i64> =
        answers.iter().filter_map(|answer| answer.as_ref().ok()?.skew_s).collect();
    let mut checks = vec![of_clock(&skews, synchronised)];
    checks.extend(endpoints.iter().zip(&answers).map(|(endpoint, answer)| endpoint.judge(answer)));
    checks
}

/// A server that the settings name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    name: &'static str,
    key: &'static str,
    url: Url,
    /// Whether it is spoken to in JSON-RPC.
    is_rpc: bool,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    /// What went wrong, of a server that did answer.
    problem: Option<String>,
    /// How many seconds its clock is ahead of ours, if it says.
    skew_s: Option<i64>,
}

/// In production all that are set or have a default; in development, where none is used unless the operator wants it, only
/// those that were set.
fn endpoints(settings: &Settings) -> Vec<Endpoint> {
    const KNOWN: [(&str, &str); 2] = [
        ("discovery", "GOLEM_PROVIDER_DISCOVERY_URL"),
        ("port checker", "GOLEM_PROVIDER_PORT_CHECK_SERVERS"),
    ];
    const CHAINS: [(&str, &str, &str); 2] = [
        ("golem-base", "Golem Base", "GOLEM_PROVIDER_GOLEM_BASE_RPC_URL"),
        ("payments", "chain of payments", "GOLEM_PROVIDER_POLYGON_RPC_URL"),
    ];
    let mut found = Vec::new();
    for (name, key) in KNOWN {
        let Some(effective) = settings.effective.iter().find(|effective| effective.key == key)
        else {
            continue;
        };
        if settings.environment == Environment::Development && effective.origin == Origin::Default {
            continue;
        }
        let text = effective.value.as_deref().unwrap_or_default();
        let urls = text.split(|separator: char| {
            matches!(separator, ',' | '[' | ']' | '"') || separator.is_whitespace()
        });
        found.extend(urls.filter_map(|url| Url::parse(url).ok()).map(|url| Endpoint {
            name,
            key,
            url,
            is_rpc: false,
        }));
    }
    // These have no default: one that is there was set.
    for (chain, name, key) in CHAINS {
        let nodes = settings.chains.nodes.get(chain).into_iter().flatten();
        let urls = nodes.filter_map(|url| Url::parse(url.expose()).ok());
        found.extend(urls.map(|url| Endpoint { name, key, url, is_rpc: true }));
    }
    found
}

impl Endpoint {
    /// Without what may be secret of it.
    fn shown(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    async fn ask(&self, client: &reqwest::Client) -> Result<Answer, String> {
        let request = match self.is_rpc {
            true => client.post(self.url.clone()).json(&serde_json::json!({
                "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []
            })),
            false => client.get(self.url.clone()),
        };
        let asked = Timestamp::now();
        let answer = request.send().await.map_err(|error| reason(&error))?;
        let answered = Timestamp::now();
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        let skew_s = date.and_then(|date| skew_s(date, asked, answered));
        let status = answer.status();
        let problem = match self.is_rpc {
            true => rpc_problem(answer).await,
            // A server may know nothing about the path that stands for all of it.
            false => status.is_server_error().then(|| format!("it answers {status}")),
        };
        Ok(Answer { problem, skew_s })
    }

    fn judge(&self, answer: &Result<Answer, String>) -> Check {
        let shown = self.shown();
        let sentence = match answer {
            Ok(Answer { problem: None, .. }) => {
                return Check::ok(self.name, format!("{shown} answers"));
            }
            Ok(Answer { problem: Some(problem), .. }) => format!("{shown}: {problem}"),
            Err(reason) => format!("{shown} cannot be reached: {reason}"),
        };
        Check::warn(
            self.name,
            sentence,
            format!(
                "check the network, and the address in {}; the provider tries again by itself",
                self.key
            ),
        )
    }
}

/// At most so much of an answer is read.
const ANSWER_BYTES: usize = 64 << 10;

async fn rpc_problem(mut answer: reqwest::Response) -> Option<String> {
    let status = answer.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES {
            return Some("it answers with far too much".to_owned());
        }
    }
    let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_chain = value["result"].as_str().is_some_and(|id| id.starts_with("0x"));
    (!is_chain).then(|| format!("it answers {status}, and no chain id"))
}

/// The innermost reason, without the URL.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", ANSWER_DEADLINE.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// How far a server's `Date` is ahead of a clock that said `asked` and then `answered`; zero for a time in between, which is all
/// that can be known.
fn skew_s(date: &str, asked: Timestamp, answered: Timestamp) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second();
    let (asked, answered) = (asked.as_second(), answered.as_second());
    Some(if date < asked {
        date - asked
    } else if date > answered {
        date - answered
    } else {
        0
    })
}

/// By what most servers say, and what the system says of itself.
fn of_clock(skews_s: &[i64], synchronised: Option<bool>) -> Check {
    const NAME: &str = "clock";
    const WRONG_S: i64 = 60;
    const OFF_S: i64 = 10;
    let mut skews_s = skews_s.to_vec();
    skews_s.sort_unstable();
    // Of two that differ, the one nearer to ours: a single wrong server proves nothing.
    let median = match skews_s.len() {
        0 => None,
        2 => skews_s.iter().copied().min_by_key(|skew| skew.abs()),
        many => Some(skews_s[many / 2]),
    };
    let remedy = "as root: timedatectl set-ntp true";
    let direction = |skew: i64| if skew > 0 { "behind" } else { "ahead" };
    match (median, synchronised) {
        (Some(skew), _) if skew.abs() > WRONG_S => Check::fail(
            NAME,
            format!(
                "it is {} s {}: signatures and payments depend on it",
                skew.abs(),
                direction(skew)
            ),
            remedy,
        ),
        (Some(skew), _) if skew.abs() > OFF_S => {
            Check::warn(NAME, format!("it is {} s {}", skew.abs(), direction(skew)), remedy)
        }
        (Some(_), Some(true)) => Check::ok(NAME, "it is right, and kept right by the network"),
        (Some(_), _) => Check::ok(NAME, "it is right, by what the servers say"),
        (None, Some(true)) => Check::ok(NAME, "it is kept right by the network"),
        (None, Some(false)) => Check::warn(NAME, "nothing keeps it right", remedy),
        (None, None) => Check::skipped(NAME, "no server was there to compare it with"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};
    use crate::settings::{Inputs, Overrides, resolve};

    fn endpoints_of(environment: &[(&str, &str)]) -> Vec<Endpoint> {
        let inputs = Inputs {
            environment: environment
                .iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            working_dir: None,
            home_dir: Some("/home/of/nobody".into()),
        };
        endpoints(&resolve(&inputs, &Overrides::default()).unwrap())
    }

    #[test]
    fn the_servers_of_the_settings_are_asked_and_in_development_only_those_that_were_set() {
        let production = endpoints_of(&[]);
        assert!(production.iter().any(|endpoint| endpoint.name == "discovery"));
        assert_eq!(production.iter().filter(|endpoint| endpoint.name == "port checker").count(), 2);
        assert!(endpoints_of(&[("GOLEM_ENVIRONMENT", "development")]).is_empty());
        let set = endpoints_of(&[
            ("GOLEM_ENVIRONMENT", "development"),
            ("GOLEM_PROVIDER_GOLEM_BASE_RPC_URL", "http://127.0.0.1:8545/secret-key"),
        ]);
        assert_eq!(set.len(), 1);
        assert_eq!((set[0].shown().as_str(), set[0].is_rpc), ("http://127.0.0.1:8545", true));
    }

    #[test]
    fn a_servers_time_is_compared_with_the_time_of_the_question_and_of_the_answer() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (asked, answered) = (at("2026-11-23T04:00:00Z"), at("2026-11-23T04:00:03Z"));
        let skew = |date| skew_s(date, asked, answered);
        assert_eq!(skew("Mon, 23 Nov 2026 04:00:02 GMT"), Some(0));
        assert_eq!(skew("Mon, 23 Nov 2026 04:01:03 GMT"), Some(60));
        assert_eq!(skew("Mon, 23 Nov 2026 03:59:30 GMT"), Some(-30));
        assert_eq!(skew("yesterday"), None);
    }

    #[test]
    fn a_clock_is_wrong_when_most_servers_say_so() {
        let state = |skews: &[i64], synchronised| of_clock(skews, synchronised).state;
        assert_eq!(state(&[0, 0, 400], Some(true)), State::Ok);
        assert_eq!(state(&[0, 400], None), State::Ok);
        assert_eq!(state(&[395, 400, 0], Some(true)), State::Fail);
        assert_eq!(state(&[-20], None), State::Warn);
        assert_eq!(state(&[], Some(true)), State::Ok);
        assert_eq!(state(&[], Some(false)), State::Warn);
        assert_eq!(state(&[], None), State::Skipped);
        assert!(of_clock(&[-70], None).sentence.contains("70 s ahead"));
    }

    #[test]
    fn a_server_that_does_not_answer_is_a_warning_that_shows_no_secret() {
        let endpoint = Endpoint {
            name: "Golem Base",
            key: "GOLEM_PROVIDER_GOLEM_BASE_RPC_URL",
            url: "https://user:word@rpc.example.org/v3/0123456789".parse().unwrap(),
            is_rpc: true,
        };
        let check = endpoint.judge(&Err("connection refused".to_owned()));
        assert_eq!(check.state, State::Warn);
        assert!(check.sentence.contains("https://rpc.example.org cannot"), "{}", check.sentence);
        assert!(!check.sentence.contains("word") && !check.sentence.contains("0123"));
        let fine = Answer { problem: None, skew_s: Some(0) };
        assert_eq!(endpoint.judge(&Ok(fine)).state, State::Ok);
    }
}
