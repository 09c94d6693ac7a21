//! The shard: takes events in, keeps the counts, answers questions.
//!
//! Owns: [`Shard`] and all its tables; how an entry changes between ready, deferred and gone.
//! Promises: after each event every count agrees with the tables, every lane that could use a free
//! slot has it or stands in a queue for it, and every destination that waits for time has its timer
//! set. Must not: read a clock.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use xxhash_rust::xxh3::xxh3_64;

use super::connection::{Connections, IDLE};
use super::destination::{Destinations, Queues};
use super::ending::Endings;
use super::entries::{Entries, Record};
use super::list::List;
use super::policy::{Policies, Policy};
use super::pool::{PoolKey, Pools};
use super::retry::{Retry, ceil_secs, floor_secs};
use super::throttle::Throttles;
use super::timers::{NEVER, Timers};
use super::wheel::NIL;
use super::{Action, DestinationStats, Event, ShardConfig, ShardStats};
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Domain;

/// One home as this shard sees it.
#[derive(Debug)]
pub(super) struct Home {
    /// Connection slots held.
    pub(super) used: usize,
    pub(super) queues: Queues,
    /// Connections with nothing to do, the longest idle first.
    pub(super) idle: List<IDLE>,
}

/// The scheduler of the destinations that hash to it. See the module's documentation.
#[derive(Debug)]
pub struct Shard {
    pub(super) now: WallTime,
    /// Entries that may still be worked on in batches for the present event.
    pub(super) budget: u32,
    pub(super) entries: Entries,
    pub(super) destinations: Destinations,
    pub(super) connections: Connections,
    pub(super) homes: Vec<Home>,
    pub(super) timers: Timers,
    pub(super) throttles: Throttles,
    pub(super) endings: Endings,
    pub(super) pools: Pools,
    /// Pools that others wait for.
    pub(super) contended: HashSet<PoolKey, foldhash::fast::RandomState>,
    /// Counts the lives of destinations that share limits.
    pub(super) serial: u32,
    pub(super) retry: Retry,
    pub(super) policies: Arc<Policies>,
    /// Where finding policies anew has got to in the table of destinations.
    pub(super) policies_from: Option<usize>,
    /// Destinations with work left to do in batches.
    pub(super) agenda: VecDeque<u32>,
    /// Where a retry of everything has got to in the table of destinations.
    pub(super) retry_from: Option<usize>,
    pub(super) stats: ShardStats,
    pub(super) window: u8,
    pub(super) connections_per_home: usize,
    connection_idle: Duration,
}

impl Shard {
    /// An empty shard. A limit of 0 is taken for 1: nothing would ever move.
    pub fn new(config: ShardConfig) -> Shard {
        let home = || Home { used: 0, queues: Queues::EMPTY, idle: List::EMPTY };
        Shard {
            now: WallTime(0),
            budget: 0,
            entries: Entries::new(),
            destinations: Destinations::new(config.seed),
            connections: Connections::new(),
            homes: (0..config.homes).map(|_| home()).collect(),
            timers: Timers::new(),
            throttles: Throttles::new(),
            endings: Endings::new(),
            pools: Pools::new(config.index, config.shards),
            contended: HashSet::default(),
            serial: 0,
            retry: Retry::new(config.jitter_percent, config.seed),
            policies: config.policies,
            policies_from: None,
            agenda: VecDeque::new(),
            retry_from: None,
            stats: ShardStats::default(),
            window: config.window.clamp(1, u8::MAX.into()) as u8,
            connections_per_home: config.connections_per_home.max(1),
            connection_idle: config.connection_idle,
        }
    }

