//! Ends and flushes, each at a named rate.
//!
//! Owns: the entries that are to expire or fail and wait for it, and the destinations that an operator's
//! retry has still to go through. Promises: an expiry or failure costs its home a report and a record on
//! disk, so no more than `limits::ENDINGS_PER_SECOND` come in a second however many entries end
//! together, no more than `limits::WARNINGS_PER_SECOND` are said to be late, and no more than `limits::FLUSHES_PER_SECOND` entries are made due by a retry; what waits
//! here is not handed out any more. Must not: decide what ends.
use std::collections::VecDeque;
use std::time::Duration;

use super::Action;
use super::entries::Fifo;
use super::pace::{Clocked, Pace};
use super::policy::Rate;
use super::retry::{floor_secs, max_age_secs};
use super::shard::Shard;
use super::wheel::NIL;
use crate::clock::WallTime;
use crate::limits;

#[derive(Debug)]
pub(super) struct Endings {
    expired: Fifo,
    failed: Fifo,
    pace: Pace,
    clocked: Clocked,
    warn_pace: Pace,
    warned: Clocked,
    flush_pace: Pace,
    flushed: Clocked,
    flushing: VecDeque<u32>,
}

fn per_second(count: u32, burst: u32) -> Pace {
    Pace::new(Rate::new(count, Duration::from_secs(1)).with_burst(burst))
}

impl Endings {
    pub(super) fn new() -> Endings {
        Endings {
            expired: Fifo::EMPTY,
            failed: Fifo::EMPTY,
            pace: per_second(limits::ENDINGS_PER_SECOND, limits::ENDINGS_BURST),
            clocked: Clocked::default(),
            warn_pace: per_second(limits::WARNINGS_PER_SECOND, limits::ENDINGS_BURST),
            warned: Clocked::default(),
            flush_pace: per_second(limits::FLUSHES_PER_SECOND, limits::SCHEDULE_BATCH),
            flushed: Clocked::default(),
            flushing: VecDeque::new(),
        }
    }

    /// Entries that wait for their end.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.expired.len) + u64::from(self.failed.len)
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<WallTime> {
        let ending = (self.len() > 0).then(|| self.clocked.ready_at(self.pace));
        let flush = (!self.flushing.is_empty()).then(|| self.flushed.ready_at(self.flush_pace));
        ending.into_iter().chain(flush).min()
    }

    fn may_end(&mut self, now: WallTime) -> bool {
        let may = self.clocked.is_ready(self.pace, now);
        if may {
            self.clocked.take(self.pace, now);
        }
        may
    }
}

impl Shard {
    /// An entry in no chain is too old.
    pub(super) fn expire(&mut self, id: u32, actions: &mut Vec<Action>) {
        if self.endings.expired.len == 0 && self.endings.may_end(self.now) {
            self.end_entry(id, true, actions);
        } else {
            self.endings.expired.push_back(&mut self.entries, id);
        }
    }

    /// An entry in no chain can never be delivered.
    pub(super) fn fail(&mut self, id: u32, actions: &mut Vec<Action>) {
        if self.endings.failed.len == 0 && self.endings.may_end(self.now) {
            self.end_entry(id, false, actions);
        } else {
            self.endings.failed.push_back(&mut self.entries, id);
        }
    }

    fn end_entry(&mut self, id: u32, expired: bool, actions: &mut Vec<Action>) {
        let entry = self.entries[id].entry();
        actions.push(if expired { Action::Expired { entry } } else { Action::Fail { entry } });
        self.drop_entry(id);
    }

    /// Ends what waits for it, as far as the rate goes; and lets flushes go on.
    pub(super) fn run_endings(&mut self, actions: &mut Vec<Action>) {
        while self.endings.len() > 0 && self.budget > 0 && self.endings.may_end(self.now) {
            self.budget -= 1;
            let expired = self.endings.expired.len > 0;
            let chain = if expired { &mut self.endings.expired } else { &mut self.endings.failed };
            let id = chain.head;
            chain.remove(&mut self.entries, NIL, id);
            self.end_entry(id, expired, actions);
        }
        while self.endings.flushed.is_ready(self.endings.flush_pace, self.now)
            && let Some(id) = self.endings.flushing.pop_front()
        {
            self.list(id);
        }
    }

    /// Whether a retry may make one more entry due; if not, the destination waits for its turn.
    pub(super) fn may_flush(&mut self, destination: u32) -> bool {
        let may = self.endings.flushed.is_ready(self.endings.flush_pace, self.now);
        if may {
            self.endings.flushed.take(self.endings.flush_pace, self.now);
        } else {
            self.endings.flushing.push_back(destination);
        }
        may
    }

    /// Takes `entry` out if it waits for its end. O(n) of those.
    pub(super) fn unlink_ending(&mut self, entry: super::Entry) -> Option<u32> {
        let Endings { expired, failed, .. } = &mut self.endings;
        [expired, failed].into_iter().find_map(|chain| {
            let (before, id) = self.entries.find(chain.head, entry)?;
            chain.remove(&mut self.entries, before, id);
            Some(id)
        })
    }

    /// Tells that an entry is late, once, when it is first looked at after the policy's time. Beyond the rate
    /// of warnings that is put off until it is looked at again.
    pub(super) fn warn(&mut self, destination: u32, id: u32, actions: &mut Vec<Action>) {
        let Endings { warn_pace, warned, .. } = &mut self.endings;
        let (pace, may) = (*warn_pace, warned.is_ready(*warn_pace, self.now));
        if !may || self.warning(destination, id) > floor_secs(self.now) {
            return;
        }
        self.endings.warned.take(pace, self.now);
        self.entries[id].set_warned();
        let until = WallTime::from_secs(self.expiry(destination, id).into());
        actions.push(Action::Delayed { entry: self.entries[id].entry(), until });
    }

    /// The second from which the sender is to be told that the entry is late; never, if that was done.
    pub(super) fn warning(&self, destination: u32, id: u32) -> u32 {
        let record = &self.entries[id];
        match self.policy(destination).delay_warning {
            Some(after) if !record.is_warned() => record.received.saturating_add(max_age_secs(after)),
            _ => u32::MAX,
        }
    }

    /// When a ready entry is next to be looked at though nothing happens: for a warning, or its expiry.
    pub(super) fn next_look(&self, destination: u32, id: u32) -> u32 {
        self.expiry(destination, id).min(self.warning(destination, id))
    }
}
