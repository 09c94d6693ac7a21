//! Limits that many destinations share: of a site, a provider, a source address, the whole server.
//!
//! Owns: [`PoolKey`], the pools this shard keeps for all shards, and what is said between the shards
//! about them. Promises: each pool is counted at one place, so its limits hold exactly whatever shards
//! and workers its destinations are at; a slot is held from the grant until its connection is closed; a
//! message is granted one at a time and sent at once, or given back; who waits is served first come,
//! first served, one connection or message for each request. Must not: know destinations.
//!
//! A request names the pools it needs, the narrowest first, and travels from owner to owner; the last
//! grants it. So a request may hold a place of a narrow pool while it waits for a wide one, never the
//! other way round, and no two can wait for each other.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::pace::{Clocked, Pace};
use super::policy::{COMMON, Limits, Policies, Rate};
use super::sources::{SourceSet, WaitingSets};
use super::{Action, ConnId};
use crate::clock::WallTime;
use crate::limits;

/// What several destinations share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PoolKey {
    /// A set of MX hosts, by a hash of their names, and its provider (0: none known).
    Site { hosts: u64, provider: u16 },
    /// All sites of a provider.
    Provider(u16),
    /// A stream, by its number.
    Stream(u16),
    /// Any address of a set, as it is asked for. What is granted names one of them.
    Sources(SourceSet),
    /// A local address.
    Source(IpAddr),
    /// Everything.
    Server,
}

impl PoolKey {
    /// Whether the test holds for its limits, or those of any address in a set.
    fn any(self, policies: &Policies, test: impl Fn(Limits) -> bool) -> bool {
        match self {
            PoolKey::Sources(set) => {
                policies.sources.members(set).iter().any(|source| test(policies.sources.limits_of(*source)))
            }
            key => test(key.limits(policies)),
        }
    }

    pub(super) fn limits(self, policies: &Policies) -> Limits {
        match self {
            PoolKey::Site { provider, .. } => {
                policies.sites.get(usize::from(provider)).copied().unwrap_or_default()
            }
            PoolKey::Provider(n) => policies.providers.get(usize::from(n)).map_or(Limits::NONE, |p| p.limits),
            PoolKey::Source(source) => policies.sources.limits_of(source),
            PoolKey::Sources(_) => Limits::NONE,
            PoolKey::Stream(n) => policies.streams.get(usize::from(n)).map_or(Limits::NONE, |s| s.limits),
            PoolKey::Server => policies.server,
        }
    }

    /// The shard that counts it.
    fn owner(self, shards: u8) -> u8 {
        let hash = match self {
            PoolKey::Site { hosts, .. } => hosts,
            PoolKey::Provider(n) | PoolKey::Stream(n) => u64::from(n),
            // Sets share addresses, so one shard counts them all.
            PoolKey::Sources(_) | PoolKey::Source(_) | PoolKey::Server => 0,
        };
        (hash % u64::from(shards.max(1))) as u8
    }
}

/// The pools a connection is in, the narrowest first; those without limits are left out.
pub(super) fn keys(
    policies: &Policies,
    (hosts, provider): (Option<u64>, u16),
    sources: Option<SourceSet>,
    stream: u16,
) -> Arc<[PoolKey]> {
    let site = hosts.map(|hosts| PoolKey::Site { hosts, provider });
    let provider = (provider > 0).then_some(PoolKey::Provider(provider));
    let stream = (stream != COMMON).then_some(PoolKey::Stream(stream));
    let all = [site, provider, stream, sources.map(PoolKey::Sources), Some(PoolKey::Server)];
    all.into_iter().flatten().filter(|key| key.any(policies, |limits| !limits.is_none())).collect()
}

/// Whether a permit that names an address is what these keys ask for.
pub(super) fn fits(policies: &Policies, permit: &[PoolKey], keys: &[PoolKey]) -> bool {
    let same = |(held, wanted): (&PoolKey, &PoolKey)| match (held, wanted) {
        (PoolKey::Source(source), PoolKey::Sources(set)) => policies.sources.members(*set).contains(source),
        _ => held == wanted,
    };
    permit.len() == keys.len() && permit.iter().zip(keys).all(same)
}

