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
//! | segment header damaged | the groups say the same |
//! | a block that the device does not give back | damage like any other: reported, the rest is kept |
//! | more such blocks than `limits::UNREADABLE_BLOCKS`, or a segment of nothing else | [`RecoveryError`]: nothing is touched |
//! | seal and index whole | the index stands for the groups: all of them are durable |
//! | no seal, or a damaged one; a damaged index | the groups are read; damage to the index is reported |
//! | a seal in a segment that a later header closes | the groups are read up to that end |
//! | no header and no groups | the file is free |
//! | unknown version, other spool | [`RecoveryError`]: nothing is touched |
mod history;
mod merge;
mod replay;
mod scan;
mod window;

use std::collections::VecDeque;
use std::fmt;
use std::io;

use super::format::{Closes, SegmentHeader};
use super::live::LiveTable;
use super::reader::Hold;
use super::seal::{Seal, entries};
use super::segments::{FreeFile, Segment};
use super::{FileIndex, Generation, GroupSeq, LogConfig, MessageId};
use crate::limits;
use history::History;
use merge::{Found, Merge};
pub use replay::Replay;
use scan::{Identified, Scan};
use window::Window;

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
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault>;
}

/// Why bytes were not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    /// The device does not give back some of those asked for. It may well give back their neighbours.
    #[error("{0}")]
    Damaged(io::Error),
    /// The file cannot be read.
    #[error("{0}")]
    Failed(io::Error),
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
    /// Groups that were durable are not there: a damaged header, or a missing segment. They lay behind the
    /// end of one group and in front of the start of another, where those are known.
    Missing { from: GroupSeq, below: GroupSeq, after: Option<Spot>, before: Option<Spot> },
    /// The device does not give these bytes back. What is lost by it is a finding of its own.
    Unreadable { file: FileIndex, offset: u32, bytes: u32 },
    /// A message that must not be delivered by this version. It stays in the log.
    Held { id: MessageId, hold: Hold },
    /// The header of a segment is damaged. Nothing is lost by it.
    HeaderLost { file: FileIndex, generation: Generation },
    /// The index of a sealed segment is damaged, or leaves out what the segment holds. Nothing is lost by
    /// it: the segment was read from end to end.
    IndexLost { file: FileIndex, generation: Generation, offset: u32 },
}

/// A byte of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub file: FileIndex,
    pub offset: u32,
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of segment {}", self.offset, self.file.0)
    }
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
            Finding::Missing { from, below, after, before } => {
                write!(f, "groups {} to {} were durable and are missing", from.0, below.0 - 1)?;
                match (after, before) {
                    (Some(after), Some(before)) => write!(f, ", between {after} and {before}"),
                    (Some(after), None) => write!(f, ", behind {after}"),
                    (None, Some(before)) => write!(f, ", in front of {before}"),
                    (None, None) => Ok(()),
                }
            }
            Finding::Unreadable { file, offset, bytes } => {
                write!(f, "{bytes} bytes of segment {} at byte {offset} cannot be read", file.0)
            }
            Finding::Held { id, hold } => write!(f, "message {id} is held: {hold}"),
            Finding::HeaderLost { file, generation } => {
                write!(f, "the header of segment {} (generation {}) is damaged", file.0, generation.0)
            }
            Finding::IndexLost { file, generation, offset } => {
                let (file, generation) = (file.0, generation.0);
                write!(f, "the index of segment {file} (generation {generation}) at byte {offset} is damaged")
            }
        }
    }
}

/// The log cannot be opened; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("segment {} cannot be read: {error}", .file.0)]
    Io { file: FileIndex, error: io::Error },
    #[error(
        "more than {} blocks cannot be read, of segment {} the last: {error}; the device is failing: copy \
         the spool to another one with a tool that puts zeros for what it cannot read, and start there",
        limits::UNREADABLE_BLOCKS, .file.0
    )]
    Failing { file: FileIndex, error: io::Error },
    #[error(
        "no block of segment {} can be read; look after the device: if the segment is given up for lost, move \
         its file out of the log", .0.0
    )]
    Lost(FileIndex),
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

impl RecoveryError {
    /// The segment that the error is about.
    pub fn file(&self) -> Option<FileIndex> {
        match *self {
            RecoveryError::List(_) => None,
            RecoveryError::Io { file, .. }
            | RecoveryError::Failing { file, .. }
            | RecoveryError::Lost(file)
            | RecoveryError::Version { file, .. }
            | RecoveryError::Foreign { file }
            | RecoveryError::UnknownRecord { file, .. }
            | RecoveryError::Twice(file, _) => Some(file),
        }
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
                let reusable = scan.reusable(file, bytes);
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
    findings.append(&mut scan.window().findings(config));
    findings.append(&mut scan.damage_of(&history));
    findings.append(&mut history.missing());
    let merged = merge.finish(&history, segments.iter(), &mut findings);
    replay.keep_live(&merged.live);
    replay.expect(scan.window());
    // Only the oldest dead ones are free: what lies behind a live message may hold its outcomes.
    while let Some(segment) = segments.front().filter(|s| merged.live.count_in(s.generation) == 0) {
        let reusable = scan.reusable(segment.file, segment.bytes);
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
            Identified::Segment { generation, header, whole, bytes } => {
                if let Some(header) = &header {
                    history.segment(header);
                }
                if !whole {
                    findings.push(Finding::HeaderLost { file, generation });
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
            history.sealed(file, seal);
            entries(index).flatten().for_each(|entry| merge.found(&Found::indexed(file, seal, &entry)));
            return Ok((Some((seal.first_seq, seal.last_seq)), Some(*seal)));
        }
        findings.push(Finding::IndexLost { file, generation, offset: seal.index_offset });
    }
    if seal.is_some() && reading == Reading::Whole {
        scan.expect_index(generation);
    }
    let span = scan.groups(file, generation, end, history, &mut |found| merge.found(found))?;
    if let (Some(seal), Reading::Whole) = (&seal, reading)
        && !scan.index_agrees(file, seal, bytes)?
    {
        findings.push(Finding::IndexLost { file, generation, offset: seal.index_offset });
    }
    Ok((span, None))
}
