//! One advertiser at work: a task that sees to it that its place says what it should.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    due::{Done, Publication, Step, due},
    offer::Offer,
    report::{AdvertiserReport, AdvertiserState, Seen},
    visibility::{Visibility, judge},
};
use crate::plugins::{
    Advertiser, Failure,
    advertiser::{Advertisement, Change, Schedule},
};

/// What was said before is recognised this far back.
const REMEMBERED: usize = 16;

/// Until an advertiser has said when it wants to hear.
const UNKNOWN_SCHEDULE: Schedule = Schedule {
    interval: Duration::from_secs(240),
    minimum_gap: Duration::from_secs(2),
    price_interval: Duration::from_secs(900),
};

/// A running campaign.
pub struct Campaign(Arc<Shared>);

struct Shared {
    /// The version of the plugin that takes calls.
    advertiser: RwLock<Arc<dyn Advertiser>>,
    report: Mutex<AdvertiserReport>,
    /// There is another version of the plugin, which may know better.
    replaced: Notify,
    end: CancellationToken,
}

impl Campaign {
    /// The campaign, and the work that goes on until it is ended, which its owner runs.
    pub fn new(
        advertiser: Arc<dyn Advertiser>,
        provider_id: String,
        offer: watch::Receiver<Offer>,
    ) -> (Campaign, impl Future<Output = ()> + Send + 'static) {
        let report = AdvertiserReport {
            name: advertiser.name().to_owned(),
            state: AdvertiserState::Starting,
            reason: None,
            last_success: None,
            next: None,
            expires: None,
            reference: None,
            seen: None,
            degraded: Vec::new(),
        };
        let shared = Arc::new(Shared {
            advertiser: RwLock::new(advertiser),
            report: Mutex::new(report),
            replaced: Notify::new(),
            end: CancellationToken::new(),
        });
        let work = Work {
            shared: Arc::clone(&shared),
            provider_id,
            offer,
            // An earlier run of the provider may have left an entry.
            done: Done { may_be_listed: true, ..Done::default() },
            said: VecDeque::new(),
            schedule: UNKNOWN_SCHEDULE,
        };
        (Campaign(shared), work.run())
    }

    pub fn replace(&self, advertiser: Arc<dyn Advertiser>) {
        *self.0.advertiser.write().unwrap_or_else(PoisonError::into_inner) = advertiser;
        self.0.replaced.notify_one();
    }

    /// Withdraws what was published, and ends.
    pub fn end(&self) {
        self.0.end.cancel();
    }

    pub fn report(&self) -> AdvertiserReport {
        let degraded = self.0.advertiser().degraded();
        let degraded = degraded.iter().map(ToString::to_string).collect();
        AdvertiserReport { degraded, ..self.0.report().clone() }
    }
}

