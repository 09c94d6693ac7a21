//! How many connections and messages a receiver takes, learnt from what it answers.
//!
//! Owns: [`Adaptive`], kept only for destinations that have refused something of late. Promises:
//! additive increase, multiplicative decrease, counted in accepted messages so that probing costs few
//! refusals among many of them; one cut per salvo; what works is found at once
//! where it can be counted (the connections that stay open, the messages accepted since the last cut);
//! it is forgotten when the destination is back at its limits. Must not: look at reply texts.
//!
//! Rates: over a minute, pauses included, the receiver has taken what it takes; a cut goes to
//! `limits::ADAPT_SHARE_PERCENT` of that. The way back leads in two steps to the old level, rests there
//! (`limits::ADAPT_REST` steps, twice as many each time the same level is refused), then goes beyond it
//! in steps that grow by one percent each. Connections: a cut goes to the number that works, or to half
//! of it where the receiver is in trouble; the way back is one connection at a time, after as many
//! accepted messages as `needed` says, which doubles each time the receiver refuses the next one again.
use std::time::Duration;

use super::pace::{Clocked, Pace};
use super::rules::Verdict;
use super::shard::Shard;
use super::wheel::NIL;
use super::{Action, Adaptation};
use crate::clock::WallTime;
use crate::limits;

/// Spans of ten seconds in which is counted what a receiver takes: six of them show one that counts by
/// the minute.
const SPANS: usize = 6;
const SPAN_SECS: u64 = 10;

/// What was taken in the last minute.
#[derive(Debug)]
struct Taken {
    since: WallTime,
    /// The present span, and the counts by span modulo their number.
    span: u64,
    counts: [u32; SPANS],
}

impl Taken {
    fn new(now: WallTime, accepted: u32, since: WallTime) -> Taken {
        let age_secs = now.since(since).as_secs_f64().max(1.0);
        let minute = (SPANS as u64 * SPAN_SECS) as f64;
        let mut counts = [0; SPANS];
        let span = now.secs() / SPAN_SECS;
        counts[span as usize % SPANS] = (f64::from(accepted) * (minute / age_secs).min(1.0)) as u32;
        Taken { since, span, counts }
    }

    /// Forgets what is older than a minute.
    fn turn(&mut self, now: WallTime) {
        let span = now.secs() / SPAN_SECS;
        for passed in 1..=(span - self.span.min(span)).min(SPANS as u64) {
            self.counts[(self.span + passed) as usize % SPANS] = 0;
        }
        self.span = self.span.max(span);
    }

    fn count(&mut self, now: WallTime) {
        self.turn(now);
        self.counts[self.span as usize % SPANS] += 1;
    }

    fn per_second(&mut self, now: WallTime) -> f64 {
        self.turn(now);
        let sum: u32 = self.counts.iter().sum();
        let oldest = (self.span + 1).saturating_sub(SPANS as u64) * SPAN_SECS;
        let since = self.since.max(WallTime::from_secs(oldest));
        f64::from(sum) / now.since(since).as_secs_f64().max(1.0)
    }
}

#[derive(Debug)]
pub(super) struct Adaptive {
    /// Connections allowed; `u32::MAX`: as many as the policy says.
    pub(super) connections: u32,
    /// Messages accepted since `connections` last changed, and those it takes to allow one more.
    grown: u32,
    needed: u32,
    /// When they were last halved.
    cut_at: WallTime,
    /// Messages a second, while a rate has been found.
    pub(super) rate: Option<f64>,
    pub(super) pace: Option<Pace>,
    pub(super) sent: Clocked,
    /// The rate at the last refusal, and the size of the next step beyond it, in percent of it.
    top: f64,
    step_percent: f64,
    stepped: u32,
    /// Steps spent at `top`, and those to be spent there before more is tried.
    rested: u32,
    rest: u32,
    /// Nothing is sent before.
    pub(super) pause_until: WallTime,
    pause: Duration,
    /// Messages accepted since the last refusal for the rate.
    accepted: u64,
    taken: Taken,
    /// For `why`.
    pub(super) changed: WallTime,
}

