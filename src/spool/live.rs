//! The table of live messages: what the log still owes somebody.
//!
//! Owns: one record of 32 bytes per live message, an index from id to slot of about six bytes, the list
//! of messages each segment holds back, and side tables for the few that have fragments or several
//! recipients. Promises: finding, adding, moving and removing a message is O(1); the messages of a
//! segment are found without looking at the rest. Must not: hold envelopes, replies or bodies; those are
//! in the log.
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::change::{self, Standings};
use super::{End, FragmentRef, Generation, Place, RecipientState, Slot, Standing};
use crate::clock::WallTime;
use crate::limits;
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
/// States are in `several`.
const SEVERAL: u8 = 16;
/// Fragments are in `fragments`.
const FRAGMENTS: u8 = 32;
/// The only recipient is done (else: `several` knows).
const DONE: u8 = 64;
/// Its slot is not given to another message: somebody may still know it by its slot alone.
const RETIRED: u8 = 128;

/// One live message. Packed: ten million of them stand in a queue.
#[derive(Clone, Copy, Debug)]
struct Record {
    id: [u32; 2],
    generation: u32,
    offset: u32,
    /// Next attempt of the only recipient, seconds from the epoch; 0: never tried.
    due: u32,
    /// Neighbours in the list of the segment that it holds back; `next` links free records.
    next: u32,
    prev: u32,
    /// Bytes of the commit frame, in eights, rounded up.
    frame_eights: u16,
    attempts: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Record>() == 32);
// A commit frame fits in one commit buffer, so its length in eights fits in 16 bits.
const _: () = assert!(limits::COMMIT_BUFFER_BYTES / 8 <= u16::MAX as usize);

impl Record {
    fn id(&self) -> MessageId {
        MessageId(u64::from(self.id[0]) | u64::from(self.id[1]) << 32)
    }
    fn place(&self) -> Place {
        Place { generation: Generation(self.generation), offset: self.offset }
    }
    fn frame_bytes(&self) -> u32 {
        u32::from(self.frame_eights) * 8
    }
}

const NO_RECORD: Record = Record {
    id: [0; 2],
    generation: 0,
    offset: 0,
    due: 0,
    next: NONE,
    prev: NONE,
    frame_eights: 0,
    attempts: 0,
    flags: 0,
};

#[derive(Clone, Copy, Debug)]
struct StateOf {
    due: u32,
    attempts: u8,
    done: Option<End>,
}

#[derive(Clone, Debug)]
struct Several {
    pending: u32,
    states: Box<[StateOf]>,
}

/// What is live in one segment.
#[derive(Clone, Copy, Debug)]
struct List {
    first: Slot,
    count: u32,
}

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
    records: Vec<Record>,
    free: Option<Slot>,
    len: usize,
    bytes: u64,
    index: Index,
    lists: HashMap<Generation, List, FixedState>,
    several: HashMap<Slot, Several, FixedState>,
    fragments: HashMap<Slot, Box<[FragmentRef]>, FixedState>,
    /// Messages of which an operator has decided something.
    standings: HashMap<Slot, Standings, FixedState>,
}

