//! Reading one message back.
//!
//! Owns: [`ReadPlan`] (which bytes of which files) and [`decode_message`]. Promises: nothing is returned
//! whose id, generation, place or checksums do not fit; extents are block-aligned, as direct I/O wants.
//! Must not: trust a body length it has not checked against bytes it was given.
use super::checksum::Key;
use super::format::{FRAGMENT_FIXED_BYTES, FRAME_HEADER_BYTES, u32_at};
use super::group::{Frame, FrameKind, open_frame};
use super::record::Commit;
use super::segments::{Segment, Segments};
use super::{
    FileIndex, FragmentRef, Generation, LiveTable, LogConfig, Place, RecoveredLog, Slot, SpoolIdentity,
};
use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;

/// Bytes to read: block-aligned at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub file: FileIndex,
    pub offset: u32,
    pub bytes: u32,
}

/// Where a message lies. Made by `Log::pin`; to be given back to `Log::unpin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPlan {
    pub slot: Slot,
    pub id: MessageId,
    /// To be read in this order: the fragments, then the commit record.
    pub extents: Vec<Extent>,
    log: u16,
    fragments: Box<[FragmentRef]>,
    commit: Place,
    /// The segment that is pinned.
    pub(super) home: Generation,
}

impl ReadPlan {
    pub(super) fn new(
        slot: Slot,
        live: &LiveTable,
        segments: &Segments,
        config: &LogConfig,
    ) -> Option<ReadPlan> {
        ReadPlan::build(slot, live, |generation| segments.get(generation), config)
    }

    fn build<'a>(
        slot: Slot,
        live: &LiveTable,
        segment_of: impl Fn(Generation) -> Option<&'a Segment>,
        config: &LogConfig,
    ) -> Option<ReadPlan> {
        let message = live.get(slot)?;
        let fragments = live.fragments(slot);
        let fixed = FRAME_HEADER_BYTES + FRAGMENT_FIXED_BYTES;
        let parts = fragments
            .iter()
            .map(|f| (f.place, f.body_bytes + fixed as u32))
            .chain([(message.place, live.frame_bytes(slot))]);
        let mut extents = Vec::with_capacity(fragments.len() + 1);
        for (place, bytes) in parts {
            let segment = segment_of(place.generation)?;
            let start = place.offset - place.offset % config.block_bytes;
            let end = (place.offset + bytes).next_multiple_of(config.block_bytes).min(segment.bytes);
            extents.push(Extent { file: segment.file, offset: start, bytes: end - start });
        }
        Some(ReadPlan {
            slot,
            id: message.id,
            extents,
            log: config.log,
            fragments: fragments.into(),
            commit: message.place,
            home: live.home(slot)?,
        })
    }
}

impl RecoveredLog {
    /// The messages that recovery found unfinished, held ones included.
    pub fn live(&self) -> &LiveTable {
        &self.live
    }

    /// Where one of them lies, for a reader that writes nothing and so has nothing to pin. `config` is
    /// the one that recovery was given.
    pub fn read_plan(&self, slot: Slot, config: &LogConfig) -> Option<ReadPlan> {
        let segment_of = |generation| {
            let at = self.segments.binary_search_by_key(&generation, |s| s.generation).ok()?;
            self.segments.get(at)
        };
        ReadPlan::build(slot, &self.live, segment_of, config)
    }

    /// Segments that hold records which may matter, and segment files that are free.
    pub fn segment_counts(&self) -> (usize, usize) {
        (self.segments.len(), self.free.len())
    }
}

/// Why a message is held: kept and shown, but not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    /// Written by a version that knows more: the field's number.
    #[error("its envelope has field {0}, which must be understood and is not")]
    UnknownField(u16),
    /// Its checksums hold, but its envelope makes no sense to this version.
    #[error("its envelope cannot be read by this version")]
    Unreadable,
}

/// A message read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    pub id: MessageId,
    pub envelope: Envelope,
    /// Trace headers and body, in the form the envelope names.
    pub body: Vec<u8>,
    /// If set the message must not be delivered, and the envelope is what could be read of it.
    pub hold: Option<Hold>,
    /// The envelope as it was written.
    pub(super) fields: Vec<u8>,
}

/// Why a message could not be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the message is not in the log any more")]
    Gone,
    #[error("reading failed: {0}")]
    Io(std::io::ErrorKind),
    #[error("the disk damaged {0}")]
    Damaged(&'static str),
}

/// Verifies and decodes what was read: `extents` are the bytes of `plan.extents`, in order.
pub fn decode_message(
    plan: &ReadPlan,
    extents: &[&[u8]],
    identity: SpoolIdentity,
) -> Result<StoredMessage, ReadError> {
    let (last, parts) = extents.split_last().ok_or(ReadError::Damaged("everything"))?;
    let (at, _) = plan.extents.split_last().ok_or(ReadError::Damaged("everything"))?;
    let frame = frame_at(plan, at.offset, last, plan.commit, identity)
        .filter(|f| FrameKind::of(f.kind) == Some(FrameKind::Commit))
        .ok_or(ReadError::Damaged("the commit record"))?;
    let commit = Commit::decode(frame.payload).ok_or(ReadError::Damaged("the commit record"))?;
    if !commit.fragments().eq(plan.fragments.iter().copied()) || parts.len() != plan.fragments.len() {
        return Err(ReadError::Damaged("the list of fragments"));
    }
    let mut body = Vec::with_capacity(parts.iter().map(|p| p.len()).sum::<usize>() + commit.body.len());
    for ((index, fragment), (extent, bytes)) in
        plan.fragments.iter().enumerate().zip(plan.extents.iter().zip(parts))
    {
        let frame = frame_at(plan, extent.offset, bytes, fragment.place, identity)
            .filter(|f| f.checksum == fragment.checksum && is_fragment(f, index))
            .ok_or(ReadError::Damaged("a fragment"))?;
        body.extend_from_slice(&frame.payload[FRAGMENT_FIXED_BYTES..]);
    }
    body.extend_from_slice(commit.body);
    let decoded = super::envelope::decode(commit.envelope);
    let hold = decoded.hold.or_else(|| {
        (decoded.envelope.recipients.len() != commit.recipients as usize).then_some(Hold::Unreadable)
    });
    Ok(StoredMessage {
        id: plan.id,
        envelope: decoded.envelope,
        body,
        hold,
        fields: commit.envelope.to_vec(),
    })
}

fn is_fragment(frame: &Frame<'_>, index: usize) -> bool {
    FrameKind::of(frame.kind) == Some(FrameKind::Fragment)
        && frame.payload.len() >= FRAGMENT_FIXED_BYTES
        && u32_at(frame.payload, 0) as usize == index
}

fn frame_at<'a>(
    plan: &ReadPlan,
    extent: u32,
    bytes: &'a [u8],
    place: Place,
    identity: SpoolIdentity,
) -> Option<Frame<'a>> {
    let key = Key::derive(identity, plan.log, place.generation);
    let start = place.offset.checked_sub(extent)? as usize;
    open_frame(bytes.get(start..)?, place.offset, key).filter(|f| f.id == plan.id.0)
}
