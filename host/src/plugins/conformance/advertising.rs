//! What an advertiser promises: a schedule that can be kept, refusals, and the life of one entry.
//!
//! ```text
//! schedule    can it be kept
//! refusals    what makes no sense is refused, wherever the place is
//! place       it answers: else nothing below can be tried
//! entry       publish ─ again ─ changed ─ found ─ restart of the provider ─ withdraw ─ cut off ─ withdraw
//! ```
//! The place is whatever the plugin's settings name, so the entry may be seen by others for the seconds that this takes: it
//! is of an address that belongs to nobody, leads to a network for documentation, and offers next to nothing.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rust_decimal::Decimal;
use tokio::time::Instant;

use super::{
    expect::{cut_off, described, needed, refusal, success},
    record::{Event, Missed, Observer, Recorder, Tried},
};
use crate::plugins::{
    Failure, FailureKind,
    advertiser::{Advertisement, Advertiser, Change, Listing, Prices, Published, Query, Resources},
    advertiser_component::{AdvertiserComponent, in_writing},
    harness::{Harness, Loaded},
};

/// Which of a call's steps is under way then differs from place to place.
const CUT_OFF: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(40),
    Duration::from_millis(250),
    Duration::from_secs(1),
];
/// How long a place that asks for patience is waited for, before each further attempt.
const PATIENCE: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// A longer gap between two publications than this is not waited for.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// As many as a requestor can ask for.
const ALL: u32 = 1000;

const NOT_PUBLISHED: &str = "nothing is published, since `publish` failed";
const NO_PLACE: &str = "the place does not answer as it should";
const WRONG: &[FailureKind] = &[FailureKind::InvalidArgument];
/// None of these is an Ethereum address.
const NO_IDS: [&str; 6] =
    ["", "0x", "provider", "0x1234", "../outside", "0xzz11111111111111111111111111111111111111"];

/// What the checks work on.
pub struct Bed {
    pub plugin: Loaded<AdvertiserComponent>,
    provider_id: String,
    observer: Observer,
    /// What the plugin wants between two publications, and when the last one was.
    pace: Mutex<(Duration, Option<Instant>)>,
    may_be_listed: AtomicBool,
}

impl Bed {
    pub fn new(
        plugin: Loaded<AdvertiserComponent>,
        address: Option<String>,
        observer: Observer,
    ) -> Self {
        let provider_id = address.unwrap_or_else(|| {
            let mut bytes = [0; 20];
            bytes[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
            alloy::primitives::Address::from(bytes).to_checksum(None)
        });
        Self {
            plugin,
            provider_id,
            observer,
            pace: Mutex::default(),
            may_be_listed: AtomicBool::new(false),
        }
    }

    fn said(&self, resources: Resources) -> Advertisement {
        let prices = |core: i64| Prices {
            per_core_month: Decimal::new(core, 2),
            per_gb_ram_month: Decimal::new(2, 0),
            per_gb_storage_month: Decimal::new(1, 1),
        };
        Advertisement {
            provider_id: self.provider_id.clone(),
            name: "conformance".to_owned(),
            // RFC 5737: nobody's.
            ip_address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            country: Some("SE".to_owned()),
            platform: "x86_64".to_owned(),
            network: "conformance".to_owned(),
            payments_network: "l2.holesky".to_owned(),
            available: resources,
            usd: prices(525),
            glm: Some(prices(2_150)),
        }
    }

    fn first(&self) -> Advertisement {
        self.said(Resources { cpu_cores: 2, memory_gb: 4, storage_gb: 20 })
    }

    /// Differs in everything that may change.
    fn second(&self) -> Advertisement {
        let mut said = self.said(Resources { cpu_cores: 1, memory_gb: 3, storage_gb: 15 });
        said.name = "conformance-changed".to_owned();
        said.ip_address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
        said.usd.per_core_month = Decimal::new(475, 2);
        said.glm = None;
        said
    }

    /// As a provider does it: not sooner after the last time than the plugin wants.
    async fn publish(&self, said: &Advertisement) -> Result<Published, Failure> {
        self.await_turn().await;
        self.may_be_listed.store(true, Ordering::Relaxed);
        let published = self.patiently(async || self.plugin.publish(said).await).await;
        self.note_publication();
        published
    }

    /// The same, and dropped after this time.
    async fn begin_to_publish(
        &self,
        said: &Advertisement,
        after: Duration,
    ) -> Option<Result<Published, Failure>> {
        self.await_turn().await;
        self.may_be_listed.store(true, Ordering::Relaxed);
        let answer = cut_off(after, self.plugin.publish(said)).await;
        self.note_publication();
        answer
    }

    async fn await_turn(&self) {
        let (gap, last) = *self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last {
            tokio::time::sleep_until(last + gap.min(LONGEST_GAP)).await;
        }
    }

    fn note_publication(&self) {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Instant::now());
    }

