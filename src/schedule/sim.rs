//! The scheduler in simulated time, among homes and peers that misbehave.
//!
//! Owns: a driver as the server has one, peers with latency and failures drawn from a seed, and the
//! checkers: what a receiver would count, what a home's log would say, and whether the shard's tables
//! agree with each other. Promises: one seed gives one trace; a failing run prints its seed. Must not:
//! use anything of the shard's state to decide what happens next.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::connection::State;
use super::tests::Settings;
use super::*;
use crate::clock::Rng;
use crate::limits;

/// How the peers of a destination behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Healthy,
    /// Fails to connect, dies with mail in hand, defers.
    Flaky,
    /// Does not answer in the first hours.
    DownFor(u64),
    /// Never answers.
    Dead,
    /// The domain does not exist.
    Gone,
    /// Greets and hangs up.
    HangsUp,
}

const PEERS: [Peer; 7] = [
    Peer::Healthy,
    Peer::Healthy,
    Peer::Flaky,
    Peer::DownFor(3600 * 3),
    Peer::Dead,
    Peer::Gone,
    Peer::HangsUp,
];

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrive,
    Connected(ConnId),
    Outcome(ConnId),
    Closed(ConnId),
    Operator,
}

#[derive(Debug)]
struct Conn {
    home: u8,
    destination: usize,
    open: bool,
    closing: bool,
    /// An outcome is on its way.
    busy: bool,
    carried: u32,
    held: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Waiting,
    Held(ConnId),
    Done,
}

#[derive(Debug)]
struct Message {
    destination: usize,
    received: u64,
    whereabouts: Whereabouts,
    /// When a connection last gave it back.
    returned: u64,
    /// Handed out once, or enqueued for later: out of the order of arrival.
    out_of_order: bool,
}

impl Message {
    fn new(destination: usize, received: u64, out_of_order: bool) -> Message {
        Message { destination, received, whereabouts: Whereabouts::Waiting, returned: 0, out_of_order }
    }
}

struct World {
    shard: Shard,
    config: Settings,
    rng: Rng,
    now: u64,
    serial: u64,
    happenings: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    names: Vec<Domain>,
    peers: Vec<Peer>,
    conns: BTreeMap<ConnId, Conn>,
    messages: BTreeMap<Entry, Message>,
    /// Connections as the receiver counts them.
    at_destination: Vec<u32>,
    at_home: Vec<usize>,
    /// What the shard has given up and gets again.
    taken: Vec<(Entry, Waiting)>,
    /// Slot of the last entry handed out in order, by destination, home and stream.
    last: BTreeMap<(usize, u8, StreamId), u32>,
    /// When messages were handed out, by destination.
    sent: BTreeMap<usize, VecDeque<u64>>,
    warned: BTreeSet<Entry>,
    arrivals_left: u32,
    next_slot: u32,
    trace: u64,
    done: [u32; 4],
}

const SECOND: u64 = 1_000_000;
const START: u64 = 1_700_000_000 * SECOND;

impl World {
    fn new(seed: u64, messages: u32) -> World {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut config =
            Settings { seed, homes: 1 + rng.below(5) as u8, jitter_percent: 20, ..Settings::new() };
        config.policy.retry_schedule = [60, 300, 900, 3600].map(Duration::from_secs).into();
        config.policy.max_age = Duration::from_secs(3600 * (6 + rng.below(40)));
        config.policy.limits.connections = 1 + rng.below(6) as u32;
        config.policy.messages_per_connection = 1 + rng.below(60) as u32;
        config.policy.delay_warning = Some(Duration::from_secs(3600 * (1 + rng.below(4))));
        config.policy.adaptive = rng.below(2) == 0;
        if rng.below(2) == 0 {
            let (count, secs) = (1 + rng.below(50) as u32, 1 + rng.below(100));
            config.policy.limits.message_rate = Some(Rate::new(count, Duration::from_secs(secs)));
        }
        config.window = 1 + rng.below(3) as usize;
        config.connections_per_home = 1 + rng.below(12) as usize;
        config.connection_idle = Duration::from_millis(rng.below(8000));
        let destinations = 1 + rng.below(20) as usize;
        let mut world = World {
            shard: config.shard(),
            names: (0..destinations)
                .map(|n| Domain::parse(format!("d{n}.test").as_bytes()).expect("valid"))
                .collect(),
            peers: (0..destinations).map(|_| PEERS[rng.below(PEERS.len() as u64) as usize]).collect(),
            rng,
            now: START,
            serial: 0,
            happenings: BinaryHeap::new(),
            conns: BTreeMap::new(),
            messages: BTreeMap::new(),
            at_destination: vec![0; destinations],
            at_home: vec![0; config.homes.into()],
            taken: Vec::new(),
            last: BTreeMap::new(),
            sent: BTreeMap::new(),
            warned: BTreeSet::new(),
            arrivals_left: messages,
            next_slot: 0,
            trace: 0,
            done: [0; 4],
            config,
        };
        world.plan(0, Happening::Arrive);
        world.plan(SECOND, Happening::Operator);
        world
    }

