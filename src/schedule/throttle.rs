//! What holds one destination back beyond the number of its connections.
//!
//! Owns: [`Throttle`], kept only for destinations that need one (a rate, a suspension), the clock that
//! wakes them to the millisecond, and the queue in which a destination's lanes wait for their turn
//! under a rate. Promises: a message is counted when it is handed to a connection that holds no other,
//! so that MAIL goes out at once; a connection when it is asked for; lanes are served in turn; a
//! throttled destination costs nothing until its time comes. Must not: know of other destinations.
use slab::Slab;

use super::Action;
use super::adapt::Adaptive;
use super::destination::{Queue, RATE};
use super::list::List;
use super::pace::{Clocked, Pace};
use super::policy::Policy;
use super::shard::Shard;
use super::shared::Shared;
use super::timers::{NEVER, Timed, Timer, Timers};
use super::wheel::NIL;
use crate::clock::WallTime;
use crate::limits;

#[derive(Debug)]
pub(super) struct Throttle {
    /// On the millisecond clock.
    timer: Timer,
    pub(super) destination: u32,
    pub(super) message_pace: Option<Pace>,
    pub(super) connection_pace: Option<Pace>,
    pub(super) messages: Clocked,
    pub(super) connections: Clocked,
    /// Lanes with mail and a connection that asks, in the order of their turns.
    pub(super) waiting: List<RATE>,
    pub(super) suspended: Option<Suspended>,
    /// Its part in limits it shares, once its hosts are known: that of each stream with limits, and of the others.
    pub(super) shared: Vec<Shared>,
    /// The lane whose turn it is before all others, until then: what it was granted elsewhere came when this
    /// destination's rate had gone to another.
    pub(super) owed: Option<(u32, WallTime)>,
    /// What its receiver is found to take, if it has refused something of late.
    pub(super) adaptive: Option<Box<Adaptive>>,
}

/// Why a destination gets nothing at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspended {
    pub(super) since: WallTime,
    pub(super) until: Option<WallTime>,
}

impl Throttle {
    fn new(destination: u32) -> Throttle {
        Throttle {
            timer: Timer::UNSET,
            destination,
            message_pace: None,
            connection_pace: None,
            messages: Clocked::default(),
            connections: Clocked::default(),
            waiting: List::EMPTY,
            suspended: None,
            shared: Vec::new(),
            owed: None,
            adaptive: None,
        }
    }

    /// When the next message may be sent; 0: there is no rate.
    pub(super) fn message_at(&self) -> WallTime {
        let ordered = self.message_pace.map_or(WallTime(0), |pace| self.messages.ready_at(pace));
        let Some(adaptive) = &self.adaptive else { return ordered };
        let found = adaptive.pace.map_or(WallTime(0), |pace| adaptive.sent.ready_at(pace));
        ordered.max(found).max(adaptive.pause_until)
    }

    fn count_message(&mut self, now: WallTime) {
        if let Some(pace) = self.message_pace {
            self.messages.take(pace, now);
        }
        if let Some(adaptive) = &mut self.adaptive
            && let Some(pace) = adaptive.pace
        {
            adaptive.sent.take(pace, now);
        }
    }

    /// Whether messages go out one by one, each when a rate grants it.
    fn has_rate(&self) -> bool {
        self.message_pace.is_some() || self.adaptive.as_ref().is_some_and(|a| a.rate.is_some())
    }
}

impl Timed for Throttle {
    fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

/// The throttles and their clock, which counts milliseconds from a start of its own.
#[derive(Debug)]
pub(super) struct Throttles {
    pub(super) slab: Slab<Throttle>,
    timers: Timers,
    start: WallTime,
}

impl Throttles {
    pub(super) fn new() -> Throttles {
        Throttles { slab: Slab::new(), timers: Timers::new(), start: WallTime(0) }
    }

    /// Wakes the throttle at `at`, rounded up, unless it is to wake before that anyway.
    fn wake_at(&mut self, id: u32, now: WallTime, at: WallTime) {
        self.rebase(now);
        let due = self.tick(at).saturating_add(1);
        if due < self.slab[id as usize].timer.due() {
            self.timers.set(&mut self.slab, id, due);
        }
    }

    fn tick(&self, at: WallTime) -> u32 {
        (at.0.saturating_sub(self.start.0).saturating_sub(1) / 1000).min(u64::from(NEVER - 2)) as u32
    }

