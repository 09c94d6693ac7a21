//! Source and sink around a server that relays: one run seen from both ends.
//!
//! Owns: [`run_pair`]. Promises: the sink listens before the first message is sent and stays until all
//! that was acknowledged has arrived, or nothing has for [`limits::ARRIVAL_WAIT`]; the report says
//! which of the two. Must not: measure (the two ends do).
use std::net::SocketAddr;
use std::time::Instant;

use crate::check::reconcile;
use crate::limits;
use crate::load::{LoadArgs, run_load};
use crate::progress::{Progress, Snapshot};
use crate::report::LoadReport;
use crate::sink::{Sink, SinkArgs, SinkHandle};

/// [`run_load`] with a sink at `listen` of its own, to which the server delivers.
pub fn run_pair(args: &LoadArgs, listen: SocketAddr, progress: &dyn Progress) -> anyhow::Result<LoadReport> {
    args.validate()?;
    let sink = Sink::start(&SinkArgs::new(listen))?;
    let mut report = run_load(args, progress)?;
    wait_for_arrivals(&sink, &report, progress);
    let received = sink.stop()?;
    report.latency.end_to_end = received.latency;
    report.warnings.extend(received.warnings.iter().cloned());
    let verdict = reconcile(&report, &received);
    if !verdict.is_exactly_once() {
        report.warnings.push(verdict.to_string());
    }
    report.verdict = Some(verdict);
    report.sink = Some(received);
    Ok(report)
}

fn wait_for_arrivals(sink: &SinkHandle, report: &LoadReport, progress: &dyn Progress) {
    let mut last = (0, Instant::now());
    while sink.is_running() && !progress.stopped() {
        let counters = sink.counters();
        if counters.unique >= report.accepted_recipients {
            return;
        }
        if counters.unique > last.0 {
            last = (counters.unique, Instant::now());
        } else if last.1.elapsed() > limits::ARRIVAL_WAIT {
            return;
        }
        progress.update(&Snapshot {
            messages: counters.unique,
            total: Some(report.accepted_recipients),
            bytes: counters.bytes,
            troubled: counters.duplicates + counters.corrupt,
            connections: counters.open,
            cpu: counters.cpu,
            ..Snapshot::default()
        });
        std::thread::sleep(limits::SINK_SLEEP);
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
        let report = run_pair(&LoadArgs::new(keeper.addr(), 20), free(), &Silent).unwrap();
        assert_eq!((report.accepted, report.verdict.as_ref().unwrap().missing), (20, 20));
        assert!(report.warnings.iter().any(|warning| warning.contains("20 missing")), "{report}");
    }
}
