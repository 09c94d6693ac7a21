//! Sets of dense numbers: which deliveries were acknowledged, which arrived.
//!
//! Owns: a growing bitmap, and its form as ranges in reports. Promises: one bit per number up to
//! the highest; a full set of any size is one range. Must not: know what a number means; for a run
//! it is message number × recipients + recipient.
use serde::{Deserialize, Serialize};

/// A set of small numbers as a bitmap.
#[derive(Clone, Debug, Default)]
pub struct SlotSet {
    words: Vec<u64>,
    count: u64,
}

impl SlotSet {
    /// Adds `slot`; false if it was there already. The caller bounds `slot`.
    pub fn insert(&mut self, slot: u64) -> bool {
        let word = (slot / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let bit = 1 << (slot % 64);
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(is_new);
        is_new
    }
    /// How many numbers the set holds.
    pub fn count(&self) -> u64 {
        self.count
    }
    /// Adds everything `other` holds.
    pub fn merge(&mut self, other: &SlotSet) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        self.count = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
    }
    /// The same set as ranges.
    pub fn ranges(&self) -> Ranges {
        let mut ranges = Ranges::default();
        for (index, &word) in self.words.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let low = rest.trailing_zeros();
                let ones = (rest >> low).trailing_ones();
                ranges.push(index as u64 * 64 + u64::from(low), u64::from(ones));
                // Adding the lowest bit carries through the run of ones and clears it.
                rest &= rest.wrapping_add(1 << low);
            }
        }
        ranges
    }
}

/// A set as rising, separate ranges, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(pub Vec<(u64, u64)>);

impl Ranges {
    fn push(&mut self, first: u64, len: u64) {
        match self.0.last_mut() {
            Some(last) if last.1 + 1 == first => last.1 += len,
            _ => self.0.push((first, first + len - 1)),
        }
    }
    /// How many numbers the set holds.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// What is here and not in `other`.
    pub fn without(&self, other: &Ranges) -> Ranges {
        let mut left = Ranges::default();
        let mut others = other.0.iter().copied().peekable();
        for &(mut first, last) in &self.0 {
            while first <= last {
                while others.next_if(|&(_, end)| end < first).is_some() {}
                match others.peek() {
                    Some(&(start, end)) if start <= last => {
                        if start > first {
                            left.push(first, start - first);
                        }
                        first = end + 1;
                    }
                    _ => {
                        left.push(first, last - first + 1);
                        break;
                    }
                }
            }
        }
        left
    }
    /// The numbers, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_is_new_once() {
        let mut set = SlotSet::default();
        assert!(set.insert(70) && set.insert(0) && !set.insert(70));
        assert_eq!((set.count(), set.ranges().0), (2, vec![(0, 0), (70, 70)]));
    }

    #[test]
    fn ranges_cross_words() {
        let mut set = SlotSet::default();
        for slot in (3..200).chain(202..=202) {
            set.insert(slot);
        }
        assert_eq!(set.ranges().0, [(3, 199), (202, 202)]);
        assert_eq!(set.ranges().len(), 198);
    }

    #[test]
    fn agrees_with_a_tree() {
        let seed = crate::clock::wall_us();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..300 {
            let (mut a, mut b) = (SlotSet::default(), SlotSet::default());
            let (mut tree_a, mut tree_b) = (BTreeSet::new(), BTreeSet::new());
            for _ in 0..rng.below(120) {
                let (x, y) = (rng.below(150), rng.below(150));
                assert_eq!(a.insert(x), tree_a.insert(x));
                assert_eq!(b.insert(y), tree_b.insert(y));
            }
            let left: Vec<u64> = a.ranges().without(&b.ranges()).iter().collect();
            let want: Vec<u64> = tree_a.difference(&tree_b).copied().collect();
            assert_eq!(left, want);
            a.merge(&b);
            assert_eq!(
                a.ranges().iter().collect::<Vec<_>>(),
                tree_a.union(&tree_b).copied().collect::<Vec<_>>()
            );
            assert_eq!(a.count(), a.ranges().len());
        }
    }
}
