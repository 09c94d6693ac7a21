//! Appending: messages, fragments, outcomes.
//!
//! Owns: the part of [`Log`] that turns values into frames. Promises: what is refused has changed
//! nothing, and small messages cost one copy and no allocation. Must not: decide when a group is closed
//! beyond "it is full".
use super::broken::Broken;
use super::change;
use super::checksum::Key;
use super::format::{
    FRAGMENT_FIXED_BYTES, FRAGMENT_HEADROOM, FRAGMENT_TAILROOM, FRAME_ALIGN, FRAME_HEADER_BYTES,
    GROUP_HEADER_BYTES, directory_bytes, put,
};
use super::group::{FrameKind, seal_frame, seal_group};
use super::inflight::Note;
use super::live::NewLive;
use super::log::Log;
use super::outcome::{self, Recorded};
use super::record::{EnvelopeSource, NewCommit};
use super::segments::Class;
use super::{
    Buffer, End, FragmentRef, GroupSeq, MessageId, NewMessage, Outcome, Place, RecipientState, Refusal,
    Reports, Slot, Standing, WallTime,
};
use std::sync::Arc;

use crate::limits;

/// A frame that was laid into the open group.
pub(super) struct Written {
    pub(super) place: Place,
    pub(super) group: GroupSeq,
    pub(super) frame_bytes: u32,
    pub(super) checksum: u64,
}

impl<B: Buffer> Log<B> {
    /// Largest sum of envelope and body parts that one [`Log::append_message`] takes; a message that
    /// exceeds it is refused with `NoRoom`.
    pub fn inline_room(&self) -> usize {
        const OVERHEAD: usize = GROUP_HEADER_BYTES + FRAME_HEADER_BYTES + 64 + directory_bytes(1);
        self.group_room().saturating_sub(OVERHEAD)
    }

    /// Appends a message. It exists once the returned group and the groups of all its fragments are
    /// durable. One that ends recipients (`reports` set) may use the reserve. One that is `kept` is written
    /// again by the log itself when its group is lost: its slot stays, the loss reported for its group is
    /// not its end.
    pub fn append_message(&mut self, message: &NewMessage<'_>) -> Result<(Slot, GroupSeq), Refusal> {
        self.ready()?;
        debug_assert!(!message.kept || message.fragments.is_empty());
        debug_assert!(message.kept || message.reports.is_none());
        if message.fragments.iter().any(|f| self.is_gone(f)) {
            return Err(Refusal::Unwritable);
        }
        let reports = message.reports.filter(|_| !self.breaks(Broken::ReportsNobody));
        let commit = NewCommit {
            recipients: message.envelope.recipients.len() as u32,
            fragments: message.fragments,
            envelope: EnvelopeSource::New(message.envelope, reports),
            states: &[],
            parts: message.parts,
        };
        let class = if message.reports.is_some() { Class::Reserved } else { Class::Mail };
        let written = self.write_commit(message.id, &commit, class)?;
        self.stats.mail_bytes += u64::from(written.frame_bytes);
        let slot = self.live.insert(&NewLive {
            id: message.id,
            place: written.place,
            frame_bytes: written.frame_bytes,
            fragments: message.fragments,
            recipients: commit.recipients,
            flags: 0,
        });
        self.loosen(message.fragments, false);
        self.note(Note::Message { slot, id: message.id, kept: message.kept });
        if let Some(Reports { id, recipients }) = message.reports {
            self.finish(id, recipients);
        }
        Ok((slot, written.group))
    }

    /// Writes a fragment from the buffer it was received in: the body lies at [`FRAGMENT_HEADROOM`] and
    /// is `body_bytes` long, with at least [`FRAGMENT_TAILROOM`] free behind it; the length of the buffer
    /// is a multiple of the block size. `index` counts the fragments of the message. A transaction that
    /// ends without [`Log::append_message`] must [`Log::abort`] them.
    pub fn append_fragment(
        &mut self,
        id: MessageId,
        index: u32,
        mut buffer: B,
        body_bytes: u32,
    ) -> Result<FragmentRef, (Refusal, B)> {
        let used = FRAGMENT_HEADROOM + body_bytes as usize;
        assert!(used + FRAGMENT_TAILROOM <= buffer.memory().len(), "the buffer holds body and tail room");
        if let Err(refusal) = self.place_fragment(used) {
            return Err((refusal, buffer));
        }
        let segment = self.segments.open().expect("place_fragment made sure of room");
        let (generation, offset) = (segment.generation, segment.end);
        let key = Key::derive(self.config.identity, self.config.log, generation);
        let memory = buffer.memory_mut();
        let place = Place { generation, offset: offset + GROUP_HEADER_BYTES as u32 };
        put(memory, FRAGMENT_HEADROOM - FRAGMENT_FIXED_BYTES, &index.to_le_bytes());
        put(memory, FRAGMENT_HEADROOM - FRAGMENT_FIXED_BYTES + 4, &[0; 4]);
        let frame = &mut memory[GROUP_HEADER_BYTES..used];
        let checksum = seal_frame(frame, FrameKind::Fragment, id.0, place.offset, key);
        let payload = (&frame[FRAME_HEADER_BYTES..], checksum);
        self.sealing.add((FrameKind::Fragment, id.0), place.offset, payload);
        let seq = self.take_seq();
        let header = self.group_header(seq, generation, offset);
        let contents = (&[GROUP_HEADER_BYTES as u32][..], used);
        let header = seal_group(memory, header, contents, &self.config, key);
        let segment = self.segments.open_mut().expect("it was open just now");
        segment.last_seq = seq;
        segment.loose += 1;
        self.stats.mail_bytes += u64::from(body_bytes);
        let notes = self.groups.notes();
        self.hand_out(header, buffer, true, notes);
        Ok(FragmentRef { place, body_bytes, checksum, group: seq })
    }

