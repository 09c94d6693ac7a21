//! The seal of a full segment, and its index.
//!
//! Owns: the layout of both (`docs/LOG_FORMAT.md`, section 8), and the index while it grows. A segment
//! that is full and durable gets an index of its records, without bodies and replies, and a seal in its
//! last block, so that recovery need not read what a queue of a million messages weighs. Promises: an
//! index stays below its part of the segment, or there is none; neither is needed: without them, or if
//! they are damaged, the segment is read from end to end. Must not: decide when a segment is sealed.
use super::checksum::{Domain, Key};
use super::format::{FRAME_HEADER_BYTES, VERSION, put, u16_at, u32_at, u64_at};
use super::group::{FRAME_VERSION, FrameKind};
use super::{Generation, GroupSeq, LogConfig, MessageId, outcome, record};
use crate::limits;

/// First bytes of a seal.
const SEAL_MAGIC: [u8; 8] = *b"rpSEAL\r\n";
/// Bytes of a seal; the rest of its block is zero.
pub(super) const SEAL_BYTES: usize = 96;
/// Bytes of an entry in front of its payload.
const ENTRY_HEADER_BYTES: usize = 24;
const ENTRY_ALIGN: usize = 8;

/// The last block of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub(super) generation: Generation,
    /// Of the first and the last group in the segment; all between are there.
    pub(super) first_seq: GroupSeq,
    pub(super) last_seq: GroupSeq,
    /// First group of the run that wrote them.
    pub(super) run: GroupSeq,
    /// As in a group header.
    pub(super) tail: GroupSeq,
    pub(super) last_id: Option<MessageId>,
    pub(super) index_offset: u32,
    pub(super) index_bytes: u32,
    index_sum: u64,
}

impl Seal {
    /// The seal in the last block of a segment, which stands at `offset`.
    pub(super) fn decode(b: &[u8], offset: u32, generation: Generation, config: &LogConfig) -> Option<Seal> {
        if b.len() < SEAL_BYTES || b[..8] != SEAL_MAGIC {
            return None;
        }
        let key = Key::derive(config.identity, config.log, generation);
        let own = u16_at(b, 8) == VERSION
            && u16_at(b, 10) == config.log
            && u32_at(b, 12) == generation.0
            && u64_at(b, 16) == config.identity.id
            && u64_at(b, 88) == key.sum(Domain::Seal, offset, &b[..88]);
        let last_id = u64_at(b, 56);
        let seal = own.then(|| Seal {
            generation,
            first_seq: GroupSeq(u64_at(b, 24)),
            last_seq: GroupSeq(u64_at(b, 32)),
            run: GroupSeq(u64_at(b, 40)),
            tail: GroupSeq(u64_at(b, 48)),
            last_id: (last_id != 0).then_some(MessageId(last_id)),
            index_offset: u32_at(b, 64),
            index_bytes: u32_at(b, 68),
            index_sum: u64_at(b, 72),
        });
        seal.filter(|s| s.index_offset.checked_add(s.index_bytes).is_some_and(|end| end <= offset))
    }

    fn encode(&self, b: &mut [u8], offset: u32, config: &LogConfig, key: Key) {
        put(b, 0, &SEAL_MAGIC);
        put(b, 8, &VERSION.to_le_bytes());
        put(b, 10, &config.log.to_le_bytes());
        put(b, 12, &self.generation.0.to_le_bytes());
        put(b, 16, &config.identity.id.to_le_bytes());
        put(b, 24, &self.first_seq.0.to_le_bytes());
        put(b, 32, &self.last_seq.0.to_le_bytes());
        put(b, 40, &self.run.0.to_le_bytes());
        put(b, 48, &self.tail.0.to_le_bytes());
        put(b, 56, &self.last_id.map_or(0, |id| id.0).to_le_bytes());
        put(b, 64, &self.index_offset.to_le_bytes());
        put(b, 68, &self.index_bytes.to_le_bytes());
        put(b, 72, &self.index_sum.to_le_bytes());
        let sum = key.sum(Domain::Seal, offset, &b[..88]);
        put(b, 88, &sum.to_le_bytes());
    }

    /// Whether `index` is what was written, and can be read.
    pub(super) fn vouches_for(&self, index: &[u8], config: &LogConfig) -> bool {
        let key = Key::derive(config.identity, config.log, self.generation);
        let sum = key.sum(Domain::Index, self.index_offset, index);
        sum == self.index_sum && entries(index).all(|entry| entry.is_some())
    }
}

/// What the index says of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// Of the frame, in the segment.
    pub(super) offset: u32,
    /// Of the frame, header and payload.
    pub(super) frame_bytes: u32,
    pub(super) kind: FrameKind,
    pub(super) id: MessageId,
    /// Of the frame's payload: a commit record without the body, a fragment's checksum in place of it,
    /// an outcome without replies, any other as it is.
    pub(super) payload: &'a [u8],
}

