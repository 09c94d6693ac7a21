//! Sealing full segments.
//!
//! Owns: the index of the open segment, and those of full ones whose last groups are in flight. Promises:
//! a segment is sealed only when every group in it is durable and nothing in it was given up; one that is
//! about to be recycled is not; a segment is not recycled while its seal is being written. Must not:
//! hold anything back for a seal: a segment without one is only slower to read.
use std::collections::VecDeque;

use super::broken::Broken;
use super::group::FrameKind;
use super::log::Log;
use super::seal::{Indexer, Seal, Sealed};
use super::segments::Class;
use super::{Buffer, Generation, Intent, Refusal};

#[derive(Debug, Default)]
pub(super) struct Sealing {
    open: Option<Indexer>,
    /// Full, and not all durable: at most what commits in flight can span.
    full: VecDeque<Indexer>,
}

impl Sealing {
    /// See [`Indexer::add`].
    pub(super) fn add(&mut self, frame: (FrameKind, u64), offset: u32, payload_and_sum: (&[u8], u64)) {
        if let Some(indexer) = &mut self.open {
            indexer.add(frame, offset, payload_and_sum);
        }
    }

    /// A write failed: the open segment, and what is full and not durable, is never sealed.
    pub(super) fn give_up(&mut self) {
        self.open = None;
        self.full.clear();
    }
}

impl<B: Buffer> Log<B> {
    /// Opens the next segment.
    pub(super) fn advance(&mut self, class: Class) -> Result<(), Refusal> {
        self.segments.advance(class, self.next_seq)?;
        self.sealing.full.extend(self.sealing.open.take());
        let generation = self.segments.open().expect("it was opened just now").generation;
        self.sealing.open = Some(Indexer::new(generation, self.config.segment_bytes));
        Ok(())
    }

    /// Bytes of the open segment that groups may use, with a frame of `frame_bytes` among them: the rest
    /// is for the index.
    pub(super) fn segment_room(&self, frame_bytes: usize) -> usize {
        let index = self.sealing.open.as_ref().map_or(0, |i| i.room(frame_bytes, self.config.block_bytes));
        (self.segments.remaining() as usize).saturating_sub(index)
    }

    /// Asks for the seals of full segments that have become durable.
    pub(super) fn seal_durable(&mut self) {
        while let Some(next) = self.sealing.full.front() {
            let generation = next.generation;
            let Some(segment) = self.segments.get(generation) else {
                self.sealing.full.pop_front();
                continue;
            };
            if segment.last_seq >= self.durable_below() && !self.breaks(Broken::SealsEarly) {
                return;
            }
            let indexer = self.sealing.full.pop_front().expect("it was there just now");
            // One that is dead and the oldest is about to be recycled; another may hold outcomes that matter.
            let oldest = self.segments.used.front().is_some_and(|s| s.generation == generation);
            if oldest && self.live.count_in(generation) == 0 {
                continue;
            }
            let (file, bounds) = (segment.file, (segment.end, segment.bytes));
            let mut seal = Seal::of(generation, (segment.first_seq, segment.last_seq), self.run);
            (seal.tail, seal.last_id) = (self.tail(), self.last_id);
            let Some(sealed) = indexer.seal(seal, bounds, &self.config) else { continue };
            self.segments.get_mut(generation).expect("it was there just now").pins += 1;
            let Sealed { offset, index, seal } = sealed;
            self.stats.bytes_written += (index.len() + seal.len()) as u64;
            self.intents.push_back(Intent::Seal { file, generation, offset, index, seal });
        }
    }

    /// Ends the open segment although it is not full, and seals it: before an orderly stop, so that the next
    /// start need not read it. What is appended afterwards goes to the next segment.
    pub fn seal_open(&mut self) {
        self.close_group();
        self.segments.close();
        self.sealing.full.extend(self.sealing.open.take());
        self.seal_durable();
    }

    /// The answer to [`Intent::Seal`]. If it failed the segment is as good as before.
    pub fn on_sealed(&mut self, generation: Generation, ok: bool) {
        if let Some(segment) = self.segments.get_mut(generation) {
            segment.pins = segment.pins.saturating_sub(1);
        }
        self.stats.sealed_segments += u64::from(ok);
    }
}
