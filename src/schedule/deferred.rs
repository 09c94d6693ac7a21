//! The entries of one destination that wait for their time.
//!
//! Owns: their order by due time. Promises: adding and taking cost O(1) amortised whatever the
//! backlog; an entry costs no memory beyond its record; a destination with few deferred entries
//! costs no table (a list of up to `limits::DEFERRED_LIST`, searched from end to end), one with more
//! has a wheel of 16 slots on each of 8 levels (half a kilobyte). Must not: fire by itself: the
//! destination is on the shard's own wheel at [`Deferred::wake`].
//!
//! Kept per destination and not in one wheel for all, because a retry, a permanent failure and an
//! operator's question concern one destination, and then no other's entries need be walked.
use super::Entry;
use super::entries::Entries;
use super::wheel::{NIL, Wheel};
use crate::limits::DEFERRED_LIST;

#[derive(Debug)]
pub(super) struct Deferred {
    len: u32,
    /// A chain in no order: all of them while there is no wheel; else those taken from a slot and
    /// not looked at yet.
    loose: u32,
    /// Earliest due time in `loose`; looked at only while there is no wheel.
    first: u32,
    wheel: Option<Box<Wheel<16, 8>>>,
}

impl Deferred {
    pub(super) const EMPTY: Deferred = Deferred { len: 0, loose: NIL, first: u32::MAX, wheel: None };

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Adds the entry `id` at the due time its record tells. `now` is the present second.
    pub(super) fn push(&mut self, entries: &mut Entries, id: u32, now: u32) {
        if self.wheel.is_none() && self.len == DEFERRED_LIST {
            self.wheel = Some(Box::new(Wheel::new(now)));
        }
        self.len += 1;
        self.first = self.first.min(entries[id].due);
        self.place(entries, id);
    }

    /// Into the wheel, if there is one and the entry is in its future; else among the loose.
    fn place(&mut self, entries: &mut Entries, id: u32) {
        let due = entries[id].due;
        match &mut self.wheel {
            Some(wheel) if due > wheel.now() => entries[id].next = wheel.link(id, due),
            _ => {
                entries[id].next = self.loose;
                self.loose = id;
            }
        }
    }

    /// No entry is due before this second; 0 when some wait to be looked at.
    pub(super) fn wake(&self) -> Option<u32> {
        match &self.wheel {
            _ if self.len == 0 => None,
            None => Some(self.first),
            Some(_) if self.loose != NIL => Some(0),
            Some(wheel) => wheel.earliest(),
        }
    }

    /// Takes an entry due by `now`. Each entry looked at costs one of `budget`; with none left it
    /// returns nothing although [`Deferred::wake`] says that more is due.
    pub(super) fn pop_due(&mut self, entries: &mut Entries, now: u32, budget: &mut u32) -> Option<u32> {
        if self.wheel.is_none() {
            return if self.len > 0 && self.first <= now { self.pop_listed(entries, now) } else { None };
        }
        loop {
            while self.loose != NIL {
                *budget = budget.checked_sub(1)?;
                let id = self.pop_loose(entries)?;
                if entries[id].due <= now {
                    self.taken();
                    return Some(id);
                }
                self.place(entries, id);
            }
            self.loose = self.wheel.as_mut()?.take(now)?;
        }
    }

    /// Takes any entry, whenever it is due.
    pub(super) fn pop_any(&mut self, entries: &mut Entries) -> Option<u32> {
        if let Some(wheel) = &mut self.wheel {
            if self.loose == NIL {
                self.loose = wheel.take_any()?;
            }
            let id = self.pop_loose(entries)?;
            self.taken();
            return Some(id);
        }
        self.pop_listed(entries, u32::MAX)
    }

    /// Takes `entry` out if it is here: O(n).
    pub(super) fn remove(&mut self, entries: &mut Entries, entry: Entry) -> Option<u32> {
        if let Some((before, id)) = entries.find(self.loose, entry) {
            entries.unlink(&mut self.loose, before, id);
            self.taken();
            self.find_first(entries);
            return Some(id);
        }
        let wheel = self.wheel.as_mut()?;
        let (mut head, (before, id)) =
            wheel.chains().find_map(|head| Some((head, entries.find(head, entry)?)))?;
        let due = entries[id].due;
        entries.unlink(&mut head, before, id);
        if before == NIL {
            wheel.set_head(due, head);
        }
        self.taken();
        Some(id)
    }

    /// The id of `entry` if it is here: O(n).
    pub(super) fn find(&self, entries: &Entries, entry: Entry) -> Option<u32> {
        let wheel = self.wheel.iter().flat_map(|wheel| wheel.chains());
        std::iter::once(self.loose).chain(wheel).find_map(|head| entries.find(head, entry)).map(|(_, id)| id)
    }

