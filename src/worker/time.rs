//! The worker's clock: wall time that never steps.
//!
//! Owns: [`Clock`]. Promises: `now` does not go backwards and does not jump while the process runs,
//! whatever is done to the system's clock; every worker reads the same clock. Must not: be used for
//! anything but asking the time.
use std::time::Instant;

use crate::clock::{Tick, WallTime};

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: WallTime,
    start: Instant,
}

impl Clock {
    /// Takes the system's wall time once; from here on only the monotonic clock counts.
    pub fn start() -> Clock {
        Clock { wall: WallTime::now(), start: Instant::now() }
    }
    pub fn now(&self) -> WallTime {
        self.wall.saturating_add(self.start.elapsed())
    }
    pub fn tick(&self) -> Tick {
        Tick(self.start.elapsed().as_micros() as u64)
    }
}
