//! A disk that keeps what was synced, and of the rest what chance leaves.
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::clock::Rng;
use crate::spool::{Extent, FileIndex, ReadFault, SegmentSource};

pub(super) const SECTOR: usize = 512;

/// Segment files as they would be found after a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<FileIndex, Vec<u8>>,
    /// Sectors that are not given back, by their number in the file.
    pub(super) bad: BTreeSet<(FileIndex, usize)>,
}

/// A write that was not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub(super) file: FileIndex,
    pub(super) offset: usize,
    pub(super) bytes: Vec<u8>,
}

impl Disk {
    /// What a read gives, or EIO if a sector in it is bad.
    pub(super) fn read(&self, file: FileIndex, offset: usize, bytes: usize) -> io::Result<&[u8]> {
        let (first, last) = (offset / SECTOR, (offset + bytes).div_ceil(SECTOR));
        match self.bad.range((file, first)..(file, last)).next() {
            Some(_) => Err(io::Error::from_raw_os_error(5)),
            None => Ok(&self.files[&file][offset..offset + bytes]),
        }
    }
    pub(super) fn read_extent(&self, extent: &Extent) -> io::Result<&[u8]> {
        self.read(extent.file, extent.offset as usize, extent.bytes as usize)
    }
    pub(super) fn write(&mut self, write: &Unsynced) {
        let file = self.files.get_mut(&write.file).expect("groups go to prepared files");
        file[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        // What is written finds another place on the medium.
        let sectors = write.offset / SECTOR..(write.offset + write.bytes.len()).div_ceil(SECTOR);
        self.bad.retain(|(file, sector)| *file != write.file || !sectors.contains(sector));
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
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        buf.copy_from_slice(self.read(file, offset as usize, buf.len()).map_err(ReadFault::Damaged)?);
        Ok(())
    }
}
