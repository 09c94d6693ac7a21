//! Recycling segments, and copying their survivors forward.
//!
//! Owns: which segment goes next, and the copies under way. Promises: only the oldest segment is ever
//! retired, and only when no live message, open transaction or reader needs it and everything that freed
//! its messages is durable; copies keep id, envelope fields, per-recipient state and what operators decided; work in progress is
//! bounded by `limits::COPIES_IN_FLIGHT` and `limits::COPY_FORWARD_BYTES`. Must not: copy while nothing
//! is gained by it.
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::broken::Broken;
use super::envelope;
use super::format::{FRAGMENT_FIXED_BYTES, FRAME_ALIGN, FRAME_HEADER_BYTES, put};
use super::group::FrameKind;
use super::inflight::{CopiedTo, Note};
use super::live::{COPYING, DURABLE};
use super::log::Log;
use super::reader::{ReadError, StoredMessage};
use super::record::{EnvelopeSource, NewCommit};
use super::segments::Class;
use super::{Buffer, FragmentRef, Intent, MessageId, RecipientState, Refusal, Slot, Tries, WallTime};
use crate::limits;

/// Segments a log keeps for each that its live messages would fill. Each time round the log every live
/// message is copied once, so at three copying writes at most half a byte for each that mail wrote, and
/// less the fewer messages live beside `LogConfig::slack_segments`.
const SEGMENTS_PER_LIVE: u64 = 3;

/// A message read back, being appended again.
#[derive(Debug)]
struct CopyJob {
    slot: Slot,
    message: StoredMessage,
    /// Body bytes in `fragments`.
    done: usize,
    fragments: Vec<FragmentRef>,
}

/// The copies under way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Asked to be read.
    reading: Vec<(Slot, MessageId)>,
    jobs: VecDeque<CopyJob>,
    /// Found damaged; the record of that waits for a buffer.
    damaged: Vec<(Slot, MessageId)>,
    quarantined: Vec<MessageId>,
    /// Messages that reports in open groups end recipients of, with the number of those reports. A copy
    /// would state the end, and be durable although the report is lost.
    reported: HashMap<MessageId, u32, FixedState>,
    /// A read failed; none is asked for before the next retry.
    paused: bool,
    states: Vec<RecipientState>,
}

impl Copies {
    pub(super) fn resume(&mut self) {
        self.paused = false;
    }
    pub(super) fn is_reported(&mut self, id: MessageId) {
        *self.reported.entry(id).or_default() += 1;
    }
    pub(super) fn is_not_reported(&mut self, id: MessageId) {
        if let Some(reports) = self.reported.get_mut(&id) {
            *reports -= 1;
            if *reports == 0 {
                self.reported.remove(&id);
            }
        }
    }
}

impl<B: Buffer> Log<B> {
    /// Retires what is dead, and copies forward what holds back the oldest segment.
    pub(super) fn reclaim(&mut self) {
        while self.oldest_is_dead() {
            self.segments.retire_oldest();
        }
        self.delete_surplus();
        if self.wants_copies() {
            self.ask_for_copies();
        }
    }

    fn oldest_is_dead(&self) -> bool {
        let Some(oldest) = self.segments.used.front() else { return false };
        let is_open = self.segments.open && self.segments.used.len() == 1;
        !is_open
            && (self.live.count_in(oldest.generation) == 0 || self.breaks(Broken::RecyclesLive))
            && oldest.loose == 0
            && oldest.pins == 0
            && oldest.last_seq < self.durable_below()
            && self.rewritten()
    }

    /// Segments the log should make do with.
    fn segments_enough(&self) -> u64 {
        let live = self.live.bytes() * SEGMENTS_PER_LIVE;
        let enough = u64::from(self.config.slack_segments) + live / u64::from(self.config.segment_bytes);
        enough.max(self.segments_needed() + 1)
    }

    /// Segments that the live messages would fill if all were copied, at the worst: with an index as large as
    /// it may be, and a group's length left over at the end of each. To go below it is not to be hoped for,
    /// and who tries copies for ever.
    fn segments_needed(&self) -> u64 {
        let bytes = self.live.bytes() + self.live.len() as u64 * FRAME_ALIGN as u64;
        let bytes = bytes + bytes / (limits::INDEX_PART as u64 - 1);
        let room = u64::from(self.config.segment_bytes - self.config.block_bytes);
        bytes.div_ceil(room.saturating_sub(self.group_room() as u64).max(1))
    }

