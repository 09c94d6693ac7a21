//! A log and everything that lives with it: its files, its commits, the messages it holds.
//!
//! Owns: carrying out the log's intents on the ring, waking those who wait for a commit, the cache of
//! bodies, and the answers that wait to be recorded; `reading` brings messages back. Promises:
//! [`Watch::wait`](super::fate::Watch::wait) says true only when the group is on the device under the
//! durability in force; memory is a cache, never the only copy. Must not: decide what to write (the log
//! does) or where mail goes (the shards do).
mod reading;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use super::cache::Cache;
use super::counters::Counters;
use super::failing::Failing;
use super::fate::{Fates, Watch};
use super::message::Message;
use super::outbound::Connection;
use super::parked::Parked;
use super::signal::{Broadcast, Signal};
use super::spool_dir::segment_path;
use super::time::Clock;
use crate::clock::{Tick, WallTime};
use crate::limits;
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::ring::{self, AlignedBuf, DirectFile, OpenFile, Unprepared};
use crate::schedule::{ConnId, Entry};
use crate::spool::{
    Buffer, FileIndex, FragmentRef, Generation, GroupResult, GroupSeq, Intent, Log, Mark, NewMessage,
    Outcome, RecipientState, Refusal, Slot, SpoolIdentity, Standing,
};

/// A ring buffer as the log sees it.
pub struct SpoolBuf(pub AlignedBuf);

impl Buffer for SpoolBuf {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// What a home needs to know of its surroundings.
pub struct HomeConfig {
    pub index: u8,
    pub part_limit: super::PartLimit,
    pub identity: SpoolIdentity,
    pub dir: PathBuf,
    pub segment_bytes: u64,
    /// How segments are opened for writing.
    pub open: OpenFile,
    pub cache_bytes: usize,
    /// Body bytes read back at a time; one message may exceed it.
    pub load_bytes: u64,
}

/// A write the log has asked for.
struct Write {
    seq: GroupSeq,
    file: DirectFile,
    offset: u32,
    bytes: u32,
    buffer: SpoolBuf,
    started: Tick,
}

/// Outcomes that wait for the log.
struct Unrecorded {
    slot: Slot,
    id: MessageId,
    outcomes: Vec<(u16, Outcome)>,
    at: WallTime,
}

/// What a host said of recipients that are to be tried again.
#[derive(Clone)]
pub struct Refusals {
    /// Empty if nobody was reached.
    pub host: Rc<str>,
    pub replies: Vec<(u16, Reply)>,
}

pub struct Home {
    pub config: HomeConfig,
    log: RefCell<Log<SpoolBuf>>,
    files: RefCell<HashMap<FileIndex, DirectFile>>,
    fates: Fates,
    /// Writes that wait for a writer, and the writers that wait for one.
    writes: RefCell<VecDeque<Write>>,
    idle_writers: RefCell<Vec<Rc<Signal>>>,
    /// For the log's answers; empty between uses but for its room.
    results: RefCell<Vec<(GroupSeq, GroupResult)>>,
    /// Raised when something was appended.
    commit: Signal,
    /// Raised when a write has failed: what other logs have in flight on this file system is in doubt.
    pub fault: Signal,
    /// Raised when a commit has ended: room, perhaps.
    pub progress: Broadcast,
    cache: RefCell<Cache>,
    unrecorded: RefCell<VecDeque<Unrecorded>>,
    refusals: RefCell<HashMap<Entry, Refusals>>,
    /// Recipients whose failure is being written.
    failing: RefCell<HashSet<(Slot, u16)>>,
    pub connections: RefCell<HashMap<(u8, ConnId), Rc<Connection>>>,
    /// What operators hold.
    pub parked: RefCell<Parked>,
    /// What operators return to its senders.
    pub to_fail: Failing,
    loading_bytes: Rc<Cell<u64>>,
    /// Messages read back and still in use, so that many deliveries of one share a single copy.
    loaded: RefCell<HashMap<Slot, Weak<Message>>>,
    counters: Rc<Counters>,
    clock: Clock,
    writes_in_flight: Cell<usize>,
    /// The last attempt to prepare a segment failed.
    cannot_prepare: Cell<bool>,
}

impl Home {
    pub fn new(config: HomeConfig, log: Log<SpoolBuf>, counters: Rc<Counters>, clock: Clock) -> Rc<Home> {
        let cache = RefCell::new(Cache::new(config.cache_bytes));
        Rc::new(Home {
            config,
            log: RefCell::new(log),
            files: RefCell::default(),
            fates: Fates::default(),
            writes: RefCell::default(),
            idle_writers: RefCell::default(),
            results: RefCell::default(),
            commit: Signal::default(),
            fault: Signal::default(),
            progress: Broadcast::default(),
            cache,
            unrecorded: RefCell::default(),
            refusals: RefCell::default(),
            failing: RefCell::default(),
            connections: RefCell::default(),
            parked: RefCell::default(),
            to_fail: Failing::default(),
            loading_bytes: Rc::default(),
            loaded: RefCell::default(),
            counters,
            clock,
            writes_in_flight: Cell::new(0),
            cannot_prepare: Cell::new(false),
        })
    }