/// The local address that a permit is for.
pub(super) fn source_of(permit: &[PoolKey]) -> Option<IpAddr> {
    permit.iter().find_map(|key| if let PoolKey::Source(source) = key { Some(*source) } else { None })
}

/// Whether messages over a connection in these pools are granted one by one.
pub(super) fn is_metered(policies: &Policies, keys: &[PoolKey]) -> bool {
    keys.iter().any(|key| key.any(policies, |limits| limits.message_rate.is_some()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Connection,
    Message,
}

/// A request on its way through the pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub(super) shard: u8,
    pub(super) wanted: Wanted,
    pub(super) conn: ConnId,
    /// The destination and the stream of its lanes it is for, and which of that place's lives.
    pub(super) destination: u32,
    pub(super) stream: u16,
    pub(super) serial: u32,
    pub(super) keys: Arc<[PoolKey]>,
    pub(super) at: u8,
}

impl Request {
    pub(super) fn keys(&self) -> &Arc<[PoolKey]> {
        &self.keys
    }
}

/// What shards say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolMessage {
    /// To the owner of the next pool.
    Ask(Request),
    /// To the asker: all pools have granted it.
    Granted(Request),
    /// To the asker: it has to wait.
    Waits(Request),
    /// To the owner: the connection is closed, or the message was not sent.
    Back(PoolKey, Wanted),
    /// To all: others wait for a connection of the pool, or no longer.
    Contended(PoolKey, bool),
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) used: u32,
    pub(super) connections: Clocked,
    messages: Clocked,
    pub(super) waiting: VecDeque<Request>,
    metered: VecDeque<Request>,
    /// Of a set of addresses: whose turn it is.
    pub(super) turn: u32,
    /// It is in the heap of those that wake.
    wakes: bool,
}

impl Pool {
    const EMPTY: Pool = Pool {
        used: 0,
        connections: Clocked::NEW,
        messages: Clocked::NEW,
        waiting: VecDeque::new(),
        metered: VecDeque::new(),
        turn: 0,
        wakes: false,
    };
}

/// When a connection is worth having for a message that is to be sent then.
fn before(at: WallTime) -> WallTime {
    WallTime(at.0.saturating_sub(limits::POOL_LEAD.as_micros() as u64))
}

impl Pool {
    /// From when one more connection would soon have a message to send: not while others wait for theirs as
    /// long as that. Else connections would be made to be closed for having nothing to do.
    pub(super) fn feeds_soon(&self, rate: Option<Rate>) -> WallTime {
        let Some(rate) = rate else { return WallTime(0) };
        let soon = limits::POOL_LEAD.as_secs_f64() / rate.per.as_secs_f64() * f64::from(rate.count);
        if self.metered.len() >= (soon as usize).max(1) {
            return WallTime(u64::MAX);
        }
        before(self.messages.ready_at(Pace::new(rate)))
    }
}

/// The pools this shard keeps.
#[derive(Debug)]
pub(super) struct Pools {
    index: u8,
    shards: u8,
    pools: HashMap<PoolKey, Pool, foldhash::fast::RandomState>,
    pub(super) sets: WaitingSets,
    /// When pools that wait for time are to be looked at.
    wakes: BinaryHeap<Reverse<(WallTime, PoolKey)>>,
    /// Said to this shard itself and not heard yet.
    pub(super) letters: VecDeque<PoolMessage>,
}

impl Pools {
    pub(super) fn new(index: u8, shards: u8) -> Pools {
        Pools {
            index,
            shards,
            pools: HashMap::default(),
            sets: WaitingSets::default(),
            wakes: BinaryHeap::new(),
            letters: VecDeque::new(),
        }
    }

    pub(super) fn get(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.get(&key)
    }

    /// The pool, made if there is none.
    pub(super) fn pool(&mut self, key: PoolKey) -> &mut Pool {
        self.pools.entry(key).or_insert(Pool::EMPTY)
    }

