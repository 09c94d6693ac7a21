//! Deliveries that no shard knows, because an operator holds them.
//!
//! Owns: [`Parked`], by the destination they would wait for. Promises: those of one destination are found
//! without looking at the rest; each is here once. Must not: be the only record of a hold, which is in
//! the log.
use std::collections::{BTreeMap, HashMap};

use crate::mail::address::Domain;
use crate::schedule::Waiting;
use crate::spool::Slot;

/// A delivery by its message's slot and its part of the message.
pub type Part = (Slot, u16);

#[derive(Default)]
pub struct Parked {
    destinations: HashMap<Domain, BTreeMap<Part, Waiting>>,
    len: usize,
}

impl Parked {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn add(&mut self, destination: &Domain, part: Part, waiting: Waiting) {
        let parts = match self.destinations.get_mut(destination) {
            Some(parts) => parts,
            None => self.destinations.entry(destination.clone()).or_default(),
        };
        self.len += usize::from(parts.insert(part, waiting).is_none());
    }

    pub fn take(&mut self, destination: &Domain, part: Part) -> Option<Waiting> {
        let parts = self.destinations.get_mut(destination)?;
        let waiting = parts.remove(&part)?;
        self.len -= 1;
        if parts.is_empty() {
            self.destinations.remove(destination);
        }
        Some(waiting)
    }

    pub fn get(&self, destination: &Domain, part: Part) -> Option<Waiting> {
        self.destinations.get(destination)?.get(&part).copied()
    }

    /// Those of a destination, or of all, from `after` on: at most `most`.
    pub fn some(&self, destination: &Domain, after: Option<Part>, most: usize) -> Vec<Part> {
        let Some(parts) = self.destinations.get(destination) else { return Vec::new() };
        match after {
            None => parts.keys().take(most).copied().collect(),
            Some(after) => parts
                .range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
                .take(most)
                .map(|(part, _)| *part)
                .collect(),
        }
    }

    /// How many a destination has.
    pub fn count(&self, destination: &Domain) -> usize {
        self.destinations.get(destination).map_or(0, BTreeMap::len)
    }

    /// Destinations that have some, and how many.
    pub fn destinations(&self) -> impl Iterator<Item = (&Domain, usize)> {
        self.destinations.iter().map(|(destination, parts)| (destination, parts.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_parked_is_found_by_its_destination_and_leaves_nothing_behind() {
        let domain = |name: &str| Domain::parse(name.as_bytes()).expect("a domain");
        let (a, b) = (domain("a.example"), domain("b.example"));
        let mut parked = Parked::default();
        for slot in 0..5 {
            parked.add(&a, (slot, 0), Waiting::default());
        }
        parked.add(&b, (1, 1), Waiting::default());
        parked.add(&b, (1, 1), Waiting::default());
        assert_eq!(parked.len(), 6, "twice is once");
        assert_eq!(parked.some(&a, None, 2), [(0, 0), (1, 0)]);
        assert_eq!(parked.some(&a, Some((1, 0)), 9), [(2, 0), (3, 0), (4, 0)]);
        assert!(parked.take(&a, (1, 1)).is_none() && parked.take(&b, (1, 1)).is_some());
        assert_eq!(
            parked.destinations().map(|(d, n)| (d.as_str(), n)).collect::<Vec<_>>(),
            [("a.example", 5)]
        );
        assert_eq!(parked.len(), 5);
    }
}
