//! The delivery scheduler: which message goes next, where, and when. Pure.
//!
//! A **shard** owns the destinations (normalised domains) that hash to it: their queues, limits,
//! backoff and timers. It is driven by `handle(now, Event) → Actions`; it has no clock, no I/O and
//! no randomness but the seed it was given. The *home* of a message is the worker whose log holds
//! it; every connection lives at a home and carries only that home's messages, so bodies never cross
//! threads. A destination's connection slots are shared out among the homes that have mail for it.
//!
//! CONTRACT (to be kept by whoever fills this in; split into files: shard.rs, destination.rs, wheel.rs, retry.rs …)
use std::time::Duration;

use crate::clock::WallTime;
use crate::mail::address::Domain;

/// One message's part for one destination: `slot` is the home's name for the message, `part` the
/// index of the destination within it (as `Envelope::destinations` counts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    pub home: u8,
    pub slot: u32,
    pub part: u16,
}

/// A connection, unique in its shard while it lives (generation-checked: stale ones are ignored).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub seed: u64,
    pub homes: u8,
    /// Delays after the first, second, … failed attempt; the last repeats. Jittered by ±`jitter_percent`.
    pub retry_schedule: Vec<Duration>,
    pub jitter_percent: u8,
    pub max_age: Duration,
    pub destination_connections: u32,
    pub messages_per_connection: u32,
    /// Entries a connection may hold at once (`limits::CONNECTION_WINDOW`).
    pub window: usize,
    /// Connections one home may have open in this shard's name.
    pub connections_per_home: usize,
    pub connection_idle: Duration,
}

#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// New or recovered mail. `due` in the past means now. `expires_from` is the acceptance time.
    Enqueue {
        destination: &'a Domain,
        entry: Entry,
        recipients: u16,
        attempts: u8,
        received_at: WallTime,
        due: WallTime,
    },
    /// The connection has greeted and may carry mail; asks for up to `room` entries.
    Want { conn: ConnId, room: u8 },
    /// Every recipient of the part is finished (delivered or failed).
    Finished { conn: ConnId, entry: Entry },
    /// Some recipients are still pending: counts an attempt, schedules the next; answered with
    /// `Action::Deferred` (so the home can log the next time) or `Action::Expired`.
    Deferred { conn: ConnId, entry: Entry, recipients_left: u16 },
    /// Handed out but never attempted (the connection died first): back to the front, no attempt counted.
    Returned { conn: ConnId, entry: Entry },
    /// Connecting, greeting or DNS failed before any mail could be sent. `permanent` (e.g. NXDOMAIN, null MX) is
    /// answered with `Action::Fail` for every queued entry of the destination; otherwise one entry... the
    /// destination backs off and its due entries are deferred (attempt counted) with `Action::Deferred`.
    ConnectFailed { conn: ConnId, permanent: bool },
    /// Could not even try (DNS queue full, local resource): try again shortly, no attempt counted.
    ConnectPutOff { conn: ConnId },
    /// The close is confirmed: the slot is free. Entries it still held were Returned/Deferred/Finished before.
    Closed { conn: ConnId },
    /// The timer asked for by `next_timer` is due (harmless if early).
    Timer,
    /// Operator: make all deferred mail of the destination (or of all) due now.
    Retry { destination: Option<&'a Domain> },
    /// The message was removed, or is held: forget this entry wherever it waits (no-op when in flight).
    Forget { entry: Entry, destination: &'a Domain },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection at `home` for `destination` and report with Want, ConnectFailed or ConnectPutOff.
    Connect { home: u8, conn: ConnId, destination: Domain },
    /// Deliver over this open connection.
    Deliver { home: u8, conn: ConnId, entry: Entry },
    /// No more mail for this connection: QUIT, close, then report Closed.
    Close { home: u8, conn: ConnId },
    /// The attempt counted; next attempt at `next`. `attempts` so far.
    Deferred { entry: Entry, attempts: u8, next: WallTime },
    /// Older than max_age: the home fails the pending recipients (with the last reply it knows).
    Expired { entry: Entry },
    /// The destination cannot take mail, ever (from ConnectFailed permanent).
    Fail { entry: Entry },
}

/// What a shard holds, for metrics and `queue summary`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    pub destinations: u64,
    pub entries: u64,
    pub recipients: u64,
    pub ready: u64,
    pub deferred: u64,
    pub in_flight: u64,
    pub connections: u64,
}

/// One destination, for `queue list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStats {
    pub destination: Domain,
    pub ready: u64,
    pub deferred: u64,
    pub in_flight: u64,
    pub connections: u32,
    /// Earliest next attempt among deferred entries, if nothing is ready.
    pub next: Option<WallTime>,
    /// Set while the destination as a whole backs off.
    pub backoff_until: Option<WallTime>,
}

pub struct Shard {
    _private: (),
}

impl Shard {
    pub fn new(config: ShardConfig) -> Shard {
        let _ = config;
        unimplemented!()
    }
    /// Appends what is to be done to `actions` (never clears it).
    pub fn handle(&mut self, now: WallTime, event: Event<'_>, actions: &mut Vec<Action>) {
        let _ = (now, event, actions);
        unimplemented!()
    }
    /// When `Event::Timer` should come next, if anything waits for time.
    pub fn next_timer(&self) -> Option<WallTime> {
        unimplemented!()
    }
    pub fn stats(&self) -> ShardStats {
        unimplemented!()
    }
    /// Up to `limit` destinations with mail, most entries first.
    pub fn destinations(&self, limit: usize) -> Vec<DestinationStats> {
        let _ = limit;
        unimplemented!()
    }
}

/// The shard that owns a destination. A fixed hash (not seeded): the same on every run.
pub fn shard_of(destination: &Domain, shards: usize) -> usize {
    let _ = (destination, shards);
    unimplemented!()
}
