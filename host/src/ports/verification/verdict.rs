//! What several servers' answers come to, for one port. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::settings::PortQuorum;

/// What one server says: of each port it has checked, whether it could reach it.
pub type Ballot = BTreeMap<u16, bool>;

/// What is known of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortState {
    /// Enough servers reached it.
    Open,
    /// Enough servers could not reach it.
    Closed,
    /// Enough servers say that they reached something there, but nobody came here: it is forwarded to somewhere else, or
    /// they do not tell the truth.
    Misdirected,
    /// Another program on this machine has it.
    Occupied,
    /// Too few servers have answered, or too few of them agree.
    Unverified,
    /// Nobody was asked, as the operator wished.
    Skipped,
}

impl PortState {
    /// For people.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed from outside",
            Self::Misdirected => "leads to somewhere else",
            Self::Occupied => "taken by another program",
            Self::Unverified => "could not be verified",
            Self::Skipped => "not verified (skipped)",
        }
    }
}

/// How many servers say what of one port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Votes {
    pub open: u32,
    pub closed: u32,
}

impl Votes {
    /// Servers that said nothing of the port do not count.
    pub fn on<'a>(port: u16, ballots: impl IntoIterator<Item = &'a Ballot>) -> Votes {
        ballots.into_iter().filter_map(|ballot| ballot.get(&port)).fold(
            Votes::default(),
            |votes, open| match open {
                true => Votes { open: votes.open + 1, ..votes },
                false => Votes { closed: votes.closed + 1, ..votes },
            },
        )
    }

    /// What they come to. `somebody_came` tells whether a connection has arrived at this port meanwhile, where that can be
    /// told.
    pub fn decide(self, quorum: PortQuorum, somebody_came: Option<bool>) -> PortState {
        let needed = match quorum {
            PortQuorum::Majority => (self.open + self.closed) / 2 + 1,
            PortQuorum::AtLeast(servers) => servers.max(1),
        };
        match (self.open >= needed, self.closed >= needed, somebody_came) {
            (true, _, Some(false)) => PortState::Misdirected,
            (true, _, _) => PortState::Open,
            (false, true, _) => PortState::Closed,
            (false, false, _) => PortState::Unverified,
        }
    }

    /// Whether so many more answers could change nothing any more.
    pub fn are_settled(self, quorum: PortQuorum, outstanding: u32) -> bool {
        let now = self.decide(quorum, None);
        let if_open = Votes { open: self.open + outstanding, ..self };
        let if_closed = Votes { closed: self.closed + outstanding, ..self };
        now != PortState::Unverified
            && if_open.decide(quorum, None) == now
            && if_closed.decide(quorum, None) == now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use PortQuorum::{AtLeast, Majority};
    use PortState::{Closed, Misdirected, Open, Unverified};

    fn votes(open: u32, closed: u32) -> Votes {
        Votes { open, closed }
    }

    #[test]
    fn a_quorum_of_those_that_answered_decides() {
        for (open, closed, quorum, expected) in [
            (0, 0, Majority, Unverified), // nobody answered, which is not the same as closed
            (1, 0, Majority, Open),
            (0, 1, Majority, Closed),
            (1, 1, Majority, Unverified), // a tie decides nothing
            (2, 1, Majority, Open),
            (1, 2, Majority, Closed),
            (2, 2, Majority, Unverified),
            (3, 2, Majority, Open),
            (1, 0, AtLeast(2), Unverified), // one answered, but two are wanted
            (2, 0, AtLeast(2), Open),
            (2, 2, AtLeast(2), Open),
            (1, 2, AtLeast(1), Open), // one that reached it is enough for this operator
            (1, 2, AtLeast(2), Closed),
            (2, 1, AtLeast(3), Unverified),
        ] {
            assert_eq!(
                votes(open, closed).decide(quorum, None),
                expected,
                "{open}:{closed} {quorum:?}"
            );
        }
    }

    #[test]
    fn what_servers_reach_where_nobody_arrives_is_not_this_machine() {
        assert_eq!(votes(3, 0).decide(Majority, Some(false)), Misdirected);
        assert_eq!(votes(3, 0).decide(Majority, Some(true)), Open);
        assert_eq!(votes(0, 3).decide(Majority, Some(true)), Closed);
    }

    #[test]
    fn a_partial_answer_counts_for_the_ports_it_tells_of() {
        let ballots = [Ballot::from([(1, true), (2, false)]), Ballot::from([(1, true)])];
        assert_eq!(Votes::on(1, &ballots), votes(2, 0));
        assert_eq!(Votes::on(2, &ballots), votes(0, 1));
        assert_eq!(Votes::on(3, &ballots), votes(0, 0));
    }

    fn quorum() -> impl Strategy<Value = PortQuorum> {
        prop_oneof![Just(Majority), (1u32..5).prop_map(AtLeast)]
    }

    proptest! {
        #[test]
        fn liars_in_the_minority_change_nothing_that_the_others_agree_on(
            honest in 1u32..20, liars in 0u32..20, open: bool,
        ) {
            prop_assume!(liars < honest);
            let votes = if open { votes(honest, liars) } else { votes(liars, honest) };
            prop_assert_eq!(votes.decide(Majority, None), if open { Open } else { Closed });
        }

        #[test]
        fn servers_that_say_nothing_of_a_port_do_not_count(
            said in prop::collection::vec(any::<bool>(), 0..8), silent in 0usize..8,
        ) {
            let ballots: Vec<Ballot> = said.iter().map(|open| Ballot::from([(1, *open)])).collect();
            let with_silent = ballots.iter().cloned().chain(std::iter::repeat_n(Ballot::from([(2, true)]), silent));
            let with_silent: Vec<Ballot> = with_silent.collect();
            prop_assert_eq!(Votes::on(1, &ballots), Votes::on(1, &with_silent));
        }

        #[test]
        fn no_port_is_open_or_closed_that_no_server_calls_so(
            open in 0u32..6, closed in 0u32..6, quorum in quorum(), came in any::<Option<bool>>(),
        ) {
            match votes(open, closed).decide(quorum, came) {
                Open => prop_assert!(open > 0 && came != Some(false)),
                Misdirected => prop_assert!(open > 0 && came == Some(false)),
                Closed => prop_assert!(closed > 0),
                other => prop_assert_eq!(other, Unverified),
            }
        }

        #[test]
        fn what_is_settled_stays_whatever_the_rest_says(
            open in 0u32..6, closed in 0u32..6, more_open in 0u32..6, more_closed in 0u32..6, silent in 0u32..3,
            quorum in quorum(),
        ) {
            let now = votes(open, closed);
            if now.are_settled(quorum, more_open + more_closed + silent) {
                let later = votes(open + more_open, closed + more_closed);
                prop_assert_eq!(later.decide(quorum, None), now.decide(quorum, None));
            }
        }
    }
}
