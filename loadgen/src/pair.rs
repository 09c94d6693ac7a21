//! Source and sink around a server that relays: one run seen from both ends.
//!
//! Owns: [`run_pair`]. Promises: the sink listens before the first message is sent and stays until all that
//! was acknowledged has arrived and a little longer, for duplicates; where the wait ends before, what is
//! missing is said to be not there yet, never lost; mail of other runs has no part in the figures. Must
//! not: measure (the two ends do).
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::check::reconcile;
use crate::clock::Clock;
use crate::limits;
use crate::load::{LoadArgs, run_watched};
use crate::process::Watch;
use crate::progress::{Progress, Snapshot};
use crate::report::{LoadReport, in_words};
use crate::sink::{Sink, SinkArgs, SinkHandle};
use crate::timeline::Point;

/// [`run_load`](crate::run_load) with a sink at `listen` of its own, to which the server delivers. Where
/// `progress` stops the source, a second stop ends the wait for what is under way.
pub fn run_pair(args: &LoadArgs, listen: SocketAddr, progress: &dyn Progress) -> anyhow::Result<LoadReport> {
    args.validate()?;
    let sink = Sink::start(&SinkArgs::new(listen))?;
    let mut measured = Watch::new(&args.measure_pid)?;
    let (mut report, clock) = run_watched(args, &Sending { progress, sink: &sink }, &mut measured)?;
    let run = u32::from_str_radix(&report.run, 16)?;
    let mut wait =
        Wait { sink: &sink, run, report: &report, progress, clock: &clock, measured: &mut measured };
    let ended_early = wait.for_arrivals(args.arrival_wait);
    report.account_for(&measured);
    let received = sink.stop()?;
    let of_run = received.runs.iter().find(|of_run| of_run.run == report.run);
    report.latency.end_to_end = of_run.map(|of_run| of_run.latency).unwrap_or_default();
    report.warnings.extend(received.warnings.iter().cloned());
    let mut verdict = reconcile(&report, &received);
    verdict.wait_ended_by = ended_early.filter(|_| verdict.missing > 0);
    if !verdict.is_exactly_once() {
        report.warnings.push(verdict.to_string());
    }
    report.verdict = Some(verdict);
    report.sink = Some(received);
    Ok(report)
}

/// The progress of the source, which also tells the sink from when on is measured.
struct Sending<'a> {
    progress: &'a dyn Progress,
    sink: &'a SinkHandle,
}

impl Progress for Sending<'_> {
    fn update(&self, snapshot: &Snapshot) {
        self.progress.update(snapshot);
    }
    fn interval(&self, point: &Point) {
        self.progress.interval(point);
    }
    fn begun(&self, measured_from_us: u64) {
        self.sink.measure_from(measured_from_us);
        self.progress.begun(measured_from_us);
    }
    fn stopped(&self) -> bool {
        self.progress.stopped()
    }
}

/// The wait for what the server has taken and not delivered yet.
struct Wait<'a> {
    sink: &'a SinkHandle,
    run: u32,
    report: &'a LoadReport,
    progress: &'a dyn Progress,
    clock: &'a Clock,
    measured: &'a mut Watch,
}

impl Wait<'_> {
    /// Waits until all has arrived, and says what ended the wait where it ended before. The server is
    /// sampled until then, for it works for as long.
    fn for_arrivals(&mut self, patience: Duration) -> Option<String> {
        self.progress.phase("arrivals");
        self.progress.resume();
        let (mut last, mut sampled_at) = ((0, Instant::now()), Instant::now());
        loop {
            let unique = self.show();
            if self.has_all(unique) {
                break;
            }
            if unique > last.0 {
                last = (unique, Instant::now());
            }
            let reason = match () {
                () if !self.sink.is_running() => Some("the sink ended by itself".into()),
                () if self.progress.stopped() => Some("it was interrupted".into()),
                () if last.1.elapsed() >= patience => Some(format!(
                    "nothing had come for {} (--arrival-wait)",
                    in_words(patience.as_micros() as u64)
                )),
                () => None,
            };
            if reason.is_some() {
                self.sample();
                return reason;
            }
            if sampled_at.elapsed() >= Duration::from_secs(1) {
                self.sample();
                sampled_at = Instant::now();
            }
            std::thread::sleep(limits::SINK_SLEEP);
        }
        self.sample();
        self.linger();
        None
    }
    /// Listens on for duplicates.
    fn linger(&self) {
        let until = Instant::now() + limits::DUPLICATE_WAIT;
        while Instant::now() < until && self.sink.is_running() && !self.progress.stopped() {
            self.show();
            std::thread::sleep(limits::SINK_SLEEP);
        }
    }
    /// Whether every acknowledged delivery is among the `unique` that have arrived. A count says no quickly;
    /// it cannot say yes, for mail of which the source was told nothing may have arrived too.
    fn has_all(&self, unique: u64) -> bool {
        let acknowledged = &self.report.acknowledged;
        unique >= acknowledged.len()
            && (acknowledged.is_empty()
                || self
                    .sink
                    .run_report(self.run)
                    .is_some_and(|of_run| acknowledged.without(&of_run.arrived).is_empty()))
    }
    /// Shows how far it is; returns how many deliveries have arrived.
    fn show(&self) -> u64 {
        let (arrived, counters) = (self.sink.arrived(self.run), self.sink.counters());
        self.progress.update(&Snapshot {
            elapsed: Duration::from_micros(self.clock.now_us()),
            messages: arrived.unique,
            total: Some(self.report.accepted_recipients),
            lasts: None,
            bytes: counters.bytes,
            troubled: arrived.duplicates + arrived.corrupt,
            connections: counters.open,
            cpu: counters.cpu,
        });
        arrived.unique
    }
    fn sample(&mut self) {
        self.measured.sample(self.clock.now_us() as f64 / 1e6);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::progress::Silent;

    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn both_ends_are_in_one_report() {
        // A server that relays at once: the sink itself.
        let sink = free();
        let report = run_pair(&LoadArgs::new(sink, 300), sink, &Silent).unwrap();
        let verdict = report.verdict.clone().unwrap();
        assert!(verdict.is_exactly_once() && verdict.acknowledged == 300, "{verdict}");
        assert_eq!((report.latency.end_to_end.count, report.sink.as_ref().unwrap().unique), (300, 300));
        let text = report.to_string();
        assert!(text.contains("end to end") && text.contains("all 300 acknowledged"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        let read: LoadReport = serde_json::from_str(&json).unwrap();
        assert_eq!((&read.verdict, read.latency.end_to_end.count), (&report.verdict, 300));
    }

    #[test]
    fn what_does_not_arrive_is_said() {
        // A server that takes mail and keeps it: another sink.
        let keeper = Sink::start(&SinkArgs::new("127.0.0.1:0".parse().unwrap())).unwrap();
        let mut args = LoadArgs::new(keeper.addr(), 20);
        args.arrival_wait = Duration::from_millis(200);
        let report = run_pair(&args, free(), &Silent).unwrap();
        let verdict = report.verdict.as_ref().unwrap();
        assert_eq!((report.accepted, verdict.missing, verdict.is_exactly_once()), (20, 20, false));
        // It has not lost them: they may come yet.
        let text = report.to_string();
        assert!(text.contains("20 not arrived yet") && text.contains("--arrival-wait"), "{text}");
        assert!(!text.contains("missing"), "{text}");
    }
}
