//! The ready mail of one lane, by stream.
//!
//! Owns: which entry of a lane goes next. Promises: urgent streams go before the others, but of
//! `limits::URGENT_RUN` + 1 entries at least one is of the others while they have any; within each
//! kind the streams take turns of as many entries as their weight says (deficit round robin, Shreedhar
//! and Varghese 1995, with entries for bytes); within a stream first in, first out; every step O(1); a
//! lane with one stream costs no table. Must not: know connections or time.
use std::collections::VecDeque;

use hashbrown::HashMap;
use slab::Slab;

use super::StreamId;
use super::entries::{Entries, Fifo};
use super::wheel::NIL;
use crate::limits;

/// One stream's entries.
#[derive(Debug)]
struct Queue {
    stream: StreamId,
    fifo: Fifo,
    weight: u16,
    /// Entries it may still send in this turn.
    credit: u16,
}

/// The queues of a lane that has had several streams since it was last empty.
#[derive(Debug)]
struct Several {
    queues: Slab<Queue>,
    places: HashMap<StreamId, u32, foldhash::fast::RandomState>,
    urgent: VecDeque<u32>,
    others: VecDeque<u32>,
    /// Urgent entries sent in a row while others waited.
    run: u32,
}

#[derive(Debug)]
pub(super) struct Ready {
    pub(super) len: u32,
    urgent: u32,
    /// All entries, while they are of one stream.
    one: Fifo,
    several: Option<Box<Several>>,
}

/// Where a walk through a lane's entries has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    queue: u32,
    /// The last entry looked at; NIL: none of this queue.
    pub(super) before: u32,
}

impl Cursor {
    pub(super) const START: Cursor = Cursor { queue: 0, before: NIL };
}

impl Ready {
    pub(super) const EMPTY: Ready = Ready { len: 0, urgent: 0, one: Fifo::EMPTY, several: None };

    /// Whether any entry is urgent.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent > 0
    }

    /// Adds an entry behind the others of its stream; `weight` tells the weight of a stream.
    pub(super) fn push_back(&mut self, entries: &mut Entries, id: u32, weight: impl Fn(StreamId) -> u16) {
        self.queue_for(entries, id, weight).push_back(entries, id);
    }

    /// Adds an entry before the others of its stream.
    pub(super) fn push_front(&mut self, entries: &mut Entries, id: u32, weight: impl Fn(StreamId) -> u16) {
        self.queue_for(entries, id, weight).push_front(entries, id);
    }

    fn queue_for(&mut self, entries: &Entries, id: u32, weight: impl Fn(StreamId) -> u16) -> &mut Fifo {
        let stream = entries[id].stream;
        self.len += 1;
        self.urgent += u32::from(stream.is_urgent());
        if self.several.is_none() {
            let head = self.one.head;
            if head == NIL || entries[head].stream == stream {
                return &mut self.one;
            }
            let first = entries[head].stream;
            let one = std::mem::replace(&mut self.one, Fifo::EMPTY);
            let several = self.several.insert(Box::new(Several {
                queues: Slab::new(),
                places: HashMap::default(),
                urgent: VecDeque::new(),
                others: VecDeque::new(),
                run: 0,
            }));
            let at = several.place(first, weight(first));
            several.queues[at as usize].fifo = one;
        }
        let several = self.several.as_mut().expect("it was just made");
        let at = several.place(stream, weight(stream));
        &mut several.queues[at as usize].fifo
    }

    /// The entry that goes next; NIL: none.
    pub(super) fn front(&self) -> u32 {
        match &self.several {
            None => self.one.head,
            Some(several) => several.next().map_or(NIL, |at| several.queues[at as usize].fifo.head),
        }
    }

    /// Takes the entry that goes next.
    pub(super) fn pop(&mut self, entries: &mut Entries) -> Option<u32> {
        let id = self.front();
        if id == NIL {
            return None;
        }
        if let Some(several) = &mut self.several {
            several.charge();
        }
        self.remove(entries, NIL, id);
        Some(id)
    }

    /// Takes out `id`, which follows `before` in its stream (NIL: it is the first).
    pub(super) fn remove(&mut self, entries: &mut Entries, before: u32, id: u32) {
        let stream = entries[id].stream;
        self.len -= 1;
        self.urgent -= u32::from(stream.is_urgent());
        let Some(several) = &mut self.several else {
            return self.one.remove(entries, before, id);
        };
        let at = several.places[&stream];
        let queue = &mut several.queues[at as usize];
        queue.fifo.remove(entries, before, id);
        if queue.fifo.len == 0 {
            several.close(at);
        }
        if self.len == 0 {
            *self = Ready::EMPTY;
        }
    }

    /// The entry after the cursor, which moves on to the queue it is in.
    pub(super) fn after(&self, entries: &Entries, cursor: &mut Cursor) -> Option<u32> {
        let Some(several) = &self.several else {
            let id = if cursor.before == NIL { self.one.head } else { entries[cursor.before].next };
            return (id != NIL).then_some(id);
        };
        while (cursor.queue as usize) < several.queues.capacity() {
            if let Some(queue) = several.queues.get(cursor.queue as usize) {
                let id = if cursor.before == NIL { queue.fifo.head } else { entries[cursor.before].next };
                if id != NIL {
                    return Some(id);
                }
            }
            *cursor = Cursor { queue: cursor.queue + 1, before: NIL };
        }
        None
    }

    /// The first entries of all streams, in no useful order.
    pub(super) fn heads(&self) -> impl Iterator<Item = u32> + '_ {
        let several = self.several.iter().flat_map(|s| s.queues.iter().map(|(_, queue)| queue.fifo.head));
        std::iter::once(self.one.head).chain(several).filter(|head| *head != NIL)
    }
}

