//! What a run has found out, as data and as text.
//!
//! Owns: [`LoadReport`], [`SinkReport`] and their percentiles. Promises: every number is defined
//! where it stands; the JSON form can be read back, so that a source and a sink in different
//! processes can be compared. Must not: decide whether a run was good (`check` does).
use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::check::Verdict;
use crate::limits;
use crate::process::{ProcessReport, Watch};
use crate::slots::Ranges;
use crate::timeline::Point;

/// Longest latency told apart: an hour. Longer ones count as an hour.
const HIGHEST_US: u64 = 3_600_000_000;

/// Durations in microseconds, three digits exact.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        Latency(Histogram::new_with_bounds(1, HIGHEST_US, 3).expect("the bounds are valid"))
    }
}

impl Latency {
    pub fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }
    pub fn merge(&mut self, other: &Latency) {
        self.0.add(&other.0).expect("both have the same bounds");
    }
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.0.len(),
            mean_us: self.0.mean(),
            min_us: self.0.min(),
            p50_us: self.0.value_at_quantile(0.5),
            p90_us: self.0.value_at_quantile(0.9),
            p99_us: self.0.value_at_quantile(0.99),
            p999_us: self.0.value_at_quantile(0.999),
            max_us: self.0.max(),
        }
    }
}

/// A distribution of durations in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub count: u64,
    pub mean_us: f64,
    #[serde(default)]
    pub min_us: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

/// A duration in the unit that fits it.
pub fn in_words(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9}", self.count)?;
        self.in_words().iter().try_for_each(|text| write!(f, " {text:>10}"))
    }
}

impl Percentiles {
    /// What stands above the columns of its text.
    pub const HEAD: &str = "    count        p50        p90        p99      p99.9        max";
    /// p50, p90, p99, p99.9 and the maximum as text; a hyphen where there are so few values that the
    /// percentile would be the maximum by another name.
    pub fn in_words(&self) -> [String; 5] {
        let carried = |least: u64, us: u64| if self.count < least { "-".into() } else { in_words(us) };
        [
            carried(1, self.p50_us),
            carried(10, self.p90_us),
            carried(100, self.p99_us),
            carried(1000, self.p999_us),
            carried(1, self.max_us),
        ]
    }
}

/// Latencies of the source by stage. With pipelining MAIL, RCPT and DATA leave together with the
/// message before, so their replies also wait for that message's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// From opening the connection to the greeting.
    pub connect: Percentiles,
    /// The TLS handshake; without TLS nothing.
    #[serde(default)]
    pub tls: Percentiles,
    /// From MAIL to its reply.
    pub mail: Percentiles,
    /// From RCPT to its reply.
    pub rcpt: Percentiles,
    /// From handing out the body (DATA), or from its chunk (BDAT), to the final reply.
    pub data: Percentiles,
    /// From MAIL (at a fixed rate: from the intended time) to the final reply, of accepted messages. At a
    /// fixed rate those that never got a reply count with the time they had waited for one: it is a lower
    /// bound.
    pub whole: Percentiles,
    /// From the same time to the end of data at the source's own sink (`--sink`).
    #[serde(default)]
    pub end_to_end: Percentiles,
}

impl Stages {
    /// Each stage with its name; those that did not occur are left out.
    pub fn named(&self) -> Vec<(&'static str, Percentiles)> {
        let Stages { connect, tls, mail, rcpt, data, whole, end_to_end } = *self;
        let all = [
            ("connect", connect),
            ("tls", tls),
            ("mail", mail),
            ("rcpt", rcpt),
            ("data", data),
            ("whole", whole),
            ("end to end", end_to_end),
        ];
        all.into_iter().filter(|(_, stage)| stage.count > 0).collect()
    }
}

