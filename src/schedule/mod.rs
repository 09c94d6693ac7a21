//! The delivery scheduler: which message goes next, where, and when. Pure.
//!
//! A **shard** owns the destinations (normalised domains) that hash to it: their queues, limits,
//! backoff and timers. It is driven by [`Shard::handle`]; it has no clock, no I/O and no randomness
//! but the seed it was given: the same seed and the same events give the same actions. The *home* of
//! a message is the worker whose log holds it; every connection lives at a home and carries only
//! that home's messages, so bodies never cross threads. A destination's connection slots are shared
//! out among the homes that have mail for it.
//!
//! Promises:
//! - Every event costs O(1) amortised, whatever the backlog and the number of destinations; work
//!   that concerns many entries is done in batches ([`limits::SCHEDULE_BATCH`](crate::limits)), the
//!   rest when the timer comes, which [`Shard::next_timer`] then wants at once. What is walked is the
//!   homes that have mail for one destination; and, rarely, the queue of one destination
//!   ([`Event::Take`]) or the table of them ([`Shard::destinations`]).
//! - An entry is 24 bytes; every entry is ready, deferred or held by exactly one connection.
//! - A destination never has more than `destination_connections` slots in use, a home never more
//!   than `connections_per_home`, each counted from Connect until Closed.
//! - Mail of one stream for one destination at one home goes out first in, first out; streams share
//!   by weight, urgent ones go first (see `ready`).
//! - Who has mail and no connection waits at most until one of the connections it competes with asks
//!   for mail: at once if that one has a sibling or nothing to do, after `limits::CONNECTION_TURN`
//!   messages if it is its home's only one. They are served in the order in which they began to wait
//!   (see `slots`).
//! - `max_age` holds in every state: a deferred entry expires to the second, one that is about to be
//!   handed out is checked, and ready ones that wait behind limits or a backoff are looked over at
//!   the earliest expiry among them, at most `limits::EXPIRY_SWEEPS` times per `max_age`.
//!
//! Time is wall time, because it is written to the log; a clock that steps back stands still here
//! until it has caught up. Waits are counted in whole seconds, rounded up.
//!
//! Files: `shard` takes the events in, `delivery` hands out mail and takes outcomes, `slots` shares
//! out connections, `agenda` does the work in batches; beneath them `destination`, `connection`,
//! `entries`, `deferred` hold the tables, and `wheel`, `timers`, `list`, `retry` are their parts.
mod adapt;
mod agenda;
mod connection;
mod deferred;
mod delivery;
mod destination;
mod ending;
mod entries;
mod explain;
mod list;
mod pace;
mod policy;
mod pool;
mod ready;
mod retry;
mod rules;
mod shard;
mod shared;
#[cfg(test)]
mod sim;
mod slots;
mod sources;
mod take;
#[cfg(test)]
mod tests;
mod throttle;
mod timers;
#[cfg(test)]
mod trial;
mod wheel;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::WallTime;
use crate::mail::address::Domain;

pub use explain::{Explanation, Gate, GateKind};
pub use policy::{ByName, Limits, Policies, Policy, PolicyId, ProviderPolicy, Rate, StreamPolicy};
pub use pool::{PoolKey, PoolMessage};
pub use rules::{Reaction, Rule, RuleSet, Verdict};
pub use shard::{Shard, shard_of};
pub use sources::{SourceSet, Sources};
pub use take::{Take, Waiting};

/// A stream of mail (a tenant, a campaign) as the scheduler knows it: the caller gives names numbers. One
/// bit of it says whether the mail is urgent (transactional) and goes before what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u16);

impl StreamId {
    /// Numbers are below this.
    pub const NUMBERS: u16 = 1 << 15;

    /// An ordinary stream.
    pub fn new(number: u16) -> StreamId {
        StreamId(number % StreamId::NUMBERS)
    }
    /// The urgent mail of a stream.
    pub fn urgent(number: u16) -> StreamId {
        StreamId((number % StreamId::NUMBERS) | StreamId::NUMBERS)
    }
    pub fn number(self) -> u16 {
        self.0 % StreamId::NUMBERS
    }
    pub fn is_urgent(self) -> bool {
        self.0 >= StreamId::NUMBERS
    }
}

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
    /// This shard and how many there are: they share the counting of what destinations share.
    pub index: u8,
    pub shards: u8,
    /// Spread of retry times around the schedule of a policy.
    pub jitter_percent: u8,
    pub policies: Arc<Policies>,
    /// Entries a connection may hold at once (`limits::CONNECTION_WINDOW`).
    pub window: usize,
    /// Connections one home may have open in this shard's name.
    pub connections_per_home: usize,
    pub connection_idle: Duration,
}

