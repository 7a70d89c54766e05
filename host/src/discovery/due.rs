//! When an advertiser has to do what. Pure: instants go in, a step comes out.

use std::time::Duration;

use tokio::time::Instant;

use super::offer::Offer;
use crate::plugins::advertiser::{Advertisement, Schedule};

/// Whether requestors see us is looked up this often at most, and at least.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A look that was so short ago tells what is there now.
const JUST_NOW: Duration = Duration::from_secs(1);

/// After the first failure, and after many.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What an advertiser has done up to now.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// What it published last, when, and when the prices in it were new.
    pub published: Option<Publication>,
    /// Something of ours may be listed.
    pub may_be_listed: bool,
    /// Failures in a row, and when the last one was.
    pub failures: u32,
    pub failed_at: Option<Instant>,
    /// When it was looked up last.
    pub looked_at: Option<Instant>,
    /// What was looked up is not what it should be: publish again, however short ago that was.
    pub to_be_repaired: bool,
}

#[derive(Debug, Clone)]
pub struct Publication {
    pub said: Advertisement,
    pub at: Instant,
    pub priced_at: Instant,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Publish(Box<Advertisement>),
    Withdraw,
    LookUp,
    /// Nothing until then, unless something changes; without an instant, nothing until something changes.
    Wait(Option<Instant>),
}

/// Decides. `jitter` is between -1 and 1: many providers that lost the same server do not all come back at once.
pub fn due(done: &Done, offer: &Offer, schedule: Schedule, jitter: f64, now: Instant) -> Step {
    if let Some(failed_at) = done.failed_at {
        let again = failed_at + pause(done.failures, schedule, jitter);
        if now < again {
            return Step::Wait(Some(again));
        }
    }
    let wanted = match offer {
        Offer::Undecided(_) => return Step::Wait(None),
        Offer::Withhold(_) if done.may_be_listed => return Step::Withdraw,
        Offer::Withhold(_) => return Step::Wait(None),
        Offer::Advertise(wanted) => wanted,
    };
    let publish = || Step::Publish(wanted.clone());
    let Some(Publication { said, at, priced_at }) = &done.published else { return publish() };
    let publish_at = if done.to_be_repaired || is_news(said, wanted) {
        *at + schedule.minimum_gap
    } else if **wanted != *said {
        (*priced_at + schedule.price_interval).max(*at + schedule.minimum_gap)
    } else {
        *at + schedule.interval
    };
    // Also a price that may wait does so no longer than the entry lasts.
    let publish_at = publish_at.min(*at + schedule.interval.max(schedule.minimum_gap));
    if now >= publish_at {
        // A renewal writes over whatever is there, so what is there is looked at before, or a stranger's hand goes unnoticed.
        let is_renewal = **wanted == *said && !done.to_be_repaired;
        let just_looked = done.looked_at.is_some_and(|looked_at| looked_at + JUST_NOW > now);
        return if is_renewal && !just_looked { Step::LookUp } else { publish() };
    }
    let every = (schedule.interval / 2).clamp(LOOK_EVERY.0, LOOK_EVERY.1);
    let look_at = match done.looked_at.filter(|looked_at| looked_at >= at) {
        Some(looked_at) => looked_at + every,
        None => *at,
    };
    if now >= look_at {
        return Step::LookUp;
    }
    Step::Wait(Some(publish_at.min(look_at)))
}

/// Does it differ in more than prices, which move by themselves?
fn is_news(said: &Advertisement, wanted: &Advertisement) -> bool {
    let priced_alike = Advertisement { usd: said.usd, glm: said.glm, ..wanted.clone() };
    // A price in another currency for the first time, or an operator's own new price, is news.
    priced_alike != *said || said.usd != wanted.usd || said.glm.is_some() != wanted.glm.is_some()
}