/// What the load source reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// Identity of the run, as it stands in message names.
    pub run: String,
    pub target: String,
    pub seed: u64,
    /// What was sent, in words.
    pub workload: String,
    pub recipients_per_message: u32,
    /// Messages answered with 2xx after their final dot.
    pub accepted: u64,
    /// Recipients of accepted messages the server had taken.
    pub accepted_recipients: u64,
    /// Messages refused at MAIL, at every RCPT, at DATA or after the dot.
    pub rejected: u64,
    /// Messages sent in full whose final reply was never seen: they may or may not arrive.
    pub unknown: u64,
    /// Messages begun and given up without their final dot sent: they cannot arrive.
    pub unsent: u64,
    /// At a fixed rate: messages whose time had come when the run was ended, and for which no connection had
    /// been free. They count as late, and in `late` and `whole` with the time they had waited.
    pub not_begun: u64,
    /// The user ended the run before all was sent that was asked for.
    pub is_interrupted: bool,
    pub connections: u64,
    /// Content bytes of accepted messages, dots unstuffed.
    pub bytes: u64,
    /// Length of the warm-up, and messages accepted in it. It is in no rate, latency or CPU of this report.
    pub warmup_seconds: f64,
    pub warmup_accepted: u64,
    /// From the start, or from the end of the warm-up, to the last final reply, and at a fixed rate to the
    /// time of the last message at least; to the end, where the run failed.
    pub seconds: f64,
    /// Accepted messages per second, and their bytes.
    pub rate: f64,
    pub bytes_per_second: f64,
    /// At a fixed rate: messages whose time came, in all, and per second behind the warm-up.
    pub due: Option<u64>,
    pub due_rate: Option<f64>,
    /// CPU of the source's threads, user and system, for each accepted message.
    pub cpu_us_per_message: f64,
    /// CPU of the hardest pressed thread of the source over the time of the run, and in its worst second.
    pub busy_share: f64,
    pub worst_busy_share: f64,
    /// Time that thread waited for a processor, over the same times.
    pub starved_share: f64,
    pub worst_starved_share: f64,
    /// At a fixed rate: no more than [`crate::limits::LATE_SHARE`] of the messages were late, every one was
    /// begun, and the run did not fail.
    pub rate_held: Option<bool>,
    /// Share of messages begun later than [`crate::limits::LATE`] after their time, or never.
    pub late_share: f64,
    /// From the intended time of a message to its MAIL, at a fixed rate.
    pub late: Percentiles,
    pub latency: Stages,
    /// Each kind of error and how often it was met.
    pub errors: BTreeMap<String, u64>,
    /// The first text seen for each kind of error.
    pub error_samples: BTreeMap<String, String>,
    /// Why the run ended early, if it did.
    pub failure: Option<String>,
    /// Delivery slots (number × recipients per message + recipient) answered with 2xx.
    pub acknowledged: Ranges,
    /// Delivery slots of the messages counted in `unknown`.
    pub unresolved: Ranges,
    /// The run in intervals.
    pub timeline: Vec<Point>,
    /// The measured server, with `--measure-pid`.
    pub process: Option<ProcessReport>,
    /// What the source's own sink received, with `--sink`, and what that says of the server.
    pub sink: Option<SinkReport>,
    pub verdict: Option<Verdict>,
    /// Why these figures may not be the server's.
    pub warnings: Vec<String>,
}

impl LoadReport {
    /// What speaks against taking the figures for the server's.
    pub fn doubts(&self) -> Vec<String> {
        let percent = |share: f64| share * 100.0;
        let mut doubts = Vec::new();
        if self.late_share > limits::LATE_SHARE || self.not_begun > 0 {
            doubts.push(format!(
                "the rate could not be held: {:.1} % of the messages were begun more than {} ms late: no connection \
                 was free, or the source had no processor ({:.1} % of the time); latencies count from the intended time",
                percent(self.late_share),
                limits::LATE.as_millis(),
                percent(self.starved_share)
            ));
        }
        let unanswered = self.not_begun + self.unknown + self.unsent;
        if self.due.is_some() && unanswered > 0 {
            doubts.push(format!(
                "{unanswered} messages never got an answer, {} of them were due and not begun: they stand in the \
                 latencies with the time they had waited, which is less than they would have taken",
                self.not_begun
            ));
        }
        if self.warmup_seconds > 0.0 && self.accepted == self.warmup_accepted {
            doubts
                .push("nothing was accepted after the warm-up (--warmup): there is nothing to report".into());
        }
        doubts.extend(bottleneck("source", self.worst_busy_share, self.worst_starved_share));
        doubts
    }
    /// Whether the source could not keep up, or had too little of the processors.
    pub fn is_source_bound(&self) -> bool {
        bottleneck("source", self.worst_busy_share, self.worst_starved_share).is_some()
    }
    /// Whether all that was asked for was sent.
    pub fn is_complete(&self) -> bool {
        self.failure.is_none() && !self.is_interrupted && self.not_begun == 0 && self.unsent == 0
    }
    /// Adds what the watch over the measured server has seen.
    pub fn account_for(&mut self, measured: &Watch) {
        self.process = measured.report(self.accepted - self.warmup_accepted, self.warmup_seconds);
        self.warnings.extend(measured.doubts());
    }
    /// The rate that was asked for beside the one that was achieved.
    fn write_rates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(due), Some(due_rate)) = (self.due, self.due_rate) else { return Ok(()) };
        let held = if self.rate_held == Some(true) { "held" } else { "not held" };
        writeln!(
            f,
            "asked for {due_rate:.1}/s, achieved {:.1}/s: rate {held}; {} of {due} messages accepted ({:.1} %), {} not begun",
            self.rate,
            self.accepted,
            self.accepted as f64 * 100.0 / due.max(1) as f64,
            self.not_begun
        )
    }
}