#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// New or recovered mail. `due` in the past means now; `received_at` is the acceptance time, from which
    /// `max_age` counts. `entry.home` is below `ShardConfig::homes`; an entry is enqueued once.
    Enqueue {
        destination: &'a Domain,
        entry: Entry,
        stream: StreamId,
        recipients: u16,
        attempts: u8,
        /// The sender knows that it is late, or is not to be told.
        told: bool,
        received_at: WallTime,
        due: WallTime,
    },
    /// The connection has greeted and may carry mail; asks for up to `room` entries beyond those it holds. The
    /// last request counts: entries handed out are taken off it, a new Want replaces it, a Returned ends it.
    Want { conn: ConnId, room: u8 },
    /// Every recipient of the part is finished (delivered or failed).
    Finished { conn: ConnId, entry: Entry, verdict: Verdict },
    /// Some recipients are still pending: counts an attempt, schedules the next; answered with
    /// `Action::Deferred` (so the home can log the next time) or `Action::Expired`.
    Deferred { conn: ConnId, entry: Entry, recipients_left: u16, verdict: Verdict },
    /// Handed out but never attempted (the connection died first): back to the front, no attempt
    /// counted. The connection gets no more mail unless it asks again. The one handed out last is to be
    /// returned first, so that they keep their order.
    Returned { conn: ConnId, entry: Entry },
    /// Connecting, greeting or DNS failed before any mail could be sent; the connection is gone. `permanent`
    /// (e.g. NXDOMAIN, null MX) is answered with `Action::Fail` for every entry that is queued for the
    /// destination until that is done. Otherwise, if no connection of the destination works, it backs off as
    /// a whole and its ready entries are deferred (attempt counted) with `Action::Deferred`; afterwards it is
    /// probed with one connection until one greets. If some work, no new one is opened for a short time, or,
    /// where the peer says that there are too many, until one more has been earned.
    ConnectFailed { conn: ConnId, permanent: bool, verdict: Verdict },
    /// Could not even try (DNS queue full, local resource); the connection is gone. Tried again shortly, no
    /// attempt counted.
    ConnectPutOff { conn: ConnId },
    /// The close is confirmed: the slot is free. Entries it still held were Returned/Deferred/Finished before;
    /// any that was not counts as Returned.
    Closed { conn: ConnId },
    /// The timer asked for by `next_timer` is due (harmless if early).
    Timer,
    /// Operator: make all deferred mail of the destination (or of all) due now and end its backoff. A
    /// destination that was failing is probed with one connection first.
    Retry { destination: Option<&'a Domain> },
    /// Operator: give up these entries of the destination, each with `Action::Taken`. What a connection has
    /// stays.
    Take { destination: &'a Domain, which: Take<'a>, tag: u32 },
    /// Operator: the destination gets no connection and no mail until `until` (None: until Resume). Its
    /// connections are closed when what they hold is accounted for. Kept while the destination has no
    /// mail. `max_age` goes on.
    Suspend { destination: &'a Domain, until: Option<WallTime> },
    /// Operator: the end of a suspension, its own or one that a reply has caused.
    Resume { destination: &'a Domain },
    /// The hosts of a connection being opened are known: `hosts` names the set of MX hosts (None: a route of
    /// the operator's), `provider` whose they are (0: nobody known), `sources` the local addresses it may use (None: the kernel's choice).
    /// Answered, now or when the pools it is in have answered, with `Action::Proceed` or `Action::Close`; not
    /// a packet is sent to them before.
    Resolved { conn: ConnId, hosts: Option<u64>, provider: u16, sources: Option<SourceSet> },
    /// What another shard has to say (see `Action::Tell`).
    Pool(PoolMessage),
    /// New policies and limits, in force from here on; every destination's policy is found anew.
    Policies(Arc<Policies>),
    /// More is known of the destination: its policy is found anew.
    Learnt { destination: &'a Domain },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection at `home` for `destination`: report its hosts with Resolved, wait for Proceed, then
    /// report with Want, ConnectFailed or ConnectPutOff. A Close may come first; it is answered with Closed.
    /// With a `source`, a place at that local address is kept for it.
    /// It carries mail of `stream` alone; None: of any without limits.
    Connect { home: u8, conn: ConnId, destination: Domain, source: Option<IpAddr>, stream: Option<u16> },
    /// The connection that has been Resolved may be made; with a `source`, from that address.
    Proceed { home: u8, conn: ConnId, source: Option<IpAddr> },
    /// For the shard of that number, as `Event::Pool`.
    Tell { shard: u8, message: PoolMessage },
    /// Deliver over this open connection.
    Deliver { home: u8, conn: ConnId, entry: Entry },
    /// No more mail for this connection: when what it holds is accounted for, QUIT, close, then report Closed.
    Close { home: u8, conn: ConnId },
    /// The attempt counted; next attempt at `next` (or expiry, if that comes first). `attempts` so far.
    Deferred { entry: Entry, attempts: u8, next: WallTime },
    /// Older than max_age: the home fails the pending recipients (with the last reply it knows).
    Expired { entry: Entry },
    /// Older than the policy's `delay_warning` and not delivered; tried until then. The home tells the sender,
    /// and says so when the entry is enqueued again.
    Delayed { entry: Entry, until: WallTime },
    /// The destination cannot take mail, ever (from ConnectFailed permanent).
    Fail { entry: Entry },
    /// Given up to `Event::Take` of that tag: the home answers for it.
    Taken { entry: Entry, tag: u32, waiting: Waiting },
    /// What is asked of the destination has changed by itself, for what it answered. For the record.
    Adapted { destination: Domain, change: Adaptation },
}

/// How the scheduler has changed what it asks of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adaptation {
    /// So many connections, and messages in an hour, at most.
    Limits { connections: u32, per_hour: Option<u64> },
    /// Nothing more until then.
    Suspended { until: WallTime },
    /// Back at the limits that are configured.
    Recovered,
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
    /// To expire or fail, as fast as the server reports it.
    pub ending: u64,
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
