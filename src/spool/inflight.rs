//! Groups whose fate is open, and what hangs on each.
//!
//! Owns: the queue of closed groups in sequence order and their notes. Promises: groups complete in any
//! order but are settled in order, so that when a note is acted on everything appended before it is
//! durable. Must not: act on notes (`log` and `failure` do).
use std::collections::VecDeque;

use super::{FragmentRef, Generation, GroupSeq, Place, Slot};
use crate::mail::id::MessageId;

/// What becomes true once a group and all before it are durable.
#[derive(Debug)]
pub(super) enum Note {
    /// The message exists. A `kept` one is rewritten rather than refused when its group is lost.
    Message { slot: Slot, id: MessageId, kept: bool },
    /// A report in the group is the end of recipients of this message.
    Reported { id: MessageId },
    /// The last recipient of the message has a terminal outcome.
    Final { slot: Slot, id: MessageId },
    /// The message lies elsewhere.
    Copied(Box<CopiedTo>),
}

#[derive(Debug)]
pub(super) struct CopiedTo {
    pub(super) slot: Slot,
    pub(super) id: MessageId,
    pub(super) place: Place,
    pub(super) frame_bytes: u32,
    pub(super) fragments: Vec<FragmentRef>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Durable,
    /// Given up; the buffer is still out.
    Doomed,
    /// Given up, and everything worth rewriting has been taken from its buffer.
    Lost,
}

#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) seq: GroupSeq,
    pub(super) generation: Generation,
    /// In the segment.
    pub(super) start: u32,
    /// The tail its header states.
    pub(super) tail: GroupSeq,
    /// A fragment written from the buffer it was received in, not from a commit buffer.
    pub(super) own_buffer: bool,
    pub(super) fate: Fate,
    pub(super) notes: Vec<Note>,
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    queue: VecDeque<InFlight>,
    /// Emptied lists of notes, for the next groups.
    spare_notes: Vec<Vec<Note>>,
    /// Commit buffers out.
    commits_out: usize,
}

impl Groups {
    pub(super) fn push(&mut self, group: InFlight) {
        self.commits_out += usize::from(!group.own_buffer);
        self.queue.push_back(group);
    }
    pub(super) fn notes(&mut self) -> Vec<Note> {
        self.spare_notes.pop().unwrap_or_default()
    }
    pub(super) fn give_back(&mut self, mut notes: Vec<Note>) {
        notes.clear();
        self.spare_notes.push(notes);
    }
    pub(super) fn commits_out(&self) -> usize {
        self.commits_out
    }
    pub(super) fn in_flight(&self) -> usize {
        self.queue.iter().filter(|g| matches!(g.fate, Fate::Open | Fate::Doomed)).count()
    }
    /// The first group that is not settled.
    pub(super) fn first(&self) -> Option<GroupSeq> {
        self.queue.front().map(|g| g.seq)
    }
    /// The group's answer has come: its buffer is back.
    pub(super) fn answered(&mut self, seq: GroupSeq) -> Option<&mut InFlight> {
        let at = self.queue.binary_search_by_key(&seq, |g| g.seq).ok()?;
        let group = &mut self.queue[at];
        if matches!(group.fate, Fate::Durable | Fate::Lost) {
            return None;
        }
        self.commits_out -= usize::from(!group.own_buffer);
        Some(group)
    }
    /// The next group to settle, if its fate is decided.
    pub(super) fn pop_settled(&mut self) -> Option<InFlight> {
        matches!(self.queue.front()?.fate, Fate::Durable | Fate::Lost)
            .then(|| self.queue.pop_front())
            .flatten()
    }
    pub(super) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut InFlight> {
        self.queue.iter_mut()
    }
    pub(super) fn any_doomed(&self) -> bool {
        self.queue.iter().any(|g| g.fate == Fate::Doomed)
    }
}
