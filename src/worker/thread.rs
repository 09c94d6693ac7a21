//! One worker thread, from recovery to its last commit.
//!
//! Owns: building a [`Worker`] from what recovery found, starting its tasks, and ending it. Promises: a
//! log is read only when no earlier process can still write to it, and what was read is durable; the
//! thread leaves after a drain only when everything it can record is recorded, or the grace is over.
//! Must not: touch another worker's log.
use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::Instant;

use anyhow::Context;
use crossbeam_channel::Sender;

use super::counters::Counters;
use super::doors::Service;
use super::fragments::Fragments;
use super::home::{Home, HomeConfig, SpoolBuf};
use super::live::Live;
use super::post::{Batch, Outboxes};
use super::quarantine::Piece;
use super::spool_dir::{SegmentFiles, retire_log, segment_path};
use super::suspensions::Suspensions;
use super::time::Clock;
use super::{Shared, Worker, arrival, memory};
use crate::clock::{self, Rng};
use crate::config::Config;
use crate::limits;
use crate::ring::{
    self, AlignedBuf, Arena, BufferPool, FileLock, Listener, Mailbox, MailboxSender, RuntimeConfig,
};
use crate::schedule::{Event, Shard, ShardConfig, shard_of};
use crate::spool::{
    FileIndex, Finding, Log, LogConfig, Reading, RecoveredLog, Replay, SegmentSource, recover,
};

/// What one worker thread starts with.
pub struct Setup {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub homes: Vec<HomeSetup>,
    /// Homes of all workers.
    pub home_count: usize,
    pub mailbox: Mailbox<Batch>,
    pub senders: Vec<MailboxSender<Batch>>,
    pub sockets: Vec<(Service, TcpListener)>,
    pub cpu: Option<usize>,
    pub suspensions: Arc<Suspensions>,
    /// Where all workers meet when they have read their logs: who is first must not fill the mailboxes of
    /// those who cannot look into them yet.
    pub read: Arc<Barrier>,
    /// Told once when recovery has ended or failed.
    pub tell: Sender<anyhow::Result<()>>,
}

pub struct HomeSetup {
    pub config: HomeConfig,
    pub log: LogConfig,
}

/// A log as recovery found it.
struct Found {
    setup: HomeSetup,
    files: Vec<FileIndex>,
    log: RecoveredLog,
    source: SegmentFiles,
    /// Places that are damaged.
    damaged: u64,
}

/// The body of a worker thread.
pub fn run(mut setup: Setup) -> anyhow::Result<()> {
    let tell = setup.tell.clone();
    let homes = std::mem::take(&mut setup.homes);
    let found: anyhow::Result<Vec<Found>> = homes.into_iter().map(read_log).collect();
    setup.read.wait();
    match found {
        Ok(mut found) => {
            found.retain(|f| !remove_if_left_over(f, setup.shared.config.workers));
            let runtime = RuntimeConfig { cpu: setup.cpu, ..RuntimeConfig::default() };
            ring::run(&runtime, work(setup, found)).context("the worker's ring")?
        }
        Err(error) => {
            let _ = tell.send(Err(error));
            Ok(())
        }
    }
}

/// Waits for the last writes of a killed predecessor, makes what is there durable, and reads it.
fn read_log(setup: HomeSetup) -> anyhow::Result<Found> {
    let dir: &PathBuf = &setup.config.dir;
    let shown = dir.display().to_string();
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
        .create(dir)
        .with_context(|| format!("making {shown}"))?;
    let mut source = SegmentFiles::new(dir.clone());
    let files = source.files().with_context(|| format!("reading {shown}"))?;
    remove_unfinished(dir).with_context(|| format!("tidying {shown}"))?;
    for &file in &files {
        let path = segment_path(dir, file);
        let lock = FileLock::lock_or_wait(&path, limits::ZOMBIE_WAIT)
            .with_context(|| format!("{}: an earlier process still writes to it", path.display()))?;
        drop(lock);
    }
    if let Some(&newest) = files.last() {
        make_durable(dir, &files, newest).with_context(|| format!("syncing {shown}"))?;
    }
    let (log, findings) =
        recover(&setup.log, &mut source, Reading::Indexed).with_context(|| format!("recovering {shown}"))?;
    let damaged = report(&setup, dir, &findings);
    Ok(Found { setup, files, log, source, damaged })
}

/// Has what is there on the medium, and what is read next read from there.
fn make_durable(dir: &Path, files: &[FileIndex], newest: FileIndex) -> std::io::Result<()> {
    let newest = segment_path(dir, newest);
    if let Err(error) = ring::sync_file_system(dir, &newest) {
        // A write that failed before this process began, for whoever wrote it, is told to the first who
        // syncs. If that was all, the second attempt succeeds.
        tracing::error!(dir = %dir.display(), %error, "the file system reports that an earlier write was lost");
        ring::sync_file_system(dir, &newest)?;
    }
    // Pages whose write failed count as clean and still hold what is not on the medium.
    files.iter().try_for_each(|&file| ring::drop_cached(&segment_path(dir, file)))
}

