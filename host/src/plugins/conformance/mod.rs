//! The conformance suite: does a plugin keep what its kind promises, as the provider relies on it?
//!
//! The plugin runs in the real engine with the real imports, in a [`Harness`]'s directory. Each check is one promise of
//! `wit/`, in the order of a machine's life:
//!
//! ```text
//! identity    is it a plugin, what does it say of itself, can it work here
//! requests    unknown ids, requests that are wrong
//! life        create ─ side by side ─ ready ─ restart of the provider ─ stop ─ start ─ delete
//! left        nothing is left of what was made
//! ```
//! What an advertiser promises is in `advertising.rs`, what a payment verifier does in `payments.rs`. A check that needs the outcome of one that failed is not applicable. Whatever happens, also when the suite is broken off,
//! [`run`] removes what it had made. `record.rs` keeps the outcomes, the other modules are the checks.

mod advertising;
mod expect;
mod identity;
mod left;
mod life;
mod meddling;
mod payments;
mod record;
mod requests;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::record::{Check, Event, Observer, Outcome, Verdict};
use self::{meddling::MeddledChain, record::Recorder};
use super::{
    advertiser_component::AdvertiserComponent,
    harness::{Harness, Loaded},
    kind::Kind,
    payment_component::PaymentComponent,
    plugin::{Description, Finding},
    vm_backend::{InstanceSpec, ProgressSink},
    vm_component::VmComponent,
};

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    pub kind: Kind,
    /// Absent if the plugin could not even say what it is.
    pub plugin: Option<Description>,
    /// What its probe found.
    pub findings: Vec<Finding>,
    /// Its probe says that it cannot work on this machine, so most could not be tried.
    pub blocked: bool,
    /// It was broken off.
    pub interrupted: bool,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            plugin: None,
            findings: Vec::new(),
            blocked: false,
            interrupted: false,
            outcomes: Vec::new(),
        }
    }

    /// Was everything tried, and was all of it as promised?
    pub fn passed(&self) -> bool {
        !self.blocked
            && !self.interrupted
            && !self.outcomes.is_empty()
            && self.outcomes.iter().all(|outcome| outcome.verdict == Verdict::Passed)
    }

    /// How many passed, failed, and could not be applied.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |is: fn(&Verdict) -> bool| {
            self.outcomes.iter().filter(|outcome| is(&outcome.verdict)).count()
        };
        (
            count(|verdict| matches!(verdict, Verdict::Passed)),
            count(|verdict| matches!(verdict, Verdict::Failed(_))),
            count(|verdict| matches!(verdict, Verdict::NotApplicable(_))),
        )
    }
}

/// How long what a run has left is given to be removed.
const TIDYING: Duration = Duration::from_secs(120);

/// Checks a plugin of whatever kind; what is no plugin at all fails as a VM backend. `image` is for those.
pub async fn run(
    harness: &Harness,
    image: Option<&str>,
    observer: Observer,
    broken_off: &CancellationToken,
) -> Report {
    match harness.compile().await.map(|component| component.kind()) {
        Ok(Kind::DiscoveryAdvertiser) => run_advertiser(harness, observer, broken_off).await,
        Ok(Kind::PaymentVerifier) => run_payment_verifier(harness, observer, broken_off).await,
        Ok(Kind::VmBackend) | Err(_) => run_vm_backend(harness, image, observer, broken_off).await,
    }
}

/// Checks an advertiser, at the place that its settings name. It lists the provider whose key the harness has, or one that
/// nobody is, and withdraws that whatever happens, also when `broken_off` is cancelled.
pub async fn run_advertiser(
    harness: &Harness,
    observer: Observer,
    broken_off: &CancellationToken,
) -> Report {
    let kind = Kind::DiscoveryAdvertiser;
    let mut report = Report::new(kind);
    let mut recorder = Recorder::new(observer);
    let mut bed = None;
    let work = async {
        let plugin =
            identity::check(harness, kind, AdvertiserComponent::new, &mut recorder, &mut report)
                .await?;
        let bed = bed.insert(advertising::Bed::new(plugin, harness.address(), recorder.observer()));
        advertising::check(bed, harness, &mut recorder).await;
        Some(())
    };
    tokio::select! {
        _ = work => {}
        () = broken_off.cancelled() => report.interrupted = true,
    }
    if let Some(bed) = bed {
        recorder.say("withdrawing what is left");
        // What does not go in time expires by itself.
        let _ = tokio::time::timeout(TIDYING, bed.tidy()).await;
    }
    report.outcomes = recorder.into_outcomes();
    report
}