    pub(super) fn next(&self) -> Option<WallTime> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    fn say(&mut self, to: u8, message: PoolMessage, actions: &mut Vec<Action>) {
        if to == self.index {
            self.letters.push_back(message);
        } else {
            actions.push(Action::Tell { shard: to, message });
        }
    }

    pub(super) fn ask(
        &mut self,
        (wanted, conn): (Wanted, ConnId),
        (destination, stream, serial): (u32, u16, u32),
        keys: Arc<[PoolKey]>,
        actions: &mut Vec<Action>,
    ) {
        let to = keys[0].owner(self.shards);
        let request = Request { shard: self.index, wanted, conn, destination, stream, serial, keys, at: 0 };
        self.say(to, PoolMessage::Ask(request), actions);
    }

    pub(super) fn give_back(&mut self, keys: &[PoolKey], wanted: Wanted, actions: &mut Vec<Action>) {
        for key in keys {
            self.say(key.owner(self.shards), PoolMessage::Back(*key, wanted), actions);
        }
    }

    /// A request has come to a pool of this shard.
    pub(super) fn asked(
        &mut self,
        policies: &Policies,
        now: WallTime,
        request: Request,
        actions: &mut Vec<Action>,
    ) {
        let key = request.keys[usize::from(request.at)];
        if let PoolKey::Sources(set) = key {
            self.sets.add(set);
        }
        let pool = self.pool(key);
        let queue = match request.wanted {
            Wanted::Connection => &mut pool.waiting,
            Wanted::Message => &mut pool.metered,
        };
        queue.push_back(request.clone());
        let first = queue.len() == 1;
        self.pump(policies, now, key, actions);
        let message = request.wanted == Wanted::Message;
        let queue = |p: &Pool| if message { p.metered.back().cloned() } else { p.waiting.back().cloned() };
        let waits = self.pools.get(&key).and_then(queue).as_ref() == Some(&request);
        if waits {
            self.say(request.shard, PoolMessage::Waits(request), actions);
            if first && !message && !matches!(key, PoolKey::Sources(_)) {
                self.tell_contended(key, true, actions);
            }
        }
    }

    pub(super) fn came_back(
        &mut self,
        policies: &Policies,
        now: WallTime,
        (key, wanted): (PoolKey, Wanted),
        actions: &mut Vec<Action>,
    ) {
        let Some(pool) = self.pools.get_mut(&key) else { return };
        match wanted {
            Wanted::Connection => pool.used = pool.used.saturating_sub(1),
            Wanted::Message => {
                if let Some(rate) = key.limits(policies).message_rate {
                    pool.messages.give_back(Pace::new(rate));
                }
            }
        }
        self.pump(policies, now, key, actions);
    }

    /// Other limits are in force: what they allow is granted, what is no longer configured forgotten.
    pub(super) fn revise(&mut self, policies: &Policies, now: WallTime, actions: &mut Vec<Action>) {
        let keys: Vec<PoolKey> = self.pools.keys().copied().collect();
        keys.into_iter().for_each(|key| self.pump(policies, now, key, actions));
        self.pump_sources(policies, now, actions);
        self.pools.retain(|key, pool| match key {
            PoolKey::Sources(set) => !pool.waiting.is_empty() || !policies.sources.members(*set).is_empty(),
            _ => true,
        });
    }

    /// The pools whose time has come.
    pub(super) fn wake(&mut self, policies: &Policies, now: WallTime, actions: &mut Vec<Action>) {
        while let Some(Reverse((at, key))) = self.wakes.peek().copied()
            && at <= now
        {
            self.wakes.pop();
            if let Some(pool) = self.pools.get_mut(&key) {
                pool.wakes = false;
            }
            self.pump(policies, now, key, actions);
        }
    }

