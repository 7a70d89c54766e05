//! What an advertisement is as annotations of an entity, and back. Pure.
//!
//! Anybody may write an entity, so whatever is read from one is checked and bounded.

use std::{collections::BTreeMap, net::IpAddr};

use golem_provider_sdk::{
    Error, Result,
    advertiser::{Advertisement, Listing, Prices, Resources},
};

use crate::{node::Entity, operations::Annotations, plan::SECONDS_PER_BLOCK};

pub const TYPE: &str = "golem_type";
/// What [`TYPE`] says of a provider.
pub const PROVIDER: &str = "provider";
pub const NETWORK: &str = "golem_network";
pub const PAYMENTS_NETWORK: &str = "golem_payments_network";
pub const PROVIDER_ID: &str = "golem_provider_id";
const IP_ADDRESS: &str = "golem_ip_address";
const COUNTRY: &str = "golem_country";
const NAME: &str = "golem_provider_name";
const PLATFORM: &str = "golem_platform";
const CURRENCY: &str = "golem_price_currency";
const USD: [&str; 3] = [
    "golem_price_usd_core_month",
    "golem_price_usd_ram_gb_month",
    "golem_price_usd_storage_gb_month",
];
const GLM: [&str; 3] = [
    "golem_price_glm_core_month",
    "golem_price_glm_ram_gb_month",
    "golem_price_glm_storage_gb_month",
];
pub const CPU: &str = "golem_cpu";
pub const MEMORY: &str = "golem_memory";
pub const STORAGE: &str = "golem_storage";

/// Longest text of one annotation: each byte costs gas.
const TEXT_BYTES: usize = 256;

/// What the entity is to say. Prices that nobody knows are left out: a zero would be free.
///
/// # Errors
/// A text is too long.
pub fn annotations(advertisement: &Advertisement) -> Result<Annotations> {
    let it = advertisement;
    let mut strings = vec![
        (TYPE, PROVIDER),
        (NETWORK, &it.network),
        (PAYMENTS_NETWORK, &it.payments_network),
        (PROVIDER_ID, &it.provider_id),
        (IP_ADDRESS, &it.ip_address),
        // Requestors' programs expect it to be there.
        (COUNTRY, it.country.as_deref().unwrap_or_default()),
        (NAME, &it.name),
        (PLATFORM, &it.platform),
        (CURRENCY, "USD/GLM"),
    ];
    strings.extend(priced(USD, &it.usd));
    strings.extend(it.glm.iter().flat_map(|glm| priced(GLM, glm)));
    if let Some((key, text)) = strings.iter().find(|(_, text)| text.len() > TEXT_BYTES) {
        return Err(Error::FailedPrecondition(format!(
            "{key} would have {} bytes, and is listed on Golem Base with at most {TEXT_BYTES}: shorten it",
            text.len()
        )));
    }
    let numbers = [
        (CPU, it.available.cpu_cores),
        (MEMORY, it.available.memory_gb),
        (STORAGE, it.available.storage_gb),
    ];
    Ok(Annotations {
        strings: strings.into_iter().map(|(key, text)| (key.into(), text.into())).collect(),
        numbers: numbers.into_iter().map(|(key, number)| (key.into(), number.into())).collect(),
    })
}

fn priced<'a>(keys: [&'static str; 3], prices: &'a Prices) -> [(&'static str, &'a str); 3] {
    let [core, ram, storage] = keys;
    [
        (core, &prices.per_core_month),
        (ram, &prices.per_gb_ram_month),
        (storage, &prices.per_gb_storage_month),
    ]
}

/// Does it say this, and nothing else? In any order, and prices as numbers.
pub fn says(entity: &Entity, wanted: &Annotations) -> bool {
    let strings: BTreeMap<_, _> = wanted.strings.iter().cloned().collect();
    let numbers: BTreeMap<_, _> = wanted.numbers.iter().cloned().collect();
    let is_price = |key: &str| USD.contains(&key) || GLM.contains(&key);
    entity.numbers == numbers
        && entity.strings.len() == strings.len()
        && entity.strings.iter().zip(&strings).all(|((key, found), (other, said))| {
            key == other && (found == said || is_price(key) && is_same_number(found, said))
        })
}

/// Is it an entry of this provider, whoever made it?
pub fn is_of_provider(entity: &Entity, provider_id: &str) -> bool {
    let says = |key: &str| entity.strings.get(key).map(String::as_str).unwrap_or_default();
    says(TYPE) == PROVIDER && says(PROVIDER_ID).eq_ignore_ascii_case(provider_id)
}

/// An entity as requestors read it. None where it is no entry of a provider, or ends with this block.
pub fn listing(entity: &Entity, now_block: u64) -> Option<Listing> {
    let text = |key: &str| entity.strings.get(key).filter(|text| text.len() <= TEXT_BYTES).cloned();
    let some_text = |key: &str| text(key).filter(|text| !text.is_empty());
    let number = |key: &str| u32::try_from(*entity.numbers.get(key)?).ok();
    let prices = |[core, ram, storage]: [&str; 3]| {
        Some(Prices {
            per_core_month: some_text(core)?,
            per_gb_ram_month: some_text(ram)?,
            per_gb_storage_month: some_text(storage)?,
        })
    };
    let left_blocks = entity.expires_at_block.checked_sub(now_block).filter(|left| *left > 0)?;
    if text(TYPE)? != PROVIDER {
        return None;
    }
    Some(Listing {
        provider_id: some_text(PROVIDER_ID)?,
        ip_address: some_text(IP_ADDRESS)?,
        name: text(NAME),
        country: some_text(COUNTRY),
        platform: some_text(PLATFORM),
        network: some_text(NETWORK),
        payments_network: some_text(PAYMENTS_NETWORK),
        available: Resources {
            cpu_cores: number(CPU)?,
            memory_gb: number(MEMORY)?,
            storage_gb: number(STORAGE)?,
        },
        usd: prices(USD),
        glm: prices(GLM),
        owner: Some(entity.owner.clone()),
        expires_in_seconds: Some(left_blocks.saturating_mul(SECONDS_PER_BLOCK)),
    })
}

