//! Campaigns against a market in memory, in simulated time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, time::Instant};

use super::{
    AdvertiserReport, AdvertiserState, Advertising, Offer, Selection, visibility::Visibility,
};
use crate::plugins::{
    Advertiser, Failure, FailureKind,
    advertiser::{Advertisement, Change, Listing, Prices, Published, Query, Resources, Schedule},
};

pub const US: &str = "0x1111111111111111111111111111111111111111";

pub fn advertisement(cpu_cores: u32) -> Advertisement {
    Advertisement {
        provider_id: US.into(),
        name: "mine".into(),
        ip_address: [203, 0, 113, 5].into(),
        country: Some("SE".into()),
        platform: "x86_64".into(),
        network: "mainnet".into(),
        payments_network: "l2.holesky".into(),
        available: Resources { cpu_cores, memory_gb: 8, storage_gb: 100 },
        usd: Prices {
            per_core_month: 5.into(),
            per_gb_ram_month: 2.into(),
            per_gb_storage_month: "0.1".parse().unwrap(),
        },
        glm: None,
    }
}

pub fn listing_of(said: &Advertisement) -> Listing {
    Listing {
        provider_id: said.provider_id.clone(),
        ip_address: said.ip_address.to_string(),
        name: Some(said.name.clone()),
        country: said.country.clone(),
        platform: Some(said.platform.clone()),
        network: Some(said.network.clone()),
        payments_network: Some(said.payments_network.clone()),
        available: said.available,
        usd: Some(said.usd),
        glm: said.glm,
        owner: None,
        expires_in: None,
    }
}

/// A place that keeps one entry, with switches to make it fail.
#[derive(Default)]
struct Market {
    entry: Mutex<Option<Listing>>,
    /// When what was published.
    posts: Mutex<Vec<(Instant, Advertisement)>>,
    withdrawals: Mutex<u32>,
    failures: Mutex<VecDeque<FailureKind>>,
    down: Mutex<bool>,
}

impl Market {
    fn answer(&self) -> Result<(), Failure> {
        if *self.down.lock().unwrap() {
            return Err(Failure::new(FailureKind::Unavailable, "the market is down"));
        }
        match self.failures.lock().unwrap().pop_front() {
            Some(kind) => Err(Failure::new(kind, "not now")),
            None => Ok(()),
        }
    }

    fn posts(&self) -> Vec<u32> {
        self.posts.lock().unwrap().iter().map(|(_, said)| said.available.cpu_cores).collect()
    }

    fn listed(&self) -> Option<u32> {
        self.entry.lock().unwrap().as_ref().map(|entry| entry.available.cpu_cores)
    }
}