    fn plan(&mut self, after: u64, happening: Happening) {
        self.serial += 1;
        self.happenings.push(Reverse((self.now + after, self.serial, happening)));
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }

    fn latency(&mut self) -> u64 {
        1000 + self.rng.below(if self.serial.is_multiple_of(50) { 60 * SECOND } else { SECOND / 4 })
    }

    fn run(&mut self) {
        let mut timers_at_once = 0;
        while let Some(at) = self.next() {
            assert!(at < START + 365 * 86_400 * SECOND, "it comes to an end");
            timers_at_once = if at <= self.now { timers_at_once + 1 } else { 0 };
            assert!(timers_at_once < 100_000, "the timer makes progress");
            self.step(at);
            if self.serial.is_multiple_of(16) {
                check(&self.shard);
            }
        }
        check(&self.shard);
        assert_eq!(self.shard.stats(), ShardStats::default(), "nothing is left");
        let undone =
            self.messages.values().filter(|message| message.whereabouts != Whereabouts::Done).count();
        assert_eq!(undone, 0, "none is lost");
    }

    fn next(&self) -> Option<u64> {
        let happening = self.happenings.peek().map(|Reverse((at, _, _))| *at);
        let timer = self.shard.next_timer().map(|time| time.0);
        happening.into_iter().chain(timer).min()
    }

    /// The next happening or timer, which comes at `at`.
    fn step(&mut self, at: u64) {
        self.now = at.max(self.now);
        match self.happenings.peek() {
            Some(Reverse((time, _, _))) if *time <= self.now => {
                let Reverse((_, _, happening)) = self.happenings.pop().expect("it was there");
                self.happen(happening);
            }
            _ => self.tell(Event::Timer),
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive => self.arrive(),
            Happening::Operator => self.operate(),
            Happening::Connected(conn) => self.connected(conn),
            Happening::Outcome(conn) => self.outcome(conn),
            Happening::Closed(conn) => self.lose(conn),
        }
    }

    fn arrive(&mut self) {
        for _ in 0..1 + self.rng.below(30) {
            let Some(left) = self.arrivals_left.checked_sub(1) else { return };
            self.arrivals_left = left;
            let destination = self.rng.below(self.names.len() as u64) as usize;
            let home = self.rng.below(self.config.homes.into()) as u8;
            let entry = Entry { home, slot: self.next_slot, part: self.rng.below(3) as u16 };
            self.next_slot += 1;
            let recovered = self.chance(20);
            let received = if recovered { self.now - self.rng.below(3600 * SECOND) } else { self.now };
            let due = if recovered { self.now + self.rng.below(7200 * SECOND) } else { 0 };
            let message = Message::new(destination, received, recovered);
            assert!(self.messages.insert(entry, message).is_none());
            let name = self.names[destination].clone();
            self.tell(Event::Enqueue {
                destination: &name,
                entry,
                stream: stream_of(entry),
                recipients: 1 + self.next_slot as u16 % 3,
                attempts: 0,
                told: false,
                received_at: WallTime(received),
                due: WallTime(due),
            });
        }
        let pause = if self.chance(10) { 1800 * SECOND } else { SECOND };
        let after = self.rng.below(pause);
        self.plan(after, Happening::Arrive);
    }