/// The entries in `index`; ends with `None` in place of one that makes no sense.
pub(super) fn entries(mut index: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    std::iter::from_fn(move || {
        if index.is_empty() {
            return None;
        }
        let entry = take_entry(&mut index);
        if entry.is_none() {
            index = &[];
        }
        Some(entry)
    })
}

/// Takes the first entry off `index`.
pub(super) fn take_entry<'a>(index: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (header, rest) = index.split_at_checked(ENTRY_HEADER_BYTES)?;
    let bytes = u32_at(header, 12) as usize;
    let payload = rest.get(..bytes)?;
    *index = rest.get(bytes.next_multiple_of(ENTRY_ALIGN)..)?;
    Some(Entry {
        offset: u32_at(header, 0),
        frame_bytes: u32_at(header, 4),
        kind: FrameKind::of(header[8]).filter(|_| header[9] == FRAME_VERSION)?,
        id: MessageId(u64_at(header, 16)),
        payload,
    })
}

/// The index of a segment that is being filled.
#[derive(Debug)]
pub(super) struct Indexer {
    pub(super) generation: Generation,
    bytes: Vec<u8>,
    /// Past this there is no index: the segment holds little but records, and reading it is no worse.
    most: usize,
    gave_up: bool,
}

impl Indexer {
    pub(super) fn new(generation: Generation, segment_bytes: u32) -> Indexer {
        let most = segment_bytes as usize / limits::INDEX_PART;
        Indexer { generation, bytes: Vec::new(), most, gave_up: false }
    }

    /// Adds a frame of the segment. They come in the order in which they stand there.
    pub(super) fn add(
        &mut self,
        (kind, id): (FrameKind, u64),
        offset: u32,
        (payload, checksum): (&[u8], u64),
    ) {
        if self.gave_up {
            return;
        }
        let start = self.bytes.len();
        self.bytes.resize(start + ENTRY_HEADER_BYTES, 0);
        match kind {
            FrameKind::Commit => self.bytes.extend_from_slice(record::without_body(payload)),
            FrameKind::Fragment => self.bytes.extend_from_slice(&checksum.to_le_bytes()),
            FrameKind::Abort | FrameKind::Change => self.bytes.extend_from_slice(payload),
            FrameKind::Outcome => outcome::without_replies(payload, &mut self.bytes),
        }
        let bytes = self.bytes.len() - start - ENTRY_HEADER_BYTES;
        self.bytes.resize(start + ENTRY_HEADER_BYTES + bytes.next_multiple_of(ENTRY_ALIGN), 0);
        let frame_bytes = (FRAME_HEADER_BYTES + payload.len()) as u32;
        let header = &mut self.bytes[start..];
        put(header, 0, &offset.to_le_bytes());
        put(header, 4, &frame_bytes.to_le_bytes());
        put(header, 8, &[kind as u8, FRAME_VERSION, 0, 0]);
        put(header, 12, &(bytes as u32).to_le_bytes());
        put(header, 16, &id.to_le_bytes());
        if self.bytes.len() > self.most {
            self.gave_up = true;
            self.bytes = Vec::new();
        }
    }

    /// Bytes to be kept free at the end of the segment for index and seal, once a frame of `frame_bytes`
    /// is in it.
    pub(super) fn room(&self, frame_bytes: usize, block_bytes: u32) -> usize {
        let most = (self.bytes.len() + ENTRY_HEADER_BYTES + frame_bytes).min(self.most);
        if self.gave_up {
            0
        } else {
            (most + SEAL_BYTES).next_multiple_of(block_bytes as usize) + block_bytes as usize
        }
    }

    /// Whether `index` has all that was added, in this order. It may have more: frames that are damaged.
    pub(super) fn is_in(&self, index: &[u8]) -> bool {
        let mut others = entries(index);
        !self.gave_up && entries(&self.bytes).all(|own| others.any(|other| other == own))
    }

    /// Index and seal as they are to stand at the end of a segment of `segment_bytes`, whose groups end at
    /// `end`. `None` if there is no index, or no room for it.
    pub(super) fn seal(
        self,
        mut seal: Seal,
        (end, segment_bytes): (u32, u32),
        config: &LogConfig,
    ) -> Option<Sealed> {
        let block = config.block_bytes as usize;
        let padded = self.bytes.len().next_multiple_of(block);
        let total = padded + block;
        if self.gave_up || total > (segment_bytes - end) as usize {
            return None;
        }
        let key = Key::derive(config.identity, config.log, seal.generation);
        seal.index_offset = segment_bytes - total as u32;
        seal.index_bytes = self.bytes.len() as u32;
        seal.index_sum = key.sum(Domain::Index, seal.index_offset, &self.bytes);
        let mut index = self.bytes;
        index.resize(padded, 0);
        let mut last = vec![0; block].into_boxed_slice();
        seal.encode(&mut last, segment_bytes - config.block_bytes, config, key);
        Some(Sealed { offset: seal.index_offset, index: index.into(), seal: last })
    }
}

