//! A log, the disk under it, and a model of what was promised to whom.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use super::disk::{Disk, Unsynced};
use crate::clock::{Rng, WallTime};
use crate::mail::address::Address;
use crate::mail::envelope::{BodyForm, BodyKind, Envelope, Notify, Recipient, Return};
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;
use crate::spool::broken::Broken;
use crate::spool::live::DURABLE;
use crate::spool::*;

pub(super) const BLOCK: u32 = 512;
const BUFFER_BYTES: usize = 4096;
const BUFFERS: usize = 5;
/// Rounds in which a log that is to come to rest may copy.
const COPYING_ROUNDS: usize = 1000;

pub(super) struct Memory(pub(super) Vec<u8>);

impl Buffer for Memory {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub(super) fn config() -> LogConfig {
    LogConfig {
        identity: SpoolIdentity { id: 0x1234, secret: 0x5678 },
        log: 3,
        segment_bytes: 16 * 1024,
        block_bytes: BLOCK,
        max_segments: 12,
        slack_segments: 2,
        commits_in_flight: 4,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    Not,
    Appended,
    Durable,
}

#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) terminal: Terminal,
    /// Attempts of the last deferral that was durable, and of the last appended.
    pub(super) durable_attempts: u8,
    pub(super) attempts: u8,
    pub(super) changes: super::operator::Changes,
}

/// What the model knows of a message.
#[derive(Clone, Debug)]
pub(super) struct Promised {
    pub(super) slot: Slot,
    pub(super) envelope: Envelope,
    pub(super) body: Vec<u8>,
    /// Groups that must be durable before it is accepted.
    pub(super) waits: BTreeSet<GroupSeq>,
    /// The 250 was sent.
    pub(super) accepted: bool,
    /// The 451 was sent.
    pub(super) refused: bool,
    /// The abort record is durable.
    pub(super) void: bool,
    /// It is a bounce: the recipient whose end it is.
    pub(super) reports: Option<(MessageId, u16)>,
    /// The log itself writes it again.
    pub(super) kept: bool,
    pub(super) standing: Vec<Standing>,
}

impl Promised {
    pub(super) fn ended(&self) -> bool {
        self.standing.iter().all(|s| s.terminal != Terminal::Not)
    }
}

/// An outcome on its way.
pub(super) struct Waiting {
    pub(super) seq: Option<GroupSeq>,
    pub(super) dsn: Option<MessageId>,
    pub(super) id: MessageId,
    pub(super) recipient: u16,
    pub(super) attempts: Option<u8>,
    pub(super) change: Option<u64>,
}

pub(super) struct Transaction {
    id: MessageId,
    fragments: Vec<FragmentRef>,
    body: Vec<u8>,
}

pub(super) struct World {
    pub(super) config: LogConfig,
    pub(super) buffer_bytes: usize,
    pub(super) rng: Rng,
    pub(super) disk: Disk,
    pub(super) log: Log<Memory>,
    pub(super) messages: BTreeMap<MessageId, Promised>,
    pub(super) waiting: Vec<Waiting>,
    /// Groups that were lost; what the log rewrites of them is durable when it says so.
    pub(super) lost: BTreeSet<GroupSeq>,
    pub(super) writes: Vec<(GroupSeq, Unsynced, Memory)>,
    pub(super) prepares: Vec<(FileIndex, bool, Generation, Box<[u8]>)>,
    pub(super) copies: VecDeque<Slot>,
    /// Indexes and seals being written, one behind the other.
    pub(super) seals: VecDeque<(Generation, Unsynced, Unsynced)>,
    /// Deleted since the directory was last synced: a power cut may bring them back.
    pub(super) deleted: Vec<(FileIndex, Vec<u8>)>,
    pub(super) sealed: u64,
    pub(super) transaction: Option<Transaction>,
    now: u64,
    /// The disk refuses new files and fails writes now and then.
    pub(super) trouble: bool,
    /// The disk has no room for another file.
    pub(super) full: bool,
    /// Files made.
    pub(super) made: u64,
    pub(super) write_fails_one_in: u64,
    /// Live messages at which no more are sent.
    pub(super) crowd: usize,
    pub(super) copied: u64,
    /// Segments put to use a second time.
    pub(super) reused: u64,
    pub(super) failures: u64,
}

pub(super) fn lend(log: &mut Log<Memory>, buffer_bytes: usize) {
    for _ in 0..BUFFERS {
        log.lend(Memory(vec![0xDD; buffer_bytes]));
    }
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        World::with(config(), seed, None)
    }

