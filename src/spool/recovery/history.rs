//! What the headers of a log say of its groups: which there are, and which were durable.
//!
//! Owns: telling a crash from a loss. Promises: a group is missed only if its own run knew it to be durable
//! and it is not below the tail; memory is that of the holes. Must not: know what groups hold.
use std::collections::BTreeMap;

use super::{Finding, Spot};
use crate::spool::format::{GroupHeader, SegmentHeader};
use crate::spool::seal::Seal;
use crate::spool::{FileIndex, GroupSeq, MessageId};

/// Groups that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    from: u64,
    below: u64,
    /// Of the first.
    start: Spot,
    /// Of the last.
    end: Spot,
}

/// What one run of a writer says of itself.
#[derive(Debug, Default)]
struct Run {
    durable_below: GroupSeq,
    /// In the order in which they were found.
    found: Vec<Range>,
}

/// What the headers say, over all groups.
#[derive(Debug, Default)]
pub(super) struct History {
    runs: BTreeMap<GroupSeq, Run>,
    pub(super) tail: GroupSeq,
    pub(super) highest_seq: Option<GroupSeq>,
    pub(super) last_id: Option<MessageId>,
}

impl History {
    pub(super) fn segment(&mut self, header: &SegmentHeader) {
        self.tail = self.tail.max(header.tail);
        self.last_id = self.last_id.max(header.last_id);
    }

    pub(super) fn group(&mut self, file: FileIndex, header: &GroupHeader) {
        self.tail = self.tail.max(header.tail);
        self.last_id = self.last_id.max(header.last_id);
        self.highest_seq = self.highest_seq.max(Some(header.seq));
        let run = self.runs.entry(header.run).or_default();
        run.durable_below = run.durable_below.max(header.durable_below);
        let start = Spot { file, offset: header.offset };
        let end = Spot { file, offset: header.offset.saturating_add(header.total_bytes) };
        match run.found.last_mut() {
            Some(range) if range.below == header.seq.0 => {
                range.below += 1;
                range.end = end;
            }
            _ => run.found.push(Range { from: header.seq.0, below: header.seq.0 + 1, start, end }),
        }
    }

    /// The groups of a sealed segment: all there, all durable.
    pub(super) fn sealed(&mut self, file: FileIndex, seal: &Seal) {
        self.tail = self.tail.max(seal.tail);
        self.last_id = self.last_id.max(seal.last_id);
        self.highest_seq = self.highest_seq.max(Some(seal.last_seq));
        let below = GroupSeq(seal.last_seq.0 + 1);
        let run = self.runs.entry(seal.run).or_default();
        run.durable_below = run.durable_below.max(below);
        let (start, end) = (Spot { file, offset: 0 }, Spot { file, offset: seal.index_offset });
        run.found.push(Range { from: seal.first_seq.0, below: below.0, start, end });
    }

    /// Whether the group was durable for all that its own run knew.
    pub(super) fn was_durable(&self, seq: GroupSeq) -> bool {
        self.runs.range(..=seq).next_back().is_some_and(|(_, run)| seq < run.durable_below)
    }

    /// Durable groups that were not found.
    pub(super) fn missing(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (first, run) in &self.runs {
            let mut next = first.0.max(self.tail.0);
            let mut after = None;
            let mut found = run.found.clone();
            found.sort_unstable();
            let mut miss = |next: u64, end: u64, after, before| {
                if next < end {
                    let (from, below) = (GroupSeq(next), GroupSeq(end));
                    findings.push(Finding::Missing { from, below, after, before });
                }
            };
            for range in found {
                miss(next, range.from.min(run.durable_below.0), after, Some(range.start));
                if range.below > next || after.is_none() {
                    after = Some(range.end);
                }
                next = next.max(range.below);
            }
            miss(next, run.durable_below.0, after, None);
        }
        findings
    }
}