    /// Starts the clock anew when it has run for weeks, so that its ticks fit: O(throttles), then.
    fn rebase(&mut self, now: WallTime) {
        const AGE_US: u64 = 1000 << 31;
        if now.0.saturating_sub(self.start.0) < AGE_US {
            return;
        }
        let gone = (now.0 - self.start.0) / 1000;
        self.start = now;
        self.timers = Timers::new();
        for id in 0..self.slab.capacity() as u32 {
            let Some(throttle) = self.slab.get_mut(id as usize) else { continue };
            let due = u64::from(std::mem::replace(&mut throttle.timer, Timer::UNSET).due());
            if due != u64::from(NEVER) {
                self.timers.set(&mut self.slab, id, due.saturating_sub(gone).max(1) as u32);
            }
        }
    }

    fn pop(&mut self, now: WallTime, budget: &mut u32) -> Option<u32> {
        let now = (now.0.saturating_sub(self.start.0) / 1000).min(u64::from(NEVER - 1)) as u32;
        self.timers.pop(&mut self.slab, now, budget)
    }

    /// No throttle wakes before this.
    pub(super) fn earliest(&self) -> Option<WallTime> {
        let tick = self.timers.earliest()?;
        Some(WallTime(self.start.0.saturating_add(u64::from(tick) * 1000)))
    }

    fn remove(&mut self, id: u32) {
        self.timers.cancel(&mut self.slab, id);
        self.slab.remove(id as usize);
    }
}

impl Shard {
    /// The throttle of a destination, made if it has none.
    pub(super) fn throttle_of(&mut self, destination: u32) -> &mut Throttle {
        let at = self.destinations.slab[destination as usize].throttle;
        let at = if at == NIL {
            let at = self.throttles.slab.insert(Throttle::new(destination)) as u32;
            self.destinations.slab[destination as usize].throttle = at;
            at
        } else {
            at
        };
        &mut self.throttles.slab[at as usize]
    }

    /// Puts the rates of its policy in force.
    pub(super) fn apply_policy(&mut self, destination: u32) {
        let policy: &Policy = self.policies.get(self.destinations.slab[destination as usize].policy);
        let limits = policy.limits;
        let throttled = self.destinations.slab[destination as usize].throttle != NIL;
        if !throttled && limits.message_rate.is_none() && limits.connection_rate.is_none() {
            return;
        }
        let throttle = self.throttle_of(destination);
        throttle.message_pace = limits.message_rate.map(Pace::new);
        throttle.connection_pace = limits.connection_rate.map(Pace::new);
    }

    /// Whether a connection of the destination may be asked for now, its number aside; if not, the
    /// throttle wakes when one may.
    pub(super) fn connection_is_due(&mut self, destination: u32) -> bool {
        let at = self.destinations.slab[destination as usize].throttle;
        if at == NIL {
            return true;
        }
        let throttle = &self.throttles.slab[at as usize];
        if throttle.suspended.is_some() {
            return false;
        }
        let Some(pace) = throttle.connection_pace else { return true };
        let ready_at = throttle.connections.ready_at(pace);
        if ready_at > self.now {
            self.throttles.wake_at(at, self.now, ready_at);
            return false;
        }
        true
    }

    pub(super) fn count_connection(&mut self, destination: u32) {
        let at = self.destinations.slab[destination as usize].throttle;
        if at != NIL
            && let throttle = &mut self.throttles.slab[at as usize]
            && let Some(pace) = throttle.connection_pace
        {
            throttle.connections.take(pace, self.now);
        }
    }

    pub(super) fn count_message_of(&mut self, destination: u32) {
        let at = self.destinations.slab[destination as usize].throttle;
        if at != NIL {
            self.throttles.slab[at as usize].count_message(self.now);
        }
    }

    /// No message may be sent to the destination now, whoever asks.
    pub(super) fn is_throttled(&self, destination: u32) -> bool {
        let at = self.destinations.slab[destination as usize].throttle;
        at != NIL && {
            let throttle = &self.throttles.slab[at as usize];
            throttle.suspended.is_some() || throttle.message_at() > self.now
        }
    }

    /// No message of the lane may be sent now: of nobody, or another lane is before it.
    pub(super) fn is_held_back(&self, lane: u32) -> bool {
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        let owed = |at: u32| self.throttles.slab[at as usize].owed;
        at != NIL
            && (self.is_throttled(destination)
                || owed(at).is_some_and(|(owed, until)| owed != lane && until > self.now))
    }

    /// A connection for the lane would have something to do. One without any does not wait for the moment when
    /// the rate lets a message go: those with connections take it at once.
    pub(super) fn may_send_soon(&self, lane: u32) -> bool {
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        if at == NIL || self.destinations.lanes[lane as usize].active > 0 {
            return !self.is_held_back(lane);
        }
        let throttle = &self.throttles.slab[at as usize];
        throttle.suspended.is_none() && throttle.message_at() <= self.now.saturating_add(limits::POOL_LEAD)
    }

