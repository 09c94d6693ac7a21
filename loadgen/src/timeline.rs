//! A run over time: what each interval brought, and the standard log of its latencies.
//!
//! Owns: the open intervals, the closed ones as [`Point`]s, and the HdrHistogram log (`--hdr`).
//! Promises: what threads hand in for an interval before it is closed is in its point; at most
//! [`limits::OPEN_INTERVALS`] histograms are held. Must not: be called per message.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::report::Latency;

/// One interval of a run, as reports show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    /// When it began, in seconds since the run did.
    pub at_sec: f64,
    pub seconds: f64,
    /// It began in the warm-up: no figure of the run has to do with it.
    pub is_warmup: bool,
    /// Messages answered with 2xx in it.
    pub accepted: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// Each kind of error and how often it was met in it.
    pub errors: BTreeMap<String, u64>,
}

/// What one thread has to say about one interval.
#[derive(Default)]
pub struct Share {
    pub accepted: u64,
    /// Of messages behind the warm-up, and in it.
    pub latency: Latency,
    pub warmup: Latency,
    pub errors: BTreeMap<String, u64>,
}

/// The intervals of one run.
pub struct Timeline {
    interval: Duration,
    warmup: Duration,
    open: BTreeMap<u64, Share>,
    closed: Vec<Point>,
    next: u64,
    hdr: Option<File>,
}

impl Timeline {
    /// Intervals of this length, the first ones those of the `warmup`; `hdr` names the log to write and
    /// `wall_us` when the run began.
    pub fn new(
        interval: Duration,
        warmup: Duration,
        hdr: Option<&Path>,
        wall_us: u64,
    ) -> anyhow::Result<Timeline> {
        let hdr = hdr.map(|path| begin_log(path, wall_us)).transpose()?;
        Ok(Timeline { interval, warmup, open: BTreeMap::new(), closed: Vec::new(), next: 0, hdr })
    }
    pub fn interval_us(&self) -> u64 {
        self.interval.as_micros() as u64
    }
    /// Adds a thread's share of interval `index`; of one that is closed, to the next open one.
    pub fn add(&mut self, index: u64, share: &Share) {
        let mine = self.open.entry(index.max(self.next)).or_default();
        mine.accepted += share.accepted;
        mine.latency.merge(&share.latency);
        mine.warmup.merge(&share.warmup);
        for (kind, count) in &share.errors {
            *mine.errors.entry(kind.clone()).or_default() += count;
        }
    }
    /// The latencies of the last interval that was closed.
    pub fn latest(&self) -> Option<&Point> {
        self.closed.last()
    }
    /// Closes all intervals before `index`.
    pub fn close_before(&mut self, index: u64) -> anyhow::Result<()> {
        self.close(index, Duration::MAX)
    }
    /// The same in a run that ended at `end`.
    fn close(&mut self, index: u64, end: Duration) -> anyhow::Result<()> {
        while self.next < index {
            let mut share = self.open.remove(&self.next).unwrap_or_default();
            share.warmup.merge(&share.latency);
            let p = share.warmup.percentiles();
            let at = self.interval * self.next as u32;
            let lasts = self.interval.min(end.saturating_sub(at)).max(Duration::from_micros(1));
            if self.closed.len() < limits::INTERVALS {
                self.closed.push(Point {
                    at_sec: at.as_secs_f64(),
                    seconds: lasts.as_secs_f64(),
                    is_warmup: at < self.warmup,
                    accepted: share.accepted,
                    p50_us: p.p50_us,
                    p90_us: p.p90_us,
                    p99_us: p.p99_us,
                    max_us: p.max_us,
                    errors: share.errors,
                });
            }
            if let Some(log) = &mut self.hdr {
                write_interval(log, at, lasts, &share.latency).context("cannot write to --hdr")?;
            }
            self.next += 1;
        }
        Ok(())
    }
    /// Closes what is open, the last interval at `end_us` of run time, and gives the points out.
    pub fn finish(&mut self, end_us: u64) -> anyhow::Result<Vec<Point>> {
        let last = self.open.keys().next_back().copied();
        if let Some(last) = last {
            self.close(last + 1, Duration::from_micros(end_us))?;
        }
        Ok(std::mem::take(&mut self.closed))
    }
}

fn begin_log(path: &Path, wall_us: u64) -> anyhow::Result<File> {
    let mut log = File::create(path).with_context(|| format!("cannot write to {}", path.display()))?;
    let start = wall_us as f64 / 1e6;
    write!(
        log,
        "#[Histogram log format version 1.3]\n#[MaxValueDivisor: 1000.0]\n\
         #[StartTime: {start:.3} (seconds since epoch)]\n#[BaseTime: {start:.3} (seconds since epoch)]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n"
    )?;
    Ok(log)
}

/// Values are microseconds; the column of the maximum is in milliseconds.
fn write_interval(log: &mut File, at: Duration, lasts: Duration, latency: &Latency) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(latency.histogram(), &mut bytes)
        .map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let max_ms = latency.histogram().max() as f64 / 1e3;
    Ok(writeln!(log, "{:.3},{:.3},{max_ms:.3},{text}", at.as_secs_f64(), lasts.as_secs_f64())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn share(us: u64, count: u64) -> Share {
        let mut share = Share { accepted: count, ..Share::default() };
        (0..count).for_each(|_| share.latency.record(us));
        share.errors.insert("rcpt 550".into(), count);
        share
    }

    #[test]
    fn points_and_log_hold_what_was_handed_in() {
        let path = std::env::temp_dir().join(format!("ringpost-hdr-{}", std::process::id()));
        let mut timeline =
            Timeline::new(Duration::from_millis(500), Duration::ZERO, Some(&path), 1_700_000_000_000_000)
                .unwrap();
        timeline.add(0, &share(100, 3));
        timeline.add(0, &share(100, 2));
        timeline.add(2, &share(900, 4));
        timeline.close_before(2).unwrap();
        // Too late for its interval: it counts for the next.
        timeline.add(0, &share(100, 1));
        let points = timeline.finish(1_250_000).unwrap();
        assert_eq!(points.iter().map(|p| p.accepted).collect::<Vec<_>>(), [5, 0, 5]);
        assert_eq!((points[0].p50_us, points[2].max_us, points[2].errors["rcpt 550"]), (100, 900, 5));
        assert!((points[2].seconds - 0.25).abs() < 1e-9);
        let log = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(log.starts_with(b"#[Histogram log format version 1.3]\n"));
        let mut counts = Vec::new();
        for entry in IntervalLogIterator::new(&log) {
            if let LogEntry::Interval(interval) = entry.unwrap() {
                let bytes =
                    base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).unwrap();
                let histogram = Deserializer::new().deserialize::<u64, _>(&mut &bytes[..]).unwrap();
                let (at, lasts) = (interval.start_timestamp(), interval.duration());
                counts.push((at.as_millis(), lasts.as_millis(), histogram.len()));
            }
        }
        assert_eq!(counts, [(0, 500, 5), (500, 500, 0), (1000, 250, 5)]);
    }
}
