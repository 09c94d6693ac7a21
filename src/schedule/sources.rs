//! Local addresses: their limits, and who of those that ask gets which.
//!
//! Owns: [`Sources`], the addresses of the configuration and the sets of them that destinations may use;
//! the granting of a place at one address of a set. Promises: within a set the addresses take turns, one
//! that has no place free being passed over, so that nobody waits while any address of his set has one;
//! who waits for a set is served first come, first served, sets that share addresses in turn; all of it is
//! counted at one shard. Must not: bind anything.
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use xxhash_rust::xxh3::xxh3_64;

use super::Action;
use super::pace::Pace;
use super::policy::{Limits, Policies};
use super::pool::{PoolKey, Pools, Request};
use crate::clock::WallTime;

/// A set of local addresses, by a number that its addresses make: the same whichever configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceSet(u64);

/// The local addresses of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    limits: HashMap<IpAddr, Limits, foldhash::fast::RandomState>,
    sets: HashMap<SourceSet, Arc<[IpAddr]>, foldhash::fast::RandomState>,
}

impl Sources {
    /// What an address may do.
    pub fn limit(&mut self, address: IpAddr, limits: Limits) {
        self.limits.insert(address, limits);
    }

    /// A set that destinations may use, in the order of its turns.
    pub fn add(&mut self, addresses: &[IpAddr]) {
        self.sets.insert(SourceSet::of(addresses), addresses.into());
    }

    pub(super) fn limits_of(&self, address: IpAddr) -> Limits {
        self.limits.get(&address).copied().unwrap_or_default()
    }

    /// None for a set that is not in the configuration any more.
    pub(super) fn members(&self, set: SourceSet) -> &[IpAddr] {
        self.sets.get(&set).map_or(&[], |members| members)
    }
}

impl SourceSet {
    /// The name of the set of these addresses.
    pub fn of(addresses: &[IpAddr]) -> SourceSet {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        SourceSet(xxh3_64(texts.join(" ").as_bytes()))
    }
}

/// Sets that somebody waits for, in the order of their turns, and the addresses that are the cause.
#[derive(Debug, Default)]
pub(super) struct WaitingSets {
    turn: std::collections::VecDeque<SourceSet>,
    full: HashSet<IpAddr, foldhash::fast::RandomState>,
}

impl WaitingSets {
    /// Somebody waits for the set.
    pub(super) fn add(&mut self, set: SourceSet) {
        if !self.turn.contains(&set) {
            self.turn.push_back(set);
        }
    }
}

impl Pools {
    /// Grants places at addresses to those who wait for sets that have one. O(addresses of the sets that
    /// somebody waits for), which the configuration bounds, for each grant.
    pub(super) fn pump_sources(&mut self, policies: &Policies, now: WallTime, actions: &mut Vec<Action>) {
        let mut granted = Vec::new();
        let mut tries = self.sets.turn.len();
        while tries > 0
            && let Some(set) = self.sets.turn.pop_front()
        {
            tries -= 1;
            let source = self.next_source(policies, now, set);
            let known = !policies.sources.members(set).is_empty();
            // A set that is no longer configured has no address to give; who waits for it asks anew.
            if known && source.is_none() {
                self.sets.turn.push_back(set);
                continue;
            }
            let waiting = &mut self.pool(PoolKey::Sources(set)).waiting;
            let Some(request) = waiting.pop_front() else { continue };
            if !waiting.is_empty() {
                self.sets.turn.push_back(set);
            }
            if let Some(source) = source {
                self.take_source(policies, now, source);
            }
            granted.push((request, source));
            tries = self.sets.turn.len();
        }
        self.wake_sets(policies, now);
        self.tell_full(policies, actions);
        for (request, source) in granted {
            self.pass_on(request.at_source(source), actions);
        }
    }

    /// The next address of the set that has a place free.
    fn next_source(&mut self, policies: &Policies, now: WallTime, set: SourceSet) -> Option<IpAddr> {
        let members = policies.sources.members(set);
        let turn = self.pool(PoolKey::Sources(set)).turn as usize;
        let free = |nth: &usize| self.source_ready(policies, members[*nth]).is_some_and(|at| at <= now);
        let nth = (0..members.len()).map(|n| (turn + n) % members.len()).find(free)?;
        self.pool(PoolKey::Sources(set)).turn = nth as u32 + 1;
        Some(members[nth])
    }

    /// When the address may have one connection more; None: when another one closes.
    fn source_ready(&self, policies: &Policies, source: IpAddr) -> Option<WallTime> {
        let limits = policies.sources.limits_of(source);
        let Some(pool) = self.get(PoolKey::Source(source)) else { return Some(WallTime(0)) };
        let pace = limits.connection_rate.map(Pace::new);
        let at = pace.map_or(WallTime(0), |pace| pool.connections.ready_at(pace));
        let at = at.max(pool.feeds_soon(limits.message_rate));
        (pool.used < limits.connections.max(1)).then_some(at)
    }

    fn take_source(&mut self, policies: &Policies, now: WallTime, source: IpAddr) {
        let rate = policies.sources.limits_of(source).connection_rate;
        let pool = self.pool(PoolKey::Source(source));
        pool.used += 1;
        if let Some(rate) = rate {
            pool.connections.take(Pace::new(rate), now);
        }
    }

    /// Sets that wait for nothing but time are looked at when it has come.
    fn wake_sets(&mut self, policies: &Policies, now: WallTime) {
        for nth in 0..self.sets.turn.len() {
            let set = self.sets.turn[nth];
            let members = policies.sources.members(set).iter();
            let at = members.filter_map(|source| self.source_ready(policies, *source)).min();
            if let Some(at) = at.filter(|at| *at > now && at.0 < u64::MAX) {
                self.wake_at(PoolKey::Sources(set), at);
            }
        }
    }

    /// Says which addresses have all their connections in use while others wait for one.
    fn tell_full(&mut self, policies: &Policies, actions: &mut Vec<Action>) {
        if self.sets.turn.is_empty() && self.sets.full.is_empty() {
            return;
        }
        let waited = self.sets.turn.iter().flat_map(|set| policies.sources.members(*set));
        let full: HashSet<IpAddr, _> =
            waited.filter(|source| self.source_ready(policies, **source).is_none()).copied().collect();
        let before = std::mem::replace(&mut self.sets.full, full);
        let changed: Vec<IpAddr> = before.symmetric_difference(&self.sets.full).copied().collect();
        for source in changed {
            let contended = self.sets.full.contains(&source);
            self.tell_contended(PoolKey::Source(source), contended, actions);
        }
    }
}

impl Request {
    /// The request for any address of a set, with the one that was given; with none, where the set is gone.
    fn at_source(mut self, source: Option<IpAddr>) -> Request {
        let at = usize::from(self.at);
        match source {
            Some(source) => {
                let place = |(nth, key): (usize, &PoolKey)| {
                    if nth == at { PoolKey::Source(source) } else { *key }
                };
                self.keys = self.keys.iter().enumerate().map(place).collect();
                self
            }
            None => {
                let others = self.keys.iter().enumerate().filter(|(nth, _)| *nth != at);
                self.keys = others.map(|(_, key)| *key).collect();
                Request { at: self.at.wrapping_sub(1), ..self }
            }
        }
    }
}
