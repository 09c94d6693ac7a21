//! The step from a full commit buffer to "durable": how many messages a second the disk takes, and how long
//! one commit lasts, by the size of a message and the number of messages in a group.
//!
//! Four ways, in turn, several rounds of each, medians:
//!
//! - **log**: as the server commits: groups of messages copied into registered, aligned buffers, written
//!   through the ring to a zero-filled segment (`O_DIRECT|O_DSYNC`), `limits::COMMITS_IN_FLIGHT` at a time;
//! - **one at a time**: the same with a single commit in flight;
//! - **disk**: what the disk itself gives: as many threads as commits in flight, each writing blocks of
//!   the same size with `pwrite` and nothing else;
//! - **plain**: the way of a server without a log: `write` and `fdatasync` for each message.
//!
//! `cargo bench --bench disk`. It writes 256 MiB below `$RINGPOST_BENCH_DIR`, or `./target`; that must be
//! the kind of disk a spool lies on.
use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringpost::limits;
use ringpost::ring::{self, AlignedBuf, BufferPool, DirectFile, OpenFile, RuntimeConfig, Sync};
use rustix::fs::OFlags;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEGMENT_BYTES: u64 = 256 * 1024 * 1024;
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(300);
/// Bytes of a message and messages in a group.
const CASES: [(usize, usize); 9] = [
    (4096, 1),
    (4096, 4),
    (4096, 16),
    (4096, 60),
    (16_384, 1),
    (16_384, 4),
    (16_384, 15),
    (65_536, 1),
    (65_536, 3),
];
/// What a record and its share of the group's header and directory add to a body.
const RECORD_BYTES: usize = 256;

/// What one way did in its time.
struct Measured {
    messages: u64,
    elapsed: Duration,
    cpu_us: u64,
    commit_us: Histogram<u64>,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64()
    }
    fn cpu(&self) -> f64 {
        self.cpu_us as f64 / self.messages.max(1) as f64
    }
}

