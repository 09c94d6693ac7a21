//! The segments of a log: those that hold records, those prepared, and the files that are free.
//!
//! Owns: which file is used under which generation, and the bounds on how many there are. Promises:
//! generations rise in the order in which segments are used; mail never takes the segments reserved for
//! outcomes and copies. Must not: know what the records are.
use std::collections::VecDeque;

use super::{FileIndex, Generation, GroupSeq, LogConfig, Refusal};
use crate::limits;

/// A segment that holds records.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) file: FileIndex,
    pub(super) generation: Generation,
    /// Length of the file.
    pub(super) bytes: u32,
    /// Where the next group goes.
    pub(super) end: u32,
    pub(super) first_seq: GroupSeq,
    /// Of the last group in it.
    pub(super) last_seq: GroupSeq,
    /// Fragments whose message is not committed yet.
    pub(super) loose: u32,
    pub(super) pins: u32,
}

/// A dead file. Its old groups are below the tail that every later header states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FreeFile {
    pub(super) file: FileIndex,
    pub(super) last_seq: GroupSeq,
    /// Whole and of the right size: it needs only a header. Otherwise it is made anew, or deleted.
    pub(super) reusable: bool,
}

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Mail,
    /// Outcomes, DSNs, copies, rewrites: may use the reserve.
    Reserved,
}

#[derive(Debug)]
pub(super) struct Segments {
    /// Oldest first; the last is the open one if `open`.
    pub(super) used: VecDeque<Segment>,
    pub(super) open: bool,
    prepared: VecDeque<(FileIndex, Generation)>,
    preparing: Option<(FreeFile, Generation)>,
    pub(super) free: VecDeque<FreeFile>,
    next_file: u32,
    next_generation: u32,
    /// A prepare failed; the next is not tried before `retry`.
    stalled: bool,
    max: usize,
    bytes: u32,
    block_bytes: u32,
}

/// A prepare to be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Preparation {
    pub(super) file: FileIndex,
    pub(super) new: bool,
    pub(super) generation: Generation,
}

impl Segments {
    pub(super) fn new(
        config: &LogConfig,
        used: VecDeque<Segment>,
        free: VecDeque<FreeFile>,
        next_generation: Generation,
    ) -> Segments {
        let files = used.iter().map(|s| s.file).chain(free.iter().map(|f| f.file));
        let next_file = files.map(|f| f.0 + 1).max().unwrap_or(0);
        Segments {
            used,
            open: false,
            prepared: VecDeque::new(),
            preparing: None,
            free,
            next_file,
            next_generation: next_generation.0,
            stalled: false,
            max: config.max_segments as usize,
            bytes: config.segment_bytes,
            block_bytes: config.block_bytes,
        }
    }

    pub(super) fn get(&self, generation: Generation) -> Option<&Segment> {
        let at = self.used.binary_search_by_key(&generation, |s| s.generation).ok()?;
        self.used.get(at)
    }
    pub(super) fn get_mut(&mut self, generation: Generation) -> Option<&mut Segment> {
        let at = self.used.binary_search_by_key(&generation, |s| s.generation).ok()?;
        self.used.get_mut(at)
    }
    pub(super) fn open(&self) -> Option<&Segment> {
        if self.open { self.used.back() } else { None }
    }
    pub(super) fn open_mut(&mut self) -> Option<&mut Segment> {
        if self.open { self.used.back_mut() } else { None }
    }
    /// Bytes left in the open segment.
    pub(super) fn remaining(&self) -> u32 {
        self.open().map_or(0, |s| s.bytes - s.end)
    }
    pub(super) fn prepared(&self) -> usize {
        self.prepared.len()
    }
    /// Every file of the log.
    fn files(&self) -> usize {
        self.used.len() + self.prepared.len() + usize::from(self.preparing.is_some()) + self.free.len()
    }
    /// Segments that could still be prepared.
    fn preparable(&self) -> usize {
        let fresh = self.max.saturating_sub(self.files());
        self.free.len() + fresh + usize::from(self.preparing.is_some())
    }

