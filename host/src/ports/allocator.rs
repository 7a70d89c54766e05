//! The rule by which a port is chosen: the lowest one of the range that no VM holds and that can be reached.
//!
//! Also the one place where a VM that is given a port and a check that listens on it meet. Who checks a port [`hold`]s it for
//! as long as it is under test; who gives it to a VM [`claim`]s it first, which ends a test there at once.
//!
//! [`hold`]: PortAllocator::hold
//! [`claim`]: PortAllocator::claim

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, TcpListener},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The ports that can be handed out. Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub struct PortAllocator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    range: Range<u16>,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    usable: Usable,
    under_test: BTreeMap<u16, Test>,
    claimed: BTreeSet<u16>,
}

/// A port that is listened on to see who comes.
#[derive(Debug)]
struct Test {
    listener: TcpListener,
    somebody_came: bool,
}

impl Test {
    fn look(&mut self) -> bool {
        self.somebody_came |= match self.listener.accept() {
            Ok(_) => true,
            // Somebody came who has gone again.
            Err(error) => error.kind() == io::ErrorKind::ConnectionAborted,
        };
        self.somebody_came
    }
}

#[derive(Debug)]
enum Usable {
    /// Nobody checks.
    All,
    Only(BTreeSet<u16>),
}

/// A range of ports without a port, or with port 0, which means "any".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{from}-{to} is not a range of ports: it has to begin at 1 or above and hold at least one port"
)]
pub struct InvalidRange {
    from: u16,
    to: u16,
}

/// Why a port cannot be listened on for a test.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// A VM is being given it at this moment.
    #[error("a VM is being given port {0}")]
    Claimed(u16),
    #[error("cannot listen on port {port}: {source}")]
    Io { port: u16, source: io::Error },
}

/// While this exists no test listens on the port.
#[derive(Debug)]
pub struct Claim {
    shared: Arc<Shared>,
    port: u16,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.book().claimed.remove(&self.port);
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // Every change is a single insert, remove or assignment.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PortAllocator {
    /// Hands out all of `range`, whose end is exclusive.
    ///
    /// # Errors
    /// When the range is empty or begins at 0.
    pub fn new(range: Range<u16>) -> Result<PortAllocator, InvalidRange> {
        PortAllocator::with(range, Usable::All)
    }

    /// Hands out none of `range` until [`PortAllocator::set_usable`] says which.
    ///
    /// # Errors
    /// When the range is empty or begins at 0.
    pub fn only_verified(range: Range<u16>) -> Result<PortAllocator, InvalidRange> {
        PortAllocator::with(range, Usable::Only(BTreeSet::new()))
    }

    fn with(range: Range<u16>, usable: Usable) -> Result<PortAllocator, InvalidRange> {
        if range.is_empty() || range.start == 0 {
            return Err(InvalidRange { from: range.start, to: range.end });
        }
        let book = Book { usable, under_test: BTreeMap::new(), claimed: BTreeSet::new() };
        Ok(PortAllocator(Arc::new(Shared { range, book: Mutex::new(book) })))
    }

    /// The ports to try, best first: those of the range that are usable and not in use, lowest first. The caller takes the
    /// first one that can be bound. Ports in use may lie outside the range, when the operator has changed it since.
    pub fn candidates(&self, in_use: BTreeSet<u16>) -> impl Iterator<Item = u16> + use<> {
        let usable = match &self.0.book().usable {
            Usable::All => None,
            Usable::Only(usable) => Some(usable.clone()),
        };
        self.range().filter(move |port| {
            !in_use.contains(port) && usable.as_ref().is_none_or(|usable| usable.contains(port))
        })
    }

    /// The range, its end exclusive.
    pub fn range(&self) -> Range<u16> {
        self.0.range.clone()
    }

    /// Has a check found no port of the range that can be handed out, or found nothing yet?
    pub fn none_is_usable(&self) -> bool {
        matches!(&self.0.book().usable, Usable::Only(usable) if usable.is_empty())
    }

    /// From now on only these ports are handed out. VMs keep theirs.
    pub fn set_usable(&self, ports: BTreeSet<u16>) {
        self.0.book().usable = Usable::Only(ports);
    }

    /// To be called before a VM's port is opened, and kept until it is open: ends a test that listens on the port.
    pub fn claim(&self, port: u16) -> Claim {
        let mut book = self.0.book();
        book.under_test.remove(&port);
        book.claimed.insert(port);
        Claim { shared: Arc::clone(&self.0), port }
    }

