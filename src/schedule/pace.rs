//! A rate kept to: the generic cell rate algorithm (ITU-T I.371, the virtual scheduling form).
//!
//! Owns: [`Pace`], a rate made ready for counting, and [`Clocked`], the one number that counts it.
//! Promises: in any half-open window of the rate's `per`, no more than its `count` are taken, also as
//! seen by a peer that hears of each up to `limits::RATE_JITTER` later than of another; with always
//! something to take, at least 95 % of it; O(1). Must not: hold a queue.
//!
//! With an interval I between cells and a tolerance of (B−1)·I, a window of length T sees at most
//! B + ⌊(T − ε)/I⌋. So that this is `count` for T = `per` + jitter, I is (`per` + jitter) ∕ (`count` −
//! B + 1).
use super::policy::Rate;
use crate::clock::WallTime;
use crate::limits;

/// See the module's documentation. Times in nanoseconds, so that 100,000 a second are exact enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    interval_ns: u64,
    tolerance_ns: u64,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Pace {
        let (count, burst) = (rate.count.max(1), rate.burst.clamp(1, rate.count.max(1)));
        let window = u64::try_from((rate.per + limits::RATE_JITTER.min(rate.per / 25)).as_nanos())
            .unwrap_or(u64::MAX / 2);
        let interval_ns = window.div_ceil(u64::from(count - burst + 1)).max(1);
        Pace { interval_ns, tolerance_ns: interval_ns.saturating_mul(u64::from(burst - 1)) }
    }

    /// So many a second, evenly; what a late timer misses is made up for.
    pub(super) fn per_second(rate: f64) -> Pace {
        let interval_ns = (1e9 / rate.max(1e-6)) as u64;
        Pace { interval_ns, tolerance_ns: limits::RATE_BURST.as_nanos() as u64 }
    }
}

/// How far a pace has been used: the time at which the next would come if all came evenly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clocked(u64);

impl Clocked {
    pub(super) const NEW: Clocked = Clocked(0);

    /// What was taken last has not been used.
    pub(super) fn give_back(&mut self, pace: Pace) {
        self.0 = self.0.saturating_sub(pace.interval_ns);
    }

    /// When the next may be taken.
    pub(super) fn ready_at(self, pace: Pace) -> WallTime {
        WallTime(self.0.saturating_sub(pace.tolerance_ns).div_ceil(1000))
    }

    pub(super) fn is_ready(self, pace: Pace, now: WallTime) -> bool {
        self.ready_at(pace) <= now
    }

    /// When it will not matter any more that some were taken.
    pub(super) fn rested_at(self) -> WallTime {
        WallTime(self.0.div_ceil(1000))
    }

    pub(super) fn take(&mut self, pace: Pace, now: WallTime) {
        self.0 = self.0.max(now.0.saturating_mul(1000)).saturating_add(pace.interval_ns);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Rng;

    const START: u64 = 1_700_000_000_000_000;

    /// Takes whenever it may, on a clock that comes up to `late_us` late; the times.
    fn greedy(rate: Rate, late_us: u64, seconds: u64) -> Vec<u64> {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let (pace, mut clocked, mut times) = (Pace::new(rate), Clocked::default(), Vec::new());
        let mut now = START;
        while now < START + seconds * 1_000_000 {
            while clocked.is_ready(pace, WallTime(now)) {
                clocked.take(pace, WallTime(now));
                times.push(now);
            }
            now = now.max(clocked.ready_at(pace).0) + rng.below(late_us + 1);
        }
        times
    }

    #[test]
    fn no_window_holds_more_and_little_is_lost() {
        let cases = [
            (Rate::new(1, Duration::from_secs(1)), 1000, 100),
            (Rate::new(10, Duration::from_secs(1)), 1000, 100),
            (Rate::new(100, Duration::from_secs(1)), 2000, 100),
            (Rate::new(3000, Duration::from_secs(1)), 3000, 20),
            (Rate::new(5000, Duration::from_secs(3600)), 5000, 7200),
            (Rate::new(100, Duration::from_secs(60)).with_burst(4), 5000, 1200),
        ];
        for (rate, late_us, seconds) in cases {
            let times = greedy(rate, late_us, seconds);
            let window = rate.per.as_micros() as u64;
            let mut first = 0;
            for (at, time) in times.iter().enumerate() {
                while times[first] + window <= *time {
                    first += 1;
                }
                assert!(at - first < rate.count as usize, "{rate}: too many by {time}");
            }
            let allowed = f64::from(rate.count) * seconds as f64 / rate.per.as_secs_f64();
            let share = times.len() as f64 / allowed;
            assert!(share >= 0.95, "{rate}: {share}");
        }
    }

    #[test]
    fn a_rest_is_worth_one_burst() {
        let pace = Pace::new(Rate::new(100, Duration::from_secs(1)).with_burst(5));
        let mut clocked = Clocked::default();
        let taken = (0..100).take_while(|_| {
            let ready = clocked.is_ready(pace, WallTime(START));
            if ready {
                clocked.take(pace, WallTime(START));
            }
            ready
        });
        assert_eq!(taken.count(), 5);
    }
}
