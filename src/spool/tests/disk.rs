//! A disk that keeps what was synced, and of the rest what chance leaves.
use std::collections::BTreeMap;
use std::io;

use crate::clock::Rng;
use crate::spool::{FileIndex, SegmentSource};

pub(super) const SECTOR: usize = 512;

/// Segment files as they would be found after a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<FileIndex, Vec<u8>>,
}

/// A write that was not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub(super) file: FileIndex,
    pub(super) offset: usize,
    pub(super) bytes: Vec<u8>,
}

impl Disk {
    pub(super) fn write(&mut self, write: &Unsynced) {
        let file = self.files.get_mut(&write.file).expect("groups go to prepared files");
        file[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    /// Lets the sectors land for which `keep` says so.
    pub(super) fn tear(&mut self, write: &Unsynced, mut keep: impl FnMut(usize) -> bool) {
        let file = self.files.get_mut(&write.file).expect("groups go to prepared files");
        for (i, sector) in write.bytes.chunks(SECTOR).enumerate() {
            if keep(i) {
                let at = write.offset + i * SECTOR;
                file[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }
    /// False if nothing of it has landed.
    pub(super) fn tear_at_random(&mut self, write: &Unsynced, rng: &mut Rng) -> bool {
        match rng.below(4) {
            0 => return false,
            1 => self.write(write),
            _ => self.tear(write, |_| rng.below(2) == 0),
        }
        true
    }
}

impl SegmentSource for Disk {
    fn files(&mut self) -> io::Result<Vec<FileIndex>> {
        Ok(self.files.keys().copied().collect())
    }
    fn bytes(&mut self, file: FileIndex) -> io::Result<u64> {
        Ok(self.files[&file].len() as u64)
    }
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        buf.copy_from_slice(&self.files[&file][start..start + buf.len()]);
        Ok(())
    }
}