/// Says so where this side was too busy, or had too little of the processors, to keep up.
fn bottleneck(side: &str, busy_share: f64, starved_share: f64) -> Option<String> {
    if busy_share > limits::BUSY_SHARE {
        return Some(format!(
            "the {side} was the bottleneck: a thread of it was busy {:.0} % of its worst second (--threads)",
            busy_share * 100.0
        ));
    }
    let is_starved = busy_share + starved_share > limits::BUSY_SHARE && starved_share > limits::STARVED_SHARE;
    is_starved.then(|| {
        format!(
            "the {side} waited for a processor {:.0} % of its worst second: other processes slowed it",
            starved_share * 100.0
        )
    })
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages accepted in {:.2} s: {:.0}/s, {:.1} MB/s, {:.1} µs CPU per message here",
            self.accepted - self.warmup_accepted,
            self.seconds,
            self.rate,
            self.bytes_per_second / 1e6,
            self.cpu_us_per_message
        )?;
        if self.warmup_seconds > 0.0 {
            writeln!(
                f,
                "{} more in a warm-up of {} s, which is in none of these figures",
                self.warmup_accepted, self.warmup_seconds
            )?;
        }
        self.write_rates(f)?;
        writeln!(
            f,
            "{} rejected, {} unknown, {} unsent, {} connections, seed {}",
            self.rejected, self.unknown, self.unsent, self.connections, self.seed
        )?;
        writeln!(f, "{:10} {}", "latency", Percentiles::HEAD)?;
        for (name, stage) in self.latency.named() {
            writeln!(f, "{name:10} {stage}")?;
        }
        if self.late.count > 0 {
            writeln!(f, "{:10} {}", "late", self.late)?;
        }
        if let Some(process) = &self.process {
            writeln!(
                f,
                "server: {:.1} µs CPU per message, {:.1} MiB at most",
                process.cpu_us_per_message,
                process.peak_rss_bytes as f64 / f64::from(1 << 20)
            )?;
        }
        if let (Some(verdict), Some(sink)) = (&self.verdict, &self.sink) {
            writeln!(f, "sink: {verdict}; {:.1} µs CPU per message there", sink.cpu_us_per_message)?;
        }
        for (kind, count) in &self.errors {
            let sample = self.error_samples.get(kind).map_or("", String::as_str);
            writeln!(f, "{count} × {kind}: {sample}")?;
        }
        if let Some(failure) = &self.failure {
            writeln!(f, "ended early: {failure}")?;
        }
        if self.is_interrupted {
            writeln!(f, "interrupted: not all was sent that was asked for")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

/// What the sink reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SinkReport {
    pub listening: Vec<String>,
    /// Messages taken, whatever they were.
    pub messages: u64,
    /// Deliveries (message and recipient) seen for the first time.
    pub unique: u64,
    /// Deliveries seen again.
    pub duplicates: u64,
    /// Messages of the load source whose content does not match its checksum.
    pub corrupt: u64,
    /// Messages not made by the load source (bounces, other mail), and recipients that a message of
    /// the load source does not have.
    pub foreign: u64,
    /// Transactions refused as `--reject-every` and `--tempfail-every` ask.
    pub refused: u64,
    pub connections: u64,
    /// Content bytes taken, dots unstuffed.
    pub bytes: u64,
    /// From the first message to the last.
    pub seconds: f64,
    /// Messages per second between the first and the last.
    pub rate: f64,
    /// CPU of the sink's threads, user and system, for each message.
    pub cpu_us_per_message: f64,
    /// CPU of the hardest pressed thread between the first message and the last, over that time, and in the
    /// worst second of it.
    pub busy_share: f64,
    pub worst_busy_share: f64,
    /// Time that thread had mail to take and no processor, over the same times.
    pub starved_share: f64,
    pub worst_starved_share: f64,
    /// From the time in the stamp to the end of data here, of what arrived for the first time. Both clocks
    /// are wall clocks.
    pub latency: Percentiles,
    /// Messages whose stamp lies ahead of the clock here.
    pub from_future: u64,
    /// What arrived of each run.
    pub runs: Vec<RunReport>,
    /// Why these figures may not be the server's.
    pub warnings: Vec<String>,
}

impl SinkReport {
    /// What speaks against taking the figures for the server's.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts: Vec<String> =
            bottleneck("sink", self.worst_busy_share, self.worst_starved_share).into_iter().collect();
        if self.from_future > 0 {
            doubts.push(format!(
                "{} messages arrived before they were sent, by their stamps: the clocks of source and sink differ, \
                 or one was set; these count as no time at all in the latencies",
                self.from_future
            ));
        }
        doubts
    }
}