    /// As a provider does it: what asks for patience is tried again.
    async fn patiently<T>(&self, call: impl AsyncFn() -> Result<T, Failure>) -> Result<T, Failure> {
        for pause in PATIENCE {
            match call().await {
                Err(error) if error.kind == FailureKind::ResourceExhausted => {
                    (self.observer)(Event::Stage("the place asks for patience"));
                    tokio::time::sleep(pause).await;
                }
                other => return other,
            }
        }
        call().await
    }

    async fn withdraw(&self) -> Result<(), Failure> {
        let withdrawn =
            self.patiently(async || self.plugin.withdraw(&self.provider_id).await).await;
        if withdrawn.is_ok() {
            self.may_be_listed.store(false, Ordering::Relaxed);
        }
        withdrawn
    }

    /// Our entries, as a requestor sees them.
    async fn entries(&self) -> Result<Vec<Listing>, Failure> {
        let mut found =
            self.patiently(async || self.plugin.look_up(&self.provider_id).await).await?;
        found.retain(|listing| listing.is_of(&self.provider_id));
        Ok(found)
    }

    async fn search(&self, query: &Query) -> Result<Vec<Listing>, Failure> {
        self.patiently(async || self.plugin.search_as_answered(query).await).await
    }

    /// A look shows this and nothing else of ours.
    async fn shows(&self, what: &str, said: &Advertisement) -> Tried<()> {
        let entries = success(&format!("`look-up` {what}"), self.entries().await)?;
        let [entry] = entries.as_slice() else {
            return Err(Missed::Failed(format!(
                "`look-up` {what} shows {} instead of one",
                counted(entries.len())
            )));
        };
        match entry.differences(said).as_slice() {
            [] => Ok(()),
            fields => Err(Missed::Failed(format!(
                "`look-up` {what} shows something else than was published, in {}",
                fields.join(", ")
            ))),
        }
    }

    async fn shows_nothing(&self, what: &str) -> Tried<()> {
        match success(&format!("`look-up` {what}"), self.entries().await)?.len() {
            0 => Ok(()),
            count => {
                Err(Missed::Failed(format!("`look-up` {what} still shows {}", counted(count))))
            }
        }
    }

    async fn is_found(&self, query: &Query) -> Tried<bool> {
        let found = success("`search`", self.search(query).await)?;
        Ok(found.iter().any(|listing| listing.is_of(&self.provider_id)))
    }

    /// Takes away whatever a run may have left, if anything.
    pub async fn tidy(&self) {
        if self.may_be_listed.load(Ordering::Relaxed) {
            // An error says no more than the check that failed before.
            let _ = self.withdraw().await;
        }
    }
}

fn counted(entries: usize) -> String {
    match entries {
        0 => "no entry".to_owned(),
        1 => "an entry".to_owned(),
        count => format!("{count} entries"),
    }
}

pub async fn check(bed: &mut Bed, harness: &Harness, recorder: &mut Recorder) {
    let interval = schedule(bed, recorder).await;
    refusals(bed, recorder).await;
    let place = place(bed, recorder).await;
    let published = published(bed, place, interval, recorder).await;
    changed(bed, published, recorder).await;
    found(bed, published, recorder).await;
    restarted(bed, harness, published, recorder).await;
    withdrawn(bed, published, recorder).await;
    cut_off_anywhere(bed, published, recorder).await;
}

