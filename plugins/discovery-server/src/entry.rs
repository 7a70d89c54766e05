//! The server's JSON, from and to the contract's values. Pure.

use golem_provider_sdk::{
    Error, Result,
    advertiser::{Advertisement, Listing, Prices, Resources},
};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// What is posted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Post {
    pub ip_address: String,
    pub country: String,
    pub platform: String,
    pub resources: ResourcesJson,
    pub pricing: Pricing,
}

/// What the server answers of a provider. It drops the platform. Anybody may have written the texts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    pub provider_id: String,
    pub ip_address: String,
    pub country: String,
    pub resources: ResourcesJson,
    #[serde(default)]
    pub pricing: Option<Pricing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesJson {
    pub cpu: u32,
    pub memory: u32,
    pub storage: u32,
}

/// Numbers, as existing clients read them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pricing {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_core_month: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_gb_ram_month: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usd_per_gb_storage_month: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glm_per_core_month: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glm_per_gb_ram_month: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glm_per_gb_storage_month: Option<Number>,
}

impl Post {
    /// # Errors
    /// This server takes no IPv6 address and no provider without a country or with nothing to let.
    pub fn of(advertisement: &Advertisement) -> Result<Self> {
        let refused = |text: String| Err(Error::FailedPrecondition(text));
        let Some(country) = &advertisement.country else {
            return refused("the discovery server lists nobody without a country; set GOLEM_PROVIDER_COUNTRY to two letters, such as SE".into());
        };
        let is_v4 = advertisement.ip_address.parse::<std::net::Ipv4Addr>().is_ok();
        if !is_v4 {
            return refused(format!(
                "the discovery server takes IPv4 addresses only, and {} is none; set GOLEM_PROVIDER_PUBLIC_IP to one",
                advertisement.ip_address
            ));
        }
        let Resources { cpu_cores, memory_gb, storage_gb } = advertisement.available;
        if cpu_cores == 0 || memory_gb == 0 || storage_gb == 0 {
            return refused("the discovery server lists nobody who has nothing to let".into());
        }
        let usd = &advertisement.usd;
        let glm = advertisement.glm.as_ref();
        Ok(Self {
            ip_address: advertisement.ip_address.clone(),
            country: country.clone(),
            platform: advertisement.platform.clone(),
            resources: ResourcesJson { cpu: cpu_cores, memory: memory_gb, storage: storage_gb },
            pricing: Pricing {
                usd_per_core_month: number(&usd.per_core_month),
                usd_per_gb_ram_month: number(&usd.per_gb_ram_month),
                usd_per_gb_storage_month: number(&usd.per_gb_storage_month),
                glm_per_core_month: glm.and_then(|glm| number(&glm.per_core_month)),
                glm_per_gb_ram_month: glm.and_then(|glm| number(&glm.per_gb_ram_month)),
                glm_per_gb_storage_month: glm.and_then(|glm| number(&glm.per_gb_storage_month)),
            },
        })
    }

    /// Does an entry say just this already?
    pub fn is(&self, entry: &Entry) -> bool {
        let pricing = entry.pricing.clone().unwrap_or_default();
        entry.ip_address == self.ip_address
            && entry.country == self.country
            && entry.resources == self.resources
            && same(&pricing.usd_per_core_month, &self.pricing.usd_per_core_month)
            && same(&pricing.usd_per_gb_ram_month, &self.pricing.usd_per_gb_ram_month)
            && same(&pricing.usd_per_gb_storage_month, &self.pricing.usd_per_gb_storage_month)
            && same(&pricing.glm_per_core_month, &self.pricing.glm_per_core_month)
            && same(&pricing.glm_per_gb_ram_month, &self.pricing.glm_per_gb_ram_month)
            && same(&pricing.glm_per_gb_storage_month, &self.pricing.glm_per_gb_storage_month)
    }
}

impl Entry {
    pub fn listing(self) -> Listing {
        let Pricing {
            usd_per_core_month,
            usd_per_gb_ram_month,
            usd_per_gb_storage_month,
            glm_per_core_month,
            glm_per_gb_ram_month,
            glm_per_gb_storage_month,
        } = self.pricing.unwrap_or_default();
        let ResourcesJson { cpu, memory, storage } = self.resources;
        Listing {
            provider_id: self.provider_id,
            ip_address: self.ip_address,
            name: None,
            country: Some(self.country),
            platform: None,
            network: None,
            payments_network: None,
            available: Resources { cpu_cores: cpu, memory_gb: memory, storage_gb: storage },
            usd: prices(usd_per_core_month, usd_per_gb_ram_month, usd_per_gb_storage_month),
            glm: prices(glm_per_core_month, glm_per_gb_ram_month, glm_per_gb_storage_month),
            // Nothing is proved here, whatever was signed.
            owner: None,
            expires_in_seconds: None,
        }
    }
}

