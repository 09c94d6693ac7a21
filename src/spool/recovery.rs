//! Recovery: from segment files to the messages that are owed.
//!
//! Owns: finding groups in segments, telling a crash from corruption, and what the writer starts from.
//! Promises: it never writes; twice over the same bytes it says the same; memory is bounded by what is
//! live and one read window; damage costs what is damaged and is reported as a [`Finding`]. Must not:
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
//! | no header and no groups | the file is free |
//! | unknown version, other spool | [`RecoveryError`]: nothing is touched |
mod merge;
mod scan;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;

use super::format::{Closes, GroupHeader};
use super::live::LiveTable;
use super::reader::Hold;
use super::segments::{FreeFile, Segment};
use super::{FileIndex, Generation, GroupSeq, LogConfig, MessageId, RecoveredMessage};
use merge::Merge;
use scan::{Identified, Scan};

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

/// What the writer starts from. `Default` is an empty log.
#[derive(Debug, Default)]
pub struct RecoveredLog {
    pub(super) segments: VecDeque<Segment>,
    pub(super) free: VecDeque<FreeFile>,
    pub(super) live: LiveTable,
    pub(super) next_generation: Generation,
    pub(super) next_seq: GroupSeq,
    pub(super) last_id: Option<MessageId>,
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

/// Reads a log. The messages come in the order in which they were accepted.
pub fn recover(
    config: &LogConfig,
    source: &mut dyn SegmentSource,
) -> Result<(RecoveredLog, Vec<RecoveredMessage>, Vec<Finding>), RecoveryError> {
    let mut scan = Scan::new(config, source);
    let mut files = scan.source.files().map_err(RecoveryError::List)?;
    files.sort_unstable();
    let (mut history, mut findings) = (History::default(), Vec::new());
    let (mut used, mut free) = (Vec::new(), VecDeque::new());
    let (mut closes, mut next_generation) = (Vec::<Closes>::new(), Generation(1));
    for file in files {
        match scan.identify(file)? {
            Identified::Free { reusable } => {
                free.push_back(FreeFile { file, last_seq: GroupSeq(0), reusable });
            }
            Identified::Segment { generation, header, bytes } => {
                next_generation = next_generation.max(Generation(generation.0 + 1));
                match &header {
                    Some(header) => {
                        history.tail = history.tail.max(header.tail);
                        history.last_id = history.last_id.max(header.last_id);
                        closes.extend(header.closes);
                    }
                    None => findings.push(Finding::HeaderLost { file, generation }),
                }
                used.push((generation, file, bytes, header));
            }
        }
    }
    used.sort_unstable_by_key(|u| u.0);
    if let Some(pair) = used.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(RecoveryError::Twice(pair[0].1, pair[1].1));
    }
    let mut merge = Merge::default();
    let mut segments: VecDeque<Segment> = VecDeque::new();
    for (generation, file, bytes, header) in used {
        let end = closes.iter().filter(|c| c.generation == generation).map(|c| c.offset).min();
        let end = end.unwrap_or(bytes).min(bytes);
        let span = scan.groups(file, generation, end, &mut history, &mut merge)?;
        // A segment closed in front of its first group is not an unused one: its groups come back when
        // the header that closes it goes. So both stay, and go in order.
        let closed = closes.iter().any(|c| c.generation == generation);
        let guards = header.and_then(|h| h.closes).is_some_and(|c| is_used(&segments, c.generation));
        let behind = segments.back().map_or(GroupSeq(0), |s| s.last_seq);
        let (first_seq, last_seq) = match span {
            Some(span) => span,
            None if guards || closed => (GroupSeq(behind.0 + 1), behind),
            None => {
                let reusable = bytes == config.segment_bytes;
                free.push_back(FreeFile { file, last_seq: GroupSeq(0), reusable });
                continue;
            }
        };
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
    let merged = merge.finish(&history, &mut findings);
    // Only the oldest dead ones are free: what lies behind a live message may hold its outcomes.
    while let Some(segment) = segments.front().filter(|s| merged.live.count_in(s.generation) == 0) {
        let reusable = segment.bytes == config.segment_bytes;
        free.push_back(FreeFile { file: segment.file, last_seq: segment.last_seq, reusable });
        segments.pop_front();
    }
    let next_seq = GroupSeq(history.highest_seq.map_or(1, |seq| seq.0 + SEQ_GAP));
    let last_id = history.last_id.max(merged.highest_id);
    let log = RecoveredLog { segments, free, live: merged.live, next_generation, next_seq, last_id };
    Ok((log, merged.messages, findings))
}

fn is_used(segments: &VecDeque<Segment>, generation: Generation) -> bool {
    segments.iter().any(|s| s.generation == generation)
}
