//! The records of live messages: 24 bytes each, in chunks.
//!
//! Owns: [`Record`] and the memory it lies in. Promises: growth adds a chunk and copies nothing; a freed
//! record is the next one handed out. The table does not shrink: it holds the memory of the largest
//! backlog seen. Must not: know what hangs on a record.
use std::ops::{Index, IndexMut};

use super::super::{Generation, Place};
use super::{LIVE, NONE, Slot};
use crate::limits::LIVE_CHUNK;
use crate::mail::id::MessageId;

/// One live message. Packed: ten million of them stand in a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    id: [u32; 2],
    generation: u32,
    offset: u32,
    /// Of the only recipient: seconds from the epoch to the next attempt, 0 if it was never tried. Of
    /// several: the block with their states. Of a free record: the next free one.
    pub(super) due: u32,
    /// Bytes of the commit frame, in eights, rounded up.
    frame_eights: u16,
    /// Of the only recipient: attempts, or how it ended. Of several: their number, or 0 if it does not fit.
    pub(super) attempts: u8,
    pub(super) flags: u8,
}

const _: () = assert!(size_of::<Record>() == 24);
// A commit frame fits in one commit buffer, so its length in eights fits in 16 bits.
const _: () = assert!(crate::limits::COMMIT_BUFFER_BYTES / 8 <= u16::MAX as usize);

impl Record {
    pub(super) fn new(id: MessageId, flags: u8) -> Record {
        Record { id: [id.0 as u32, (id.0 >> 32) as u32], flags, ..Record::default() }
    }
    pub(super) fn id(&self) -> MessageId {
        MessageId(u64::from(self.id[0]) | u64::from(self.id[1]) << 32)
    }
    pub(super) fn place(&self) -> Place {
        Place { generation: Generation(self.generation), offset: self.offset }
    }
    pub(super) fn frame_bytes(&self) -> u32 {
        u32::from(self.frame_eights) * 8
    }
    pub(super) fn put(&mut self, place: Place, frame_bytes: u32) {
        (self.generation, self.offset) = (place.generation.0, place.offset);
        self.frame_eights = u16::try_from(frame_bytes.div_ceil(8)).unwrap_or(u16::MAX);
    }
}

#[derive(Debug)]
pub(super) struct Records {
    chunks: Vec<Box<[Record]>>,
    /// Records handed out at least once.
    touched: u32,
    /// First of the chain of free records.
    free: Slot,
}

impl Default for Records {
    fn default() -> Records {
        Records { chunks: Vec::new(), touched: 0, free: NONE }
    }
}

impl Records {
    /// Slots that were ever in use are below this.
    pub(super) fn end(&self) -> Slot {
        self.touched
    }

    pub(super) fn insert(&mut self, record: Record) -> Slot {
        let slot = if self.free == NONE {
            let slot = self.touched;
            assert!(slot != NONE, "a spool of 2^32 messages exceeds every disk limit");
            if slot as usize == self.chunks.len() * LIVE_CHUNK {
                self.chunks.push(vec![Record::default(); LIVE_CHUNK].into_boxed_slice());
            }
            self.touched += 1;
            slot
        } else {
            let slot = self.free;
            self.free = self[slot].due;
            slot
        };
        self[slot] = record;
        slot
    }

    /// The record is nobody's; `again` says whether the slot may be handed out again.
    pub(super) fn free(&mut self, slot: Slot, again: bool) {
        self[slot].flags = 0;
        if again {
            self[slot].due = self.free;
            self.free = slot;
        }
    }

    pub(super) fn live(&self, slot: Slot) -> Option<&Record> {
        let record = self.chunks.get(slot as usize / LIVE_CHUNK)?.get(slot as usize % LIVE_CHUNK)?;
        (record.flags & LIVE != 0).then_some(record)
    }

    pub(super) fn live_mut(&mut self, slot: Slot) -> Option<&mut Record> {
        let record = self.chunks.get_mut(slot as usize / LIVE_CHUNK)?.get_mut(slot as usize % LIVE_CHUNK)?;
        (record.flags & LIVE != 0).then_some(record)
    }
}

impl Index<Slot> for Records {
    type Output = Record;
    fn index(&self, slot: Slot) -> &Record {
        &self.chunks[slot as usize / LIVE_CHUNK][slot as usize % LIVE_CHUNK]
    }
}

impl IndexMut<Slot> for Records {
    fn index_mut(&mut self, slot: Slot) -> &mut Record {
        &mut self.chunks[slot as usize / LIVE_CHUNK][slot as usize % LIVE_CHUNK]
    }
}
