//! The advertiser of `sdk/examples/noticeboard-python`, in Rust: the same tests run over both, and what the two cost is measured
//! beside each other. The documents and what the board's answers mean are described there.

use golem_provider_sdk::{
    Advertiser, Description, Error, Finding, Plugin, Result,
    advertiser::{Advertisement, Change, Listing, Prices, Published, Query, Resources, Schedule},
    clock, export_discovery_advertiser,
    http::{self, Method, Request, Response},
    settings,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const TIMEOUT_MS: u32 = 12_000;
const QUOTED_CHARACTERS: usize = 200;
const LIFETIME_IN_INTERVALS: u64 = 3;

struct Noticeboard;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Settings {
    url: Option<String>,
    token: Option<String>,
    #[serde(default = "default_interval")]
    interval_seconds: u32,
}

fn default_interval() -> u32 {
    240
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Document {
    provider_id: String,
    ip_address: String,
    name: Option<String>,
    country: Option<String>,
    platform: Option<String>,
    network: Option<String>,
    payments_network: Option<String>,
    available: Sizes,
    usd: Option<Monthly>,
    glm: Option<Monthly>,
    expires_at: u64,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Sizes {
    cpu_cores: u32,
    memory_gb: u32,
    storage_gb: u32,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Monthly {
    per_core_month: String,
    per_gb_ram_month: String,
    per_gb_storage_month: String,
}

impl From<Prices> for Monthly {
    fn from(prices: Prices) -> Self {
        Self {
            per_core_month: prices.per_core_month,
            per_gb_ram_month: prices.per_gb_ram_month,
            per_gb_storage_month: prices.per_gb_storage_month,
        }
    }
}

impl From<Monthly> for Prices {
    fn from(prices: Monthly) -> Self {
        Self {
            per_core_month: prices.per_core_month,
            per_gb_ram_month: prices.per_gb_ram_month,
            per_gb_storage_month: prices.per_gb_storage_month,
        }
    }
}

impl Document {
    fn new(advertisement: Advertisement, expires_at: u64) -> Self {
        let available = advertisement.available;
        Self {
            provider_id: advertisement.provider_id,
            ip_address: advertisement.ip_address,
            name: Some(advertisement.name),
            country: advertisement.country,
            platform: Some(advertisement.platform),
            network: Some(advertisement.network),
            payments_network: Some(advertisement.payments_network),
            available: Sizes {
                cpu_cores: available.cpu_cores,
                memory_gb: available.memory_gb,
                storage_gb: available.storage_gb,
            },
            usd: Some(advertisement.usd.into()),
            glm: advertisement.glm.map(Monthly::from),
            expires_at,
        }
    }

    /// Absent where the value is none, or has expired: anybody may have written it.
    fn read(value: Value, now: u64) -> Option<Self> {
        let document: Self = serde_json::from_value(value).ok()?;
        (document.expires_at > now).then_some(document)
    }

    /// For however long.
    fn says_the_same_as(&self, other: &Self) -> bool {
        Self { expires_at: other.expires_at, ..self.clone() } == *other
    }

    fn listing(self, now: u64) -> Listing {
        Listing {
            provider_id: self.provider_id,
            ip_address: self.ip_address,
            name: self.name,
            country: self.country,
            platform: self.platform,
            network: self.network,
            payments_network: self.payments_network,
            available: Resources {
                cpu_cores: self.available.cpu_cores,
                memory_gb: self.available.memory_gb,
                storage_gb: self.available.storage_gb,
            },
            usd: self.usd.map(Prices::from),
            glm: self.glm.map(Prices::from),
            owner: None,
            expires_in_seconds: Some(self.expires_at - now),
        }
    }
}

struct Board {
    url: String,
    token: Option<String>,
}

impl Board {
    fn named() -> Result<Self> {
        let settings: Settings = settings::get()?;
        let url = settings.url.ok_or_else(|| {
            Error::FailedPrecondition(
                "no noticeboard is named; set `url` in noticeboard.toml".into(),
            )
        })?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), token: settings.token })
    }

    fn address(&self, provider_id: &str) -> String {
        format!("{}/{provider_id}", self.url)
    }

    fn send(&self, method: Method, url: &str, body: Vec<u8>) -> Result<Response> {
        let mut headers = vec![("accept".to_owned(), "application/json".to_owned())];
        if !body.is_empty() {
            headers.push(("content-type".into(), "application/json".into()));
        }
        if let Some(token) = &self.token {
            headers.push(("authorization".into(), format!("Bearer {token}")));
        }
        let request =
            Request { method, url: url.to_owned(), headers, body, timeout_ms: TIMEOUT_MS };
        let response = http::send(&request)?;
        match response.status {
            200..=299 | 404 | 410 => Ok(response),
            _ => Err(self.refused(&response)),
        }
    }

    fn refused(&self, response: &Response) -> Error {
        let body = String::from_utf8_lossy(&response.body);
        let words: String = body.trim().chars().take(QUOTED_CHARACTERS).collect();
        let answer = format!("{} answers {}: {words}", self.url, response.status);
        match response.status {
            401 | 403 => {
                Error::FailedPrecondition(format!("{answer}; check `token` in noticeboard.toml"))
            }
            404 | 410 => {
                Error::FailedPrecondition(format!("{answer}; check `url` in noticeboard.toml"))
            }
            429 => Error::ResourceExhausted(answer),
            400..=499 => Error::FailedPrecondition(answer),
            _ => Error::Unavailable(answer),
        }
    }

    fn json(&self, response: &Response) -> Result<Value> {
        serde_json::from_slice(&response.body)
            .map_err(|error| Error::Unavailable(format!("{} answers no JSON: {error}", self.url)))
    }

    fn get(&self, provider_id: &str, now: u64) -> Result<Option<Document>> {
        let response = self.send(Method::Get, &self.address(provider_id), Vec::new())?;
        if is_absent(&response) {
            return Ok(None);
        }
        Ok(Document::read(self.json(&response)?, now))
    }
}

fn is_absent(response: &Response) -> bool {
    matches!(response.status, 404 | 410)
}

fn now_seconds() -> u64 {
    clock::unix_ms() / 1000
}

impl Plugin for Noticeboard {
    fn describe() -> Description {
        Description {
            name: "noticeboard".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            summary:
                "Lists the provider on a noticeboard: one JSON document per provider, over HTTP"
                    .into(),
            license: env!("CARGO_PKG_LICENSE").into(),
            settings_schema: json!({
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "url": { "type": "string", "pattern": "^https?://[^\\s?#]+$" },
                    "token": { "type": "string", "pattern": "^[!-~]+$", "writeOnly": true },
                    "interval-seconds": { "type": "integer", "minimum": 5, "maximum": 86400 },
                },
            })
            .to_string(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        let settings: Settings = settings::get()?;
        Ok(match settings.url {
            Some(_) => Vec::new(),
            None => vec![Finding::blocking(
                "no noticeboard is named",
                "write url = \"https://…\" under [settings] in noticeboard.toml",
            )],
        })
    }
}

impl Advertiser for Noticeboard {
    fn schedule() -> Result<Schedule> {
        let settings: Settings = settings::get()?;
        Ok(Schedule {
            interval_seconds: settings.interval_seconds,
            minimum_gap_ms: 2_000,
            price_interval_seconds: 600,
        })
    }

    fn publish(advertisement: Advertisement) -> Result<Published> {
        let settings: Settings = settings::get()?;
        let board = Board::named()?;
        let now = now_seconds();
        let lifetime = u64::from(settings.interval_seconds) * LIFETIME_IN_INTERVALS;
        let before = board.get(&advertisement.provider_id, now)?;
        let document = Document::new(advertisement, now + lifetime);
        let address = board.address(&document.provider_id);
        let body =
            serde_json::to_vec(&document).map_err(|error| Error::Internal(error.to_string()))?;
        let response = board.send(Method::Put, &address, body)?;
        if is_absent(&response) {
            return Err(board.refused(&response));
        }
        let change = match before {
            None => Change::Created,
            Some(before) if before.says_the_same_as(&document) => Change::Renewed,
            Some(_) => Change::Updated,
        };
        Ok(Published { change, expires_in_seconds: Some(lifetime), reference: Some(address) })
    }

    fn withdraw(provider_id: String) -> Result<()> {
        let board = Board::named()?;
        board.send(Method::Delete, &board.address(&provider_id), Vec::new()).map(drop)
    }

    fn look_up(provider_id: String) -> Result<Vec<Listing>> {
        let now = now_seconds();
        let found = Board::named()?.get(&provider_id, now)?;
        Ok(found.into_iter().map(|document| document.listing(now)).collect())
    }

    fn search(query: Query) -> Result<Vec<Listing>> {
        let board = Board::named()?;
        let now = now_seconds();
        let response = board.send(Method::Get, &board.url, Vec::new())?;
        if is_absent(&response) {
            return Err(board.refused(&response));
        }
        let Value::Array(documents) = board.json(&response)? else {
            let no_list = format!("{} answers no list, so it is no noticeboard", board.url);
            return Err(Error::Unavailable(no_list));
        };
        let listings = documents
            .into_iter()
            .filter_map(|value| Some(Document::read(value, now)?.listing(now)))
            .filter(|listing| matches(listing, &query))
            .take(query.limit as usize);
        Ok(listings.collect())
    }
}

fn matches(listing: &Listing, query: &Query) -> bool {
    let same = |wanted: &Option<String>, is: &Option<String>| wanted.is_none() || wanted == is;
    let available = &listing.available;
    available.cpu_cores >= query.min_cpu_cores.unwrap_or(0)
        && available.memory_gb >= query.min_memory_gb.unwrap_or(0)
        && available.storage_gb >= query.min_storage_gb.unwrap_or(0)
        && same(&query.network, &listing.network)
        && same(&query.payments_network, &listing.payments_network)
}

export_discovery_advertiser!(Noticeboard);