impl Adaptive {
    fn new(now: WallTime, accepted: u32, since: WallTime) -> Adaptive {
        Adaptive {
            connections: u32::MAX,
            grown: 0,
            needed: limits::ADAPT_STEP,
            cut_at: WallTime(0),
            rate: None,
            pace: None,
            sent: Clocked::default(),
            top: 0.0,
            step_percent: 1.0,
            stepped: 0,
            rested: 0,
            rest: limits::ADAPT_REST,
            pause_until: WallTime(0),
            pause: limits::ADAPT_PAUSE,
            accepted: accepted.into(),
            taken: Taken::new(now, accepted, since),
            changed: now,
        }
    }

    /// Too many connections while `open` others work.
    fn fewer(&mut self, now: WallTime, open: u32) -> bool {
        let to = open.max(1);
        if to >= self.connections {
            return false;
        }
        // Refused once more at the same number: it takes longer until that is tried again.
        self.needed = if self.connections == to + 1 {
            (self.needed * 2).min(limits::ADAPT_STEP << limits::ADAPT_DOUBLINGS)
        } else {
            limits::ADAPT_STEP
        };
        (self.connections, self.grown, self.changed) = (to, 0, now);
        true
    }

    /// The receiver is in trouble: half of what is `open`, once per salvo.
    fn halve(&mut self, now: WallTime, open: u32) -> bool {
        if now < self.cut_at.saturating_add(limits::ADAPT_SALVO) {
            return false;
        }
        self.cut_at = now;
        if let Some(rate) = self.rate {
            self.set_rate(rate / 2.0, now);
        }
        let to = (self.connections.min(open) / 2).max(1);
        (self.connections, self.grown, self.needed) = (to, 0, limits::ADAPT_STEP);
        self.changed = now;
        true
    }

    /// Too many messages.
    fn slower(&mut self, now: WallTime) -> bool {
        if now < self.pause_until {
            return false;
        }
        let again = self.accepted == 0;
        self.pause =
            if again { (self.pause * 2).min(limits::ADAPT_PAUSE_LONGEST) } else { limits::ADAPT_PAUSE };
        self.pause_until = now.saturating_add(self.pause);
        if !again {
            let taken = self.taken.per_second(now);
            let before = self.top;
            self.top = self.rate.map_or(taken, |rate| rate.min(taken.max(rate / 16.0)));
            self.set_rate(self.top * f64::from(limits::ADAPT_SHARE_PERCENT) / 100.0, now);
            // Refused at about the same level again: it takes longer until more is tried.
            let same = (self.top / before - 1.0).abs() < 0.2;
            let longer = (self.rest * 2).min(limits::ADAPT_REST_MOST);
            self.rest = if same { longer } else { limits::ADAPT_REST };
            (self.step_percent, self.rested) = (1.0, 0);
            self.accepted = 0;
        } else if self.rate.is_none() {
            // Nothing has been taken yet: one after the other.
            self.top = 1.0;
            self.set_rate(self.top, now);
        }
        true
    }

    fn set_rate(&mut self, rate: f64, now: WallTime) {
        let rate = rate.max(1.0 / limits::ADAPT_SLOWEST.as_secs_f64());
        (self.rate, self.pace, self.stepped, self.changed) =
            (Some(rate), Some(Pace::per_second(rate)), 0, now);
    }

    /// A message was accepted. `open`: connections that work; `limit`: of the policy. True: something
    /// has grown.
    fn accept(&mut self, now: WallTime, open: u32, limit: u32) -> bool {
        self.accepted += 1;
        self.taken.count(now);
        let mut grew = false;
        if self.connections < limit {
            self.grown += u32::from(open >= self.connections);
            if self.grown >= self.needed {
                (self.connections, self.grown, self.changed) = (self.connections + 1, 0, now);
                grew = true;
            }
        }
        self.stepped += 1;
        if let Some(rate) = self.rate
            && f64::from(self.stepped)
                >= (rate * limits::ADAPT_STEP_TIME.as_secs_f64()).max(limits::ADAPT_STEP.into())
        {
            // Back up to the old level, three steps there, then on.
            let step = if rate < self.top * 0.995 {
                2.5
            } else if self.rested < self.rest {
                self.rested += 1;
                0.0
            } else {
                self.step_percent += 1.0;
                self.step_percent - 1.0
            };
            if rate > self.top * f64::from(limits::ADAPT_FORGET) {
                (self.rate, self.pace) = (None, None);
            } else {
                self.set_rate(rate + self.top * step / 100.0, now);
            }
            grew = true;
        }
        grew
    }

