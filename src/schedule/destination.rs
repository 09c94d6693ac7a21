//! What a shard knows of one domain, and of its mail at one home.
//!
//! Owns: the records [`Destination`] and [`Lane`] and the table that finds a destination by name.
//! Promises: a name is stored once; a destination without mail, connections or backoff is not kept,
//! nor is a lane without ready mail or connections. Must not: decide: that is done by the shard.
use hashbrown::{HashMap, HashTable};
use slab::Slab;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::deferred::Deferred;
use super::list::{Linked, Links, List};
use super::policy::{COMMON, PolicyId};
use super::ready::{Cursor, Ready};
use super::timers::{NEVER, Timed, Timer};
use super::wheel::NIL;
use crate::mail::address::Domain;

/// The lists a lane can be in: for a connection slot, and for its turn under a rate.
const SLOT: u8 = 0;
pub(super) const RATE: u8 = 1;

/// Lanes that wait for a connection slot.
pub(super) type Waiting = List<SLOT>;

/// Those in want of one resource, a destination's or a home's connections, in the order in which
/// they are served: who has no connection at all comes before who would like another.
#[derive(Debug)]
pub(super) struct Queues {
    /// Without any connection, with urgent mail.
    pub(super) urgent: Waiting,
    pub(super) starved: Waiting,
    pub(super) growing: Waiting,
    /// Connections told to close whose slots are not free yet.
    pub(super) closing: u32,
}

impl Queues {
    pub(super) const EMPTY: Queues =
        Queues { urgent: List::EMPTY, starved: List::EMPTY, growing: List::EMPTY, closing: 0 };

    /// More lanes wait than slots are about to come free.
    pub(super) fn short(&self) -> bool {
        self.urgent.len() + self.starved.len() + self.growing.len() > self.closing
    }

    /// More lanes without any connection wait than slots are about to come free.
    pub(super) fn starving(&self) -> bool {
        self.urgent.len() + self.starved.len() > self.closing
    }

    /// More lanes with urgent mail and no connection wait than slots are about to come free.
    pub(super) fn pressing(&self) -> bool {
        self.urgent.len() > self.closing
    }

    pub(super) fn front(&self) -> Option<u32> {
        self.urgent.front().or(self.starved.front()).or(self.growing.front())
    }
}

/// One domain.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) name: Domain,
    pub(super) timer: Timer,
    pub(super) policy: PolicyId,
    /// What else holds it back, if anything does (NIL).
    pub(super) throttle: u32,
    /// First of the chain of lanes.
    pub(super) lanes: u32,
    pub(super) deferred: Deferred,
    /// Entries in the lanes' queues.
    pub(super) ready: u32,
    pub(super) in_flight: u32,
    /// Connection slots held, from Connect until Closed.
    pub(super) used: u32,
    /// Connections that have greeted and are not told to close.
    pub(super) open: u32,
    pub(super) queues: Queues,
    /// Connections failed in a row, salvoes counted once; while not 0 the destination is probed with
    /// one connection.
    pub(super) failures: u8,
    /// No connection is opened before this second: a backoff if `failures`, else a short pause.
    pub(super) hold_until: u32,
    /// When the ready entries are next looked over for expiry.
    pub(super) sweep_at: u32,
    /// Sweeps are not repeated before this second.
    pub(super) sweep_floor: u32,
    /// Deferred entries an operator's retry has still to make due.
    pub(super) retry_left: u32,
    pub(super) agenda: Agenda,
    /// Messages it has accepted since that second: what it takes, should it begin to refuse.
    pub(super) accepted: u32,
    pub(super) accepted_since: u32,
}

/// What is still to be done for a destination in batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agenda {
    /// It is in the shard's queue of such destinations.
    pub(super) listed: bool,
    /// Fail whatever is queued.
    pub(super) fail: bool,
    /// Defer what was ready when a connection failed (`Lane::defer_left`).
    pub(super) defer: bool,
    /// Look over the ready entries for expiry (`Lane::sweeping`).
    pub(super) sweep: bool,
}

impl Destination {
    fn new(name: Domain, policy: PolicyId) -> Destination {
        Destination {
            name,
            timer: Timer::UNSET,
            policy,
            throttle: NIL,
            lanes: NIL,
            deferred: Deferred::EMPTY,
            ready: 0,
            in_flight: 0,
            used: 0,
            open: 0,
            queues: Queues::EMPTY,
            failures: 0,
            hold_until: 0,
            sweep_at: NEVER,
            sweep_floor: 0,
            retry_left: 0,
            agenda: Agenda::default(),
            accepted: 0,
            accepted_since: 0,
        }
    }

    pub(super) fn entries(&self) -> u64 {
        u64::from(self.ready) + u64::from(self.deferred.len()) + u64::from(self.in_flight)
    }
}

impl Timed for Destination {
    fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

/// Which queue for a connection slot a lane is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    None,
    DestinationUrgent,
    DestinationStarved,
    DestinationGrowing,
    HomeUrgent,
    HomeStarved,
    HomeGrowing,
}

/// The ready mail and the connections of one destination at one home, of one stream with limits or of all
/// without.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) destination: u32,
    /// The destination's next lane.
    pub(super) sibling: u32,
    pub(super) home: u8,
    /// The stream with limits whose mail it has; else [`COMMON`].
    pub(super) stream: u16,
    pub(super) queue: Queue,
    /// It queues for its turn under a rate.
    pub(super) in_turn: bool,
    pub(super) waiting: Links,
    turn: Links,
    pub(super) ready: Ready,
    /// Connections being opened.
    pub(super) opening: u32,
    /// Connections being opened or open, those told to close not counted.
    pub(super) active: u32,
    /// Connection slots held.
    pub(super) used: u32,
    /// Connections with room for mail: those without any first, the last to get idle foremost.
    pub(super) asking: List<0>,
    /// Entries of `ready`, the next ones first, that are to be deferred.
    pub(super) defer_left: u32,
    /// A sweep has still to look at the entries behind `swept`.
    pub(super) sweeping: bool,
    pub(super) swept: Cursor,
}

