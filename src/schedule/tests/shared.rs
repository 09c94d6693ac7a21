//! Limits shared by many destinations, over several shards.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use super::*;

/// Two shards that pass on what they say to each other, and receivers that count.
pub(super) struct Pair {
    pub(super) shards: Vec<Shard>,
    pub(super) now: WallTime,
    conns: Vec<(usize, ConnId, Vec<Entry>)>,
    /// The local addresses that a destination may use.
    pub(super) sets: fn(&Domain) -> Option<SourceSet>,
    /// From which address each open connection comes.
    pub(super) from: HashMap<(usize, ConnId), IpAddr>,
    /// When connections were made and messages sent, by address.
    pub(super) opened: BTreeMap<IpAddr, Vec<u64>>,
    pub(super) carried: BTreeMap<IpAddr, Vec<u64>>,
    /// The most connections at a time, by address.
    pub(super) peak: BTreeMap<IpAddr, usize>,
    pub(super) most: usize,
    pub(super) sent: Vec<u64>,
    pub(super) slots: Vec<(u64, u32)>,
    open_all: usize,
    post: VecDeque<(usize, Action)>,
    busy: bool,
}

const HOSTS: u64 = 7;

impl Pair {
    fn new(site: Limits) -> Pair {
        Pair::with(|_| None, |policies| policies.sites = vec![site])
    }

    pub(super) fn with(sets: fn(&Domain) -> Option<SourceSet>, change: impl Fn(&mut Policies)) -> Pair {
        let shard = |index| {
            let settings = Settings::new();
            let mut policies = Policies::one(settings.policy);
            change(&mut policies);
            Shard::new(ShardConfig {
                seed: 1,
                homes: 2,
                index,
                shards: 2,
                jitter_percent: 0,
                policies: Arc::new(policies),
                window: 2,
                connections_per_home: 100,
                connection_idle: Duration::from_secs(5),
            })
        };
        Pair {
            shards: vec![shard(0), shard(1)],
            now: WallTime::from_secs(START),
            conns: Vec::new(),
            sets,
            from: HashMap::new(),
            opened: BTreeMap::new(),
            carried: BTreeMap::new(),
            peak: BTreeMap::new(),
            most: 0,
            sent: Vec::new(),
            slots: Vec::new(),
            open_all: 0,
            post: VecDeque::new(),
            busy: false,
        }
    }

    /// Tells a shard, then carries out what comes of it, in the order in which it was said.
    pub(super) fn tell(&mut self, shard: usize, event: Event<'_>) {
        let mut actions = Vec::new();
        self.shards[shard].handle(self.now, event, &mut actions);
        self.post.extend(actions.into_iter().map(|action| (shard, action)));
        if std::mem::replace(&mut self.busy, true) {
            return;
        }
        let mut said = 0;
        while let Some((shard, action)) = self.post.pop_front() {
            said += 1;
            assert!(said < 100_000, "it comes to rest: {action:?} at {:?}", self.now);
            match action {
                Action::Connect { conn, destination, .. } => {
                    let (hosts, sources) = (Some(HOSTS), (self.sets)(&destination));
                    self.tell(shard, Event::Resolved { conn, hosts, provider: 0, sources });
                }
                Action::Proceed { conn, source, .. } => {
                    if let Some(source) = source {
                        self.from.insert((shard, conn), source);
                        self.opened.entry(source).or_default().push(self.now.0);
                        let open = self.from.values().filter(|own| **own == source).count();
                        let peak = self.peak.entry(source).or_default();
                        *peak = open.max(*peak);
                    }
                    self.conns.push((shard, conn, Vec::new()));
                    self.open_all += 1;
                    self.most = self.most.max(self.conns.len());
                    self.tell(shard, Event::Want { conn, room: 2 });
                }
                Action::Deliver { conn, entry, .. } => {
                    self.sent.push(self.now.0);
                    self.slots.push((self.now.0, entry.slot));
                    if let Some(source) = self.from.get(&(shard, conn)) {
                        self.carried.entry(*source).or_default().push(self.now.0);
                    }
                    let held =
                        self.conns.iter_mut().find(|c| c.0 == shard && c.1 == conn).expect("it is open");
                    held.2.push(entry);
                }
                Action::Close { conn, .. } => {
                    let open = self.conns.iter().position(|c| c.0 == shard && c.1 == conn);
                    match open {
                        // It was still being opened.
                        None => self.tell(shard, Event::Closed { conn }),
                        Some(at) if self.conns[at].2.is_empty() => {
                            self.conns.remove(at);
                            self.from.remove(&(shard, conn));
                            self.tell(shard, Event::Closed { conn });
                        }
                        Some(_) => {}
                    }
                }
                Action::Tell { shard, message } => self.tell(shard.into(), Event::Pool(message)),
                _ => {}
            }
        }
        self.busy = false;
    }

    pub(super) fn enqueue(&mut self, shard: usize, name: &str, slot: u32) {
        self.enqueue_of(shard, name, slot, StreamId::default());
    }

