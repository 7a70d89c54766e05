//! The advertiser for Golem Base: a chain whose nodes keep entries ("entities") that requestors search.
//!
//! The provider has one entity there. Every call looks at the chain first and decides then, so that a call that was cut off, a
//! transaction that was mined late and a chain that was reset all come to the same end. A component without state; the
//! provider signs and sends. Modules, from the inside out:
//!
//! | Module | What it decides or does |
//! |---|---|
//! | `settings` | what an operator can set |
//! | `operations` | what is done to entities, and its encoding |
//! | `entry` | what an advertisement is as annotations of an entity, and back |
//! | `query` | the questions that requestors ask |
//! | `plan` | what has to be done to come to one entity that says what it should |
//! | `node` | questions to the chain's nodes, transactions, and what their errors mean |
//!
//! Whoever made an entity is proven by its owner, which the chain keeps; what an entity says is proven by nothing. Only those
//! whose owner we are count as ours. Anybody can make one that has our id in it, or prolong ours.

mod entry;
mod node;
mod operations;
mod plan;
mod query;
mod settings;

use core::time::Duration;

use golem_provider_sdk::{
    Advertiser, Description, Error, Finding, Plugin, Result,
    advertiser::{Advertisement, Change, Listing, Published, Query, Schedule},
    clock::Deadline,
    signer,
};

use crate::{
    node::Entity,
    operations::Operations,
    plan::{SECONDS_PER_BLOCK, Step},
};

/// The longest that a publication waits for its transaction, and a withdrawal. Both look at the chain before.
const PUBLISH_WAITS: Duration = Duration::from_secs(110);
const WITHDRAW_WAITS: Duration = Duration::from_secs(25);

/// After each the chain is looked at again.
const WITHDRAW_ATTEMPTS: u32 = 4;

/// Strangers' entities under one id that are looked at: anybody can make any number of them.
const STRANGERS: usize = 50;

/// A look at one entity is a question to a node. A search ends with what it has found by then.
const SEARCH_TAKES: Duration = Duration::from_secs(45);
const LOOK_UP_TAKES: Duration = Duration::from_secs(20);

/// The advertiser.
pub struct GolemBase;

impl Plugin for GolemBase {
    fn describe() -> Description {
        Description {
            name: "golem-base".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "Lists the provider on the chain Golem Base".to_owned(),
            license: env!("CARGO_PKG_LICENSE").to_owned(),
            settings_schema: settings::schema(),
        }
    }

    /// Asks no node: one that is down may be up when there is something to say, and a provider does not wait for it to start.
    fn probe() -> Result<Vec<Finding>> {
        Ok(match settings::load() {
            Ok(_) => Vec::new(),
            Err(error) => vec![Finding::blocking(
                error.message(),
                "correct the settings of the plugin golem-base",
            )],
        })
    }
}

impl Advertiser for GolemBase {
    fn schedule() -> Result<Schedule> {
        Ok(settings::load()?.schedule())
    }

    fn publish(advertisement: Advertisement) -> Result<Published> {
        let settings = settings::load()?;
        check_is_us(&advertisement.provider_id)?;
        let wanted = entry::annotations(&advertisement)?;
        let now_block = node::block_number()?;
        let ours = our_entities(&advertisement.provider_id)?;
        let step = plan::next(&ours, &wanted, now_block, settings.interval_seconds);
        let lifetime_blocks = plan::lifetime_blocks(settings.interval_seconds);
        let expires_in = |blocks: u64| Some(blocks.saturating_mul(SECONDS_PER_BLOCK));
        let reference = |key: &[u8; 32]| Some(format!("0x{}", hex::encode(key)));
        let (operations, change) = match step {
            Step::Nothing { key, left_blocks } => {
                return Ok(Published {
                    change: Change::Unchanged,
                    expires_in_seconds: expires_in(left_blocks),
                    reference: reference(&key),
                });
            }
            Step::Extend { key, blocks } => (Operations::extend(key, blocks), Change::Renewed),
            Step::Update { key } => {
                (Operations::update(key, lifetime_blocks, wanted), Change::Updated)
            }
            Step::Replace { keys } => {
                (Operations::create(lifetime_blocks, wanted).and_delete(keys), Change::Created)
            }
        };
        let done = node::apply(&operations, PUBLISH_WAITS)?;
        let key = done.created.first().or(operations.key());
        Ok(Published {
            change,
            expires_in_seconds: expires_in(lifetime_blocks),
            reference: key.and_then(reference),
        })
    }