    /// A log of so few and small blocks that a short history goes round it, with this rule broken.
    pub(super) fn small(seed: u64, broken: Option<Broken>) -> World {
        let config = LogConfig { segment_bytes: 4 * 1024, max_segments: 14, ..config() };
        World::with(config, seed, broken)
    }

    fn with(config: LogConfig, seed: u64, broken: Option<Broken>) -> World {
        let mut log = Log::new(config.clone(), RecoveredLog::default());
        log.broken = broken;
        let buffer_bytes = BUFFER_BYTES.min(config.segment_bytes as usize / 2);
        lend(&mut log, buffer_bytes);
        World {
            config,
            buffer_bytes,
            rng: Rng::new(seed),
            disk: Disk::default(),
            log,
            messages: BTreeMap::new(),
            waiting: Vec::new(),
            lost: BTreeSet::new(),
            writes: Vec::new(),
            prepares: Vec::new(),
            copies: VecDeque::new(),
            seals: VecDeque::new(),
            deleted: Vec::new(),
            reused: 0,
            sealed: 0,
            transaction: None,
            now: 1_700_000_000_000_000,
            trouble: false,
            full: false,
            made: 0,
            write_fails_one_in: 60,
            crowd: usize::MAX,
            copied: 0,
            failures: 0,
        }
    }

    pub(super) fn time(&mut self) -> WallTime {
        self.now += self.rng.below(2_000_000);
        WallTime(self.now)
    }

    fn envelope(&mut self, recipients: u64, bounce: bool) -> Envelope {
        let address = |text: String| Address::parse(text.as_bytes()).expect("valid");
        let recipients = (0..recipients)
            .map(|i| Recipient {
                address: address(format!("r{i}@d{}.example", self.rng.below(9))),
                notify: Notify::from_bits(self.rng.below(16) as u8),
                original: (self.rng.below(2) == 0).then(|| format!("rfc822;o{i}@example.org").into()),
            })
            .collect();
        Envelope {
            reverse_path: (!bounce).then(|| address(format!("s{}@example.org", self.rng.below(100)))),
            recipients,
            body_kind: BodyKind::EightBit,
            body_form: BodyForm::Raw,
            received_at: self.time(),
            ret: (self.rng.below(2) == 0).then_some(Return::Headers),
            envid: (self.rng.below(2) == 0).then(|| "an+2Bid".into()),
            smtp_utf8: self.rng.below(2) == 0,
            ..Envelope::default()
        }
    }

    fn body(&mut self, most: u64) -> Vec<u8> {
        // As large in proportion to the buffers, whatever their size.
        let bytes = self.rng.below(most) as usize * self.buffer_bytes / BUFFER_BYTES;
        let byte = self.rng.next_u64() as u8;
        let mut body: Vec<u8> = (0..bytes).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
        // What is on disk already, as a sender who has seen it would plant it: whole blocks of it.
        if self.rng.below(4) == 0 && !self.disk.files.is_empty() {
            let nth = self.rng.below(self.disk.files.len() as u64) as usize;
            let file = self.disk.files.values().nth(nth).expect("in range");
            let start = self.rng.below((file.len() / 512) as u64) as usize * 512;
            let end = (start + self.buffer_bytes / 4).min(file.len());
            body.extend_from_slice(&file[start..end]);
        }
        body
    }

    fn promise(&mut self, id: MessageId, promised: Promised) {
        assert!(self.messages.insert(id, promised).is_none(), "id given out twice");
    }

    pub(super) fn accept(&mut self) {
        let recipients = if self.rng.below(3) == 0 { 1 + self.rng.below(4) } else { 1 };
        self.accept_for(recipients);
    }

