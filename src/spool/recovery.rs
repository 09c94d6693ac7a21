//! Recovery: from segment files to the messages that are owed.
//!
//! Owns: finding groups in segments, telling a crash from corruption, and what the writer starts from.
//! Promises: it never writes; twice over the same bytes it says the same; memory is bounded by the table of
//! what is live and one read window; damage costs what is damaged and is reported as a [`Finding`]. Must not:
//! guess: a version it does not know is an error, never a loss.
//!
//! | what is found | what it means |
//! |---|---|
//! | hole or torn group at or above the run's durable mark | a crash: nobody was told it was written |
//! | hole or damaged frame below the mark, at or above the tail | corruption: reported, the rest is kept |
//! | groups below the tail | dead: ignored |
//! | groups of another generation than the segment's | an earlier use of the file: ignored |
//! | groups behind the end that a later header states | never acknowledged: ignored |
//! | segment header unreadable | the groups say the same |
//! | seal and index whole | the index stands for the groups: all of them are durable |
//! | no seal, or a damaged one; a damaged index | the groups are read; damage to the index is reported |
//! | a seal in a segment that a later header closes | the groups are read up to that end |
//! | no header and no groups | the file is free |
//! | unknown version, other spool | [`RecoveryError`]: nothing is touched |
mod merge;
mod replay;
mod scan;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;

use super::format::{Closes, GroupHeader, SegmentHeader};
use super::live::LiveTable;
use super::reader::Hold;
use super::seal::{Seal, entries};
use super::segments::{FreeFile, Segment};
use super::{FileIndex, Generation, GroupSeq, LogConfig, MessageId};
use merge::{Found, Merge};
pub use replay::Replay;
use scan::{Identified, Scan, Window};

/// Sequence numbers left out after a recovery: more than a dead writer can have had in flight unseen.
const SEQ_GAP: u64 = 1 << 16;

/// The segment files of one log, as recovery reads them. What is read must be durable: the edge syncs
/// every file first, or a power cut could take back what was recovered.
pub trait SegmentSource {
    /// Every segment file there is.
    fn files(&mut self) -> io::Result<Vec<FileIndex>>;
    /// Length of a file.
    fn bytes(&mut self, file: FileIndex) -> io::Result<u64>;
    /// Fills `buf` from `offset`. Never asked past the file's length.
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// How much of a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Indexes, and what has none: enough to go on from. Damage to a body is found when it is read.
    Indexed,
    /// Every record, and the indexes held against them.
    Whole,
}

/// What the writer starts from. `Default` is an empty log.
#[derive(Debug, Default)]
pub struct RecoveredLog {
    pub(super) segments: VecDeque<Segment>,
    pub(super) free: VecDeque<FreeFile>,
    pub(super) live: LiveTable,
    pub(super) next_generation: Generation,
    pub(super) next_seq: GroupSeq,
    pub(super) last_id: Option<MessageId>,
    replay: Replay,
}

impl RecoveredLog {
    /// What hands out the messages, once; to be used before anything is written to the log.
    pub fn replay(&mut self) -> Replay {
        std::mem::take(&mut self.replay)
    }
}

/// What exactly is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A frame (or what is left of a group behind one), with its bytes as they are on disk.
    Frame(Vec<u8>),
    /// A fragment of this message is missing or damaged: the message cannot be delivered.
    Fragment(MessageId),
    /// The commit record of this message makes no sense although its checksum holds.
    Record(MessageId),
}

/// Something an operator must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Bytes that were durable are not what was written. What else they held is unknown.
    Damaged { file: FileIndex, offset: u32, damage: Damage },
    /// Groups that were durable are not there: a damaged header, or a missing segment.
    Missing { from: GroupSeq, below: GroupSeq },
    /// A message that must not be delivered by this version. It stays in the log.
    Held { id: MessageId, hold: Hold },
    /// The header of a segment is unreadable. Nothing is lost by it.
    HeaderLost { file: FileIndex, generation: Generation },
    /// The index of a sealed segment is damaged, or leaves out what the segment holds. Nothing is lost by
    /// it: the segment was read from end to end.
    IndexLost { file: FileIndex, generation: Generation },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Damaged { file, offset, damage } => {
                write!(f, "segment {} is damaged at byte {offset}: ", file.0)?;
                match damage {
                    Damage::Frame(bytes) => write!(f, "{} bytes of records are unreadable", bytes.len()),
                    Damage::Fragment(id) => write!(f, "a part of message {id} is unreadable"),
                    Damage::Record(id) => write!(f, "the record of message {id} makes no sense"),
                }
            }
            Finding::Missing { from, below } => {
                write!(f, "groups {} to {} were durable and are missing", from.0, below.0 - 1)
            }
            Finding::Held { id, hold } => write!(f, "message {id} is held: {hold}"),
            Finding::HeaderLost { file, generation } => {
                write!(f, "segment {} (generation {}) has lost its header", file.0, generation.0)
            }
            Finding::IndexLost { file, generation } => {
                write!(f, "the index of segment {} (generation {}) is damaged", file.0, generation.0)
            }
        }
    }
}

