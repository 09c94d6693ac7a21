//! The time of a run: one monotonic clock, and the wall clock it started at.
//!
//! Owns: reading time. Promises: microseconds since the run began never go back; the wall time of a
//! stamp is that plus the wall time of the start, so one reading gives both. Must not: be read more
//! than once per batch of events.
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A clock that starts at zero.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    wall_start_us: u64,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: Instant::now(), wall_start_us: wall_us() }
    }
    /// Microseconds since the clock was started.
    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
    /// The wall time, in microseconds since 1970, at `run_us` on this clock.
    pub fn wall_at(&self, run_us: u64) -> u64 {
        self.wall_start_us + run_us
    }
}

/// Microseconds since 1970-01-01 UTC by the system's clock.
pub fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// SplitMix64 (Steele et al. 2014): filler text and arrival times that a seed repeats.
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
    /// Uniform in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}
