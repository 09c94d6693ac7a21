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

/// Time the calling thread was ready to run and had no processor, since it began; zero where the
/// kernel does not say (`/proc/thread-self/schedstat`).
pub fn thread_starved() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
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
