//! The table of live messages: what the log still owes somebody.
//!
//! Owns: one record of 24 bytes per live message, an index from id to slot of about five bytes, the list
//! of messages each segment holds back, and side tables for those that have fragments or several
//! recipients. Promises: finding, adding, moving and removing a message is O(1); the messages of a
//! segment are found without looking at the rest. Must not: hold envelopes, replies or bodies; those are
//! in the log.
mod index;
mod lists;
mod records;
mod states;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use self::index::Index;
use self::lists::Lists;
use self::records::{Record, Records};
use self::states::{StateOf, States};
use super::change::{self, Standings};
use super::record::{end_of, number_of};
use super::{FragmentRef, Generation, Place, RecipientState, Slot, Standing, Tries};
use crate::clock::WallTime;
use crate::mail::id::MessageId;

const NONE: u32 = u32::MAX;
/// Times of next attempts are kept in seconds from here (2020-01-01), which reaches the year 2156.
const EPOCH_SECS: u64 = 1_577_836_800;

/// The record is in use.
const LIVE: u8 = 1;
/// Every group that holds a part of it is durable.
pub(super) const DURABLE: u8 = 2;
/// A copy is being made; the place is still the old one.
pub(super) const COPYING: u8 = 4;
/// It must not be delivered: its record says something this code does not understand.
pub(super) const HELD: u8 = 8;
/// States are in `states`.
const SEVERAL: u8 = 16;
/// Fragments are in `fragments`.
const FRAGMENTS: u8 = 32;
/// The only recipient is done (else: `states` knows).
const DONE: u8 = 64;
/// Its slot is not given to another message: somebody may still know it by its slot alone.
const RETIRED: u8 = 128;

/// A message to be added.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewLive<'a> {
    pub(super) id: MessageId,
    pub(super) place: Place,
    pub(super) frame_bytes: u32,
    pub(super) fragments: &'a [FragmentRef],
    pub(super) recipients: u32,
    pub(super) flags: u8,
}

/// One live message as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveMessage {
    pub slot: Slot,
    pub id: MessageId,
    /// Of its commit record.
    pub place: Place,
    /// On disk: commit record and fragments.
    pub bytes: u64,
    pub recipients: u32,
    /// Recipients without a terminal outcome; zero while the last outcome is not durable yet.
    pub pending: u32,
    /// The message must not be delivered (see `StoredMessage::hold`).
    pub held: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct LiveTable {
    records: Records,
    len: usize,
    bytes: u64,
    index: Index,
    lists: Lists,
    states: States,
    /// Numbers of recipients that do not fit in a record.
    many: HashMap<Slot, u32, FixedState>,
    fragments: HashMap<Slot, Box<[FragmentRef]>, FixedState>,
    /// Messages of which an operator has decided something.
    standings: HashMap<Slot, Standings, FixedState>,
}

