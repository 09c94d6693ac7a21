//! Work that concerns many entries, done in batches.
//!
//! Owns: the queue of destinations that have such work, and its order for one of them: fail, defer
//! after a failed connection, retry for an operator, wake what is due, end a rest, look over ready
//! entries for expiry. Promises: one event works on at most `limits::SCHEDULE_BATCH` entries this way
//! (the timer on `SCHEDULE_TIMER_BATCH`); destinations with more than that take turns. Must not:
//! be called while a destination is in the middle of a change.
use super::Action;
use super::ready::Cursor;
use super::retry::{floor_secs, max_age_secs};
use super::shard::Shard;
use super::timers::NEVER;
use super::wheel::NIL;
use crate::limits;

impl Shard {
    /// Puts the destination on the agenda.
    pub(super) fn list(&mut self, id: u32) {
        let agenda = &mut self.destinations.slab[id as usize].agenda;
        if !std::mem::replace(&mut agenda.listed, true) {
            self.agenda.push_back(id);
        }
    }

    /// Works through the agenda as far as the budget goes.
    pub(super) fn run_agenda(&mut self, actions: &mut Vec<Action>) {
        while self.budget > 0 {
            self.list_retries();
            let Some(id) = self.agenda.pop_front() else { return };
            self.destinations.slab[id as usize].agenda.listed = false;
            self.budget -= 1;
            if !self.work(id, actions) {
                self.list(id);
            }
            self.seek_all(id, actions);
            self.rearm(id);
            self.tidy(id);
        }
    }

    /// Goes on with a retry of everything: the next destination that has deferred mail or rests.
    fn list_retries(&mut self) {
        while let Some(place) = self.retry_from
            && self.agenda.is_empty()
            && self.budget > 0
        {
            self.budget -= 1;
            self.retry_from = (place < self.destinations.slab.capacity()).then_some(place + 1);
            if let Some(destination) = self.destinations.slab.get(place)
                && (destination.deferred.len() > 0 || self.held(place as u32))
            {
                self.retry_destination(place as u32);
            }
        }
    }

    /// One batch for one destination. False: more is left.
    fn work(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        self.fail_all(id, actions)
            && self.defer_ready(id, actions)
            && self.retry_deferred(id, actions)
            && self.wake_due(id, actions)
            && self.sweep(id, actions)
    }

    fn spend(&mut self) -> bool {
        let some = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        some
    }

    fn fail_all(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        if !self.destinations.slab[id as usize].agenda.fail {
            return true;
        }
        let mut lane = self.destinations.slab[id as usize].lanes;
        while lane != NIL {
            while self.destinations.lanes[lane as usize].ready.len > 0 {
                if !self.spend() {
                    return false;
                }
                let entry = self.pop_ready(lane).expect("a queue with a length has a front");
                self.fail(entry, actions);
            }
            lane = self.destinations.lanes[lane as usize].sibling;
        }
        while self.destinations.slab[id as usize].deferred.len() > 0 {
            if !self.spend() {
                return false;
            }
            let entry = self.pop_deferred(id).expect("a queue with a length has a front");
            self.fail(entry, actions);
        }
        self.destinations.slab[id as usize].agenda.fail = false;
        true
    }

    pub(super) fn pop_deferred(&mut self, id: u32) -> Option<u32> {
        let entry = self.destinations.slab[id as usize].deferred.pop_any(&mut self.entries)?;
        self.stats.deferred -= 1;
        Some(entry)
    }

    fn defer_ready(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        if !self.destinations.slab[id as usize].agenda.defer {
            return true;
        }
        let mut lane = self.destinations.slab[id as usize].lanes;
        while lane != NIL {
            while self.destinations.lanes[lane as usize].defer_left > 0 {
                if !self.spend() {
                    return false;
                }
                self.destinations.lanes[lane as usize].defer_left -= 1;
                let entry = self.pop_ready(lane).expect("no more is to be deferred than is ready");
                self.defer(id, entry, actions);
            }
            lane = self.destinations.lanes[lane as usize].sibling;
        }
        self.destinations.slab[id as usize].agenda.defer = false;
        true
    }

