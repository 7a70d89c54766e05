//! Being found: what the provider says of itself, where and when, and whether requestors see it.
//!
//! ```text
//!  resources ┐
//!  prices    ├─▶ offer ──watch──▶ campaign per advertiser ──▶ Advertiser (a plugin)
//!  ports     ┘   what to say      due: when, visibility: was it seen
//! ```
//!
//! [`Advertising`] holds one campaign for each advertiser; they neither wait for each other nor for VMs, and none of them
//! can make a request slower. `due` and `visibility` are pure: when to do what, and what a listing says about us.
//!
//! Calls `plugins` through the trait [`Advertiser`](crate::plugins::Advertiser), and finds peers for `ports`; called by the
//! composition root, `admin` and `status`.

mod campaign;
mod due;
mod offer;
mod peers;
mod report;
mod source;
mod visibility;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use self::campaign::Campaign;
pub use self::{
    offer::{Free, Identity, Offer, Reach, compose},
    report::{AdvertiserReport, AdvertiserState, Seen},
    source::{Held, Sources},
    visibility::Visibility,
};
use crate::plugins::Advertiser;

/// Which of the advertisers that there are take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// In development nobody is told anything.
    Nobody,
    /// These, by the names of their plugins.
    Named(BTreeSet<String>),
}

impl Selection {
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Named(names) => names.contains(name),
        }
    }
}

/// All campaigns. Clones are the same ones.
#[derive(Clone)]
pub struct Advertising(Arc<Inner>);

struct Inner {
    provider_id: String,
    offer: watch::Receiver<Offer>,
    state: Mutex<State>,
    tasks: TaskTracker,
}

struct State {
    selection: Selection,
    /// Every advertiser there is, whether it takes part or not.
    known: BTreeMap<String, Arc<dyn Advertiser>>,
    campaigns: BTreeMap<String, Campaign>,
}

impl Advertising {
    pub fn new(
        provider_id: String,
        offer: watch::Receiver<Offer>,
        selection: Selection,
    ) -> Advertising {
        let state = State { selection, known: BTreeMap::new(), campaigns: BTreeMap::new() };
        Advertising(Arc::new(Inner {
            provider_id,
            offer,
            state: Mutex::new(state),
            tasks: TaskTracker::new(),
        }))
    }

    /// From now on calls for its name go to this one.
    pub fn install(&self, advertiser: Arc<dyn Advertiser>) {
        let name = advertiser.name().to_owned();
        let mut state = self.state();
        state.known.insert(name.clone(), Arc::clone(&advertiser));
        match state.campaigns.get(&name) {
            Some(campaign) => campaign.replace(advertiser),
            None if state.selection.has(&name) => self.begin(&mut state, advertiser),
            None => {}
        }
    }

    /// The advertiser is gone, for the reason given. What it has published is withdrawn, as far as that still works.
    pub fn remove(&self, name: &str) {
        let mut state = self.state();
        state.known.remove(name);
        if let Some(campaign) = state.campaigns.remove(name) {
            campaign.end();
        }
    }

    /// These take part from now on; the others withdraw what they have published.
    pub fn select(&self, selection: Selection) {
        let mut state = self.state();
        state.campaigns.retain(|name, campaign| {
            let stays = selection.has(name);
            if !stays {
                campaign.end();
            }
            stays
        });
        state.selection = selection;
        let beginning: Vec<_> = state
            .known
            .iter()
            .filter(|(name, _)| state.selection.has(name) && !state.campaigns.contains_key(*name))
            .map(|(_, advertiser)| Arc::clone(advertiser))
            .collect();
        for advertiser in beginning {
            self.begin(&mut state, advertiser);
        }
    }

    /// The names of those that take part and are there.
    pub fn names(&self) -> Vec<String> {
        self.state().campaigns.keys().cloned().collect()
    }

    /// Those that there are, by name.
    pub fn known(&self) -> Vec<Arc<dyn Advertiser>> {
        self.state().known.values().cloned().collect()
    }

    /// Those that should take part and are not there.
    pub fn missing(&self) -> Vec<String> {
        let state = self.state();
        match &state.selection {
            Selection::Nobody => Vec::new(),
            Selection::Named(names) => {
                names.iter().filter(|name| !state.known.contains_key(*name)).cloned().collect()
            }
        }
    }

    /// Is this our own id?
    fn is_us(&self, provider_id: &str) -> bool {
        self.0.provider_id.eq_ignore_ascii_case(provider_id)
    }

    /// How each campaign goes. Never waits.
    pub fn reports(&self) -> Vec<AdvertiserReport> {
        self.state().campaigns.values().map(Campaign::report).collect()
    }

    /// Ends every campaign: what was published is withdrawn, for as long as there is time.
    pub async fn shutdown(&self, deadline: Duration) {
        let campaigns = std::mem::take(&mut self.state().campaigns);
        for campaign in campaigns.values() {
            campaign.end();
        }
        self.0.tasks.close();
        if tokio::time::timeout(deadline, self.0.tasks.wait()).await.is_err() {
            tracing::warn!(
                "not every advertisement could be withdrawn in time; those left expire by themselves"
            );
        }
    }

    fn begin(&self, state: &mut State, advertiser: Arc<dyn Advertiser>) {
        let name = advertiser.name().to_owned();
        let (campaign, work) =
            Campaign::new(advertiser, self.0.provider_id.clone(), self.0.offer.clone());
        self.0.tasks.spawn(work);
        state.campaigns.insert(name, campaign);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is an insertion or a removal.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
