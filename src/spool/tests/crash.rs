//! What a crash leaves of the disk, and what recovery may find on it.
use std::collections::{BTreeMap, BTreeSet};

use super::disk::{Disk, Unsynced};
use super::world::{Memory, Promised, Terminal, Waiting, World, lend};
use crate::mail::id::MessageId;
use crate::spool::*;

/// A disk after a crash, and the groups of which something may have landed besides what was answered.
#[derive(Clone)]
pub(super) struct Cut {
    pub(super) disk: Disk,
    pub(super) landed: BTreeSet<GroupSeq>,
}

/// Nothing in flight has landed.
impl From<Disk> for Cut {
    fn from(disk: Disk) -> Cut {
        Cut { disk, landed: BTreeSet::new() }
    }
}

impl From<&Disk> for Cut {
    fn from(disk: &Disk) -> Cut {
        Cut::from(disk.clone())
    }
}

/// What recovery says of a log, its messages by id.
pub(super) fn recover_all(
    config: &LogConfig,
    source: &mut Disk,
    reading: Reading,
) -> (RecoveredLog, Vec<RecoveredMessage>, Vec<Finding>) {
    let (mut log, findings) = recover(config, source, reading).expect("the log opens");
    let mut replay = log.replay();
    let mut messages = Vec::new();
    while let Some(message) = replay.next(config, source, log.live()).expect("what was read is read again") {
        messages.push(message);
    }
    messages.sort_by_key(|m| m.id);
    (log, messages, findings)
}

impl World {
    /// The disk as a power cut leaves it: what was not answered has landed in part or not at all.
    pub(super) fn cut_power(&mut self) -> Cut {
        let mut cut = Cut::from(&self.disk);
        for (seq, write, _) in &self.writes {
            if cut.disk.tear_at_random(write, &mut self.rng) {
                cut.landed.insert(*seq);
            }
        }
        let disk = &mut cut.disk;
        for (_, index, seal) in &self.seals {
            // The seal is written when the index is durable.
            if self.rng.below(2) == 0 {
                disk.tear_at_random(index, &mut self.rng);
            } else {
                disk.write(index);
                disk.tear_at_random(seal, &mut self.rng);
            }
        }
        for (file, new, _, header) in &self.prepares {
            if *new {
                let bytes = self.rng.below(u64::from(self.config.segment_bytes) + 1) as usize;
                disk.files.insert(*file, vec![0; bytes - bytes % 512]);
            }
            let whole = disk.files[file].len() >= header.len();
            if whole && self.rng.below(2) == 0 {
                disk.write(&Unsynced { file: *file, offset: 0, bytes: header.to_vec() });
            }
        }
        for (file, bytes) in &self.deleted {
            if self.rng.below(2) == 0 {
                disk.files.insert(*file, bytes.clone());
            }
        }
        cut
    }

    /// Recovers from what the crash has left and holds what comes back against what was promised.
    pub(super) fn check(&self, cut: impl Into<Cut>) -> Vec<RecoveredMessage> {
        self.recovered(&cut.into()).0
    }

    /// [`World::check`], with what writers can start from: one, and another.
    fn recovered(&self, cut: &Cut) -> (Vec<RecoveredMessage>, [RecoveredLog; 2]) {
        let (messages, log) = self.check_indexed(cut);
        let (other, whole, findings) = recover_all(&self.config, &mut cut.disk.clone(), Reading::Whole);
        assert_eq!(findings, [], "a crash is not corruption, read whole");
        assert_eq!(messages, whole, "an index is as good as its segment");
        (messages, [log, other])
    }

