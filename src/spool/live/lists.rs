//! Which messages each segment holds back.
//!
//! Owns: for each segment with a live message the count of them, and the slots that were put to it, as
//! runs of neighbours. Promises: counts are exact; a backlog that came in one after the other costs a few
//! bytes for each segment, the worst history eight bytes for each slot and twice as many slots as are
//! live. A message that leaves stays in the runs until they are walked or made anew: whoever walks them
//! asks whether the slot is still the segment's. Must not: know a record.
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::super::Generation;
use super::Slot;

/// Runs beyond twice the live messages before they are made anew.
const SLACK: usize = 64;

/// Slots one behind the other.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Slot,
    len: u32,
}

#[derive(Debug, Default)]
struct List {
    runs: VecDeque<Run>,
    count: u32,
}

impl List {
    fn push(&mut self, slot: Slot) {
        match self.runs.back_mut() {
            Some(run) if run.first + run.len == slot => run.len += 1,
            _ => self.runs.push_back(Run { first: slot, len: 1 }),
        }
    }
    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.runs.iter().flat_map(|run| run.first..run.first + run.len)
    }
}

#[derive(Debug, Default)]
pub(super) struct Lists {
    lists: HashMap<Generation, List, FixedState>,
}

impl Lists {
    pub(super) fn count(&self, generation: Generation) -> u32 {
        self.lists.get(&generation).map_or(0, |list| list.count)
    }

    /// Puts a slot to a segment. `is_its` says whether a slot is (still) a message of that segment.
    pub(super) fn add(&mut self, generation: Generation, slot: Slot, is_its: impl Fn(Slot) -> bool) {
        let list = self.lists.entry(generation).or_default();
        if list.runs.len() > 2 * list.count as usize + SLACK {
            let mut slots: Vec<Slot> = list.slots().filter(|&slot| is_its(slot)).collect();
            slots.sort_unstable();
            slots.dedup();
            list.runs.clear();
            slots.into_iter().for_each(|slot| list.push(slot));
        }
        list.push(slot);
        list.count += 1;
    }

    /// A message of the segment has left it.
    pub(super) fn leave(&mut self, generation: Generation) {
        let Some(list) = self.lists.get_mut(&generation) else { return };
        list.count -= 1;
        if list.count == 0 {
            self.lists.remove(&generation);
        }
    }

    /// Every slot that was put to the segment: some may have left it, some may come twice.
    pub(super) fn slots(&self, generation: Generation) -> impl Iterator<Item = Slot> + '_ {
        self.lists.get(&generation).into_iter().flat_map(List::slots)
    }

    /// Forgets those at the front that have left, so that nobody walks over them again.
    pub(super) fn trim(&mut self, generation: Generation, is_its: impl Fn(Slot) -> bool) {
        let Some(list) = self.lists.get_mut(&generation) else { return };
        while let Some(run) = list.runs.front_mut() {
            while run.len > 0 && !is_its(run.first) {
                (run.first, run.len) = (run.first + 1, run.len - 1);
            }
            if run.len > 0 {
                return;
            }
            list.runs.pop_front();
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.lists.clear();
    }
}
