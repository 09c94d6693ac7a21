//! A group as bytes: frames laid into a buffer, and found again.
//!
//! Owns: the frame header, the frame directory, and the walk over the frames of a group
//! (`docs/LOG_FORMAT.md`, sections 3 and 4). Promises: frames are found by the directory, and where that
//! is damaged by frame lengths, never by searching bytes; one damaged frame costs itself alone. Must
//! not: know what a payload means (`record`).
use super::LogConfig;
use super::checksum::{Domain, Key};
use super::format::{
    FRAME_ALIGN, FRAME_HEADER_BYTES, GROUP_HEADER_BYTES, GroupHeader, directory_bytes, put, u16_at, u32_at,
    u64_at,
};

/// What a frame is. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameKind {
    Commit = 1,
    Fragment = 2,
    Abort = 3,
    Outcome = 4,
    Change = 5,
}

impl FrameKind {
    pub(super) fn of(number: u8) -> Option<FrameKind> {
        match number {
            1 => Some(FrameKind::Commit),
            2 => Some(FrameKind::Fragment),
            3 => Some(FrameKind::Abort),
            4 => Some(FrameKind::Outcome),
            5 => Some(FrameKind::Change),
            _ => None,
        }
    }
}

/// Version of every frame this code writes.
pub(super) const FRAME_VERSION: u8 = 1;
/// Frame flag: a reader that does not know the kind or version may skip the frame.
pub(super) const FLAG_SKIPPABLE: u16 = 0x8000;

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// From the start of the segment.
    pub(super) offset: u32,
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) flags: u16,
    pub(super) id: u64,
    pub(super) checksum: u64,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    /// Header and payload.
    pub(super) fn bytes(&self) -> u32 {
        (FRAME_HEADER_BYTES + self.payload.len()) as u32
    }
}

/// Writes the header in front of a payload that is in place already: `frame` is header and payload,
/// and stands at `offset` of the segment. Returns the checksum.
pub(super) fn seal_frame(frame: &mut [u8], kind: FrameKind, id: u64, offset: u32, key: Key) -> u64 {
    let payload_bytes = (frame.len() - FRAME_HEADER_BYTES) as u32;
    frame[8] = kind as u8;
    frame[9] = FRAME_VERSION;
    put(frame, 10, &0u16.to_le_bytes());
    put(frame, 12, &payload_bytes.to_le_bytes());
    put(frame, 16, &id.to_le_bytes());
    let checksum = key.sum(Domain::Frame, offset, &frame[8..]);
    put(frame, 0, &checksum.to_le_bytes());
    checksum
}

/// Decodes the frame at the start of `bytes`, which stands at `offset` of the segment.
pub(super) fn open_frame(bytes: &[u8], offset: u32, key: Key) -> Option<Frame<'_>> {
    if bytes.len() < FRAME_HEADER_BYTES {
        return None;
    }
    let end = FRAME_HEADER_BYTES.checked_add(u32_at(bytes, 12) as usize)?;
    let frame = bytes.get(..end)?;
    let checksum = u64_at(frame, 0);
    if checksum != key.sum(Domain::Frame, offset, &frame[8..]) {
        return None;
    }
    Some(Frame {
        offset,
        kind: frame[8],
        version: frame[9],
        flags: u16_at(frame, 10),
        id: u64_at(frame, 16),
        checksum,
        payload: &frame[FRAME_HEADER_BYTES..],
    })
}

/// Finishes a group: directory behind the frames, zeros to the block's end, header in front. Returns
/// the header, whose `total_bytes` is what must be written. `frames` are offsets from the group's start,
/// `used` the end of the last frame; the caller has kept room for the directory.
pub(super) fn seal_group(
    memory: &mut [u8],
    mut header: GroupHeader,
    (frames, used): (&[u32], usize),
    config: &LogConfig,
    key: Key,
) -> GroupHeader {
    let directory = used.next_multiple_of(FRAME_ALIGN);
    memory[used..directory].fill(0);
    let end = directory + directory_bytes(frames.len());
    let mut at = directory;
    for frame in frames {
        put(memory, at, &frame.to_le_bytes());
        at += 4;
    }
    memory[at..end - 8].fill(0);
    let sum = key.sum(Domain::Directory, header.offset, &memory[directory..end - 8]);
    put(memory, end - 8, &sum.to_le_bytes());
    let total = end.next_multiple_of(config.block_bytes as usize);
    memory[end..total].fill(0);
    header.total_bytes = total as u32;
    header.directory_offset = directory as u32;
    header.frames = frames.len() as u32;
    header.encode(memory, config.identity, config.log, key);
    header
}

/// A part of a group that holds no frame whose checksum holds. Offset from the start of the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadFrame {
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