    /// [`World::check`] as the server reads a log.
    pub(super) fn check_indexed(&self, cut: &Cut) -> (Vec<RecoveredMessage>, RecoveredLog) {
        let Cut { disk, landed } = cut;
        let mut source = disk.clone();
        let (log, messages, findings) = recover_all(&self.config, &mut source, Reading::Indexed);
        assert_eq!(findings, [], "a crash is not corruption");
        assert!(source == *disk, "readers never write");
        let found: BTreeMap<_, _> = messages.iter().map(|m| (m.id, m)).collect();
        assert_eq!(found.len(), messages.len(), "one message, one entry");
        for (id, promised) in &self.messages {
            self.check_report(*id, promised, &found, landed);
        }
        for (id, promised) in &self.messages {
            match found.get(id) {
                Some(message) => {
                    self.check_found(*id, message, landed);
                    promised.check_changes(log.live(), message);
                }
                None => assert!(
                    !promised.accepted || self.may_have_ended(*id, landed),
                    "{id} was accepted and is lost"
                ),
            }
        }
        for id in found.keys() {
            assert!(self.messages.contains_key(id), "{id} was never appended, or has long ended");
        }
        (messages, log)
    }

    /// Whether the end of a recipient may be on the disk.
    fn may_be_done(&self, id: MessageId, recipient: u16, landed: &BTreeSet<GroupSeq>) -> bool {
        let possible = |seq: &GroupSeq| landed.contains(seq) || self.lost.contains(seq);
        let ends = |w: &&Waiting| (w.id, w.recipient, w.attempts, w.change) == (id, recipient, None, None);
        match self.messages[&id].standing[usize::from(recipient)].terminal {
            Terminal::Not => false,
            Terminal::Durable => true,
            Terminal::Appended => self.waiting.iter().filter(ends).any(|w| match (w.seq, w.dsn) {
                // A copy made since, for the sake of the other recipients, says so as well.
                (Some(_), _) if self.messages[&id].standing.len() > 1 => true,
                (Some(seq), _) => possible(&seq),
                (None, Some(dsn)) => {
                    let waits = &self.messages[&dsn].waits;
                    waits.is_empty() || waits.iter().any(possible)
                }
                (None, None) => false,
            }),
        }
    }

    fn may_have_ended(&self, id: MessageId, landed: &BTreeSet<GroupSeq>) -> bool {
        let recipients = self.messages[&id].standing.len();
        (0..recipients).all(|r| self.may_be_done(id, r as u16, landed))
    }

    fn check_found(&self, id: MessageId, message: &RecoveredMessage, landed: &BTreeSet<GroupSeq>) {
        let promised = &self.messages[&id];
        assert!(!promised.void, "{id} was refused, durably, and is back");
        assert_eq!(message.envelope, promised.envelope, "the envelope of {id} differs");
        assert!(
            message.states.iter().any(|s| !matches!(s, RecipientState::Done(_))),
            "{id} has ended and is offered"
        );
        for (recipient, (state, standing)) in message.states.iter().zip(&promised.standing).enumerate() {
            match (state, standing.terminal) {
                (RecipientState::Done(_), _) => assert!(
                    self.may_be_done(id, recipient as u16, landed),
                    "{id} {recipient} was not delivered and is done"
                ),
                (RecipientState::Pending { .. }, Terminal::Durable) => {
                    panic!("{id} {recipient} was delivered, durably, and is offered again")
                }
                (RecipientState::Pending { tries, .. }, _) => assert!(
                    (standing.durable_attempts..=standing.attempts).contains(&tries.attempts())
                        && tries.is_told() == (tries.attempts() > 2),
                    "{id} {recipient} is in no legal state: {tries:?}, {standing:?}"
                ),
            }
        }
    }

    /// A bounce and the end it reports are there together, or neither is.
    fn check_report(
        &self,
        dsn: MessageId,
        promised: &Promised,
        found: &BTreeMap<MessageId, &RecoveredMessage>,
        landed: &BTreeSet<GroupSeq>,
    ) {
        let Some((id, recipient)) = promised.reports else { return };
        // What has long ended is not in the model any more, and is not found either.
        let Some(reported) = self.messages.get(&id) else { return };
        let done = match found.get(&id) {
            Some(message) => matches!(message.states[usize::from(recipient)], RecipientState::Done(_)),
            None => reported.accepted,
        };
        if found.contains_key(&dsn) {
            assert!(done, "{dsn} reports the end of {id} {recipient}, which is still to be delivered");
        } else if done {
            assert!(
                self.may_have_ended(dsn, landed),
                "{id} {recipient} has ended in the report {dsn}, which is not there"
            );
        }
    }