/// The log cannot be opened; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("segment {} cannot be read: {error}", .file.0)]
    Io { file: FileIndex, error: io::Error },
    #[error("the segment files cannot be listed: {0}")]
    List(io::Error),
    #[error("segment {} has format version {version}, written by another release", .file.0)]
    Version { file: FileIndex, version: u16 },
    #[error("segment {} belongs to another spool or log", .file.0)]
    Foreign { file: FileIndex },
    #[error("segment {} has a record of kind {kind} version {version}, written by another release", .file.0)]
    UnknownRecord { file: FileIndex, kind: u8, version: u8 },
    #[error("segments {} and {} claim the same generation", .0.0, .1.0)]
    Twice(FileIndex, FileIndex),
}

/// What one run of a writer says of itself.
#[derive(Debug, Default)]
struct Run {
    durable_below: GroupSeq,
    /// Sequences found, as ranges [from, below), in order.
    found: Vec<(u64, u64)>,
}

/// What the headers say, over all groups.
#[derive(Debug, Default)]
struct History {
    runs: BTreeMap<GroupSeq, Run>,
    tail: GroupSeq,
    highest_seq: Option<GroupSeq>,
    last_id: Option<MessageId>,
}

impl History {
    fn group(&mut self, header: &GroupHeader) {
        self.tail = self.tail.max(header.tail);
        self.last_id = self.last_id.max(header.last_id);
        self.highest_seq = self.highest_seq.max(Some(header.seq));
        let run = self.runs.entry(header.run).or_default();
        run.durable_below = run.durable_below.max(header.durable_below);
        match run.found.last_mut() {
            Some((_, below)) if *below == header.seq.0 => *below += 1,
            _ => run.found.push((header.seq.0, header.seq.0 + 1)),
        }
    }
    /// The groups of a sealed segment: all there, all durable.
    fn sealed(&mut self, seal: &Seal) {
        self.tail = self.tail.max(seal.tail);
        self.last_id = self.last_id.max(seal.last_id);
        self.highest_seq = self.highest_seq.max(Some(seal.last_seq));
        let below = GroupSeq(seal.last_seq.0 + 1);
        let run = self.runs.entry(seal.run).or_default();
        run.durable_below = run.durable_below.max(below);
        run.found.push((seal.first_seq.0, below.0));
    }
    /// Whether the group was durable for all that its own run knew.
    fn was_durable(&self, seq: GroupSeq) -> bool {
        self.runs.range(..=seq).next_back().is_some_and(|(_, run)| seq < run.durable_below)
    }
    /// Durable groups that were not found.
    fn missing(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (first, run) in &self.runs {
            let mut next = first.0.max(self.tail.0);
            let mut found = run.found.clone();
            found.sort_unstable();
            for (from, below) in found.into_iter().chain([(run.durable_below.0, run.durable_below.0)]) {
                let end = from.min(run.durable_below.0);
                if next < end {
                    findings.push(Finding::Missing { from: GroupSeq(next), below: GroupSeq(end) });
                }
                next = next.max(below);
            }
        }
        findings
    }
}

/// A file in use.
struct Used {
    file: FileIndex,
    generation: Generation,
    bytes: u32,
    header: Option<SegmentHeader>,
    /// Where groups end that count.
    end: u32,
    /// A later header says so.
    closed: bool,
}

