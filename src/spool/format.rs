//! Byte layouts of the segment header and the group header.
//!
//! Owns: the fixed parts of the format and their versions (`docs/LOG_FORMAT.md`, sections 2 and 3).
//! Promises: everything is little-endian; decoding never panics and accepts only what carries the right
//! keyed checksum at the right offset. Must not: know what frames mean.
use super::checksum::{Domain, Key};
use super::{Generation, GroupSeq, LogConfig, SpoolIdentity};
use crate::clock::WallTime;
use crate::mail::id::MessageId;

/// Version of segment and group headers this code writes and reads.
pub(super) const VERSION: u16 = 1;
/// First bytes of a segment file.
pub(super) const SEGMENT_MAGIC: [u8; 8] = *b"rpSEGM\r\n";
/// First bytes of a group.
pub(super) const GROUP_MAGIC: [u8; 8] = *b"rpGROU\r\n";
/// Bytes of a segment header; the rest of its block is zero.
pub(super) const SEGMENT_HEADER_BYTES: usize = 96;
/// Bytes of a group header; the first frame begins behind it.
pub(super) const GROUP_HEADER_BYTES: usize = 96;
/// Frames begin on multiples of this from the group's start.
pub(super) const FRAME_ALIGN: usize = 8;
/// Bytes of a frame header.
pub(super) const FRAME_HEADER_BYTES: usize = 24;
/// Fixed bytes in front of a fragment's body, within its payload.
pub(super) const FRAGMENT_FIXED_BYTES: usize = 8;

/// Where the body begins in a buffer handed to `Log::append_fragment`: the group header, the frame
/// header and the fragment's fixed fields are written in front of it.
pub const FRAGMENT_HEADROOM: usize = GROUP_HEADER_BYTES + FRAME_HEADER_BYTES + FRAGMENT_FIXED_BYTES;
/// Bytes needed behind the body in that buffer for the frame directory.
pub const FRAGMENT_TAILROOM: usize = FRAME_ALIGN + directory_bytes(1);

/// Bytes of the directory of `frames` frames: an offset each, padded to eight, and its checksum.
pub(super) const fn directory_bytes(frames: usize) -> usize {
    (4 * frames).next_multiple_of(8) + 8
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Why a header was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// Not a header, a damaged one, or one of another generation or place.
    Invalid,
    /// A header of a version this code does not know.
    Version(u16),
    /// It claims to be one, and nothing vouches for that.
    Claims(u16),
    /// It claims to be of another spool or log, whose key is not known here.
    Foreign,
}

/// An old segment that ends early: groups of `generation` at or behind `offset` were never
/// acknowledged and are to be ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closes {
    pub(super) generation: Generation,
    pub(super) offset: u32,
}

/// The first block of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) generation: Generation,
    pub(super) block_bytes: u32,
    pub(super) segment_bytes: u32,
    pub(super) created_at: WallTime,
    /// Groups below it hold nothing that is alive.
    pub(super) tail: GroupSeq,
    /// No id up to this one is given out again.
    pub(super) last_id: Option<MessageId>,
    pub(super) closes: Option<Closes>,
}

impl SegmentHeader {
    /// The header as the first block of the file.
    pub(super) fn encode(&self, identity: SpoolIdentity, log: u16) -> Box<[u8]> {
        let mut b = vec![0u8; self.block_bytes as usize].into_boxed_slice();
        put(&mut b, 0, &SEGMENT_MAGIC);
        put(&mut b, 8, &VERSION.to_le_bytes());
        put(&mut b, 10, &log.to_le_bytes());
        put(&mut b, 12, &self.generation.0.to_le_bytes());
        put(&mut b, 16, &identity.id.to_le_bytes());
        put(&mut b, 24, &self.block_bytes.to_le_bytes());
        put(&mut b, 28, &self.segment_bytes.to_le_bytes());
        put(&mut b, 32, &self.created_at.0.to_le_bytes());
        put(&mut b, 40, &self.tail.0.to_le_bytes());
        put(&mut b, 48, &self.last_id.map_or(0, |id| id.0).to_le_bytes());
        if let Some(closes) = self.closes {
            put(&mut b, 56, &1u32.to_le_bytes());
            put(&mut b, 60, &closes.generation.0.to_le_bytes());
            put(&mut b, 64, &closes.offset.to_le_bytes());
        }
        let sum = Key::derive(identity, log, self.generation).sum(Domain::Segment, 0, &b[..88]);
        put(&mut b, 88, &sum.to_le_bytes());
        b
    }