    fn is_spent(&self, limit: u32) -> bool {
        self.connections >= limit && self.rate.is_none()
    }
}

impl Shard {
    /// Learns from what a connection of the destination was answered; `own`: it is counted in `open`.
    pub(super) fn learn(&mut self, destination: u32, verdict: Verdict, own: u32, actions: &mut Vec<Action>) {
        if verdict == Verdict::Nothing || !self.policy(destination).adaptive {
            return;
        }
        if let Verdict::Suspend(time) = verdict {
            let until = self.now.saturating_add(time);
            if !self.is_suspended(destination) {
                self.suspend(destination, Some(until), actions);
                self.tell_adapted(destination, Adaptation::Suspended { until }, actions);
            }
            return;
        }
        let now = self.now;
        let record = &self.destinations.slab[destination as usize];
        let open = record.open.saturating_sub(own);
        let (accepted, since) = (record.accepted, WallTime::from_secs(record.accepted_since.into()));
        let throttle = self.throttle_of(destination);
        let adaptive = throttle.adaptive.get_or_insert_with(|| Box::new(Adaptive::new(now, accepted, since)));
        let changed = match verdict {
            Verdict::FewerConnections => adaptive.fewer(now, open),
            Verdict::Slower => adaptive.slower(now),
            _ => adaptive.halve(now, open + own),
        };
        if changed {
            self.tell_limits(destination, actions);
        }
    }

    /// A message was accepted by the destination.
    pub(super) fn accepted(&mut self, destination: u32, actions: &mut Vec<Action>) {
        let record = &mut self.destinations.slab[destination as usize];
        if record.accepted == 0 {
            record.accepted_since = super::retry::floor_secs(self.now);
        }
        // What was long ago says little: half of it is forgotten.
        let age_secs = super::retry::floor_secs(self.now).saturating_sub(record.accepted_since);
        if age_secs > limits::ADAPT_WINDOW.as_secs() as u32 {
            record.accepted /= 2;
            record.accepted_since += age_secs / 2;
        }
        record.accepted = record.accepted.saturating_add(1);
        if record.throttle == NIL {
            return;
        }
        let (open, at) = (record.open, record.throttle as usize);
        let limit = self.policies.get(record.policy).limits.connections.max(1);
        let Some(adaptive) = &mut self.throttles.slab[at].adaptive else { return };
        if adaptive.accept(self.now, open, limit) {
            if adaptive.is_spent(limit) {
                self.throttles.slab[at].adaptive = None;
                self.tell_adapted(destination, Adaptation::Recovered, actions);
            } else {
                self.tell_limits(destination, actions);
            }
            self.seek_all(destination, actions);
        }
    }

    fn tell_limits(&mut self, destination: u32, actions: &mut Vec<Action>) {
        let at = self.destinations.slab[destination as usize].throttle;
        let Some(adaptive) = &self.throttles.slab[at as usize].adaptive else { return };
        let limit = self.policy(destination).limits.connections.max(1);
        let change = Adaptation::Limits {
            connections: adaptive.connections.min(limit),
            per_hour: adaptive.rate.map(|rate| (rate * 3600.0) as u64),
        };
        self.tell_adapted(destination, change, actions);
    }

    fn tell_adapted(&self, destination: u32, change: Adaptation, actions: &mut Vec<Action>) {
        let destination = self.destinations.slab[destination as usize].name.clone();
        actions.push(Action::Adapted { destination, change });
    }
}