impl Several {
    /// The place of a stream's queue, opened at the end of its ring if it has none.
    fn place(&mut self, stream: StreamId, weight: u16) -> u32 {
        let (queues, urgent, others) = (&mut self.queues, &mut self.urgent, &mut self.others);
        *self.places.entry(stream).or_insert_with(|| {
            let weight = weight.max(1);
            let at = queues.insert(Queue { stream, fifo: Fifo::EMPTY, weight, credit: weight }) as u32;
            if stream.is_urgent() {
                urgent.push_back(at)
            } else {
                others.push_back(at)
            }
            at
        })
    }

    fn takes_urgent(&self) -> bool {
        !self.urgent.is_empty() && (self.others.is_empty() || self.run < limits::URGENT_RUN)
    }

    /// The queue whose entry goes next.
    fn next(&self) -> Option<u32> {
        if self.takes_urgent() { self.urgent.front() } else { self.others.front() }.copied()
    }

    /// Counts one entry of the queue that is next: when its turn is over the one behind it is next.
    fn charge(&mut self) {
        let urgent = self.takes_urgent();
        self.run = if urgent && !self.others.is_empty() { self.run + 1 } else { 0 };
        let ring = if urgent { &mut self.urgent } else { &mut self.others };
        let Some(at) = ring.front().copied() else { return };
        let queue = &mut self.queues[at as usize];
        queue.credit -= 1;
        if queue.credit == 0 {
            queue.credit = queue.weight;
            ring.rotate_left(1);
        }
    }

    /// Forgets a queue without entries. It is at an end of its ring, unless entries were taken out of its
    /// middle; then the ring is searched.
    fn close(&mut self, at: u32) {
        let queue = self.queues.remove(at as usize);
        self.places.remove(&queue.stream);
        let ring = if queue.stream.is_urgent() { &mut self.urgent } else { &mut self.others };
        if ring.front() == Some(&at) {
            ring.pop_front();
        } else if ring.back() == Some(&at) {
            ring.pop_back();
        } else {
            ring.retain(|other| *other != at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entries::Record;
    use super::*;

    fn weight(stream: StreamId) -> u16 {
        [1, 2, 4][usize::from(stream.number()) % 3]
    }

    fn fill(streams: &[(StreamId, u32)]) -> (Entries, Ready) {
        let (mut entries, mut ready) = (Entries::new(), Ready::EMPTY);
        for (stream, count) in streams {
            for slot in 0..*count {
                let id = entries.insert(Record { slot, stream: *stream, ..Record::default() });
                ready.push_back(&mut entries, id, weight);
            }
        }
        (entries, ready)
    }

    #[test]
    fn streams_take_turns_by_weight_and_keep_their_order() {
        let streams = [0, 1, 2].map(|n| (StreamId::new(n), 400));
        let (mut entries, mut ready) = fill(&streams);
        let (mut counts, mut next) = ([0; 3], [0; 3]);
        for nth in 1..=700 {
            let id = ready.pop(&mut entries).expect("there are more");
            let record = entries[id];
            let stream = usize::from(record.stream.number());
            assert_eq!(record.slot, next[stream], "first in, first out");
            next[stream] += 1;
            counts[stream] += 1;
            if nth % 7 == 0 {
                assert_eq!(counts, [nth / 7, nth / 7 * 2, nth / 7 * 4]);
            }
        }
    }

    #[test]
    fn urgent_goes_first_but_not_for_ever() {
        let (mut entries, mut ready) = fill(&[(StreamId::new(1), 100), (StreamId::urgent(2), 100)]);
        let ids: Vec<u32> = std::iter::from_fn(|| ready.pop(&mut entries)).collect();
        let order: Vec<bool> = ids.iter().map(|id| entries[*id].stream.is_urgent()).collect();
        assert_eq!(order.len(), 200);
        assert!(order[0]);
        let run = limits::URGENT_RUN as usize;
        for window in order[..100].windows(run + 1) {
            let others = window.iter().filter(|urgent| !**urgent).count();
            assert!((1..=1).contains(&others), "one in {}: {window:?}", run + 1);
        }
        assert!(ready.several.is_none(), "an empty lane costs no table");
    }

    #[test]
    fn a_walk_sees_every_entry_once() {
        let (mut entries, mut ready) =
            fill(&[(StreamId::new(1), 5), (StreamId::new(2), 1), (StreamId::new(3), 4)]);
        let (mut cursor, mut seen) = (Cursor::START, 0);
        while let Some(id) = ready.after(&entries, &mut cursor) {
            seen += 1;
            if entries[id].slot % 2 == 0 {
                ready.remove(&mut entries, cursor.before, id);
            } else {
                cursor.before = id;
            }
        }
        assert_eq!((seen, ready.len), (10, 4));
        assert_eq!(ready.heads().count(), 2);
    }

    #[test]
    fn what_comes_back_is_first_in_its_stream() {
        let (mut entries, mut ready) = fill(&[(StreamId::new(1), 3), (StreamId::new(2), 3)]);
        let first = ready.pop(&mut entries).expect("six");
        ready.push_front(&mut entries, first, weight);
        let ids: Vec<u32> = std::iter::from_fn(|| ready.pop(&mut entries)).collect();
        let of_one = ids.iter().map(|id| &entries[*id]).filter(|record| record.stream.number() == 1);
        let order: Vec<u32> = of_one.map(|record| record.slot).collect();
        assert_eq!(order, [0, 1, 2]);
    }
}
