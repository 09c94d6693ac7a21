//! The Prometheus text form of the counters (exposition format 0.0.4).
//!
//! Owns: metric names, types and help. Promises: names do not change once published; times are in
//! seconds and sizes in bytes, as Prometheus wants them. Must not: carry labels whose values come from
//! outside (destinations, addresses): their number would have no bound.
use std::fmt::Write;

use super::counters::{Counters, Distribution, Report};

/// A metric's kind, name without `ringpost_`, help, and value.
type Row = (&'static str, &'static str, &'static str, fn(&Counters) -> u64);

const ROWS: &[Row] = &[
    ("counter", "accepted_messages_total", "Messages acknowledged with 250", |c| c.accepted_messages),
    ("counter", "accepted_recipients_total", "Recipients of acknowledged messages", |c| {
        c.accepted_recipients
    }),
    ("counter", "accepted_bytes_total", "Bytes of acknowledged messages", |c| c.accepted_bytes),
    ("counter", "rejected_permanently_total", "Commands and messages refused with 5xx", |c| {
        c.rejected_permanently
    }),
    ("counter", "rejected_temporarily_total", "Commands and messages refused with 4xx", |c| {
        c.rejected_temporarily
    }),
    ("counter", "sessions_total", "Clients accepted", |c| c.sessions_total),
    ("counter", "sessions_refused_total", "Clients turned away at a connection limit", |c| {
        c.sessions_refused
    }),
    ("gauge", "sessions_open", "Clients connected", |c| c.sessions_now),
    ("counter", "early_talkers_total", "Clients that spoke before the greeting", |c| c.early_talkers),
    ("counter", "tls_handshakes_total", "TLS handshakes with clients that ended well", |c| c.tls_handshakes),
    ("counter", "tls_resumed_total", "TLS handshakes with clients that continued a session", |c| {
        c.tls_resumed
    }),
    ("counter", "tls_handshakes_failed_total", "TLS handshakes with clients that failed", |c| c.tls_failed),
    ("counter", "logins_total", "Logins that succeeded", |c| c.logins),
    ("counter", "logins_failed_total", "Logins that failed or were refused unseen", |c| c.logins_failed),
    ("counter", "logins_busy_total", "Logins put off because too many waited", |c| c.logins_busy),
    ("counter", "delivered_recipients_total", "Recipients delivered", |c| c.delivered_recipients),
    ("counter", "deferred_attempts_total", "Attempts that ended in a later retry", |c| c.deferred_attempts),
    ("counter", "failed_recipients_total", "Recipients given up after a permanent answer", |c| {
        c.failed_recipients
    }),
    ("counter", "expired_recipients_total", "Recipients given up at --max-age", |c| c.expired_recipients),
    ("counter", "removed_recipients_total", "Recipients removed by an operator", |c| c.removed_recipients),
    (
        "counter",
        "bounces_total",
        "Reports to senders made: bounces, and what RFC 3461 lets them ask for",
        |c| c.bounces,
    ),
    ("counter", "outbound_connections_total", "Connections to destinations opened", |c| c.outbound_total),
    (
        "counter",
        "outbound_connections_failed_total",
        "Connections to destinations that failed to open",
        |c| c.outbound_failed,
    ),
    ("gauge", "outbound_connections_open", "Connections to destinations", |c| c.outbound_now),
    ("gauge", "queued_messages", "Messages not finished", |c| c.queued_messages_now),
    ("gauge", "queued_recipients", "Recipients not finished", |c| c.queued_recipients_now),
    ("gauge", "ready_recipients", "Queued recipients that wait for a connection only", |c| {
        c.ready_recipients_now
    }),
    ("gauge", "deferred_recipients", "Queued recipients that wait for their next attempt", |c| {
        c.deferred_recipients_now
    }),
    ("gauge", "in_flight_recipients", "Queued recipients on a connection", |c| c.in_flight_recipients_now),
    ("gauge", "held_deliveries", "Deliveries that operators hold", |c| c.held_deliveries_now),
    ("gauge", "failing_messages", "Messages that wait to be returned by order of an operator", |c| {
        c.failing_messages_now
    }),
    ("gauge", "destinations", "Destinations with queued mail", |c| c.destinations_now),
    ("gauge", "cached_bytes", "Bodies kept in memory", |c| c.cached_bytes_now),
    ("counter", "groups_lost_total", "Spool groups that could not be written", |c| c.groups_lost),
    ("gauge", "spool_segments", "Segment files", |c| c.segments_now),
    ("gauge", "spool_live_bytes", "Bytes in segments that queued mail needs", |c| c.live_bytes_now),
    ("counter", "spool_written_bytes_total", "Bytes written to segments", |c| c.written_bytes),
    ("counter", "spool_recorded_bytes_total", "Bytes of records asked to be written", |c| c.recorded_bytes),
    ("gauge", "spool_unwritable_logs", "Logs that cannot be written", |c| c.unwritable_logs_now),
    ("counter", "spool_damaged_places_total", "Places in segments found damaged", |c| c.damaged_places),
    ("counter", "spool_quarantined_messages_total", "Messages given up because the disk damaged them", |c| {
        c.quarantined_messages
    }),
    ("counter", "events_dropped_total", "Events the event log could not take in time", |c| c.events_dropped),
    ("counter", "dns_busy_total", "DNS questions put off because the queue was full", |c| c.dns_busy),
];

/// The text of `/metrics`.
pub fn render(report: &Report) -> String {
    let mut out = Text(String::with_capacity(8 * 1024));
    for (kind, name, help, value) in ROWS {
        out.describe(kind, name, help);
        out.sample(name, value(&report.counters));
    }
    out.summary(
        "commit_seconds",
        "From handing a group to the disk until it is durable",
        &report.counters.commit_us,
        1e-6,
    );
    out.summary("group_bytes", "Size of a spool group", &report.counters.group_bytes, 1.0);
    out.describe("gauge", "spool_write_amplification", "Bytes written for each byte recorded");
    out.sample("spool_write_amplification", report.write_amplification);
    let process = &report.process;
    out.describe("counter", "process_cpu_seconds_total", "CPU of all threads, user and system");
    out.sample("process_cpu_seconds_total", process.cpu_seconds);
    out.describe("gauge", "process_resident_bytes", "Resident memory");
    out.sample("process_resident_bytes", process.rss_bytes);
    out.describe("gauge", "uptime_seconds", "Time since start");
    out.sample("uptime_seconds", process.uptime_seconds);
    out.describe("gauge", "info", "Version, durability in force and number of workers");
    let labels = format!(
        "info{{version=\"{}\",durability=\"{}\",workers=\"{}\"}}",
        process.version, process.durability, process.workers
    );
    out.sample(&labels, 1);
    out.0
}

struct Text(String);

impl Text {
    fn describe(&mut self, kind: &str, name: &str, help: &str) {
        self.line(format_args!("# HELP ringpost_{name} {help}."));
        self.line(format_args!("# TYPE ringpost_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, value: impl std::fmt::Display) {
        self.line(format_args!("ringpost_{name} {value}"));
    }

    /// A summary and, as a metric of its own, the maximum.
    fn summary(&mut self, name: &str, help: &str, d: &Distribution, unit: f64) {
        self.describe("summary", name, help);
        for (quantile, value) in [("0.5", d.p50), ("0.9", d.p90), ("0.99", d.p99), ("0.999", d.p999)] {
            self.sample(&format!("{name}{{quantile=\"{quantile}\"}}"), value as f64 * unit);
        }
        self.sample(&format!("{name}_sum"), d.sum as f64 * unit);
        self.sample(&format!("{name}_count"), d.count);
        self.describe("gauge", &format!("{name}_max"), &format!("{help}, largest so far"));
        self.sample(&format!("{name}_max"), d.max as f64 * unit);
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::counters::tests::numbered;

    fn report() -> Report {
        let commit_us =
            Distribution { count: 4, sum: 2_000, p50: 250, p90: 500, p99: 1_000, p999: 1_500, max: 2_000 };
        Report {
            counters: Counters { commit_us, ..numbered() },
            write_amplification: 1.25,
            ..Report::default()
        }
    }

    #[test]
    fn every_counter_is_published_once() {
        let text = render(&report());
        let json = serde_json::to_value(numbered()).expect("JSON");
        for (field, value) in json.as_object().expect("an object").iter().filter(|(_, v)| v.is_u64()) {
            let found = text.lines().filter(|l| l.ends_with(&format!(" {value}"))).count();
            assert_eq!(found, 1, "{field}");
        }
        for line in [
            "ringpost_commit_seconds{quantile=\"0.5\"} 0.00025",
            "ringpost_commit_seconds_count 4",
            "ringpost_commit_seconds_max 0.002",
            "ringpost_spool_write_amplification 1.25",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_metric_is_described_before_its_samples_and_once() {
        let text = render(&report());
        let mut described: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(!described.contains(&name), "{name} twice");
                described.push(name);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                let last = *described.last().expect("described first");
                assert!(
                    name == last || name == format!("{last}_sum") || name == format!("{last}_count"),
                    "{line}"
                );
            }
        }
    }
}
