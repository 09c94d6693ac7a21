//! Why mail is not moving: the gates that hold a destination or one entry of it.
//!
//! Owns: [`Gate`] and its makers. Promises: read-only; a gate is named only while it holds, with since
//! when and until when as far as that is known; looking for one entry's place costs a walk of its
//! destination's queues, nothing else does. Must not: change anything.
use std::net::IpAddr;

use super::connection::Connection;
use super::pool::PoolKey;
use super::shard::Shard;
use super::sources::SourceSet;
use super::wheel::NIL;
use super::{DestinationStats, Entry};
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Domain;

/// What holds mail back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// The entry waits for its next attempt.
    Retry,
    /// A rate of messages.
    MessageRate,
    /// A rate of new connections.
    ConnectionRate,
    /// All connections that are allowed are in use.
    Connections,
    /// A limit that the destination shares with others: of its set of MX hosts, their provider, a source
    /// address, or the server.
    SharedLimit,
    /// All connections of the worker that has the mail are in use.
    WorkerConnections,
    /// Suspended, by an operator or for what the receiver answered.
    Suspended,
    /// Its hosts do not answer: it rests, or is probed with one connection.
    HostDown,
    /// It is being sent at this moment.
    InFlight,
    /// Others are before it.
    Turn,
}

impl GateKind {
    /// The word shown and written.
    pub fn as_str(self) -> &'static str {
        match self {
            GateKind::Retry => "retry",
            GateKind::MessageRate => "message-rate",
            GateKind::ConnectionRate => "connection-rate",
            GateKind::Connections => "connections",
            GateKind::SharedLimit => "shared-limit",
            GateKind::WorkerConnections => "worker-connections",
            GateKind::Suspended => "suspended",
            GateKind::HostDown => "host-down",
            GateKind::InFlight => "in-flight",
            GateKind::Turn => "turn",
        }
    }
}

/// One thing that holds mail back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    pub kind: GateKind,
    pub since: Option<WallTime>,
    pub until: Option<WallTime>,
    /// In words, for a person.
    pub detail: String,
}

/// All that is known of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub stats: DestinationStats,
    pub gates: Vec<Gate>,
}

fn gate(kind: GateKind, detail: String) -> Gate {
    Gate { kind, since: None, until: None, detail }
}

impl Shard {
    /// The gates that hold the destination as a whole. None if the shard knows nothing of it: it has no
    /// mail, no connection and no history that matters.
    pub fn explain(&self, destination: &Domain) -> Option<Explanation> {
        let id = self.destinations.find(destination)?;
        Some(Explanation { stats: self.describe(id as usize), gates: self.gates(id) })
    }

    /// The gates that hold one entry: its own, then those of its destination. Empty: the shard does not
    /// have it.
    pub fn explain_entry(&self, destination: &Domain, entry: Entry) -> Vec<Gate> {
        let Some(id) = self.destinations.find(destination) else { return Vec::new() };
        if let Some(record) = self.destinations.slab[id as usize].deferred.find(&self.entries, entry) {
            let record = &self.entries[record];
            let attempts = match record.attempts() {
                1 => "1 attempt".to_owned(),
                n => format!("{n} attempts"),
            };
            let until = Some(WallTime::from_secs(record.due.into()));
            let mut gates = vec![Gate { until, ..gate(GateKind::Retry, format!("after {attempts}")) }];
            gates.extend(self.gates(id).into_iter().filter(|g| g.kind == GateKind::Suspended));
            return gates;
        }
        for lane in self.destinations.lanes_of(id) {
            let lane = &self.destinations.lanes[lane as usize];
            if let Some(before) = lane.ready.heads().find_map(|head| self.entries.position(head, entry)) {
                let turn = match before {
                    0 => "the next of its stream".to_owned(),
                    n => format!("{n} of its stream before it"),
                };
                let mut gates = self.gates(id);
                gates.push(gate(GateKind::Turn, format!("{turn}, of {} ready", lane.ready.len)));
                return gates;
            }
        }
        let held = self.connections.slab.iter().any(|(_, conn)| {
            self.destinations.lanes[conn.lane as usize].destination == id
                && self.entries.position(conn.in_flight, entry).is_some()
        });
        if held { vec![gate(GateKind::InFlight, "a connection has it".into())] } else { Vec::new() }
    }

    fn gates(&self, id: u32) -> Vec<Gate> {
        let destination = &self.destinations.slab[id as usize];
        let mut gates = Vec::new();
        self.throttle_gates(id, &mut gates);
        if destination.failures > 0 {
            let until = self.held(id).then(|| WallTime::from_secs(destination.hold_until.into()));
            let detail = match destination.failures {
                1 => "the last connection failed".to_owned(),
                n => format!("the last {n} connections failed"),
            };
            let detail = if until.is_some() { detail } else { format!("{detail}; it is probed with one") };
            gates.push(Gate { until, ..gate(GateKind::HostDown, detail) });
        } else if self.held(id) {
            let until = Some(WallTime::from_secs(destination.hold_until.into()));
            let detail = "a pause after a connection that failed or could not be tried".into();
            gates.push(Gate { until, ..gate(GateKind::HostDown, detail) });
        }
        let slots = self.slots(id);
        if destination.ready > 0 && destination.used >= slots && !self.held(id) {
            let ordered = self.policy(id).limits.connections.max(1);
            let mut detail = format!("{} of {slots} in use", destination.used);
            if destination.failures == 0 && slots < ordered {
                detail += &format!("; its receiver refuses more, {ordered} are configured");
            }
            gates.push(gate(GateKind::Connections, detail));
        }
        let full = |lane: u32| {
            let lane = &self.destinations.lanes[lane as usize];
            lane.ready.len > 0 && self.home_full(lane.home)
        };
        if self.destinations.lanes_of(id).any(full) {
            let detail = format!("{} in use", self.connections_per_home);
            gates.push(gate(GateKind::WorkerConnections, detail));
        }
        gates
    }