    pub(super) fn enqueue_of(&mut self, shard: usize, name: &str, slot: u32, stream: StreamId) {
        let (destination, received_at, due) = (&domain(name), self.now, self.now);
        let (entry, recipients, attempts, told) = (entry((slot % 2) as u8, slot), 1, 0, false);
        let event =
            Event::Enqueue { destination, entry, stream, recipients, attempts, told, received_at, due };
        self.tell(shard, event);
    }

    /// What each open connection holds.
    pub(super) fn held(&self) -> impl Iterator<Item = &Vec<Entry>> {
        self.conns.iter().map(|(_, _, held)| held)
    }

    /// Every connection brings the outcome of one message and asks for more.
    pub(super) fn turn(&mut self) {
        let open: Vec<(usize, ConnId)> = self.conns.iter().map(|c| (c.0, c.1)).collect();
        for (shard, conn) in open {
            let Some(at) = self.conns.iter().position(|c| c.0 == shard && c.1 == conn) else { continue };
            if self.conns[at].2.is_empty() {
                continue;
            }
            let entry = self.conns[at].2.remove(0);
            self.tell(shard, Event::Finished { conn, entry, verdict: Verdict::Nothing });
            self.tell(shard, Event::Want { conn, room: 2 });
            let Some(at) = self.conns.iter().position(|c| c.0 == shard && c.1 == conn) else { continue };
            let idle = self.conns[at].2.is_empty();
            let closing = self.shards[shard].connections.place(conn).is_some_and(|place| {
                self.shards[shard].connections.slab[place as usize].state == connection::State::Closing
            });
            if idle && closing {
                self.conns.remove(at);
                self.from.remove(&(shard, conn));
                self.tell(shard, Event::Closed { conn });
            }
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        let end = WallTime(self.now.0 + ms * 1000);
        for timers in 0.. {
            assert!(timers < 100_000, "time goes on: {:?}", self.now);
            let next = (0..2).filter_map(|s| Some((self.shards[s].next_timer()?, s))).min();
            let Some((at, shard)) = next.filter(|(at, _)| *at <= end) else { break };
            self.now = self.now.max(at);
            self.tell(shard, Event::Timer);
        }
        self.now = end;
    }

    pub(super) fn left(&self) -> u64 {
        self.shards.iter().map(|shard| shard.stats().entries).sum()
    }
}

#[test]
fn a_site_has_its_connections_whoever_uses_them() {
    for connections in [1, 3] {
        let mut pair = Pair::new(Limits { connections, ..Limits::NONE });
        for slot in 0..1200 {
            let of = slot as usize % 6;
            pair.enqueue(of % 2, &format!("d{of}.test"), slot);
        }
        let mut first_gone = None;
        for round in 0..100_000 {
            pair.turn();
            pair.pass(10);
            if pair.left() == 0 {
                break;
            }
            let busy = (0..6).filter(|of| {
                pair.shards[of % 2]
                    .explain(&domain(&format!("d{of}.test")))
                    .is_some_and(|e| e.stats.ready > 0)
            });
            if busy.count() < 6 {
                first_gone.get_or_insert((round, pair.left()));
            }
        }
        assert_eq!(pair.left(), 0, "{connections}: everything is delivered");
        assert_eq!(pair.most, connections as usize, "all are used, never more");
        let (_, left) = first_gone.expect("it ends");
        assert!(left <= 6 * 60, "{connections}: they take turns, {left} were left when the first was done");
        pair.pass(60_000);
        assert_eq!(pair.shards[0].stats(), ShardStats::default());
        assert_eq!(pair.shards[1].stats(), ShardStats::default());
        for shard in &pair.shards {
            let key = PoolKey::Site { hosts: HOSTS, provider: 0 };
            assert_eq!(shard.pools.describe(key), None, "nothing is held for ever");
            assert!(shard.contended.is_empty());
        }
    }
}

#[test]
fn a_site_has_its_rate_whoever_uses_it() {
    let rate = Rate::new(50, Duration::from_secs(1));
    let mut pair = Pair::new(Limits { connections: 10, message_rate: Some(rate), ..Limits::NONE });
    for slot in 0..1000 {
        let of = slot as usize % 4;
        pair.enqueue(of % 2, &format!("d{of}.test"), slot);
    }
    for _ in 0..2000 {
        pair.turn();
        pair.pass(5);
    }
    let span = pair.sent.last().expect("some") - pair.sent[0];
    assert!(pair.sent.windows(51).all(|w| w[50] - w[0] >= 1_000_000), "never more than the rate");
    let share = pair.sent.len() as f64 / (50.0 * span as f64 / 1e6);
    assert!(share >= 0.95, "{share}");
}

#[test]
fn who_waits_for_a_site_is_told_so() {
    let mut pair = Pair::new(Limits { connections: 1, ..Limits::NONE });
    for slot in 0..40 {
        pair.enqueue(0, "a.test", slot);
    }
    pair.enqueue(1, "b.test", 100);
    let gates = pair.shards[1].explain(&domain("b.test")).expect("it has mail").gates;
    let gate = gates.iter().find(|g| g.kind == GateKind::SharedLimit).expect("it waits");
    assert!(gate.detail.contains("1 in use, "), "{gate:?}");
    assert_eq!(pair.open_all, 1);
}
