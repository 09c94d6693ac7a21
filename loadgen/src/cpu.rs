//! The CPU time of a thread, user and system together, and how hard it was pressed.
//!
//! Owns: asking the kernel, and [`Meter`]. Promises: nanosecond readings that only rise; a second in which
//! a thread could not keep up is found however quiet the rest was. Must not: be asked per message; each
//! question is a system call.
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::limits;

/// CPU time the calling thread has used since it began.
pub fn thread() -> Duration {
    reading(ClockId::ThreadCPUTime)
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

/// What a thread had of a stretch of time: the share in which it ran, and the share in which it was ready
/// to run and had no processor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Strain {
    pub busy_share: f64,
    pub starved_share: f64,
}

impl Strain {
    /// The harder one.
    pub fn or(self, other: Strain) -> Strain {
        let sum = |strain: Strain| strain.busy_share + strain.starved_share;
        if sum(other) > sum(self) { other } else { self }
    }
}

/// What the calling thread had used at one time.
#[derive(Clone, Copy)]
struct Reading {
    at_us: u64,
    cpu: Duration,
    starved: Duration,
}

impl Reading {
    fn new(at_us: u64) -> Reading {
        Reading { at_us, cpu: thread(), starved: thread_starved() }
    }
    fn strain_until(&self, end: &Reading) -> Strain {
        let seconds = (end.at_us.saturating_sub(self.at_us) as f64 / 1e6).max(1e-6);
        let share = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64() / seconds;
        Strain { busy_share: share(self.cpu, end.cpu), starved_share: share(self.starved, end.starved) }
    }
}

/// Measures the calling thread over its run, and finds its hardest second.
pub struct Meter {
    first: Reading,
    last: Reading,
    /// Where the stretch that is being measured began.
    stretch: Reading,
    worst: Option<Strain>,
}

impl Meter {
    /// Measures from now on.
    pub fn begin(now_us: u64) -> Meter {
        Meter::begin_with(Reading::new(now_us))
    }
    fn begin_with(first: Reading) -> Meter {
        Meter { first, last: first, stretch: first, worst: None }
    }
    /// Measures until now.
    pub fn read(&mut self, now_us: u64) {
        self.take(Reading::new(now_us));
    }
    fn take(&mut self, reading: Reading) {
        self.last = reading;
        if reading.at_us.saturating_sub(self.stretch.at_us) >= limits::STRAIN_STRETCH.as_micros() as u64 {
            let strain = self.stretch.strain_until(&self.last);
            self.worst = Some(self.worst.unwrap_or_default().or(strain));
            self.stretch = self.last;
        }
    }
    /// CPU used until `now_us`, and the strain of all of the run and of its worst stretch; of a run shorter
    /// than that, both are the same.
    pub fn finish(mut self, now_us: u64) -> (Duration, Strain, Strain) {
        self.read(now_us);
        self.so_far()
    }
    /// The same until the last reading.
    pub fn so_far(&self) -> (Duration, Strain, Strain) {
        let all = self.first.strain_until(&self.last);
        (self.last.cpu.saturating_sub(self.first.cpu), all, self.worst.unwrap_or_default().or(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() {
        let sum = (0..2_000_000u64).fold(0u64, |sum, n| std::hint::black_box(sum ^ n.wrapping_mul(sum | 1)));
        std::hint::black_box(sum);
    }

    #[test]
    fn work_costs_cpu() {
        let before = thread();
        work();
        assert!(thread() > before);
    }

    #[test]
    fn one_hard_second_is_found() {
        let reading = |at_sec: u64, cpu_ms: u64, starved_ms: u64| Reading {
            at_us: at_sec * 1_000_000,
            cpu: Duration::from_millis(cpu_ms),
            starved: Duration::from_millis(starved_ms),
        };
        let strain = reading(3, 100, 50).strain_until(&reading(5, 2000, 100));
        assert_eq!(strain, Strain { busy_share: 0.95, starved_share: 0.025 });
        let quiet = Strain { busy_share: 0.5, starved_share: 0.1 };
        assert_eq!((quiet.or(strain), strain.or(quiet)), (strain, strain));

        let mut meter = Meter::begin_with(reading(0, 0, 0));
        meter.take(reading(1, 20, 0));
        meter.take(reading(2, 990, 10));
        (3..20).for_each(|sec| meter.take(reading(sec, 990 + sec, 10)));
        let (cpu, all, worst) = meter.so_far();
        assert_eq!(cpu, Duration::from_millis(1009));
        assert!(
            all.busy_share < 0.06 && worst == Strain { busy_share: 0.97, starved_share: 0.01 },
            "{worst:?}"
        );
    }
}