    /// The transaction ended without a commit record, or that was refused: its fragments are dead.
    pub fn abort(&mut self, id: MessageId, fragments: &[FragmentRef]) {
        debug_assert!(self.live.find(id).is_none());
        self.loosen(fragments, false);
    }

    /// Records where recipients of a live message stand. Uses the reserve. `Busy` may have recorded a
    /// part: call again with all of them, repeats change nothing. When the last recipient is terminal
    /// the slot is freed once the record is durable. `None` where nothing was added: the slot is free, its
    /// message has ended durably; or there was nothing but deferrals and only the reserve is left. They would
    /// use it up, one attempt after the other, and a log that can record no end of a message never shrinks
    /// again; what a restart forgets of them is when the next attempt was due.
    pub fn append_outcomes(
        &mut self,
        slot: Slot,
        outcomes: &[(u16, Outcome)],
        now: WallTime,
    ) -> Result<Option<GroupSeq>, Refusal> {
        self.ready()?;
        self.record(slot, outcomes.iter().map(|(r, o)| (*r, Recorded::Outcome(o))), now)
    }

    /// Records what an operator has decided of pending recipients of a live message. Uses the reserve.
    /// `NoRoom` also if the message has had more such decisions than one record can carry on
    /// (`limits::STANDING_BYTES`).
    pub fn append_change(
        &mut self,
        slot: Slot,
        recipients: &[u16],
        mut standing: Standing,
        now: WallTime,
    ) -> Result<GroupSeq, Refusal> {
        self.ready()?;
        self.now = self.now.max(now);
        // Later than every change before it, or a replay could not tell.
        standing.at = self.now;
        self.now = WallTime(self.now.0 + 1);
        let Some(message) = self.live.get(slot) else { return Err(Refusal::NoRoom) };
        let bytes = change::encoded_bytes(recipients.len(), &standing);
        if self.live.standing_bytes(slot) + bytes > limits::STANDING_BYTES {
            return Err(Refusal::NoRoom);
        }
        self.reserve(FRAME_HEADER_BYTES + bytes, Class::Reserved)?;
        let written = self.write_frame(FrameKind::Change, message.id, bytes, |payload| {
            change::encode(recipients.iter().copied(), &standing, payload);
        });
        self.live.change(slot, recipients, &Arc::new(standing));
        Ok(written.group)
    }

    /// Records that the message cannot be read back: terminal for every recipient that is pending.
    pub fn quarantine(&mut self, slot: Slot, now: WallTime) -> Result<Option<GroupSeq>, Refusal> {
        self.ready()?;
        let recipients = self.live.get(slot).map_or(0, |m| m.recipients) as u16;
        let seq = self.record(slot, (0..recipients).map(|r| (r, Recorded::Quarantined)), now)?;
        self.live.retire(slot);
        self.stats.quarantined += 1;
        Ok(seq)
    }

