//! The delivery scheduler alone: what a message costs on its way through a shard, whatever is queued.
//!
//! | benchmark | step of a message's path |
//! |---|---|
//! | `pass` | enqueue, hand out to an open connection, finish, ask for more, with nothing else queued |
//! | `pass_behind` | the same for one destination while so many others wait for their time |
//! | `fill` | enqueueing into a queue that has no connection; per message |
//! | `empty` | handing out and finishing what is queued; per message |
//! | `take_some` | giving up one destination's thousand messages to an operator's order while so many others are queued; per message |
//! | `take_one` | finding and giving up the last of so many messages of one destination |
//!
//! `cargo bench --bench scheduler`
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::address::Domain;
use ringpost::schedule::{
    Action, Entry, Event, Limits, Policies, Policy, Shard, ShardConfig, StreamId, Take, Verdict,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: WallTime = WallTime(1_700_000_000_000_000);
const DESTINATIONS: usize = 1000;
const QUEUED: [u32; 2] = [10_000, 1_000_000];

fn main() {
    divan::main();
}

/// A shard and a perfect peer.
struct Driver {
    shard: Shard,
    names: Vec<Domain>,
    actions: Vec<Action>,
    next: u32,
}

impl Driver {
    fn new() -> Driver {
        let policy = Policy {
            limits: Limits { connections: limits::DEFAULT_DESTINATION_CONNECTIONS, ..Limits::NONE },
            messages_per_connection: limits::DEFAULT_MESSAGES_PER_CONNECTION,
            recipients_per_message: u16::MAX,
            retry_schedule: vec![Duration::from_secs(900)],
            max_age: limits::DEFAULT_MAX_AGE,
            delay_warning: None,
            adaptive: true,
        };
        let config = ShardConfig {
            seed: 1,
            homes: 1,
            index: 0,
            shards: 1,
            jitter_percent: limits::RETRY_JITTER_PERCENT,
            policies: Arc::new(Policies::one(policy)),
            window: limits::CONNECTION_WINDOW,
            connections_per_home: limits::OUTBOUND_CONNECTIONS_PER_WORKER,
            connection_idle: limits::OUTBOUND_IDLE_WAIT,
        };
        let name = |n: usize| Domain::parse(format!("d{n}.test").as_bytes()).expect("a domain");
        let names = (0..DESTINATIONS).map(name).collect();
        Driver { shard: Shard::new(config), names, actions: Vec::new(), next: 0 }
    }

    fn enqueue(&mut self, destination: usize, due: WallTime) {
        let entry = Entry { home: 0, slot: self.next, part: 0 };
        self.next = self.next.wrapping_add(1);
        let destination = &self.names[destination];
        let event = Event::Enqueue {
            destination,
            entry,
            stream: StreamId::default(),
            recipients: 1,
            attempts: 0,
            told: false,
            received_at: NOW,
            due,
        };
        self.shard.handle(NOW, event, &mut self.actions);
    }

    /// One message for each of many destinations in turn.
    fn fill(&mut self, messages: u32, due: WallTime) {
        for n in 0..messages as usize {
            self.enqueue(n % DESTINATIONS, due);
        }
    }

    /// Carries out all there is to do; the number delivered.
    fn drain(&mut self) -> u32 {
        let (mut delivered, mut batch) = (0, Vec::new());
        while !self.actions.is_empty() {
            std::mem::swap(&mut batch, &mut self.actions);
            for action in batch.drain(..) {
                let event = match action {
                    Action::Connect { conn, .. } => Event::Want { conn, room: 1 },
                    Action::Close { conn, .. } => Event::Closed { conn },
                    Action::Deliver { conn, entry, .. } => {
                        delivered += 1;
                        self.shard.handle(
                            NOW,
                            Event::Finished { conn, entry, verdict: Verdict::Nothing },
                            &mut self.actions,
                        );
                        Event::Want { conn, room: 1 }
                    }
                    _ => continue,
                };
                self.shard.handle(NOW, event, &mut self.actions);
            }
        }
        delivered
    }

    fn pass(&mut self) {
        self.enqueue(7, NOW);
        assert_eq!(self.drain(), 1);
    }
}

#[divan::bench(sample_size = 200)]
fn pass(bencher: Bencher) {
    let mut driver = Driver::new();
    bencher.bench_local(|| driver.pass());
}

#[divan::bench(args = QUEUED, sample_size = 200)]
fn pass_behind(bencher: Bencher, queued: u32) {
    let mut driver = Driver::new();
    driver.fill(queued, NOW.saturating_add(Duration::from_secs(3600)));
    bencher.bench_local(|| driver.pass());
}

#[divan::bench(args = QUEUED, sample_count = 10, sample_size = 1)]
fn fill(bencher: Bencher, queued: u32) {
    bencher.counter(ItemsCount::new(queued)).with_inputs(Driver::new).bench_local_refs(|driver| {
        driver.fill(queued, NOW);
    });
}

#[divan::bench(args = QUEUED, sample_count = 10, sample_size = 1)]
fn empty(bencher: Bencher, queued: u32) {
    bencher
        .counter(ItemsCount::new(queued))
        .with_inputs(|| {
            let mut driver = Driver::new();
            driver.fill(queued, NOW);
            driver
        })
        .bench_local_refs(|driver| assert_eq!(driver.drain(), queued));
}

const LATER: Duration = Duration::from_secs(3600);

#[divan::bench(args = QUEUED, sample_count = 20)]
fn take_some(bencher: Bencher, queued: u32) {
    let mut driver = Driver::new();
    driver.fill(queued, NOW.saturating_add(LATER));
    driver.names.push(Domain::parse(b"taken.test").expect("a domain"));
    let taken = driver.names[DESTINATIONS].clone();
    bencher.counter(ItemsCount::new(1_000_u32)).bench_local(|| {
        // Put there and taken again: the cost is that of both.
        (0..1_000).for_each(|_| driver.enqueue(DESTINATIONS, NOW.saturating_add(LATER)));
        driver.actions.clear();
        let which = Take::Some { ready: true, deferred: true, stream: None, most: 1_000 };
        driver.shard.handle(NOW, Event::Take { destination: &taken, which, tag: 1 }, &mut driver.actions);
        assert_eq!(driver.actions.len(), 1_000);
        driver.actions.clear();
    });
}

#[divan::bench(args = QUEUED, sample_count = 20)]
fn take_one(bencher: Bencher, queued: u32) {
    let mut driver = Driver::new();
    (0..queued).for_each(|_| driver.enqueue(0, NOW.saturating_add(LATER)));
    let name = driver.names[0].clone();
    bencher.bench_local(|| {
        let last = [Entry { home: 0, slot: driver.next.wrapping_sub(1), part: 0 }];
        let event = Event::Take { destination: &name, which: Take::These(&last), tag: 1 };
        driver.shard.handle(NOW, event, &mut driver.actions);
        assert_eq!(driver.actions.len(), 1);
        driver.actions.clear();
        driver.enqueue(0, NOW.saturating_add(LATER));
    });
}
