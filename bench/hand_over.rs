//! The hop between two workers: a message whose destination belongs to another worker's shard makes four of
//! them (enqueue there, deliver back here, finished and more room there), in batches of one turn.
//!
//! | benchmark | what it measures |
//! |---|---|
//! | `queue` | a value through a mailbox on one thread: the queue itself |
//! | `hop` | a batch from one worker to another that is awake; per value |
//! | `there_and_back` | a batch to a sleeping worker and one back, each waking the other; per round trip |
//!
//! `cargo bench --bench hand_over`
use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::ItemsCount;
use ringpost::limits;
use ringpost::ring::{self, MailboxSender, RuntimeConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// About the size of a post between workers.
type Value = [u64; 8];
const VALUE: Value = [7; 8];
/// Batches sent per sample.
const BATCHES: usize = 10_000;
const ROUND_TRIPS: usize = 2_000;

fn main() {
    divan::main();
}

#[divan::bench]
fn queue(bencher: Bencher) {
    let (sender, mut mailbox) = ring::mailbox::<Value>(limits::MAILBOX_DEPTH);
    bencher.bench_local(|| {
        sender.try_send(VALUE).expect("there is room");
        mailbox.try_recv()
    });
}

fn send(sender: &MailboxSender<Vec<Value>>, mut batch: Vec<Value>) {
    while let Err(back) = sender.try_send(batch) {
        batch = back;
        std::thread::yield_now();
    }
}

/// Sends `BATCHES` of `size` values to a worker; from the first to the last received.
fn hops(size: usize) -> Duration {
    let (sender, mut mailbox) = ring::mailbox::<Vec<Value>>(limits::MAILBOX_DEPTH);
    let receiver = std::thread::spawn(move || {
        ring::run(&RuntimeConfig::default(), async move {
            let mut received = 0;
            while let Some(batch) = mailbox.recv().await {
                received += batch.len();
            }
            received
        })
    });
    let start = Instant::now();
    for _ in 0..BATCHES {
        send(&sender, vec![VALUE; size]);
    }
    drop(sender);
    let received = receiver.join().expect("no panic").expect("a ring");
    assert_eq!(received, BATCHES * size);
    start.elapsed()
}

#[divan::bench(args = [1, 16, 64], sample_count = 20, sample_size = 1)]
fn hop(bencher: Bencher, size: usize) {
    bencher.counter(ItemsCount::new(BATCHES * size)).bench_local(|| hops(size));
}

#[divan::bench(sample_count = 20, sample_size = 1)]
fn there_and_back(bencher: Bencher) {
    bencher.counter(ItemsCount::new(ROUND_TRIPS)).bench_local(|| {
        let (to, mut from_here) = ring::mailbox::<Value>(1);
        let (back, mut from_there) = ring::mailbox::<Value>(1);
        let other = std::thread::spawn(move || {
            ring::run(&RuntimeConfig::default(), async move {
                while let Some(value) = from_here.recv().await {
                    back.try_send(value).expect("one at a time");
                }
            })
        });
        ring::run(&RuntimeConfig::default(), async move {
            for _ in 0..ROUND_TRIPS {
                to.try_send(VALUE).expect("one at a time");
                from_there.recv().await.expect("the other lives");
            }
        })
        .expect("a ring");
        other.join().expect("no panic").expect("a ring");
    });
}