impl Linked<SLOT> for Lane {
    fn links(&mut self) -> &mut Links {
        &mut self.waiting
    }
}

impl Linked<RATE> for Lane {
    fn links(&mut self) -> &mut Links {
        &mut self.turn
    }
}

/// Destinations by id and by name, and their lanes by id.
#[derive(Debug)]
pub(super) struct Destinations {
    pub(super) slab: Slab<Destination>,
    pub(super) lanes: Slab<Lane>,
    /// The lanes of streams with limits.
    limited: HashMap<(u32, u8, u16), u32, foldhash::fast::RandomState>,
    names: HashTable<u32>,
    seed: u64,
}

impl Destinations {
    pub(super) fn new(seed: u64) -> Destinations {
        Destinations {
            slab: Slab::new(),
            lanes: Slab::new(),
            limited: HashMap::default(),
            names: HashTable::new(),
            seed,
        }
    }

    /// Senders choose domains: the hash is seeded so that they cannot choose collisions.
    fn hash(seed: u64, name: &Domain) -> u64 {
        xxh3_64_with_seed(name.as_str().as_bytes(), seed)
    }

    pub(super) fn find(&self, name: &Domain) -> Option<u32> {
        let hash = Self::hash(self.seed, name);
        self.names.find(hash, |id| self.slab[*id as usize].name == *name).copied()
    }

    pub(super) fn add(&mut self, name: &Domain, policy: PolicyId) -> u32 {
        let id = self.slab.insert(Destination::new(name.clone(), policy)) as u32;
        let (seed, slab) = (self.seed, &self.slab);
        self.names
            .insert_unique(Self::hash(seed, name), id, |other| Self::hash(seed, &slab[*other as usize].name));
        id
    }

    pub(super) fn remove(&mut self, id: u32) {
        let gone = self.slab.remove(id as usize);
        if let Ok(found) = self.names.find_entry(Self::hash(self.seed, &gone.name), |other| *other == id) {
            found.remove();
        }
    }

    /// The destination's lane at `home` for a stream. O(1) for one with limits, else O(lanes of the
    /// destination).
    pub(super) fn lane(&mut self, destination: u32, home: u8, stream: u16) -> u32 {
        let is_it = |lane: &u32| {
            let lane = &self.lanes[*lane as usize];
            (lane.home, lane.stream) == (home, stream)
        };
        let found = match stream {
            COMMON => self.lanes_of(destination).find(is_it),
            limited => self.limited.get(&(destination, home, limited)).copied(),
        };
        if let Some(lane) = found {
            return lane;
        }
        let first = &mut self.slab[destination as usize].lanes;
        let lane = self.lanes.insert(Lane {
            destination,
            sibling: *first,
            home,
            stream,
            queue: Queue::None,
            in_turn: false,
            waiting: Links::NONE,
            turn: Links::NONE,
            ready: Ready::EMPTY,
            opening: 0,
            active: 0,
            used: 0,
            asking: List::EMPTY,
            defer_left: 0,
            sweeping: false,
            swept: Cursor::START,
        }) as u32;
        *first = lane;
        if stream != COMMON {
            self.limited.insert((destination, home, stream), lane);
        }
        lane
    }

    pub(super) fn lanes_of(&self, destination: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.slab[destination as usize].lanes;
        std::iter::successors((first != NIL).then_some(first), |lane| {
            Some(self.lanes[*lane as usize].sibling).filter(|lane| *lane != NIL)
        })
    }

    pub(super) fn remove_lane(&mut self, id: u32) {
        let gone = self.lanes.remove(id as usize);
        if gone.stream != COMMON {
            self.limited.remove(&(gone.destination, gone.home, gone.stream));
        }
        let first = &mut self.slab[gone.destination as usize].lanes;
        if *first == id {
            *first = gone.sibling;
            return;
        }
        let mut before = *first;
        while self.lanes[before as usize].sibling != id {
            before = self.lanes[before as usize].sibling;
        }
        self.lanes[before as usize].sibling = gone.sibling;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text.as_bytes()).expect("valid")
    }

    #[test]
    fn names_come_and_go() {
        let mut table = Destinations::new(9);
        let names: Vec<Domain> = (0..500).map(|n| domain(&format!("d{n}.test"))).collect();
        let ids: Vec<u32> = names.iter().map(|name| table.add(name, 0)).collect();
        assert!(names.iter().zip(&ids).all(|(name, id)| table.find(name) == Some(*id)));
        for id in ids.iter().step_by(2) {
            table.remove(*id);
        }
        for (at, name) in names.iter().enumerate() {
            assert_eq!(table.find(name), (at % 2 == 1).then(|| ids[at]));
        }
    }

    #[test]
    fn lanes_leave_from_any_place() {
        for gone in 0..3 {
            let mut table = Destinations::new(0);
            let id = table.add(&domain("a.test"), 0);
            let lanes: Vec<u32> = (0..3).map(|home| table.lane(id, home, COMMON)).collect();
            table.remove_lane(lanes[gone]);
            let mut left: Vec<u32> = table.lanes_of(id).collect();
            left.sort_unstable();
            let expected: Vec<u32> = (0..3).filter(|at| *at != gone).map(|at| lanes[at]).collect();
            assert_eq!(left, expected);
        }
    }
}