/// Is it by the provider whose id it has, and does it lead anywhere?
pub fn is_genuine(listing: &Listing) -> bool {
    let owner = listing.owner.as_deref().unwrap_or_default();
    owner.eq_ignore_ascii_case(&listing.provider_id) && listing.ip_address.parse::<IpAddr>().is_ok()
}

fn is_same_number(one: &str, other: &str) -> bool {
    match (plain(one), plain(other)) {
        (Some(one), Some(other)) => one == other,
        // Other programs write floating-point numbers.
        _ => one.parse::<f64>().is_ok_and(|one| Ok(one) == other.parse()),
    }
}

/// Digits before and after the point, without zeros that change nothing.
fn plain(text: &str) -> Option<(&str, &str)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    (!whole.is_empty() && digits(whole) && digits(fraction))
        .then(|| (whole.trim_start_matches('0'), fraction.trim_end_matches('0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Operations;

    const US: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";

    fn prices(core: &str, ram: &str, storage: &str) -> Prices {
        Prices {
            per_core_month: core.into(),
            per_gb_ram_month: ram.into(),
            per_gb_storage_month: storage.into(),
        }
    }

    fn advertisement() -> Advertisement {
        Advertisement {
            provider_id: US.into(),
            name: "golem-provider".into(),
            ip_address: "127.0.0.1".into(),
            country: Some("SE".into()),
            platform: "x86_64".into(),
            network: "mainnet".into(),
            payments_network: "l2.holesky".into(),
            available: Resources { cpu_cores: 4, memory_gb: 8, storage_gb: 100 },
            usd: prices("5.0", "2.0", "0.1"),
            glm: Some(prices("1.5", "0.5", "0.05")),
        }
    }

    fn entity(annotations: Annotations) -> Entity {
        Entity {
            key: [1; 32],
            owner: US.to_lowercase(),
            expires_at_block: 110,
            strings: annotations.strings.into_iter().rev().collect(),
            numbers: annotations.numbers.into_iter().rev().collect(),
        }
    }

    #[test]
    fn an_advertisement_is_encoded_as_known_providers_publish_it() {
        let vectors = include_str!("../../../tests/vectors/golembase_vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let list = vectors["vectors"].as_array().unwrap();
        let known = list
            .iter()
            .find(|vector| vector["name"].as_str().unwrap().starts_with("create_provider_ad"));
        let create = Operations::create(7200, annotations(&advertisement()).unwrap());
        let encoded = format!("0x{}", hex::encode(create.encoded()));
        assert_eq!(encoded, known.unwrap()["rlp"].as_str().unwrap());
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_said() {
        let said = advertisement();
        let entity = entity(annotations(&said).unwrap());
        let found = listing(&entity, 100).unwrap();
        assert_eq!((found.provider_id.as_str(), found.available), (US, said.available));
        assert_eq!((&found.usd, &found.glm), (&Some(said.usd), &said.glm));
        assert_eq!(found.expires_in_seconds, Some(20));
        assert!(is_genuine(&found) && is_of_provider(&entity, &US.to_lowercase()));
        assert!(listing(&entity, 110).is_none(), "it is gone");
        let unpriced = Advertisement { glm: None, country: None, ..advertisement() };
        let unpriced = annotations(&unpriced).unwrap();
        assert!(unpriced.strings.iter().all(|(key, _)| !GLM.contains(&key.as_str())));
        let found = listing(&self::entity(unpriced), 100).unwrap();
        assert_eq!((found.glm, found.country), (None, None));
    }

    #[test]
    fn only_what_differs_is_a_difference() {
        let wanted = annotations(&advertisement()).unwrap();
        let mut entity = entity(wanted.clone());
        assert!(says(&entity, &wanted));
        entity.strings.insert(USD[0].into(), "5".into());
        assert!(says(&entity, &wanted), "numbers, not texts");
        entity.strings.insert(USD[0].into(), "5e0".into());
        assert!(says(&entity, &wanted));
        entity.strings.insert(USD[0].into(), "5.01".into());
        assert!(!says(&entity, &wanted));
        entity.strings.insert(USD[0].into(), "5.0".into());
        entity.strings.insert("more".into(), String::new());
        assert!(!says(&entity, &wanted));
        entity.strings.remove("more");
        entity.numbers.insert(CPU.into(), 5);
        assert!(!says(&entity, &wanted));
    }

    #[test]
    fn what_strangers_wrote_is_read_with_care() {
        let mut hostile = entity(annotations(&advertisement()).unwrap());
        hostile.owner = "0x2222222222222222222222222222222222222222".into();
        assert!(!is_genuine(&listing(&hostile, 100).unwrap()));
        hostile.numbers.insert(CPU.into(), u64::MAX);
        assert!(listing(&hostile, 100).is_none());
        hostile.numbers.insert(CPU.into(), 1);
        hostile.strings.insert(NAME.into(), "x".repeat(1 << 20));
        assert_eq!(listing(&hostile, 100).unwrap().name, None);
        hostile.strings.remove(IP_ADDRESS);
        assert!(listing(&hostile, 100).is_none());
        let long = Advertisement { name: "x".repeat(300), ..advertisement() };
        assert!(matches!(annotations(&long), Err(Error::FailedPrecondition(_))));
    }
}
