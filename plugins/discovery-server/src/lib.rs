//! The advertiser that lists the provider with a central discovery server.
//!
//! | Module | What it decides or does |
//! |---|---|
//! | `settings` | what an operator can set |
//! | `entry` | the server's JSON, from and to the contract's values |
//! | `answers` | what the server's statuses and errors mean |
//! | `client` | one function per request |
//!
//! Entries are kept for five minutes after the last post, and one post replaces another, so there is nothing to remember here.
//! Anybody can write over an entry; the provider looks it up and has it posted again.

mod answers;
mod client;
mod entry;
mod settings;

use golem_provider_sdk::{
    Advertiser, Description, Finding, Plugin, Result,
    advertiser::{Advertisement, Change, Listing, Published, Query, Schedule},
};

use crate::client::Client;

/// How long the server keeps an entry after the last post.
const KEPT_SECONDS: u64 = 300;

/// The advertiser.
pub struct DiscoveryServer;

impl Plugin for DiscoveryServer {
    fn describe() -> Description {
        Description {
            name: "discovery-server".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "Lists the provider with a central discovery server".to_owned(),
            license: env!("CARGO_PKG_LICENSE").to_owned(),
            settings_schema: settings::schema(),
        }
    }

    fn probe() -> Result<Vec<Finding>> {
        // Whether the server answers is not asked: it may be down now and up later, and nothing has to be mended here.
        match settings::load() {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Ok(vec![Finding::blocking(
                error.message(),
                "correct GOLEM_PROVIDER_DISCOVERY_URL, or the settings of the plugin discovery-server",
            )]),
        }
    }
}

impl Advertiser for DiscoveryServer {
    fn schedule() -> Result<Schedule> {
        Ok(settings::load()?.schedule())
    }

    fn publish(advertisement: Advertisement) -> Result<Published> {
        let client = Client::new(&settings::load()?);
        let before = client.entry_of(&advertisement.provider_id)?;
        let posted = entry::Post::of(&advertisement)?;
        client.post(&advertisement.provider_id, &posted)?;
        let change = match before {
            None => Change::Created,
            Some(entry) if posted.is(&entry) => Change::Renewed,
            Some(_) => Change::Updated,
        };
        Ok(Published {
            change,
            expires_in_seconds: Some(KEPT_SECONDS),
            reference: Some(client.address_of(&advertisement.provider_id)),
        })
    }

    fn withdraw(provider_id: String) -> Result<()> {
        Client::new(&settings::load()?).delete(&provider_id)
    }

    fn look_up(provider_id: String) -> Result<Vec<Listing>> {
        let entry = Client::new(&settings::load()?).entry_of(&provider_id)?;
        Ok(entry.into_iter().map(entry::Entry::listing).collect())
    }

    fn search(query: Query) -> Result<Vec<Listing>> {
        let found = Client::new(&settings::load()?).search(&query)?;
        Ok(found.into_iter().take(query.limit as usize).map(entry::Entry::listing).collect())
    }
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_discovery_advertiser!(DiscoveryServer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_needs_nothing_of_the_provider() {
        let description = DiscoveryServer::describe();
        assert_eq!(description.name, "discovery-server");
        let schema: serde_json::Value = serde_json::from_str(&description.settings_schema).unwrap();
        assert_eq!(schema["type"], "object");
    }
}