    /// Grants what the pool has to give, in the order it was asked for; what is left wakes in time.
    fn pump(&mut self, policies: &Policies, now: WallTime, key: PoolKey, actions: &mut Vec<Action>) {
        if let PoolKey::Sources(_) = key {
            return self.pump_sources(policies, now, actions);
        }
        let limits = key.limits(policies);
        let connection_pace = limits.connection_rate.map(Pace::new);
        let message_pace = limits.message_rate.map(Pace::new);
        let Some(pool) = self.pools.get_mut(&key) else { return };
        let (waited, mut granted) = (!pool.waiting.is_empty(), Vec::new());
        while !pool.metered.is_empty() && message_pace.is_none_or(|pace| pool.messages.is_ready(pace, now)) {
            if let Some(pace) = message_pace {
                pool.messages.take(pace, now);
            }
            granted.extend(pool.metered.pop_front());
        }
        while !pool.waiting.is_empty()
            && pool.used < limits.connections.max(1)
            && connection_pace.is_none_or(|pace| pool.connections.is_ready(pace, now))
            && pool.feeds_soon(limits.message_rate) <= now
        {
            pool.used += 1;
            if let Some(pace) = connection_pace {
                pool.connections.take(pace, now);
            }
            granted.extend(pool.waiting.pop_front());
        }
        let relaxed = waited && pool.waiting.is_empty();
        self.set_wake(now, key, connection_pace, message_pace);
        for request in granted {
            self.pass_on(request, actions);
        }
        if relaxed {
            self.tell_contended(key, false, actions);
        }
        if matches!(key, PoolKey::Source(_)) {
            self.pump_sources(policies, now, actions);
        }
    }

    /// Puts the pool among those that wake if it waits for time; forgets one that nothing depends on.
    fn set_wake(&mut self, now: WallTime, key: PoolKey, connection: Option<Pace>, message: Option<Pace>) {
        let Some(pool) = self.pools.get_mut(&key) else { return };
        let ready = |clocked: Clocked, pace: Option<Pace>| pace.map(|pace| clocked.ready_at(pace));
        let idle = pool.used == 0 && pool.waiting.is_empty() && pool.metered.is_empty();
        let at = if idle {
            let rested = pool.connections.rested_at().max(pool.messages.rested_at());
            if rested <= now {
                self.pools.remove(&key);
                return;
            }
            Some(rested)
        } else {
            let fed = |rate: Option<Pace>| rate.map(|pace| before(pool.messages.ready_at(pace)));
            let slot = ready(pool.connections, connection).max(fed(message));
            let slot = slot.filter(|_| !pool.waiting.is_empty());
            let mail = if pool.metered.is_empty() { None } else { ready(pool.messages, message) };
            slot.into_iter().chain(mail).filter(|at| *at > now).min()
        };
        if let Some(at) = at {
            self.wake_at(key, at);
        }
    }

    /// The pool is looked at then, unless it is to be before that anyway.
    pub(super) fn wake_at(&mut self, key: PoolKey, at: WallTime) {
        if let Some(pool) = self.pools.get_mut(&key)
            && !std::mem::replace(&mut pool.wakes, true)
        {
            self.wakes.push(Reverse((at, key)));
        }
    }

    /// To the next pool, or back to who asked.
    pub(super) fn pass_on(&mut self, mut request: Request, actions: &mut Vec<Action>) {
        request.at = request.at.wrapping_add(1);
        match request.keys.get(usize::from(request.at)) {
            Some(key) => {
                let to = key.owner(self.shards);
                self.say(to, PoolMessage::Ask(request), actions);
            }
            None => self.say(request.shard, PoolMessage::Granted(request), actions),
        }
    }

    pub(super) fn tell_contended(&mut self, key: PoolKey, contended: bool, actions: &mut Vec<Action>) {
        for shard in 0..self.shards.max(1) {
            self.say(shard, PoolMessage::Contended(key, contended), actions);
        }
    }

    /// What a pool of this shard holds, for `why`: connections in use and requests that wait.
    pub(super) fn describe(&self, key: PoolKey) -> Option<(u32, usize)> {
        self.pools.get(&key).map(|pool| (pool.used, pool.waiting.len() + pool.metered.len()))
    }
}
