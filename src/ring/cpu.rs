//! What the process and its threads use of the machine.
//!
//! Owns: pinning, the CPUs available, CPU time and resident memory. Promises: reads only what the kernel
//! counts, and answers 0 where it does not tell. Must not: be called per message: each is a system call.
use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// The CPUs this thread may run on, rising. At least one.
pub fn available_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
}

fn clock_micros(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1_000
}

/// User and system time of the calling thread, microseconds.
pub fn thread_cpu_micros() -> u64 {
    clock_micros(ClockId::ThreadCPUTime)
}

/// User and system time of the whole process, microseconds.
pub fn process_cpu_micros() -> u64 {
    clock_micros(ClockId::ProcessCPUTime)
}

/// Resident memory of the process, bytes.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers() {
        assert!(resident_bytes() > 100_000);
        let before = thread_cpu_micros();
        let mut x = 1u64;
        while thread_cpu_micros() < before + 2_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(process_cpu_micros() >= 2_000);
    }

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let cpu = *available_cpus().last().expect("there is a CPU");
        std::thread::spawn(move || {
            pin(cpu).expect("an available CPU can be had");
            assert_eq!(available_cpus(), [cpu]);
        })
        .join()
        .expect("the thread ends well");
        assert!(pin(usize::MAX).is_err());
    }
}