/// Says what recovery found and sets aside what is damaged. Returns how many places are.
fn report(setup: &HomeSetup, dir: &Path, findings: &[Finding]) -> u64 {
    let log = setup.log.log;
    let mut damaged = 0;
    for finding in findings {
        match finding {
            Finding::Held { .. } => tracing::warn!(log, "recovery: {finding}"),
            Finding::Missing { .. }
            | Finding::Unreadable { .. }
            | Finding::HeaderLost { .. }
            | Finding::IndexLost { .. } => {
                damaged += 1;
                tracing::error!(log, "recovery: {finding}");
            }
            Finding::Damaged { .. } => {
                damaged += 1;
                if let (Some(piece), Some(spool)) = (Piece::of_finding(log, dir, finding), dir.parent()) {
                    piece.save(spool);
                }
            }
        }
    }
    damaged
}

/// A log of more workers than there are now goes when nothing in it is wanted any more. Numbers begin
/// anew if it comes back: a generation is bound to the segments that carry it, and those are gone.
fn remove_if_left_over(found: &Found, workers: usize) -> bool {
    let wanted = found.damaged > 0 || !found.log.live().is_empty();
    if usize::from(found.setup.log.log) < workers || wanted {
        return false;
    }
    let dir = &found.setup.config.dir;
    if let Err(error) = retire_log(dir) {
        tracing::warn!(dir = %dir.display(), %error, "a log that is no longer used cannot be removed");
        return false;
    }
    true
}

/// Segments whose preparation an earlier process did not finish hold nothing.
fn remove_unfinished(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "new") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn work(setup: Setup, found: Vec<Found>) -> anyhow::Result<()> {
    let tell = setup.tell.clone();
    let mailbox = setup.mailbox;
    let counters = Rc::new(Counters::default());
    let mut homes: Vec<Option<Rc<Home>>> = (0..setup.home_count).map(|_| None).collect();
    let mut waiting = Vec::new();
    for found in found {
        counters.damaged.add(found.damaged);
        let index = found.setup.config.index;
        let Found { setup: own, files, mut log, source, .. } = found;
        let (config, replay) = (own.log.clone(), log.replay());
        let home = build_home(own, log, &files, &counters, setup.clock);
        let home = match home {
            Ok(home) => home,
            Err(error) => {
                let _ = tell.send(Err(error));
                return Ok(());
            }
        };
        waiting.push(Backlog { home: home.clone(), config, replay, source });
        homes[usize::from(index)] = Some(home);
    }
    let config = &setup.shared.config;
    let now = setup.clock.now();
    let mut shard = Shard::new(ShardConfig {
        seed: clock::secret_u64(),
        homes: setup.home_count as u8,
        index: setup.index as u8,
        shards: config.workers as u8,
        jitter_percent: limits::RETRY_JITTER_PERCENT,
        policies: setup.shared.policies.clone(),
        window: limits::CONNECTION_WINDOW,
        connections_per_home: limits::OUTBOUND_CONNECTIONS_PER_WORKER / config.workers,
        connection_idle: limits::OUTBOUND_IDLE_WAIT,
    });
    for (domain, view) in setup.suspensions.list(now) {
        if shard_of(&domain, config.workers) == setup.index {
            let until = view.until.map(|until| until.0);
            // Nothing is queued yet that an action could be about.
            shard.handle(now, Event::Suspend { destination: &domain, until }, &mut Vec::new());
        }
    }
    let worker = Rc::new(Worker {
        index: setup.index,
        live: RefCell::new(Live::new(config.clone(), setup.shared.policies.clone())),
        shared: setup.shared.clone(),
        clock: setup.clock,
        counters,
        homes,
        shard: RefCell::new(shard),
        outboxes: Outboxes::new(setup.senders),
        local: RefCell::default(),
        running_local: Cell::new(false),
        actions: RefCell::default(),
        taken: RefCell::default(),
        spared: RefCell::default(),
        timer: Default::default(),
        timer_at: Cell::new(None),
        sessions: RefCell::default(),
        session_gone: Default::default(),
        listeners: RefCell::default(),
        memory_short: Cell::new(false),
        memory_full: Cell::new(0),
        draining: Cell::new(false),
        drain: Default::default(),
        stop: Default::default(),
        fragments: Fragments::new(fragment_buffers(config)),
        bodies: body_arena(config),
        scratch: RefCell::default(),
        sources_used: Cell::new(setup.index),
        rng: RefCell::new(Rng::new(clock::secret_u64())),
    });
    ring::spawn(worker.clone().run_mailbox(mailbox));
    ring::spawn(worker.clone().run_outboxes());
    ring::spawn(worker.clone().run_timer());
    ring::spawn(worker.clone().run_memory());
    ring::spawn(worker.fragments.clone().run());
    ring::spawn(super::operate::expire_parked(worker.clone()));
    for backlog in waiting {
        let home = backlog.home.clone();
        if let Err(error) = worker.requeue_all(backlog).await {
            let _ = tell.send(Err(error));
            return Ok(());
        }
        ring::spawn(home.clone().run_commits());
        ring::spawn(home.clone().run_retries());
        ring::spawn(worker.clone().run_faults(home.clone()));
        ring::spawn(super::failing::run(worker.clone(), home));
    }
    // What other workers have of it must be on its way to them when this one says that it is done.
    while !worker.outboxes.is_empty() {
        ring::sleep(limits::MAILBOX_RETRY_WAIT).await;
    }
    // Recovery read through buffers of megabytes, and tables have moved as they grew.
    ring::collect_heap();
    let _ = tell.send(Ok(()));
    for (service, socket) in setup.sockets {
        let listener = Listener::from_std(socket).context("taking over a listening socket")?;
        worker.listeners.borrow_mut().push(listener.clone());
        ring::spawn(arrival::accept(worker.clone(), listener, service));
    }
    worker.until_stopped().await;
    let unrecorded: usize = worker.own_homes().map(|h| h.unrecorded()).sum();
    anyhow::ensure!(
        unrecorded == 0,
        "{unrecorded} outcomes could not be recorded because the spool cannot be written; what they concern \
         will be delivered again"
    );
    Ok(())
}

