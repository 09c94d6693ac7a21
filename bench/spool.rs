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
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::address::Address;
use ringpost::mail::envelope::{BodyForm, BodyKind, Envelope, Recipient};
use ringpost::mail::reply::Reply;
use ringpost::spool::{
    Buffer, FileIndex, Intent, Log, LogConfig, NewMessage, Outcome, Reading, RecoveredLog, SegmentSource,
    Slot, SpoolIdentity, recover,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BODY_BYTES: usize = 4096;
const NOW: WallTime = WallTime(1_700_000_000_000_000);

fn main() {
    divan::main();
}

struct Memory(Vec<u8>);

impl Buffer for Memory {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn config() -> LogConfig {
    LogConfig {
        identity: SpoolIdentity { id: 1, secret: 2 },
        log: 0,
        segment_bytes: limits::DEFAULT_SEGMENT_BYTES as u32,
        block_bytes: limits::BLOCK_BYTES as u32,
        max_segments: 64,
        commits_in_flight: limits::COMMITS_IN_FLIGHT,
    }
}

/// A disk that keeps what is written, for recovery to read.
#[derive(Default)]
struct Disk(HashMap<FileIndex, Vec<u8>>);

impl Disk {
    fn write(&mut self, file: FileIndex, offset: u32, bytes: &[u8]) {
        let offset = offset as usize;
        let segment = self.0.entry(file).or_insert_with(|| vec![0; limits::DEFAULT_SEGMENT_BYTES as usize]);
        segment[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

impl SegmentSource for Disk {
    fn files(&mut self) -> io::Result<Vec<FileIndex>> {
        Ok(self.0.keys().copied().collect())
    }
    fn bytes(&mut self, file: FileIndex) -> io::Result<u64> {
        Ok(self.0[&file].len() as u64)
    }
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.0[&file][offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

struct Writer {
    log: Log<Memory>,
    disk: Option<Disk>,
    envelope: Envelope,
    body: Vec<u8>,
    slots: Vec<Slot>,
}

impl Writer {
    fn new(body_bytes: usize, disk: Option<Disk>) -> Writer {
        let mut log = Log::new(config(), RecoveredLog::default());
        for _ in 0..limits::COMMIT_BUFFERS {
            log.lend(Memory(vec![0; limits::COMMIT_BUFFER_BYTES]));
        }
        let address = |text: &str| Address::parse(text.as_bytes()).expect("an address");
        let envelope = Envelope {
            reverse_path: Some(address("load@example.test")),
            recipients: vec![Recipient { address: address("recipient.17@d3.test") }],
            body_kind: BodyKind::EightBit,
            body_form: BodyForm::DotStuffed,
            received_at: NOW,
            client: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        };
        let mut writer = Writer { log, disk, envelope, body: vec![b'x'; body_bytes], slots: Vec::new() };
        writer.turn();
        writer
    }

    /// Ends the turn and carries out what the log wants.
    fn turn(&mut self) {
        self.log.end_turn();
        while let Some(intent) = self.log.next_intent() {
            match intent {
                Intent::Write { seq, file, offset, bytes, buffer } => {
                    if let Some(disk) = &mut self.disk {
                        disk.write(file, offset, &buffer.memory()[..bytes as usize]);
                    }
                    self.log.on_written(seq, buffer, true);
                }
                Intent::Prepare { file, generation, header, .. } => {
                    if let Some(disk) = &mut self.disk {
                        disk.write(file, 0, &header);
                    }
                    self.log.on_prepared(file, generation, true);
                }
                Intent::Seal { file, generation, offset, index, seal } => {
                    if let Some(disk) = &mut self.disk {
                        disk.write(file, offset, &index);
                        disk.write(file, offset + index.len() as u32, &seal);
                    }
                    self.log.on_sealed(generation, true);
                }
                Intent::Copy { .. } => panic!("nothing lives long enough to be copied"),
                Intent::Delete { .. } => {}
            }
        }
        let mut results = Vec::new();
        self.log.take_results(&mut results);
        black_box(results);
    }

    fn append(&mut self) {
        let id = self.log.next_id(NOW);
        let new =
            NewMessage { id, envelope: &self.envelope, fragments: &[], parts: &[&self.body], reports: None };
        let (slot, _) = self.log.append_message(black_box(&new)).expect("there is room");
        self.slots.push(slot);
    }

    /// Delivers the first `count` of those that wait.
    fn deliver(&mut self, count: usize) {
        let reply = Reply { code: 250, enhanced: None, text: "0123456789ab queued".into() };
        for slot in self.slots.drain(..count) {
            let outcomes = [(0, Outcome::Delivered(reply.clone()))];
            self.log.append_outcomes(slot, &outcomes, NOW).expect("there is room");
        }
    }
}

/// Messages in one group: what a busy turn brings, and a full group.
const GROUPS: [usize; 3] = [1, 16, 60];

#[divan::bench(args = GROUPS, sample_size = 20)]
fn append(bencher: Bencher, group: usize) {
    let mut writer = Writer::new(BODY_BYTES, None);
    bencher.counter(ItemsCount::new(group)).bench_local(|| {
        (0..group).for_each(|_| writer.append());
        writer.turn();
        writer.deliver(group);
        writer.turn();
    });
}

#[divan::bench(args = GROUPS, sample_size = 20)]
fn append_message(bencher: Bencher, group: usize) {
    let writer = std::cell::RefCell::new(Writer::new(BODY_BYTES, None));
    bencher
        .counter(ItemsCount::new(group))
        .counter(BytesCount::new(group * BODY_BYTES))
        .with_inputs(|| {
            let mut writer = writer.borrow_mut();
            let waiting = writer.slots.len();
            writer.deliver(waiting);
            writer.turn();
        })
        .bench_local_values(|()| {
            let mut writer = writer.borrow_mut();
            (0..group).for_each(|_| writer.append());
            writer.turn();
        });
}

fn filled_disk(messages: usize, body_bytes: usize) -> Disk {
    let mut writer = Writer::new(body_bytes, Some(Disk::default()));
    for _ in 0..messages / 10 {
        (0..10).for_each(|_| writer.append());
        writer.turn();
        // Half of what was appended so far is delivered, whatever it was.
        writer.deliver(5);
        writer.turn();
    }
    writer.disk.expect("it was given")
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
