//! The questions that requestors ask, in the query language of the nodes, and what fits them. Pure.

use golem_provider_sdk::advertiser::{Listing, Query};

use crate::entry::{CPU, MEMORY, NETWORK, PAYMENTS_NETWORK, PROVIDER, PROVIDER_ID, STORAGE, TYPE};

/// Everything that says that it is of this provider.
pub fn provider(provider_id: &str) -> String {
    conditions(&[(TYPE, PROVIDER), (PROVIDER_ID, provider_id)])
}

/// What requestors find. Needs a node that knows `>=`.
pub fn search(query: &Query) -> String {
    let mut text = search_without_order(query);
    let least = [
        (CPU, query.min_cpu_cores),
        (MEMORY, query.min_memory_gb),
        (STORAGE, query.min_storage_gb),
    ];
    for (key, least) in least {
        if let Some(least) = least {
            text.push_str(&format!(" && {key} >= {least}"));
        }
    }
    text
}

/// The same and more, for nodes that know `=` alone.
pub fn search_without_order(query: &Query) -> String {
    let mut wanted = vec![(TYPE, PROVIDER)];
    wanted.extend(query.network.as_deref().map(|network| (NETWORK, network)));
    wanted.extend(query.payments_network.as_deref().map(|network| (PAYMENTS_NETWORK, network)));
    conditions(&wanted)
}

/// Is it what was asked for? What a node answers is not relied upon.
pub fn fits(query: &Query, listing: &Listing) -> bool {
    let at_least = |least: Option<u32>, has: u32| least.is_none_or(|least| has >= least);
    let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
    at_least(query.min_cpu_cores, listing.available.cpu_cores)
        && at_least(query.min_memory_gb, listing.available.memory_gb)
        && at_least(query.min_storage_gb, listing.available.storage_gb)
        && is(&query.network, &listing.network)
        && is(&query.payments_network, &listing.payments_network)
}

fn conditions(equal: &[(&str, &str)]) -> String {
    let condition = |(key, value): &(&str, &str)| format!("{key} = {}", quoted(value));
    equal.iter().map(condition).collect::<Vec<_>>().join(" && ")
}

/// A text as one token, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> Query {
        Query {
            min_cpu_cores: Some(2),
            min_memory_gb: None,
            min_storage_gb: Some(10),
            network: Some("mainnet".into()),
            payments_network: None,
            limit: 10,
        }
    }

    #[test]
    fn questions_are_those_of_requestors_and_no_text_breaks_out_of_them() {
        assert_eq!(
            search(&query()),
            "golem_type = \"provider\" && golem_network = \"mainnet\" && golem_cpu >= 2 && golem_storage >= 10"
        );
        assert_eq!(
            provider("a\" || golem_type = \"b\\"),
            "golem_type = \"provider\" && golem_provider_id = \"a\\\" || golem_type = \\\"b\\\\\""
        );
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
    }
}