    /// Now and then: a retry of one or all, a message removed, and some taken and queued again.
    fn operate(&mut self) {
        if self.arrivals_left == 0 {
            return;
        }
        let name = self.names[self.rng.below(self.names.len() as u64) as usize].clone();
        let destination = self.chance(80).then_some(&name);
        self.tell(Event::Retry { destination });
        let at = self.rng.below(self.messages.len().max(1) as u64) as usize;
        if let Some((&entry, message)) = self.messages.iter_mut().nth(at) {
            let name = self.names[message.destination].clone();
            if message.whereabouts == Whereabouts::Waiting {
                message.whereabouts = Whereabouts::Done;
            }
            self.tell(Event::Take { destination: &name, which: Take::These(&[entry]), tag: 1 });
        }
        let at = self.rng.below(self.names.len() as u64) as usize;
        let name = self.names[at].clone();
        let most = self.rng.below(40) as usize;
        let (ready, deferred) = (self.chance(70), self.chance(70));
        let stream = self.chance(30).then(|| self.rng.below(3) as u16);
        self.tell(Event::Take {
            destination: &name,
            which: Take::Some { ready, deferred, stream, most },
            tag: 2,
        });
        for (entry, waiting) in std::mem::take(&mut self.taken) {
            let Waiting { recipients, attempts, told, stream, received_at, due } = waiting;
            let destination = &name;
            self.tell(Event::Enqueue {
                destination,
                entry,
                stream,
                recipients,
                attempts,
                told,
                received_at,
                due,
            });
        }
        let after = self.rng.below(3600 * SECOND);
        self.plan(after, Happening::Operator);
    }

    fn connected(&mut self, conn: ConnId) {
        let peer = self.peers[self.conns[&conn].destination];
        let down = match peer {
            Peer::Flaky => self.chance(25),
            Peer::DownFor(secs) => self.now < START + secs * SECOND,
            Peer::Dead | Peer::Gone => true,
            Peer::Healthy | Peer::HangsUp => false,
        };
        let put_off = self.chance(3);
        if down || put_off {
            self.forget_conn(conn);
            let failed =
                Event::ConnectFailed { conn, permanent: peer == Peer::Gone, verdict: self.verdict(peer) };
            self.tell(if put_off { Event::ConnectPutOff { conn } } else { failed });
        } else {
            self.conns.get_mut(&conn).expect("it was opened").open = true;
            self.want(conn);
        }
    }

    /// What a refusal teaches: nothing, or anything that a flaky peer might say.
    fn verdict(&mut self, peer: Peer) -> Verdict {
        let verdicts = [
            Verdict::Nothing,
            Verdict::FewerConnections,
            Verdict::Slower,
            Verdict::BackOff,
            Verdict::Suspend(Duration::from_secs(900)),
        ];
        if peer == Peer::Flaky { verdicts[self.rng.below(5) as usize] } else { Verdict::Nothing }
    }

    fn want(&mut self, conn: ConnId) {
        let held = self.conns[&conn].held.len();
        let room = self.config.window.saturating_sub(held) + self.rng.below(2) as usize;
        self.tell(Event::Want { conn, room: room as u8 });
        let idle = self.conns[&conn].held.is_empty() && !self.conns[&conn].closing;
        if idle && self.chance(2) {
            let after = self.latency();
            self.plan(after, Happening::Closed(conn));
        }
    }

    fn outcome(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        state.busy = false;
        let peer = self.peers[state.destination];
        if peer == Peer::HangsUp || peer == Peer::Flaky && self.rng.below(10) == 0 {
            return self.lose(conn);
        }
        let entry = state.held.pop_front().expect("an outcome is of something");
        if self.chance(if peer == Peer::Flaky { 30 } else { 5 }) {
            let verdict = self.verdict(peer);
            self.tell(Event::Deferred { conn, entry, recipients_left: 1, verdict });
        } else {
            self.messages.get_mut(&entry).expect("known").whereabouts = Whereabouts::Done;
            self.done[0] += 1;
            self.tell(Event::Finished { conn, entry, verdict: Verdict::Nothing });
        }
        let state = &self.conns[&conn];
        if state.closing && state.held.is_empty() {
            let after = self.latency();
            self.plan(after, Happening::Closed(conn));
        } else if !state.closing {
            self.want(conn);
        }
        self.go_on(conn);
    }

