//! Merging records into messages.
//!
//! Owns: what a sequence of commit, abort, fragment and outcome records comes to. Promises: records are
//! taken in sequence order, a later commit of the same id (a copy) wins, terminal states absorb, and
//! doing it twice gives the same; memory is that of the table of live messages. Must not: keep an
//! envelope, or anything of a message that has ended but its id.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::history::History;
use super::{Damage, Finding};
use crate::spool::change::{self, Change, Standings};
use crate::spool::envelope;
use crate::spool::group::FrameKind;
use crate::spool::live::{DURABLE, HELD, LiveTable, NewLive};
use crate::spool::outcome;
use crate::spool::reader::Hold;
use crate::spool::record::{Commit, aborted};
use crate::spool::segments::Segment;
use crate::spool::{End, FileIndex, FragmentRef, GroupSeq, MessageId, Place, RecipientState};

/// A record, from its frame or from the index of its segment.
pub(super) struct Found<'a> {
    pub(super) file: FileIndex,
    /// Of its group, or of the first in its segment.
    pub(super) seq: GroupSeq,
    pub(super) place: Place,
    pub(super) frame_bytes: u32,
    pub(super) kind: FrameKind,
    pub(super) id: MessageId,
    /// Of the frame.
    pub(super) checksum: u64,
    pub(super) payload: &'a [u8],
    /// It comes from an index: no body, no replies.
    pub(super) indexed: bool,
}

impl Found<'_> {
    /// The commit record, which this must be.
    pub(super) fn commit(&self) -> Option<Commit<'_>> {
        if self.indexed { Commit::decode_without_body(self.payload) } else { Commit::decode(self.payload) }
    }
}

/// A commit record that names a fragment that was not found.
struct Incomplete {
    id: MessageId,
    /// Of the group of the fragment.
    seq: GroupSeq,
    file: FileIndex,
    offset: u32,
}

/// A commit record whose checksum holds and whose lengths do not add up.
struct Senseless {
    id: MessageId,
    seq: GroupSeq,
    file: FileIndex,
    offset: u32,
}

#[derive(Default)]
pub(super) struct Merge {
    live: LiveTable,
    /// What operators decided of messages of the table, back to the usual included: an older decision may
    /// stand behind that.
    standings: HashMap<MessageId, Standings, FixedState>,
    /// Why messages of the table are held.
    held: HashMap<MessageId, Hold, FixedState>,
    /// Ended: a late copy must not bring them back.
    ended: HashSet<MessageId, FixedState>,
    /// Fragments seen and not yet named by a commit record: their checksums.
    fragments: HashMap<Place, (MessageId, u64), FixedState>,
    incomplete: Vec<Incomplete>,
    senseless: Vec<Senseless>,
    highest_id: Option<MessageId>,
}

/// What it comes to.
pub(super) struct Merged {
    pub(super) live: LiveTable,
    pub(super) highest_id: Option<MessageId>,
}

impl Merge {
    /// Takes the next record, in sequence order.
    pub(super) fn found(&mut self, found: &Found<'_>) {
        match found.kind {
            FrameKind::Commit => self.commit(found),
            FrameKind::Fragment => {
                self.fragments.insert(found.place, (found.id, found.checksum));
            }
            FrameKind::Abort => {
                for id in aborted(found.payload) {
                    if let Some(slot) = self.live.find(id) {
                        self.live.remove(slot);
                    }
                    self.incomplete.retain(|i| i.id != id);
                }
            }
            FrameKind::Outcome => {
                for entry in outcome::decode(found.payload).flatten() {
                    self.apply(found.id, entry.0, entry.1);
                }
            }
            FrameKind::Change => self.change(found.id, change::decode(found.payload)),
        }
    }

    fn change(&mut self, id: MessageId, change: Option<Change>) {
        let Some(slot) = self.live.find(id) else { return };
        match change {
            Some(Change { recipients, standing }) => {
                let known = self.standings.entry(id).or_default();
                change::apply(known, &recipients, &Arc::new(standing));
            }
            // It may say that the message is not to be delivered.
            None => {
                self.live.set(slot, HELD, true);
                self.held.entry(id).or_insert(Hold::Unreadable);
            }
        }
    }

    fn apply(&mut self, id: MessageId, recipient: u16, state: RecipientState) {
        let Some(slot) = self.live.find(id) else { return };
        let own = self.live.state(slot, recipient);
        let state = match (own, state) {
            (None | Some(RecipientState::Done(_)), _) => return,
            // A deferral that was written again after a failure may stand behind a later one.
            (Some(RecipientState::Pending { tries: known, next }), RecipientState::Pending { tries, .. })
                if tries.attempts() < known.attempts() =>
            {
                RecipientState::Pending { tries: known.besides(tries), next }
            }
            _ => state,
        };
        if self.live.apply(slot, recipient, state) {
            self.end(id);
        }
    }

