//! The log without a disk: what it costs to lay records into groups, to settle them, and to find them
//! again. Writes "complete" at once, in memory.
//!
//! | benchmark | step of a message's path |
//! |---|---|
//! | `append` | envelope and body copied into the commit buffer, checksums, group header and directory, the live table; then one delivered outcome, with all it settles. Per message, both |
//! | `append_message` | the first half: until the `250` may be sent |
//! | `recover_bodies` | at start: finding live messages among groups of 4 KiB bodies, half of them delivered; per message |
//! | `recover_indexed` | the same from the indexes of full segments |
//! | `recover_small` | the same with bodies of 128 bytes, where only the records count |
//!
//! `cargo bench --bench spool`
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod driver;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use driver::{Disk, Driver, InMemory, Nowhere};
use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::envelope::Envelope;
use ringpost::mail::reply::Reply;
use ringpost::spool::{LogConfig, NewMessage, Outcome, Reading, Slot, SpoolIdentity, recover};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODY_BYTES: usize = 4096;
const NOW: WallTime = WallTime(1_700_000_000_000_000);

fn main() {
    println!("durability: none, there is no disk");
    divan::main();
}

fn config() -> LogConfig {
    driver::config(SpoolIdentity { id: 1, secret: 2 }, 0, limits::DEFAULT_SEGMENT_BYTES)
}

struct Writer<D> {
    driver: Driver<D>,
    envelope: Envelope,
    body: Vec<u8>,
    slots: Vec<Slot>,
}

impl<D: Disk> Writer<D> {
    fn new(body_bytes: usize, disk: D) -> Writer<D> {
        let envelope = driver::envelope(vec![driver::address("recipient.17@d3.test")], NOW);
        let driver = Driver::new(config(), disk);
        Writer { driver, envelope, body: vec![b'x'; body_bytes], slots: Vec::new() }
    }

    fn append(&mut self) {
        let id = self.driver.log.next_id(NOW);
        let new = NewMessage {
            id,
            envelope: &self.envelope,
            fragments: &[],
            parts: &[&self.body],
            reports: None,
            kept: false,
        };
        let (slot, _) = self.driver.log.append_message(black_box(&new)).expect("there is room");
        self.slots.push(slot);
    }

    /// Delivers the first `count` of those that wait.
    fn deliver(&mut self, count: usize) {
        let reply = Reply { code: 250, enhanced: None, text: "0123456789ab queued".into() };
        for slot in self.slots.drain(..count) {
            let outcomes = [(0, Outcome::Delivered(reply.clone()))];
            self.driver.log.append_outcomes(slot, &outcomes, NOW).expect("there is room");
        }
    }
}

/// Messages in one group: what a busy turn brings, and a full group.
const GROUPS: [usize; 3] = [1, 16, 60];

#[divan::bench(args = GROUPS, sample_size = 20)]
fn append(bencher: Bencher, group: usize) {
    let mut writer = Writer::new(BODY_BYTES, Nowhere);
    bencher.counter(ItemsCount::new(group)).bench_local(|| {
        (0..group).for_each(|_| writer.append());
        writer.driver.turn();
        writer.deliver(group);
        writer.driver.turn();
    });
}

#[divan::bench(args = GROUPS, sample_size = 20)]
fn append_message(bencher: Bencher, group: usize) {
    let writer = std::cell::RefCell::new(Writer::new(BODY_BYTES, Nowhere));
    bencher
        .counter(ItemsCount::new(group))
        .counter(BytesCount::new(group * BODY_BYTES))
        .with_inputs(|| {
            let mut writer = writer.borrow_mut();
            let waiting = writer.slots.len();
            writer.deliver(waiting);
            writer.driver.turn();
        })
        .bench_local_values(|()| {
            let mut writer = writer.borrow_mut();
            (0..group).for_each(|_| writer.append());
            writer.driver.turn();
        });
}

fn filled_disk(messages: usize, body_bytes: usize) -> InMemory {
    let mut writer = Writer::new(body_bytes, InMemory::new(&config()));
    for _ in 0..messages / 10 {
        (0..10).for_each(|_| writer.append());
        writer.driver.turn();
        // Half of what was appended so far is delivered, whatever it was.
        writer.deliver(5);
        writer.driver.turn();
    }
    writer.driver.disk
}

fn recovers(bencher: Bencher, messages: usize, body_bytes: usize, reading: Reading) {
    let mut disk = filled_disk(messages, body_bytes);
    bencher.counter(ItemsCount::new(messages)).bench_local(|| {
        let (mut log, findings) = recover(&config(), &mut disk, reading).expect("the log is whole");
        let mut replay = log.replay();
        let mut found = 0;
        while let Some(message) = replay.next(&config(), &mut disk, log.live()).expect("still whole") {
            black_box(message);
            found += 1;
        }
        assert_eq!((found, findings.len()), (messages / 2, 0));
    });
}

#[divan::bench(args = [1_000, 10_000], sample_count = 20)]
fn recover_bodies(bencher: Bencher, messages: usize) {
    recovers(bencher, messages, BODY_BYTES, Reading::Whole);
}

#[divan::bench(args = [10_000], sample_count = 20)]
fn recover_indexed(bencher: Bencher, messages: usize) {
    recovers(bencher, messages, BODY_BYTES, Reading::Indexed);
}

#[divan::bench(args = [1_000, 100_000], sample_count = 20)]
fn recover_small(bencher: Bencher, messages: usize) {
    recovers(bencher, messages, 128, Reading::Indexed);
}
