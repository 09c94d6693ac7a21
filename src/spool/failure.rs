//! What happens when a write fails.
//!
//! Owns: giving up incomplete groups, and the queue of what must be written again. Promises: a failure
//! is final for every group that was incomplete; mail in them is refused for good (an abort record keeps
//! recovery from resurrecting it), while outcomes, operator changes, aborts and DSNs in them are written again in a new
//! segment whose header names and closes the old one. Must not: write again to a segment that failed.
use std::collections::VecDeque;

use super::broken::Broken;
use super::checksum::Key;
use super::format::{Closes, FRAME_HEADER_BYTES, GroupHeader};
use super::group::{Frame, FrameKind, frames, open_frame};
use super::inflight::{Fate, Note};
use super::live::COPYING;
use super::log::{Log, OpenGroup};
use super::record::abort_payload;
use super::segments::Class;
use super::{Buffer, FragmentRef, Generation, GroupResult, GroupSeq, MessageId, Place};
use crate::limits;

/// A frame to be written again.
#[derive(Debug)]
pub(super) struct Rewrite {
    /// The group it was lost with: what was appended first is written again first.
    seq: GroupSeq,
    kind: FrameKind,
    id: MessageId,
    payload: Vec<u8>,
}

/// What a failure has left to do.
#[derive(Debug, Default)]
pub(super) struct Failure {
    /// The segment that failed, until one whose header closes it is prepared.
    pub(super) closing: Option<Closes>,
    /// A segment with that header was asked for.
    pub(super) closing_asked: bool,
    /// Bounded by the commit buffers: only what was in them.
    pub(super) rewrites: VecDeque<Rewrite>,
    /// Groups given up, as long as somebody may hold a fragment in one.
    lost: Vec<GroupSeq>,
    /// The last group that holds something rewritten.
    last_rewrite: GroupSeq,
}

impl Failure {
    fn push(&mut self, rewrite: Rewrite) {
        let at = self.rewrites.partition_point(|r| r.seq <= rewrite.seq);
        self.rewrites.insert(at, rewrite);
    }
}

impl<B: Buffer> Log<B> {
    /// Gives up every incomplete group. The edge calls it for each log of a file system on which a sync
    /// failed; a failed write does so by itself.
    pub fn fail_all_in_flight(&mut self) {
        if !self.groups.iter_mut().any(|g| g.fate == Fate::Open) {
            return;
        }
        self.note_closing();
        self.sealing.give_up();
        // What is still to be written again was appended after what was written again and is lost now.
        self.failure.rewrites.iter_mut().for_each(|r| r.seq = GroupSeq(u64::MAX));
        // Nothing in the open group was handed out, but its place is behind what failed.
        if let Some(group) = self.open.take() {
            self.give_up_open(group);
        }
        let mut doomed = Vec::new();
        let mut notes = Vec::new();
        for group in self.groups.iter_mut().filter(|g| g.fate == Fate::Open) {
            group.fate = Fate::Doomed;
            doomed.push(group.seq);
            notes.append(&mut group.notes);
        }
        for group in self.groups.iter_mut().filter(|g| g.fate == Fate::Durable) {
            let parts_lost = |f: &FragmentRef| doomed.contains(&f.group);
            let lost = group.notes.extract_if(.., |note| match note {
                Note::Message { slot, .. } => self.live.fragments(*slot).iter().any(parts_lost),
                Note::Copied(to) => to.fragments.iter().any(parts_lost),
                Note::Final { .. } | Note::Reported { .. } => false,
            });
            notes.extend(lost);
        }
        self.drop_copy_jobs();
        self.give_up(&doomed, notes);
        self.segments.abandon();
        self.run = self.next_seq;
        self.settle();
        self.prepare();
    }

    /// Remembers where the open segment ends for good.
    fn note_closing(&mut self) {
        let Some(open) = self.segments.open() else { return };
        let mut closes = Closes { generation: open.generation, offset: open.end };
        for group in self.groups.iter_mut().rev().filter(|g| g.generation == closes.generation) {
            if group.fate == Fate::Durable {
                break;
            }
            closes.offset = group.start;
        }
        self.failure.closing = Some(closes);
        self.failure.closing_asked = false;
    }

    fn give_up_open(&mut self, mut group: OpenGroup<B>) {
        // First what is refused goes, so that it is not kept below.
        let notes = std::mem::take(&mut group.notes);
        self.give_up(&[group.seq], notes);
        let used = &group.buffer.memory()[..group.used];
        for &start in &group.frames {
            let frame = open_frame(&used[start as usize..], group.offset + start, group.key);
            self.keep(frame.expect("it was sealed in this buffer"), group.generation, group.seq);
        }
        group.frames.clear();
        self.spare_frames = group.frames;
        self.buffers.push(group.buffer);
    }