    /// Takes one event; appends what is to be done to `actions` (never clears it). Events that name a
    /// connection, entry or destination the shard does not know (any more) do nothing.
    pub fn handle(&mut self, now: WallTime, event: Event<'_>, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.budget = limits::SCHEDULE_BATCH;
        match event {
            Event::Enqueue { destination, entry, stream, recipients, attempts, told, received_at, due } => {
                let mut record = Record {
                    slot: entry.slot,
                    received: floor_secs(received_at),
                    // Seconds are rounded up, but what is due is not to wait for the next one.
                    due: if due <= self.now { 0 } else { ceil_secs(due) },
                    next: NIL,
                    part: entry.part,
                    recipients,
                    home: entry.home,
                    stream,
                    ..Record::default()
                };
                record.set_attempts(attempts);
                if told {
                    record.set_warned();
                }
                self.enqueue(destination, record, actions);
            }
            Event::Want { conn, room } => self.want(conn, room, actions),
            Event::Finished { conn, entry, verdict } => self.finished(conn, entry, verdict, actions),
            Event::Deferred { conn, entry, recipients_left, verdict } => {
                self.attempted(conn, entry, recipients_left, verdict, actions);
            }
            Event::Returned { conn, entry } => self.returned(conn, entry, actions),
            Event::ConnectFailed { conn, permanent, verdict } => {
                self.connect_failed(conn, permanent, verdict, actions);
            }
            Event::ConnectPutOff { conn } => self.connect_put_off(conn, actions),
            Event::Closed { conn } => self.closed(conn, actions),
            Event::Timer => self.timer(actions),
            Event::Retry { destination } => self.retry(destination, actions),
            Event::Take { destination, which, tag } => self.take(destination, which, tag, actions),
            Event::Suspend { destination, until } => {
                let id = self.find_or_add(destination);
                self.suspend(id, until, actions);
            }
            Event::Resume { destination } => {
                if let Some(id) = self.destinations.find(destination) {
                    self.resume(id, actions);
                }
            }
            Event::Resolved { conn, hosts, provider, sources } => {
                self.resolved(conn, (hosts, provider, sources), actions);
            }
            Event::Pool(message) => self.hear(message, actions),
            Event::Learnt { destination } => {
                if let Some(id) = self.destinations.find(destination) {
                    self.find_policy(id, actions);
                }
            }
            Event::Policies(policies) => {
                self.policies = policies;
                self.pools.revise(&self.policies, self.now, actions);
                self.policies_from = Some(0);
                self.find_policies(actions);
            }
        }
        self.read_letters(actions);
    }

    /// When `Event::Timer` should come next, if anything waits for time; in the past if work is left.
    pub fn next_timer(&self) -> Option<WallTime> {
        if !self.agenda.is_empty() || self.retry_from.is_some() || self.policies_from.is_some() {
            return Some(self.now);
        }
        let idle = self.homes.iter().filter_map(|home| {
            let since = self.connections.slab[home.idle.front()? as usize].idle_since?;
            Some(since.saturating_add(self.connection_idle))
        });
        let timer = self.timers.earliest().map(|secs| WallTime::from_secs(secs.into()));
        idle.chain(timer)
            .chain(self.throttles.earliest())
            .chain(self.endings.next())
            .chain(self.pools.next())
            .min()
    }

    /// The counts, kept as events come: O(1).
    pub fn stats(&self) -> ShardStats {
        ShardStats {
            destinations: self.destinations.slab.len() as u64,
            connections: self.connections.slab.len() as u64,
            ending: self.endings.len(),
            ..self.stats.clone()
        }
    }

    /// Up to `limit` destinations with mail, most entries first, then by name. Walks the table.
    pub fn destinations(&self, limit: usize) -> Vec<DestinationStats> {
        let mut most = BinaryHeap::new();
        for (id, destination) in &self.destinations.slab {
            if destination.entries() > 0 {
                most.push((Reverse(destination.entries()), destination.name.as_str(), id));
                if most.len() > limit {
                    most.pop();
                }
            }
        }
        most.into_sorted_vec().into_iter().map(|(_, _, id)| self.describe(id)).collect()
    }

    pub(super) fn describe(&self, id: usize) -> DestinationStats {
        let destination = &self.destinations.slab[id];
        let seconds = |secs: u32| WallTime::from_secs(secs.into());
        let backs_off = destination.failures > 0 && self.held(id as u32);
        DestinationStats {
            destination: destination.name.clone(),
            ready: destination.ready.into(),
            deferred: destination.deferred.len().into(),
            in_flight: destination.in_flight.into(),
            connections: destination.used,
            next: match destination.ready {
                0 => destination.deferred.next_due(&self.entries).map(seconds),
                _ => None,
            },
            backoff_until: backs_off.then(|| seconds(destination.hold_until)),
        }
    }