    /// The header, and whether it is as it was written: of the fields that are known beforehand none can hide
    /// the others by being damaged, for the checksum says what they were.
    pub(super) fn decode(
        b: &[u8],
        identity: SpoolIdentity,
        log: u16,
    ) -> Result<(SegmentHeader, bool), BadHeader> {
        if b.len() < SEGMENT_HEADER_BYTES {
            return Err(BadHeader::Invalid);
        }
        let (version, generation) = (u16_at(b, 8), Generation(u32_at(b, 12)));
        let key = Key::derive(identity, log, generation);
        let vouched = |head: &[u8]| u64_at(head, 88) == key.sum(Domain::Segment, 0, &head[..88]);
        let mut own = [0; SEGMENT_HEADER_BYTES];
        own.copy_from_slice(&b[..SEGMENT_HEADER_BYTES]);
        put(&mut own, 0, &SEGMENT_MAGIC);
        put(&mut own, 8, &VERSION.to_le_bytes());
        put(&mut own, 10, &log.to_le_bytes());
        put(&mut own, 16, &identity.id.to_le_bytes());
        if !vouched(&own) {
            return Err(match () {
                _ if b[..8] != SEGMENT_MAGIC => BadHeader::Invalid,
                // A later version may move everything behind these twelve bytes, but for the checksum.
                _ if version != VERSION && vouched(b) => BadHeader::Version(version),
                _ if u16_at(b, 10) != log || u64_at(b, 16) != identity.id => BadHeader::Foreign,
                _ if version != VERSION => BadHeader::Claims(version),
                _ => BadHeader::Invalid,
            });
        }
        let whole = own == b[..SEGMENT_HEADER_BYTES];
        let closes = (u32_at(b, 56) == 1)
            .then(|| Closes { generation: Generation(u32_at(b, 60)), offset: u32_at(b, 64) });
        let last_id = u64_at(b, 48);
        let header = SegmentHeader {
            generation,
            block_bytes: u32_at(b, 24),
            segment_bytes: u32_at(b, 28),
            created_at: WallTime(u64_at(b, 32)),
            tail: GroupSeq(u64_at(b, 40)),
            last_id: (last_id != 0).then_some(MessageId(last_id)),
            closes,
        };
        Ok((header, whole))
    }
}

/// The first bytes of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupHeader {
    pub(super) generation: Generation,
    pub(super) seq: GroupSeq,
    /// First group of the run (from a start or a failed write to the next) that wrote this one.
    pub(super) run: GroupSeq,
    /// Every group of the run below this one was durable when this one was built.
    pub(super) durable_below: GroupSeq,
    /// Groups below it hold nothing that is alive.
    pub(super) tail: GroupSeq,
    /// No id up to this one is given out again.
    pub(super) last_id: Option<MessageId>,
    /// Of the group, in its segment.
    pub(super) offset: u32,
    /// A multiple of the block size.
    pub(super) total_bytes: u32,
    /// From the group's start; frames end at or before it.
    pub(super) directory_offset: u32,
    pub(super) frames: u32,
}

impl GroupHeader {
    pub(super) fn encode(&self, b: &mut [u8], identity: SpoolIdentity, log: u16, key: Key) {
        put(b, 0, &GROUP_MAGIC);
        put(b, 8, &VERSION.to_le_bytes());
        put(b, 10, &log.to_le_bytes());
        put(b, 12, &self.generation.0.to_le_bytes());
        put(b, 16, &identity.id.to_le_bytes());
        put(b, 24, &self.seq.0.to_le_bytes());
        put(b, 32, &self.run.0.to_le_bytes());
        put(b, 40, &self.durable_below.0.to_le_bytes());
        put(b, 48, &self.tail.0.to_le_bytes());
        put(b, 56, &self.last_id.map_or(0, |id| id.0).to_le_bytes());
        put(b, 64, &self.offset.to_le_bytes());
        put(b, 68, &self.total_bytes.to_le_bytes());
        put(b, 72, &self.directory_offset.to_le_bytes());
        put(b, 76, &self.frames.to_le_bytes());
        put(b, 80, &[0; 8]);
        let sum = key.sum(Domain::Group, self.offset, &b[..88]);
        put(b, 88, &sum.to_le_bytes());
    }