    /// The connection ends, asked or not. What it holds is returned, or now and then just dropped.
    fn lose(&mut self, conn: ConnId) {
        let Some(mut state) = self.conns.remove(&conn) else { return };
        let drops = self.chance(10);
        while let Some(entry) = state.held.pop_back() {
            let message = self.messages.get_mut(&entry).expect("known");
            (message.whereabouts, message.returned) = (Whereabouts::Waiting, self.now);
            if !drops {
                self.tell(Event::Returned { conn, entry });
            }
        }
        self.at_destination[state.destination] -= 1;
        self.at_home[usize::from(state.home)] -= 1;
        self.tell(Event::Closed { conn });
    }

    fn forget_conn(&mut self, conn: ConnId) {
        let state = self.conns.remove(&conn).expect("it was opened");
        self.at_destination[state.destination] -= 1;
        self.at_home[usize::from(state.home)] -= 1;
    }

    fn go_on(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else { return };
        if !state.busy && !state.held.is_empty() {
            state.busy = true;
            let after = self.latency();
            self.plan(after, Happening::Outcome(conn));
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.shard.handle(WallTime(self.now), event, &mut actions);
        assert!(actions.len() < 3 * limits::SCHEDULE_TIMER_BATCH as usize, "batches are bounded");
        for action in actions {
            let mut text = String::new();
            write!(text, "{} {action:?}", self.now).expect("a string takes everything");
            self.trace = xxh3_64_with_seed(text.as_bytes(), self.trace);
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { home, conn, destination, .. } => {
                let destination = self.names.iter().position(|name| *name == destination).expect("known");
                self.at_destination[destination] += 1;
                self.at_home[usize::from(home)] += 1;
                let limit = self.config.policy.limits.connections;
                assert!(self.at_destination[destination] <= limit, "a destination's limit holds");
                let limit = self.config.connections_per_home;
                assert!(self.at_home[usize::from(home)] <= limit, "a home's limit holds");
                let state = Conn {
                    home,
                    destination,
                    open: false,
                    closing: false,
                    busy: false,
                    carried: 0,
                    held: VecDeque::new(),
                };
                assert!(self.conns.insert(conn, state).is_none(), "an id is used once");
                let after = self.latency();
                self.plan(after, Happening::Connected(conn));
            }
            Action::Deliver { home, conn, entry } => self.delivered(home, conn, entry),
            Action::Close { home, conn } => {
                let state = self.conns.get_mut(&conn).expect("only what lives is closed");
                assert!(state.home == home && state.open && !state.closing);
                state.closing = true;
                if state.held.is_empty() {
                    let after = self.latency();
                    self.plan(after, Happening::Closed(conn));
                }
            }
            Action::Deferred { entry, next, .. } => {
                let expiry = self.expiry(entry);
                assert!(next.0 >= self.now && next.0 <= expiry.next_multiple_of(SECOND));
                self.move_to(entry, Whereabouts::Waiting);
            }
            Action::Expired { entry } => {
                let expiry = self.expiry(entry);
                assert!(self.now + SECOND >= expiry, "not before its time");
                let message = &self.messages[&entry];
                let sweep = self.config.policy.max_age.as_micros() as u64 / u64::from(limits::EXPIRY_SWEEPS);
                let latest = expiry.max(message.returned) + sweep + 2 * SECOND;
                let held = matches!(message.whereabouts, Whereabouts::Held(_));
                assert!(held || self.now <= latest, "not much later");
                self.move_to(entry, Whereabouts::Done);
                self.done[1] += 1;
            }
            Action::Taken { entry, tag: 1, .. } => {
                assert_eq!(self.messages[&entry].whereabouts, Whereabouts::Done);
            }
            Action::Taken { entry, waiting, .. } => {
                self.move_to(entry, Whereabouts::Waiting);
                self.taken.push((entry, waiting));
            }
            Action::Delayed { entry, until } => {
                assert_eq!(until.0, self.expiry(entry) / SECOND * SECOND);
                let warning = self.config.policy.delay_warning.expect("it is ordered");
                let message = &self.messages[&entry];
                assert!(
                    self.now + SECOND >= message.received + warning.as_micros() as u64,
                    "not before its time"
                );
                assert_ne!(message.whereabouts, Whereabouts::Done, "not when it has ended");
                assert!(self.warned.insert(entry), "once");
                self.done[3] += 1;
            }
            Action::Proceed { .. } | Action::Tell { .. } => panic!("nothing is shared here"),
            Action::Adapted { .. } => assert!(self.config.policy.adaptive),
            Action::Fail { entry } => {
                assert_eq!(self.peers[self.messages[&entry].destination], Peer::Gone);
                self.move_to(entry, Whereabouts::Done);
                self.done[2] += 1;
            }
        }
    }

    fn delivered(&mut self, home: u8, conn: ConnId, entry: Entry) {
        let expiry = self.expiry(entry);
        assert!(self.now < expiry, "never after its expiry");
        let message = self.messages.get_mut(&entry).expect("known");
        assert_eq!(message.whereabouts, Whereabouts::Waiting, "one connection at a time");
        message.whereabouts = Whereabouts::Held(conn);
        let state = self.conns.get_mut(&conn).expect("only over what lives");
        assert!(state.open && !state.closing);
        assert_eq!((state.home, state.home, state.destination), (home, entry.home, message.destination));
        state.held.push_back(entry);
        state.carried += 1;
        assert!(
            state.held.len() <= self.config.window
                && state.carried <= self.config.policy.messages_per_connection
        );
        if !std::mem::replace(&mut message.out_of_order, true) {
            let last = self.last.insert((message.destination, home, stream_of(entry)), entry.slot);
            assert!(last.is_none_or(|last| last < entry.slot), "first in, first out");
        }
        let destination = state.destination;
        self.go_on(conn);
        if let Some(rate) = self.config.policy.limits.message_rate {
            let sent = self.sent.entry(destination).or_default();
            sent.push_back(self.now);
            if sent.len() > rate.count as usize {
                let first = sent.pop_front().expect("there are some");
                assert!(self.now - first >= rate.per.as_micros() as u64, "a rate holds");
            }
        }
    }

    fn expiry(&self, entry: Entry) -> u64 {
        self.messages[&entry].received + self.config.policy.max_age.as_micros() as u64
    }

    fn move_to(&mut self, entry: Entry, to: Whereabouts) {
        let message = self.messages.get_mut(&entry).expect("known");
        assert_ne!(message.whereabouts, Whereabouts::Done, "an end is final");
        message.whereabouts = to;
        message.out_of_order = true;
    }
}

/// Three streams, one of them urgent.
fn stream_of(entry: Entry) -> StreamId {
    match entry.slot % 5 {
        0 => StreamId::urgent(2),
        n => StreamId::new((n % 2) as u16),
    }
}

/// Do the shard's tables agree with each other?
fn check(shard: &Shard) {
    let stats = shard.stats();
    let table = &shard.destinations;
    let sum = |count: &dyn Fn(&destination::Destination) -> u64| {
        table.slab.iter().map(|(_, d)| count(d)).sum::<u64>()
    };
    assert_eq!(stats.ready, sum(&|d| d.ready.into()));
    assert_eq!(stats.ready, table.lanes.iter().map(|(_, lane)| u64::from(lane.ready.len)).sum::<u64>());
    assert_eq!(stats.deferred, sum(&|d| d.deferred.len().into()));
    assert_eq!(stats.in_flight, sum(&|d| d.in_flight.into()));
    assert_eq!(stats.entries, stats.ready + stats.deferred + stats.in_flight + stats.ending);
    assert_eq!(stats.connections, sum(&|d| d.used.into()));
    assert_eq!(stats.connections, shard.homes.iter().map(|home| home.used as u64).sum::<u64>());
    let closing = shard.connections.slab.iter().filter(|(_, conn)| conn.state == State::Closing).count();
    assert_eq!(closing as u64, sum(&|d| d.queues.closing.into()));
    for (id, destination) in &table.slab {
        let throttled = shard.is_throttled(id as u32);
        let resting = shard.held(id as u32) || throttled;
        let full = destination.used >= shard.slots(id as u32);
        let queues = &destination.queues;
        let waits = throttled || full && !resting;
        assert!(queues.front().is_none() || waits, "a free slot is given away");
        let mut lanes = table.lanes_of(id as u32).map(|lane| &table.lanes[lane as usize]);
        let forgotten = lanes.any(|lane| {
            lane.ready.len > 0 && lane.queue == destination::Queue::None && lane.active == 0 && !resting
        });
        let wakes = destination.agenda.listed || shard.throttle_wakes(id as u32);
        assert!(!forgotten || wakes, "mail without a connection queues for one");
        let timed = destination.timer.due() != timers::NEVER || destination.agenda.listed;
        assert!(
            timed || (destination.deferred.len() == 0 && !shard.held(id as u32) && destination.ready == 0)
        );
    }
    for home in &shard.homes {
        assert!(home.queues.front().is_none() || home.used >= shard.connections_per_home);
    }
}

/// `RINGPOST_SEED` replays one run.
fn seeds() -> Vec<u64> {
    match std::env::var("RINGPOST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a seed is a number")],
        Err(_) => (1..=24).collect(),
    }
}