impl Shared {
    fn advertiser(&self) -> Arc<dyn Advertiser> {
        Arc::clone(&self.advertiser.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn report(&self) -> MutexGuard<'_, AdvertiserReport> {
        // Every change is a series of assignments.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Work {
    shared: Arc<Shared>,
    provider_id: String,
    offer: watch::Receiver<Offer>,
    done: Done,
    /// What was published, oldest first.
    said: VecDeque<Advertisement>,
    schedule: Schedule,
}

impl Work {
    async fn run(mut self) {
        let end = self.shared.end.clone();
        while end.run_until_cancelled(self.step()).await.is_some() {}
        if self.done.may_be_listed {
            match self.shared.advertiser().withdraw(&self.provider_id).await {
                Ok(()) => self.log_withdrawn("the provider ends, or this advertiser does"),
                Err(error) => tracing::warn!(
                    plugin.name = self.name(),
                    "the advertisement could not be withdrawn, and expires by itself: {error}"
                ),
            }
        }
    }

    fn name(&self) -> String {
        self.shared.report().name.clone()
    }

    /// Does what is due, or waits. Cut off anywhere, it leaves nothing that a withdrawal does not undo: `may_be_listed` is
    /// set before anything is published.
    async fn step(&mut self) {
        let offer = self.offer.borrow_and_update().clone();
        // Without randomness all providers come back at the same moment, which is no reason not to come back.
        let random = getrandom::u32().unwrap_or_default();
        let jitter = f64::from(random) / f64::from(u32::MAX) * 2.0 - 1.0;
        match due(&self.done, &offer, self.schedule, jitter, Instant::now()) {
            Step::Publish(wanted) => self.publish(*wanted).await,
            Step::Withdraw => {
                let reason = match offer {
                    Offer::Withhold(reason) | Offer::Undecided(reason) => reason,
                    Offer::Advertise(_) => String::new(),
                };
                self.withdraw(reason).await;
            }
            Step::LookUp => self.look_up().await,
            Step::Wait(until) => {
                self.waiting(&offer, until);
                self.wait(until).await;
            }
        }
    }

    async fn wait(&mut self, until: Option<Instant>) {
        let shared = Arc::clone(&self.shared);
        let wake = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wake => {}
            changed = self.offer.changed() => if changed.is_err() {
                // Nobody is left who would say anything; the owner ends this campaign next.
                shared.end.cancelled().await;
            },
            () = shared.replaced.notified() => {
                self.done.failures = 0;
                self.done.failed_at = None;
                self.done.to_be_repaired = self.done.published.is_some();
            }
        }
    }

    async fn publish(&mut self, wanted: Advertisement) {
        let advertiser = self.shared.advertiser();
        match advertiser.schedule().await {
            Ok(schedule) => self.schedule = schedule,
            Err(error) => return self.failed("asking when to advertise", &error),
        }
        self.done.may_be_listed = true;
        // Written down before it is said: a look at the listing may find it though the call was cut off.
        self.remember(&wanted);
        let published = match advertiser.publish(&wanted).await {
            Ok(published) => published,
            Err(error) => return self.failed("advertising", &error),
        };
        let now = Instant::now();
        let before = self.done.published.take();
        let same_prices = before.filter(|before| before.said.glm == wanted.glm);
        let priced_at = same_prices.map_or(now, |before| before.priced_at);
        let was_failing = self.done.failures > 0;
        self.done = Done {
            published: Some(Publication { said: wanted.clone(), at: now, priced_at }),
            may_be_listed: true,
            ..Done::default()
        };
        let expires = published.expires_in.and_then(later);
        {
            let mut report = self.shared.report();
            report.state = AdvertiserState::Published;
            report.reason = None;
            report.last_success = Some(Timestamp::now());
            report.expires = expires;
            report.reference = published.reference.clone();
        }
        let name = self.name();
        let free = wanted.available;
        let change = published.change.name();
        let text = format!(
            "advertised {} cores, {} GB of memory and {} GB of storage with {name}: {change}",
            free.cpu_cores, free.memory_gb, free.storage_gb
        );
        match (was_failing, published.change) {
            (true, _) => tracing::info!(plugin.name = name, "{text}; it works again"),
            (false, Change::Created | Change::Updated) => {
                tracing::info!(plugin.name = name, "{text}");
            }
            (false, Change::Renewed | Change::Unchanged) => {
                tracing::debug!(plugin.name = name, "{text}");
            }
        }
    }

    fn remember(&mut self, said: &Advertisement) {
        if self.said.back() == Some(said) {
            return;
        }
        if self.said.len() == REMEMBERED {
            self.said.pop_front();
        }
        self.said.push_back(said.clone());
    }

    async fn withdraw(&mut self, reason: String) {
        match self.shared.advertiser().withdraw(&self.provider_id).await {
            Ok(()) => {
                self.done = Done::default();
                {
                    let mut report = self.shared.report();
                    report.expires = None;
                    report.reference = None;
                    report.seen = None;
                }
                self.log_withdrawn(&reason);
            }
            Err(error) => self.failed("withdrawing the advertisement", &error),
        }
    }

    fn log_withdrawn(&self, reason: &str) {
        let name = self.name();
        tracing::info!(plugin.name = name, "not listed with {name}: {reason}");
    }

    async fn look_up(&mut self) {
        let found = match self.shared.advertiser().look_up(&self.provider_id).await {
            Ok(found) => found,
            Err(error) => {
                // What was published may well be there; the next look comes with its turn.
                self.done.looked_at = Some(Instant::now());
                let name = self.name();
                tracing::warn!(plugin.name = name, "cannot see whether {name} lists us: {error}");
                return;
            }
        };
        self.done.looked_at = Some(Instant::now());
        let visibility = judge(self.said.make_contiguous(), &self.provider_id, &found);
        let before = {
            let mut report = self.shared.report();
            let seen = Seen { visibility, at: Timestamp::now() };
            report.seen.replace(seen).map(|seen| seen.visibility)
        };
        self.done.to_be_repaired = visibility != Visibility::Visible;
        if before != Some(visibility) {
            let name = self.name();
            let phrase = visibility.phrase();
            match visibility {
                Visibility::Visible => {
                    tracing::info!(plugin.name = name, "requestors see this provider with {name}");
                }
                _ => tracing::warn!(
                    plugin.name = name,
                    "our entry with {name} is {phrase}; it is published again"
                ),
            }
        }
    }

    fn failed(&mut self, doing: &str, error: &Failure) {
        self.done.failures = self.done.failures.saturating_add(1);
        self.done.failed_at = Some(Instant::now());
        let name = self.name();
        let reason = format!("{doing} failed: {error}");
        let news = {
            let mut report = self.shared.report();
            report.state = AdvertiserState::Failing;
            let news = report.reason.as_ref() != Some(&reason);
            report.reason = Some(reason.clone());
            news
        };
        // Said once, and again now and then while it lasts.
        if news || self.done.failures.is_power_of_two() {
            tracing::warn!(
                plugin.name = name,
                failures = self.done.failures,
                "{name}: {reason}; it is tried again"
            );
        }
    }

    fn waiting(&self, offer: &Offer, until: Option<Instant>) {
        let mut report = self.shared.report();
        report.next =
            until.and_then(|until| later(until.saturating_duration_since(Instant::now())));
        if report.state == AdvertiserState::Failing && self.done.failures > 0 {
            return;
        }
        match offer {
            Offer::Withhold(reason) => {
                report.state = AdvertiserState::Withheld;
                report.reason = Some(reason.clone());
            }
            Offer::Undecided(reason) => report.reason = Some(reason.clone()),
            Offer::Advertise(_) => {}
        }
    }
}

/// So much later than now, unless that is beyond all time.
fn later(duration: Duration) -> Option<Timestamp> {
    let duration = jiff::SignedDuration::try_from(duration).ok()?;
    Timestamp::now().checked_add(duration).ok()
}