/// What is to be written to the end of a segment.
pub(super) struct Sealed {
    /// Where the index goes; the seal stands right behind it.
    pub(super) offset: u32,
    pub(super) index: Box<[u8]>,
    pub(super) seal: Box<[u8]>,
}

impl Seal {
    /// A seal whose index is still to be placed.
    pub(super) fn of(
        generation: Generation,
        (first_seq, last_seq): (GroupSeq, GroupSeq),
        run: GroupSeq,
    ) -> Seal {
        Seal {
            generation,
            first_seq,
            last_seq,
            run,
            tail: GroupSeq(0),
            last_id: None,
            index_offset: 0,
            index_bytes: 0,
            index_sum: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spool::SpoolIdentity;

    const SEGMENT: u32 = 64 * 1024;

    fn config() -> LogConfig {
        LogConfig {
            identity: SpoolIdentity { id: 1, secret: 2 },
            log: 5,
            segment_bytes: SEGMENT,
            block_bytes: 512,
            max_segments: 4,
            slack_segments: 2,
            commits_in_flight: 2,
        }
    }

    fn sealed() -> (Vec<u8>, Seal) {
        let mut indexer = Indexer::new(Generation(7), SEGMENT);
        indexer.add((FrameKind::Abort, 0), 512, (&9u64.to_le_bytes(), 1));
        indexer.add((FrameKind::Fragment, 12), 1024, (&[7; 300], 0xABCD));
        let mut seal = Seal::of(Generation(7), (GroupSeq(3), GroupSeq(9)), GroupSeq(2));
        (seal.tail, seal.last_id) = (GroupSeq(1), Some(MessageId(99)));
        let sealed = indexer.seal(seal, (4096, SEGMENT), &config()).expect("there is room");
        ([sealed.index, sealed.seal].concat(), seal)
    }

    #[test]
    fn a_seal_and_its_index_come_back() {
        let (image, written) = sealed();
        let at = image.len() - 512;
        let seal = Seal::decode(&image[at..], SEGMENT - 512, Generation(7), &config()).expect("whole");
        assert_eq!(
            (seal.first_seq, seal.last_seq, seal.run),
            (written.first_seq, written.last_seq, written.run)
        );
        assert_eq!((seal.tail, seal.last_id), (written.tail, written.last_id));
        assert_eq!(seal.index_offset + image.len() as u32, SEGMENT);
        let index = &image[..seal.index_bytes as usize];
        assert!(seal.vouches_for(index, &config()));
        let entries: Vec<Entry<'_>> = entries(index).flatten().collect();
        let wanted = [(512, FrameKind::Abort, 0, 32), (1024, FrameKind::Fragment, 12, 324)];
        let got: Vec<_> = entries.iter().map(|e| (e.offset, e.kind, e.id.0, e.frame_bytes)).collect();
        assert_eq!(got, wanted);
        assert_eq!(entries[1].payload, 0xABCDu64.to_le_bytes());
        for bit in 0..8 * SEAL_BYTES {
            let mut damaged = image[at..].to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Seal::decode(&damaged, SEGMENT - 512, Generation(7), &config()), None, "bit {bit}");
        }
        for byte in 0..index.len() {
            let mut damaged = index.to_vec();
            damaged[byte] ^= 4;
            assert!(!seal.vouches_for(&damaged, &config()), "byte {byte}");
        }
        for (offset, generation) in [(SEGMENT - 1024, 7), (SEGMENT - 512, 8)] {
            assert_eq!(Seal::decode(&image[at..], offset, Generation(generation), &config()), None);
        }
    }

    #[test]
    fn an_index_that_grows_too_large_is_given_up() {
        let mut indexer = Indexer::new(Generation(1), SEGMENT);
        let part = SEGMENT as usize / limits::INDEX_PART;
        let frames = part / ENTRY_HEADER_BYTES;
        for _ in 0..=frames {
            assert!(indexer.room(0, 512) <= part + 2 * 512);
            indexer.add((FrameKind::Abort, 0), 512, (&[], 1));
        }
        assert_eq!(indexer.room(100, 512), 0);
        let seal = Seal::of(Generation(1), (GroupSeq(3), GroupSeq(9)), GroupSeq(2));
        assert!(indexer.seal(seal, (4096, SEGMENT), &config()).is_none());
        let mut indexer = Indexer::new(Generation(1), SEGMENT);
        indexer.add((FrameKind::Abort, 0), 512, (&[], 1));
        assert!(indexer.seal(seal, (SEGMENT - 512, SEGMENT), &config()).is_none(), "no room");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Seal::decode(&bytes, 0, Generation(1), &config());
            let _ = entries(&bytes).count();
        }
    }
}
