//! Where the recipients of a message with several of them stand.
//!
//! Owns: blocks of five bytes for each recipient and four for the count of those that are pending, and
//! their recycling. Promises: blocks of one size lie packed in chunks, so that the allocator's own
//! overhead is paid per chunk; reading and changing one state is O(1). Must not: be asked for a block
//! with another number of recipients than it was made for.
use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::super::End;
use super::super::record::{end_of, number_of};
use super::NONE;
use crate::limits::STATES_CHUNK_BYTES;

const STATE_BYTES: usize = 5;
const COUNT_BYTES: usize = 4;
/// In place of the time of the next attempt: there will be none, and how the recipient ended stands where
/// the attempts did.
const DONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateOf {
    pub(super) due: u32,
    pub(super) attempts: u8,
    pub(super) done: Option<End>,
}

/// Blocks for one number of recipients.
#[derive(Debug)]
struct Pool {
    block_bytes: usize,
    in_chunk: usize,
    chunks: Vec<Box<[u8]>>,
    /// Blocks handed out at least once.
    touched: u32,
    /// First of the chain of free blocks.
    free: u32,
}

impl Pool {
    fn new(recipients: u32) -> Pool {
        let block_bytes = COUNT_BYTES + STATE_BYTES * recipients as usize;
        let in_chunk = (STATES_CHUNK_BYTES / block_bytes).max(1);
        Pool { block_bytes, in_chunk, chunks: Vec::new(), touched: 0, free: NONE }
    }
    fn block(&self, block: u32) -> &[u8] {
        let start = block as usize % self.in_chunk * self.block_bytes;
        &self.chunks[block as usize / self.in_chunk][start..start + self.block_bytes]
    }
    fn block_mut(&mut self, block: u32) -> &mut [u8] {
        let start = block as usize % self.in_chunk * self.block_bytes;
        &mut self.chunks[block as usize / self.in_chunk][start..start + self.block_bytes]
    }
    fn take(&mut self) -> u32 {
        if self.free != NONE {
            let block = self.free;
            self.free = count(self.block(block));
            return block;
        }
        let block = self.touched;
        if block as usize == self.chunks.len() * self.in_chunk {
            self.chunks.push(vec![0; self.in_chunk * self.block_bytes].into_boxed_slice());
        }
        self.touched += 1;
        block
    }
}

fn count(block: &[u8]) -> u32 {
    u32::from_le_bytes([block[0], block[1], block[2], block[3]])
}

fn set_count(block: &mut [u8], count: u32) {
    block[..COUNT_BYTES].copy_from_slice(&count.to_le_bytes());
}

fn at(recipient: u16) -> usize {
    COUNT_BYTES + STATE_BYTES * usize::from(recipient)
}

/// The blocks of a log, named by the number of recipients and a number within that.
#[derive(Debug, Default)]
pub(super) struct States {
    pools: HashMap<u32, Pool, FixedState>,
}

impl States {
    /// A block in which every recipient is pending and was never tried.
    pub(super) fn insert(&mut self, recipients: u32) -> u32 {
        let pool = self.pools.entry(recipients).or_insert_with(|| Pool::new(recipients));
        let block = pool.take();
        let bytes = pool.block_mut(block);
        bytes.fill(0);
        set_count(bytes, recipients);
        block
    }

    pub(super) fn remove(&mut self, recipients: u32, block: u32) {
        let Some(pool) = self.pools.get_mut(&recipients) else { return };
        let next = pool.free;
        set_count(pool.block_mut(block), next);
        pool.free = block;
    }

    /// Recipients that are not done.
    pub(super) fn pending(&self, recipients: u32, block: u32) -> u32 {
        self.pools.get(&recipients).map_or(0, |pool| count(pool.block(block)))
    }

    pub(super) fn get(&self, recipients: u32, block: u32, recipient: u16) -> Option<StateOf> {
        let block = self.pools.get(&recipients)?.block(block);
        let state = block.get(at(recipient)..at(recipient) + STATE_BYTES)?;
        let due = count(state);
        Some(StateOf { due, attempts: state[4], done: (due == DONE).then(|| end_of(state[4])) })
    }

    /// Records where a recipient stands, unless it is done. Returns how many are pending then.
    pub(super) fn set(&mut self, recipients: u32, block: u32, recipient: u16, state: StateOf) -> u32 {
        let done = self.get(recipients, block, recipient).is_none_or(|own| own.done.is_some());
        let Some(pool) = self.pools.get_mut(&recipients) else { return 0 };
        let bytes = pool.block_mut(block);
        if done {
            return count(bytes);
        }
        let (due, last) = match state.done {
            Some(end) => (DONE, number_of(end)),
            None => (state.due.min(DONE - 1), state.attempts),
        };
        bytes[at(recipient)..][..4].copy_from_slice(&due.to_le_bytes());
        bytes[at(recipient) + 4] = last;
        if state.done.is_some() {
            let left = count(bytes) - 1;
            set_count(bytes, left);
        }
        count(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_used_again_and_clean() {
        let mut states = States::default();
        let done = StateOf { due: 7, attempts: 3, done: Some(End::Removed) };
        for recipients in [2, 5, 300, 65_536] {
            let blocks: Vec<u32> = (0..200.min(STATES_CHUNK_BYTES as u32 / recipients + 2))
                .map(|_| states.insert(recipients))
                .collect();
            for &block in &blocks {
                assert_eq!(states.set(recipients, block, 1, done), recipients - 1);
                assert_eq!(states.set(recipients, block, 1, done), recipients - 1, "once is enough");
                assert_eq!(states.get(recipients, block, 1).and_then(|s| s.done), Some(End::Removed));
            }
            for &block in blocks.iter().rev() {
                states.remove(recipients, block);
            }
            assert_eq!(states.insert(recipients), blocks[0]);
            assert_eq!(states.pending(recipients, blocks[0]), recipients);
            let fresh = StateOf { due: 0, attempts: 0, done: None };
            assert_eq!(states.get(recipients, blocks[0], 1), Some(fresh));
            let beyond = u16::try_from(recipients).ok();
            assert!(beyond.is_none_or(|beyond| states.get(recipients, blocks[0], beyond).is_none()));
        }
    }
}