/// Reads a log: what is live, and what an operator must know. The messages come from
/// [`RecoveredLog::replay`].
pub fn recover(
    config: &LogConfig,
    source: &mut dyn SegmentSource,
    reading: Reading,
) -> Result<(RecoveredLog, Vec<Finding>), RecoveryError> {
    let mut scan = Scan::new(config, source, Window::default());
    let (mut history, mut findings) = (History::default(), Vec::new());
    let (used, mut free) = identify(&mut scan, &mut history, &mut findings)?;
    let next_generation = used.last().map_or(Generation(1), |u| Generation(u.generation.0 + 1));
    let mut merge = Merge::default();
    let mut segments: VecDeque<Segment> = VecDeque::new();
    let mut replay = Replay::default();
    for used in used {
        let Used { file, generation, bytes, .. } = used;
        let (span, seal) = read(&mut scan, &used, reading, &mut history, &mut findings, &mut merge)?;
        // A segment closed in front of its first group is not an unused one: its groups come back when
        // the header that closes it goes. So both stay, and go in order.
        let closes = used.header.and_then(|h| h.closes);
        let guards = closes.is_some_and(|c| segments.iter().any(|s| s.generation == c.generation));
        let behind = segments.back().map_or(GroupSeq(0), |s| s.last_seq);
        let (first_seq, last_seq) = match span {
            Some(span) => span,
            None if guards || used.closed => (GroupSeq(behind.0 + 1), behind),
            None => {
                let reusable = bytes == config.segment_bytes;
                free.push_back(FreeFile { file, last_seq: GroupSeq(0), reusable });
                continue;
            }
        };
        replay.add(file, generation, used.end, seal);
        segments.push_back(Segment {
            file,
            generation,
            bytes,
            end: bytes,
            first_seq,
            last_seq,
            loose: 0,
            pins: 0,
        });
    }
    findings.append(&mut scan.damage_of(&history));
    findings.append(&mut history.missing());
    let merged = merge.finish(&history, segments.iter(), &mut findings);
    replay.keep_live(&merged.live);
    // Only the oldest dead ones are free: what lies behind a live message may hold its outcomes.
    while let Some(segment) = segments.front().filter(|s| merged.live.count_in(s.generation) == 0) {
        let reusable = segment.bytes == config.segment_bytes;
        free.push_back(FreeFile { file: segment.file, last_seq: segment.last_seq, reusable });
        segments.pop_front();
    }
    // A tail is known also where no group is left that could state it: in headers of segments never used.
    let highest = history.highest_seq.unwrap_or_default().max(history.tail);
    let next_seq = if highest == GroupSeq(0) { GroupSeq(1) } else { GroupSeq(highest.0 + SEQ_GAP) };
    let last_id = history.last_id.max(merged.highest_id);
    let log = RecoveredLog { segments, free, live: merged.live, next_generation, next_seq, last_id, replay };
    Ok((log, findings))
}

/// Which files are segments, by rising generation, and which are free.
fn identify(
    scan: &mut Scan<'_>,
    history: &mut History,
    findings: &mut Vec<Finding>,
) -> Result<(Vec<Used>, VecDeque<FreeFile>), RecoveryError> {
    let mut files = scan.source.files().map_err(RecoveryError::List)?;
    files.sort_unstable();
    let (mut used, mut free) = (Vec::new(), VecDeque::new());
    for file in files {
        match scan.identify(file)? {
            Identified::Free { reusable } => {
                free.push_back(FreeFile { file, last_seq: GroupSeq(0), reusable });
            }
            Identified::Segment { generation, header, bytes } => {
                match &header {
                    Some(header) => {
                        history.tail = history.tail.max(header.tail);
                        history.last_id = history.last_id.max(header.last_id);
                    }
                    None => findings.push(Finding::HeaderLost { file, generation }),
                }
                used.push(Used { file, generation, bytes, header, end: bytes, closed: false });
            }
        }
    }
    used.sort_unstable_by_key(|u| u.generation);
    if let Some(pair) = used.windows(2).find(|pair| pair[0].generation == pair[1].generation) {
        return Err(RecoveryError::Twice(pair[0].file, pair[1].file));
    }
    let closes: Vec<Closes> = used.iter().filter_map(|u| u.header.and_then(|h| h.closes)).collect();
    for used in &mut used {
        for closes in closes.iter().filter(|c| c.generation == used.generation) {
            (used.closed, used.end) = (true, used.end.min(closes.offset));
        }
    }
    Ok((used, free))
}

/// What reading a segment gives: its first and last sequence, if it has any group, and its seal, if that
/// can be relied on.
type Read = (Option<(GroupSeq, GroupSeq)>, Option<Seal>);

/// Takes the records of a segment, from its index or from its groups.
fn read(
    scan: &mut Scan<'_>,
    used: &Used,
    reading: Reading,
    history: &mut History,
    findings: &mut Vec<Finding>,
    merge: &mut Merge,
) -> Result<Read, RecoveryError> {
    let Used { file, generation, bytes, end, .. } = *used;
    let seal = match &used.header {
        Some(header) if !used.closed => scan.seal(file, header, bytes)?,
        _ => None,
    };
    if let (Some(seal), Reading::Indexed) = (&seal, reading) {
        if let Some(index) = scan.index(file, seal, bytes)? {
            history.sealed(seal);
            entries(index).flatten().for_each(|entry| merge.found(&Found::indexed(file, seal, &entry)));
            return Ok((Some((seal.first_seq, seal.last_seq)), Some(*seal)));
        }
        findings.push(Finding::IndexLost { file, generation });
    }
    if seal.is_some() && reading == Reading::Whole {
        scan.expect_index(generation);
    }
    let span = scan.groups(file, generation, end, history, &mut |found| merge.found(found))?;
    if let (Some(seal), Reading::Whole) = (&seal, reading)
        && !scan.index_agrees(file, seal, bytes)?
    {
        findings.push(Finding::IndexLost { file, generation });
    }
    Ok((span, None))
}