struct Stand(&'static str, Arc<Market>);

#[async_trait]
impl Advertiser for Stand {
    fn name(&self) -> &str {
        self.0
    }

    async fn schedule(&self) -> Result<Schedule, Failure> {
        Ok(Schedule {
            interval: Duration::from_secs(240),
            minimum_gap: Duration::from_secs(2),
            price_interval: Duration::from_secs(900),
        })
    }

    async fn publish(&self, said: &Advertisement) -> Result<Published, Failure> {
        self.1.answer()?;
        self.1.posts.lock().unwrap().push((Instant::now(), said.clone()));
        let before = self.1.entry.lock().unwrap().replace(listing_of(said));
        let change = if before.is_some() { Change::Updated } else { Change::Created };
        let expires_in = Some(Duration::from_secs(300));
        Ok(Published { change, expires_in, reference: Some("entry 1".into()) })
    }

    async fn withdraw(&self, _: &str) -> Result<(), Failure> {
        self.1.answer()?;
        *self.1.withdrawals.lock().unwrap() += 1;
        *self.1.entry.lock().unwrap() = None;
        Ok(())
    }

    async fn look_up(&self, _: &str) -> Result<Vec<Listing>, Failure> {
        self.1.answer()?;
        Ok(self.1.entry.lock().unwrap().clone().into_iter().collect())
    }

    async fn search(&self, _: &Query) -> Result<Vec<Listing>, Failure> {
        self.look_up(US).await
    }
}

struct Fixture {
    advertising: Advertising,
    offer: watch::Sender<Offer>,
    markets: Vec<Arc<Market>>,
}

fn offered(cpu_cores: u32) -> Offer {
    Offer::Advertise(Box::new(advertisement(cpu_cores)))
}

fn fixture(names: &[&'static str], first: Offer) -> Fixture {
    let (offer, receiver) = watch::channel(first);
    let selection = Selection::Named(names.iter().map(|name| (*name).to_owned()).collect());
    let advertising = Advertising::new(US.into(), receiver, selection);
    let markets: Vec<Arc<Market>> = names
        .iter()
        .map(|name| {
            let market = Arc::new(Market::default());
            advertising.install(Arc::new(Stand(name, Arc::clone(&market))));
            market
        })
        .collect();
    Fixture { advertising, offer, markets }
}

impl Fixture {
    fn report(&self) -> AdvertiserReport {
        self.advertising.reports().remove(0)
    }
}

async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn changes_are_published_as_one_and_the_last_of_them_is_never_lost() {
    let fixture = fixture(&["a"], offered(9));
    pass(0.1).await;
    for cpu_cores in (1..9).rev() {
        fixture.offer.send_replace(offered(cpu_cores));
        pass(0.1).await;
    }
    pass(2.0).await;
    assert_eq!(fixture.markets[0].posts(), [9, 1]);
    let report = fixture.report();
    assert_eq!(report.state, AdvertiserState::Published);
    assert_eq!(report.seen.unwrap().visibility, Visibility::Visible);
    pass(1000.0).await;
    assert_eq!(fixture.markets[0].posts().len(), 2 + 4, "every 240 s although nothing changed");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_down_is_tried_again_with_pauses_and_holds_up_no_other() {
    let fixture = fixture(&["a", "b"], offered(4));
    *fixture.markets[0].down.lock().unwrap() = true;
    pass(30.0).await;
    assert_eq!(fixture.markets[1].posts(), [4]);
    let report = fixture.report();
    assert_eq!(report.state, AdvertiserState::Failing);
    assert!(report.reason.unwrap().contains("the market is down"));
    assert!(report.next.is_some());
    *fixture.markets[0].down.lock().unwrap() = false;
    pass(80.0).await;
    assert_eq!(fixture.markets[0].listed(), Some(4));
    assert_eq!(fixture.report().state, AdvertiserState::Published);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_vanished_or_was_written_over_is_put_right() {
    let fixture = fixture(&["a"], offered(4));
    pass(1.0).await;
    *fixture.markets[0].entry.lock().unwrap() = None;
    pass(65.0).await;
    assert_eq!(fixture.markets[0].posts(), [4, 4], "a server that lost its database");
    {
        let mut entry = fixture.markets[0].entry.lock().unwrap();
        entry.as_mut().unwrap().ip_address = "198.51.100.9".into();
    }
    pass(60.0).await;
    assert_eq!(fixture.markets[0].posts(), [4, 4, 4]);
    assert_eq!(fixture.report().seen.unwrap().visibility, Visibility::Visible);
}

#[tokio::test(start_paused = true)]
async fn what_is_withheld_is_withdrawn_and_the_reason_is_told() {
    let fixture = fixture(&["a"], offered(4));
    pass(1.0).await;
    fixture.offer.send_replace(Offer::Withhold("it is full".into()));
    pass(1.0).await;
    assert_eq!(fixture.markets[0].listed(), None);
    let report = fixture.report();
    assert_eq!(
        (report.state, report.reason.as_deref()),
        (AdvertiserState::Withheld, Some("it is full"))
    );
    pass(1000.0).await;
    assert_eq!(*fixture.markets[0].withdrawals.lock().unwrap(), 1);
    fixture.offer.send_replace(offered(3));
    pass(1.0).await;
    assert_eq!(fixture.markets[0].listed(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_know_yet_leaves_what_its_last_run_published() {
    let fixture = fixture(&["a"], Offer::Undecided("ports are being verified".into()));
    pass(100.0).await;
    assert_eq!(*fixture.markets[0].withdrawals.lock().unwrap(), 0);
    let report = fixture.report();
    assert_eq!(report.state, AdvertiserState::Starting);
    assert_eq!(report.reason.as_deref(), Some("ports are being verified"));
}

#[tokio::test(start_paused = true)]
async fn an_end_withdraws_and_one_that_hangs_does_not_hold_it() {
    let fixture = fixture(&["a", "b"], offered(4));
    pass(1.0).await;
    let begun = Instant::now();
    fixture.advertising.shutdown(Duration::from_secs(3)).await;
    assert!(begun.elapsed() <= Duration::from_secs(3));
    assert!(fixture.markets.iter().all(|market| market.listed().is_none()));
    assert!(fixture.advertising.reports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn advertisers_come_go_and_are_chosen_while_others_go_on() {
    let fixture = fixture(&["a"], offered(4));
    let other = Arc::new(Market::default());
    fixture.advertising.install(Arc::new(Stand("b", Arc::clone(&other))));
    pass(1.0).await;
    assert_eq!(other.posts().len(), 0, "it was not chosen");
    let both = ["a", "b", "c"].map(str::to_owned).into();
    fixture.advertising.select(Selection::Named(both));
    pass(1.0).await;
    assert_eq!(other.listed(), Some(4));
    assert_eq!(fixture.advertising.missing(), ["c"]);
    fixture.advertising.remove("a");
    pass(1.0).await;
    assert_eq!(fixture.markets[0].listed(), None);
    assert_eq!(fixture.advertising.names(), ["b"]);
    // Another version of it takes over, and says so with its own words.
    let newer = Arc::new(Market::default());
    fixture.advertising.install(Arc::new(Stand("b", Arc::clone(&newer))));
    pass(3.0).await;
    assert_eq!(newer.listed(), Some(4));
}