    /// What was to be deferred stays ready: the destination takes mail after all.
    pub(super) fn stop_deferring(&mut self, id: u32) {
        if !std::mem::take(&mut self.destinations.slab[id as usize].agenda.defer) {
            return;
        }
        let mut lane = self.destinations.slab[id as usize].lanes;
        while lane != NIL {
            let current = &mut self.destinations.lanes[lane as usize];
            current.defer_left = 0;
            lane = current.sibling;
        }
    }

    fn retry_deferred(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        while self.destinations.slab[id as usize].retry_left > 0 {
            if !self.spend() {
                return false;
            }
            if !self.may_flush(id) {
                return true;
            }
            let Some(entry) = self.pop_deferred(id) else {
                self.destinations.slab[id as usize].retry_left = 0;
                return true;
            };
            self.destinations.slab[id as usize].retry_left -= 1;
            self.entries[entry].due = 0;
            self.wake(id, entry, actions);
        }
        true
    }

    fn wake_due(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        let now = floor_secs(self.now);
        loop {
            let deferred = &mut self.destinations.slab[id as usize].deferred;
            let Some(entry) = deferred.pop_due(&mut self.entries, now, &mut self.budget) else {
                return deferred.wake().is_none_or(|wake| wake > now);
            };
            self.stats.deferred -= 1;
            self.wake(id, entry, actions);
            if !self.spend() {
                return false;
            }
        }
    }

    /// Expires ready entries that are too old. A sweep goes through every lane once, in as many
    /// batches as it takes, each from where the last one stopped.
    fn sweep(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        let now = floor_secs(self.now);
        let max_age_secs = max_age_secs(self.policy(id).max_age);
        let destination = &mut self.destinations.slab[id as usize];
        if !destination.agenda.sweep {
            if destination.ready == 0 || destination.sweep_at > now {
                return true;
            }
            destination.agenda.sweep = true;
            destination.sweep_floor = now.saturating_add((max_age_secs / limits::EXPIRY_SWEEPS).max(1));
            destination.sweep_at = NEVER;
            let mut lane = destination.lanes;
            while lane != NIL {
                let current = &mut self.destinations.lanes[lane as usize];
                (current.sweeping, current.swept) = (true, Cursor::START);
                lane = current.sibling;
            }
        }
        let mut lane = self.destinations.slab[id as usize].lanes;
        while lane != NIL {
            if self.destinations.lanes[lane as usize].sweeping && !self.sweep_lane(lane, actions) {
                return false;
            }
            lane = self.destinations.lanes[lane as usize].sibling;
        }
        self.destinations.slab[id as usize].agenda.sweep = false;
        true
    }

    fn sweep_lane(&mut self, id: u32, actions: &mut Vec<Action>) -> bool {
        let now = floor_secs(self.now);
        loop {
            let lane = &mut self.destinations.lanes[id as usize];
            let Some(entry) = lane.ready.after(&self.entries, &mut lane.swept) else {
                lane.sweeping = false;
                return true;
            };
            let before = lane.swept.before;
            if !self.spend() {
                return false;
            }
            let of = self.destinations.lanes[id as usize].destination;
            if self.expiry(of, entry) <= now {
                self.remove_ready(id, before, entry);
                self.expire(entry, actions);
            } else {
                self.warn(of, entry, actions);
                let look = self.next_look(of, entry);
                let lane = &mut self.destinations.lanes[id as usize];
                lane.swept.before = entry;
                let destination = &mut self.destinations.slab[lane.destination as usize];
                destination.sweep_at = destination.sweep_at.min(look.max(destination.sweep_floor));
            }
        }
    }

    /// Every lane of the destination gets its mail handed out and seeks connections; what waited for
    /// one before comes first.
    pub(super) fn seek_all(&mut self, id: u32, actions: &mut Vec<Action>) {
        self.grant_destination(id, actions);
        let lanes: Vec<u32> = self.destinations.lanes_of(id).collect();
        for lane in lanes {
            self.serve(lane, actions);
            self.seek(lane, actions);
            self.tidy_lane(lane);
        }
    }
}
