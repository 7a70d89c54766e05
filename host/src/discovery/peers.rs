//! Other providers, found as a requestor would find them, that may check this one's ports.

use std::net::IpAddr;

use async_trait::async_trait;

use super::Advertising;
use crate::{plugins::advertiser::Query, ports::verification::PeerSource};

/// Where a provider's API is, which checks ports for others too if its operator lets it.
const API_PORT: u16 = 7466;

/// Listings that are looked at in one place.
const LISTINGS: u32 = 200;

#[async_trait]
impl PeerSource for Advertising {
    /// Whoever is listed may be a liar; whoever asks weighs the answers.
    async fn base_urls(&self) -> Vec<String> {
        let mut urls = Vec::new();
        for advertiser in self.known() {
            let query = Query { limit: LISTINGS, ..Query::default() };
            match advertiser.search(&query).await {
                Ok(found) => urls.extend(
                    found
                        .iter()
                        .filter(|listing| !self.is_us(&listing.provider_id))
                        .filter_map(|listing| base_url(&listing.ip_address)),
                ),
                Err(error) => tracing::info!(
                    plugin.name = advertiser.name(),
                    "no peers are found with {}: {error}",
                    advertiser.name()
                ),
            }
        }
        urls.sort();
        urls.dedup();
        urls
    }
}

fn base_url(address: &str) -> Option<String> {
    Some(match address.parse().ok()? {
        IpAddr::V4(v4) => format!("http://{v4}:{API_PORT}"),
        IpAddr::V6(v6) => format!("http://[{v6}]:{API_PORT}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_and_nothing_else_that_a_stranger_wrote() {
        assert_eq!(base_url("198.51.100.7").as_deref(), Some("http://198.51.100.7:7466"));
        assert_eq!(base_url("2001:db8::7").as_deref(), Some("http://[2001:db8::7]:7466"));
        for wrong in ["evil.example", "1.2.3.4:80", "1.2.3.4/x", ""] {
            assert_eq!(base_url(wrong), None, "{wrong}");
        }
    }
}
