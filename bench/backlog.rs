//! Makes a spool with a large backlog in it, through the log's own code, for `scripts/scale.sh`.
//!
//! Every message was tried once and waits for its next attempt, as most of a large backlog does; its
//! recipients are spread at random over the domains. One thread for each log. Writes go through the page
//! cache and are synced at the end.
//!
//! `cargo run --release --example backlog -- SPOOL --messages 1000000 --recipients 5 --domains 200000`
#[allow(dead_code, reason = "shared with the benchmarks")]
mod driver;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use driver::{Disk, Driver, address, config, envelope};
use ringpost::clock::{Rng, WallTime};
use ringpost::limits;
use ringpost::mail::reply::Reply;
use ringpost::spool::{FileIndex, NewMessage, Outcome, Tries};
use ringpost::worker::spool_dir::{SpoolDir, segment_path};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Parser)]
struct Args {
    /// A new or empty directory
    spool: PathBuf,
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// Of each message, all at different domains
    #[arg(long, default_value_t = 5)]
    recipients: u64,
    #[arg(long, default_value_t = 200_000)]
    domains: u64,
    /// Bytes of each body
    #[arg(long, default_value_t = 4096)]
    body: usize,
    #[arg(long, default_value_t = 2)]
    logs: u16,
    /// Minutes until the next attempts begin; they are spread over as many again
    #[arg(long, default_value_t = 600)]
    due_minutes: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The directory of one log.
struct Directory {
    path: PathBuf,
    files: HashMap<FileIndex, File>,
}

impl Disk for Directory {
    fn prepare(&mut self, file: FileIndex) {
        let path = segment_path(&self.path, file);
        let mut options = OpenOptions::new();
        let made = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
        let made = made.expect("the log is writable");
        made.set_len(limits::DEFAULT_SEGMENT_BYTES).expect("there is room on the disk");
        self.files.insert(file, made);
    }
    fn write(&mut self, file: FileIndex, offset: u32, bytes: &[u8]) {
        self.files[&file].write_all_at(bytes, offset.into()).expect("there is room on the disk");
    }
    fn read(&self, file: FileIndex, offset: u32, bytes: u32) -> Vec<u8> {
        let mut read = vec![0; bytes as usize];
        self.files[&file].read_exact_at(&mut read, offset.into()).expect("it was written");
        read
    }
    fn delete(&mut self, file: FileIndex) {
        self.files.remove(&file);
        std::fs::remove_file(segment_path(&self.path, file)).expect("it was there");
    }
}

fn fill(driver: &mut Driver<Directory>, args: &Args, messages: u64, number: u16) {
    let mut rng = Rng::new(args.seed << 16 | u64::from(number));
    let body = vec![b'x'; args.body];
    let now = WallTime::now();
    let reply = Reply::local(450, (4, 2, 1), "mailbox busy, try again later");
    for nth in 0..messages {
        let mut domains: Vec<u64> = Vec::new();
        while (domains.len() as u64) < args.recipients {
            let domain = rng.below(args.domains);
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        let recipients = domains.into_iter().map(|d| address(&format!("user.{nth}@d{d}.example"))).collect();
        let envelope = envelope(recipients, now);
        let id = driver.log.next_id(now);
        let new = NewMessage {
            id,
            envelope: &envelope,
            fragments: &[],
            parts: &[&body],
            reports: None,
            kept: false,
        };
        let (slot, _) = driver.insist(|log| log.append_message(&new));
        let mut outcome = |recipient| {
            let wait = 60 * args.due_minutes + rng.below(60 * args.due_minutes + 1);
            let next = now.saturating_add(Duration::from_secs(wait));
            (recipient, Outcome::Deferred { tries: Tries::new(1, false), next, reply: reply.clone() })
        };
        let outcomes: Vec<_> = (0..envelope.recipients.len() as u16).map(&mut outcome).collect();
        driver.insist(|log| log.append_outcomes(slot, &outcomes, now));
    }
    driver.turn();
    for file in driver.disk.files.values() {
        file.sync_all().expect("the disk takes it");
    }
}

fn main() {
    let args = Args::parse();
    let started = Instant::now();
    SpoolDir::make(&args.spool).expect("a directory can be made");
    let spool = SpoolDir::open(&args.spool).expect("a new spool");
    let threads: Vec<_> = (0..args.logs)
        .map(|number| {
            let (args, path) = (args.clone(), spool.log_path(number));
            let config = config(spool.identity, number, limits::DEFAULT_SEGMENT_BYTES);
            std::thread::spawn(move || {
                std::fs::create_dir_all(&path).expect("the spool is writable");
                let mut driver = Driver::new(config, Directory { path, files: HashMap::new() });
                let share = args.messages / u64::from(args.logs);
                let rest = args.messages % u64::from(args.logs);
                fill(&mut driver, &args, share + u64::from(u64::from(number) < rest), number);
                driver.log.stats()
            })
        })
        .collect();
    let stats: Vec<_> = threads.into_iter().map(|t| t.join().expect("it does not panic")).collect();
    println!(
        "{} messages in {} segments, {} of them sealed, {:.1} GB, in {:.1} s",
        stats.iter().map(|s| s.live_messages).sum::<u64>(),
        stats.iter().map(|s| s.segments).sum::<u64>(),
        stats.iter().map(|s| s.sealed_segments).sum::<u64>(),
        stats.iter().map(|s| s.bytes_written).sum::<u64>() as f64 / 1e9,
        started.elapsed().as_secs_f64()
    );
}
