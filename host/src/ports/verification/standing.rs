//! How each of those that are asked does in one round: what it has said, what went wrong, whether it is asked again. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    http,
    report::{ServerHealth, ServerReport},
    servers::{CheckServer, Fault},
    verdict::{Ballot, PortState},
};

/// After so many faults a server is asked no more in this round. One that was too slow gets no second chance: each costs the
/// whole deadline.
const PATIENCE: u32 = 2;

/// One server in one round.
#[derive(Debug)]
pub struct Standing {
    pub server: CheckServer,
    /// All that it has said.
    pub ballot: Ballot,
    faults: u32,
    last_fault: Option<Fault>,
    /// Others had settled everything before it answered.
    overtaken: bool,
    not_before: Option<Instant>,
}

impl Standing {
    pub fn new(server: CheckServer) -> Standing {
        Standing {
            server,
            ballot: Ballot::new(),
            faults: 0,
            last_fault: None,
            overtaken: false,
            not_before: None,
        }
    }

    /// Is it worth asking at `now`?
    pub fn is_to_be_asked(&self, now: Instant) -> bool {
        self.faults < PATIENCE && self.not_before.is_none_or(|time| time <= now)
    }

    /// Takes note of what came of asking it.
    pub fn take(&mut self, said: Result<Ballot, Fault>, now: Instant) {
        match said {
            Ok(ballot) => {
                self.ballot.extend(ballot);
                self.last_fault = None;
                self.overtaken = false;
            }
            Err(fault) => {
                match fault.health {
                    ServerHealth::RateLimited => {
                        let pause = fault.retry_after.unwrap_or(Duration::from_secs(60));
                        self.not_before = now.checked_add(pause);
                    }
                    ServerHealth::Slow => self.faults = PATIENCE,
                    _ => self.faults += 1,
                }
                self.last_fault = Some(fault);
            }
        }
    }

    /// Takes note of that the others were enough.
    pub fn was_overtaken(&mut self) {
        self.overtaken = true;
    }

    /// When a server that limits us wants to be asked again, if that is still to come.
    pub fn wants_pause(&self, now: Instant) -> Option<Duration> {
        (self.faults < PATIENCE).then_some(self.not_before?)?.checked_duration_since(now)
    }

    /// How it did, measured by what was found out in the end.
    pub fn report(&self, found: &BTreeMap<u16, PortState>) -> ServerReport {
        let (health, detail) = self.health(found);
        ServerReport {
            url: http::shown(&self.server.url),
            kind: self.server.kind,
            health,
            detail,
            ports_checked: self.ballot.len(),
        }
    }

    fn health(&self, found: &BTreeMap<u16, PortState>) -> (ServerHealth, Option<String>) {
        let contradicted = |(port, open): (&u16, &bool)| match found.get(port)? {
            PortState::Open => Some(!*open),
            PortState::Closed | PortState::Misdirected => Some(*open),
            PortState::Occupied | PortState::Unverified | PortState::Skipped => None,
        };
        let compared: Vec<bool> = self.ballot.iter().filter_map(contradicted).collect();
        let wrong = compared.iter().filter(|wrong| **wrong).count();
        if wrong * 2 > compared.len() {
            let detail = format!("contradicts what was found of {wrong} ports");
            return (ServerHealth::Outvoted, Some(detail));
        }
        match &self.last_fault {
            Some(fault) => (fault.health, Some(fault.detail.clone())),
            None if self.overtaken && self.ballot.is_empty() => {
                (ServerHealth::Slow, Some("the others were enough before it answered".to_owned()))
            }
            None => (ServerHealth::Good, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::verification::report::ServerKind;

    fn standing() -> Standing {
        Standing::new(CheckServer {
            url: "http://ports.example".into(),
            kind: ServerKind::Configured,
        })
    }

    fn fault(health: ServerHealth, retry_after: Option<u64>) -> Fault {
        let retry_after = retry_after.map(Duration::from_secs);
        Fault { health, detail: "because".into(), retry_after }
    }

    #[test]
    fn a_server_that_fails_gets_one_more_chance_and_one_that_hangs_none() {
        let now = Instant::now();
        let mut down = standing();
        down.take(Err(fault(ServerHealth::Down, None)), now);
        assert!(down.is_to_be_asked(now));
        down.take(Err(fault(ServerHealth::Nonsense, None)), now);
        assert!(!down.is_to_be_asked(now));
        let mut slow = standing();
        slow.take(Err(fault(ServerHealth::Slow, None)), now);
        assert!(!slow.is_to_be_asked(now));
    }

    #[test]
    fn a_server_that_limits_us_is_asked_again_when_it_wants_to_be() {
        let now = Instant::now();
        let mut limiting = standing();
        limiting.take(Err(fault(ServerHealth::RateLimited, Some(20))), now);
        assert!(!limiting.is_to_be_asked(now));
        assert_eq!(limiting.wants_pause(now), Some(Duration::from_secs(20)));
        let later = now + Duration::from_secs(20);
        assert!(limiting.is_to_be_asked(later));
        limiting.take(Ok(Ballot::from([(1, true)])), later);
        assert_eq!(limiting.report(&BTreeMap::new()).health, ServerHealth::Good);
    }

    #[test]
    fn a_server_that_says_the_opposite_of_what_was_found_is_told_from_the_others() {
        let found = BTreeMap::from([
            (1, PortState::Open),
            (2, PortState::Open),
            (3, PortState::Misdirected),
        ]);
        let says = |ballot: [(u16, bool); 3]| {
            let mut standing = standing();
            standing.take(Ok(Ballot::from(ballot)), Instant::now());
            standing.report(&found).health
        };
        assert_eq!(says([(1, true), (2, true), (3, false)]), ServerHealth::Good);
        assert_eq!(says([(1, true), (2, false), (3, false)]), ServerHealth::Good); // once may happen
        assert_eq!(says([(1, false), (2, false), (3, false)]), ServerHealth::Outvoted);
        assert_eq!(says([(1, false), (2, true), (3, true)]), ServerHealth::Outvoted);
    }
}