/// The contract's decimals are JSON numbers already.
fn number(text: &str) -> Option<Number> {
    text.parse().ok()
}

fn prices(core: Option<Number>, ram: Option<Number>, storage: Option<Number>) -> Option<Prices> {
    Some(Prices {
        per_core_month: plain(&core?),
        per_gb_ram_month: plain(&ram?),
        per_gb_storage_month: plain(&storage?),
    })
}

/// Without an exponent, which the server may have put in.
fn plain(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.to_string().contains(['e', 'E']) => format!("{value:.18}"),
        _ => number.to_string(),
    }
}

/// As numbers: `5` and `5.0` are the same price.
fn same(one: &Option<Number>, other: &Option<Number>) -> bool {
    let value = |number: &Option<Number>| number.as_ref().and_then(Number::as_f64);
    match (value(one), value(other)) {
        (Some(one), Some(other)) => (one - other).abs() <= other.abs() * 1e-12,
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json};

    use super::*;

    fn prices_of(core: &str) -> Prices {
        Prices {
            per_core_month: core.into(),
            per_gb_ram_month: "2".into(),
            per_gb_storage_month: "0.1".into(),
        }
    }

    fn advertisement() -> Advertisement {
        Advertisement {
            provider_id: "0x1111111111111111111111111111111111111111".into(),
            name: "mine".into(),
            ip_address: "203.0.113.5".into(),
            country: Some("SE".into()),
            platform: "x86_64".into(),
            network: "mainnet".into(),
            payments_network: "l2.holesky".into(),
            available: Resources { cpu_cores: 4, memory_gb: 8, storage_gb: 100 },
            usd: prices_of("5"),
            glm: None,
        }
    }

    #[test]
    fn what_is_posted_is_what_the_server_documents_and_an_unknown_price_is_not_free() {
        let post = Post::of(&advertisement()).unwrap();
        assert_eq!(
            serde_json::to_value(&post).unwrap(),
            json!({
                "ip_address": "203.0.113.5", "country": "SE", "platform": "x86_64",
                "resources": { "cpu": 4, "memory": 8, "storage": 100 },
                "pricing": {
                    "usd_per_core_month": 5, "usd_per_gb_ram_month": 2, "usd_per_gb_storage_month": 0.1,
                },
            })
        );
        let with_glm = Advertisement { glm: Some(prices_of("12.5")), ..advertisement() };
        let pricing = Post::of(&with_glm).unwrap().pricing;
        assert_eq!(pricing.glm_per_core_month.unwrap().to_string(), "12.5");
    }

    #[test]
    fn what_this_server_does_not_list_is_said_with_what_to_do() {
        let refusal = |changed: Advertisement| Post::of(&changed).unwrap_err();
        let countryless = refusal(Advertisement { country: None, ..advertisement() });
        assert!(
            matches!(&countryless, Error::FailedPrecondition(text) if text.contains("GOLEM_PROVIDER_COUNTRY"))
        );
        let v6 = refusal(Advertisement { ip_address: "2001:db8::1".into(), ..advertisement() });
        assert!(matches!(&v6, Error::FailedPrecondition(text) if text.contains("IPv4")));
        let nothing = Resources { cpu_cores: 0, memory_gb: 8, storage_gb: 100 };
        refusal(Advertisement { available: nothing, ..advertisement() });
    }

    #[test]
    fn an_entry_reads_back_as_what_was_posted() {
        let post = Post::of(&advertisement()).unwrap();
        let text = r#"{"provider_id":"0x11","ip_address":"203.0.113.5","country":"SE",
            "resources":{"cpu":4,"memory":8,"storage":100},
            "pricing":{"usd_per_core_month":5.0,"usd_per_gb_ram_month":2.0,"usd_per_gb_storage_month":1e-1,
                "glm_per_core_month":null},
            "created_at":"2026-01-01T00:00:00","updated_at":"2026-01-01T00:00:00"}"#;
        let entry: Entry = from_str(text).unwrap();
        assert!(post.is(&entry));
        let listing = entry.clone().listing();
        assert_eq!(listing.glm, None);
        assert_eq!(listing.usd.unwrap().per_core_month, "5.0");
        let dearer = Entry {
            pricing: Some(Pricing {
                usd_per_core_month: number("6"),
                ..entry.pricing.clone().unwrap()
            }),
            ..entry
        };
        assert!(!post.is(&dearer));
    }
}
