//! Bodies kept in memory after their commit.
//!
//! Owns: which messages are held and when they are let go. Promises: at most the given bytes; the
//! oldest go first; a message let go is read back from its segment. Must not: be the only copy of
//! anything.
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::message::Message;
use crate::mail::id::MessageId;
use crate::spool::Slot;

pub struct Cache {
    max_bytes: usize,
    bytes: usize,
    held: HashMap<Slot, Rc<Message>, foldhash::fast::RandomState>,
    /// Oldest first; entries of messages that are gone are skipped.
    order: VecDeque<(Slot, MessageId)>,
}

/// What a message costs beyond its body: envelope and tables.
const OVERHEAD_BYTES: usize = 512;

impl Cache {
    pub fn new(max_bytes: usize) -> Cache {
        Cache { max_bytes, bytes: 0, held: HashMap::default(), order: VecDeque::new() }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn get(&self, slot: Slot) -> Option<Rc<Message>> {
        self.held.get(&slot).cloned()
    }

    /// From now on at most this many bytes are held; the oldest beyond them go at once.
    pub fn limit(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.evict();
    }

    fn evict(&mut self) {
        while self.bytes > self.max_bytes {
            let Some((slot, id)) = self.order.pop_front() else { break };
            if self.held.get(&slot).is_some_and(|m| m.id == id) {
                self.remove(slot);
            }
        }
    }

    pub fn insert(&mut self, slot: Slot, message: Rc<Message>) {
        let cost = cost(&message);
        if cost > self.max_bytes / 8 {
            return;
        }
        self.remove(slot);
        self.bytes += cost;
        self.order.push_back((slot, message.id));
        self.held.insert(slot, message);
        self.evict();
        self.tidy();
    }

    pub fn remove(&mut self, slot: Slot) {
        if let Some(message) = self.held.remove(&slot) {
            self.bytes -= cost(&message);
        }
    }

    /// Keeps the order list in proportion to what is held.
    fn tidy(&mut self) {
        if self.order.len() > 2 * self.held.len() + 1024 {
            let held = &self.held;
            self.order.retain(|(slot, id)| held.get(slot).is_some_and(|m| m.id == *id));
        }
    }
}

fn cost(message: &Message) -> usize {
    message.body.capacity() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::envelope::Envelope;
    use crate::ring::Block;

    fn message(id: u64, bytes: usize) -> Rc<Message> {
        Message::new(MessageId(id), Envelope::default(), Block::from(vec![b'x'; bytes]))
    }

    #[test]
    fn the_oldest_go_first_and_the_bound_holds() {
        let mut cache = Cache::new(20 * 1512);
        for n in 0..100u32 {
            cache.insert(n, message(n.into(), 1000));
            assert!(cache.bytes() <= 20 * 1512);
        }
        cache.limit(5 * 1512);
        assert!(cache.get(95).is_some() && cache.get(94).is_none());
        cache.insert(100, message(100, 10));
        assert!(cache.bytes() <= 5 * 1512);
        cache.limit(0);
        cache.insert(101, message(101, 10));
        assert_eq!((cache.bytes(), cache.get(101).is_none()), (0, true));
        cache.limit(20 * 1512);
        cache.insert(79, message(79, 1000));
        cache.insert(99, message(99, 1000));
        cache.remove(79);
        assert!(cache.get(99).is_some());
        assert!(cache.get(79).is_none());
    }

    #[test]
    fn a_reused_slot_is_another_message() {
        let mut cache = Cache::new(20 * 1512);
        cache.insert(1, message(1, 1000));
        cache.remove(1);
        cache.insert(1, message(2, 1000));
        for n in 2..21 {
            cache.insert(n, message(u64::from(n) + 10, 1000));
        }
        // The stale order entry of message 1 must not evict message 2 early.
        assert_eq!(cache.get(1).map(|m| m.id), Some(MessageId(2)));
        cache.insert(21, message(99, 1000));
        assert!(cache.get(1).is_none());
    }

    #[test]
    fn the_order_list_stays_in_proportion() {
        let mut cache = Cache::new(1 << 20);
        cache.insert(0, message(0, 10));
        for n in 1..100_000u32 {
            cache.insert(n, message(n.into(), 10));
            cache.remove(n);
        }
        assert!(cache.order.len() <= 2 * cache.held.len() + 1025);
    }
}
