//! When a failed attempt is repeated, and when mail is too old (RFC 5321 §4.5.4.1).
//!
//! Owns: what a retry schedule, its jitter and a greatest age come to, in the whole seconds the queue
//! counts in.
//! Promises: a later attempt never waits less than the schedule's delay less the jitter; an attempt
//! that would come after the expiry is moved to the expiry. Must not: hold any entry.
use std::time::Duration;

use super::entries::Record;
use crate::clock::{Rng, WallTime};

#[derive(Debug)]
pub(super) struct Retry {
    jitter_percent: u64,
    rng: Rng,
}

impl Retry {
    pub(super) fn new(jitter_percent: u8, seed: u64) -> Retry {
        Retry { jitter_percent: u64::from(jitter_percent.min(100)), rng: Rng::new(seed) }
    }

    /// The second of the next attempt, after `failures` (from 1) of them: the last delay repeats. An
    /// empty schedule repeats at once.
    pub(super) fn next(&mut self, now: WallTime, schedule: &[Duration], failures: u8) -> u32 {
        let step = usize::from(failures.max(1) - 1).min(schedule.len().saturating_sub(1));
        let delay = schedule.get(step).map_or(0, |delay| delay.as_micros() as u64);
        let spread = delay / 100 * self.jitter_percent;
        let jittered = delay - spread + self.rng.below(spread.saturating_mul(2).saturating_add(1));
        ceil_secs(now.saturating_add(Duration::from_micros(jittered)))
    }

    /// The second from which the entry is too old to be tried.
    pub(super) fn expiry(record: &Record, max_age: Duration) -> u32 {
        record.received.saturating_add(max_age_secs(max_age)).min(u32::MAX - 1)
    }
}

/// A greatest age in whole seconds, rounded up.
pub(super) fn max_age_secs(max_age: Duration) -> u32 {
    saturate(u128::from(max_age.as_secs()) + u128::from(max_age.subsec_nanos() > 0))
}

/// The first whole second not before `time`; one less than the end of time at most.
pub(super) fn ceil_secs(time: WallTime) -> u32 {
    saturate(u128::from(time.0.div_ceil(1_000_000)))
}

/// The second `time` lies in.
pub(super) fn floor_secs(time: WallTime) -> u32 {
    saturate(u128::from(time.secs()))
}

/// `u32::MAX` itself stands for "never".
fn saturate(secs: u128) -> u32 {
    secs.min(u128::from(u32::MAX - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn follows_the_schedule_and_repeats_its_end() {
        let schedule = [MINUTE, MINUTE * 5, MINUTE * 30];
        let mut retry = Retry::new(0, 1);
        for (failures, secs) in [(0, 60), (1, 60), (2, 300), (3, 1800), (4, 1800), (255, 1800)] {
            assert_eq!(
                retry.next(WallTime::from_secs(1000), &schedule, failures),
                1000 + secs,
                "failures {failures}"
            );
        }
    }

    #[test]
    fn jitter_stays_in_its_band_and_fills_it() {
        let schedule = [Duration::from_secs(1000)];
        let mut retry = Retry::new(10, 5);
        let nexts: Vec<u32> = (0..2000).map(|_| retry.next(WallTime(0), &schedule, 1)).collect();
        let (low, high) = (nexts.iter().min().expect("some"), nexts.iter().max().expect("some"));
        assert!((900..=910).contains(low) && (1090..=1100).contains(high), "{low}..{high}");
    }

    #[test]
    fn edges() {
        assert_eq!(Retry::new(10, 1).next(WallTime::from_secs(7), &[], 1), 7);
        assert_eq!(
            [ceil_secs(WallTime(1)), ceil_secs(WallTime(1_000_000)), floor_secs(WallTime(1_999_999))],
            [1; 3]
        );
        assert_eq!(ceil_secs(WallTime(u64::MAX)), u32::MAX - 1);
        let record = Record { received: 100, ..Record::default() };
        assert_eq!(Retry::expiry(&record, Duration::MAX), u32::MAX - 1);
        assert_eq!(Retry::expiry(&record, Duration::from_millis(1500)), 102);
    }
}
