//! Merging records into messages.
//!
//! Owns: what a sequence of commit, abort, fragment and outcome records comes to. Promises: records are
//! taken in sequence order, a later commit of the same id (a copy) wins, terminal states absorb, and
//! doing it twice gives the same. Must not: keep anything of a message that has ended but its id.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::{Damage, Finding, History};
use crate::mail::envelope::Envelope;
use crate::spool::change::{self, Change, Standings};
use crate::spool::envelope;
use crate::spool::format::GroupHeader;
use crate::spool::group::{Frame, FrameKind};
use crate::spool::live::{DURABLE, HELD, LiveTable, NewLive};
use crate::spool::outcome;
use crate::spool::reader::Hold;
use crate::spool::record::{Commit, aborted};
use crate::spool::{
    End, FileIndex, FragmentRef, GroupSeq, MessageId, Place, RecipientState, RecoveredMessage, WallTime,
};

/// A message as far as it is known.
struct Draft {
    seq: GroupSeq,
    place: Place,
    frame_bytes: u32,
    fragments: Box<[FragmentRef]>,
    envelope: Envelope,
    hold: Option<Hold>,
    states: Box<[RecipientState]>,
    pending: u32,
    standings: Standings,
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
    drafts: HashMap<MessageId, Draft, FixedState>,
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
    pub(super) messages: Vec<RecoveredMessage>,
    pub(super) highest_id: Option<MessageId>,
}

impl Merge {
    /// Takes the next record, in sequence order.
    pub(super) fn frame(
        &mut self,
        file: FileIndex,
        header: &GroupHeader,
        kind: FrameKind,
        frame: &Frame<'_>,
    ) {
        let id = MessageId(frame.id);
        match kind {
            FrameKind::Commit => self.commit(file, header, frame),
            FrameKind::Fragment => {
                let place = Place { generation: header.generation, offset: frame.offset };
                self.fragments.insert(place, (id, frame.checksum));
            }
            FrameKind::Abort => {
                for id in aborted(frame.payload) {
                    self.drafts.remove(&id);
                    self.incomplete.retain(|i| i.id != id);
                }
            }
            FrameKind::Outcome => {
                for entry in outcome::decode(frame.payload).flatten() {
                    self.apply(id, entry.0, entry.1);
                }
            }
            FrameKind::Change => self.change(id, change::decode(frame.payload)),
        }
    }

    fn change(&mut self, id: MessageId, change: Option<Change>) {
        let Some(draft) = self.drafts.get_mut(&id) else { return };
        match change {
            Some(Change { recipients, standing }) => {
                change::apply(&mut draft.standings, &recipients, &Arc::new(standing));
            }
            // It may say that the message is not to be delivered.
            None => draft.hold = draft.hold.or(Some(Hold::Unreadable)),
        }
    }

    fn apply(&mut self, id: MessageId, recipient: u16, state: RecipientState) {
        let Some(draft) = self.drafts.get_mut(&id) else { return };
        let Some(own) = draft.states.get_mut(usize::from(recipient)) else { return };
        match (*own, state) {
            (RecipientState::Done(_), _) => return,
            // A deferral that was written again after a failure may stand behind a later one.
            (RecipientState::Pending { attempts: known, .. }, RecipientState::Pending { attempts, .. })
                if attempts < known =>
            {
                return;
            }
            _ => *own = state,
        }
        draft.pending -= u32::from(matches!(state, RecipientState::Done(_)));
        if draft.pending == 0 {
            self.drafts.remove(&id);
            self.ended.insert(id);
        }
    }

    fn commit(&mut self, file: FileIndex, header: &GroupHeader, frame: &Frame<'_>) {
        let (id, offset, seq) = (MessageId(frame.id), frame.offset, header.seq);
        self.highest_id = self.highest_id.max(Some(id));
        let Some(commit) = Commit::decode(frame.payload) else {
            self.senseless.push(Senseless { id, seq, file, offset });
            return;
        };
        let mut missing = None;
        for fragment in commit.fragments() {
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
        let fresh = RecipientState::Pending { attempts: 0, next: WallTime(0) };
        let mut states: Box<[RecipientState]> = commit.states().collect();
        if states.is_empty() {
            // Indices of recipients have 16 bits, whatever a record claims.
            states = vec![fresh; commit.recipients.min(1 << 16) as usize].into();
        }
        if let Some(older) = self.drafts.get(&id) {
            for (state, old) in states.iter_mut().zip(&older.states) {
                if matches!(old, RecipientState::Done(_)) {
                    *state = *old;
                }
            }
        }
        let pending = states.iter().filter(|s| !matches!(s, RecipientState::Done(_))).count() as u32;
        if pending == 0 {
            self.drafts.remove(&id);
            self.ended.insert(id);
            return;
        }
        let draft = Draft {
            seq,
            place: Place { generation: header.generation, offset },
            frame_bytes: frame.bytes(),
            fragments: commit.fragments().collect(),
            envelope: decoded.envelope,
            hold: decoded.hold.or((!counts_agree).then_some(Hold::Unreadable)),
            states,
            pending,
            standings: self
                .drafts
                .get_mut(&id)
                .map(|older| std::mem::take(&mut older.standings))
                .unwrap_or_default(),
        };
        self.drafts.insert(id, draft);
        decoded.changes.into_iter().for_each(|change| self.change(id, Some(change)));
    }

    pub(super) fn finish(self, history: &History, findings: &mut Vec<Finding>) -> Merged {
        let mut live = LiveTable::default();
        let mut messages = Vec::new();
        let mut drafts: Vec<_> = self.drafts.into_iter().filter(|(_, d)| d.seq >= history.tail).collect();
        drafts.sort_unstable_by_key(|(id, _)| *id);
        for (id, draft) in drafts {
            let slot = live.insert(&NewLive {
                id,
                place: draft.place,
                frame_bytes: draft.frame_bytes,
                fragments: &draft.fragments,
                recipients: draft.states.len() as u32,
                flags: DURABLE | if draft.hold.is_some() { HELD } else { 0 },
            });
            for (recipient, state) in draft.states.iter().enumerate() {
                live.apply(slot, recipient as u16, *state);
            }
            for (recipient, standing) in &draft.standings {
                live.change(slot, &[*recipient], standing);
            }
            match draft.hold {
                Some(hold) => findings.push(Finding::Held { id, hold }),
                None => messages.push(RecoveredMessage {
                    slot,
                    id,
                    envelope: draft.envelope,
                    states: draft.states.into(),
                }),
            }
        }
        let owed = |id: MessageId| live.find(id).is_none() && !self.ended.contains(&id);
        for Incomplete { id, seq, file, offset } in self.incomplete {
            // A fragment at or above the mark was still being written: the message was never accepted.
            if seq >= history.tail && history.was_durable(seq) && owed(id) {
                findings.push(Finding::Damaged { file, offset, damage: Damage::Fragment(id) });
            }
        }
        for Senseless { id, seq, file, offset } in self.senseless {
            if seq >= history.tail && owed(id) {
                findings.push(Finding::Damaged { file, offset, damage: Damage::Record(id) });
            }
        }
        Merged { live, messages, highest_id: self.highest_id }
    }
}