    // ── Writing ──────────────────────────────────────────────────────────────────────────────────

    /// The task that closes a group at the end of each turn in which something was appended.
    pub async fn run_commits(self: Rc<Self>) {
        self.pump();
        loop {
            self.commit.wait().await;
            ring::yield_turn().await;
            self.log.borrow_mut().end_turn();
            self.pump();
        }
    }

    /// The task that tries again what a lack of room or a fault has stopped.
    pub async fn run_retries(self: Rc<Self>) {
        loop {
            ring::sleep(limits::SPOOL_RETRY_WAIT).await;
            self.log.borrow_mut().retry_prepare();
            self.record_waiting();
            self.pump();
        }
    }

    pub fn next_id(&self, now: WallTime) -> MessageId {
        self.log.borrow_mut().next_id(now)
    }

    pub fn admits(&self, bytes: u64) -> Result<(), Refusal> {
        self.log.borrow().admits(bytes)
    }

    /// See [`Log::room_for_mail`].
    pub fn room_for_mail(&self) -> Result<u64, Refusal> {
        self.log.borrow().room_for_mail()
    }

    /// Whether a delivery may start: its outcome has a place to go.
    pub fn may_deliver(&self) -> bool {
        self.log.borrow().takes_outcomes() && self.unrecorded.borrow().len() < limits::UNRECORDED_OUTCOMES
    }

    pub fn append(&self, message: &NewMessage<'_>) -> Result<(Slot, GroupSeq), Refusal> {
        let appended = self.log.borrow_mut().append_message(message)?;
        self.appended(appended.1);
        Ok(appended)
    }

    pub fn append_fragment(
        &self,
        id: MessageId,
        index: u32,
        buffer: AlignedBuf,
        body_bytes: u32,
    ) -> Result<FragmentRef, (Refusal, AlignedBuf)> {
        let appended = self.log.borrow_mut().append_fragment(id, index, SpoolBuf(buffer), body_bytes);
        match appended {
            Ok(fragment) => {
                self.appended(fragment.group);
                Ok(fragment)
            }
            Err((refusal, buffer)) => Err((refusal, buffer.0)),
        }
    }

    pub fn abort(&self, id: MessageId, fragments: &[FragmentRef]) {
        if !fragments.is_empty() {
            self.log.borrow_mut().abort(id, fragments);
            self.commit.raise();
        }
    }

    fn appended(&self, group: GroupSeq) {
        self.fates.open(group);
        self.commit.raise();
    }

    /// See [`Fates::watch`].
    pub fn watch(&self, group: GroupSeq) -> Watch {
        self.fates.watch(group)
    }

    /// Carries out what the log wants done.
    fn pump(self: &Rc<Self>) {
        loop {
            let intent = self.log.borrow_mut().next_intent();
            match intent {
                None => return,
                Some(Intent::Write { seq, file, offset, bytes, buffer }) => {
                    self.write(seq, file, offset, bytes, buffer);
                }
                Some(Intent::Prepare { file, new, generation, header }) => {
                    let home = self.clone();
                    ring::spawn(async move {
                        let result = home.prepare(file, new, &header).await;
                        home.say_prepared(file, result.as_ref().err());
                        if let Err(Unprepared::Fault(_)) = result {
                            home.log.borrow_mut().fail_all_in_flight();
                            home.fault.raise();
                        }
                        home.prepared(file, generation, result.is_ok());
                    });
                }
                Some(Intent::Seal { file, generation, offset, index, seal }) => {
                    let home = self.clone();
                    self.writes_in_flight.set(self.writes_in_flight.get() + 1);
                    ring::spawn(async move { home.seal((file, generation), offset, &index, &seal).await });
                }
                Some(Intent::Copy { slot }) => {
                    let home = self.clone();
                    ring::spawn(async move { home.copy(slot).await });
                }
                Some(Intent::Delete { file }) => {
                    self.files.borrow_mut().remove(&file);
                    let path = segment_path(&self.config.dir, file);
                    ring::spawn(async move {
                        let removed = ring::blocking(move || std::fs::remove_file(path)).await;
                        if let Err(error) = removed {
                            tracing::warn!(file = file.0, %error, "a spare segment could not be deleted");
                        }
                    });
                }
            }
        }
    }

