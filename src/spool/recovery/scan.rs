//! Finding groups in segment files.
//!
//! Owns: telling what a file is, walking its groups, and looking for the next one behind a hole.
//! Promises: groups are accepted only with the right key at the right offset, so nothing in a body is
//! ever taken for one. Must not: read what frames mean.
use super::history::History;
use super::merge::Found;
use super::window::Window;
use super::{Damage, Finding, RecoveryError, SegmentSource};
use crate::spool::checksum::Key;
use crate::spool::format::{BadHeader, GROUP_HEADER_BYTES, GroupHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::spool::group::{FLAG_SKIPPABLE, FRAME_VERSION, FrameKind, frames};
use crate::spool::seal::{Entry, Indexer, SEAL_BYTES, Seal};
use crate::spool::{FileIndex, Generation, GroupSeq, LogConfig, MessageId, Place};

/// What a file is.
pub(super) enum Identified {
    Free {
        reusable: bool,
    },
    /// `whole` is whether the header is as it was written.
    Segment {
        generation: Generation,
        header: Option<SegmentHeader>,
        whole: bool,
        bytes: u32,
    },
}

/// A frame that is not what was written; whether that is a crash or corruption is known at the end.
struct Suspect {
    seq: GroupSeq,
    file: FileIndex,
    offset: u32,
    bytes: Vec<u8>,
}

pub(super) struct Scan<'a> {
    config: &'a LogConfig,
    pub(super) source: &'a mut dyn SegmentSource,
    window: Window,
    suspects: Vec<Suspect>,
    /// What the index of the segment being walked should say, if there is one to be held against it.
    indexer: Option<Indexer>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(config: &'a LogConfig, source: &'a mut dyn SegmentSource, window: Window) -> Scan<'a> {
        Scan { config, source, window, suspects: Vec::new(), indexer: None }
    }
    pub(super) fn into_window(self) -> Window {
        self.window
    }
    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    fn length(&mut self, file: FileIndex) -> Result<u32, RecoveryError> {
        let bytes = self.source.bytes(file).map_err(|error| RecoveryError::Io { file, error })?;
        // Offsets have 32 bits: no version wrote behind them.
        Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
    }

    /// See [`Window::load`].
    fn load(&mut self, file: FileIndex, offset: u32, bytes: u32, end: u32) -> Result<(), RecoveryError> {
        self.window.load(self.source, self.config, file, (offset, bytes, end))
    }
    fn slice(&self, offset: u32, bytes: u32) -> &[u8] {
        self.window.slice(offset, bytes)
    }

    /// Whether a file that holds nothing needs only a header to be used again.
    pub(super) fn reusable(&self, file: FileIndex, bytes: u32) -> bool {
        bytes == self.config.segment_bytes && self.window.unreadable_in(file) == 0
    }

    /// What a file is, by its header or, where that is lost, by its newest group.
    pub(super) fn identify(&mut self, file: FileIndex) -> Result<Identified, RecoveryError> {
        let bytes = self.length(file)?;
        if (bytes as usize) < SEGMENT_HEADER_BYTES {
            return Ok(Identified::Free { reusable: false });
        }
        let first = bytes.min(self.config.block_bytes);
        self.load(file, 0, first, first)?;
        let header = SegmentHeader::decode(self.slice(0, first), self.config.identity, self.config.log);
        match header {
            Ok((header, whole)) => {
                let generation = header.generation;
                Ok(Identified::Segment { generation, header: Some(header), whole, bytes })
            }
            Err(BadHeader::Version(version)) => Err(RecoveryError::Version { file, version }),
            Err(bad) => self.identify_by_groups(file, bytes, bad),
        }
    }

    /// Nothing vouches for the header: groups that are ours say more than what it claims to be.
    fn identify_by_groups(
        &mut self,
        file: FileIndex,
        bytes: u32,
        bad: BadHeader,
    ) -> Result<Identified, RecoveryError> {
        let mut newest = None;
        let mut offset = self.config.block_bytes;
        while let Some(header) = self.find_group(file, offset, bytes, None)? {
            newest = newest.max(Some(header.generation));
            offset = header.offset + self.config.block_bytes;
        }
        match (newest, bad) {
            (Some(generation), _) => {
                Ok(Identified::Segment { generation, header: None, whole: false, bytes })
            }
            (None, BadHeader::Claims(version)) => Err(RecoveryError::Version { file, version }),
            (None, BadHeader::Foreign) => Err(RecoveryError::Foreign { file }),
            (None, _)
                if self.window.unreadable_in(file) as u32 >= bytes.div_ceil(self.config.block_bytes) =>
            {
                Err(RecoveryError::Lost(file))
            }
            (None, _) => Ok(Identified::Free { reusable: self.reusable(file, bytes) }),
        }
    }

    /// The seal of a segment whose header is `header`, if it has one.
    pub(super) fn seal(
        &mut self,
        file: FileIndex,
        header: &SegmentHeader,
        bytes: u32,
    ) -> Result<Option<Seal>, RecoveryError> {
        let block = header.block_bytes;
        if bytes != header.segment_bytes || (block as usize) < SEAL_BYTES || block > bytes / 2 {
            return Ok(None);
        }
        let offset = bytes - block;
        self.load(file, offset, block, bytes)?;
        Ok(Seal::decode(self.slice(offset, block), offset, header.generation, self.config))
    }

    /// The index of a sealed segment, if it is whole.
    pub(super) fn index(
        &mut self,
        file: FileIndex,
        seal: &Seal,
        bytes: u32,
    ) -> Result<Option<&[u8]>, RecoveryError> {
        self.load(file, seal.index_offset, seal.index_bytes, bytes)?;
        let index = self.slice(seal.index_offset, seal.index_bytes);
        Ok(seal.vouches_for(index, self.config).then_some(index))
    }

    /// From now on notes what the index of a segment should say.
    pub(super) fn expect_index(&mut self, generation: Generation) {
        // Whoever wrote it may have allowed more.
        self.indexer = Some(Indexer::new(generation, u32::MAX));
    }

    /// Whether the index knows the records of its segment, which were walked since
    /// [`Scan::expect_index`].
    pub(super) fn index_agrees(
        &mut self,
        file: FileIndex,
        seal: &Seal,
        bytes: u32,
    ) -> Result<bool, RecoveryError> {
        let expected = self.indexer.take();
        let index = self.index(file, seal, bytes)?;
        Ok(index.is_some_and(|index| expected.is_some_and(|expected| expected.is_in(index))))
    }

    /// The first group header at or behind `offset`, of `generation` if given.
    fn find_group(
        &mut self,
        file: FileIndex,
        mut offset: u32,
        end: u32,
        generation: Option<Generation>,
    ) -> Result<Option<GroupHeader>, RecoveryError> {
        while u64::from(offset) + GROUP_HEADER_BYTES as u64 <= u64::from(end) {
            self.load(file, offset, GROUP_HEADER_BYTES as u32, end)?;
            let header =
                GroupHeader::decode(self.slice(offset, GROUP_HEADER_BYTES as u32), offset, self.config);
            match header {
                Ok(header) if generation.is_none_or(|g| g == header.generation) => return Ok(Some(header)),
                Err(BadHeader::Version(version)) => return Err(RecoveryError::Version { file, version }),
                _ => {}
            }
            match offset.checked_add(self.config.block_bytes) {
                Some(next) => offset = next,
                None => break,
            }
        }
        Ok(None)
    }

    /// Walks the groups of a segment up to `end`: headers into `history`, records into `sink`. Returns the
    /// first and last sequence, if there is any group.
    pub(super) fn groups(
        &mut self,
        file: FileIndex,
        generation: Generation,
        end: u32,
        history: &mut History,
        sink: &mut dyn FnMut(&Found<'_>),
    ) -> Result<Option<(GroupSeq, GroupSeq)>, RecoveryError> {
        let mut span: Option<(GroupSeq, GroupSeq)> = None;
        let mut offset = self.config.block_bytes;
        while let Some((header, next)) = self.group(file, generation, (offset, end), sink)? {
            history.group(file, &header);
            let (first, last) = span.unwrap_or((header.seq, header.seq));
            span = Some((first.min(header.seq), last.max(header.seq)));
            offset = next;
        }
        Ok(span)
    }

    /// The next group of a segment between two offsets: its records into `sink`. Returns its header, and
    /// where to look for the one behind it.
    pub(super) fn group(
        &mut self,
        file: FileIndex,
        generation: Generation,
        (offset, end): (u32, u32),
        sink: &mut dyn FnMut(&Found<'_>),
    ) -> Result<Option<(GroupHeader, u32)>, RecoveryError> {
        let Some(header) = self.find_group(file, offset, end, Some(generation))? else { return Ok(None) };
        let fits = header.total_bytes <= end - header.offset;
        let bytes = if fits { header.total_bytes } else { end - header.offset };
        self.load(file, header.offset, bytes, end)?;
        let key = Key::derive(self.config.identity, self.config.log, generation);
        self.frames(file, &header, bytes, key, sink)?;
        let next = header.offset.saturating_add(header.total_bytes.max(self.config.block_bytes));
        Ok(Some((header, next)))
    }

    fn frames(
        &mut self,
        file: FileIndex,
        header: &GroupHeader,
        bytes: u32,
        key: Key,
        sink: &mut dyn FnMut(&Found<'_>),
    ) -> Result<(), RecoveryError> {
        let mut bad = Vec::new();
        let group = self.window.slice(header.offset, bytes);
        for frame in frames(group, header, key) {
            let frame = match frame {
                Ok(frame) => frame,
                Err(frame) => {
                    bad.push(frame);
                    continue;
                }
            };
            match FrameKind::of(frame.kind).filter(|_| frame.version == FRAME_VERSION) {
                Some(kind) => {
                    let sum = frame.checksum;
                    if let Some(indexer) = &mut self.indexer {
                        indexer.add((kind, frame.id), frame.offset, (frame.payload, sum));
                    }
                    sink(&Found {
                        file,
                        seq: header.seq,
                        place: Place { generation: header.generation, offset: frame.offset },
                        frame_bytes: frame.bytes(),
                        kind,
                        id: MessageId(frame.id),
                        checksum: sum,
                        payload: frame.payload,
                        indexed: false,
                    });
                }
                None if frame.flags & FLAG_SKIPPABLE != 0 => {}
                None => {
                    let (kind, version) = (frame.kind, frame.version);
                    return Err(RecoveryError::UnknownRecord { file, kind, version });
                }
            }
        }
        for frame in bad {
            let start = (frame.offset - header.offset) as usize;
            let group = self.slice(header.offset, bytes);
            let end = (start + frame.bytes as usize).min(group.len());
            let bytes = group.get(start..end).unwrap_or_default().to_vec();
            self.suspects.push(Suspect { seq: header.seq, file, offset: frame.offset, bytes });
        }
        Ok(())
    }

    /// The damaged frames that were durable and may matter.
    pub(super) fn damage_of(&mut self, history: &History) -> Vec<Finding> {
        let judged = std::mem::take(&mut self.suspects).into_iter();
        judged
            .filter(|s| s.seq >= history.tail && history.was_durable(s.seq))
            .map(|s| Finding::Damaged { file: s.file, offset: s.offset, damage: Damage::Frame(s.bytes) })
            .collect()
    }
}

impl<'a> Found<'a> {
    /// A record as the index of a sealed segment has it.
    pub(super) fn indexed(file: FileIndex, seal: &Seal, entry: &Entry<'a>) -> Found<'a> {
        let checksum = match (entry.kind, <[u8; 8]>::try_from(entry.payload)) {
            (FrameKind::Fragment, Ok(sum)) => u64::from_le_bytes(sum),
            _ => 0,
        };
        Found {
            file,
            // What is said of groups, like the tail, is the same for all of a segment.
            seq: seal.first_seq,
            place: Place { generation: seal.generation, offset: entry.offset },
            frame_bytes: entry.frame_bytes,
            kind: entry.kind,
            id: entry.id,
            checksum,
            payload: entry.payload,
            indexed: true,
        }
    }
}