    /// A lane has mail and may not seek a connection for it yet: the throttle wakes when it may.
    pub(super) fn wake_when_due(&mut self, destination: u32) {
        let at = self.destinations.slab[destination as usize].throttle;
        if at != NIL && self.destinations.slab[destination as usize].ready > 0 {
            let throttle = &self.throttles.slab[at as usize];
            let owed = throttle.owed.map_or(WallTime(0), |(_, until)| until);
            for at_time in [throttle.message_at(), owed].into_iter().filter(|time| *time > self.now) {
                self.throttles.wake_at(at, self.now, at_time);
            }
        }
    }

    /// The throttle's clock is set.
    #[cfg(test)]
    pub(super) fn throttle_wakes(&self, destination: u32) -> bool {
        let at = self.destinations.slab[destination as usize].throttle;
        at != NIL && self.throttles.slab[at as usize].timer.due() != NEVER
    }

    pub(super) fn is_suspended(&self, destination: u32) -> bool {
        let at = self.destinations.slab[destination as usize].throttle;
        at != NIL && self.throttles.slab[at as usize].suspended.is_some()
    }

    /// Hands out mail of a destination that has a throttle: one message at a time to each lane in
    /// turn, as far as the rate goes; the rest when the throttle wakes.
    pub(super) fn serve_in_turn(&mut self, lane: u32, actions: &mut Vec<Action>) {
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        if self.is_owed_to_another(at, lane) {
            return;
        }
        if self.is_metered(lane) {
            return self.serve_metered(lane, actions);
        }
        if !self.throttles.slab[at as usize].has_rate() {
            if !self.is_suspended(destination) {
                self.serve_all(lane, actions);
            }
            return;
        }
        self.take_turn(at, lane);
        self.serve_turns(at, actions);
    }

    /// The lane queues for its turn, unless it does already or has nothing to send or to send it by.
    fn take_turn(&mut self, at: u32, id: u32) {
        let lane = &self.destinations.lanes[id as usize];
        if !lane.in_turn && lane.ready.len > 0 && self.empty_handed(id).is_some() {
            self.destinations.lanes[id as usize].in_turn = true;
            self.throttles.slab[at as usize].waiting.push_back(&mut self.destinations.lanes, id);
        }
    }

    fn leave_turn(&mut self, at: u32, id: u32) {
        if std::mem::take(&mut self.destinations.lanes[id as usize].in_turn) {
            self.throttles.slab[at as usize].waiting.remove(&mut self.destinations.lanes, id);
        }
    }

    /// The lane's connection that asks for mail and holds none: MAIL goes out at once only there.
    fn empty_handed(&self, lane: u32) -> Option<u32> {
        let conn = self.destinations.lanes[lane as usize].asking.front()?;
        (self.connections.slab[conn as usize].held == 0).then_some(conn)
    }

    fn serve_turns(&mut self, at: u32, actions: &mut Vec<Action>) {
        while let Some(lane) = self.throttles.slab[at as usize].waiting.front() {
            let throttle = &self.throttles.slab[at as usize];
            if throttle.suspended.is_some() || self.is_owed_to_another(at, lane) {
                return;
            }
            let throttle = &self.throttles.slab[at as usize];
            let ready_at = throttle.message_at();
            if ready_at > self.now {
                self.throttles.wake_at(at, self.now, ready_at);
                return;
            }
            self.leave_turn(at, lane);
            let Some(conn) = self.empty_handed(lane) else { continue };
            let Some(entry) = self.pop_live(lane, actions) else { continue };
            self.throttles.slab[at as usize].count_message(self.now);
            self.deliver(conn, entry, actions);
            self.stand_back(conn);
            self.take_turn(at, lane);
        }
    }

    /// The throttles whose time has come.
    pub(super) fn wake_throttles(&mut self, actions: &mut Vec<Action>) {
        while let Some(at) = self.throttles.pop(self.now, &mut self.budget) {
            let throttle = &mut self.throttles.slab[at as usize];
            let destination = throttle.destination;
            if throttle.suspended.is_some_and(|s| s.until.is_some_and(|until| until <= self.now)) {
                throttle.suspended = None;
            }
            if let Some(Suspended { until: Some(until), .. }) = throttle.suspended {
                self.throttles.wake_at(at, self.now, until);
            }
            self.seek_all(destination, actions);
            self.rearm(destination);
            self.tidy(destination);
        }
    }