    /// A file is deleted only when a durable group states a tail above it: nothing else tells recovery
    /// that its groups are not missed. Not every file above what is enough: while survivors of the oldest
    /// segment are copied its successor is prepared, and a log that deleted a file each time would make
    /// and zero another each time.
    fn delete_surplus(&mut self) {
        let wanted = self.segments_enough() as usize + limits::SURPLUS_SEGMENTS;
        let wanted = wanted + limits::SPARE_SEGMENTS + limits::RESERVED_SEGMENTS;
        while let Some(first) = self.segments.free.front() {
            let files = self.segments.used.len() + self.segments.prepared() + self.segments.free.len();
            let stated = first.last_seq < self.durable_tail || self.breaks(Broken::DeletesEarly);
            if (files <= wanted && !self.segments.overdrawn()) || !stated {
                return;
            }
            self.intents.push_back(Intent::Delete { file: first.file });
            self.segments.free.pop_front();
        }
    }

    fn wants_copies(&self) -> bool {
        if self.copies.paused || self.segments.used.len() < 2 || !self.rewritten() {
            return false;
        }
        let segments = self.segments.used.len() as u64;
        if segments > self.segments_enough() {
            return true;
        }
        // At the limit, copying pays while it gives a segment back.
        self.segments.short() && segments > self.segments_needed() + 1
    }

    fn ask_for_copies(&mut self) {
        let under_way =
            self.copies.reading.iter().map(|r| r.0).chain(self.copies.jobs.iter().map(|j| j.slot));
        let mut bytes: u64 = under_way.filter_map(|slot| self.live.get(slot)).map(|m| m.bytes).sum();
        let mut count = self.copies.reading.len() + self.copies.jobs.len() + self.copies.damaged.len();
        let oldest = self.segments.used.front().expect("there are two").generation;
        let mut chosen = Vec::new();
        self.live.trim(oldest);
        for slot in self.live.iter_in(oldest) {
            if count >= limits::COPIES_IN_FLIGHT || bytes >= limits::COPY_FORWARD_BYTES {
                break;
            }
            let Some(message) = self.live.get(slot) else { break };
            let wanted = self.live.has(slot, DURABLE) && !self.live.has(slot, COPYING) && message.pending > 0;
            let wanted = wanted && self.may_be_copied(message.id);
            if wanted && !chosen.contains(&(slot, message.id)) {
                chosen.push((slot, message.id));
                (count, bytes) = (count + 1, bytes + message.bytes);
            }
        }
        for (slot, id) in chosen {
            self.live.set(slot, COPYING, true);
            self.copies.reading.push((slot, id));
            self.intents.push_back(Intent::Copy { slot });
        }
    }

    /// The answer to `Intent::Copy`: the message as [`super::decode_message`] gave it. `Damaged` is
    /// final: the message is recorded as quarantined (keep its raw extents first); `Io` is tried again
    /// after [`Log::retry_prepare`].
    pub fn on_copy_read(&mut self, slot: Slot, message: Result<StoredMessage, ReadError>) {
        let Some(at) = self.copies.reading.iter().position(|r| r.0 == slot) else { return };
        let (_, id) = self.copies.reading.swap_remove(at);
        if !self.live.is(slot, id) {
            return;
        }
        match message {
            Ok(message) if message.id == id => {
                self.copies.jobs.push_back(CopyJob { slot, message, done: 0, fragments: Vec::new() });
            }
            Err(ReadError::Io(_) | ReadError::Gone) => {
                self.live.set(slot, COPYING, false);
                self.copies.paused = true;
            }
            Ok(_) | Err(ReadError::Damaged(_)) => self.copies.damaged.push((slot, id)),
        }
        self.pump();
    }

    /// The messages that copy-forward found damaged since the last call, appended to `out`.
    pub fn take_quarantined(&mut self, out: &mut Vec<MessageId>) {
        out.append(&mut self.copies.quarantined);
    }

    /// Whether the open group holds only copies, and more of them are being read: closed now it would be
    /// padded as the groups were that its messages came from, and copying would gain nothing.
    pub(super) fn gathers_copies(&self) -> bool {
        let only_copies = self.open.as_ref().is_some_and(|g| g.copies == g.frames.len());
        only_copies && !self.copies.reading.is_empty()
    }

    fn count_copy(&mut self) {
        self.open.as_mut().expect("a copy was laid into it just now").copies += 1;
    }

    /// Carries on with copies as far as buffers and segments allow.
    pub(super) fn pump_copies(&mut self) {
        while let Some(&(slot, id)) = self.copies.damaged.last() {
            if self.live.is(slot, id) {
                if self.quarantine(slot, self.now).is_err() {
                    return;
                }
                self.copies.quarantined.push(id);
            }
            self.copies.damaged.pop();
        }
        while let Some(mut job) = self.copies.jobs.pop_front() {
            let message = self.live.get(job.slot).filter(|m| m.id == job.message.id && m.pending > 0);
            if message.is_none() {
                self.loosen(&job.fragments, false);
                continue;
            }
            if !self.may_be_copied(job.message.id) {
                self.drop_copy(&job);
                continue;
            }
            if self.advance_copy(&mut job).is_err() {
                self.copies.jobs.push_front(job);
                return;
            }
        }
    }