/// What recovery found in a log, still to be queued.
struct Backlog {
    home: Rc<Home>,
    config: LogConfig,
    replay: Replay,
    source: SegmentFiles,
}

/// An eighth of the worker's part of the memory.
fn fragment_buffers(config: &Config) -> usize {
    let (limit, bytes) = (config.memory_limit_bytes, limits::FRAGMENT_BUFFER_BYTES as u64);
    memory::share(limit, 8 * bytes * config.workers as u64, 4, limits::FRAGMENT_BUFFERS as u64) as usize
}

/// A sixteenth of the worker's part of the memory is kept for bodies, and no more than all of it is used.
fn body_arena(config: &Config) -> Arena {
    let workers = config.workers as u64;
    let most = memory::share(config.memory_limit_bytes, workers, 0, limits::BODY_ARENA_BYTES as u64);
    let floor =
        memory::share(config.memory_limit_bytes, 16 * workers, 0, limits::BODY_ARENA_FLOOR_BYTES as u64);
    Arena::new(most as usize, floor as usize)
}

fn build_home(
    setup: HomeSetup,
    recovered: RecoveredLog,
    files: &[FileIndex],
    counters: &Rc<Counters>,
    clock: Clock,
) -> anyhow::Result<Rc<Home>> {
    let shown = setup.config.dir.display().to_string();
    let mut log = Log::new(setup.log, recovered);
    let pool = BufferPool::new(limits::COMMIT_BUFFERS, limits::COMMIT_BUFFER_BYTES, true);
    for _ in 0..limits::COMMIT_BUFFERS {
        let buffer = pool.take().unwrap_or_else(|| AlignedBuf::zeroed(limits::COMMIT_BUFFER_BYTES));
        log.lend(SpoolBuf(buffer));
    }
    let home = Home::new(setup.config, log, counters.clone(), clock);
    for &file in files {
        home.open_segment(file).with_context(|| format!("opening segment {} of {shown}", file.0))?;
    }
    Ok(home)
}

impl Worker {
    /// Queues what recovery found in a log, message by message, before anything is written to it.
    async fn requeue_all(self: &Rc<Self>, backlog: Backlog) -> anyhow::Result<()> {
        let Backlog { home, config, mut replay, mut source } = backlog;
        for count in 1.. {
            let next = replay.next(&config, &mut source, home.log().live());
            let next = next.with_context(|| format!("recovering {}", home.config.dir.display()))?;
            let Some(message) = next else { break };
            self.requeue(&home, &message);
            if count % limits::REQUEUE_BATCH == 0 {
                ring::yield_turn().await;
                while !self.outboxes.has_room() || !self.outboxes.are_light() {
                    ring::sleep(limits::MAILBOX_RETRY_WAIT).await;
                }
            }
        }
        Ok(())
    }

    /// Ends when the worker may leave: told to stop, or drained.
    async fn until_stopped(self: &Rc<Self>) {
        tokio::select! {
            () = self.stop.wait() => return,
            () = self.drain_begins() => {}
        }
        let deadline = Instant::now() + self.shared.config.shutdown_grace;
        while Instant::now() < deadline && !self.is_quiet() {
            tokio::select! {
                () = self.stop.wait() => return,
                () = ring::sleep(limits::DRAIN_POLL) => {}
            }
        }
        // What could not end in time is cut off; its outcomes, if any, have been appended: the last
        // commits are awaited.
        for (_, stream) in self.sessions.borrow().iter() {
            stream.shutdown();
        }
        let deadline = Instant::now() + limits::DRAIN_OVERTIME / 2;
        for sealed in [false, true] {
            if sealed {
                self.own_homes().for_each(Home::seal_open);
            }
            while Instant::now() < deadline && !self.own_homes().all(|h| h.is_quiet()) {
                tokio::select! {
                    () = self.stop.wait() => return,
                    () = ring::sleep(limits::DRAIN_POLL) => {}
                }
            }
        }
    }
}
