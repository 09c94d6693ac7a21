//! The connections of a shard, from Connect until Closed.
//!
//! Owns: the record [`Connection`] and the table that finds it by [`ConnId`]. Promises: an id is
//! never used twice while anyone could still hold it: the upper half is a serial number that counts
//! connections, the lower half the place in the table. Must not: decide.
use std::sync::Arc;

use slab::Slab;

use super::ConnId;
use super::list::{Linked, Links};
use super::pool::PoolKey;
use super::wheel::NIL;
use crate::clock::WallTime;

/// A connection's list links: `ASKING` in its lane, `IDLE` in its home.
pub(super) const ASKING: u8 = 0;
pub(super) const IDLE: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Connect was asked for; nothing heard yet.
    Opening,
    Open,
    /// Close was asked for; it may still hold entries.
    Closing,
}

#[derive(Debug)]
pub(super) struct Connection {
    serial: u32,
    pub(super) lane: u32,
    pub(super) state: State,
    /// Entries it would still take. Not 0 exactly while it is in its lane's list of asking ones.
    pub(super) room: u8,
    /// Entries handed out and not accounted for: the length of the chain `in_flight`.
    pub(super) held: u8,
    pub(super) in_flight: u32,
    /// Entries ever handed out.
    pub(super) carried: u32,
    /// The pools it counts in.
    pub(super) permit: Option<Arc<[PoolKey]>>,
    /// A message was asked for in its pools.
    pub(super) asked: bool,
    /// It has brought an outcome.
    pub(super) answered: bool,
    asking: Links,
    idle: Links,
    /// Since when it has had nothing to do; set exactly while it is in its home's idle list.
    pub(super) idle_since: Option<WallTime>,
}

impl Linked<ASKING> for Connection {
    fn links(&mut self) -> &mut Links {
        &mut self.asking
    }
}

impl Linked<IDLE> for Connection {
    fn links(&mut self) -> &mut Links {
        &mut self.idle
    }
}

#[derive(Debug)]
pub(super) struct Connections {
    pub(super) slab: Slab<Connection>,
    serial: u32,
}

impl Connections {
    pub(super) fn new() -> Connections {
        Connections { slab: Slab::new(), serial: 0 }
    }

    pub(super) fn open(&mut self, lane: u32) -> ConnId {
        self.serial = self.serial.wrapping_add(1);
        let place = self.slab.insert(Connection {
            serial: self.serial,
            lane,
            state: State::Opening,
            room: 0,
            held: 0,
            in_flight: NIL,
            carried: 0,
            permit: None,
            asked: false,
            answered: false,
            asking: Links::NONE,
            idle: Links::NONE,
            idle_since: None,
        });
        ConnId(u64::from(self.serial) << 32 | place as u64)
    }

    /// The place of a connection that is still there.
    pub(super) fn place(&self, id: ConnId) -> Option<u32> {
        let place = id.0 as u32;
        let connection = self.slab.get(place as usize)?;
        (connection.serial == (id.0 >> 32) as u32).then_some(place)
    }

    pub(super) fn id(&self, place: u32) -> ConnId {
        ConnId(u64::from(self.slab[place as usize].serial) << 32 | u64::from(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut connections = Connections::new();
        let first = connections.open(1);
        let place = connections.place(first).expect("it is open");
        assert_eq!(connections.id(place), first);
        connections.slab.remove(place as usize);
        let second = connections.open(2);
        assert_eq!(connections.place(second), Some(place));
        assert_eq!(connections.place(first), None);
    }
}
