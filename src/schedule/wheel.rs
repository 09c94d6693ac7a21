//! A hierarchical timer wheel: heads of chains, found by time.
//!
//! Owns: which chain a second belongs to, and when a chain is due (Varghese and Lauck 1987, the
//! hashed hierarchy, with the level chosen by the highest digit in which due time and present
//! differ). Promises: a `u32` of seconds always fits, so nothing is clamped; a member is moved at
//! most `LEVELS - 1` times before it is due; the same calls give the same chains. Must not: know
//! what is chained. Links live with the members: the wheel holds only the head of each chain.
//!
//! `SLOTS` is a power of two and at most 64; `SLOTS` to the power of `LEVELS` must reach 2³².

/// No member: the end of a chain.
pub(super) const NIL: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub(super) struct Wheel<const SLOTS: usize, const LEVELS: usize> {
    /// Every member is due later than this.
    now: u32,
    /// One bit per slot that has a chain.
    occupied: [u64; LEVELS],
    heads: [[u32; SLOTS]; LEVELS],
}

impl<const SLOTS: usize, const LEVELS: usize> Wheel<SLOTS, LEVELS> {
    const BITS: u32 = SLOTS.trailing_zeros();

    pub(super) fn new(now: u32) -> Self {
        const { assert!(SLOTS.is_power_of_two() && SLOTS <= 64) };
        const { assert!(SLOTS.trailing_zeros() as usize * LEVELS >= 32) };
        Wheel { now, occupied: [0; LEVELS], heads: [[NIL; SLOTS]; LEVELS] }
    }

    /// The present of the wheel: only later times may be linked.
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// Level and slot of a due time. While a member stays linked its place stays the same: the
    /// present passes a slot's start only by taking that slot.
    fn place(&self, due: u32) -> (usize, usize) {
        debug_assert!(due > self.now, "only the future is linked");
        let level = (31 - (due ^ self.now).leading_zeros()) / Self::BITS;
        (level as usize, (due >> (level * Self::BITS)) as usize & (SLOTS - 1))
    }

    /// Makes `id` the head of the chain of `due` and returns the head before it, which `id` must now
    /// link to.
    pub(super) fn link(&mut self, id: u32, due: u32) -> u32 {
        let (level, slot) = self.place(due);
        self.occupied[level] |= 1 << slot;
        std::mem::replace(&mut self.heads[level][slot], id)
    }

    /// Replaces the head of the chain of `due`: how a caller takes the head out of the middle of time.
    pub(super) fn set_head(&mut self, due: u32, head: u32) {
        let (level, slot) = self.place(due);
        self.heads[level][slot] = head;
        if head == NIL {
            self.occupied[level] &= !(1 << slot);
        }
    }

    /// The first occupied slot: level, slot and the second it starts at. All of a lower level is due
    /// before any of a higher one.
    fn first(&self) -> Option<(usize, usize, u32)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        let slot = self.occupied[level].trailing_zeros();
        let low = level as u32 * Self::BITS;
        let above = u64::from(self.now) >> (low + Self::BITS) << (low + Self::BITS);
        Some((level, slot as usize, above as u32 | slot << low))
    }

    /// No member is due before this second (it may be due later: then taking the chain brings it
    /// to a finer slot).
    pub(super) fn earliest(&self) -> Option<u32> {
        self.first().map(|(_, _, start)| start)
    }

    /// Moves the present towards `time` and takes the next chain that starts by then. The caller
    /// walks it: what is due fires, what is not is linked again.
    pub(super) fn take(&mut self, time: u32) -> Option<u32> {
        match self.first() {
            Some((level, slot, start)) if start <= time => {
                self.now = start;
                Some(self.cut(level, slot))
            }
            _ => {
                self.now = self.now.max(time);
                None
            }
        }
    }

    /// Takes the first chain, whenever it is due; the present does not move.
    pub(super) fn take_any(&mut self) -> Option<u32> {
        let (level, slot, _) = self.first()?;
        Some(self.cut(level, slot))
    }

    /// Head of the first chain: the members due earliest are in it.
    pub(super) fn first_chain(&self) -> Option<u32> {
        self.first().map(|(level, slot, _)| self.heads[level][slot])
    }

    /// Heads of all chains, in no useful order.
    pub(super) fn chains(&self) -> impl Iterator<Item = u32> + '_ {
        self.heads.iter().flatten().copied().filter(|head| *head != NIL)
    }

    fn cut(&mut self, level: usize, slot: usize) -> u32 {
        self.occupied[level] &= !(1 << slot);
        std::mem::replace(&mut self.heads[level][slot], NIL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    /// Links each due time as a chain member and plays time forward; returns (fired at, due).
    fn play<const S: usize, const L: usize>(start: u32, dues: &[u32], steps: &[u32]) -> Vec<(u32, u32)> {
        let mut wheel = Wheel::<S, L>::new(start);
        let mut next = vec![NIL; dues.len()];
        for (id, due) in dues.iter().enumerate() {
            next[id] = wheel.link(id as u32, *due);
        }
        let mut fired = Vec::new();
        for &time in steps {
            while let Some(mut id) = wheel.take(time) {
                while id != NIL {
                    let following = next[id as usize];
                    let due = dues[id as usize];
                    if due <= wheel.now() {
                        fired.push((time, due));
                    } else {
                        next[id as usize] = wheel.link(id, due);
                    }
                    id = following;
                }
            }
        }
        fired
    }

    #[test]
    fn fires_each_at_the_first_step_that_reaches_it() {
        let seed = 7;
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for round in 0..200 {
            let start = rng.below(1 << 31) as u32;
            let span = 1 + rng.below(1 << (1 + round % 30));
            let dues: Vec<u32> = (0..50).map(|_| start + 1 + rng.below(span) as u32).collect();
            let mut steps: Vec<u32> = (0..20).map(|_| start + rng.below(span + 2) as u32).collect();
            steps.push(u32::MAX);
            steps.sort_unstable();
            let mut expected: Vec<(u32, u32)> = dues
                .iter()
                .map(|due| (*steps.iter().find(|step| *step >= due).expect("the last step is the end"), *due))
                .collect();
            expected.sort_unstable();
            for mut fired in [play::<16, 8>(start, &dues, &steps), play::<64, 6>(start, &dues, &steps)] {
                fired.sort_unstable();
                assert_eq!(fired, expected);
            }
        }
    }

    #[test]
    fn earliest_is_never_late() {
        let mut wheel = Wheel::<64, 6>::new(1000);
        assert_eq!(wheel.earliest(), None);
        wheel.link(0, 1_000_000);
        let first = wheel.earliest().expect("one member");
        assert!(first > 1000 && first <= 1_000_000);
        wheel.link(1, 1001);
        assert_eq!(wheel.earliest(), Some(1001));
        wheel.set_head(1001, NIL);
        assert_eq!(wheel.earliest(), Some(first));
        assert_eq!(wheel.first_chain(), Some(0));
        assert_eq!(wheel.chains().collect::<Vec<_>>(), [0]);
        assert_eq!(wheel.take_any(), Some(0));
        assert_eq!(wheel.take_any(), None);
    }

    #[test]
    fn the_far_end_of_time_fits() {
        let fired = play::<64, 6>(0, &[1, u32::MAX], &[1, u32::MAX - 1, u32::MAX]);
        assert_eq!(fired, [(1, 1), (u32::MAX, u32::MAX)]);
    }
}
