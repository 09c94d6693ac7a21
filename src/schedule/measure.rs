//! What the scheduler costs: run by hand, in a release build, on a quiet machine:
//! `cargo test --release --lib schedule::measure -- --ignored --nocapture --test-threads 1`.
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;

const DESTINATIONS: usize = 1000;
const NOW: WallTime = WallTime(1_700_000_000_000_000);

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

struct Driver {
    shard: Shard,
    names: Vec<Domain>,
    actions: Vec<Action>,
}

impl Driver {
    fn new() -> Driver {
        let config = ShardConfig {
            seed: 1,
            homes: 2,
            retry_schedule: vec![Duration::from_secs(900)],
            jitter_percent: 20,
            max_age: Duration::from_secs(432_000),
            destination_connections: 20,
            messages_per_connection: 1000,
            window: 2,
            connections_per_home: 2000,
            connection_idle: Duration::from_secs(5),
        };
        let name = |n: usize| Domain::parse(format!("destination{n}.test").as_bytes()).expect("valid");
        Driver {
            shard: Shard::new(config),
            names: (0..DESTINATIONS).map(name).collect(),
            actions: Vec::new(),
        }
    }

    fn enqueue(&mut self, slot: u32, due: WallTime) {
        let destination = &self.names[slot as usize * 7919 % DESTINATIONS];
        let entry = Entry { home: (slot % 2) as u8, slot, part: 0 };
        let event = Event::Enqueue { destination, entry, recipients: 1, attempts: 0, received_at: NOW, due };
        self.shard.handle(NOW, event, &mut self.actions);
    }

    /// Plays a perfect peer until nothing is left to do; returns the number delivered.
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
                        self.shard.handle(NOW, Event::Finished { conn, entry }, &mut self.actions);
                        Event::Want { conn, room: 1 }
                    }
                    _ => continue,
                };
                self.shard.handle(NOW, event, &mut self.actions);
            }
        }
        delivered
    }
}

#[test]
#[ignore = "prints figures; for a release build on a quiet machine"]
fn cost_of_a_message() {
    let mut driver = Driver::new();
    for slot in 0..10_000 {
        driver.enqueue(slot, NOW);
    }
    driver.drain();
    let start = Instant::now();
    let mut delivered = 0;
    for slot in 0..1_000_000 {
        driver.enqueue(slot, NOW);
        delivered += driver.drain();
    }
    println!("passing through, nothing queued: {:?} each", start.elapsed() / black_box(delivered));

    for backlog in [10_000, 1_000_000, 10_000_000] {
        for (what, due) in [("ready", NOW), ("deferred", NOW.saturating_add(Duration::from_secs(3600)))] {
            let mut driver = Driver::new();
            let before = resident_bytes();
            let start = Instant::now();
            for slot in 0..backlog {
                let jitter = Duration::from_secs(u64::from(slot % 1000) * u64::from(due > NOW));
                driver.enqueue(slot, due.saturating_add(jitter));
            }
            let enqueue = start.elapsed() / backlog;
            // Freed memory of the round before would be used again: only the first round counts.
            if due == NOW {
                let bytes = resident_bytes().saturating_sub(before) as f64 / f64::from(backlog);
                println!("{backlog}: {bytes:.1} bytes each, {DESTINATIONS} destinations included");
            }
            let start = Instant::now();
            if due > NOW {
                let timer = NOW.saturating_add(Duration::from_secs(5000));
                while driver.shard.next_timer().is_some_and(|at| at <= timer)
                    && driver.shard.stats().deferred > 0
                {
                    driver.shard.handle(timer, Event::Timer, &mut driver.actions);
                }
            }
            let wake = start.elapsed() / backlog;
            let start = Instant::now();
            let delivered = driver.drain();
            let deliver = start.elapsed() / delivered.max(1);
            println!(
                "{backlog} {what}: enqueue {enqueue:?}, wake {wake:?}, deliver and finish {deliver:?} each"
            );
        }
    }
}