    /// Decodes the header of the group at `offset`, whatever generation it claims; the checksum is
    /// that of the claimed generation.
    pub(super) fn decode(b: &[u8], offset: u32, config: &LogConfig) -> Result<GroupHeader, BadHeader> {
        if b.len() < GROUP_HEADER_BYTES || b[..8] != GROUP_MAGIC {
            return Err(BadHeader::Invalid);
        }
        if u16_at(b, 10) != config.log || u64_at(b, 16) != config.identity.id {
            return Err(BadHeader::Foreign);
        }
        let generation = Generation(u32_at(b, 12));
        let key = Key::derive(config.identity, config.log, generation);
        if u64_at(b, 88) != key.sum(Domain::Group, offset, &b[..88]) || u32_at(b, 64) != offset {
            return Err(BadHeader::Invalid);
        }
        if u16_at(b, 8) != VERSION {
            return Err(BadHeader::Version(u16_at(b, 8)));
        }
        let last_id = u64_at(b, 56);
        let header = GroupHeader {
            generation,
            seq: GroupSeq(u64_at(b, 24)),
            run: GroupSeq(u64_at(b, 32)),
            durable_below: GroupSeq(u64_at(b, 40)),
            tail: GroupSeq(u64_at(b, 48)),
            last_id: (last_id != 0).then_some(MessageId(last_id)),
            offset,
            total_bytes: u32_at(b, 68),
            directory_offset: u32_at(b, 72),
            frames: u32_at(b, 76),
        };
        let (directory, frames) = (header.directory_offset as usize, header.frames as usize);
        let fits = frames <= header.total_bytes as usize / FRAME_HEADER_BYTES
            && directory >= GROUP_HEADER_BYTES
            && directory.is_multiple_of(FRAME_ALIGN)
            && directory + directory_bytes(frames) <= header.total_bytes as usize;
        if fits { Ok(header) } else { Err(BadHeader::Invalid) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> LogConfig {
        LogConfig {
            identity: SpoolIdentity { id: 77, secret: 99 },
            log: 5,
            segment_bytes: 1 << 20,
            block_bytes: 4096,
            max_segments: 8,
            slack_segments: 2,
            commits_in_flight: 4,
        }
    }

    fn group() -> GroupHeader {
        GroupHeader {
            generation: Generation(3),
            seq: GroupSeq(10),
            run: GroupSeq(2),
            durable_below: GroupSeq(8),
            tail: GroupSeq(1),
            last_id: Some(MessageId(1234)),
            offset: 8192,
            total_bytes: 4096,
            directory_offset: 200,
            frames: 2,
        }
    }

    #[test]
    fn headers_round_trip_and_one_flipped_bit_is_seen() {
        let c = config();
        let segment = SegmentHeader {
            generation: Generation(3),
            block_bytes: 4096,
            segment_bytes: 1 << 20,
            created_at: WallTime(55),
            tail: GroupSeq(9),
            last_id: Some(MessageId(8)),
            closes: Some(Closes { generation: Generation(2), offset: 4096 }),
        };
        let block = segment.encode(c.identity, c.log);
        assert_eq!(SegmentHeader::decode(&block, c.identity, c.log), Ok((segment, true)));
        assert_eq!(SegmentHeader::decode(&block, c.identity, 6), Err(BadHeader::Foreign));
        let mut bytes = [0u8; GROUP_HEADER_BYTES];
        group().encode(&mut bytes, c.identity, c.log, Key::derive(c.identity, c.log, Generation(3)));
        assert_eq!(GroupHeader::decode(&bytes, 8192, &c), Ok(group()));
        assert_eq!(GroupHeader::decode(&bytes, 4096, &c), Err(BadHeader::Invalid), "moved");
        for bit in 0..GROUP_HEADER_BYTES * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupHeader::decode(&damaged, 8192, &c).is_err(), "bit {bit}");
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let known = [0..12, 16..24].iter().any(|known| known.contains(&(bit / 8)));
            let wanted = if known { Ok((segment, false)) } else { Err(BadHeader::Invalid) };
            assert_eq!(SegmentHeader::decode(&damaged, c.identity, c.log), wanted, "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let c = config();
            let _ = SegmentHeader::decode(&bytes, c.identity, c.log);
            let _ = GroupHeader::decode(&bytes, 4096, &c);
            if bytes.len() > 8 {
                bytes[..8].copy_from_slice(&GROUP_MAGIC);
                let _ = GroupHeader::decode(&bytes, 4096, &c);
                bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
                let _ = SegmentHeader::decode(&bytes, c.identity, c.log);
            }
        }
    }
}
