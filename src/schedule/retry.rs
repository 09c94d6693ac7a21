//! When a failed attempt is repeated, and when mail is too old (RFC 5321 §4.5.4.1).
//!
//! Owns: the retry schedule, its jitter and `--max-age`, in the whole seconds the queue counts in.
//! Promises: a later attempt never waits less than the schedule's delay less the jitter; an attempt
//! that would come after the expiry is moved to the expiry. Must not: hold any entry.
use std::time::Duration;

use super::entries::Record;
use crate::clock::{Rng, WallTime};

#[derive(Debug)]
pub(super) struct Retry {
    schedule: Vec<Duration>,
    jitter_percent: u64,
    max_age_secs: u32,
    rng: Rng,
}

impl Retry {
    pub(super) fn new(schedule: Vec<Duration>, jitter_percent: u8, max_age: Duration, seed: u64) -> Retry {
        Retry {
            schedule,
            jitter_percent: u64::from(jitter_percent.min(100)),
            max_age_secs: saturate(max_age.as_micros().div_ceil(1_000_000)),
            rng: Rng::new(seed),
        }
    }

    /// The second of the next attempt, after `failures` (from 1) of them: the last delay repeats. An
    /// empty schedule repeats at once.
    pub(super) fn next(&mut self, now: WallTime, failures: u8) -> u32 {
        let step = usize::from(failures.max(1) - 1).min(self.schedule.len().saturating_sub(1));
        let delay = self.schedule.get(step).map_or(0, |delay| delay.as_micros() as u64);
        let spread = delay / 100 * self.jitter_percent;
        let jittered = delay - spread + self.rng.below(spread.saturating_mul(2).saturating_add(1));
        ceil_secs(now.saturating_add(Duration::from_micros(jittered)))
    }

    /// The second from which the entry is too old to be tried.
    pub(super) fn expiry(&self, record: &Record) -> u32 {
        record.received.saturating_add(self.max_age_secs).min(u32::MAX - 1)
    }

    pub(super) fn max_age_secs(&self) -> u32 {
        self.max_age_secs
    }
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
        let mut retry = Retry::new(vec![MINUTE, MINUTE * 5, MINUTE * 30], 0, MINUTE, 1);
        for (failures, secs) in [(0, 60), (1, 60), (2, 300), (3, 1800), (4, 1800), (255, 1800)] {
            assert_eq!(retry.next(WallTime::from_secs(1000), failures), 1000 + secs, "failures {failures}");
        }
    }

    #[test]
    fn jitter_stays_in_its_band_and_fills_it() {
        let mut retry = Retry::new(vec![Duration::from_secs(1000)], 10, MINUTE, 5);
        let nexts: Vec<u32> = (0..2000).map(|_| retry.next(WallTime(0), 1)).collect();
        let (low, high) = (nexts.iter().min().expect("some"), nexts.iter().max().expect("some"));
        assert!((900..=910).contains(low) && (1090..=1100).contains(high), "{low}..{high}");
    }

    #[test]
    fn edges() {
        assert_eq!(Retry::new(vec![], 10, MINUTE, 1).next(WallTime::from_secs(7), 1), 7);
        assert_eq!(
            [ceil_secs(WallTime(1)), ceil_secs(WallTime(1_000_000)), floor_secs(WallTime(1_999_999))],
            [1; 3]
        );
        assert_eq!(ceil_secs(WallTime(u64::MAX)), u32::MAX - 1);
        let retry = Retry::new(vec![], 0, Duration::MAX, 1);
        assert_eq!(retry.expiry(&Record { received: 100, ..Record::default() }), u32::MAX - 1);
    }
}