#[test]
fn whatever_peers_do_every_message_comes_to_an_end() {
    let mut total = [0; 4];
    for seed in seeds() {
        let mut world = World::new(seed, 600);
        world.run();
        for (sum, done) in total.iter_mut().zip(world.done) {
            *sum += done;
        }
    }
    assert!(std::env::var("RINGPOST_SEED").is_ok() || total.iter().all(|count| *count > 100), "{total:?}");
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |seed| {
        let mut world = World::new(seed, 300);
        world.run();
        world.trace
    };
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

#[test]
#[should_panic(expected = "a destination's limit holds")]
fn the_checkers_can_fail() {
    for seed in 1.. {
        let mut world = World::new(seed, 300);
        world.config.policy.limits.connections -= 1;
        world.run();
    }
}

/// One message for a quiet destination behind five destinations with 100,000 between them, on a home
/// with two connections: it waits for the turns of those who were starved before it, no longer.
#[test]
fn a_backlog_does_not_hold_up_a_quiet_destination() {
    let mut world = World::new(1, 0);
    world.config = Settings { homes: 1, connections_per_home: 2, window: 2, ..world.config.clone() };
    world.config.policy.limits.connections = 2;
    world.config.policy.messages_per_connection = 1000;
    world.shard = world.config.shard();
    world.names = (0..6).map(|n| Domain::parse(format!("d{n}.test").as_bytes()).expect("valid")).collect();
    world.peers = vec![Peer::Healthy; 6];
    world.at_destination = vec![0; 6];
    world.at_home = vec![0; 1];
    let enqueue = |world: &mut World, destination: usize| {
        let entry = Entry { home: 0, slot: world.next_slot, part: 0 };
        world.next_slot += 1;
        let received = world.now;
        let message = Message::new(destination, received, false);
        world.messages.insert(entry, message);
        let name = world.names[destination].clone();
        let at = WallTime(received);
        world.tell(Event::Enqueue {
            destination: &name,
            entry,
            stream: StreamId::default(),
            recipients: 1,
            attempts: 0,
            told: false,
            received_at: at,
            due: at,
        });
        entry
    };
    for at in 0..100_000 {
        enqueue(&mut world, at % 5);
    }
    while world.done[0] < 500 {
        let at = world.next().expect("there is mail");
        world.step(at);
    }
    let quiet = enqueue(&mut world, 5);
    let before = world.done[0];
    while world.messages[&quiet].whereabouts == Whereabouts::Waiting {
        let at = world.next().expect("there is mail");
        world.step(at);
    }
    let others = world.done[0] - before;
    let turn = limits::CONNECTION_TURN + world.config.window as u32;
    assert!(others <= 2 * 5 * turn, "{others} went before");
}
