//! Rates of clients: so many in a time, for each address or user.
//!
//! Owns: [`Limiter`], which remembers one time per key (the theoretical arrival time of the generic cell
//! rate algorithm). Promises: memory is bounded by `limits::REMEMBERED_RATES` keys, and a key that is
//! quiet costs nothing after a while. Must not: read a clock.
use std::hash::Hash;
use std::time::Duration;

use hashbrown::HashMap;

use crate::clock::Tick;
use crate::limits;
use crate::schedule::Rate;

pub struct Limiter<K> {
    /// When each key would have used up what it has had.
    until: HashMap<K, Tick, foldhash::fast::RandomState>,
}

impl<K> Default for Limiter<K> {
    fn default() -> Limiter<K> {
        Limiter { until: HashMap::default() }
    }
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// Whether one more fits the rate; if so it is counted. All of a rate may come at once.
    pub fn allows(&mut self, key: &K, rate: Rate, now: Tick) -> bool {
        let fits = self.has_room(key, rate, now);
        if fits {
            self.charge(key, rate, 1, now);
        }
        fits
    }

    /// Whether one more would fit.
    pub fn has_room(&self, key: &K, rate: Rate, now: Tick) -> bool {
        self.has_room_for(key, rate, 1, now)
    }

    /// Whether so many more would fit.
    pub fn has_room_for(&self, key: &K, rate: Rate, count: u32, now: Tick) -> bool {
        let ahead = self.until.get(key).map_or(Duration::ZERO, |until| until.since(now));
        ahead.saturating_add((rate.per / rate.count).saturating_mul(count)) <= rate.per
    }

    /// Counts `count` of them, whether they fit or not: what is too much is waited for later.
    pub fn charge(&mut self, key: &K, rate: Rate, count: u32, now: Tick) {
        if self.until.len() >= limits::REMEMBERED_RATES && !self.until.contains_key(key) {
            self.forget(now);
        }
        let cost = (rate.per / rate.count).saturating_mul(count);
        let until = self.until.entry(key.clone()).or_insert(now);
        *until = (*until).max(now).saturating_add(cost);
    }

    /// Makes room: what is past goes, and if all of it is to come, the half that is due first.
    fn forget(&mut self, now: Tick) {
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= limits::REMEMBERED_RATES {
            let mut all: Vec<Tick> = self.until.values().copied().collect();
            let (_, median, _) = all.select_nth_unstable(limits::REMEMBERED_RATES / 2);
            let median = *median;
            self.until.retain(|_, until| *until > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: fn() -> Rate = || Rate::new(3, Duration::from_secs(30));

    fn at(secs: u64) -> Tick {
        Tick(secs * 1_000_000)
    }

    #[test]
    fn all_of_a_rate_at_once_and_no_more() {
        let mut limiter = Limiter::default();
        let taken = (0..5).filter(|_| limiter.allows(&1, RATE(), at(100))).count();
        assert_eq!(taken, 3);
        // One comes back every ten seconds; another key has its own.
        assert!(!limiter.allows(&1, RATE(), at(109)) && limiter.allows(&2, RATE(), at(109)));
        assert!(limiter.allows(&1, RATE(), at(110)) && !limiter.allows(&1, RATE(), at(110)));
        assert_eq!((0..5).filter(|_| limiter.allows(&1, RATE(), at(1000))).count(), 3);
    }

    #[test]
    fn what_was_too_much_is_waited_for() {
        let mut limiter = Limiter::default();
        limiter.charge(&1, RATE(), 10, at(0));
        assert!(!limiter.has_room(&1, RATE(), at(79)) && limiter.has_room(&1, RATE(), at(80)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = Limiter::default();
        for key in 0..3 * limits::REMEMBERED_RATES as u64 {
            assert!(limiter.allows(&key, RATE(), Tick(key)));
            assert!(limiter.until.len() <= limits::REMEMBERED_RATES);
        }
        // The last ones are still known.
        let last = 3 * limits::REMEMBERED_RATES as u64 - 1;
        assert_eq!((0..3).filter(|_| limiter.allows(&last, RATE(), Tick(last))).count(), 2);
    }
}