/// Growing, but never so long that an entry expires for it alone.
fn pause(failures: u32, schedule: Schedule, jitter: f64) -> Duration {
    let longest = LONGEST_PAUSE.min(schedule.interval / 4).max(FIRST_PAUSE);
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(1.0 + 0.2 * jitter.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::tests::advertisement;

    const SCHEDULE: Schedule = Schedule {
        interval: Duration::from_secs(240),
        minimum_gap: Duration::from_secs(2),
        price_interval: Duration::from_secs(900),
    };

    fn published(said: Advertisement, at: Instant) -> Done {
        let publication = Publication { said, at, priced_at: at };
        Done {
            published: Some(publication),
            may_be_listed: true,
            looked_at: Some(at),
            ..Done::default()
        }
    }

    fn offer(advertisement: &Advertisement) -> Offer {
        Offer::Advertise(Box::new(advertisement.clone()))
    }

    #[test]
    fn a_change_goes_out_at_once_but_for_the_gap_and_what_is_unchanged_with_the_interval() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let (old, new) = (advertisement(4), advertisement(2));
        let due = |done: &Done, wanted: &Advertisement, seconds| {
            due(done, &offer(wanted), SCHEDULE, 0.0, after(seconds))
        };
        assert_eq!(due(&Done::default(), &old, 0.0), Step::Publish(Box::new(old.clone())));
        let done = published(old.clone(), start);
        assert_eq!(due(&done, &new, 1.0), Step::Wait(Some(after(2.0))));
        assert_eq!(due(&done, &new, 2.0), Step::Publish(Box::new(new)));
        let mut seen = done.clone();
        seen.looked_at = Some(after(200.0));
        assert_eq!(due(&seen, &old, 230.0), Step::Wait(Some(after(240.0))));
        assert_eq!(due(&seen, &old, 240.0), Step::LookUp);
        seen.looked_at = Some(after(240.0));
        assert_eq!(due(&seen, &old, 240.0), Step::Publish(Box::new(old.clone())));
        assert_eq!(due(&done, &old, 61.0), Step::LookUp);
    }

    #[test]
    fn prices_that_move_wait_longer_but_never_longer_than_the_entry_lasts() {
        let start = Instant::now();
        let schedule = Schedule { interval: Duration::from_secs(3600), ..SCHEDULE };
        let mut old = advertisement(4);
        old.glm = Some(old.usd);
        let mut new = old.clone();
        new.glm.as_mut().unwrap().per_core_month = "5.01".parse().unwrap();
        let mut done = published(old, start);
        done.looked_at = Some(start + Duration::from_secs(890));
        let step = |done: &Done, schedule, seconds| {
            due(done, &offer(&new), schedule, 0.0, start + Duration::from_secs(seconds))
        };
        assert_eq!(step(&done, schedule, 891), Step::Wait(Some(start + Duration::from_secs(900))));
        assert_eq!(step(&done, schedule, 900), Step::Publish(Box::new(new.clone())));
        assert_eq!(step(&done, SCHEDULE, 240), Step::Publish(Box::new(new.clone())));
        // The operator's own price does not wait.
        new.usd.per_core_month = 7.into();
        let step = due(&done, &offer(&new), schedule, 0.0, start + Duration::from_secs(2));
        assert_eq!(step, Step::Publish(Box::new(new)));
    }

    #[test]
    fn what_is_withheld_is_withdrawn_once_and_what_is_undecided_is_left() {
        let now = Instant::now();
        let withhold = Offer::Withhold("full".into());
        let mut done = published(advertisement(4), now);
        assert_eq!(due(&done, &withhold, SCHEDULE, 0.0, now), Step::Withdraw);
        done.may_be_listed = false;
        assert_eq!(due(&done, &withhold, SCHEDULE, 0.0, now), Step::Wait(None));
        let undecided = Offer::Undecided("ports".into());
        done.may_be_listed = true;
        assert_eq!(due(&done, &undecided, SCHEDULE, 0.0, now), Step::Wait(None));
    }

    #[test]
    fn an_entry_that_others_changed_is_put_right_after_the_gap() {
        let start = Instant::now();
        let said = advertisement(4);
        let mut done = published(said.clone(), start);
        done.to_be_repaired = true;
        let now = start + Duration::from_secs(1);
        let gap = start + SCHEDULE.minimum_gap;
        assert_eq!(due(&done, &offer(&said), SCHEDULE, 0.0, now), Step::Wait(Some(gap)));
        let publish = Step::Publish(Box::new(said.clone()));
        assert_eq!(due(&done, &offer(&said), SCHEDULE, 0.0, gap), publish);
    }

    proptest! {
        #[test]
        fn after_failures_nothing_is_tried_too_soon_and_everything_again(
            failures in 1_u32..200, jitter in -1.0_f64..1.0, interval in 1_u64..100_000,
        ) {
            let schedule = Schedule { interval: Duration::from_secs(interval), ..SCHEDULE };
            let now = Instant::now();
            let done = Done { failures, failed_at: Some(now), ..Done::default() };
            let wanted = offer(&advertisement(4));
            let Step::Wait(Some(again)) = due(&done, &wanted, schedule, jitter, now) else {
                panic!("it is tried again at once");
            };
            prop_assert!(again - now >= Duration::from_millis(799));
            prop_assert!(again - now <= LONGEST_PAUSE.mul_f64(1.2));
            let is_publish =
                matches!(due(&done, &wanted, schedule, jitter, again), Step::Publish(_));
            prop_assert!(is_publish);
        }
    }
}