    /// A new writer makes its first moves and crashes: what is found then is what was found before.
    fn check_start(&self, mut disk: Disk, recovered: RecoveredLog, messages: &[RecoveredMessage]) {
        let mut log: Log<Memory> = Log::new(self.config.clone(), recovered);
        log.broken = self.log.broken;
        lend(&mut log, self.buffer_bytes);
        log.end_turn();
        while let Some(intent) = log.next_intent() {
            match intent {
                Intent::Prepare { file, new, generation, header } => {
                    if new {
                        disk.files.insert(file, vec![0; self.config.segment_bytes as usize]);
                    }
                    disk.write(&Unsynced { file, offset: 0, bytes: header.into() });
                    log.on_prepared(file, generation, true);
                }
                Intent::Delete { file } => drop(disk.files.remove(&file)),
                // The crash comes before anything is written to the new segments.
                Intent::Write { .. } | Intent::Copy { .. } | Intent::Seal { .. } => {}
            }
        }
        let (_, after, findings) = recover_all(&self.config, &mut disk, Reading::Indexed);
        assert_eq!(findings, [], "a start is not corruption");
        let places = |messages: &[RecoveredMessage]| -> Vec<_> {
            messages.iter().map(|m| (m.id, m.envelope.clone(), m.states.clone())).collect()
        };
        assert_eq!(places(messages), places(&after), "twice is the same, with a start between");
    }

    /// Goes on from what the crash has left with a new writer.
    pub(super) fn restart(&mut self, cut: impl Into<Cut>) {
        let cut = cut.into();
        let (messages, [recovered, other]) = self.recovered(&cut);
        self.check_start(cut.disk.clone(), other, &messages);
        self.copied += self.log.stats().copies;
        self.disk = cut.disk;
        let broken = self.log.broken;
        self.log = Log::new(self.config.clone(), recovered);
        self.log.broken = broken;
        lend(&mut self.log, self.buffer_bytes);
        self.writes.clear();
        self.prepares.clear();
        self.copies.clear();
        self.seals.clear();
        self.deleted.clear();
        self.waiting.clear();
        self.lost.clear();
        self.transaction = None;
        let before = std::mem::take(&mut self.messages);
        for message in messages {
            let promised = before[&message.id].clone();
            self.messages.insert(message.id, promised.found(&message, self.log.live()));
        }
        self.listen();
        self.read_all();
    }
}

impl Promised {
    /// After a restart what was found holds.
    fn found(mut self, message: &RecoveredMessage, live: &LiveTable) -> Promised {
        self.slot = message.slot;
        (self.accepted, self.refused) = (true, false);
        self.waits.clear();
        for (n, (standing, state)) in self.standing.iter_mut().zip(&message.states).enumerate() {
            match *state {
                RecipientState::Done(_) => standing.terminal = Terminal::Durable,
                RecipientState::Pending { tries, .. } => {
                    standing.terminal = Terminal::Not;
                    let attempts = tries.attempts();
                    (standing.attempts, standing.durable_attempts) = (attempts, attempts);
                    standing.changes = super::operator::Changes::found(live, message.slot, n as u16);
                }
            }
        }
        self
    }
}

/// The headers of segments that no group was written to go on saying where the tail was when nothing else
/// does any more: what a later run writes must lie above it.
#[test]
fn mail_after_a_run_that_left_only_headers_is_kept() {
    let mut world = World::new(3);
    world.quiesce();
    world.accept();
    world.quiesce();
    world.deliver_everything();
    let disk = world.disk.clone();
    world.restart(disk);
    // Every file gets a new header, and of the first mail nothing lands.
    world.quiesce();
    world.accept();
    world.turn();
    while !world.prepares.is_empty() {
        world.answer_prepare();
    }
    let disk = world.disk.clone();
    assert!(!world.writes.is_empty());
    world.restart(disk);
    for _ in 0..3 {
        world.answer_prepare();
    }
    world.accept();
    world.turn();
    world.answer(0, true);
    assert_eq!(world.messages.values().filter(|m| m.accepted).count(), 1);
    // One of the headers is older than this run.
    let disk = world.disk.clone();
    world.restart(disk);
    assert_eq!(world.messages.len(), 1);
}
