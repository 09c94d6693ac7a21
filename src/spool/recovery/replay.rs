//! Handing the messages that recovery found to whoever queues them, one after the other.
//!
//! Owns: the second walk over a log, for the envelopes of live messages. Promises: each live message that
//! is not held comes once, with where its recipients stand; in the order in which they lie in the log,
//! which is that of their acceptance but for those copied forward; memory is that of one index or one
//! group. Must not: be used once the log is written to: places would no longer be what they were.
use std::collections::{HashSet, VecDeque};

use super::merge::Found;
use super::scan::Scan;
use super::window::Window;
use super::{RecoveryError, SegmentSource};
use crate::limits;
use crate::spool::envelope;
use crate::spool::group::FrameKind;
use crate::spool::live::{HELD, LiveTable};
use crate::spool::seal::{Seal, take_entry};
use crate::spool::{FileIndex, Generation, LogConfig, RecoveredMessage};

/// A segment with commit records of live messages.
#[derive(Debug)]
struct Part {
    file: FileIndex,
    generation: Generation,
    /// Where groups end that count.
    end: u32,
    /// Its index can be read in their place.
    seal: Option<Seal>,
}

/// See the module. `Default` has nothing to hand out.
#[derive(Debug, Default)]
pub struct Replay {
    parts: VecDeque<Part>,
    /// Found, and not handed out.
    ready: VecDeque<RecoveredMessage>,
    window: Window,
    /// The index being walked, and how far; else `offset` is where the next group is looked for.
    index: Option<(Vec<u8>, usize)>,
    offset: u32,
}

impl Replay {
    /// Reads what was read before, and left out what could not be.
    pub(super) fn expect(&mut self, window: &Window) {
        self.window = window.again();
    }

    pub(super) fn add(&mut self, file: FileIndex, generation: Generation, end: u32, seal: Option<Seal>) {
        self.parts.push_back(Part { file, generation, end, seal });
    }

    /// Drops the segments that have no commit record of a live message.
    pub(super) fn keep_live(&mut self, live: &LiveTable) {
        let wanted: HashSet<Generation> = live.iter().map(|m| m.place.generation).collect();
        self.parts.retain(|part| wanted.contains(&part.generation));
    }

    /// The next message. `live` is the table of the log it came from.
    pub fn next(
        &mut self,
        config: &LogConfig,
        source: &mut dyn SegmentSource,
        live: &LiveTable,
    ) -> Result<Option<RecoveredMessage>, RecoveryError> {
        while self.ready.is_empty() {
            let Some(part) = self.parts.front_mut() else {
                *self = Replay::default();
                return Ok(None);
            };
            let mut scan = Scan::new(config, source, std::mem::take(&mut self.window));
            let more = match (part.seal, &mut self.index) {
                (Some(seal), None) => {
                    let length = seal.index_offset + seal.index_bytes;
                    match scan.index(part.file, &seal, length)? {
                        Some(index) => self.index = Some((index.to_vec(), 0)),
                        // It was whole a moment ago.
                        None => part.seal = None,
                    }
                    true
                }
                (Some(seal), Some((index, at))) => {
                    walk_index(part.file, &seal, index, at, |found| offer(found, live, &mut self.ready))
                }
                (None, _) => {
                    let bounds = (self.offset.max(config.block_bytes), part.end);
                    let mut sink = |found: &Found<'_>| offer(found, live, &mut self.ready);
                    let group = scan.group(part.file, part.generation, bounds, &mut sink)?;
                    self.offset = group.as_ref().map_or(0, |(_, next)| *next);
                    group.is_some()
                }
            };
            self.window = scan.into_window();
            if !more {
                self.parts.pop_front();
                (self.index, self.offset) = (None, 0);
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// Takes some entries from the index. False at its end.
fn walk_index(
    file: FileIndex,
    seal: &Seal,
    index: &[u8],
    at: &mut usize,
    mut sink: impl FnMut(&Found<'_>),
) -> bool {
    let mut rest = &index[*at..];
    for _ in 0..limits::REQUEUE_BATCH {
        let Some(entry) = take_entry(&mut rest) else { return false };
        sink(&Found::indexed(file, seal, &entry));
        *at = index.len() - rest.len();
    }
    true
}

/// Readies a message for handing out if the record is its last commit record.
fn offer(found: &Found<'_>, live: &LiveTable, ready: &mut VecDeque<RecoveredMessage>) {
    if found.kind != FrameKind::Commit {
        return;
    }
    let Some(slot) = live.find(found.id).filter(|&slot| live.place(slot) == Some(found.place)) else {
        return;
    };
    let Some(commit) = found.commit().filter(|_| !live.has(slot, HELD)) else { return };
    let states = (0..=u16::MAX).map_while(|recipient| live.state(slot, recipient)).collect();
    let envelope = envelope::decode(commit.envelope).envelope;
    ready.push_back(RecoveredMessage { slot, id: found.id, envelope, states });
}