    pub(super) fn accept_for(&mut self, recipients: u64) {
        let (envelope, body) = (self.envelope(recipients, false), self.body(2000));
        let now = self.time();
        let id = self.log.next_id(now);
        let cut = body.len() / 3;
        let parts = [&body[..cut], &body[cut..]];
        let message =
            NewMessage { id, envelope: &envelope, fragments: &[], parts: &parts, reports: None, kept: false };
        if let Ok((slot, seq)) = self.log.append_message(&message) {
            self.promise(id, promised(slot, envelope, body, [seq].into(), None));
        }
    }

    /// The next fragment of a large message, or its end.
    pub(super) fn large(&mut self) {
        let mut transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => {
                let now = self.time();
                Transaction { id: self.log.next_id(now), fragments: Vec::new(), body: Vec::new() }
            }
        };
        if transaction.fragments.len() < 3 && self.rng.below(3) > 0 {
            let body = self.body(1500);
            let mut buffer = Memory(vec![0xEE; self.buffer_bytes]);
            buffer.0[FRAGMENT_HEADROOM..FRAGMENT_HEADROOM + body.len()].copy_from_slice(&body);
            let index = transaction.fragments.len() as u32;
            if let Ok(f) = self.log.append_fragment(transaction.id, index, buffer, body.len() as u32) {
                transaction.fragments.push(f);
                transaction.body.extend_from_slice(&body);
            }
            self.transaction = Some(transaction);
            return;
        }
        let Transaction { id, fragments, mut body } = transaction;
        if fragments.iter().any(|f| self.lost.contains(&f.group)) || self.rng.below(4) == 0 {
            self.log.abort(id, &fragments);
            return;
        }
        let (envelope, tail) = (self.envelope(1, false), self.body(500));
        let parts = [&tail[..]];
        let message = NewMessage {
            id,
            envelope: &envelope,
            fragments: &fragments,
            parts: &parts,
            reports: None,
            kept: false,
        };
        match self.log.append_message(&message) {
            Ok((slot, seq)) => {
                body.extend_from_slice(&tail);
                let open = self.log_unanswered();
                let waits = fragments.iter().map(|f| f.group).filter(|g| open.contains(g)).chain([seq]);
                let waits = waits.collect();
                self.promise(id, promised(slot, envelope, body, waits, None));
            }
            Err(Refusal::Busy) => self.transaction = Some(Transaction { id, fragments, body }),
            Err(_) => self.log.abort(id, &fragments),
        }
    }

    fn log_unanswered(&self) -> BTreeSet<GroupSeq> {
        self.writes.iter().map(|w| w.0).collect()
    }

    pub(super) fn pick_accepted(&mut self) -> Option<(MessageId, u16)> {
        let open: Vec<_> =
            self.messages.iter().filter(|(_, m)| m.accepted && !m.ended()).map(|(id, _)| *id).collect();
        if open.is_empty() {
            return None;
        }
        let id = open[self.rng.below(open.len() as u64) as usize];
        let pending: Vec<u16> = self.messages[&id]
            .standing
            .iter()
            .enumerate()
            .filter(|(_, s)| s.terminal == Terminal::Not)
            .map(|(i, _)| i as u16)
            .collect();
        Some((id, pending[self.rng.below(pending.len() as u64) as usize]))
    }

    pub(super) fn outcome(&mut self) {
        let Some((id, recipient)) = self.pick_accepted() else { return };
        self.outcome_of(id, recipient);
    }

    fn outcome_of(&mut self, id: MessageId, recipient: u16) {
        let message = &self.messages[&id];
        let bounce = message.envelope.reverse_path.is_none();
        let attempts = message.standing[usize::from(recipient)].attempts + 1;
        let reply = Reply::local(250, (2, 0, 0), "a reply of some peer");
        let outcome = match self.rng.below(8) {
            0 if self.rng.below(4) == 0 => return self.notice(),
            0 | 1 if attempts < 127 => return self.defer(id, recipient),
            2 if !bounce => return self.bounce(id, recipient),
            3 => Outcome::Failed(reply),
            4 => Outcome::Removed,
            _ => Outcome::Delivered(reply),
        };
        let (now, slot) = (self.time(), self.messages[&id].slot);
        let Ok(seq) = self.log.append_outcomes(slot, &[(recipient, outcome)], now) else { return };
        assert!(seq.is_some(), "the message is live");
        let standing = &mut self.messages.get_mut(&id).expect("picked").standing[usize::from(recipient)];
        standing.terminal = Terminal::Appended;
        self.waiting.push(Waiting { seq, dsn: None, id, recipient, attempts: None, change: None });
    }

    /// One more attempt in vain, of which a log that has but its reserve left records nothing.
    pub(super) fn defer(&mut self, id: MessageId, recipient: u16) {
        let (now, next, slot) = (self.time(), self.time(), self.messages[&id].slot);
        let standing = &mut self.messages.get_mut(&id).expect("picked").standing[usize::from(recipient)];
        let attempts = standing.attempts + 1;
        let reply = Reply::local(450, (4, 2, 0), "a reply of some peer");
        let deferred = Outcome::Deferred { tries: Tries::new(attempts, attempts > 2), next, reply };
        let Ok(seq) = self.log.append_outcomes(slot, &[(recipient, deferred)], now) else { return };
        standing.attempts = attempts;
        if seq.is_some() {
            let attempts = Some(attempts);
            self.waiting.push(Waiting { seq, dsn: None, id, recipient, attempts, change: None });
        }
    }

    pub(super) fn bounce(&mut self, id: MessageId, recipient: u16) {
        let (envelope, body) = (self.envelope(1, true), self.body(700));
        let now = self.time();
        let dsn = self.log.next_id(now);
        let reports = Some(Reports { id, recipients: &[recipient] });
        let message =
            NewMessage { id: dsn, envelope: &envelope, fragments: &[], parts: &[&body], reports, kept: true };
        let Ok((slot, seq)) = self.log.append_message(&message) else { return };
        self.promise(dsn, promised(slot, envelope, body, [seq].into(), Some((id, recipient))));
        self.messages.get_mut(&id).expect("picked").standing[usize::from(recipient)].terminal =
            Terminal::Appended;
        self.waiting.push(Waiting { seq: None, dsn: Some(dsn), id, recipient, attempts: None, change: None });
    }

    /// A report that ends nobody: of a delay, or of a delivery to a host that sends none.
    fn notice(&mut self) {
        let (envelope, body) = (self.envelope(1, true), self.body(700));
        let now = self.time();
        let id = self.log.next_id(now);
        let message = NewMessage {
            id,
            envelope: &envelope,
            fragments: &[],
            parts: &[&body],
            reports: None,
            kept: true,
        };
        let Ok((slot, seq)) = self.log.append_message(&message) else { return };
        let notice = promised(slot, envelope, body, [seq].into(), None);
        self.promise(id, Promised { kept: true, ..notice });
    }

    /// Takes what the log wants done and what it has to say.
    pub(super) fn turn(&mut self) {
        self.log.end_turn();
        self.listen();
    }

    pub(super) fn listen(&mut self) {
        while let Some(intent) = self.log.next_intent() {
            match intent {
                Intent::Write { seq, file, offset, bytes, buffer } => {
                    assert!(offset >= BLOCK && offset.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK));
                    let bytes = buffer.0[..bytes as usize].to_vec();
                    self.writes.push((seq, Unsynced { file, offset: offset as usize, bytes }, buffer));
                }
                Intent::Prepare { file, new, generation, header } => {
                    self.prepares.push((file, new, generation, header));
                }
                Intent::Copy { slot } => self.copies.push_back(slot),
                Intent::Seal { file, generation, offset, index, seal } => {
                    let behind = offset as usize + index.len();
                    let index = Unsynced { file, offset: offset as usize, bytes: index.into() };
                    let seal = Unsynced { file, offset: behind, bytes: seal.into() };
                    self.seals.push_back((generation, index, seal));
                }
                Intent::Delete { file } => {
                    self.disk.bad.retain(|(bad, _)| *bad != file);
                    let bytes = self.disk.files.remove(&file).expect("it was there");
                    self.deleted.push((file, bytes));
                }
            }
        }
        let mut results = Vec::new();
        self.log.take_results(&mut results);
        for (seq, result) in results {
            let durable = result == GroupResult::Durable;
            if !durable {
                self.lost.insert(seq);
            }
            for message in self.messages.values_mut().filter(|m| m.waits.contains(&seq)) {
                if message.kept {
                    // It is accepted when the log says so; what was lost it writes again.
                    message.waits.retain(|&wait| wait != seq || !durable);
                    continue;
                }
                message.waits.remove(&seq);
                message.refused |= !durable;
                message.accepted = message.waits.is_empty() && !message.refused;
            }
            let (done, rest) =
                std::mem::take(&mut self.waiting).into_iter().partition(|w| durable && w.seq == Some(seq));
            self.waiting = rest;
            self.recorded(done);
        }
        self.settled();
    }

    /// These outcomes are durable.
    fn recorded(&mut self, done: Vec<Waiting>) {
        for w in done {
            let Some(message) = self.messages.get_mut(&w.id) else { continue };
            let standing = &mut message.standing[usize::from(w.recipient)];
            match w.attempts {
                _ if w.change.is_some() => standing.changes.durable(w.change),
                Some(attempts) => standing.durable_attempts = standing.durable_attempts.max(attempts),
                None => standing.terminal = Terminal::Durable,
            }
        }
    }

    /// What becomes true by the log's own doing: bounces, and what it wrote again.
    fn settled(&mut self) {
        let log = &self.log;
        for (id, message) in self.messages.iter_mut().filter(|(_, m)| m.kept && !m.accepted) {
            message.accepted = log.live.is(message.slot, *id) && log.live.has(message.slot, DURABLE);
        }
        let rewritten = !self.lost.is_empty() && log.rewritten();
        let messages = &self.messages;
        let lost = &self.lost;
        let (done, rest) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| match (w.seq, w.dsn) {
                (Some(seq), _) => rewritten && lost.contains(&seq),
                (None, Some(dsn)) => messages[&dsn].accepted,
                (None, None) => false,
            });
        self.waiting = rest;
        self.recorded(done);
        if rewritten {
            self.messages.values_mut().filter(|m| m.refused).for_each(|m| m.void = true);
        }
    }

    pub(super) fn answer_write(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.rng.below(self.writes.len() as u64) as usize;
        let ok = !(self.trouble && self.rng.below(self.write_fails_one_in) == 0);
        self.answer(at, ok);
    }

    pub(super) fn answer(&mut self, at: usize, ok: bool) {
        let (seq, write, buffer) = self.writes.swap_remove(at);
        if ok {
            self.disk.write(&write);
        } else {
            self.disk.tear_at_random(&write, &mut self.rng);
            self.failures += 1;
        }
        self.log.on_written(seq, buffer, ok);
        self.listen();
    }

    pub(super) fn answer_prepare(&mut self) {
        let Some((file, new, generation, header)) = self.prepares.pop() else { return };
        let fails = self.trouble && self.rng.below(6) == 0;
        let has_no_room = new && self.full;
        let ok = !fails && !has_no_room;
        if new && ok {
            // It comes with a sync of the directory.
            self.deleted.clear();
        }
        if new {
            let bytes = if ok { self.config.segment_bytes as usize } else { self.rng.below(9_000) as usize };
            self.disk.bad.retain(|(bad, _)| *bad != file);
            self.disk.files.insert(file, vec![0; bytes]);
        }
        if ok {
            self.disk.write(&Unsynced { file, offset: 0, bytes: header.into() });
        }
        self.reused += u64::from(ok && !new);
        self.made += u64::from(ok && new);
        self.log.on_prepared(file, generation, ok);
        self.listen();
    }

    /// The disk takes no segment.
    pub(super) fn refuse_prepares(&mut self) {
        while let Some((file, new, generation, _)) = self.prepares.pop() {
            if new {
                self.disk.files.insert(file, Vec::new());
            }
            self.log.on_prepared(file, generation, false);
            self.listen();
        }
    }

    pub(super) fn answer_copy(&mut self) {
        let Some(slot) = self.copies.pop_front() else { return };
        let message = match self.log.pin(slot) {
            None => Err(ReadError::Gone),
            Some(plan) => {
                let broken = self.trouble && self.rng.below(10) == 0;
                let read = self.read(&plan);
                self.log.unpin(&plan);
                if broken { Err(ReadError::Io(std::io::ErrorKind::Other)) } else { read }
            }
        };
        self.log.on_copy_read(slot, message);
        self.listen();
    }

    fn answer_seal(&mut self) {
        let Some((generation, index, seal)) = self.seals.pop_front() else { return };
        let ok = !(self.trouble && self.rng.below(10) == 0);
        if ok {
            self.disk.write(&index);
            self.disk.write(&seal);
            self.sealed += 1;
        } else {
            self.disk.tear_at_random(&index, &mut self.rng);
        }
        self.log.on_sealed(generation, ok);
        self.listen();
    }

    pub(super) fn read(&self, plan: &ReadPlan) -> Result<StoredMessage, ReadError> {
        let extents: io::Result<Vec<&[u8]>> = plan.extents.iter().map(|e| self.disk.read_extent(e)).collect();
        let extents = extents.map_err(|error| ReadError::Io(error.kind()))?;
        decode_message(plan, &extents, self.config.identity)
    }

    /// Every accepted message can be read back, byte for byte.
    pub(super) fn read_all(&mut self) {
        let ids: Vec<_> =
            self.messages.iter().filter(|(_, m)| m.accepted && !m.ended()).map(|(id, _)| *id).collect();
        for id in ids {
            let promised = self.messages[&id].clone();
            let plan = self.log.pin(promised.slot).expect("accepted messages are live");
            let message = self.read(&plan).expect("the disk is whole");
            assert_eq!((message.id, message.hold), (id, None));
            assert!(message.body == promised.body, "the body of {id} differs");
            assert_eq!(message.envelope, promised.envelope);
            self.log.unpin(&plan);
        }
    }

    /// One random event.
    pub(super) fn step(&mut self) {
        match self.rng.below(20) {
            0..=4 if self.log.live().len() >= self.crowd => self.outcome(),
            0..=3 => self.accept(),
            4 => self.large(),
            5 => self.change(),
            6..=8 => self.outcome(),
            9..=11 => self.turn(),
            12..=15 => self.answer_write(),
            16..=17 => self.answer_prepare(),
            18 if self.rng.below(2) == 0 => self.answer_seal(),
            18 => self.answer_copy(),
            _ => self.log.retry_prepare(),
        }
        self.listen();
    }

    /// What has been in flight for long gets its answer.
    pub(super) fn answer_something(&mut self) {
        match self.rng.below(4) {
            0 => self.answer_prepare(),
            1 => self.answer_seal(),
            // As when the directory is synced for another reason.
            2 if self.writes.is_empty() => self.deleted.clear(),
            _ => self.answer_write(),
        }
    }

    /// Answers everything until nothing is left to answer.
    pub(super) fn quiesce(&mut self) {
        self.trouble = false;
        self.log.retry_prepare();
        for round in 0.. {
            assert!(round < 10_000, "the log never comes to rest: {:?}", self.log.stats());
            self.turn();
            // Segments of so few blocks may hold too little of what is copied for an end to it.
            let copies = round < COPYING_ROUNDS && !self.copies.is_empty();
            let quiet = self.writes.is_empty() && self.prepares.is_empty() && self.seals.is_empty();
            if quiet && !copies {
                return;
            }
            self.answer_prepare();
            self.answer_seal();
            while !self.writes.is_empty() {
                self.answer(0, true);
            }
            if copies {
                self.answer_copy();
            }
        }
    }

    /// Every recipient gets a terminal outcome, and it is durable.
    pub(super) fn deliver_everything(&mut self) {
        self.quiesce();
        for _ in 0..100_000 {
            let Some((id, recipient)) = self.pick_accepted() else { break };
            self.outcome_of(id, recipient);
            // A bounce on its way is picked when it is durable.
            if self.rng.below(8) == 0 || self.pick_accepted().is_none() {
                self.quiesce();
            }
        }
        if let Some(Transaction { id, fragments, .. }) = self.transaction.take() {
            self.log.abort(id, &fragments);
        }
        self.quiesce();
    }
}

fn promised(
    slot: Slot,
    envelope: Envelope,
    body: Vec<u8>,
    waits: BTreeSet<GroupSeq>,
    reports: Option<(MessageId, u16)>,
) -> Promised {
    let fresh =
        Standing { terminal: Terminal::Not, durable_attempts: 0, attempts: 0, changes: Default::default() };
    let standing = vec![fresh; envelope.recipients.len()];
    let (accepted, refused, void) = (false, false, false);
    let kept = reports.is_some();
    Promised { slot, envelope, body, waits, accepted, refused, void, reports, kept, standing }
}
