//! The spool: a segmented append-only log per worker. Sans-IO: records ↔ bytes ↔ intents.
//!
//! Owns: the format of the log (`docs/LOG_FORMAT.md`), the group-commit writer ([`Log`]), the table of
//! live messages ([`LiveTable`]), reclaim, recovery ([`recover`]) and reading one message back
//! ([`decode_message`]). Promises: a message whose group was reported [`GroupResult::Durable`] is found
//! again by recovery until every recipient has a durable terminal outcome, and never afterwards. Must
//! not: open a file, ask for the time, or import anything but `limits`, `clock` and `mail`.
//!
//! Vocabulary: a *segment* is a file `seg-NNNNNN` in `SPOOL/log-NNNN/`, named by its [`FileIndex`]; each
//! time a file is put to use it gets the log's next [`Generation`] (rising, never reused), so
//! (generation, offset) names a [`Place`] for good. A *group* is what one write carries, a *frame* one
//! record in it. The checksum key of a generation is derived from the spool's secret, the log's number
//! and the generation, so losing a segment's own header loses nothing.
//!
//! How the edge drives it: lend buffers, append, call [`Log::end_turn`], carry out every [`Intent`] of
//! [`Log::next_intent`] and answer it, then read [`Log::take_results`]. Nothing here waits.
mod append;
mod broken;
mod change;
mod checksum;
mod envelope;
mod failure;
mod format;
mod group;
mod inflight;
mod live;
mod log;
mod outcome;
mod reader;
mod reclaim;
mod record;
mod recovery;
mod seal;
mod sealing;
mod segments;
mod stats;
#[cfg(test)]
mod tests;

pub use format::{FRAGMENT_HEADROOM, FRAGMENT_TAILROOM};
pub use live::{LiveMessage, LiveTable};
pub use log::Log;
pub use reader::{Extent, Hold, ReadError, ReadPlan, StoredMessage, decode_message};
pub use recovery::{
    Damage, Finding, ReadFault, Reading, RecoveredLog, RecoveryError, Replay, SegmentSource, Spot, recover,
};
pub use stats::LogStats;

use std::sync::Arc;

use crate::clock::WallTime;
use crate::mail::address::Domain;
use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;
use crate::mail::reply::Reply;

/// Aligned memory lent by the edge for writing. Its length is a multiple of the block size.
pub trait Buffer {
    fn memory(&self) -> &[u8];
    fn memory_mut(&mut self) -> &mut [u8];
}

/// A segment file, by its index in the log's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIndex(pub u32);

/// A use of a segment file. Rising within a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub generation: Generation,
    pub offset: u32,
}

/// A group of the log, rising; a record is durable when its group is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupSeq(pub u64);

/// Index into the log's table of live messages: the home's short name for a message.
pub type Slot = u32;

/// Identity of a spool, from its `identity` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolIdentity {
    pub id: u64,
    pub secret: u64,
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub identity: SpoolIdentity,
    /// Number of this log.
    pub log: u16,
    pub segment_bytes: u32,
    pub block_bytes: u32,
    /// `--spool-limit` of this log, in segments; the log refuses mail (NoRoom) rather than pass it.
    pub max_segments: u32,
    /// Segments the log may have beside those in proportion to its live messages before it copies.
    pub slack_segments: u32,
    pub commits_in_flight: usize,
}

/// Where one recipient stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered(Reply),
    /// Temporary failure; next attempt at `next`.
    Deferred {
        tries: Tries,
        next: WallTime,
        reply: Reply,
    },
    Failed(Reply),
    Removed,
}

/// A message to be written. `parts` are the body bytes in order (trace headers first) not already written as
/// fragments; `fragments` were written before (in order, before `parts`).
pub struct NewMessage<'a> {
    pub id: MessageId,
    pub envelope: &'a Envelope,
    pub fragments: &'a [FragmentRef],
    pub parts: &'a [&'a [u8]],
    /// Set on a DSN: the message and recipients whose failure it reports; recovery takes its
    /// commit record for their terminal outcome.
    pub reports: Option<Reports<'a>>,
    /// The server itself has to say it: the log writes it again when its group is lost. It has no fragments.
    pub kept: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Reports<'a> {
    pub id: MessageId,
    pub recipients: &'a [u16],
}