    pub(super) fn suspend(&mut self, destination: u32, until: Option<WallTime>, actions: &mut Vec<Action>) {
        let now = self.now;
        let throttle = self.throttle_of(destination);
        let since = throttle.suspended.map_or(now, |s| s.since);
        throttle.suspended = Some(Suspended { since, until });
        let at = self.destinations.slab[destination as usize].throttle;
        if let Some(until) = until {
            self.throttles.wake_at(at, now, until);
        }
        let lanes: Vec<u32> = self.destinations.lanes_of(destination).collect();
        for lane in lanes {
            self.set_queue(lane, Queue::None);
            while let Some(conn) = self.empty_handed(lane) {
                self.close(conn, actions);
            }
        }
    }

    pub(super) fn resume(&mut self, destination: u32, actions: &mut Vec<Action>) {
        let at = self.destinations.slab[destination as usize].throttle;
        if at == NIL || self.throttles.slab[at as usize].suspended.take().is_none() {
            return;
        }
        self.seek_all(destination, actions);
        self.rearm(destination);
        self.tidy(destination);
    }

    /// The destination has no connection and is about to be forgotten, or to be kept without a throttle:
    /// whether its throttle lets it. A rate that has been used
    /// lately, and a suspension, must be remembered.
    pub(super) fn may_forget(&mut self, destination: u32) -> bool {
        let at = self.destinations.slab[destination as usize].throttle;
        if at == NIL {
            return true;
        }
        let throttle = &self.throttles.slab[at as usize];
        if throttle.suspended.is_some() {
            return false;
        }
        let learnt = throttle.adaptive.as_ref().map(|a| a.changed.saturating_add(limits::ADAPT_MEMORY));
        let until = throttle.messages.rested_at().max(throttle.connections.rested_at());
        let until = until.max(learnt.unwrap_or_default());
        if until > self.now {
            self.throttles.wake_at(at, self.now, until);
            return false;
        }
        self.throttles.remove(at);
        self.destinations.slab[destination as usize].throttle = NIL;
        true
    }

    /// Whether another lane is to be served before this one; if so, the throttle wakes when that is over.
    pub(super) fn is_owed_to_another(&mut self, at: u32, lane: u32) -> bool {
        let Some((owed, until)) = self.throttles.slab[at as usize].owed else { return false };
        if owed == lane {
            return false;
        }
        if until <= self.now {
            self.throttles.slab[at as usize].owed = None;
            return false;
        }
        self.throttles.wake_at(at, self.now, until);
        true
    }

    /// What the lane was granted elsewhere came too late for its destination's rate: it is the next.
    pub(super) fn owe(&mut self, lane: u32) {
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        if at == NIL {
            return;
        }
        let throttle = &mut self.throttles.slab[at as usize];
        if throttle.owed.is_none() && throttle.suspended.is_none() && throttle.message_at() > self.now {
            throttle.owed = Some((lane, throttle.message_at().saturating_add(limits::RATE_JITTER)));
        }
        self.wake_when_due(destination);
    }

    /// The lane has had what was owed to it, or cannot use it. True if anything was.
    pub(super) fn settle_owed(&mut self, lane: u32) -> bool {
        let destination = self.destinations.lanes[lane as usize].destination;
        let at = self.destinations.slab[destination as usize].throttle;
        let was = at != NIL && self.throttles.slab[at as usize].owed.is_some_and(|(owed, _)| owed == lane);
        if was {
            self.throttles.slab[at as usize].owed = None;
        }
        was
    }

    /// The lane is about to be forgotten.
    pub(super) fn forget_turn(&mut self, lane: u32) {
        self.settle_owed(lane);
        if self.destinations.lanes[lane as usize].in_turn {
            let destination = self.destinations.lanes[lane as usize].destination;
            self.leave_turn(self.destinations.slab[destination as usize].throttle, lane);
        }
    }

    /// Finds the policy of one destination anew.
    pub(super) fn find_policy(&mut self, id: u32, actions: &mut Vec<Action>) {
        let destination = &mut self.destinations.slab[id as usize];
        destination.policy = self.policies.of(&destination.name);
        self.apply_policy(id);
        self.seek_all(id, actions);
        self.rearm(id);
        self.tidy(id);
    }

    /// Goes on with finding policies anew after they have changed.
    pub(super) fn find_policies(&mut self, actions: &mut Vec<Action>) {
        let Some(mut place) = self.policies_from else { return };
        for _ in 0..limits::SCHEDULE_BATCH {
            if place >= self.destinations.slab.capacity() {
                self.policies_from = None;
                return;
            }
            if self.destinations.slab.contains(place) {
                self.find_policy(place as u32, actions);
            }
            place += 1;
        }
        self.policies_from = Some(place);
    }
}