    fn write(self: &Rc<Self>, seq: GroupSeq, file: FileIndex, offset: u32, bytes: u32, buffer: SpoolBuf) {
        let file = self.files.borrow().get(&file).cloned().expect("a segment is prepared before it is used");
        let started = self.clock.tick();
        self.writes_in_flight.set(self.writes_in_flight.get() + 1);
        let _ = self.counters.group_bytes.borrow_mut().record(u64::from(bytes));
        self.writes.borrow_mut().push_back(Write { seq, file, offset, bytes, buffer, started });
        match self.idle_writers.borrow_mut().pop() {
            Some(writer) => writer.raise(),
            None => {
                ring::spawn(self.clone().run_writer());
            }
        }
    }

    /// A task that carries out one write after the other. Commits find one waiting; the fragments of many
    /// large bodies at once have more made.
    async fn run_writer(self: Rc<Self>) {
        let signal = Rc::new(Signal::default());
        loop {
            while let Some(write) = self.next_write() {
                self.carry_out(write).await;
            }
            if self.idle_writers.borrow().len() >= limits::COMMIT_BUFFERS {
                return;
            }
            self.idle_writers.borrow_mut().push(signal.clone());
            signal.wait().await;
        }
    }

    fn next_write(&self) -> Option<Write> {
        self.writes.borrow_mut().pop_front()
    }

    async fn carry_out(self: &Rc<Self>, write: Write) {
        let Write { seq, file, offset, bytes, buffer, started } = write;
        let (result, buffer) = file.write_at(buffer.0, bytes as usize, offset.into()).await;
        self.writes_in_flight.set(self.writes_in_flight.get() - 1);
        // A spool that was deleted under the server takes every write, and keeps none.
        let result = result.and_then(|()| file.must_have_name());
        let took = self.clock.tick().since(started);
        let _ = self.counters.commit_us.borrow_mut().record(took.as_micros().max(1) as u64);
        if let Err(error) = &result {
            tracing::error!(%error, "a commit failed; what it held is refused or written again");
        }
        // A fragment's buffer goes back to its pool when it is dropped.
        drop(self.log.borrow_mut().on_written(seq, SpoolBuf(buffer), result.is_ok()));
        if result.is_err() {
            self.log.borrow_mut().fail_all_in_flight();
            self.fault.raise();
        }
        self.after_completion();
    }

    /// Writes the index of a full segment, then its seal.
    async fn seal(
        self: &Rc<Self>,
        (file, generation): (FileIndex, Generation),
        offset: u32,
        index: &[u8],
        seal: &[u8],
    ) {
        let target = self.files.borrow().get(&file).cloned();
        let target = target.expect("a segment is not recycled before its seal is answered");
        let mut result = Ok(());
        let mut at = u64::from(offset);
        // In pieces, so that commits are not kept waiting.
        for piece in index.chunks(limits::SEAL_WRITE_BYTES).chain([seal]) {
            let mut buffer = AlignedBuf::zeroed(piece.len());
            buffer[..piece.len()].copy_from_slice(piece);
            result = target.write_at(buffer, piece.len(), at).await.0;
            if result.is_err() {
                break;
            }
            at += piece.len() as u64;
        }
        self.writes_in_flight.set(self.writes_in_flight.get() - 1);
        self.log.borrow_mut().on_sealed(generation, result.is_ok());
        if let Err(error) = result {
            tracing::error!(%error, "a full segment could not be sealed");
            self.log.borrow_mut().fail_all_in_flight();
            self.fault.raise();
        }
        self.after_completion();
    }

    /// Seals what is open, at the end of an orderly stop.
    pub fn seal_open(self: &Rc<Self>) {
        self.log.borrow_mut().seal_open();
        self.pump();
    }

    /// Another log on the same file system had a failed write. The kernel may have told only that one
    /// of a lost sync, so no commit in flight can be trusted.
    pub fn distrust_commits(self: &Rc<Self>) {
        self.log.borrow_mut().fail_all_in_flight();
        self.after_completion();
    }

    fn after_completion(self: &Rc<Self>) {
        let mut results = self.results.take();
        self.log.borrow_mut().take_results(&mut results);
        for (group, result) in results.drain(..) {
            self.fates.decide(group, result == GroupResult::Durable);
        }
        self.results.replace(results);
        self.record_waiting();
        self.progress.raise();
        // A commit slot is free: what was gathered meanwhile may go now.
        self.log.borrow_mut().end_turn();
        self.pump();
    }

