//! Slots by the id in their record.
//!
//! Owns: an open-addressing table of 32-bit slots; the ids stay in the records, so each is stored once.
//! Promises: about five bytes for each message once [`Index::rebuild`] has run, at most eight while it
//! grows; removal leaves no tombstones. Must not: know more of a record than its id.
use super::records::Records;
use super::{NONE, Slot};
use crate::mail::id::MessageId;

/// Cells per message, in eighths, when the table is made anew for a known number.
const ROOMY_EIGHTHS: usize = 10;

#[derive(Debug, Default)]
pub(super) struct Index {
    cells: Vec<u32>,
    len: usize,
}

impl Index {
    /// Ids rise by microseconds with the log's number in the low bits: Fibonacci hashing spreads them.
    fn cell_of(&self, id: MessageId) -> usize {
        let hash = id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((u128::from(hash) * self.cells.len() as u128) >> 64) as usize
    }
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.cells.len() { 0 } else { at + 1 }
    }
    /// How far `at` lies behind `from`, round the end.
    fn distance(&self, from: usize, at: usize) -> usize {
        if at >= from { at - from } else { at + self.cells.len() - from }
    }

    pub(super) fn find(&self, id: MessageId, records: &Records) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.cell_of(id);
        loop {
            match self.cells[at] {
                NONE => return None,
                slot if records[slot].id() == id => return Some(slot),
                _ => at = self.after(at),
            }
        }
    }

    /// Adds a slot whose record is in place.
    pub(super) fn insert(&mut self, slot: Slot, records: &Records) {
        if (self.len + 1) * 6 > self.cells.len() * 5 {
            self.resize((self.cells.len() * 3 / 2).max(64), records);
        }
        self.place(slot, records[slot].id());
        self.len += 1;
    }

    /// Makes the table as small as its messages allow.
    pub(super) fn rebuild(&mut self, records: &Records) {
        self.resize((self.len * ROOMY_EIGHTHS / 8).max(64), records);
    }

    fn resize(&mut self, cells: usize, records: &Records) {
        let old = std::mem::take(&mut self.cells);
        self.cells = vec![NONE; cells];
        for slot in old.into_iter().filter(|&slot| slot != NONE) {
            self.place(slot, records[slot].id());
        }
    }

    fn place(&mut self, slot: Slot, id: MessageId) {
        let mut at = self.cell_of(id);
        while self.cells[at] != NONE {
            at = self.after(at);
        }
        self.cells[at] = slot;
    }

    /// Removes a slot whose record is still in place, and closes the gap.
    pub(super) fn remove(&mut self, slot: Slot, records: &Records) {
        let mut gap = self.cell_of(records[slot].id());
        while self.cells[gap] != slot {
            gap = self.after(gap);
        }
        let mut at = gap;
        loop {
            at = self.after(at);
            if self.cells[at] == NONE {
                break;
            }
            let wanted = self.cell_of(records[self.cells[at]].id());
            // It may move into the gap unless its own cell lies behind the gap.
            if self.distance(wanted, at) >= self.distance(gap, at) {
                self.cells[gap] = self.cells[at];
                gap = at;
            }
        }
        self.cells[gap] = NONE;
        self.len -= 1;
    }
}
