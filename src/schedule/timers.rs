//! The shard's alarm clock: one timer for each destination that waits for time.
//!
//! Owns: which destinations wake at which second. Promises: setting, moving and cancelling are
//! O(1); a destination that is throttled or backs off is never polled; however many wake in one
//! second, they are handed out one by one. Must not: know why a destination wakes.
use slab::Slab;

use super::wheel::{NIL, Wheel};

/// `prev` of the first member of the chain that is being handed out.
const FIRED: u32 = NIL - 1;

/// The time of a timer that is not set.
pub(super) const NEVER: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    prev: u32,
    next: u32,
    due: u32,
}

impl Timer {
    pub(super) const UNSET: Timer = Timer { prev: NIL, next: NIL, due: NEVER };

    /// The second it is set to, or [`NEVER`].
    pub(super) fn due(&self) -> u32 {
        self.due
    }
}

pub(super) trait Timed {
    fn timer(&mut self) -> &mut Timer;
}

#[derive(Debug)]
pub(super) struct Timers {
    wheel: Wheel<64, 6>,
    /// A chain taken off the wheel: its members are due, or belong to a finer slot.
    fired: u32,
}

impl Timers {
    pub(super) fn new() -> Timers {
        Timers { wheel: Wheel::new(0), fired: NIL }
    }

    /// Sets the timer of `id` to `due`, wherever it was before.
    pub(super) fn set<T: Timed>(&mut self, nodes: &mut Slab<T>, id: u32, due: u32) {
        self.cancel(nodes, id);
        self.place(nodes, id, due);
    }

    pub(super) fn cancel<T: Timed>(&mut self, nodes: &mut Slab<T>, id: u32) {
        let Timer { prev, next, due } = std::mem::replace(nodes[id as usize].timer(), Timer::UNSET);
        if due == NEVER {
            return;
        }
        match prev {
            NIL => self.wheel.set_head(due, next),
            FIRED => self.fired = next,
            _ => nodes[prev as usize].timer().next = next,
        }
        if next != NIL {
            nodes[next as usize].timer().prev = prev;
        }
    }

    /// The next timer that is due by `now`; it is unset. Each timer looked at costs one of `budget`.
    pub(super) fn pop<T: Timed>(&mut self, nodes: &mut Slab<T>, now: u32, budget: &mut u32) -> Option<u32> {
        loop {
            while self.fired != NIL {
                *budget = budget.checked_sub(1)?;
                let id = self.fired;
                let due = nodes[id as usize].timer().due;
                self.cancel(nodes, id);
                if due <= now {
                    return Some(id);
                }
                self.place(nodes, id, due);
            }
            self.fired = self.wheel.take(now)?;
            nodes[self.fired as usize].timer().prev = FIRED;
        }
    }

    /// No timer is due before this second.
    pub(super) fn earliest(&self) -> Option<u32> {
        if self.fired != NIL { Some(self.wheel.now()) } else { self.wheel.earliest() }
    }

    fn place<T: Timed>(&mut self, nodes: &mut Slab<T>, id: u32, due: u32) {
        let (prev, next) = if due > self.wheel.now() {
            (NIL, self.wheel.link(id, due))
        } else {
            (FIRED, std::mem::replace(&mut self.fired, id))
        };
        if next != NIL {
            nodes[next as usize].timer().prev = id;
        }
        *nodes[id as usize].timer() = Timer { prev, next, due };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    struct Node(Timer);
    impl Timed for Node {
        fn timer(&mut self) -> &mut Timer {
            &mut self.0
        }
    }

    #[test]
    fn agrees_with_a_list() {
        let seed = 3;
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut nodes: Slab<Node> = (0..64).map(|id| (id, Node(Timer::UNSET))).collect();
        let mut timers = Timers::new();
        let mut model = [NEVER; 64];
        let mut now = 0;
        for _ in 0..20_000 {
            let (shift, far) = (rng.below(12), rng.below(14));
            let id = rng.below(64) as u32;
            match rng.below(4) {
                0 => {
                    timers.cancel(&mut nodes, id);
                    model[id as usize] = NEVER;
                }
                1 => {
                    now += rng.below(1 << shift) as u32;
                    let mut budget = rng.below(20) as u32;
                    while let Some(id) = timers.pop(&mut nodes, now, &mut budget) {
                        assert!(model[id as usize] <= now);
                        model[id as usize] = NEVER;
                    }
                    assert!(budget == 0 || model.iter().all(|due| *due > now));
                }
                _ => {
                    let due = now + rng.below(1 << far) as u32;
                    timers.set(&mut nodes, id, due);
                    model[id as usize] = due;
                }
            }
            let first = model.iter().copied().min().filter(|due| *due != NEVER);
            assert!(timers.earliest() <= first && timers.earliest().is_some() == first.is_some());
        }
    }
}
