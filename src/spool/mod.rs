//! The spool: a segmented append-only log per worker. Sans-IO: records ↔ bytes ↔ intents.
//!
//! CONTRACT (to be kept by whoever fills this in). Files suggested: format.rs (byte layouts, checksums),
//! record.rs (record codec), envelope.rs (TLV codec of Envelope/outcome), group.rs (building a group in a
//! buffer), live.rs (table of live messages), log.rs (the writer: the type below), recovery.rs (reading
//! segments back), reader.rs (verify and decode one message from segment bytes), reclaim.rs.
//!
//! Vocabulary: a *slot* of the file table is a segment file `seg-NNNNNN` in `SPOOL/log-NNNN/`; each time
//! a file is put to use it gets the log's next *generation* number (rising, never reused), so
//! (generation, offset) names a place for good. The keyed checksum's key of a generation is derived from the spool's
//! secret, the log number and the generation, so losing a segment's own header loses nothing.
use crate::clock::WallTime;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub generation: Generation,
    pub offset: u32,
}

/// A group of the log, rising; a record is durable when its group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    pub commits_in_flight: usize,
}

/// Where one recipient stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered(Reply),
    /// Temporary failure; next attempt at `next`.
    Deferred {
        attempts: u8,
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
#[derive(Clone, Debug)]
pub struct RecoveredMessage {
    pub slot: Slot,
    pub id: MessageId,
    pub envelope: Envelope,
    /// Per recipient: None = never tried; Deferred(attempts, next); terminal ones are marked done.
    pub states: Vec<RecipientState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientState {
    Pending { attempts: u8, next: WallTime },
    Done,
}

// The writer itself, as the worker uses it (B: Buffer):
//
// impl<B: Buffer> Log<B> {
//   pub fn new(config: LogConfig, recovered: RecoveredLog) -> Log<B>;
//   /// Lends a commit buffer (start-up; later ones come back by on_written).
//   pub fn lend(&mut self, buffer: B);
//   /// The next id (MessageId::next with the log's last).
//   pub fn next_id(&mut self, now: WallTime) -> MessageId;
//   /// Whether new mail of this size would be taken now (MAIL/BodyStarts time check).
//   pub fn admits(&self, bytes: u64) -> Result<(), Refusal>;
//   pub fn append_message(&mut self, message: &NewMessage) -> Result<(Slot, GroupSeq), Refusal>;
//   /// Zero-copy: `buffer` was received into, body at FRAGMENT_HEADROOM.., `body_bytes` long; the log fills in group and
//   /// frame headers in the headroom, pads the tail, and the whole buffer is one group.
//   pub fn append_fragment(&mut self, id: MessageId, index: u32, buffer: B, body_bytes: u32) -> Result<FragmentRef, (Refusal, B)>;
//   /// The transaction ended without commit: its fragments are dead.
//   pub fn abort(&mut self, id: MessageId, fragments: &[FragmentRef]);
//   /// Outcomes of several recipients of one message. Uses the reserve; returns Busy only when buffers are exhausted (the
//   /// caller keeps them and tries again after the next completion). When the last recipient is terminal the slot is freed
//   /// once the record is durable.
//   pub fn append_outcomes(&mut self, slot: Slot, outcomes: &[(u16, Outcome)], now: WallTime) -> Result<GroupSeq, Refusal>;
//   /// Closes the open group (end of turn) if a commit slot is free, and yields intents until None.
//   pub fn end_turn(&mut self);
//   pub fn next_intent(&mut self) -> Option<Intent<B>>;
//   pub fn on_written(&mut self, seq: GroupSeq, buffer: B, ok: bool);
//   pub fn on_prepared(&mut self, file: FileIndex, generation: Generation, ok: bool);
//   pub fn on_copy_read(&mut self, slot: Slot, message: Result<StoredMessage, ReadError>);
//   /// Groups whose fate was decided since the last call.
//   pub fn take_results(&mut self, out: &mut Vec<(GroupSeq, GroupResult)>);
//   pub fn live(&self) -> &LiveTable; // get(slot) -> Option<LiveMessage { id, place, frame_bytes, pending: count, … }>, find(id), iter
//   /// Where to read the message: list of (file, offset, bytes) extents; pins the segments until unpin.
//   pub fn pin(&mut self, slot: Slot) -> Option<ReadPlan>; pub fn unpin(&mut self, plan: &ReadPlan);
//   pub fn stats(&self) -> LogStats; // segments, live bytes, bytes written, group-size histogram inputs, write amplification …
// }
//
// /// Verifies (id, generation, checksum) and decodes what `pin`'s extents read.
// pub fn decode_message(plan: &ReadPlan, extents: &[&[u8]], identity: SpoolIdentity) -> Result<StoredMessage, ReadError>;
// pub struct StoredMessage { id, envelope: Envelope, body: Vec<u8> (trace + body in stored form) }
//
// /// Recovery over a directory of segments given as a trait, so that simulation and edge share it. Readers never write.
// pub trait SegmentSource { fn files(&mut self) -> io::Result<Vec<FileIndex>>; fn len(..); fn read_at(&mut self, file, offset, buf) -> io::Result<()>; }
// pub fn recover(config: &LogConfig, source: &mut dyn SegmentSource) -> Result<(RecoveredLog, Vec<RecoveredMessage>, Vec<Finding>), RecoveryError>;