    /// Reports the groups lost and undoes what their notes would have made true.
    fn give_up(&mut self, groups: &[GroupSeq], notes: Vec<Note>) {
        let tail = self.tail();
        self.failure.lost.retain(|&seq| seq >= tail);
        self.failure.lost.extend(groups);
        self.stats.lost_groups += groups.len() as u64;
        self.results.extend(groups.iter().map(|&seq| (seq, GroupResult::Lost)));
        let mut refused = Vec::new();
        for note in notes {
            match note {
                Note::Message { slot, id, kept: false } => {
                    if self.live.is(slot, id) {
                        self.live.remove(slot);
                    }
                    refused.push(id);
                }
                Note::Copied(to) => {
                    self.loosen(&to.fragments, false);
                    if self.live.is(to.slot, to.id) {
                        self.live.set(to.slot, COPYING, false);
                    }
                }
                Note::Reported { id } => self.copies.is_not_reported(id),
                // Both are found again when what stands in the buffer is written again.
                Note::Message { kept: true, .. } | Note::Final { .. } => {}
            }
        }
        if self.breaks(Broken::LeavesRefused) {
            return;
        }
        for ids in refused.chunks(limits::ABORTS_PER_RECORD) {
            let payload = abort_payload(ids);
            let (seq, kind) = (GroupSeq(0), FrameKind::Abort);
            self.failure.push(Rewrite { seq, kind, id: MessageId(0), payload });
        }
    }

    /// Takes from the buffer of a group that was given up what must be written again.
    pub(super) fn salvage(&mut self, memory: &[u8], start: u32) {
        let header = GroupHeader::decode(memory, start, &self.config).expect("it was sealed in this buffer");
        let key = Key::derive(self.config.identity, self.config.log, header.generation);
        for frame in frames(memory, &header, key) {
            self.keep(frame.expect("it was sealed in this buffer"), header.generation, header.seq);
        }
    }

    fn keep(&mut self, frame: Frame<'_>, generation: Generation, seq: GroupSeq) {
        let id = MessageId(frame.id);
        let wanted = match FrameKind::of(frame.kind) {
            Some(FrameKind::Outcome) => !self.breaks(Broken::DropsOutcomes),
            Some(FrameKind::Change | FrameKind::Abort) => true,
            // Refused messages are not in the table any more, and copies are made again from the old
            // place: what is left are DSNs.
            Some(FrameKind::Commit) => {
                let place = Place { generation, offset: frame.offset };
                self.live.find(id).and_then(|slot| self.live.get(slot)).is_some_and(|m| m.place == place)
            }
            Some(FrameKind::Fragment) | None => false,
        };
        if let (true, Some(kind)) = (wanted, FrameKind::of(frame.kind)) {
            self.failure.push(Rewrite { seq, kind, id, payload: frame.payload.to_vec() });
        }
    }

    /// Writes again what was lost, once every buffer that may hold some of it is back.
    pub(super) fn pump_rewrites(&mut self) {
        if self.groups.any_doomed() {
            return;
        }
        while let Some(next) = self.failure.rewrites.front() {
            let bytes = next.payload.len();
            if self.reserve(FRAME_HEADER_BYTES + bytes, Class::Reserved).is_err() {
                return;
            }
            let Rewrite { kind, id, payload, .. } =
                self.failure.rewrites.pop_front().expect("it was there just now");
            let written = self.write_frame(kind, id, bytes, |out| out.copy_from_slice(&payload));
            self.failure.last_rewrite = written.group;
            match (kind, self.live.find(id)) {
                (FrameKind::Outcome, Some(slot)) if self.live.get(slot).is_some_and(|m| m.pending == 0) => {
                    self.note(Note::Final { slot, id });
                }
                (FrameKind::Commit, Some(slot)) => {
                    self.live.relocate(slot, written.place, written.frame_bytes, &[]);
                    self.note(Note::Message { slot, id, kept: true });
                    self.finish_reported(&payload);
                }
                _ => {}
            }
        }
    }

    fn finish_reported(&mut self, payload: &[u8]) {
        let commit = super::record::Commit::decode(payload).expect("it was encoded by this process");
        if let Some((id, recipients)) = super::envelope::decode(commit.envelope).reports {
            self.finish(id, &recipients);
        }
    }

    /// Whether something is still to be written again: it goes before anything new.
    pub(super) fn rewrites_pending(&self) -> bool {
        !self.failure.rewrites.is_empty() || self.groups.any_doomed()
    }

    /// Whether a segment may be recycled as far as failures go: everything rewritten is durable.
    pub(super) fn rewritten(&self) -> bool {
        self.failure.closing.is_none()
            && !self.rewrites_pending()
            && self.failure.last_rewrite < self.durable_below()
    }

    /// Whether a fragment is not there any more.
    pub(super) fn is_gone(&self, fragment: &FragmentRef) -> bool {
        self.segments.get(fragment.place.generation).is_none() || self.failure.lost.contains(&fragment.group)
    }
}