    /// Fragments until the rest fits in the commit record, then that.
    fn advance_copy(&mut self, job: &mut CopyJob) -> Result<(), Refusal> {
        let mut states = std::mem::take(&mut self.copies.states);
        states.clear();
        states.extend((0..=u16::MAX).map_while(|r| self.live.state(job.slot, r)));
        self.spoil_copy(job, &mut states);
        let result = self.write_copy(job, &states);
        self.copies.states = states;
        result
    }

    fn write_copy(&mut self, job: &mut CopyJob, states: &[RecipientState]) -> Result<(), Refusal> {
        let standings = self.live.standings_of(job.slot).filter(|_| !self.breaks(Broken::CopiesNoStandings));
        let changed = standings.is_some() || envelope::has_standings(&job.message.fields);
        let fields = changed.then(|| envelope::with_standings(&job.message.fields, standings));
        loop {
            let rest = &job.message.body[job.done..];
            let commit = NewCommit {
                recipients: states.len() as u32,
                fragments: &job.fragments,
                envelope: EnvelopeSource::Copied(fields.as_ref().unwrap_or(&job.message.fields)),
                states,
                parts: &[rest],
            };
            if commit.encoded_bytes() > self.inline_room() && !rest.is_empty() {
                self.copy_fragment(job)?;
                continue;
            }
            let written = self.write_commit(job.message.id, &commit, Class::Reserved)?;
            self.stats.copy_bytes += u64::from(written.frame_bytes);
            self.count_copy();
            self.note(Note::Copied(Box::new(CopiedTo {
                slot: job.slot,
                id: job.message.id,
                place: written.place,
                frame_bytes: written.frame_bytes,
                fragments: std::mem::take(&mut job.fragments),
            })));
            return Ok(());
        }
    }

    /// The next piece of the body as a frame of its own, in a commit buffer.
    fn copy_fragment(&mut self, job: &mut CopyJob) -> Result<(), Refusal> {
        let rest = &job.message.body[job.done..];
        let most = self.inline_room().min(limits::FRAGMENT_BYTES) - FRAGMENT_FIXED_BYTES;
        let body = &rest[..rest.len().min(most)];
        let bytes = FRAGMENT_FIXED_BYTES + body.len();
        self.reserve(FRAME_HEADER_BYTES + bytes, Class::Reserved)?;
        let index = job.fragments.len() as u32;
        let written = self.write_frame(FrameKind::Fragment, job.message.id, bytes, |out| {
            put(out, 0, &index.to_le_bytes());
            put(out, 4, &[0; 4]);
            put(out, FRAGMENT_FIXED_BYTES, body);
        });
        self.stats.copy_bytes += u64::from(written.frame_bytes);
        self.count_copy();
        let fragment = FragmentRef {
            place: written.place,
            body_bytes: body.len() as u32,
            checksum: written.checksum,
            group: written.group,
        };
        job.done += body.len();
        job.fragments.push(fragment);
        self.loosen(&[fragment], true);
        Ok(())
    }

    /// What a copy is that breaks a rule.
    fn spoil_copy(&self, job: &mut CopyJob, states: &mut [RecipientState]) {
        if let (true, 0, Some(first)) =
            (self.breaks(Broken::CopiesOtherBody), job.done, job.message.body.first_mut())
        {
            *first ^= 1;
        }
        for state in states {
            match state {
                RecipientState::Pending { tries, .. } if self.breaks(Broken::CopiesNoTries) => {
                    *tries = Tries::default();
                }
                _ if self.breaks(Broken::CopiesNoStates) => {
                    *state = RecipientState::Pending { tries: Tries::default(), next: WallTime(0) };
                }
                _ => {}
            }
        }
    }

    #[cfg(test)]
    pub(super) fn expect_copy(&mut self, slot: Slot, id: MessageId) {
        self.copies.reading.push((slot, id));
    }

    /// Copies begun in a segment that failed start over.
    pub(super) fn drop_copy_jobs(&mut self) {
        for job in std::mem::take(&mut self.copies.jobs) {
            self.drop_copy(&job);
        }
    }

    fn drop_copy(&mut self, job: &CopyJob) {
        self.loosen(&job.fragments, false);
        if self.live.is(job.slot, job.message.id) {
            self.live.set(job.slot, COPYING, false);
        }
    }

    /// Whether a copy would state only what is on the disk besides it.
    fn may_be_copied(&self, id: MessageId) -> bool {
        !self.copies.reported.contains_key(&id) || self.breaks(Broken::CopiesReported)
    }
}