/// Checks a payment verifier, on the chains that the harness has. Nothing is sent there, and nothing is left.
pub async fn run_payment_verifier(
    harness: &Harness,
    observer: Observer,
    broken_off: &CancellationToken,
) -> Report {
    let kind = Kind::PaymentVerifier;
    let mut report = Report::new(kind);
    let mut recorder = Recorder::new(observer);
    let chain = Arc::new(MeddledChain::new(harness.chains()));
    let harness = harness.clone().ethereum(Arc::<MeddledChain>::clone(&chain));
    let work = async {
        let plugin =
            identity::check(&harness, kind, PaymentComponent::new, &mut recorder, &mut report)
                .await?;
        let mut bed = payments::Bed::new(plugin, chain);
        payments::check(&mut bed, &harness, &mut recorder).await;
        Some(())
    };
    tokio::select! {
        _ = work => {}
        () = broken_off.cancelled() => report.interrupted = true,
    }
    report.outcomes = recorder.into_outcomes();
    report
}

/// Checks a VM backend. `image` is one of its aliases, by default the first. Ends early, and tidies up, when `broken_off`
/// is cancelled.
pub async fn run_vm_backend(
    harness: &Harness,
    image: Option<&str>,
    observer: Observer,
    broken_off: &CancellationToken,
) -> Report {
    let mut report = Report::new(Kind::VmBackend);
    let mut recorder = Recorder::new(observer);
    let machines = Machines::new();
    let mut loaded = None;
    let work = async {
        let Some(plugin) =
            identity::check(harness, Kind::VmBackend, VmComponent::new, &mut recorder, &mut report)
                .await
        else {
            return;
        };
        let mut bed = Bed { plugin: Arc::new(plugin), machines: &machines };
        loaded = Some(Arc::clone(&bed.plugin));
        let image = identity::offers(&bed, image, &mut recorder).await;
        requests::check(&bed, image.as_deref(), &mut recorder).await;
        life::check(&mut bed, harness, image.as_deref(), &mut recorder).await;
        left::check(&bed, harness, &mut recorder).await;
    };
    tokio::select! {
        () = work => {}
        () = broken_off.cancelled() => report.interrupted = true,
    }
    if let Some(plugin) = loaded
        && (report.interrupted || !recorder.all_passed())
    {
        recorder.say("removing what is left of the machines");
        // Whatever does not go in time is named by the check of what is left, or by the operator's own interruption.
        let _ = tokio::time::timeout(TIDYING, left::remove(&plugin, &machines)).await;
    }
    report.outcomes = recorder.into_outcomes();
    report
}

/// What the checks work on.
struct Bed<'a> {
    plugin: Arc<Loaded>,
    machines: &'a Machines,
}

/// The machines of one run. Their ids are found nowhere else, since a backend may know machines that others made; and they
/// do not begin as a provider's do, or one that runs on this computer would remove them.
struct Machines {
    tag: String,
}

impl Machines {
    fn new() -> Self {
        let tag = uuid::Uuid::new_v4().simple().to_string();
        Self { tag: format!("conformance-{}", &tag[..10]) }
    }

    /// Goes through a whole life.
    fn main(&self) -> String {
        format!("{}-a", self.tag)
    }

    /// As long as an id can be.
    fn long(&self) -> String {
        format!("{}-{}", self.tag, "b".repeat(100 - self.tag.len() - 1))
    }

    fn third(&self) -> String {
        format!("{}-c", self.tag)
    }

    /// Is deleted before it was made.
    fn short_lived(&self) -> String {
        format!("{}-d", self.tag)
    }

    /// Is never made.
    fn unknown(&self) -> String {
        format!("{}-never-made", self.tag)
    }

    /// Must not come into being.
    fn refused(&self) -> String {
        format!("{}-refused", self.tag)
    }

    fn all(&self) -> [String; 6] {
        [self.main(), self.long(), self.third(), self.short_lived(), self.unknown(), self.refused()]
    }

    fn are(&self, id: &str) -> bool {
        id.starts_with(&self.tag)
    }
}

/// Keys without a private half that anybody has.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio one@example.org";
const SECOND_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKqP3GRLUWVzUCw5cE6D2Tq8b4AwAWTK8kE5PCnO6oXo two@example.org";

/// The smallest machine that requestors can ask for.
fn spec(id: &str, image: &str) -> InstanceSpec {
    InstanceSpec {
        id: id.to_owned(),
        hostname: "conformance".to_owned(),
        cpu_cores: 1,
        memory_mib: 1024,
        storage_mib: 10 * 1024,
        image: image.to_owned(),
        ssh_authorized_keys: vec![KEY.to_owned()],
    }
}

/// Where the progress of a call is shown.
fn heard(recorder: &Recorder) -> ProgressSink {
    let observer = recorder.observer();
    Arc::new(move |progress| {
        let percent = progress.percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        observer(Event::Stage(&format!("{}{percent}", progress.stage)));
    })
}

#[cfg(test)]
mod tests;
