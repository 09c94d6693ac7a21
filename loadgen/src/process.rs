//! CPU and memory of the measured server: its processes as the kernel accounts for them.
//!
//! Owns: reading `/proc`. Promises: a process counts with all of its descendants, those that have
//! ended and were waited for included; one that is not there is refused, one that goes is named. Must not:
//! be asked more than once per interval.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

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
    /// Those of `pids` that were gone, and when.
    gone: BTreeMap<u32, f64>,
}

struct Stat {
    parent: u32,
    ticks: u64,
    rss_pages: u64,
}

impl Watch {
    /// Fails where one of `pids` is no process.
    pub fn new(pids: &[u32]) -> anyhow::Result<Watch> {
        for pid in pids {
            let is_there = std::fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false);
            ensure!(is_there, "--measure-pid {pid}: there is no such process");
        }
        Ok(Watch { pids: pids.to_vec(), samples: Vec::new(), gone: BTreeMap::new() })
    }
    /// Takes a sample at `at_sec` of the run. Where there are too many, it takes the place of the last one:
    /// sums stay right, the picture ends earlier.
    pub fn sample(&mut self, at_sec: f64) {
        if self.pids.is_empty() {
            return;
        }
        let Tree { ticks, rss_pages, missing } = tree(&self.pids);
        for pid in missing {
            self.gone.entry(pid).or_insert(at_sec);
        }
        let cpu_sec = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        // What a process has used is gone from the sum when it leaves the family without being waited
        // for; it was used all the same.
        let before = self.samples.last().map_or(0.0, |sample| sample.cpu_sec);
        self.samples.truncate(limits::INTERVALS - 1);
        self.samples.push(Sample {
            at_sec,
            cpu_sec: cpu_sec.max(before),
            rss_bytes: rss_pages * rustix::param::page_size() as u64,
        });
    }
    /// What speaks against the figures.
    pub fn doubts(&self) -> Vec<String> {
        let doubt = |(pid, at_sec): (&u32, &f64)| {
            format!(
                "the measured process {pid} was gone at {at_sec:.1} s: of its CPU, and that of its descendants, \
                 what came after the sample before is missing"
            )
        };
        self.gone.iter().map(doubt).collect()
    }
    /// What was seen from `from_sec` on, with the CPU for each of `messages`; none when there was nothing to
    /// watch.
    pub fn report(&self, messages: u64, from_sec: f64) -> Option<ProcessReport> {
        let last = self.samples.last()?;
        let first = self.samples.iter().find(|sample| sample.at_sec >= from_sec).unwrap_or(last);
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

/// CPU ticks and resident pages of some processes and all their descendants.
struct Tree {
    ticks: u64,
    rss_pages: u64,
    /// Processes that are not there.
    missing: Vec<u32>,
}

fn tree(roots: &[u32]) -> Tree {
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
    Tree {
        ticks: of_family().map(|stat| stat.ticks).sum(),
        rss_pages: of_family().map(|stat| stat.rss_pages).sum(),
        missing: roots.iter().copied().filter(|pid| !stats.contains_key(pid)).collect(),
    }
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
        let mut watch = Watch::new(&[root.id()]).unwrap();
        watch.sample(0.0);
        let mut line = String::new();
        BufReader::new(root.stdout.take().unwrap()).read_line(&mut line).unwrap();
        watch.sample(1.0);
        assert!(watch.doubts().is_empty());
        drop(root.stdin.take());
        root.wait().unwrap();
        // Its end takes nothing back, and is told.
        watch.sample(2.0);
        let report = watch.report(10, 0.0).unwrap();
        assert!(report.cpu_seconds > 0.0 && report.peak_rss_bytes > 100 << 10, "{report:?}");
        assert_eq!(watch.report(10, 1.0).unwrap().cpu_seconds, 0.0);
        assert!(watch.doubts()[0].contains("was gone at 2.0 s"), "{:?}", watch.doubts());
        assert_eq!(Watch::new(&[]).unwrap().report(1, 0.0), None);
        let error = Watch::new(&[root.id()]).err().unwrap();
        assert!(error.to_string().contains("no such process"), "{error}");
    }

    #[test]
    fn too_many_samples_keep_the_sum() {
        let mut watch = Watch::new(&[std::process::id()]).unwrap();
        watch.samples = vec![Sample::default(); limits::INTERVALS];
        watch.sample(9.0);
        assert_eq!((watch.samples.len(), watch.samples.last().unwrap().at_sec), (limits::INTERVALS, 9.0));
    }
}