impl LiveTable {
    /// Every slot in use is below this.
    pub fn slots(&self) -> Slot {
        self.records.end()
    }
    /// Live messages.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn get(&self, slot: Slot) -> Option<LiveMessage> {
        let record = self.records.live(slot)?;
        let recipients = self.recipients_of(slot, record);
        let pending = if record.flags & SEVERAL != 0 {
            self.states.pending(recipients, record.due)
        } else {
            u32::from(record.flags & DONE == 0)
        };
        Some(LiveMessage {
            slot,
            id: record.id(),
            place: record.place(),
            bytes: self.bytes_of(slot),
            recipients,
            pending,
            held: record.flags & HELD != 0,
        })
    }
    /// The message with this id, if it is live.
    pub fn find(&self, id: MessageId) -> Option<Slot> {
        self.index.find(id, &self.records)
    }
    /// Where one recipient of a live message stands. Next attempts are to the second.
    pub fn state(&self, slot: Slot, recipient: u16) -> Option<RecipientState> {
        let record = self.records.live(slot)?;
        let state = if record.flags & SEVERAL != 0 {
            self.states.get(self.recipients_of(slot, record), record.due, recipient)?
        } else if recipient == 0 {
            let done = (record.flags & DONE != 0).then(|| end_of(record.attempts));
            StateOf { due: record.due, attempts: record.attempts, done }
        } else {
            return None;
        };
        Some(match state {
            StateOf { done: Some(end), .. } => RecipientState::Done(end),
            StateOf { due, attempts, .. } => {
                RecipientState::Pending { tries: Tries::from_byte(attempts), next: wall_time(due) }
            }
        })
    }
    /// What an operator has decided of a recipient; none if nothing differs from the usual.
    pub fn standing(&self, slot: Slot, recipient: u16) -> Option<&Arc<Standing>> {
        let standings = self.standings.get(&slot)?;
        let at = standings.binary_search_by_key(&recipient, |(r, _)| *r).ok()?;
        Some(&standings[at].1)
    }
    /// The messages of which an operator has decided something.
    pub fn changed(&self) -> impl Iterator<Item = Slot> + '_ {
        self.standings.keys().copied()
    }
    pub(super) fn standings_of(&self, slot: Slot) -> Option<&Standings> {
        self.standings.get(&slot)
    }
    /// What the decisions on a message take in a copy of it.
    pub(super) fn standing_bytes(&self, slot: Slot) -> usize {
        let Some(standings) = self.standings.get(&slot) else { return 0 };
        change::grouped(standings).iter().map(|(s, r)| change::encoded_bytes(r.len(), s)).sum()
    }
    pub(super) fn change(&mut self, slot: Slot, recipients: &[u16], standing: &Arc<Standing>) {
        if self.records.live(slot).is_none() {
            return;
        }
        let known = self.standings.entry(slot).or_default();
        change::apply(known, recipients, standing);
        if known.iter().any(|(_, s)| s.is_usual()) {
            *known = std::mem::take(known).into_iter().filter(|(_, s)| !s.is_usual()).collect();
        }
        if known.is_empty() {
            self.standings.remove(&slot);
        }
    }
    /// Whether all of the message is on the disk. Before that what is read of it is anything.
    pub fn is_durable(&self, slot: Slot) -> bool {
        self.has(slot, DURABLE)
    }
    /// Every live message, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = LiveMessage> + '_ {
        (0..self.records.end()).filter_map(|slot| self.get(slot))
    }

    fn recipients_of(&self, slot: Slot, record: &Record) -> u32 {
        match (record.flags & SEVERAL != 0, record.attempts) {
            (false, _) => 1,
            (true, 0) => self.many.get(&slot).copied().unwrap_or(0),
            (true, few) => few.into(),
        }
    }
    /// The slot if it is still that message's.
    pub(super) fn is(&self, slot: Slot, id: MessageId) -> bool {
        self.records.live(slot).is_some_and(|r| r.id() == id)
    }
    /// Bytes on disk of all live messages.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
    fn bytes_of(&self, slot: Slot) -> u64 {
        let fragments: u64 = self.fragments(slot).iter().map(|f| u64::from(f.body_bytes)).sum();
        u64::from(self.frame_bytes(slot)) + fragments
    }
    pub(super) fn frame_bytes(&self, slot: Slot) -> u32 {
        self.records.live(slot).map_or(0, Record::frame_bytes)
    }
    pub(super) fn place(&self, slot: Slot) -> Option<Place> {
        self.records.live(slot).map(Record::place)
    }
    pub(super) fn fragments(&self, slot: Slot) -> &[FragmentRef] {
        match self.records.live(slot) {
            Some(r) if r.flags & FRAGMENTS != 0 => self.fragments.get(&slot).map_or(&[], |f| f),
            _ => &[],
        }
    }
    pub(super) fn has(&self, slot: Slot, flag: u8) -> bool {
        self.records.live(slot).is_some_and(|r| r.flags & flag != 0)
    }
    pub(super) fn set(&mut self, slot: Slot, flag: u8, on: bool) {
        if let Some(record) = self.records.live_mut(slot) {
            if on { record.flags |= flag } else { record.flags &= !flag }
        }
    }
    /// The segment the message holds back: that of its oldest part.
    pub(super) fn home(&self, slot: Slot) -> Option<Generation> {
        let place = self.records.live(slot)?.place().generation;
        Some(oldest(place, self.fragments(slot)))
    }
    /// Messages that hold back a segment.
    pub(super) fn count_in(&self, generation: Generation) -> u32 {
        self.lists.count(generation)
    }
    /// The messages that hold back a segment. One may come twice.
    pub(super) fn iter_in(&self, generation: Generation) -> impl Iterator<Item = Slot> + '_ {
        self.lists.slots(generation).filter(move |&slot| self.home(slot) == Some(generation))
    }
    /// Keeps [`LiveTable::iter_in`] from walking again over those that have left the front.
    pub(super) fn trim(&mut self, generation: Generation) {
        let mut lists = std::mem::take(&mut self.lists);
        lists.trim(generation, |slot| self.home(slot) == Some(generation));
        self.lists = lists;
    }

    pub(super) fn insert(&mut self, new: &NewLive<'_>) -> Slot {
        let mut record = Record::new(new.id, LIVE | new.flags);
        if new.recipients != 1 {
            record.flags |= SEVERAL;
            record.due = self.states.insert(new.recipients);
            record.attempts = u8::try_from(new.recipients).unwrap_or(0);
        }
        let few = record.attempts > 0 || new.recipients <= 1;
        let slot = self.records.insert(record);
        if !few {
            self.many.insert(slot, new.recipients);
        }
        self.index.insert(slot, &self.records);
        self.len += 1;
        self.settle(slot, new.place, new.frame_bytes, new.fragments);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(&record) = self.records.live(slot) else { return };
        self.unsettle(slot);
        self.index.remove(slot, &self.records);
        if record.flags & SEVERAL != 0 {
            self.states.remove(self.recipients_of(slot, &record), record.due);
            self.many.remove(&slot);
        }
        if !self.standings.is_empty() {
            self.standings.remove(&slot);
        }
        self.len -= 1;
        self.records.free(slot, record.flags & RETIRED == 0);
    }

    /// The slot stays empty when the message is removed. A message that cannot be read cannot be told
    /// to those who queue it: they ask by its slot, and must find nobody there.
    pub(super) fn retire(&mut self, slot: Slot) {
        self.set(slot, RETIRED, true);
    }

    /// The message now lies elsewhere.
    pub(super) fn relocate(&mut self, slot: Slot, place: Place, frame_bytes: u32, fragments: &[FragmentRef]) {
        if self.records.live(slot).is_some() {
            self.unsettle(slot);
            self.settle(slot, place, frame_bytes, fragments);
        }
    }

    /// Records where a recipient stands. Terminal states absorb. True when nobody is pending any more.
    pub(super) fn apply(&mut self, slot: Slot, recipient: u16, state: RecipientState) -> bool {
        let state = match (state, self.state(slot, recipient)) {
            (RecipientState::Pending { tries, next }, Some(RecipientState::Pending { tries: known, .. })) => {
                RecipientState::Pending { tries: tries.besides(known), next }
            }
            _ => state,
        };
        let Some(&Record { flags, due: block, .. }) = self.records.live(slot) else { return false };
        if flags & SEVERAL != 0 {
            let recipients = self.recipients_of(slot, &self.records[slot]);
            let state = match state {
                RecipientState::Done(end) => StateOf { due: 0, attempts: 0, done: Some(end) },
                RecipientState::Pending { tries, next } => {
                    StateOf { due: due(next), attempts: tries.byte(), done: None }
                }
            };
            return self.states.set(recipients, block, recipient, state) == 0;
        }
        let record = &mut self.records[slot];
        match state {
            _ if recipient != 0 || record.flags & DONE != 0 => {}
            RecipientState::Done(end) => {
                record.flags |= DONE;
                record.attempts = number_of(end);
            }
            RecipientState::Pending { tries, next } => {
                (record.attempts, record.due) = (tries.byte(), due(next));
            }
        }
        record.flags & DONE != 0
    }

    /// Makes the tables as small as they can be, once the messages of a whole log are in.
    pub(super) fn pack(&mut self) {
        self.index.rebuild(&self.records);
        let mut lists = std::mem::take(&mut self.lists);
        lists.clear();
        for slot in 0..self.records.end() {
            if let Some(home) = self.home(slot) {
                lists.add(home, slot, |_| true);
            }
        }
        self.lists = lists;
    }

    /// Puts the message at its place and into the list of the segment it holds back.
    fn settle(&mut self, slot: Slot, place: Place, frame_bytes: u32, fragments: &[FragmentRef]) {
        let record = &mut self.records[slot];
        record.put(place, frame_bytes);
        if !fragments.is_empty() {
            record.flags |= FRAGMENTS;
            self.fragments.insert(slot, fragments.into());
        }
        let home = oldest(place.generation, fragments);
        let mut lists = std::mem::take(&mut self.lists);
        lists.add(home, slot, |slot| self.home(slot) == Some(home));
        self.lists = lists;
        self.bytes += self.bytes_of(slot);
    }

    fn unsettle(&mut self, slot: Slot) {
        self.bytes -= self.bytes_of(slot);
        if let Some(home) = self.home(slot) {
            self.lists.leave(home);
        }
        let record = &mut self.records[slot];
        if record.flags & FRAGMENTS != 0 {
            record.flags &= !FRAGMENTS;
            self.fragments.remove(&slot);
        }
    }
}

fn oldest(commit: Generation, fragments: &[FragmentRef]) -> Generation {
    fragments.iter().map(|f| f.place.generation).fold(commit, Generation::min)
}

fn due(next: WallTime) -> u32 {
    u32::try_from(next.secs().saturating_sub(EPOCH_SECS)).unwrap_or(u32::MAX)
}

fn wall_time(due: u32) -> WallTime {
    if due == 0 { WallTime(0) } else { WallTime::from_secs(EPOCH_SECS + u64::from(due)) }
}
