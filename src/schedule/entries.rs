//! The entry table: every queued part of every message, 24 bytes each.
//!
//! Owns: the records, their recycling, and the first-in-first-out chain they form. Promises: a
//! record is in one chain at a time, so one link is enough; growth adds a chunk and copies nothing;
//! a freed record is the next one handed out. The table does not shrink: it holds the memory of the
//! largest backlog seen. Must not: decide anything.
use std::ops::{Index, IndexMut};

use super::wheel::NIL;
use super::{Entry, StreamId};
use crate::limits::ENTRY_CHUNK;

/// One message's part for one destination. Times are whole seconds since 1970: `received` rounded
/// down, `due` rounded up, good until 2106.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    pub(super) slot: u32,
    pub(super) received: u32,
    /// Set while the entry is deferred.
    pub(super) due: u32,
    pub(super) next: u32,
    pub(super) part: u16,
    pub(super) recipients: u16,
    pub(super) home: u8,
    /// Attempts, and in the highest bit whether the sender was told that the mail is late.
    pub(super) tried: u8,
    pub(super) stream: StreamId,
}

const _: () = assert!(size_of::<Record>() == 24);

const WARNED: u8 = 0x80;

impl Record {
    pub(super) fn attempts(&self) -> u8 {
        self.tried & !WARNED
    }

    /// Sets the number of attempts; past 127 they are not told apart.
    pub(super) fn set_attempts(&mut self, attempts: u8) {
        self.tried = self.tried & WARNED | attempts.min(!WARNED);
    }

    pub(super) fn is_warned(&self) -> bool {
        self.tried & WARNED != 0
    }

    pub(super) fn set_warned(&mut self) {
        self.tried |= WARNED;
    }

    pub(super) fn entry(&self) -> Entry {
        Entry { home: self.home, slot: self.slot, part: self.part }
    }
}

#[derive(Debug)]
pub(super) struct Entries {
    chunks: Vec<Box<[Record]>>,
    /// Records handed out at least once.
    touched: u32,
    /// Chain of freed records.
    free: u32,
}

impl Entries {
    pub(super) fn new() -> Entries {
        Entries { chunks: Vec::new(), touched: 0, free: NIL }
    }

    pub(super) fn insert(&mut self, record: Record) -> u32 {
        let id = if self.free == NIL {
            let id = self.touched;
            assert!(id < NIL, "entries are admitted within limits::QUEUED_RECIPIENTS");
            if id as usize == self.chunks.len() * ENTRY_CHUNK {
                self.chunks.push(vec![Record::default(); ENTRY_CHUNK].into_boxed_slice());
            }
            self.touched += 1;
            id
        } else {
            let id = self.free;
            self.free = self[id].next;
            id
        };
        self[id] = record;
        id
    }

    pub(super) fn free(&mut self, id: u32) {
        self[id].next = self.free;
        self.free = id;
    }

    /// The member of the chain from `head` that is `entry`: it and the one before it.
    pub(super) fn find(&self, head: u32, entry: Entry) -> Option<(u32, u32)> {
        let (mut before, mut id) = (NIL, head);
        while id != NIL {
            if self[id].entry() == entry {
                return Some((before, id));
            }
            (before, id) = (id, self[id].next);
        }
        None
    }

    /// How many members of the chain from `head` stand before `entry`, if it is in it.
    pub(super) fn position(&self, head: u32, entry: Entry) -> Option<usize> {
        let chain = std::iter::successors((head != NIL).then_some(head), |id| {
            Some(self[*id].next).filter(|id| *id != NIL)
        });
        chain.into_iter().position(|id| self[id].entry() == entry)
    }

    /// Takes `id` out of the chain that starts at `head`, where it follows `before`.
    pub(super) fn unlink(&mut self, head: &mut u32, before: u32, id: u32) {
        let next = self[id].next;
        if before == NIL {
            *head = next;
        } else {
            self[before].next = next;
        }
    }
}

impl Index<u32> for Entries {
    type Output = Record;
    fn index(&self, id: u32) -> &Record {
        &self.chunks[id as usize / ENTRY_CHUNK][id as usize % ENTRY_CHUNK]
    }
}

impl IndexMut<u32> for Entries {
    fn index_mut(&mut self, id: u32) -> &mut Record {
        &mut self.chunks[id as usize / ENTRY_CHUNK][id as usize % ENTRY_CHUNK]
    }
}

/// A chain with both ends known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fifo {
    pub(super) head: u32,
    tail: u32,
    pub(super) len: u32,
}

impl Fifo {
    pub(super) const EMPTY: Fifo = Fifo { head: NIL, tail: NIL, len: 0 };

    pub(super) fn push_back(&mut self, entries: &mut Entries, id: u32) {
        entries[id].next = NIL;
        if self.tail == NIL {
            self.head = id;
        } else {
            entries[self.tail].next = id;
        }
        self.tail = id;
        self.len += 1;
    }

    pub(super) fn push_front(&mut self, entries: &mut Entries, id: u32) {
        entries[id].next = self.head;
        if self.head == NIL {
            self.tail = id;
        }
        self.head = id;
        self.len += 1;
    }

    /// Takes out `id`, which follows `before` (NIL: it is the head).
    pub(super) fn remove(&mut self, entries: &mut Entries, before: u32, id: u32) {
        entries.unlink(&mut self.head, before, id);
        if self.tail == id {
            self.tail = before;
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(slot: u32) -> Record {
        Record { slot, ..Record::default() }
    }

    #[test]
    fn recycles_before_it_grows() {
        let mut entries = Entries::new();
        let ids: Vec<u32> = (0..10).map(|slot| entries.insert(record(slot))).collect();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
        entries.free(3);
        entries.free(7);
        assert_eq!([entries.insert(record(70)), entries.insert(record(30))], [7, 3]);
        assert_eq!(entries.insert(record(10)), 10);
        assert_eq!((entries[7].slot, entries[3].slot, entries[9].slot), (70, 30, 9));
    }

    #[test]
    fn grows_by_chunks() {
        let mut entries = Entries::new();
        for slot in 0..ENTRY_CHUNK as u32 + 1 {
            entries.insert(record(slot));
        }
        assert_eq!(entries.chunks.len(), 2);
        assert_eq!(entries[ENTRY_CHUNK as u32].slot, ENTRY_CHUNK as u32);
    }

    #[test]
    fn a_fifo_keeps_order_through_every_removal() {
        // (index removed, what is left)
        for (gone, left) in [(0, vec![1, 2]), (1, vec![0, 2]), (2, vec![0, 1])] {
            let mut entries = Entries::new();
            let mut fifo = Fifo::EMPTY;
            for slot in 0..3 {
                let id = entries.insert(record(slot));
                fifo.push_back(&mut entries, id);
            }
            let (before, id) = entries.find(fifo.head, record(gone).entry()).expect("it is there");
            fifo.remove(&mut entries, before, id);
            let front = entries.insert(record(8));
            fifo.push_front(&mut entries, front);
            let back = entries.insert(record(9));
            fifo.push_back(&mut entries, back);
            let order: Vec<u32> = std::iter::from_fn(|| {
                let id = fifo.head;
                (id != NIL).then(|| {
                    fifo.remove(&mut entries, NIL, id);
                    entries[id].slot
                })
            })
            .collect();
            assert_eq!(order, [vec![8], left, vec![9]].concat());
            assert_eq!(fifo.len, 0);
        }
    }
}