    fn enqueue(&mut self, name: &Domain, record: Record, actions: &mut Vec<Action>) {
        let destination = self.find_or_add(name);
        let id = self.entries.insert(record);
        self.stats.entries += 1;
        self.stats.recipients += u64::from(record.recipients);
        if let Some(lane) = self.wake(destination, id, actions) {
            self.serve(lane, actions);
            self.seek(lane, actions);
        }
        self.rearm(destination);
        self.tidy(destination);
    }

    pub(super) fn find_or_add(&mut self, name: &Domain) -> u32 {
        if let Some(id) = self.destinations.find(name) {
            return id;
        }
        let id = self.destinations.add(name, self.policies.of(name));
        self.apply_policy(id);
        id
    }

    pub(super) fn policy(&self, destination: u32) -> &Policy {
        self.policies.get(self.destinations.slab[destination as usize].policy)
    }

    /// The second from which an entry of the destination is too old to be tried.
    pub(super) fn expiry(&self, destination: u32, entry: u32) -> u32 {
        Retry::expiry(&self.entries[entry], self.policy(destination).max_age)
    }

    /// An entry in no chain whose due time may have come: ready, deferred or expired. Returns the lane
    /// it is ready in.
    pub(super) fn wake(&mut self, destination: u32, id: u32, actions: &mut Vec<Action>) -> Option<u32> {
        let now = floor_secs(self.now);
        let expiry = self.expiry(destination, id);
        if expiry <= now {
            self.expire(id, actions);
            None
        } else if self.entries[id].due <= now {
            if self.destinations.slab[destination as usize].lanes == NIL {
                self.apply_policy(destination);
            }
            let stream = self.policies.lane_of(self.entries[id].stream);
            let lane = self.destinations.lane(destination, self.entries[id].home, stream);
            let weight = |stream| self.policies.weight(stream);
            self.destinations.lanes[lane as usize].ready.push_back(&mut self.entries, id, weight);
            self.count_ready(destination, id);
            Some(lane)
        } else {
            self.entries[id].due = self.entries[id].due.min(expiry);
            self.destinations.slab[destination as usize].deferred.push(&mut self.entries, id, now);
            self.stats.deferred += 1;
            None
        }
    }

    pub(super) fn count_ready(&mut self, destination: u32, id: u32) {
        self.stats.ready += 1;
        let look = self.next_look(destination, id);
        let destination = &mut self.destinations.slab[destination as usize];
        destination.ready += 1;
        destination.sweep_at = destination.sweep_at.min(look.max(destination.sweep_floor));
    }

    /// Takes the first ready entry of a lane.
    pub(super) fn pop_ready(&mut self, lane: u32) -> Option<u32> {
        let id = self.destinations.lanes[lane as usize].ready.pop(&mut self.entries)?;
        self.took_ready(lane, NIL, id);
        Some(id)
    }

    /// Counts an attempt of an entry in no chain and defers it, or expires it if it is too old.
    pub(super) fn defer(&mut self, destination: u32, id: u32, actions: &mut Vec<Action>) {
        let expiry = self.expiry(destination, id);
        let now = floor_secs(self.now);
        let attempts = self.entries[id].attempts() + 1;
        self.entries[id].set_attempts(attempts);
        if expiry <= now {
            return self.expire(id, actions);
        }
        self.warn(destination, id, actions);
        let policy = self.policies.get(self.destinations.slab[destination as usize].policy);
        let record = &mut self.entries[id];
        record.due = self.retry.next(self.now, &policy.retry_schedule, record.attempts()).min(expiry);
        actions.push(Action::Deferred {
            entry: record.entry(),
            attempts: record.attempts(),
            next: WallTime::from_secs(record.due.into()),
        });
        self.destinations.slab[destination as usize].deferred.push(&mut self.entries, id, now);
        self.stats.deferred += 1;
    }

    /// Forgets an entry that is in no chain.
    pub(super) fn drop_entry(&mut self, id: u32) {
        self.stats.entries -= 1;
        self.stats.recipients -= u64::from(self.entries[id].recipients);
        self.entries.free(id);
    }

