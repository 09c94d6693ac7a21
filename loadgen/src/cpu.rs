//! The CPU time of a thread and of the process, user and system together.
//!
//! Owns: asking the kernel. Promises: nanosecond readings that only rise. Must not: be asked per
//! message; each question is a system call.
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time the calling thread has used since it began.
pub fn thread() -> Duration {
    reading(ClockId::ThreadCPUTime)
}

/// CPU time all threads of this process have used since it began.
pub fn process() -> Duration {
    reading(ClockId::ProcessCPUTime)
}

fn reading(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu() {
        let before = thread();
        let sum = (0..2_000_000u64).fold(0u64, |sum, n| std::hint::black_box(sum ^ n.wrapping_mul(sum | 1)));
        std::hint::black_box(sum);
        let after = thread();
        assert!(after > before);
        assert!(process() >= after - before);
    }
}
