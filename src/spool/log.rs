//! The writer of one log.
//!
//! Owns: [`Log`]: the buffers lent to it, the open group, and the order in which groups settle. Promises:
//! it never waits and never does I/O; every group handed out is answered for in [`Log::take_results`];
//! what depends on a group happens only when that group and all before it are durable. Must not: look at
//! bodies, or keep a message's envelope after it was appended. Appending is in `append`, failure in
//! `failure`, recycling and copy-forward in `reclaim`.
use std::collections::VecDeque;

use super::broken::Broken;
use super::checksum::Key;
use super::failure::Failure;
use super::format::{FRAME_ALIGN, GROUP_HEADER_BYTES, GroupHeader, SegmentHeader, directory_bytes};
use super::group::seal_group;
use super::inflight::{Fate, Groups, InFlight, Note};
use super::live::{COPYING, DURABLE};
use super::reader::ReadPlan;
use super::reclaim::Copies;
use super::sealing::Sealing;
use super::segments::{Class, Preparation, Segments};
use super::{
    Buffer, FileIndex, Generation, GroupResult, GroupSeq, Intent, LiveTable, LogConfig, LogStats, MessageId,
    RecoveredLog, Refusal, Slot, WallTime,
};
use crate::limits;

/// The group being filled.
pub(super) struct OpenGroup<B> {
    pub(super) buffer: B,
    pub(super) seq: GroupSeq,
    pub(super) generation: Generation,
    /// In the segment.
    pub(super) offset: u32,
    pub(super) key: Key,
    /// Bytes of buffer and segment there are for it.
    limit: usize,
    pub(super) used: usize,
    /// Offsets of its frames.
    pub(super) frames: Vec<u32>,
    /// How many of them are copies made by reclaim, for which nobody waits.
    pub(super) copies: usize,
    pub(super) notes: Vec<Note>,
}

impl<B> OpenGroup<B> {
    /// Whether one more frame fits, in the buffer and in `segment_room` bytes of the segment.
    fn fits(&self, frame_bytes: usize, segment_room: usize, block_bytes: u32) -> bool {
        let frame = self.used.next_multiple_of(FRAME_ALIGN);
        let end = (frame + frame_bytes).next_multiple_of(FRAME_ALIGN);
        let total = end + directory_bytes(self.frames.len() + 1);
        total.next_multiple_of(block_bytes as usize) <= self.limit.min(segment_room)
    }
}

/// The writer of one log. See the module and [`super`].
pub struct Log<B> {
    pub(super) config: LogConfig,
    pub(super) segments: Segments,
    pub(super) sealing: Sealing,
    pub(super) live: LiveTable,
    pub(super) groups: Groups,
    pub(super) open: Option<OpenGroup<B>>,
    /// Commit buffers not in use.
    pub(super) buffers: Vec<B>,
    /// Length of the smallest commit buffer lent.
    buffer_bytes: usize,
    pub(super) spare_frames: Vec<u32>,
    pub(super) intents: VecDeque<Intent<B>>,
    pub(super) results: Vec<(GroupSeq, GroupResult)>,
    pub(super) next_seq: GroupSeq,
    /// First group of this run.
    pub(super) run: GroupSeq,
    /// The highest tail that a durable group states.
    pub(super) durable_tail: GroupSeq,
    pub(super) last_id: Option<MessageId>,
    /// The last time anybody told.
    pub(super) now: WallTime,
    pub(super) failure: Failure,
    pub(super) copies: Copies,
    pub(super) stats: LogStats,
    #[cfg(test)]
    pub(super) broken: Option<Broken>,
}

