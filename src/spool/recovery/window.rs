//! A piece of a segment file in memory, with what cannot be read of it left out.
//!
//! Owns: reading ahead, and the blocks that the device does not give back. Promises: such a block reads as
//! zeros, which no checksum takes for what stood there, and is asked for once; a device on which nothing
//! can be relied on any more is an error, never a loss. Must not: know what the bytes mean.
use std::collections::BTreeSet;

use super::{Finding, ReadFault, RecoveryError, SegmentSource};
use crate::limits;
use crate::spool::{FileIndex, LogConfig};

#[derive(Debug, Default)]
pub(super) struct Window {
    file: Option<FileIndex>,
    offset: u64,
    bytes: Vec<u8>,
    unreadable: BTreeSet<(FileIndex, u64)>,
    /// No block joins the unreadable ones: what was said of the log would not hold.
    settled: bool,
}

impl Window {
    /// One for reading the same files again: what could not be read is known.
    pub(super) fn again(&self) -> Window {
        Window { unreadable: self.unreadable.clone(), settled: true, ..Window::default() }
    }

    /// Loads `bytes` bytes at `offset`, which must lie within the file's `end`. Reads ahead.
    pub(super) fn load(
        &mut self,
        source: &mut dyn SegmentSource,
        config: &LogConfig,
        file: FileIndex,
        (offset, bytes, end): (u32, u32, u32),
    ) -> Result<(), RecoveryError> {
        let (from, to) = (u64::from(offset), u64::from(offset) + u64::from(bytes));
        let held =
            self.file == Some(file) && self.offset <= from && to <= self.offset + self.bytes.len() as u64;
        if held {
            return Ok(());
        }
        let ahead = bytes.max(limits::RECOVERY_READ_BYTES as u32).min(end - offset);
        self.file = None;
        self.bytes.resize(ahead as usize, 0);
        self.offset = from;
        self.fill(source, u64::from(config.block_bytes), file)?;
        self.file = Some(file);
        Ok(())
    }

    pub(super) fn slice(&self, offset: u32, bytes: u32) -> &[u8] {
        let start = (u64::from(offset) - self.offset) as usize;
        &self.bytes[start..start + bytes as usize]
    }

    fn fill(
        &mut self,
        source: &mut dyn SegmentSource,
        block: u64,
        file: FileIndex,
    ) -> Result<(), RecoveryError> {
        let (from, to) = (self.offset, self.offset + self.bytes.len() as u64);
        let known = self.unreadable.range((file, from - from % block)..(file, to)).next().is_some();
        if !known {
            match source.read_at(file, from, &mut self.bytes) {
                Ok(()) => return Ok(()),
                Err(ReadFault::Failed(error)) => return Err(RecoveryError::Io { file, error }),
                Err(ReadFault::Damaged(_)) => {}
            }
        }
        // Block by block: in halves, a device would try for seconds at each half with a bad block in it.
        let mut at = from;
        while at < to {
            let start = at - at % block;
            let end = (start + block).min(to);
            let piece = &mut self.bytes[(at - from) as usize..(end - from) as usize];
            if self.unreadable.contains(&(file, start)) {
                piece.fill(0);
            } else if let Err(fault) = source.read_at(file, at, piece) {
                piece.fill(0);
                self.lose(file, start, fault)?;
            }
            at = end;
        }
        Ok(())
    }

    /// A block that cannot be read.
    fn lose(&mut self, file: FileIndex, start: u64, fault: ReadFault) -> Result<(), RecoveryError> {
        match fault {
            ReadFault::Failed(error) => Err(RecoveryError::Io { file, error }),
            ReadFault::Damaged(error) if self.settled => Err(RecoveryError::Io { file, error }),
            ReadFault::Damaged(error) if self.unreadable.len() >= limits::UNREADABLE_BLOCKS => {
                Err(RecoveryError::Failing { file, error })
            }
            ReadFault::Damaged(_) => {
                self.unreadable.insert((file, start));
                Ok(())
            }
        }
    }

    /// Blocks of the file that could not be read.
    pub(super) fn unreadable_in(&self, file: FileIndex) -> usize {
        self.unreadable.range((file, 0)..=(file, u64::MAX)).count()
    }

    /// What could not be read, in runs of neighbouring blocks.
    pub(super) fn findings(&self, config: &LogConfig) -> Vec<Finding> {
        let block = u64::from(config.block_bytes);
        let mut findings: Vec<Finding> = Vec::new();
        for &(at, start) in &self.unreadable {
            match findings.last_mut() {
                Some(Finding::Unreadable { file, offset, bytes })
                    if *file == at && u64::from(*offset) + u64::from(*bytes) == start =>
                {
                    *bytes += block as u32;
                }
                _ => {
                    findings.push(Finding::Unreadable { file: at, offset: start as u32, bytes: block as u32 })
                }
            }
        }
        findings
    }
}