    fn end(&mut self, id: MessageId) {
        if let Some(slot) = self.live.find(id) {
            self.live.remove(slot);
        }
        self.ended.insert(id);
    }

    fn commit(&mut self, found: &Found<'_>) {
        let (id, offset, seq, file) = (found.id, found.place.offset, found.seq, found.file);
        self.highest_id = self.highest_id.max(Some(id));
        let Some(commit) = found.commit() else {
            self.senseless.push(Senseless { id, seq, file, offset });
            return;
        };
        let fragments: Vec<FragmentRef> = commit.fragments().collect();
        let mut missing = None;
        for fragment in &fragments {
            if self.fragments.remove(&fragment.place) != Some((id, fragment.checksum)) {
                missing = missing.or(Some(fragment.group));
            }
        }
        if self.ended.contains(&id) {
            return;
        }
        if let Some(seq) = missing {
            self.incomplete.push(Incomplete { id, seq, file, offset });
            return;
        }
        let decoded = envelope::decode(commit.envelope);
        if let Some((reported, recipients)) = decoded.reports {
            for recipient in recipients {
                self.apply(reported, recipient, RecipientState::Done(End::Failed));
            }
        }
        let counts_agree = decoded.envelope.recipients.len() == commit.recipients as usize;
        let hold = decoded.hold.or((!counts_agree).then_some(Hold::Unreadable));
        self.place(found, &commit, &fragments, hold);
        decoded.changes.into_iter().for_each(|change| self.change(id, Some(change)));
    }

    /// Puts a message to its place, new or copied.
    fn place(
        &mut self,
        found: &Found<'_>,
        commit: &Commit<'_>,
        fragments: &[FragmentRef],
        hold: Option<Hold>,
    ) {
        // Indices of recipients have 16 bits, whatever a record claims.
        let recipients = commit.recipients.min(1 << 16);
        let slot = match self.live.find(found.id) {
            Some(slot) => {
                self.live.relocate(slot, found.place, found.frame_bytes, fragments);
                slot
            }
            None => self.live.insert(&NewLive {
                id: found.id,
                place: found.place,
                frame_bytes: found.frame_bytes,
                fragments,
                recipients,
                flags: DURABLE,
            }),
        };
        if let Some(hold) = hold {
            self.live.set(slot, HELD, true);
            self.held.insert(found.id, hold);
        }
        for (recipient, state) in (0..=u16::MAX).zip(commit.states()) {
            self.live.apply(slot, recipient, state);
        }
        if self.live.get(slot).is_none_or(|message| message.pending == 0) {
            self.end(found.id);
        }
    }

    pub(super) fn finish<'a>(
        mut self,
        history: &History,
        segments: impl Iterator<Item = &'a Segment>,
        findings: &mut Vec<Finding>,
    ) -> Merged {
        // A tail is where a segment begins: a segment lies below it as a whole, or not at all.
        let dead: HashSet<_> = segments.filter(|s| s.last_seq < history.tail).map(|s| s.generation).collect();
        if !dead.is_empty() {
            let below = |m: &crate::spool::LiveMessage| dead.contains(&m.place.generation);
            let gone: Vec<_> = self.live.iter().filter(below).map(|m| m.slot).collect();
            gone.into_iter().for_each(|slot| self.live.remove(slot));
        }
        for (id, standings) in std::mem::take(&mut self.standings) {
            let Some(slot) = self.live.find(id) else { continue };
            for (recipient, standing) in &standings {
                self.live.change(slot, &[*recipient], standing);
            }
        }
        let Merge { mut live, held, ended, incomplete, senseless, highest_id, .. } = self;
        let mut held: Vec<_> = held.into_iter().filter(|(id, _)| live.find(*id).is_some()).collect();
        held.sort_unstable_by_key(|(id, _)| *id);
        findings.extend(held.into_iter().map(|(id, hold)| Finding::Held { id, hold }));
        let owed = |id: MessageId| live.find(id).is_none() && !ended.contains(&id);
        for Incomplete { id, seq, file, offset } in incomplete {
            // A fragment at or above the mark was still being written: the message was never accepted.
            if seq >= history.tail && history.was_durable(seq) && owed(id) {
                findings.push(Finding::Damaged { file, offset, damage: Damage::Fragment(id) });
            }
        }
        for Senseless { id, seq, file, offset } in senseless {
            if seq >= history.tail && owed(id) {
                findings.push(Finding::Damaged { file, offset, damage: Damage::Record(id) });
            }
        }
        live.pack();
        Merged { live, highest_id }
    }
}