impl LiveTable {
    /// Every slot in use is below this.
    pub fn slots(&self) -> Slot {
        self.records.len() as Slot
    }
    /// Live messages.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn get(&self, slot: Slot) -> Option<LiveMessage> {
        let record = self.record(slot)?;
        let (recipients, pending) = match self.several.get(&slot) {
            Some(several) => (several.states.len() as u32, several.pending),
            None => (1, u32::from(record.flags & DONE == 0)),
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
        let record = self.record(slot)?;
        let state = match self.several.get(&slot) {
            Some(several) => *several.states.get(usize::from(recipient))?,
            None if recipient == 0 => {
                StateOf {
                    due: record.due,
                    attempts: record.attempts,
                    // Its message goes as soon as that is durable: nobody is left to tell how it ended.
                    done: (record.flags & DONE != 0).then_some(End::Unknown),
                }
            }
            None => return None,
        };
        Some(match state {
            StateOf { done: Some(end), .. } => RecipientState::Done(end),
            StateOf { due, attempts, .. } => RecipientState::Pending { attempts, next: wall_time(due) },
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
        if self.record(slot).is_none() {
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
        (0..self.records.len() as Slot).filter_map(|slot| self.get(slot))
    }

    fn record(&self, slot: Slot) -> Option<&Record> {
        self.records.get(slot as usize).filter(|r| r.flags & LIVE != 0)
    }
    fn record_mut(&mut self, slot: Slot) -> Option<&mut Record> {
        self.records.get_mut(slot as usize).filter(|r| r.flags & LIVE != 0)
    }
    /// The slot if it is still that message's.
    pub(super) fn is(&self, slot: Slot, id: MessageId) -> bool {
        self.record(slot).is_some_and(|r| r.id() == id)
    }
    /// Bytes on disk of all live messages.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
    fn bytes_of(&self, slot: Slot) -> u64 {
        let fragments: u64 = self.fragments(slot).iter().map(|f| u64::from(f.body_bytes)).sum();
        self.record(slot).map_or(0, |r| u64::from(r.frame_bytes())) + fragments
    }
    pub(super) fn frame_bytes(&self, slot: Slot) -> u32 {
        self.record(slot).map_or(0, Record::frame_bytes)
    }
    pub(super) fn fragments(&self, slot: Slot) -> &[FragmentRef] {
        match self.record(slot) {
            Some(r) if r.flags & FRAGMENTS != 0 => self.fragments.get(&slot).map_or(&[], |f| f),
            _ => &[],
        }
    }
    pub(super) fn has(&self, slot: Slot, flag: u8) -> bool {
        self.record(slot).is_some_and(|r| r.flags & flag != 0)
    }
    pub(super) fn set(&mut self, slot: Slot, flag: u8, on: bool) {
        if let Some(record) = self.record_mut(slot) {
            if on { record.flags |= flag } else { record.flags &= !flag }
        }
    }
    /// The segment the message holds back: that of its oldest part.
    pub(super) fn home(&self, slot: Slot) -> Option<Generation> {
        let place = self.record(slot)?.place().generation;
        Some(oldest(place, self.fragments(slot)))
    }
    /// Messages that hold back a segment.
    pub(super) fn count_in(&self, generation: Generation) -> u32 {
        self.lists.get(&generation).map_or(0, |l| l.count)
    }
    /// The messages that hold back a segment.
    pub(super) fn iter_in(&self, generation: Generation) -> impl Iterator<Item = Slot> + '_ {
        let mut next = self.lists.get(&generation).map_or(NONE, |l| l.first);
        std::iter::from_fn(move || {
            let slot = next;
            next = self.record(slot)?.next;
            Some(slot)
        })
    }

    pub(super) fn insert(&mut self, new: &NewLive<'_>) -> Slot {
        let mut flags = LIVE | new.flags;
        let slot = self.take_free();
        if new.recipients != 1 {
            flags |= SEVERAL;
            let fresh = StateOf { due: 0, attempts: 0, done: None };
            let states = vec![fresh; new.recipients as usize].into_boxed_slice();
            self.several.insert(slot, Several { pending: new.recipients, states });
        }
        let id = [new.id.0 as u32, (new.id.0 >> 32) as u32];
        self.records[slot as usize] = Record { id, flags, ..NO_RECORD };
        self.index.insert(slot, &self.records);
        self.len += 1;
        self.settle(slot, new.place, new.frame_bytes, new.fragments);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let Some(record) = self.record(slot) else { return };
        let flags = record.flags;
        self.unsettle(slot);
        self.index.remove(slot, &self.records);
        if flags & SEVERAL != 0 {
            self.several.remove(&slot);
        }
        if !self.standings.is_empty() {
            self.standings.remove(&slot);
        }
        self.len -= 1;
        let next = self.free.unwrap_or(NONE);
        let record = &mut self.records[slot as usize];
        record.flags = 0;
        if flags & RETIRED == 0 {
            record.next = next;
            self.free = Some(slot);
        }
    }

    /// The slot stays empty when the message is removed. A message that cannot be read cannot be told
    /// to those who queue it: they ask by its slot, and must find nobody there.
    pub(super) fn retire(&mut self, slot: Slot) {
        if let Some(record) = self.record_mut(slot) {
            record.flags |= RETIRED;
        }
    }

    /// The message now lies elsewhere.
    pub(super) fn relocate(&mut self, slot: Slot, place: Place, frame_bytes: u32, fragments: &[FragmentRef]) {
        if self.record(slot).is_some() {
            self.unsettle(slot);
            self.settle(slot, place, frame_bytes, fragments);
        }
    }

    /// Records where a recipient stands. Terminal states absorb. True when nobody is pending any more.
    pub(super) fn apply(&mut self, slot: Slot, recipient: u16, state: RecipientState) -> bool {
        let Some(record) = self.records.get_mut(slot as usize).filter(|r| r.flags & LIVE != 0) else {
            return false;
        };
        if record.flags & SEVERAL == 0 {
            match state {
                _ if recipient != 0 || record.flags & DONE != 0 => {}
                RecipientState::Done(_) => record.flags |= DONE,
                RecipientState::Pending { attempts, next } => {
                    (record.attempts, record.due) = (attempts, due(next));
                }
            }
            return record.flags & DONE != 0;
        }
        let several = self.several.get_mut(&slot).expect("the flag says so");
        if let Some(own) = several.states.get_mut(usize::from(recipient)).filter(|s| s.done.is_none()) {
            match state {
                RecipientState::Done(end) => {
                    own.done = Some(end);
                    several.pending -= 1;
                }
                RecipientState::Pending { attempts, next } => {
                    (own.attempts, own.due) = (attempts, due(next));
                }
            }
        }
        several.pending == 0
    }

    fn take_free(&mut self) -> Slot {
        match self.free {
            Some(slot) => {
                let next = self.records[slot as usize].next;
                self.free = (next != NONE).then_some(next);
                slot
            }
            None => {
                let slot = self.records.len() as Slot;
                assert!(slot != NONE, "a spool of 2^32 messages exceeds every disk limit");
                self.records.push(NO_RECORD);
                slot
            }
        }
    }

    /// Puts the message at its place and into the list of the segment it holds back.
    fn settle(&mut self, slot: Slot, place: Place, frame_bytes: u32, fragments: &[FragmentRef]) {
        let home = oldest(place.generation, fragments);
        let list = self.lists.entry(home).or_insert(List { first: NONE, count: 0 });
        let next = std::mem::replace(&mut list.first, slot);
        list.count += 1;
        if next != NONE {
            self.records[next as usize].prev = slot;
        }
        let record = &mut self.records[slot as usize];
        (record.generation, record.offset) = (place.generation.0, place.offset);
        record.frame_eights = u16::try_from(frame_bytes.div_ceil(8)).unwrap_or(u16::MAX);
        (record.next, record.prev) = (next, NONE);
        if !fragments.is_empty() {
            record.flags |= FRAGMENTS;
            self.fragments.insert(slot, fragments.into());
        }
        self.bytes += self.bytes_of(slot);
    }

    fn unsettle(&mut self, slot: Slot) {
        self.bytes -= self.bytes_of(slot);
        let home = self.home(slot).expect("the caller has seen it live");
        let record = &mut self.records[slot as usize];
        let (next, prev) = (record.next, record.prev);
        if record.flags & FRAGMENTS != 0 {
            record.flags &= !FRAGMENTS;
            self.fragments.remove(&slot);
        }
        let list = self.lists.get_mut(&home).expect("a live message is in its segment's list");
        list.count -= 1;
        if prev == NONE {
            list.first = next;
        }
        if list.count == 0 {
            self.lists.remove(&home);
        }
        if prev != NONE {
            self.records[prev as usize].next = next;
        }
        if next != NONE {
            self.records[next as usize].prev = prev;
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

/// Slots by the id in their record: open addressing with linear probing, so that the id is stored once.
#[derive(Debug, Default)]
struct Index {
    /// A power of two long, or empty.
    cells: Vec<u32>,
    len: usize,
}

impl Index {
    /// Ids rise by microseconds with the log's number in the low bits: Fibonacci hashing spreads them.
    fn cell_of(&self, id: MessageId) -> usize {
        let bits = self.cells.len().trailing_zeros();
        (id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - bits)) as usize
    }
    fn find(&self, id: MessageId, records: &[Record]) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.cell_of(id);
        loop {
            match self.cells[at] {
                NONE => return None,
                slot if records[slot as usize].id() == id => return Some(slot),
                _ => at = (at + 1) & (self.cells.len() - 1),
            }
        }
    }
    fn insert(&mut self, slot: Slot, records: &[Record]) {
        if (self.len + 1) * 5 > self.cells.len() * 4 {
            let old = std::mem::take(&mut self.cells);
            self.cells = vec![NONE; (old.len() * 2).max(64)];
            for slot in old.into_iter().filter(|&s| s != NONE) {
                self.place(slot, records);
            }
        }
        self.place(slot, records);
        self.len += 1;
    }
    fn place(&mut self, slot: Slot, records: &[Record]) {
        let mut at = self.cell_of(records[slot as usize].id());
        while self.cells[at] != NONE {
            at = (at + 1) & (self.cells.len() - 1);
        }
        self.cells[at] = slot;
    }
    /// Removes and closes the gap, so that no tombstones pile up.
    fn remove(&mut self, slot: Slot, records: &[Record]) {
        let mask = self.cells.len() - 1;
        let mut gap = self.cell_of(records[slot as usize].id());
        while self.cells[gap] != slot {
            gap = (gap + 1) & mask;
        }
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            if self.cells[at] == NONE {
                break;
            }
            let wanted = self.cell_of(records[self.cells[at] as usize].id());
            // It may move into the gap unless its own cell lies behind the gap.
            if (at.wrapping_sub(wanted) & mask) >= (at.wrapping_sub(gap) & mask) {
                self.cells[gap] = self.cells[at];
                gap = at;
            }
        }
        self.cells[gap] = NONE;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::clock::Rng;

    fn new(id: u64, generation: u32, recipients: u32) -> NewLive<'static> {
        let place = Place { generation: Generation(generation), offset: 4096 };
        NewLive { id: MessageId(id), place, frame_bytes: 100, fragments: &[], recipients, flags: 0 }
    }

    #[test]
    fn a_retired_slot_is_nobodys() {
        let mut table = LiveTable::default();
        let (one, two) = (table.insert(&new(1, 1, 3)), table.insert(&new(2, 1, 1)));
        table.retire(one);
        table.remove(one);
        table.remove(two);
        assert_eq!((table.get(one), table.len(), table.count_in(Generation(1))), (None, 0, 0));
        assert_eq!(table.insert(&new(3, 1, 1)), two, "a slot that was not retired is used again");
        assert_ne!(table.insert(&new(4, 1, 1)), one);
    }

    #[test]
    fn a_random_history_agrees_with_a_map() {
        let seed = 11;
        let mut rng = Rng::new(seed);
        let mut table = LiveTable::default();
        let mut model: BTreeMap<u64, (Slot, u32)> = BTreeMap::new();
        for id in 1..4_000u64 {
            let generation = (id / 100) as u32;
            let slot = table.insert(&new(id << 12, generation, 1 + rng.below(3) as u32));
            model.insert(id << 12, (slot, generation));
            while rng.below(100) < 48 && !model.is_empty() {
                let nth = rng.below(model.len() as u64) as usize;
                let (&id, &(slot, _)) = model.iter().nth(nth).expect("in range");
                if rng.below(4) == 0 {
                    let place = Place { generation: Generation(1_000), offset: 0 };
                    table.relocate(slot, place, 50, &[]);
                    model.insert(id, (slot, 1_000));
                } else {
                    table.remove(slot);
                    model.remove(&id);
                }
            }
        }
        assert_eq!(table.len(), model.len(), "seed {seed}");
        for id in (1..4_000u64).map(|id| id << 12) {
            assert_eq!(table.find(MessageId(id)), model.get(&id).map(|m| m.0), "seed {seed}, id {id}");
        }
        for generation in (0..40).chain([1_000]) {
            let mut wanted: Vec<_> = model.values().filter(|m| m.1 == generation).map(|m| m.0).collect();
            let mut got: Vec<_> = table.iter_in(Generation(generation)).collect();
            assert_eq!(table.count_in(Generation(generation)) as usize, got.len());
            got.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(got, wanted, "seed {seed}, generation {generation}");
        }
    }

    #[test]
    fn states_absorb_and_count_down() {
        let mut table = LiveTable::default();
        let (one, three) = (table.insert(&new(1, 1, 1)), table.insert(&new(2, 1, 3)));
        let pending = RecipientState::Pending { attempts: 4, next: WallTime::from_secs(1_800_000_000) };
        for slot in [one, three] {
            assert!(!table.apply(slot, 0, pending));
            assert_eq!(table.state(slot, 0), Some(pending));
        }
        assert!(table.apply(one, 0, RecipientState::Done(End::Delivered)));
        assert!(table.apply(one, 0, pending), "terminal states absorb");
        assert!(!table.apply(three, 0, RecipientState::Done(End::Delivered)));
        assert!(!table.apply(three, 0, RecipientState::Done(End::Delivered)));
        assert!(!table.apply(three, 9, RecipientState::Done(End::Removed)), "no such recipient");
        assert!(!table.apply(three, 2, RecipientState::Done(End::Delivered)));
        assert!(table.apply(three, 1, RecipientState::Done(End::Failed)));
        let ends = [0, 1].map(|r| table.state(three, r));
        assert_eq!(ends, [End::Delivered, End::Failed].map(|end| Some(RecipientState::Done(end))));
        assert_eq!(table.get(three).map(|m| (m.recipients, m.pending)), Some((3, 0)));
    }
}