impl<B: Buffer> Log<B> {
    /// A writer for the log that recovery found; it begins in fresh segments. The edge carries out the
    /// first intents at once.
    pub fn new(config: LogConfig, recovered: RecoveredLog) -> Log<B> {
        assert!(config.block_bytes.is_power_of_two() && config.block_bytes as usize >= GROUP_HEADER_BYTES);
        assert!(config.segment_bytes.is_multiple_of(config.block_bytes));
        let RecoveredLog { segments, free, live, next_generation, next_seq, last_id, .. } = recovered;
        // Zero is nobody's sequence and nobody's generation.
        let next_seq = next_seq.max(GroupSeq(1));
        let next_generation = next_generation.max(Generation(1));
        let mut log = Log {
            segments: Segments::new(&config, segments, free, next_generation),
            config,
            sealing: Sealing::default(),
            live,
            groups: Groups::default(),
            open: None,
            buffers: Vec::new(),
            buffer_bytes: 0,
            spare_frames: Vec::new(),
            intents: VecDeque::new(),
            results: Vec::new(),
            next_seq,
            run: next_seq,
            durable_tail: GroupSeq(0),
            last_id,
            now: WallTime(0),
            failure: Failure::default(),
            copies: Copies::default(),
            stats: LogStats::default(),
            #[cfg(test)]
            broken: None,
        };
        log.reclaim();
        log.prepare();
        log
    }

    /// Lends a commit buffer for good: it comes back with each answer and is used again. Its length is a
    /// multiple of the block size.
    pub fn lend(&mut self, buffer: B) {
        let bytes = buffer.memory().len();
        debug_assert!(bytes.is_multiple_of(self.config.block_bytes as usize));
        self.buffer_bytes = if self.buffer_bytes == 0 { bytes } else { self.buffer_bytes.min(bytes) };
        self.buffers.push(buffer);
    }

    /// The next message id of this log.
    pub fn next_id(&mut self, now: WallTime) -> MessageId {
        self.now = self.now.max(now);
        let id = MessageId::next(self.last_id, now, self.config.log);
        self.last_id = Some(id);
        id
    }

    /// Whether new mail of `bytes` would find room. `NoRoom` or `Unwritable`, never `Busy`.
    pub fn admits(&self, bytes: u64) -> Result<(), Refusal> {
        if self.failure.closing.is_some() {
            Err(Refusal::Unwritable)
        } else if self.segments.mail_room() < bytes.saturating_add(self.buffer_bytes as u64) {
            Err(Refusal::NoRoom)
        } else {
            Ok(())
        }
    }

    /// Bytes that a message may have whose transaction begins now. `NoRoom` while less than a segment is
    /// left: that is for the transactions that have begun.
    pub fn room_for_mail(&self) -> Result<u64, Refusal> {
        let kept = limits::SEGMENTS_FOR_BEGUN * u64::from(self.config.segment_bytes);
        self.admits(kept)?;
        Ok(self.segments.mail_room() - kept)
    }

    /// Whether outcomes can be recorded now, or as soon as a buffer is free. Without it no delivery
    /// should begin. What is left of the last segment will do, but for a part that those under way need.
    pub fn takes_outcomes(&self) -> bool {
        let room = self.segments.remaining() >= self.config.segment_bytes / limits::LAST_SEGMENT_PARTS;
        self.failure.closing.is_none() && (room || self.segments.prepared() > 0 || self.segments.preparing())
    }