/// What a sink has seen of one run of the load source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunReport {
    /// Identity of the run, as it stands in message names.
    pub run: String,
    pub recipients_per_message: u32,
    /// Delivery slots (number × recipients per message + recipient) that arrived, as often as it be.
    pub arrived: Ranges,
    /// As [`SinkReport::latency`], of this run.
    pub latency: Percentiles,
    /// Deliveries that arrived behind one of a message sent after theirs (RFC 4737 §3). Several
    /// connections side by side keep no order.
    pub reordered: u64,
    /// By how many message numbers at most.
    pub overtaken_by_most: u64,
    pub duplicates: u64,
    /// Some of the deliveries that arrived more than once.
    pub duplicate_examples: Vec<String>,
    pub corrupt: u64,
    /// Some of the messages that arrived damaged.
    pub corrupt_examples: Vec<String>,
}

impl fmt::Display for SinkReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages taken in {:.2} s: {:.0}/s, {:.1} MB/s, {:.1} µs CPU per message here",
            self.messages,
            self.seconds,
            self.rate,
            self.bytes as f64 / 1e6 / self.seconds.max(1e-9),
            self.cpu_us_per_message
        )?;
        writeln!(
            f,
            "{} unique, {} duplicates, {} corrupt, {} foreign, {} refused, {} connections",
            self.unique, self.duplicates, self.corrupt, self.foreign, self.refused, self.connections
        )?;
        writeln!(f, "{:10} {}", "latency", Percentiles::HEAD)?;
        writeln!(f, "end to end {}", self.latency)?;
        for run in self.runs.iter().filter(|run| run.reordered > 0) {
            writeln!(
                f,
                "order: {} of {} deliveries of run {} were overtaken, by {} messages at most",
                run.reordered,
                run.arrived.len(),
                run.run,
                run.overtaken_by_most
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let (mut latency, mut rest) = (Latency::default(), Latency::default());
        (1..=500).for_each(|us| latency.record(us));
        (501..=1000).for_each(|us| rest.record(us));
        latency.merge(&rest);
        let p = latency.percentiles();
        assert_eq!(
            (p.count, p.min_us, p.p50_us, p.p90_us, p.p99_us, p.p999_us, p.max_us),
            (1000, 1, 500, 900, 990, 999, 1000)
        );
        latency.record(u64::MAX);
        assert!(latency.percentiles().max_us >= HIGHEST_US);
    }

    #[test]
    fn percentiles_that_a_few_values_cannot_carry_are_hyphens() {
        for (count, hyphens) in [(1, 3), (10, 2), (99, 2), (100, 1), (1000, 0)] {
            let p =
                Percentiles { count, p50_us: 1, p90_us: 1, p99_us: 1, p999_us: 1, ..Percentiles::default() };
            assert_eq!(p.in_words().iter().filter(|text| *text == "-").count(), hyphens, "{count}");
            assert_eq!(p.to_string().chars().count(), Percentiles::HEAD.len());
        }
    }

    #[test]
    fn both_sides_say_when_they_are_the_bottleneck() {
        // Busy and starved shares, and what the doubt is about.
        for (busy_share, starved_share, want) in [
            (0.5, 0.0, None),
            (0.5, 0.3, None),
            (0.95, 0.0, Some("was the bottleneck")),
            (0.6, 0.35, Some("waited for a processor")),
            // Starved a little, and otherwise idle: that slows nobody.
            (0.2, 0.15, None),
        ] {
            let (worst_busy_share, worst_starved_share) = (busy_share, starved_share);
            let load = LoadReport { worst_busy_share, worst_starved_share, ..LoadReport::default() }.doubts();
            let sink = SinkReport { worst_busy_share, worst_starved_share, ..SinkReport::default() }.doubts();
            for (side, doubts) in [("source", load), ("sink", sink)] {
                let text = doubts.join(" ");
                assert_eq!(doubts.is_empty(), want.is_none(), "{side} {busy_share} {starved_share}");
                assert!(want.is_none_or(|want| text.contains(want) && text.contains(side)), "{text}");
            }
        }
    }

    #[test]
    fn reports_survive_json() {
        let report = LoadReport {
            run: "00000001".into(),
            acknowledged: Ranges(vec![(0, 9)]),
            errors: BTreeMap::from([("rcpt 550".into(), 3)]),
            ..LoadReport::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<LoadReport>(&text).unwrap(), report);
        let report = SinkReport { runs: vec![RunReport::default()], ..SinkReport::default() };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<SinkReport>(&text).unwrap(), report);
    }
}