/// The interval, if it is one.
async fn schedule(bed: &Bed, recorder: &mut Recorder) -> Option<Duration> {
    recorder
        .check("get-schedule", "a second at least between two calls, and a gap within it", async {
            let said = success("`get-schedule`", bed.plugin.schedule_as_said().await)?;
            if said.interval_seconds == 0 || said.price_interval_seconds == 0 {
                return Err(Missed::failed(
                    "an interval of 0 seconds: the provider would call all the time",
                ));
            }
            let interval = Duration::from_secs(said.interval_seconds.into());
            let gap = Duration::from_millis(said.minimum_gap_ms.into());
            if gap > interval {
                return Err(Missed::Failed(format!(
                    "`minimum-gap-ms` is {}, which is more than `interval-seconds`, {}: the entry could not be renewed in time",
                    said.minimum_gap_ms, said.interval_seconds
                )));
            }
            bed.pace.lock().unwrap_or_else(PoisonError::into_inner).0 = gap;
            Ok(interval)
        })
        .await
}

async fn refusals(bed: &Bed, recorder: &mut Recorder) {
    const PROMISE: &str = "an id that is no address is `invalid-argument`";
    let plugin = &bed.plugin;
    recorder
        .check("look-up", PROMISE, async {
            for id in NO_IDS {
                let answer = plugin.look_up(id).await.map(drop);
                refusal(&format!("`look-up` of `{id}`"), answer, WRONG)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("withdraw", PROMISE, async {
            for id in NO_IDS {
                let answer = plugin.withdraw(id).await;
                refusal(&format!("`withdraw` of `{id}`"), answer, WRONG)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check("publish", PROMISE, async {
            for id in NO_IDS {
                let said = Advertisement { provider_id: id.to_owned(), ..bed.first() };
                let answer = plugin.publish(&said).await.map(drop);
                if answer.is_ok() {
                    // No later check knows of it.
                    let _ = plugin.withdraw(id).await;
                }
                refusal(&format!("`publish` for `{id}`"), answer, WRONG)?;
            }
            Ok(())
        })
        .await;
    recorder
        .check(
            "publish",
            "an address, country or price that is none is `invalid-argument`",
            async {
                let good = in_writing(&bed.first());
                let mut wrong = Vec::new();
                for address in ["", "example.org", "192.0.2.256", "192.0.2.1:80"] {
                    let mut said = good.clone();
                    said.ip_address = address.to_owned();
                    wrong.push((format!("the address `{address}`"), said));
                }
                for country in ["", "se", "SWE"] {
                    let mut said = good.clone();
                    said.country = Some(country.to_owned());
                    wrong.push((format!("the country `{country}`"), said));
                }
                for price in ["", "-1", "1e3", "NaN", "free"] {
                    let mut said = good.clone();
                    said.usd.per_core_month = price.to_owned();
                    wrong.push((format!("the price `{price}`"), said));
                    let mut said = good.clone();
                    if let Some(glm) = &mut said.glm {
                        glm.per_gb_storage_month = price.to_owned();
                    }
                    wrong.push((format!("the price in GLM `{price}`"), said));
                }
                for (what, said) in wrong {
                    let answer = plugin.publish_as_written(&said).await.map(drop);
                    if answer.is_ok() {
                        let _ = bed.withdraw().await;
                    }
                    refusal(&format!("`publish` with {what}"), answer, WRONG)?;
                }
                Ok(())
            },
        )
        .await;
}

/// The place answers.
async fn place(bed: &Bed, recorder: &mut Recorder) -> Option<()> {
    let answers = recorder
        .check("look-up", "there is no entry yet: what was refused has made none", async {
            match bed.entries().await {
                Err(error) if cannot_be_used(&error) => Err(Missed::NotApplicable(format!(
                    "the place cannot be used: {}; name one that answers with --settings",
                    described(&error)
                ))),
                Err(error) => success("`look-up`", Err(error)),
                Ok(entries) if entries.is_empty() => Ok(()),
                Ok(entries) => Err(Missed::Failed(format!("it shows {}", counted(entries.len())))),
            }
        })
        .await;
    recorder
        .check("withdraw", "an entry that was never made is a success", async {
            needed(answers, NO_PLACE)?;
            success("`withdraw`", bed.withdraw().await)?;
            success("a repeated `withdraw`", bed.withdraw().await)
        })
        .await;
    answers
}

/// It is the place or the operator who has to do something, and not the plugin.
fn cannot_be_used(error: &Failure) -> bool {
    matches!(
        error.kind,
        FailureKind::Unavailable
            | FailureKind::FailedPrecondition
            | FailureKind::ResourceExhausted
            | FailureKind::PermissionDenied
    )
}

async fn published(
    bed: &Bed,
    place: Option<()>,
    interval: Option<Duration>,
    recorder: &mut Recorder,
) -> Option<()> {
    let said = bed.first();
    let lasts = recorder
        .check("publish", "the first time is `created`", async {
            needed(place, NO_PLACE)?;
            match bed.publish(&said).await {
                Err(error) if cannot_be_used(&error) => Err(Missed::NotApplicable(format!(
                    "the place takes nothing: {}",
                    described(&error)
                ))),
                Ok(Published { change, .. }) if change != Change::Created => Err(Missed::Failed(
                    format!("`publish` answers `{}` where there was nothing", change.name()),
                )),
                other => success("`publish`", other).map(|published| published.expires_in),
            }
        })
        .await;
    let published = lasts.map(drop);
    recorder
        .check("publish", "the entry lasts beyond the next interval", async {
            let interval = needed(interval, "there is no interval")?;
            match needed(lasts, NOT_PUBLISHED)? {
                Some(lasts) if lasts <= interval => Err(Missed::Failed(format!(
                    "it lasts {} s, and the next call may come after {} s",
                    lasts.as_secs(),
                    interval.as_secs()
                ))),
                _ => Ok(()),
            }
        })
        .await;
    recorder
        .check("look-up", "it shows exactly what was published", async {
            needed(published, NOT_PUBLISHED)?;
            bed.shows("after it", &said).await
        })
        .await;
    recorder
        .check("publish", "the same again is no second entry, and not `created`", async {
            needed(published, NOT_PUBLISHED)?;
            let again = success("a repeated `publish`", bed.publish(&said).await)?;
            if again.change == Change::Created {
                return Err(Missed::failed("a repeated `publish` answers `created`"));
            }
            bed.shows("after it", &said).await
        })
        .await;
    published
}

async fn changed(bed: &Bed, published: Option<()>, recorder: &mut Recorder) {
    let (first, second) = (bed.first(), bed.second());
    recorder
        .check("publish", "a change is `updated`, and shown", async {
            needed(published, NOT_PUBLISHED)?;
            let changed = success("`publish` of a change", bed.publish(&second).await)?;
            if changed.change != Change::Updated {
                return Err(Missed::Failed(format!(
                    "`publish` of a change answers `{}`",
                    changed.change.name()
                )));
            }
            bed.shows("after it", &second).await
        })
        .await;
    recorder
        .check("look-up", "beside a `publish` it shows what was, or what is", async {
            needed(published, NOT_PUBLISHED)?;
            bed.await_turn().await;
            let looking = async {
                let mut seen = Vec::new();
                for _ in 0..3 {
                    let (one, other) = tokio::join!(bed.entries(), bed.entries());
                    seen.extend([one, other]);
                }
                seen
            };
            let (published, seen) = tokio::join!(bed.publish(&first), looking);
            success("`publish`", published)?;
            for entries in seen {
                let entries = success("`look-up` beside it", entries)?;
                let known = |entry: &Listing| {
                    [&first, &second].iter().any(|said| entry.differences(said).is_empty())
                };
                if entries.len() > 1 || !entries.iter().all(known) {
                    return Err(Missed::Failed(format!(
                        "`look-up` beside it shows {}, which was never published so",
                        counted(entries.len())
                    )));
                }
            }
            bed.shows("after it", &first).await
        })
        .await;
}

async fn found(bed: &Bed, published: Option<()>, recorder: &mut Recorder) {
    let said = bed.first();
    let Resources { cpu_cores, memory_gb, storage_gb } = said.available;
    let fitting = Query {
        min_cpu_cores: Some(cpu_cores),
        min_memory_gb: Some(memory_gb),
        min_storage_gb: Some(storage_gb),
        network: Some(said.network.clone()),
        payments_network: Some(said.payments_network.clone()),
        limit: ALL,
    };
    recorder
        .check("search", "whoever needs what is there finds it", async {
            needed(published, NOT_PUBLISHED)?;
            match bed.is_found(&fitting).await? {
                true => Ok(()),
                false => Err(Missed::failed("it does not find the entry that `look-up` shows")),
            }
        })
        .await;
    recorder
        .check("search", "whoever needs more, or another network, does not", async {
            needed(published, NOT_PUBLISHED)?;
            let mut demands = vec![
                ("more cores", Query { min_cpu_cores: Some(cpu_cores + 1), ..fitting.clone() }),
                ("more memory", Query { min_memory_gb: Some(memory_gb + 1), ..fitting.clone() }),
                ("more storage", Query { min_storage_gb: Some(storage_gb + 1), ..fitting.clone() }),
            ];
            // A place does not filter by what it does not keep.
            let entries = success("`look-up`", bed.entries().await)?;
            if entries.iter().any(|entry| entry.network.is_some()) {
                let network = Some("conformance-other".to_owned());
                demands.push(("another network", Query { network, ..fitting.clone() }));
            }
            for (what, query) in demands {
                if bed.is_found(&query).await? {
                    return Err(Missed::Failed(format!("whoever needs {what} finds the entry")));
                }
            }
            Ok(())
        })
        .await;
    recorder
        .check("search", "it answers no more than it was asked for", async {
            needed(published, NOT_PUBLISHED)?;
            let one =
                success("`search`", bed.search(&Query { limit: 1, ..Query::default() }).await)?;
            match one.len() {
                0 | 1 => Ok(()),
                count => Err(Missed::Failed(format!("asked for one, it answers {count}"))),
            }
        })
        .await;
}

async fn restarted(
    bed: &mut Bed,
    harness: &Harness,
    published: Option<()>,
    recorder: &mut Recorder,
) {
    let fresh = recorder
        .check("plugin", "a provider that starts anew finds the entry as its own", async {
            needed(published, NOT_PUBLISHED)?;
            harness.load_advertiser().await.map_err(|error| Missed::Failed(error.to_string()))
        })
        .await;
    let Some(fresh) = fresh else { return };
    bed.plugin = fresh;
    recorder
        .check("publish", "after a restart it is still the same entry", async {
            let said = bed.first();
            bed.shows("after it", &said).await?;
            let again = success("`publish`", bed.publish(&said).await)?;
            if again.change == Change::Created {
                return Err(Missed::failed("`publish` answers `created`"));
            }
            bed.shows("after that", &said).await
        })
        .await;
}

async fn withdrawn(bed: &Bed, published: Option<()>, recorder: &mut Recorder) {
    recorder
        .check("withdraw", "the entry is gone, and withdrawing again is a success", async {
            needed(published, NOT_PUBLISHED)?;
            success("`withdraw`", bed.withdraw().await)?;
            bed.shows_nothing("after it").await?;
            success("a repeated `withdraw`", bed.withdraw().await)?;
            bed.shows_nothing("after that").await
        })
        .await;
    recorder
        .check("search", "nobody finds what was withdrawn", async {
            needed(published, NOT_PUBLISHED)?;
            let network = Some(bed.first().network);
            match bed.is_found(&Query { network, limit: ALL, ..Query::default() }).await? {
                false => Ok(()),
                true => Err(Missed::failed("it finds the entry that was withdrawn")),
            }
        })
        .await;
}

async fn cut_off_anywhere(bed: &Bed, published: Option<()>, recorder: &mut Recorder) {
    let (first, second) = (bed.first(), bed.second());
    recorder
        .check("publish", "cut off in the middle and repeated, there is exactly one entry", async {
            needed(published, NOT_PUBLISHED)?;
            for (after, said) in CUT_OFF.into_iter().zip([&first, &second].into_iter().cycle()) {
                if bed.begin_to_publish(said, after).await.is_some() {
                    break;
                }
            }
            success("`publish`", bed.publish(&first).await)?;
            bed.shows("after it", &first).await
        })
        .await;
    recorder
        .check("withdraw", "cut off in the middle and repeated, the entry is gone", async {
            needed(published, NOT_PUBLISHED)?;
            for after in CUT_OFF {
                if cut_off(after, bed.plugin.withdraw(&bed.provider_id)).await.is_some() {
                    break;
                }
            }
            success("`withdraw`", bed.withdraw().await)?;
            bed.shows_nothing("after it").await
        })
        .await;
    recorder
        .check("withdraw", "an entry whose `publish` was cut off is removed", async {
            needed(published, NOT_PUBLISHED)?;
            for after in CUT_OFF {
                let whole = bed.begin_to_publish(&first, after).await.is_some();
                success("`withdraw`", bed.withdraw().await)?;
                bed.shows_nothing("after it").await?;
                if whole {
                    break;
                }
            }
            Ok(())
        })
        .await;
}
