//! The worker thread: ties sessions, spool, scheduler and deliveries together on one ring.
//!
//! Owns: [`Worker`], all that one thread has: the sessions it accepted, its homes (logs), its shard of
//! the scheduler and its outbound connections. Promises: nothing here is shared between threads but
//! [`Shared`], which is read-only; a worker never blocks on another. Must not: be entered from another
//! thread except through its mailbox.
//!
//! `arrival` → `inbound` → `incoming` → `home` → `shards` → `outbound` → `outcome` → `home` is the way of a message.
mod arrival;
mod cache;
mod counters;
mod dial;
mod doors;
mod failing;
mod fate;
mod fragments;
mod gate;
mod handle;
mod home;
mod inbound;
mod incoming;
mod inject;
mod limiter;
mod link;
mod live;
mod login;
mod look;
mod memory;
mod message;
mod operate;
mod outbound;
mod outcome;
mod parked;
mod patience;
mod policies;
mod post;
mod providers;
mod quarantine;
mod report;
mod shards;
mod signal;
pub mod spool_dir;
mod start;
mod streams;
mod suspensions;
mod thread;
mod time;
mod user;
mod wire;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use doors::{check_user_line, inspect as inspect_doors};
pub use live::Reread;
pub use start::serve;

use arc_swap::ArcSwap;

use self::counters::Counters;
use self::doors::Doors;
use self::fragments::Fragments;
use self::gate::Gate;
use self::home::Home;
use self::live::Live;
use self::operate::Taken;
use self::outbound::Connection;
use self::post::{Batch, Outboxes, Post, ShardEvent};
use self::providers::Providers;
use self::signal::{Broadcast, Signal};
use self::streams::Streams;
use self::time::Clock;
use crate::auth::Checkers;
use crate::clock::{Rng, WallTime};
use crate::config::{Config, Source};
use crate::events::EventSender;
use crate::limits;
use crate::mail::address::Domain;
use crate::mail::envelope::Envelope;
use crate::resolve::Resolver;
use crate::ring::{self, Arena, Listener, Mailbox, Stream};
use crate::schedule::{Action, Entry, Policies, Shard, Waiting, shard_of};
use crate::smtp::server::Room;
use crate::spool::{Mark, RecipientState, RecoveredMessage, Refusal, Slot, SpoolIdentity};
use crate::tls::ClientTls;

/// Most recipients of one transaction with a domain.
pub type PartLimit = Arc<dyn Fn(&Domain) -> usize + Send + Sync>;

/// What all workers read and none writes.
pub struct Shared {
    pub config: Config,
    /// Certificates and users; exchanged by a reload.
    pub doors: ArcSwap<Doors>,
    pub checkers: Checkers,
    /// Of the spool: what is made up for unknown users depends on it.
    pub identity: SpoolIdentity,
    pub resolver: Resolver,
    pub tls: ClientTls,
    pub events: EventSender,
    pub gate: Arc<Gate>,
    pub own_names: Vec<Domain>,
    pub own_addresses: Vec<IpAddr>,
    pub policies: Arc<Policies>,
    /// Who runs the mail of which destination.
    pub providers: Arc<Providers>,
    pub streams: Streams,
    /// Most recipients of one transaction with a domain. Fixed while the server runs: it says which
    /// recipients a part has.
    pub part_limit: PartLimit,
    /// Worker of each home.
    pub home_owners: Vec<usize>,
}

impl Shared {
    pub fn owner_of_home(&self, home: u8) -> usize {
        self.home_owners[usize::from(home)]
    }
    pub fn may_relay(&self, client: IpAddr) -> bool {
        self.config.relay_from.iter().any(|net| net.contains(client))
    }
}

pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    /// What a reload may change.
    live: RefCell<Rc<Live>>,
    pub clock: Clock,
    pub counters: Rc<Counters>,
    /// By home index; `None` for those of other workers. The first of its own takes new mail.
    homes: Vec<Option<Rc<Home>>>,
    shard: RefCell<Shard>,
    pub outboxes: Outboxes,
    /// Posts of this worker to itself and from others, in the order they are to be worked off.
    local: RefCell<VecDeque<Post>>,
    running_local: Cell<bool>,
    actions: RefCell<Vec<Action>>,
    /// What shards have given up for an operator's order, by its tag.
    taken: RefCell<HashMap<u32, Vec<Taken>>>,
    /// What of it the order does not select: it is queued again at the end.
    spared: RefCell<HashMap<u32, Vec<Taken>>>,
    /// Raised when the shard's next timer has moved forward.
    timer: Signal,
    timer_at: Cell<Option<WallTime>>,
    sessions: RefCell<slab::Slab<Stream>>,
    /// Raised when a session or an outbound connection has ended.
    session_gone: Signal,
    listeners: RefCell<Vec<Listener>>,
    /// `--memory-limit` is reached and nothing is left to give back.
    memory_short: Cell<bool>,
    /// Looks in a row that found the memory full and nothing to give back.
    memory_full: Cell<u32>,
    draining: Cell<bool>,
    drain: Broadcast,
    stop: Signal,
    fragments: Rc<Fragments>,
    /// Where small bodies lie until they are delivered.
    bodies: Arena,
    /// For trace headers; empty between uses but for its room.
    scratch: RefCell<Vec<u8>>,
    sources_used: Cell<usize>,
    rng: RefCell<Rng>,
}

impl Worker {
    fn home(&self, index: u8) -> &Rc<Home> {
        self.homes[usize::from(index)].as_ref().expect("posts for a home go to its owner")
    }

    /// The homes of this worker.
    fn own_homes(&self) -> impl Iterator<Item = &Rc<Home>> {
        self.homes.iter().flatten()
    }

    /// The home that takes new mail.
    fn inbox(&self) -> &Rc<Home> {
        self.own_homes().next().expect("every worker has a log")
    }

    /// What a transaction may expect that begins now.
    fn room_for_mail(&self) -> Room {
        match self.inbox().room_for_mail() {
            _ if self.memory_short.get() => Room::Short,
            Ok(bytes) => Room::Bytes(bytes),
            Err(Refusal::Unwritable) => Room::Unwritable,
            Err(Refusal::NoRoom | Refusal::Busy) => Room::Short,
        }
    }

    /// Queues all parts of a new message.
    fn enqueue(self: &Rc<Self>, home: &Rc<Home>, slot: Slot, envelope: &Envelope) {
        let stream = self.shared.streams.of(envelope);
        for (part, (destination, range)) in envelope.parts(&*self.shared.part_limit).enumerate() {
            let recipients = range.len() as u16;
            let told = !envelope.recipients[range].iter().any(|r| report::may_tell_of_delay(envelope, r));
            let (received_at, due) = (envelope.received_at, envelope.received_at);
            let waiting = Waiting { recipients, attempts: 0, told, stream, received_at, due };
            let entry = Entry { home: home.config.index, slot, part: part as u16 };
            self.queue_part(destination, entry, waiting);
        }
    }

    /// Queues what recovery found unfinished of a message, or keeps it as an operator has decided.
    fn requeue(self: &Rc<Self>, home: &Rc<Home>, message: &RecoveredMessage) {
        let RecoveredMessage { slot, id, ref envelope, ref states } = *message;
        // A clock that ran ahead when this was written must not hold the mail until it is that late again.
        let now = self.clock.now();
        let longest = self.live().longest_retry;
        let latest = now.saturating_add(longest + longest / 100 * limits::RETRY_JITTER_PERCENT.into());
        let received_at = envelope.received_at.min(now);
        let stream = self.shared.streams.of(envelope);
        for (part, (own, range)) in envelope.parts(&*self.shared.part_limit).enumerate() {
            let (mut waiting, mut held, mut failing) =
                (Waiting { received_at, stream, told: true, ..Waiting::default() }, false, Vec::new());
            let mut destination = own.clone();
            for recipient in range {
                let RecipientState::Pending { tries, next } = states[recipient] else { continue };
                let log = home.log();
                let standing = log.live().standing(slot, recipient as u16);
                if standing.is_some_and(|s| s.mark == Mark::Failing) {
                    failing.push(recipient as u16);
                    continue;
                }
                waiting.recipients += 1;
                let due = next.min(latest);
                (waiting.attempts, waiting.due) =
                    (waiting.attempts, waiting.due).max((tries.attempts(), due));
                let to = &envelope.recipients[recipient];
                waiting.told &= tries.is_told() || !report::may_tell_of_delay(envelope, to);
                held |= standing.is_some_and(|s| s.mark == Mark::Held);
                if let Some(moved) = standing.and_then(|s| s.destination.as_ref()) {
                    destination = moved.clone();
                }
            }
            if !failing.is_empty() {
                home.fail_later(slot, id, failing);
            }
            if waiting.recipients == 0 {
                continue;
            }
            if held {
                home.parked.borrow_mut().add(&destination, (slot, part as u16), waiting);
            } else {
                let entry = Entry { home: home.config.index, slot, part: part as u16 };
                self.queue_part(&destination, entry, waiting);
            }
        }
    }