/// The frames of the group whose header is `header` and whose bytes are `group`, in order.
pub(super) fn frames<'a>(
    group: &'a [u8],
    header: &'a GroupHeader,
    key: Key,
) -> impl Iterator<Item = Result<Frame<'a>, BadFrame>> + 'a {
    let directory = Directory::of(group, header, key);
    let mut index = 0;
    let mut next = GROUP_HEADER_BYTES;
    std::iter::from_fn(move || {
        if index >= header.frames as usize {
            return None;
        }
        let (start, end) = match &directory {
            Some(directory) => directory.extent(index),
            None => (next, header.directory_offset as usize),
        };
        index += 1;
        let offset = header.offset + start as u32;
        if let Some(frame) = group.get(start..end).and_then(|bytes| open_frame(bytes, offset, key)) {
            next = (start + frame.bytes() as usize).next_multiple_of(FRAME_ALIGN);
            return Some(Ok(frame));
        }
        if directory.is_none() {
            // Nothing says where the next frame begins: the rest of the group is lost.
            index = header.frames as usize;
        }
        Some(Err(BadFrame { offset, bytes: end.saturating_sub(start) as u32 }))
    })
}

/// A frame directory whose checksum holds.
struct Directory<'a> {
    entries: &'a [u8],
    end: usize,
}

impl<'a> Directory<'a> {
    fn of(group: &'a [u8], header: &GroupHeader, key: Key) -> Option<Directory<'a>> {
        let start = header.directory_offset as usize;
        let count = header.frames as usize;
        let bytes = group.get(start..start + directory_bytes(count))?;
        let (entries, sum) = bytes.split_at(bytes.len() - 8);
        (u64_at(sum, 0) == key.sum(Domain::Directory, header.offset, entries))
            .then_some(Directory { entries: &entries[..4 * count], end: start })
    }
    /// Start and the furthest end of a frame, from the group's start.
    fn extent(&self, index: usize) -> (usize, usize) {
        let start = u32_at(self.entries, 4 * index) as usize;
        let last = index + 1 == self.entries.len() / 4;
        let end = if last { self.end } else { u32_at(self.entries, 4 * (index + 1)) as usize };
        (start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::id::MessageId;
    use crate::spool::{Generation, GroupSeq, SpoolIdentity};

    const AT: u32 = 4096;

    fn build(payloads: &[&[u8]]) -> (Vec<u8>, GroupHeader, Key, LogConfig) {
        let config = LogConfig {
            identity: SpoolIdentity { id: 1, secret: 2 },
            log: 0,
            segment_bytes: 1 << 20,
            block_bytes: 512,
            max_segments: 4,
            slack_segments: 2,
            commits_in_flight: 2,
        };
        let key = Key::derive(config.identity, 0, Generation(1));
        let mut memory = vec![0xEE; 8192];
        let (mut offsets, mut used) = (Vec::new(), GROUP_HEADER_BYTES);
        for (i, payload) in payloads.iter().enumerate() {
            let start = used.next_multiple_of(FRAME_ALIGN);
            used = start + FRAME_HEADER_BYTES + payload.len();
            memory[start + FRAME_HEADER_BYTES..used].copy_from_slice(payload);
            seal_frame(&mut memory[start..used], FrameKind::Outcome, i as u64, AT + start as u32, key);
            offsets.push(start as u32);
        }
        let header = GroupHeader {
            generation: Generation(1),
            seq: GroupSeq(1),
            run: GroupSeq(1),
            durable_below: GroupSeq(1),
            tail: GroupSeq(0),
            last_id: Some(MessageId(1)),
            offset: AT,
            total_bytes: 0,
            directory_offset: 0,
            frames: 0,
        };
        let header = seal_group(&mut memory, header, (&offsets, used), &config, key);
        memory.truncate(header.total_bytes as usize);
        (memory, header, key, config)
    }

    #[test]
    fn frames_come_back_in_order() {
        let (memory, header, key, config) = build(&[b"one", b"", b"three and more"]);
        assert_eq!(GroupHeader::decode(&memory, AT, &config), Ok(header));
        let got: Vec<_> = frames(&memory, &header, key).map(|f| f.expect("whole").payload.to_vec()).collect();
        assert_eq!(got, [b"one".to_vec(), b"".to_vec(), b"three and more".to_vec()]);
    }

    #[test]
    fn a_damaged_byte_costs_one_frame() {
        let (memory, header, key, _) = build(&[&[b'a'; 100], &[b'b'; 100], &[b'c'; 100]]);
        let directory = header.directory_offset as usize;
        for at in GROUP_HEADER_BYTES..directory {
            let mut damaged = memory.clone();
            damaged[at] ^= 0x40;
            let bad: Vec<_> = frames(&damaged, &header, key).filter_map(Result::err).collect();
            let good = frames(&damaged, &header, key).filter(Result::is_ok).count();
            // Padding between frames is nobody's loss.
            assert_eq!(good + bad.len(), 3, "byte {at}");
            assert!(good >= 2, "byte {at}");
        }
        for at in directory..directory + directory_bytes(3) {
            let mut damaged = memory.clone();
            damaged[at] ^= 0x40;
            assert_eq!(
                frames(&damaged, &header, key).filter(Result::is_ok).count(),
                3,
                "directory byte {at}"
            );
        }
    }
}