    /// The messages this log owes somebody.
    pub fn live(&self) -> &LiveTable {
        &self.live
    }

    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.segments.used.len() as u64,
            prepared_segments: self.segments.prepared() as u64,
            free_files: self.segments.free.len() as u64,
            live_messages: self.live.len() as u64,
            live_bytes: self.live.bytes(),
            groups_in_flight: self.groups.in_flight() as u64,
            ..self.stats
        }
    }

    /// The groups whose fate was decided since the last call, appended to `out`.
    pub fn take_results(&mut self, out: &mut Vec<(GroupSeq, GroupResult)>) {
        out.append(&mut self.results);
    }

    /// Where to read a durable message. Its segments are not recycled until [`Log::unpin`].
    pub fn pin(&mut self, slot: Slot) -> Option<ReadPlan> {
        let plan = ReadPlan::new(slot, &self.live, &self.segments, &self.config)?;
        self.segments.get_mut(plan.home)?.pins += 1;
        Some(plan)
    }

    pub fn unpin(&mut self, plan: &ReadPlan) {
        if let Some(segment) = self.segments.get_mut(plan.home) {
            segment.pins = segment.pins.saturating_sub(1);
        }
    }

    /// The end of the worker's turn: closes the open group if a commit slot is free, and looks after
    /// segments.
    pub fn end_turn(&mut self) {
        self.pump();
        let free = self.groups.commits_out() < self.config.commits_in_flight;
        if free && !self.gathers_copies() {
            self.close_group();
        }
        self.reclaim();
        self.prepare();
    }

    /// The next thing to do for the log; ask until there is none.
    pub fn next_intent(&mut self) -> Option<Intent<B>> {
        self.intents.pop_front()
    }

    /// The answer to `Intent::Write`. A failed or short write (`ok` false) is final and fails every
    /// incomplete group. The buffer of a fragment is handed back; a commit buffer stays lent.
    pub fn on_written(&mut self, seq: GroupSeq, buffer: B, ok: bool) -> Option<B> {
        if !ok {
            self.fail_all_in_flight();
        }
        let Some(group) = self.groups.answered(seq) else {
            return Some(buffer);
        };
        let own_buffer = group.own_buffer;
        if group.fate == Fate::Open {
            group.fate = Fate::Durable;
            self.results.push((seq, GroupResult::Durable));
        } else {
            group.fate = Fate::Lost;
            let start = group.start;
            if !own_buffer {
                self.salvage(buffer.memory(), start);
            }
        }
        let returned = if own_buffer {
            Some(buffer)
        } else {
            self.buffers.push(buffer);
            None
        };
        self.settle();
        self.pump();
        returned
    }

    /// The answer to `Intent::Prepare`.
    pub fn on_prepared(&mut self, file: FileIndex, generation: Generation, ok: bool) {
        let usable = self.failure.closing.is_none() || self.failure.closing_asked;
        if !self.segments.prepared_is(file, generation, ok, usable) {
            return;
        }
        self.failure.closing_asked = false;
        if ok && usable {
            self.failure.closing = None;
        }
        self.stats.failed_prepares += u64::from(!ok);
        self.pump();
        self.prepare();
    }

    /// Tries again what failed for want of room or of a working disk. Call about once per second.
    pub fn retry_prepare(&mut self) {
        self.segments.retry();
        self.copies.resume();
        self.prepare();
    }

    /// The sequence below which everything is durable, or was given up and rewritten.
    pub(super) fn durable_below(&self) -> GroupSeq {
        let open = self.open.as_ref().map(|g| g.seq);
        self.groups.first().or(open).unwrap_or(self.next_seq)
    }

    /// Groups below it hold nothing that is alive.
    pub(super) fn tail(&self) -> GroupSeq {
        self.segments.used.front().map_or(self.next_seq, |s| s.first_seq)
    }

    /// Largest group there can be.
    pub(super) fn group_room(&self) -> usize {
        self.buffer_bytes.min((self.config.segment_bytes - self.config.block_bytes) as usize)
    }

    pub(super) fn take_seq(&mut self) -> GroupSeq {
        let seq = self.next_seq;
        self.next_seq = GroupSeq(seq.0 + 1);
        seq
    }

    /// Makes the open group one that takes a frame of `frame_bytes`.
    pub(super) fn reserve(&mut self, frame_bytes: usize, class: Class) -> Result<(), Refusal> {
        if self.failure.closing.is_some() {
            return Err(Refusal::Unwritable);
        }
        self.segments.may_write(class)?;
        let room = self.segment_room(frame_bytes);
        if self.open.as_ref().is_some_and(|g| g.fits(frame_bytes, room, self.config.block_bytes)) {
            return Ok(());
        }
        let block = self.config.block_bytes as usize;
        let alone = (GROUP_HEADER_BYTES + frame_bytes).next_multiple_of(FRAME_ALIGN) + directory_bytes(1);
        let alone = alone.next_multiple_of(block);
        if self.buffer_bytes > 0 && alone > self.group_room() {
            return Err(Refusal::NoRoom);
        }
        self.close_group();
        if self.buffers.is_empty() {
            return Err(Refusal::Busy);
        }
        if self.segment_room(frame_bytes) < alone {
            self.advance(class)?;
        }
        self.open_group();
        Ok(())
    }

    fn open_group(&mut self) {
        let seq = self.take_seq();
        let remaining = self.segments.remaining() as usize;
        let segment = self.segments.open_mut().expect("the caller made sure of room");
        segment.last_seq = seq;
        let (generation, offset) = (segment.generation, segment.end);
        let buffer = self.buffers.pop().expect("the caller made sure of a buffer");
        let limit = buffer.memory().len().min(remaining);
        self.open = Some(OpenGroup {
            buffer,
            seq,
            generation,
            offset,
            key: Key::derive(self.config.identity, self.config.log, generation),
            limit,
            used: GROUP_HEADER_BYTES,
            frames: std::mem::take(&mut self.spare_frames),
            copies: 0,
            notes: self.groups.notes(),
        });
    }

    /// Hands the open group out for writing.
    pub(super) fn close_group(&mut self) {
        let Some(mut group) = self.open.take() else { return };
        let header = self.group_header(group.seq, group.generation, group.offset);
        let contents = (&group.frames[..], group.used);
        let header = seal_group(group.buffer.memory_mut(), header, contents, &self.config, group.key);
        group.frames.clear();
        self.spare_frames = group.frames;
        self.hand_out(header, group.buffer, false, group.notes);
    }

    pub(super) fn group_header(&self, seq: GroupSeq, generation: Generation, offset: u32) -> GroupHeader {
        let in_flight = self.groups.first().filter(|_| !self.breaks(Broken::ClaimsDurable));
        let first_open = in_flight.unwrap_or(seq);
        GroupHeader {
            generation,
            seq,
            run: self.run,
            durable_below: first_open.max(self.run),
            tail: self.tail(),
            last_id: self.last_id,
            offset,
            total_bytes: 0,
            directory_offset: 0,
            frames: 0,
        }
    }

    pub(super) fn hand_out(&mut self, header: GroupHeader, buffer: B, own_buffer: bool, notes: Vec<Note>) {
        if self.breaks(Broken::AnswersEarly) {
            self.results.push((header.seq, GroupResult::Durable));
        }
        let segment = self.segments.get_mut(header.generation).expect("groups go to a segment in use");
        segment.end = header.offset + header.total_bytes;
        self.stats.groups += 1;
        self.stats.frames += u64::from(header.frames);
        self.stats.bytes_written += u64::from(header.total_bytes);
        self.intents.push_back(Intent::Write {
            seq: header.seq,
            file: segment.file,
            offset: header.offset,
            bytes: header.total_bytes,
            buffer,
        });
        self.groups.push(InFlight {
            seq: header.seq,
            generation: header.generation,
            start: header.offset,
            tail: header.tail,
            own_buffer,
            fate: Fate::Open,
            notes,
        });
    }

    /// Acts on the notes of every group that is decided, with all before it.
    pub(super) fn settle(&mut self) {
        while let Some(mut group) = self.groups.pop_settled() {
            if group.fate == Fate::Durable {
                self.durable_tail = self.durable_tail.max(group.tail);
            }
            for note in group.notes.drain(..) {
                match note {
                    Note::Message { slot, id, .. } => {
                        if self.live.is(slot, id) {
                            self.live.set(slot, DURABLE, true);
                        }
                    }
                    Note::Reported { id } => self.copies.is_not_reported(id),
                    Note::Final { slot, id } => {
                        if self.live.is(slot, id) {
                            self.live.remove(slot);
                        }
                    }
                    Note::Copied(to) => {
                        self.loosen(&to.fragments, false);
                        if self.live.is(to.slot, to.id) {
                            self.live.relocate(to.slot, to.place, to.frame_bytes, &to.fragments);
                            self.live.set(to.slot, COPYING, false);
                            self.stats.copies += 1;
                        }
                    }
                }
            }
            self.groups.give_back(group.notes);
        }
        self.seal_durable();
    }

    /// Carries on with what waits for buffers or segments.
    pub(super) fn pump(&mut self) {
        self.pump_rewrites();
        if !self.rewrites_pending() {
            self.pump_copies();
        }
    }

    /// Keeps segments prepared ahead.
    pub(super) fn prepare(&mut self) {
        let Some(next) = self.segments.prepare() else { return };
        let header = SegmentHeader {
            generation: next.generation,
            block_bytes: self.config.block_bytes,
            segment_bytes: self.config.segment_bytes,
            created_at: self.now,
            tail: self.tail(),
            last_id: self.last_id,
            closes: self.failure.closing.filter(|_| !self.breaks(Broken::LeavesRefused)),
        };
        self.failure.closing_asked = self.failure.closing.is_some();
        let header = header.encode(self.config.identity, self.config.log);
        let Preparation { file, new, generation } = next;
        self.intents.push_back(Intent::Prepare { file, new, generation, header });
    }
}