    fn withdraw(provider_id: String) -> Result<()> {
        check_is_us(&provider_id)?;
        let mut last = None;
        for _ in 0..WITHDRAW_ATTEMPTS {
            // Asked first: what is mined after this is among the entities.
            let is_under_way = node::is_transaction_under_way(&provider_id)?;
            let ours = our_entities(&provider_id)?;
            if ours.is_empty() && !is_under_way {
                return Ok(());
            }
            // A publication that was cut off may still be mined. This takes its place, with nothing in it if need be.
            let keys = ours.iter().map(|entity| entity.key).collect();
            match node::apply(&Operations::delete(keys), WITHDRAW_WAITS) {
                Ok(_) => {}
                // It was mined first, for instance.
                Err(error @ Error::Unavailable(_)) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            Error::Unavailable("entries and transactions of this key come anew all the time".into())
        }))
    }

    fn look_up(provider_id: String) -> Result<Vec<Listing>> {
        let deadline = Deadline::after(LOOK_UP_TAKES);
        let now_block = node::block_number()?;
        let mut keys = node::entities(&query::provider(&provider_id));
        // So many strangers' entities that a node cannot name them all must not hide our own.
        if let Err(Error::ResourceExhausted(_)) = keys
            && provider_id.eq_ignore_ascii_case(&signer::address())
        {
            keys = Ok(Vec::new());
        }
        let keys = keys?;
        let owned = if provider_id.eq_ignore_ascii_case(&signer::address()) {
            node::owned_by(&provider_id)?
        } else {
            Vec::new()
        };
        let strangers = keys.iter().filter(|key| !owned.contains(key)).take(STRANGERS);
        let mut found = Vec::new();
        for key in owned.iter().chain(strangers) {
            if deadline.remaining().is_zero() {
                break;
            }
            if let Some(entity) = node::entity(key)?
                && let Some(listing) = entry::listing(&entity, now_block)
                && listing.provider_id.eq_ignore_ascii_case(&provider_id)
            {
                found.push(listing);
            }
        }
        Ok(found)
    }

    fn search(query: Query) -> Result<Vec<Listing>> {
        let deadline = Deadline::after(SEARCH_TAKES);
        let now_block = node::block_number()?;
        let keys = match node::entities(&query::search(&query)) {
            // Earlier nodes know `=` alone.
            Err(Error::Unsupported(_)) => node::entities(&query::search_without_order(&query))?,
            keys => keys?,
        };
        let mut found = Vec::new();
        for key in &keys {
            if found.len() >= query.limit as usize || deadline.remaining().is_zero() {
                break;
            }
            if let Some(entity) = node::entity(key)?
                && let Some(listing) = entry::listing(&entity, now_block)
                && entry::is_genuine(&listing)
                && query::fits(&query, &listing)
            {
                found.push(listing);
            }
        }
        Ok(found)
    }
}

/// The chain proves who made an entity by the key that signed for it, which is the provider's.
fn check_is_us(provider_id: &str) -> Result<()> {
    let us = signer::address();
    if provider_id.eq_ignore_ascii_case(&us) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{provider_id} cannot be listed on Golem Base with the key of {us}"
    )))
}

/// Our entities that say that they are of this provider. Our key may have others, for something else.
fn our_entities(provider_id: &str) -> Result<Vec<Entity>> {
    let mut ours = Vec::new();
    for key in node::owned_by(provider_id)? {
        if let Some(entity) = node::entity(&key)?
            && entry::is_of_provider(&entity, provider_id)
        {
            ours.push(entity);
        }
    }
    Ok(ours)
}

#[cfg(target_arch = "wasm32")]
golem_provider_sdk::export_discovery_advertiser!(GolemBase);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_needs_nothing_of_the_provider() {
        assert_eq!(GolemBase::describe().name, "golem-base");
    }
}
