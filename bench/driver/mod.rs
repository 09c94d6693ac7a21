//! A log and a disk that takes every write at once, for benchmarks that are not about the disk.
use std::collections::HashMap;
use std::io;

use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::address::Address;
use ringpost::mail::envelope::{Envelope, Recipient};
use ringpost::spool::{
    Buffer, FileIndex, Intent, Log, LogConfig, ReadFault, RecoveredLog, Refusal, SegmentSource,
    SpoolIdentity, decode_message,
};

pub struct Memory(pub Vec<u8>);

impl Buffer for Memory {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Where segments lie.
pub trait Disk {
    /// A segment file is made, or used again.
    fn prepare(&mut self, file: FileIndex);
    fn write(&mut self, file: FileIndex, offset: u32, bytes: &[u8]);
    fn read(&self, file: FileIndex, offset: u32, bytes: u32) -> Vec<u8>;
    fn delete(&mut self, file: FileIndex);
}

/// Takes everything and keeps nothing.
pub struct Nowhere;

impl Disk for Nowhere {
    fn prepare(&mut self, _: FileIndex) {}
    fn write(&mut self, _: FileIndex, _: u32, _: &[u8]) {}
    fn read(&self, _: FileIndex, _: u32, bytes: u32) -> Vec<u8> {
        vec![0; bytes as usize]
    }
    fn delete(&mut self, _: FileIndex) {}
}

/// Segments in memory.
pub struct InMemory {
    pub segment_bytes: usize,
    pub files: HashMap<FileIndex, Vec<u8>>,
}

impl InMemory {
    pub fn new(config: &LogConfig) -> InMemory {
        InMemory { segment_bytes: config.segment_bytes as usize, files: HashMap::new() }
    }
}

impl Disk for InMemory {
    fn prepare(&mut self, file: FileIndex) {
        self.files.entry(file).or_insert_with(|| vec![0; self.segment_bytes]);
    }
    fn write(&mut self, file: FileIndex, offset: u32, bytes: &[u8]) {
        let start = offset as usize;
        self.files.get_mut(&file).expect("it was prepared")[start..start + bytes.len()]
            .copy_from_slice(bytes);
    }
    fn read(&self, file: FileIndex, offset: u32, bytes: u32) -> Vec<u8> {
        self.files[&file][offset as usize..(offset + bytes) as usize].to_vec()
    }
    fn delete(&mut self, file: FileIndex) {
        self.files.remove(&file);
    }
}

impl SegmentSource for InMemory {
    fn files(&mut self) -> io::Result<Vec<FileIndex>> {
        Ok(self.files.keys().copied().collect())
    }
    fn bytes(&mut self, file: FileIndex) -> io::Result<u64> {
        Ok(self.files[&file].len() as u64)
    }
    fn read_at(&mut self, file: FileIndex, offset: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        buf.copy_from_slice(&self.files[&file][offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
}

/// What the server gives a log, with segments of `segment_bytes`.
pub fn config(identity: SpoolIdentity, log: u16, segment_bytes: u64) -> LogConfig {
    LogConfig {
        identity,
        log,
        segment_bytes: segment_bytes as u32,
        block_bytes: limits::BLOCK_BYTES as u32,
        max_segments: u32::MAX,
        slack_segments: ringpost::limits::SLACK_SEGMENTS,
        commits_in_flight: limits::COMMITS_IN_FLIGHT,
    }
}

/// A log whose intents are carried out at once.
pub struct Driver<D> {
    pub log: Log<Memory>,
    pub disk: D,
    identity: SpoolIdentity,
}

impl<D: Disk> Driver<D> {
    pub fn new(config: LogConfig, disk: D) -> Driver<D> {
        let identity = config.identity;
        let mut log = Log::new(config, RecoveredLog::default());
        for _ in 0..limits::COMMIT_BUFFERS {
            log.lend(Memory(vec![0; limits::COMMIT_BUFFER_BYTES]));
        }
        let mut driver = Driver { log, disk, identity };
        driver.turn();
        driver
    }

    /// Ends the turn and carries out what the log wants, until it wants nothing more.
    pub fn turn(&mut self) {
        loop {
            self.log.end_turn();
            let Some(intent) = self.log.next_intent() else { break };
            self.carry_out(intent);
            while let Some(intent) = self.log.next_intent() {
                self.carry_out(intent);
            }
        }
        self.log.take_results(&mut Vec::new());
    }

    fn carry_out(&mut self, intent: Intent<Memory>) {
        match intent {
            Intent::Write { seq, file, offset, bytes, buffer } => {
                self.disk.write(file, offset, &buffer.0[..bytes as usize]);
                self.log.on_written(seq, buffer, true);
            }
            Intent::Prepare { file, generation, header, .. } => {
                self.disk.prepare(file);
                self.disk.write(file, 0, &header);
                self.log.on_prepared(file, generation, true);
            }
            Intent::Seal { file, generation, offset, index, seal } => {
                self.disk.write(file, offset, &index);
                self.disk.write(file, offset + index.len() as u32, &seal);
                self.log.on_sealed(generation, true);
            }
            Intent::Copy { slot } => {
                let plan = self.log.pin(slot).expect("what is to be copied is live");
                let extents = plan.extents.iter().map(|e| self.disk.read(e.file, e.offset, e.bytes));
                let extents: Vec<Vec<u8>> = extents.collect();
                let slices: Vec<&[u8]> = extents.iter().map(|e| &e[..]).collect();
                let message = decode_message(&plan, &slices, self.identity);
                self.log.unpin(&plan);
                self.log.on_copy_read(slot, message);
            }
            Intent::Delete { file } => self.disk.delete(file),
        }
    }

    /// Tries until there is room.
    pub fn insist<T>(&mut self, mut attempt: impl FnMut(&mut Log<Memory>) -> Result<T, Refusal>) -> T {
        loop {
            match attempt(&mut self.log) {
                Ok(done) => return done,
                Err(Refusal::Busy) => self.turn(),
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }
}

pub fn address(text: &str) -> Address {
    Address::parse(text.as_bytes()).expect("an address")
}

/// The envelope of a message accepted at `received_at`.
pub fn envelope(recipients: Vec<Address>, received_at: WallTime) -> Envelope {
    let mut envelope = Envelope {
        reverse_path: Some(address("campaign-17@sender.example")),
        recipients: recipients.into_iter().map(Recipient::new).collect(),
        received_at,
        client: Some(std::net::IpAddr::from([127, 0, 0, 1])),
        ..Envelope::default()
    };
    envelope.group_by_destination();
    envelope
}
