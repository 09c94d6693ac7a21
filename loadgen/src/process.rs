//! CPU and memory of the measured server: its processes as the kernel accounts for them.
//!
//! Owns: reading `/proc`. Promises: a process counts with all of its descendants, those that have
//! ended and were waited for included; readings that fail count as nothing. Must not: be asked more
//! than once per interval.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::limits;

/// CPU and memory of a process tree at one time of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub at_sec: f64,
    /// User and system time since the processes began, in seconds.
    pub cpu_sec: f64,
    /// Resident memory of all its processes; pages they share count for each.
    pub rss_bytes: u64,
}

/// The measured server over a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    pub pids: Vec<u32>,
    pub cpu_seconds: f64,
    /// CPU of the server's processes for each accepted message.
    pub cpu_us_per_message: f64,
    pub peak_rss_bytes: u64,
    pub samples: Vec<Sample>,
}

/// Watches processes and their descendants.
pub struct Watch {
    pids: Vec<u32>,
    samples: Vec<Sample>,
}

struct Stat {
    parent: u32,
    ticks: u64,
    rss_pages: u64,
}

impl Watch {
    pub fn new(pids: &[u32]) -> Watch {
        Watch { pids: pids.to_vec(), samples: Vec::new() }
    }
    /// Takes a sample at `at_sec` of the run.
    pub fn sample(&mut self, at_sec: f64) {
        if self.pids.is_empty() || self.samples.len() == limits::INTERVALS {
            return;
        }
        let (ticks, rss_pages) = tree(&self.pids);
        let cpu_sec = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        // What a process has used is gone from the sum when it leaves the family without being waited
        // for; it was used all the same.
        let before = self.samples.last().map_or(0.0, |sample| sample.cpu_sec);
        self.samples.push(Sample {
            at_sec,
            cpu_sec: cpu_sec.max(before),
            rss_bytes: rss_pages * rustix::param::page_size() as u64,
        });
    }
    /// What was seen; none when there was nothing to watch.
    pub fn report(&self, messages: u64) -> Option<ProcessReport> {
        let (first, last) = (self.samples.first()?, self.samples.last()?);
        let cpu_seconds = (last.cpu_sec - first.cpu_sec).max(0.0);
        Some(ProcessReport {
            pids: self.pids.clone(),
            cpu_seconds,
            cpu_us_per_message: cpu_seconds * 1e6 / messages.max(1) as f64,
            peak_rss_bytes: self.samples.iter().map(|sample| sample.rss_bytes).max().unwrap_or(0),
            samples: self.samples.clone(),
        })
    }
}

/// CPU ticks and resident pages of `roots` and all their descendants.
fn tree(roots: &[u32]) -> (u64, u64) {
    let mut stats = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(stat) = std::fs::read_to_string(entry.path().join("stat")).ok().and_then(|s| parse(&s)) {
            stats.insert(pid, stat);
        }
    }
    let mut family: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let known = family.len();
        for (&pid, stat) in &stats {
            if family.contains(&stat.parent) {
                family.insert(pid);
            }
        }
        if family.len() == known {
            break;
        }
    }
    let of_family = || family.iter().filter_map(|pid| stats.get(pid));
    (of_family().map(|stat| stat.ticks).sum(), of_family().map(|stat| stat.rss_pages).sum())
}

/// Reads a line of `/proc/PID/stat` (proc_pid_stat(5)).
fn parse(line: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, parentheses and spaces too.
    let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: number(4)? as u32,
        // Own user and system time, then those of children that were waited for.
        ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        rss_pages: number(24)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn stat_lines() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 1000 256 99 0";
        let stat = parse(line).unwrap();
        assert_eq!((stat.parent, stat.ticks, stat.rss_pages), (7, 127, 256));
        assert!(parse("42 (a").is_none());
    }

    #[test]
    fn a_process_and_its_descendants_are_seen() {
        // The work is done by a child's child that ends, and the root stays.
        let script = "(i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done); echo done; read line";
        let mut root = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut watch = Watch::new(&[root.id()]);
        watch.sample(0.0);
        let mut line = String::new();
        BufReader::new(root.stdout.take().unwrap()).read_line(&mut line).unwrap();
        watch.sample(1.0);
        drop(root.stdin.take());
        root.wait().unwrap();
        // Its end takes nothing back.
        watch.sample(2.0);
        let report = watch.report(10).unwrap();
        assert!(report.cpu_seconds > 0.0 && report.peak_rss_bytes > 100 << 10, "{report:?}");
        assert_eq!(Watch::new(&[]).report(1), None);
    }
}