    fn record<'a>(
        &mut self,
        slot: Slot,
        mut entries: impl Iterator<Item = (u16, Recorded<'a>)> + Clone,
        now: WallTime,
    ) -> Result<Option<GroupSeq>, Refusal> {
        self.now = self.now.max(now);
        let Some(message) = self.live.get(slot) else { return Ok(None) };
        let room = limits::OUTCOME_RECORD_BYTES.min(self.inline_room());
        let ends_nothing = entries.clone().all(|(_, recorded)| recorded.is_deferral());
        let class = if ends_nothing { Class::Mail } else { Class::Reserved };
        let mut last = None;
        loop {
            let (mut count, mut bytes) = (0, outcome::FIXED_BYTES);
            for (_, recorded) in entries.clone() {
                let more = outcome::entry_bytes(&recorded);
                if count > 0 && bytes + more > room {
                    break;
                }
                (count, bytes) = (count + 1, bytes + more);
            }
            if count == 0 && last.is_some() {
                break;
            }
            match self.reserve(FRAME_HEADER_BYTES + bytes, class) {
                Err(Refusal::NoRoom) if ends_nothing => {
                    entries.for_each(|(recipient, recorded)| {
                        self.live.apply(slot, recipient, recorded.state());
                    });
                    break;
                }
                reserved => reserved?,
            }
            let chunk = entries.clone().take(count);
            let written = self.write_frame(FrameKind::Outcome, message.id, bytes, |payload| {
                outcome::encode(now, chunk, payload);
            });
            last = Some(written.group);
            let mut done = false;
            for (recipient, recorded) in entries.by_ref().take(count) {
                done = self.live.apply(slot, recipient, recorded.state());
            }
            if done {
                self.ended(slot, message.id);
            }
        }
        Ok(last)
    }

    /// A DSN for these recipients is appended: they are done with it.
    pub(super) fn finish(&mut self, id: MessageId, recipients: &[u16]) {
        let Some(slot) = self.live.find(id) else { return };
        self.note(Note::Reported { id });
        self.copies.is_reported(id);
        let mut done = false;
        for &recipient in recipients {
            done = self.live.apply(slot, recipient, RecipientState::Done(End::Failed));
        }
        if done {
            self.ended(slot, id);
        }
    }

    /// The last recipient has ended, once what was appended is durable.
    fn ended(&mut self, slot: Slot, id: MessageId) {
        self.note(Note::Final { slot, id });
        if self.breaks(Broken::ForgetsEarly) {
            self.live.remove(slot);
        }
    }

    /// Whether new records may be appended: what a failure left to rewrite goes first.
    fn ready(&mut self) -> Result<(), Refusal> {
        if self.failure.closing.is_some() {
            return Err(Refusal::Unwritable);
        }
        self.pump_rewrites();
        if self.rewrites_pending() { Err(Refusal::Busy) } else { Ok(()) }
    }

    /// Makes room for the group of a fragment whose frame ends at `used`.
    fn place_fragment(&mut self, used: usize) -> Result<(), Refusal> {
        self.ready()?;
        self.segments.may_write(Class::Mail)?;
        let total = used.next_multiple_of(FRAME_ALIGN) + directory_bytes(1);
        let total = total.next_multiple_of(self.config.block_bytes as usize);
        if total > (self.config.segment_bytes - self.config.block_bytes) as usize {
            return Err(Refusal::NoRoom);
        }
        // Its place is known only when the group in front of it has its length.
        self.close_group();
        if self.segment_room(FRAGMENT_FIXED_BYTES) < total {
            self.advance(Class::Mail)?;
        }
        Ok(())
    }

    pub(super) fn write_commit(
        &mut self,
        id: MessageId,
        commit: &NewCommit<'_>,
        class: Class,
    ) -> Result<Written, Refusal> {
        let bytes = commit.encoded_bytes();
        self.reserve(FRAME_HEADER_BYTES + bytes, class)?;
        Ok(self.write_frame(FrameKind::Commit, id, bytes, |payload| commit.encode(payload)))
    }

    /// Lays a frame into the open group, which [`Log::reserve`] has made fit.
    pub(super) fn write_frame(
        &mut self,
        kind: FrameKind,
        id: MessageId,
        payload_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Written {
        let group = self.open.as_mut().expect("reserve has opened a group");
        let memory = group.buffer.memory_mut();
        let start = group.used.next_multiple_of(FRAME_ALIGN);
        memory[group.used..start].fill(0);
        let end = start + FRAME_HEADER_BYTES + payload_bytes;
        let frame = &mut memory[start..end];
        fill(&mut frame[FRAME_HEADER_BYTES..]);
        let offset = group.offset + start as u32;
        let checksum = seal_frame(frame, kind, id.0, offset, group.key);
        self.sealing.add((kind, id.0), offset, (&frame[FRAME_HEADER_BYTES..], checksum));
        group.used = end;
        group.frames.push(start as u32);
        Written {
            place: Place { generation: group.generation, offset },
            group: group.seq,
            frame_bytes: (end - start) as u32,
            checksum,
        }
    }

    pub(super) fn note(&mut self, note: Note) {
        self.open.as_mut().expect("a frame was laid into it just now").notes.push(note);
    }

    /// Counts fragments that no commit record names: they hold back their segments.
    pub(super) fn loosen(&mut self, fragments: &[FragmentRef], loose: bool) {
        for fragment in fragments {
            if let Some(segment) = self.segments.get_mut(fragment.place.generation) {
                segment.loose = if loose { segment.loose + 1 } else { segment.loose.saturating_sub(1) };
            }
        }
    }
}