    fn retry(&mut self, name: Option<&Domain>, actions: &mut Vec<Action>) {
        match name {
            None => self.retry_from = Some(0),
            Some(name) => {
                let Some(destination) = self.destinations.find(name) else { return };
                self.retry_destination(destination);
            }
        }
        self.run_agenda(actions);
    }

    pub(super) fn retry_destination(&mut self, id: u32) {
        let destination = &mut self.destinations.slab[id as usize];
        destination.retry_left = destination.deferred.len();
        destination.hold_until = 0;
        self.stop_deferring(id);
        self.list(id);
    }

    /// Takes `id`, which follows `before`, out of a lane's queue.
    pub(super) fn remove_ready(&mut self, lane: u32, before: u32, id: u32) {
        self.destinations.lanes[lane as usize].ready.remove(&mut self.entries, before, id);
        self.took_ready(lane, before, id);
    }

    /// Counts an entry that was taken out of a lane's queue, where it followed `before`.
    fn took_ready(&mut self, lane: u32, before: u32, id: u32) {
        let lane = &mut self.destinations.lanes[lane as usize];
        if lane.swept.before == id {
            lane.swept.before = before;
        }
        lane.defer_left = lane.defer_left.min(lane.ready.len);
        let destination = &mut self.destinations.slab[lane.destination as usize];
        destination.ready -= 1;
        if destination.ready == 0 {
            destination.sweep_at = NEVER;
        }
        self.stats.ready -= 1;
    }

    fn timer(&mut self, actions: &mut Vec<Action>) {
        self.budget = limits::SCHEDULE_TIMER_BATCH;
        for home in 0..self.homes.len() {
            while let Some(idle) = self.homes[home].idle.front() {
                let since = self.connections.slab[idle as usize].idle_since.unwrap_or_default();
                if since.saturating_add(self.connection_idle) > self.now {
                    break;
                }
                self.close(idle, actions);
            }
        }
        let now = floor_secs(self.now);
        while let Some(id) = self.timers.pop(&mut self.destinations.slab, now, &mut self.budget) {
            self.list(id);
        }
        self.run_endings(actions);
        self.pools.wake(&self.policies, self.now, actions);
        self.read_letters(actions);
        self.wake_throttles(actions);
        self.find_policies(actions);
        self.run_agenda(actions);
    }

    /// Sets the destination's timer if something is due before it; one that comes too early finds
    /// nothing to do and is set anew.
    pub(super) fn rearm(&mut self, id: u32) {
        let destination = &self.destinations.slab[id as usize];
        let deferred = destination.deferred.wake().unwrap_or(NEVER);
        let sweep = if destination.ready > 0 { destination.sweep_at } else { NEVER };
        let hold = if self.held(id) { destination.hold_until } else { NEVER };
        let due = deferred.min(sweep).min(hold);
        if due < destination.timer.due() {
            self.timers.set(&mut self.destinations.slab, id, due);
        }
    }

    /// No connection is to be opened yet.
    pub(super) fn held(&self, destination: u32) -> bool {
        floor_secs(self.now) < self.destinations.slab[destination as usize].hold_until
    }

    /// Forgets the destination if nothing is left of it.
    pub(super) fn tidy(&mut self, id: u32) {
        let destination = &self.destinations.slab[id as usize];
        let (lanes, empty) = (destination.lanes == NIL, destination.entries() == 0);
        if lanes && !empty && destination.throttle != NIL {
            // What waits for its time alone needs no throttle.
            self.may_forget(id);
            return;
        }
        let idle = lanes && empty;
        if idle && !destination.agenda.listed && !self.held(id) && self.may_forget(id) {
            self.timers.cancel(&mut self.destinations.slab, id);
            self.destinations.remove(id);
        }
    }
}

/// The shard that owns a destination, of `shards` (at least 1). A fixed hash (not seeded): the same on every run.
pub fn shard_of(destination: &Domain, shards: usize) -> usize {
    (xxh3_64(destination.as_str().as_bytes()) % shards as u64) as usize
}
