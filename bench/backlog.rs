//! Makes a spool with a large backlog in it, through the log's own code, for `scripts/scale.sh`.
//!
//! Every message was tried once and waits for its next attempt, as most of a large backlog does; its
//! recipients are spread at random over the domains. One thread for each log. Writes go through the page
//! cache and are synced at the end.
//!
//! `cargo run --release --example backlog -- SPOOL --messages 1000000 --recipients 5 --domains 200000`
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use ringpost::clock::{Rng, WallTime};
use ringpost::limits;
use ringpost::mail::address::Address;
use ringpost::mail::envelope::{BodyForm, BodyKind, Envelope, Recipient};
use ringpost::mail::reply::Reply;
use ringpost::spool::{
    Buffer, FileIndex, Intent, Log, LogConfig, NewMessage, Outcome, RecoveredLog, Refusal, SpoolIdentity,
};
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

struct Memory(Vec<u8>);

impl Buffer for Memory {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// One log, and the files under it.
struct Writer {
    log: Log<Memory>,
    dir: PathBuf,
    files: HashMap<FileIndex, File>,
}

impl Writer {
    fn new(dir: &Path, identity: SpoolIdentity, number: u16) -> Writer {
        std::fs::create_dir_all(dir).expect("the spool is writable");
        let config = LogConfig {
            identity,
            log: number,
            segment_bytes: limits::DEFAULT_SEGMENT_BYTES as u32,
            block_bytes: limits::BLOCK_BYTES as u32,
            max_segments: u32::MAX,
            commits_in_flight: limits::COMMITS_IN_FLIGHT,
        };
        let mut log = Log::new(config, RecoveredLog::default());
        for _ in 0..limits::COMMIT_BUFFERS {
            log.lend(Memory(vec![0; limits::COMMIT_BUFFER_BYTES]));
        }
        let mut writer = Writer { log, dir: dir.to_owned(), files: HashMap::new() };
        writer.turn();
        writer
    }

    fn put(&self, file: FileIndex, offset: u32, bytes: &[u8]) {
        self.files[&file].write_all_at(bytes, offset.into()).expect("there is room on the disk");
    }

    /// Ends the turn and carries out what the log wants, until it wants nothing more.
    fn turn(&mut self) {
        self.log.end_turn();
        while let Some(intent) = self.log.next_intent() {
            match intent {
                Intent::Write { seq, file, offset, bytes, buffer } => {
                    self.put(file, offset, &buffer.0[..bytes as usize]);
                    self.log.on_written(seq, buffer, true);
                }
                Intent::Prepare { file, generation, header, .. } => {
                    let path = segment_path(&self.dir, file);
                    let mut options = OpenOptions::new();
                    let made = options.create(true).truncate(false).write(true).mode(0o600).open(path);
                    let made = made.expect("the log is writable");
                    made.set_len(limits::DEFAULT_SEGMENT_BYTES).expect("there is room on the disk");
                    self.files.insert(file, made);
                    self.put(file, 0, &header);
                    self.log.on_prepared(file, generation, true);
                }
                Intent::Seal { file, generation, offset, index, seal } => {
                    self.put(file, offset, &index);
                    self.put(file, offset + index.len() as u32, &seal);
                    self.log.on_sealed(generation, true);
                }
                Intent::Copy { .. } => unreachable!("nothing dies here, so nothing is copied"),
                Intent::Delete { .. } => {}
            }
        }
        self.log.take_results(&mut Vec::new());
    }

    /// Tries until there is room.
    fn insist<T>(&mut self, mut attempt: impl FnMut(&mut Log<Memory>) -> Result<T, Refusal>) -> T {
        loop {
            match attempt(&mut self.log) {
                Ok(done) => return done,
                Err(Refusal::Busy) => self.turn(),
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }

    fn fill(&mut self, args: &Args, messages: u64, number: u16) {
        let mut rng = Rng::new(args.seed << 16 | u64::from(number));
        let body = vec![b'x'; args.body];
        let now = WallTime::now();
        let sender = address("campaign-17@sender.example");
        let reply = Reply::local(450, (4, 2, 1), "mailbox busy, try again later");
        for nth in 0..messages {
            let mut domains: Vec<u64> = Vec::new();
            while (domains.len() as u64) < args.recipients {
                let domain = rng.below(args.domains);
                if !domains.contains(&domain) {
                    domains.push(domain);
                }
            }
            let recipient = |domain| Recipient { address: address(&format!("user.{nth}@d{domain}.example")) };
            let mut envelope = Envelope {
                reverse_path: Some(sender.clone()),
                recipients: domains.into_iter().map(recipient).collect(),
                received_at: now,
                body_kind: BodyKind::EightBit,
                body_form: BodyForm::DotStuffed,
                client: None,
            };
            envelope.group_by_destination();
            let id = self.log.next_id(now);
            let new = NewMessage { id, envelope: &envelope, fragments: &[], parts: &[&body], reports: None };
            let (slot, _) = self.insist(|log| log.append_message(&new));
            let outcomes: Vec<_> = (0..envelope.recipients.len() as u16)
                .map(|recipient| {
                    let wait =
                        Duration::from_secs(60 * args.due_minutes + rng.below(60 * args.due_minutes + 1));
                    let next = now.saturating_add(wait);
                    (recipient, Outcome::Deferred { attempts: 1, next, reply: reply.clone() })
                })
                .collect();
            self.insist(|log| log.append_outcomes(slot, &outcomes, now));
        }
        self.turn();
        for file in self.files.values() {
            file.sync_all().expect("the disk takes it");
        }
    }
}

fn address(text: &str) -> Address {
    Address::parse(text.as_bytes()).expect("an address")
}

fn main() {
    let args = Args::parse();
    let started = Instant::now();
    SpoolDir::make(&args.spool).expect("a directory can be made");
    let spool = SpoolDir::open(&args.spool).expect("a new spool");
    let threads: Vec<_> = (0..args.logs)
        .map(|number| {
            let (args, dir, identity) = (args.clone(), spool.log_path(number), spool.identity);
            std::thread::spawn(move || {
                let mut writer = Writer::new(&dir, identity, number);
                let share = args.messages / u64::from(args.logs);
                let rest = args.messages % u64::from(args.logs);
                writer.fill(&args, share + u64::from(u64::from(number) < rest), number);
                writer.log.stats()
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