/// A fragment of a body already handed to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentRef {
    pub place: Place,
    pub body_bytes: u32,
    pub checksum: u64,
    pub group: GroupSeq,
}

/// New mail cannot be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The commit buffer is full and every commit slot is in flight: wait for a completion, try again.
    #[error("all commit buffers are in flight")]
    Busy,
    /// No segment to write to (limit reached or disk full): 452.
    #[error("the spool has no room")]
    NoRoom,
    /// The log cannot be written (sync error, read-only): 451.
    #[error("the log cannot be written")]
    Unwritable,
}

/// What the edge must do for the log. Every intent is answered by the matching `on_…` call.
pub enum Intent<B> {
    /// Write `buffer[..bytes]` at `offset` of the file, durably (O_DIRECT, data sync). Answer: `on_written`.
    Write { seq: GroupSeq, file: FileIndex, offset: u32, bytes: u32, buffer: B },
    /// Create (`new`: allocate, zero-fill, sync file and directory) or take over a dead segment file; then
    /// write and sync its header for `generation` with `header` as the first block. Answer: `on_prepared`.
    Prepare { file: FileIndex, new: bool, generation: Generation, header: Box<[u8]> },
    /// Write the index of a full segment at `offset`, durably; only then the seal behind it, durably.
    /// Answer: `on_sealed`; a failure costs nothing but time at the next start.
    Seal { file: FileIndex, generation: Generation, offset: u32, index: Box<[u8]>, seal: Box<[u8]> },
    /// Read this message whole and hand it back through `on_copy_read` (copy-forward).
    Copy { slot: Slot },
    /// Delete the file (the log has more than it needs). No answer.
    Delete { file: FileIndex },
}

/// What `Log` reports when a group is durable or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupResult {
    Durable,
    Lost,
}

/// One live message after recovery, for the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredMessage {
    pub slot: Slot,
    pub id: MessageId,
    pub envelope: Envelope,
    /// Per recipient: None = never tried; Deferred(attempts, next); terminal ones are marked done.
    pub states: Vec<RecipientState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientState {
    Pending { tries: Tries, next: WallTime },
    Done(End),
}

/// What a pending recipient has been through: attempts, and whether its sender was told that the mail is
/// late. One byte, in memory and on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries(u8);

impl Tries {
    const TOLD: u8 = 0x80;

    /// Past 127 attempts are not told apart.
    pub fn new(attempts: u8, told: bool) -> Tries {
        Tries(attempts.min(!Tries::TOLD) | if told { Tries::TOLD } else { 0 })
    }
    pub fn attempts(self) -> u8 {
        self.0 & !Tries::TOLD
    }
    /// Whether the sender was told of the delay.
    pub fn is_told(self) -> bool {
        self.0 & Tries::TOLD != 0
    }
    /// These, where `known` was recorded before or besides: what the sender was told it knows.
    fn besides(self, known: Tries) -> Tries {
        Tries(self.0 | known.0 & Tries::TOLD)
    }
    fn from_byte(byte: u8) -> Tries {
        Tries(byte)
    }
    fn byte(self) -> u8 {
        self.0
    }
}

/// How a recipient has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A log of an earlier version does not say.
    Unknown,
    Delivered,
    Failed,
    Removed,
    /// The disk damaged the message.
    Quarantined,
}

/// What an operator wants done with a pending recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// The usual.
    #[default]
    None,
    /// It is not delivered until it is released.
    Held,
    /// It is to be returned to its sender; the bounce is on its way.
    Failing,
}

/// What an operator has decided of a pending recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub mark: Mark,
    /// It is delivered as mail for this domain is.
    pub destination: Option<Domain>,
    /// When that was decided.
    pub at: WallTime,
    pub reason: Arc<str>,
}

impl Default for Standing {
    fn default() -> Standing {
        Standing { mark: Mark::None, destination: None, at: WallTime(0), reason: "".into() }
    }
}

impl Standing {
    /// Nothing differs from mail that no operator has touched.
    pub fn is_usual(&self) -> bool {
        self.mark == Mark::None && self.destination.is_none()
    }
}