    fn describe_pool(&self, key: PoolKey) -> String {
        let name = match key {
            PoolKey::Site { .. } => "its set of MX hosts".to_owned(),
            PoolKey::Provider(n) => {
                let known = self.policies.providers.get(usize::from(n));
                format!("provider {}", known.map_or("", |provider| &provider.name))
            }
            PoolKey::Stream(n) => {
                let known = self.policies.streams.get(usize::from(n));
                format!("stream {}", known.map_or("", |stream| &stream.name))
            }
            PoolKey::Sources(set) => return self.describe_sources(set),
            PoolKey::Source(source) => format!("source {source}"),
            PoolKey::Server => "the server".to_owned(),
        };
        let limits = key.limits(&self.policies);
        let connections =
            (limits.connections < u32::MAX).then(|| format!("connections {}", limits.connections));
        let connection_rate = limits.connection_rate.map(|rate| format!("connection-rate {rate}"));
        let message_rate = limits.message_rate.map(|rate| format!("message-rate {rate}"));
        let allowed: Vec<String> =
            [connections, connection_rate, message_rate].into_iter().flatten().collect();
        let use_of = self.pools.describe(key).map(|(used, waiting)| format!("{used} in use, {waiting} wait"));
        let parts: Vec<String> =
            [allowed.join(", ")].into_iter().filter(|p| !p.is_empty()).chain(use_of).collect();
        if parts.is_empty() { name } else { format!("{name} ({})", parts.join("; ")) }
    }

    /// The addresses of a set, each with its own use.
    fn describe_sources(&self, set: SourceSet) -> String {
        let of = |source: &IpAddr| self.describe_pool(PoolKey::Source(*source));
        let members = self.policies.sources.members(set);
        let all: Vec<String> = members.iter().take(limits::SOURCES_SHOWN).map(of).collect();
        let more = members.len() - all.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("any of {}{more}", all.join(", "))
    }

    fn throttle_gates(&self, id: u32, gates: &mut Vec<Gate>) {
        let destination = &self.destinations.slab[id as usize];
        if destination.throttle == NIL {
            return;
        }
        let throttle = &self.throttles.slab[destination.throttle as usize];
        if let Some(suspended) = throttle.suspended {
            gates.push(Gate {
                kind: GateKind::Suspended,
                since: Some(suspended.since),
                until: suspended.until,
                detail: String::new(),
            });
        }
        for keys in throttle.shared.iter().filter_map(|shared| shared.waits_for.as_ref()) {
            let of: Vec<String> = keys.iter().map(|key| self.describe_pool(*key)).collect();
            gates.push(gate(GateKind::SharedLimit, format!("waits for a connection: {}", of.join(", "))));
        }
        let asks =
            |conn: &Connection| conn.asked && self.destinations.lanes[conn.lane as usize].destination == id;
        if let Some((_, conn)) = self.connections.slab.iter().find(|(_, conn)| asks(conn)) {
            let keys = conn.permit.iter().flat_map(|keys| keys.iter());
            let metered = keys.filter(|key| key.limits(&self.policies).message_rate.is_some());
            let of: Vec<String> = metered.map(|key| self.describe_pool(*key)).collect();
            gates.push(gate(GateKind::SharedLimit, format!("waits for a message: {}", of.join(", "))));
        }
        if let Some(adaptive) = &throttle.adaptive
            && destination.ready > 0
        {
            let until = adaptive.pace.map_or(WallTime(0), |pace| adaptive.sent.ready_at(pace));
            let until = until.max(adaptive.pause_until);
            if until > self.now {
                let detail = match adaptive.rate {
                    Some(rate) => format!("{:.0}/h, found by what the receiver refuses", rate * 3600.0),
                    None => "a pause after the receiver refused".to_owned(),
                };
                let since = Some(adaptive.changed);
                gates.push(Gate { since, until: Some(until), ..gate(GateKind::MessageRate, detail) });
            }
        }
        let ordered = self.policy(id).limits;
        let rates = [
            (GateKind::MessageRate, throttle.message_pace, throttle.messages, ordered.message_rate),
            (
                GateKind::ConnectionRate,
                throttle.connection_pace,
                throttle.connections,
                ordered.connection_rate,
            ),
        ];
        for (kind, pace, clocked, rate) in rates {
            let (Some(pace), true) = (pace, destination.ready > 0) else { continue };
            let until = clocked.ready_at(pace);
            if until > self.now {
                let detail = rate.map_or_else(String::new, |rate| rate.to_string());
                gates.push(Gate { until: Some(until), ..gate(kind, detail) });
            }
        }
    }
}