fn main() {
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return;
    }
    let base = std::env::var_os("RINGPOST_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = tempfile::Builder::new().prefix("bench-disk-").tempdir_in(&base);
    let dir = dir.unwrap_or_else(|e| panic!("{}: {e}", base.display()));
    let segment = dir.path().join("segment");
    ring::prepare_segment(&segment, SEGMENT_BYTES).expect("the segment can be written");
    println!("durability: disk, the data sync of `--durability disk`; plain has that of fdatasync");
    println!(
        "{} commits in flight; medians of {ROUNDS} rounds; messages/s, µs of CPU per message, ms per commit",
        limits::COMMITS_IN_FLIGHT
    );
    println!("| message | group | log | CPU | commit p50 | p99 | one at a time | disk | plain | CPU |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (message, group) in CASES {
        let block = (group * (message + RECORD_BYTES)).next_multiple_of(limits::BLOCK_BYTES);
        let [mut log, mut single, mut disk, mut plain] = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            log.push(through_the_ring(&segment, message, group, block, limits::COMMITS_IN_FLIGHT));
            single.push(through_the_ring(&segment, message, group, block, 1));
            disk.push(by_threads(&segment, group, block));
            if group == 1 {
                plain.push(plainly(&dir.path().join("plain"), message));
            }
        }
        let latency = |q: f64| median(log.iter().map(|m| m.commit_us.value_at_quantile(q) as f64 / 1e3));
        print!(
            "| {} KiB | {group} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} |",
            message / 1024,
            median(log.iter().map(Measured::rate)),
            median(log.iter().map(Measured::cpu)),
            latency(0.5),
            latency(0.99),
            median(single.iter().map(Measured::rate)),
            median(disk.iter().map(Measured::rate)),
        );
        if plain.is_empty() {
            println!(" | |");
        } else {
            let cpu = median(plain.iter().map(Measured::cpu));
            println!(" {:.0} | {cpu:.2} |", median(plain.iter().map(Measured::rate)));
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid")
}

/// Offsets of blocks one after the other, round and round.
fn place(nth: u64, block: usize) -> u64 {
    nth % (SEGMENT_BYTES / block as u64) * block as u64
}

/// What the tasks that commit share.
struct Writers {
    file: DirectFile,
    pool: BufferPool,
    end: Instant,
    next: Cell<u64>,
    commit_us: RefCell<Histogram<u64>>,
}

fn through_the_ring(segment: &Path, message: usize, group: usize, block: usize, depth: usize) -> Measured {
    let (start, cpu) = (Instant::now(), ring::process_cpu_micros());
    let (commits, commit_us) = ring::run(&RuntimeConfig::default(), async {
        let options = OpenFile { sync: Sync::Data, direct: true, write: true, lock: false };
        let writers = Rc::new(Writers {
            file: DirectFile::open(segment, options).expect("the segment is there"),
            pool: BufferPool::new(depth, limits::COMMIT_BUFFER_BYTES, true),
            end: start + TIME,
            next: Cell::new(0),
            commit_us: RefCell::new(histogram()),
        });
        let tasks: Vec<_> =
            (0..depth).map(|_| ring::spawn(write_groups(writers.clone(), message, group, block))).collect();
        for task in tasks {
            task.join().await;
        }
        (writers.next.get(), writers.commit_us.replace(histogram()))
    })
    .expect("a ring");
    Measured {
        messages: commits * group as u64,
        elapsed: start.elapsed(),
        cpu_us: ring::process_cpu_micros() - cpu,
        commit_us,
    }
}

async fn write_groups(writers: Rc<Writers>, message: usize, group: usize, block: usize) {
    let body = vec![b'x'; message];
    let mut buffer = writers.pool.take().expect("one for each task");
    while Instant::now() < writers.end {
        for nth in 0..group {
            let at = nth * (message + RECORD_BYTES);
            buffer[at..at + message].copy_from_slice(&body);
        }
        let nth = writers.next.replace(writers.next.get() + 1);
        let submitted = Instant::now();
        let (result, back) = writers.file.write_at(buffer, block, place(nth, block)).await;
        result.expect("the disk takes it");
        let took = submitted.elapsed().as_micros() as u64;
        writers.commit_us.borrow_mut().saturating_record(took);
        buffer = back;
    }
}

fn by_threads(segment: &Path, group: usize, block: usize) -> Measured {
    let (start, cpu) = (Instant::now(), ring::process_cpu_micros());
    let next = AtomicU64::new(0);
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits() as i32;
    std::thread::scope(|scope| {
        for _ in 0..limits::COMMITS_IN_FLIGHT {
            scope.spawn(|| {
                let file = OpenOptions::new().write(true).custom_flags(flags).open(segment);
                let file = file.expect("the segment is there");
                let buffer = AlignedBuf::zeroed(block);
                while start.elapsed() < TIME {
                    let at = place(next.fetch_add(1, Ordering::Relaxed), block);
                    file.write_all_at(&buffer[..block], at).expect("the disk takes it");
                }
            });
        }
    });
    Measured {
        messages: next.into_inner() * group as u64,
        elapsed: start.elapsed(),
        cpu_us: ring::process_cpu_micros() - cpu,
        commit_us: histogram(),
    }
}

fn plainly(path: &Path, message: usize) -> Measured {
    let body = vec![b'x'; message];
    let mut file = File::create(path).expect("the directory is there");
    let (start, cpu) = (Instant::now(), ring::process_cpu_micros());
    let mut messages = 0;
    while start.elapsed() < TIME {
        file.write_all(&body).and_then(|()| file.sync_data()).expect("the disk takes it");
        messages += 1;
    }
    Measured {
        messages,
        elapsed: start.elapsed(),
        cpu_us: ring::process_cpu_micros() - cpu,
        commit_us: histogram(),
    }
}