    /// Whether this class may write now: mail leaves the reserve alone.
    pub(super) fn may_write(&self, class: Class) -> Result<(), Refusal> {
        let short = self.prepared.len() < limits::RESERVED_SEGMENTS || self.overdrawn();
        if class == Class::Mail && short {
            return Err(self.shortage(class));
        }
        Ok(())
    }
    /// Bytes that mail may count on, prepared or preparable.
    pub(super) fn mail_room(&self) -> u64 {
        let preparable = if self.stalled { 0 } else { self.preparable() };
        let segments = (self.prepared.len() + preparable).saturating_sub(limits::RESERVED_SEGMENTS);
        let short = self.prepared.len() + preparable < limits::RESERVED_SEGMENTS || self.overdrawn();
        let open = if short { 0 } else { u64::from(self.remaining()) };
        open + segments as u64 * u64::from(self.bytes - self.block_bytes)
    }
    /// What to answer when a segment is needed and none may be used.
    fn shortage(&self, class: Class) -> Refusal {
        let coming = self.preparing.is_some() || (!self.stalled && self.preparable() > 0);
        let more = match class {
            Class::Mail => coming && !self.overdrawn(),
            Class::Reserved => coming || (!self.stalled && self.overdraws()),
        };
        if more { Refusal::Busy } else { Refusal::NoRoom }
    }
    /// Whether the reserve must be had beyond the limit: every restart begins in a fresh segment, and a
    /// log that could record no outcome would never shrink again. Mail stays out until it has.
    fn overdraws(&self) -> bool {
        self.prepared.len() < limits::RESERVED_SEGMENTS
    }
    /// Whether there are more files than the limit.
    pub(super) fn overdrawn(&self) -> bool {
        self.files() > self.max
    }

    /// Ends the open segment and opens the next prepared one.
    pub(super) fn advance(&mut self, class: Class, first_seq: GroupSeq) -> Result<(), Refusal> {
        let spared = if class == Class::Mail { limits::RESERVED_SEGMENTS } else { 0 };
        if self.prepared.len() <= spared {
            return Err(self.shortage(class));
        }
        let (file, generation) = self.prepared.pop_front().expect("more than none are prepared");
        debug_assert!(self.used.back().is_none_or(|s| s.generation < generation));
        self.used.push_back(Segment {
            file,
            generation,
            bytes: self.bytes,
            end: self.block_bytes,
            first_seq,
            last_seq: first_seq,
            loose: 0,
            pins: 0,
        });
        self.open = true;
        Ok(())
    }

    /// The open segment takes no more groups.
    pub(super) fn close(&mut self) {
        self.open = false;
    }

    /// The open segment takes no more groups, and what is prepared gets new generations: the next
    /// segment's header has something to say.
    pub(super) fn abandon(&mut self) {
        self.close();
        for (file, _) in self.prepared.drain(..).rev() {
            self.free.push_front(FreeFile { file, last_seq: GroupSeq(0), reusable: true });
        }
    }

    /// The next file to prepare, while fewer than the wanted are ready. One at a time, so that
    /// generations rise in the order of use.
    pub(super) fn prepare(&mut self) -> Option<Preparation> {
        let wanted = limits::SPARE_SEGMENTS + limits::RESERVED_SEGMENTS;
        if self.preparing.is_some() || self.stalled || self.prepared.len() >= wanted {
            return None;
        }
        let whole = self.free.iter().position(|f| f.reusable).unwrap_or(0);
        let file = match self.free.remove(whole) {
            Some(file) => file,
            None if self.files() < self.max || self.overdraws() => {
                self.next_file += 1;
                FreeFile { file: FileIndex(self.next_file - 1), last_seq: GroupSeq(0), reusable: false }
            }
            None => return None,
        };
        let generation = Generation(self.next_generation);
        self.next_generation += 1;
        self.preparing = Some((file, generation));
        Some(Preparation { file: file.file, new: !file.reusable, generation })
    }

    /// The answer to a prepare. `usable` is whether the header it wrote is still the one wanted. False
    /// when nothing was asked for.
    pub(super) fn prepared_is(
        &mut self,
        file: FileIndex,
        generation: Generation,
        ok: bool,
        usable: bool,
    ) -> bool {
        let Some((entry, _)) = self.preparing.take_if(|(f, g)| f.file == file && *g == generation) else {
            return false;
        };
        if ok && usable {
            self.prepared.push_back((file, generation));
        } else {
            self.stalled = !ok;
            self.free.push_front(FreeFile { reusable: ok || entry.reusable, ..entry });
        }
        true
    }
    pub(super) fn retry(&mut self) {
        self.stalled = false;
    }
    pub(super) fn preparing(&self) -> bool {
        self.preparing.is_some()
    }
    /// Whether spares are wanted that only reclaim could give.
    pub(super) fn short(&self) -> bool {
        let wanted = limits::SPARE_SEGMENTS + limits::RESERVED_SEGMENTS;
        self.prepared.len() < wanted && self.preparing.is_none() && (self.stalled || self.preparable() == 0)
    }

    /// Retires the oldest segment, which must not be the open one.
    pub(super) fn retire_oldest(&mut self) {
        let segment = self.used.pop_front().expect("the caller looked at it");
        debug_assert!(!(self.open && self.used.is_empty()));
        let reusable = segment.bytes == self.bytes;
        self.free.push_back(FreeFile { file: segment.file, last_seq: segment.last_seq, reusable });
        // A disk too full for a new file is not too full for one that exists.
        self.stalled &= !reusable;
    }
}
