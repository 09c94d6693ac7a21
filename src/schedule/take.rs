//! Giving entries up to an operator's order.
//!
//! Owns: [`Take`], which entries, and [`Waiting`], what must be known to queue one again. Promises: what
//! is given up is forgotten here, and told of once; taking some of a destination costs O(1) each, taking
//! these costs one walk of its queues however many they are. Must not: touch what a connection has.
use std::collections::HashSet;

use super::entries::Record;
use super::ready::Cursor;
use super::retry::floor_secs;
use super::shard::Shard;
use super::wheel::NIL;
use super::{Action, Entry, StreamId};
use crate::clock::WallTime;
use crate::mail::address::Domain;

/// Which entries of a destination.
#[derive(Clone, Copy, Debug)]
pub enum Take<'a> {
    /// Up to `most`, first of those that are ready, then of those that are deferred; of one stream, by its
    /// number, or of all. Those that are deferred are in no order by stream: of one stream all are taken, in
    /// one walk.
    Some { ready: bool, deferred: bool, stream: Option<u16>, most: usize },
    /// These, as far as they are not with a connection.
    These(&'a [Entry]),
}

/// An entry's state, to queue it with again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub recipients: u16,
    pub attempts: u8,
    /// The sender knows that it is late, or is not to be told.
    pub told: bool,
    pub stream: StreamId,
    pub received_at: WallTime,
    pub due: WallTime,
}

impl Waiting {
    fn of(record: &Record) -> Waiting {
        Waiting {
            recipients: record.recipients,
            attempts: record.attempts(),
            told: record.is_warned(),
            stream: record.stream,
            received_at: WallTime::from_secs(record.received.into()),
            due: WallTime::from_secs(record.due.into()),
        }
    }
}

impl Shard {
    pub(super) fn take(&mut self, name: &Domain, which: Take<'_>, tag: u32, actions: &mut Vec<Action>) {
        if let Take::These(entries) = which {
            entries.iter().for_each(|entry| self.take_ending(*entry, tag, actions));
        }
        let Some(destination) = self.destinations.find(name) else { return };
        let lanes: Vec<u32> = self.destinations.lanes_of(destination).collect();
        match which {
            Take::Some { ready, deferred, stream, most } => {
                let mut left = most;
                for lane in lanes.iter().copied().filter(|_| ready) {
                    while left > 0
                        && let Some(id) = self.pop_ready_of(lane, stream)
                    {
                        left -= 1;
                        self.give_up(id, tag, actions);
                    }
                }
                match stream {
                    _ if !deferred || left == 0 => {}
                    Some(_) => self.take_deferred(destination, |r| is_of(r, stream), tag, actions),
                    None => {
                        while left > 0
                            && let Some(id) = self.pop_deferred(destination)
                        {
                            left -= 1;
                            self.give_up(id, tag, actions);
                        }
                    }
                }
            }
            Take::These(&[entry]) => self.take_one(destination, &lanes, entry, tag, actions),
            Take::These(entries) => {
                let wanted: HashSet<Entry> = entries.iter().copied().collect();
                for lane in &lanes {
                    self.take_ready(*lane, &wanted, tag, actions);
                }
                self.take_deferred(destination, |r| wanted.contains(&r.entry()), tag, actions);
            }
        }
        for lane in lanes {
            self.seek(lane, actions);
            self.tidy_lane(lane);
        }
        self.rearm(destination);
        self.tidy(destination);
    }

    /// One that waits for its turn to expire or to fail is its shard's no more than one that waits to go.
    fn take_ending(&mut self, entry: Entry, tag: u32, actions: &mut Vec<Action>) {
        if let Some(id) = self.unlink_ending(entry) {
            self.give_up(id, tag, actions);
        }
    }

    fn give_up(&mut self, id: u32, tag: u32, actions: &mut Vec<Action>) {
        let record = &self.entries[id];
        actions.push(Action::Taken { entry: record.entry(), tag, waiting: Waiting::of(record) });
        self.drop_entry(id);
    }

    fn take_one(
        &mut self,
        destination: u32,
        lanes: &[u32],
        entry: Entry,
        tag: u32,
        actions: &mut Vec<Action>,
    ) {
        let deferred = &mut self.destinations.slab[destination as usize].deferred;
        if let Some(id) = deferred.remove(&mut self.entries, entry) {
            self.stats.deferred -= 1;
            return self.give_up(id, tag, actions);
        }
        for lane in lanes {
            let ready = &self.destinations.lanes[*lane as usize].ready;
            let found = ready.heads().find_map(|head| self.entries.find(head, entry));
            if let Some((before, id)) = found {
                self.remove_ready(*lane, before, id);
                return self.give_up(id, tag, actions);
            }
        }
    }

    fn take_ready(&mut self, lane: u32, wanted: &HashSet<Entry>, tag: u32, actions: &mut Vec<Action>) {
        let mut cursor = Cursor::START;
        while let Some(id) = self.destinations.lanes[lane as usize].ready.after(&self.entries, &mut cursor) {
            if wanted.contains(&self.entries[id].entry()) {
                self.remove_ready(lane, cursor.before, id);
                self.give_up(id, tag, actions);
            } else {
                cursor.before = id;
            }
        }
    }

    /// Takes the first ready entry of a stream.
    fn pop_ready_of(&mut self, lane: u32, stream: Option<u16>) -> Option<u32> {
        if stream.is_none() {
            return self.pop_ready(lane);
        }
        let mut heads = self.destinations.lanes[lane as usize].ready.heads();
        let id = heads.find(|id| is_of(&self.entries[*id], stream))?;
        drop(heads);
        self.remove_ready(lane, NIL, id);
        Some(id)
    }

    /// The others are put back where they were: their order is by due time.
    fn take_deferred(
        &mut self,
        destination: u32,
        wanted: impl Fn(&Record) -> bool,
        tag: u32,
        actions: &mut Vec<Action>,
    ) {
        let now = floor_secs(self.now);
        let mut others = Vec::new();
        while let Some(id) = self.pop_deferred(destination) {
            if wanted(&self.entries[id]) {
                self.give_up(id, tag, actions);
            } else {
                others.push(id);
            }
        }
        for id in others {
            self.destinations.slab[destination as usize].deferred.push(&mut self.entries, id, now);
            self.stats.deferred += 1;
        }
    }
}

/// Whether an entry is of the stream with that number, urgent or not.
fn is_of(record: &Record, stream: Option<u16>) -> bool {
    stream.is_none_or(|number| record.stream.number() == number)
}