    /// The earliest due time, exactly: walks one slot.
    pub(super) fn next_due(&self, entries: &Entries) -> Option<u32> {
        let slot = self.wheel.as_ref().and_then(|wheel| wheel.first_chain()).unwrap_or(NIL);
        [self.loose, slot].into_iter().flat_map(|head| chain(entries, head)).map(|id| entries[id].due).min()
    }

    /// The first of the list that is due by `now`; the list is short.
    fn pop_listed(&mut self, entries: &mut Entries, now: u32) -> Option<u32> {
        let mut before = NIL;
        let id = chain(entries, self.loose).find(|id| {
            let due = entries[*id].due <= now;
            if !due {
                before = *id;
            }
            due
        })?;
        entries.unlink(&mut self.loose, before, id);
        self.taken();
        self.find_first(entries);
        Some(id)
    }

    fn find_first(&mut self, entries: &Entries) {
        self.first = chain(entries, self.loose).map(|id| entries[id].due).min().unwrap_or(u32::MAX);
    }

    fn pop_loose(&mut self, entries: &Entries) -> Option<u32> {
        let id = self.loose;
        (id != NIL).then(|| {
            self.loose = entries[id].next;
            id
        })
    }

    /// Bookkeeping after an entry left: the last one gives the wheel back.
    fn taken(&mut self) {
        self.len -= 1;
        if self.len == 0 {
            *self = Deferred::EMPTY;
        }
    }
}

fn chain(entries: &Entries, head: u32) -> impl Iterator<Item = u32> + '_ {
    std::iter::successors((head != NIL).then_some(head), |id| Some(entries[*id].next).filter(|id| *id != NIL))
}

#[cfg(test)]
mod tests {
    use super::super::entries::Record;
    use super::*;
    use crate::clock::Rng;

    fn add(deferred: &mut Deferred, entries: &mut Entries, slot: u32, due: u32, now: u32) {
        let id = entries.insert(Record { slot, due, ..Record::default() });
        deferred.push(entries, id, now);
    }

    /// Random pushes, wakes, removals and plain takes against a list.
    #[test]
    fn agrees_with_a_list() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for round in 0..60 {
            let mut entries = Entries::new();
            let mut deferred = Deferred::EMPTY;
            let mut model: Vec<(u32, u32)> = Vec::new();
            let mut now = 1_700_000_000;
            for slot in 0..rng.below(400) as u32 {
                let due = now + 1 + rng.below(1 << (1 + round % 20)) as u32;
                add(&mut deferred, &mut entries, slot, due, now);
                model.push((slot, due));
                match rng.below(8) {
                    0 => {
                        let gone = rng.below(u64::from(slot) + 1) as u32;
                        let entry = Entry { home: 0, slot: gone, part: 0 };
                        let there = model.iter().position(|(slot, _)| *slot == gone);
                        assert_eq!(deferred.remove(&mut entries, entry).is_some(), there.is_some());
                        there.map(|at| model.swap_remove(at));
                    }
                    1 => now += rng.below(1 << (round % 18)) as u32,
                    2 => {
                        let id = deferred.pop_any(&mut entries);
                        let slot = id.map(|id| entries[id].slot);
                        model.retain(|(other, _)| Some(*other) != slot);
                    }
                    _ => {}
                }
                assert_eq!(deferred.len() as usize, model.len());
                let first = model.iter().map(|(_, due)| *due).min();
                assert_eq!(deferred.next_due(&entries), first);
                assert!(deferred.wake() <= first || first.is_none());
                let mut budget = 1000;
                let mut fired = Vec::new();
                while let Some(id) = deferred.pop_due(&mut entries, now, &mut budget) {
                    fired.push(entries[id].slot);
                }
                let mut expected: Vec<u32> =
                    model.iter().filter(|(_, due)| *due <= now).map(|(slot, _)| *slot).collect();
                model.retain(|(_, due)| *due > now);
                fired.sort_unstable();
                expected.sort_unstable();
                assert_eq!(fired, expected);
                assert!(deferred.wake().is_none_or(|wake| wake > now));
            }
        }
    }

    #[test]
    fn a_spent_budget_says_that_more_is_due() {
        let mut entries = Entries::new();
        let mut deferred = Deferred::EMPTY;
        for slot in 0..100 {
            add(&mut deferred, &mut entries, slot, 50, 10);
        }
        let mut budget = 60;
        let mut fired = 0;
        while deferred.pop_due(&mut entries, 50, &mut budget).is_some() {
            fired += 1;
        }
        assert!(fired <= 60);
        assert_eq!(deferred.wake(), Some(0));
        let mut budget = 200;
        while deferred.pop_due(&mut entries, 50, &mut budget).is_some() {
            fired += 1;
        }
        assert_eq!((fired, deferred.wake(), deferred.len()), (100, None, 0));
    }
}