    /// Listens on a port until [`PortAllocator::release`], or until a VM is given it. Nobody is answered; the kernel completes
    /// the handshakes.
    ///
    /// # Errors
    /// Something else has the port.
    pub fn hold(&self, bind: IpAddr, port: u16) -> Result<(), HoldError> {
        let mut book = self.0.book();
        if book.claimed.contains(&port) {
            return Err(HoldError::Claimed(port));
        }
        let listener = TcpListener::bind((bind, port))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|source| HoldError::Io { port, source })?;
        book.under_test.insert(port, Test { listener, somebody_came: false });
        Ok(())
    }

    /// Has anybody connected to a port under test? `None` when a VM was given the port meanwhile, so that nobody can tell.
    pub fn has_visitor(&self, port: u16) -> Option<bool> {
        self.0.book().under_test.get_mut(&port).map(Test::look)
    }

    /// Ends a test. Answers as [`PortAllocator::has_visitor`] does.
    pub fn release(&self, port: u16) -> Option<bool> {
        self.0.book().under_test.remove(&port).map(|mut test| test.look())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_without_ports_is_refused() {
        assert!(PortAllocator::new(50800..50800).is_err());
        #[expect(clippy::reversed_empty_ranges)]
        let backwards = PortAllocator::new(50900..50800);
        assert!(backwards.is_err());
        assert!(PortAllocator::new(0..10).is_err());
        assert!(PortAllocator::new(50800..50801).is_ok());
    }

    #[test]
    fn only_ports_that_were_verified_are_handed_out_once_somebody_checks() {
        let ports = PortAllocator::only_verified(100..110).unwrap();
        assert!(ports.none_is_usable());
        assert_eq!(ports.candidates(BTreeSet::new()).next(), None);
        ports.set_usable(BTreeSet::from([103, 105, 200]));
        let offered: Vec<u16> = ports.clone().candidates(BTreeSet::from([103])).collect();
        assert_eq!(offered, [105]);
        assert!(!ports.none_is_usable());
    }

    #[test]
    fn a_test_that_listens_on_a_port_makes_way_for_a_vm_and_cannot_come_back_while_it_moves_in() {
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let port = crate::vms::testing::free_ports(1).start;
        let ports = PortAllocator::new(port..port + 1).unwrap();
        ports.hold(bind, port).unwrap();
        assert!(TcpListener::bind((bind, port)).is_err());

        let claim = ports.claim(port);
        let of_the_vm = TcpListener::bind((bind, port)).unwrap();
        assert_eq!(ports.release(port), None);
        assert!(matches!(ports.hold(bind, port), Err(HoldError::Claimed(_))));
        drop(claim);
        assert!(matches!(ports.hold(bind, port), Err(HoldError::Io { .. })));
        drop(of_the_vm);
        ports.hold(bind, port).unwrap();
    }

    #[test]
    fn a_test_knows_whether_anybody_has_connected_and_leaves_the_port_free() {
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let port = crate::vms::testing::free_ports(1).start;
        let ports = PortAllocator::new(port..port + 1).unwrap();
        ports.hold(bind, port).unwrap();
        assert_eq!(ports.release(port), Some(false));
        ports.hold(bind, port).unwrap();
        drop(TcpStream::connect((bind, port)).unwrap());
        assert_eq!(ports.has_visitor(port), Some(true));
        assert_eq!(ports.release(port), Some(true));
        assert!(TcpListener::bind((bind, port)).is_ok());
    }

    proptest! {
        #[test]
        fn the_lowest_free_port_is_handed_out_and_never_one_in_use(
            start in 1u16..200,
            length in 1u16..50,
            in_use in prop::collection::btree_set(1u16..300, 0..80),
            usable in prop::option::of(prop::collection::btree_set(1u16..300, 0..80)),
        ) {
            let ports = PortAllocator::new(start..start + length).unwrap();
            if let Some(usable) = usable.clone() {
                ports.set_usable(usable);
            }
            let offered: Vec<u16> = ports.candidates(in_use.clone()).collect();
            let expected: Vec<u16> = (start..start + length)
                .filter(|port| !in_use.contains(port))
                .filter(|port| usable.as_ref().is_none_or(|usable| usable.contains(port)))
                .collect();
            prop_assert_eq!(offered, expected);
        }

        #[test]
        fn any_sequence_of_taking_and_giving_back_hands_no_port_out_twice(
            steps in prop::collection::vec(prop::option::of(0usize..8), 1..200),
        ) {
            let ports = PortAllocator::new(100..105).unwrap();
            let mut held: Vec<u16> = Vec::new();
            for step in steps {
                match step {
                    Some(index) if !held.is_empty() => { held.remove(index % held.len()); }
                    _ => match ports.candidates(held.iter().copied().collect()).next() {
                        Some(port) => {
                            prop_assert!(!held.contains(&port));
                            held.push(port);
                        }
                        None => prop_assert_eq!(held.len(), 5),
                    },
                }
            }
        }
    }
}