    /// Queues a delivery, a new one or again.
    pub fn queue_part(self: &Rc<Self>, destination: &Domain, entry: Entry, waiting: Waiting) {
        let shard = shard_of(destination, self.shared.config.workers);
        let destination = destination.clone();
        self.tell_shard(shard, ShardEvent::Enqueue { destination, entry, waiting });
    }

    /// Whether one more outbound connection fits.
    fn may_connect(&self) -> bool {
        (self.counters.outbound_open.get() as usize) < limits::OUTBOUND_CONNECTIONS_PER_WORKER
    }

    /// What is in force now; a reload may change it at any await.
    fn live(&self) -> Rc<Live> {
        self.live.borrow().clone()
    }

    /// How old undelivered mail for a destination may become.
    fn max_age(&self, destination: &Domain) -> Duration {
        let live = self.live();
        live.policies.get(live.policies.of(destination)).max_age
    }

    /// Which of these local addresses has its turn; none of none.
    fn next_source<'a>(&self, from: &'a [Source]) -> Option<&'a Source> {
        let turn = self.sources_used.get();
        self.sources_used.set(turn.wrapping_add(1));
        from.get(turn % from.len().max(1))
    }

    /// Ends when a drain begins.
    async fn drain_begins(&self) {
        if !self.draining.get() {
            self.drain.wait().await;
        }
    }

    /// Stops accepting; sessions and connections finish what they are at.
    fn begin_drain(self: &Rc<Self>) {
        if self.draining.replace(true) {
            return;
        }
        for listener in self.listeners.take() {
            listener.close();
        }
        for (_, stream) in self.sessions.borrow().iter() {
            stream.interrupt();
        }
        for home in self.own_homes() {
            let connections: Vec<Rc<Connection>> = home.connections.borrow().values().cloned().collect();
            for connection in connections {
                connection.drain();
            }
        }
        self.drain.raise();
        self.session_gone.raise();
    }

    /// Whether a drain has nothing left to wait for.
    fn is_quiet(&self) -> bool {
        self.sessions.borrow().is_empty()
            && self.own_homes().all(|h| h.connections.borrow().is_empty() && h.is_quiet())
    }

    /// The task that spreads the news of a failed write to every other log of the spool.
    async fn run_faults(self: Rc<Self>, home: Rc<Home>) {
        loop {
            home.fault.wait().await;
            for other in self.own_homes().filter(|h| !Rc::ptr_eq(h, &home)) {
                other.distrust_commits();
            }
            for worker in (0..self.shared.config.workers).filter(|&w| w != self.index) {
                self.outboxes.push(worker, Post::Fault);
            }
        }
    }

    /// The task that takes posts from other threads.
    async fn run_mailbox(self: Rc<Self>, mut mailbox: Mailbox<Batch>) {
        while let Some(batch) = mailbox.recv().await {
            for post in batch {
                self.receive(post);
            }
        }
    }

    /// The task that hands over what waits for other workers, once per turn.
    async fn run_outboxes(self: Rc<Self>) {
        loop {
            self.outboxes.flush.wait().await;
            ring::yield_turn().await;
            while !self.outboxes.flush_now() {
                ring::sleep(limits::MAILBOX_RETRY_WAIT).await;
            }
        }
    }
}
