//! What a backlog costs: memory, and the time of an event among ten thousand and ten million recipients.
//!
//! | column | what is measured |
//! |---|---|
//! | memory | growth of the process (RSS) while the queue is filled, whole tables included |
//! | event | mean of enqueue, Connect's Want, Finished, Want and Closed for a destination picked at random |
//! | resume | one event: the end of a suspension of a destination with a tenth of all recipients |
//!
//! `cargo bench --bench queue`
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringpost::clock::{Rng, WallTime};
use ringpost::limits;
use ringpost::mail::address::Domain;
use ringpost::schedule::{
    Action, Entry, Event, Limits, Policies, Policy, Shard, ShardConfig, StreamId, Verdict,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: WallTime = WallTime(1_700_000_000_000_000);
/// Events timed.
const ROUNDS: u32 = 100_000;

fn shard() -> Shard {
    let policy = Policy {
        limits: Limits { connections: limits::DEFAULT_DESTINATION_CONNECTIONS, ..Limits::NONE },
        messages_per_connection: limits::DEFAULT_MESSAGES_PER_CONNECTION,
        recipients_per_message: limits::DEFAULT_RECIPIENTS_PER_MESSAGE,
        retry_schedule: vec![Duration::from_secs(900)],
        max_age: limits::DEFAULT_MAX_AGE,
        delay_warning: None,
        adaptive: true,
    };
    Shard::new(ShardConfig {
        seed: 1,
        homes: 1,
        index: 0,
        shards: 1,
        jitter_percent: limits::RETRY_JITTER_PERCENT,
        policies: Arc::new(Policies::one(policy)),
        window: limits::CONNECTION_WINDOW,
        connections_per_home: limits::OUTBOUND_CONNECTIONS_PER_WORKER,
        connection_idle: limits::OUTBOUND_IDLE_WAIT,
    })
}

fn name(n: u32) -> Domain {
    Domain::parse(format!("destination{n}.example").as_bytes()).expect("a domain")
}

fn enqueue(shard: &mut Shard, destination: &Domain, slot: u32, due: WallTime, actions: &mut Vec<Action>) {
    let entry = Entry { home: 0, slot, part: 0 };
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
    shard.handle(NOW, event, actions);
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// The mean time of an event, and of the whole way of a message.
fn time_events(shard: &mut Shard, names: &[Domain], mut slot: u32) -> Duration {
    let (mut rng, mut actions, mut events) = (Rng::new(7), Vec::new(), 0);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let destination = &names[rng.below(names.len() as u64) as usize];
        slot += 1;
        enqueue(shard, destination, slot, NOW, &mut actions);
        events += 1;
        while let Some(action) = actions.pop() {
            let event = match action {
                Action::Connect { conn, .. } => Event::Want { conn, room: 1 },
                Action::Deliver { conn, entry, .. } => {
                    let done = Event::Finished { conn, entry, verdict: Verdict::Nothing };
                    shard.handle(NOW, done, &mut actions);
                    Event::Closed { conn }
                }
                _ => continue,
            };
            shard.handle(NOW, event, &mut actions);
            events += 2;
        }
    }
    start.elapsed() / events
}

fn main() {
    println!("| recipients | destinations | memory | bytes a recipient | event | resume |");
    println!("|---|---|---|---|---|---|");
    let names: Vec<Domain> = (0..1_000_000).map(name).collect();
    for queued in [10_000u32, 1_000_000, 10_000_000] {
        let names = &names[..queued as usize / 10];
        let before = resident_bytes();
        let (mut shard, mut actions, mut rng) = (shard(), Vec::new(), Rng::new(3));
        // A tenth waits for one suspended destination, the rest for its next attempt.
        let hot = name(u32::MAX);
        shard.handle(NOW, Event::Suspend { destination: &hot, until: None }, &mut actions);
        for slot in 0..queued {
            let due = NOW.saturating_add(Duration::from_secs(60 + rng.below(14_400)));
            match slot % 10 {
                0 => enqueue(&mut shard, &hot, slot, NOW, &mut actions),
                n => {
                    let at = (slot / 10 * 9 + n - 1) as usize % names.len();
                    enqueue(&mut shard, &names[at], slot, due, &mut actions);
                }
            }
        }
        let bytes = resident_bytes() - before;
        let event = time_events(&mut shard, names, queued);
        let start = Instant::now();
        shard.handle(NOW, Event::Resume { destination: &hot }, &mut actions);
        let resume = start.elapsed();
        println!(
            "| {queued} | {} | {} MiB | {} | {event:?} | {resume:?} |",
            names.len() + 1,
            bytes >> 20,
            bytes / u64::from(queued)
        );
    }
}
