//! Time and randomness as values.
//!
//! Owns: the two kinds of time the core speaks of, and the one source of random numbers. Promises:
//! pure code never asks for either; it is given them. Must not: be called from `smtp`, `spool`,
//! `schedule` or `route` except as types.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall-clock time in microseconds since 1970-01-01 UTC. What is written to disk and shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The system's clock. Only the edge (worker, control, cli) calls this.
    pub fn now() -> WallTime {
        WallTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64)
    }
    pub fn from_secs(secs: u64) -> WallTime {
        WallTime(secs.saturating_mul(1_000_000))
    }
    /// Whole seconds since the epoch.
    pub fn secs(self) -> u64 {
        self.0 / 1_000_000
    }
    pub fn saturating_add(self, d: Duration) -> WallTime {
        WallTime(self.0.saturating_add(d.as_micros() as u64))
    }
    /// Time from `earlier` to `self`; zero when the clock went backwards between them.
    pub fn since(self, earlier: WallTime) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A monotonic time in microseconds since an arbitrary start. What waits and latencies are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    pub fn saturating_add(self, d: Duration) -> Tick {
        Tick(self.0.saturating_add(d.as_micros() as u64))
    }
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A small, fast, seedable generator (SplitMix64, Steele et al. 2014) for jitter and simulation.
/// Not for secrets: those come from the operating system.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Uniform in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// Random bytes of the operating system, for identities and checksum secrets.
pub fn secret_u64() -> u64 {
    getrandom::u64().expect("the kernel's random source works once the system has booted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_step_back_give_zero() {
        assert_eq!(WallTime(5).since(WallTime(9)), Duration::ZERO);
        assert_eq!(Tick(9).since(Tick(5)), Duration::from_micros(4));
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::new(1);
        assert!((0..10_000).all(|_| rng.below(7) < 7));
    }
}