    /// Said when it begins and when it ends: a full disk is tried every second.
    fn say_prepared(&self, file: FileIndex, error: Option<&Unprepared>) {
        if let Some(Unprepared::Fault(error)) = error {
            tracing::error!(file = file.0, %error, "a sync has failed: what is being committed is refused or written again");
        }
        if self.cannot_prepare.replace(error.is_some()) == error.is_some() {
            return;
        }
        match error {
            Some(error) => tracing::error!(
                file = file.0, %error, dir = %self.config.dir.display(),
                "no spool segment can be prepared: when those at hand are used up, new mail is refused"
            ),
            None => tracing::info!(dir = %self.config.dir.display(), "spool segments can be prepared again"),
        }
    }

    async fn prepare(&self, file: FileIndex, new: bool, header: &[u8]) -> Result<(), Unprepared> {
        let path = segment_path(&self.config.dir, file);
        if new {
            // A file that is there already has the wrong size or was never finished. Its descriptor goes
            // with it, or commits would go to a file without a name.
            self.files.borrow_mut().remove(&file);
            let (path, bytes) = (path.clone(), self.config.segment_bytes);
            let made = ring::blocking(move || {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Unprepared::before_writing(error));
                    }
                    _ => {}
                }
                ring::prepare_segment(&path, bytes)
            });
            made.await?;
        }
        let opened = self.files.borrow().get(&file).cloned();
        let target = match opened {
            Some(target) => target,
            None => {
                let target = DirectFile::open(&path, self.config.open).map_err(Unprepared::before_writing)?;
                self.files.borrow_mut().insert(file, target.clone());
                target
            }
        };
        let mut buffer = AlignedBuf::zeroed(header.len());
        buffer[..header.len()].copy_from_slice(header);
        let bytes = buffer.len();
        let written = target.write_at(buffer, bytes, 0).await.0;
        written.and_then(|()| target.must_have_name()).map_err(Unprepared::Fault)
    }

    fn prepared(self: &Rc<Self>, file: FileIndex, generation: Generation, ok: bool) {
        self.log.borrow_mut().on_prepared(file, generation, ok);
        self.log.borrow_mut().end_turn();
        self.record_waiting();
        self.progress.raise();
        self.pump();
    }

    /// Opens a segment that recovery found, so that it can be read.
    pub fn open_segment(&self, file: FileIndex) -> std::io::Result<()> {
        let target = DirectFile::open(&segment_path(&self.config.dir, file), self.config.open)?;
        self.files.borrow_mut().insert(file, target);
        Ok(())
    }

    // ── Outcomes ─────────────────────────────────────────────────────────────────────────────────

    /// Has the outcomes recorded, now or as soon as the log takes them. Nothing happens if the slot is
    /// no longer the message's: an operator has removed it.
    pub fn record(&self, slot: Slot, id: MessageId, outcomes: Vec<(u16, Outcome)>, at: WallTime) {
        self.unrecorded.borrow_mut().push_back(Unrecorded { slot, id, outcomes, at });
        self.record_waiting();
    }

    /// Records that an operator has removed these recipients, as soon as the log takes it.
    pub async fn record_removal(
        &self,
        slot: Slot,
        recipients: &[u16],
        at: WallTime,
    ) -> Result<Watch, Refusal> {
        let outcomes: Vec<_> = recipients.iter().map(|&r| (r, Outcome::Removed)).collect();
        let watch = self.when_taken(|log| log.append_outcomes(slot, &outcomes, at)).await?;
        if self.log.borrow().live().get(slot).is_none_or(|m| m.pending == 0) {
            self.cache.borrow_mut().remove(slot);
        }
        Ok(watch)
    }

    /// Records what an operator has decided of these recipients, as soon as the log takes it.
    pub async fn record_change(
        &self,
        slot: Slot,
        recipients: &[u16],
        standing: Standing,
        at: WallTime,
    ) -> Result<Watch, Refusal> {
        self.when_taken(|log| log.append_change(slot, recipients, standing.clone(), at).map(Some)).await
    }

    async fn when_taken(
        &self,
        mut append: impl FnMut(&mut Log<SpoolBuf>) -> Result<Option<GroupSeq>, Refusal>,
    ) -> Result<Watch, Refusal> {
        loop {
            let appended = append(&mut self.log.borrow_mut());
            match appended {
                Ok(Some(group)) => {
                    self.appended(group);
                    return Ok(self.watch(group));
                }
                Ok(None) => return Ok(Watch::of_durable()),
                Err(Refusal::Busy) => self.progress.wait().await,
                Err(refusal) => return Err(refusal),
            }
        }
    }

    fn record_waiting(&self) {
        let mut unrecorded = self.unrecorded.borrow_mut();
        while let Some(Unrecorded { slot, id, outcomes, at }) = unrecorded.front() {
            if self.log.borrow().live().get(*slot).is_none_or(|m| m.id != *id) {
                // The DSN's commit record was its outcome already, or an operator has removed it.
                unrecorded.pop_front();
                continue;
            }
            let appended = self.log.borrow_mut().append_outcomes(*slot, outcomes, *at);
            match appended {
                Ok(group) => {
                    group.into_iter().for_each(|group| self.appended(group));
                    let done = self.log.borrow().live().get(*slot).is_none_or(|m| m.pending == 0);
                    if done {
                        self.cache.borrow_mut().remove(*slot);
                    }
                    unrecorded.pop_front();
                }
                Err(_) => return,
            }
        }
    }

    /// Outcomes that are in memory only.
    pub fn unrecorded(&self) -> usize {
        self.unrecorded.borrow().len()
    }

    /// Nothing waits to be written and nothing is being written.
    pub fn is_quiet(&self) -> bool {
        self.writes_in_flight.get() == 0 && self.unrecorded.borrow().is_empty() && self.fates.is_empty()
    }

    /// Recipients of the part that may be delivered to.
    pub fn pending(&self, message: &Message, entry: Entry) -> Vec<u16> {
        let mut recipients = self.unfinished(message, entry);
        recipients.retain(|&r| {
            self.log.borrow().live().standing(entry.slot, r).is_none_or(|s| s.mark == Mark::None)
        });
        recipients
    }

    /// Recipients of the part that have no final outcome, recorded or on its way.
    pub fn unfinished(&self, message: &Message, entry: Entry) -> Vec<u16> {
        let most = &*self.config.part_limit;
        let Some((_, range)) = message.envelope.parts(most).nth(entry.part.into()) else {
            return Vec::new();
        };
        range.map(|r| r as u16).filter(|&r| self.is_unfinished(entry.slot, r)).collect()
    }

    fn is_unfinished(&self, slot: Slot, recipient: u16) -> bool {
        let log = self.log.borrow();
        matches!(log.live().state(slot, recipient), Some(RecipientState::Pending { .. }))
            && log.live().standing(slot, recipient).is_none_or(|s| s.mark != Mark::Failing)
            && !self.failing.borrow().contains(&(slot, recipient))
    }

    /// [`Home::unfinished`] without the message, where that can be told: a message for one recipient.
    pub fn unfinished_without_body(&self, entry: Entry) -> Option<Vec<u16>> {
        let Some(live) = self.log.borrow().live().get(entry.slot) else { return Some(Vec::new()) };
        if live.recipients != 1 {
            return None;
        }
        Some(if self.is_unfinished(entry.slot, 0) { vec![0] } else { Vec::new() })
    }

    /// [`Home::unfinished`] of a part of the message `id`, if that is in the slot.
    pub async fn unfinished_of(self: &Rc<Self>, entry: Entry, id: MessageId) -> Vec<u16> {
        if self.log.borrow().live().get(entry.slot).is_none_or(|m| m.id != id) {
            return Vec::new();
        }
        if let Some(known) = self.unfinished_without_body(entry) {
            return known;
        }
        match self.load(entry.slot).await {
            Ok(message) if message.id == id => self.unfinished(&message, entry),
            _ => Vec::new(),
        }
    }

    pub fn mark_failing(&self, slot: Slot, recipients: impl Iterator<Item = u16>) {
        self.failing.borrow_mut().extend(recipients.map(|r| (slot, r)));
    }

    pub fn unmark_failing(&self, slot: Slot, recipients: impl Iterator<Item = u16>) {
        let mut failing = self.failing.borrow_mut();
        for r in recipients {
            failing.remove(&(slot, r));
        }
    }

    /// Keeps what a host said until the shard has set the next attempt.
    pub fn remember_refusals(&self, entry: Entry, refusals: Refusals) {
        self.refusals.borrow_mut().insert(entry, refusals);
    }

    /// What a host has just said of the entry.
    pub fn refusals_of(&self, entry: Entry) -> Option<Refusals> {
        self.refusals.borrow().get(&entry).cloned()
    }

    pub fn take_refusals(&self, entry: Entry) -> Option<Refusals> {
        self.refusals.borrow_mut().remove(&entry)
    }

    pub fn log(&self) -> std::cell::Ref<'_, Log<SpoolBuf>> {
        self.log.borrow()
    }
}
