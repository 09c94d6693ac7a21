//! The numbers the server publishes, each with its definition.
//!
//! Owns: [`Counters`], which the workers fill, and [`Report`], which adds what the process as a whole
//! knows. Promises: a counter only rises while the process lives; a gauge is the state at the moment
//! of the answer. Must not: count anything itself.
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the workers have counted since the process started, summed over them. Fields that end in
/// `_now` are gauges.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Messages acknowledged with 250 after their final dot.
    pub accepted_messages: u64,
    /// Recipients of those messages.
    pub accepted_recipients: u64,
    /// Bytes of those messages as received, dot-stuffing included, trace headers not.
    pub accepted_bytes: u64,
    /// Commands and message ends refused with 5xx.
    pub rejected_permanently: u64,
    /// Commands and message ends refused with 4xx (limits, no room, an unwritable spool).
    pub rejected_temporarily: u64,
    /// Clients whose connection was accepted, the next one included.
    pub sessions_total: u64,
    /// Clients turned away with 421 at a connection limit.
    pub sessions_refused: u64,
    /// Clients connected.
    pub sessions_now: u64,
    /// Clients sent away because they spoke before the greeting (`--greet-pause`).
    pub early_talkers: u64,
    /// TLS handshakes with clients that ended well, STARTTLS and `--submissions` together.
    pub tls_handshakes: u64,
    /// Those of them that continued an earlier session.
    pub tls_resumed: u64,
    /// TLS handshakes with clients that failed.
    pub tls_failed: u64,
    /// Logins that succeeded.
    pub logins: u64,
    /// Logins that failed, or were refused because too many had failed before.
    pub logins_failed: u64,
    /// Logins put off because too many passwords waited to be checked.
    pub logins_busy: u64,

    /// Recipients whose final host answered 2xx.
    pub delivered_recipients: u64,
    /// Attempts after which a recipient waits for another one.
    pub deferred_attempts: u64,
    /// Recipients given up after a permanent answer.
    pub failed_recipients: u64,
    /// Recipients given up because of `--max-age`.
    pub expired_recipients: u64,
    /// Recipients removed by an operator.
    pub removed_recipients: u64,
    /// Bounce messages (RFC 3464) made.
    pub bounces: u64,
    /// Connections to destinations opened.
    pub outbound_total: u64,
    /// Connections to destinations that could not be opened.
    pub outbound_failed: u64,
    /// Connections to destinations open or opening.
    pub outbound_now: u64,

    /// Messages with at least one recipient not finished.
    pub queued_messages_now: u64,
    /// Recipients not finished.
    pub queued_recipients_now: u64,
    /// Queued recipients by what they wait for: nothing, the time of their next attempt, the answer
    /// of their destination.
    pub ready_recipients_now: u64,
    pub deferred_recipients_now: u64,
    pub in_flight_recipients_now: u64,
    /// Deliveries (a message to one destination) that operators hold.
    pub held_deliveries_now: u64,
    /// Messages that operators return to their senders and whose bounce waits for its turn.
    pub failing_messages_now: u64,
    /// Destinations with queued mail.
    pub destinations_now: u64,
    /// Bytes of bodies kept in memory for delivery without reading the disk.
    pub cached_bytes_now: u64,

    /// From handing a group of records to the disk until it is durable, in microseconds.
    pub commit_us: Distribution,
    /// Bytes of a group, padding included.
    pub group_bytes: Distribution,
    /// Groups that were not written: their messages were refused with 451.
    pub groups_lost: u64,
    /// Segment files of the spool, prepared ones included.
    pub segments_now: u64,
    /// Bytes in segments that queued mail still needs.
    pub live_bytes_now: u64,
    /// Bytes written to segments: groups, copies and padding.
    pub written_bytes: u64,
    /// Bytes of records that new mail and outcomes asked to be written; `written_bytes` divided by
    /// this is the write amplification.
    pub recorded_bytes: u64,
    /// Logs that cannot be written.
    pub unwritable_logs_now: u64,
    /// Places in segments found damaged, at the start or when a message was read.
    pub damaged_places: u64,
    /// Messages given up because the disk damaged them; what is left of them is in SPOOL/quarantine.
    pub quarantined_messages: u64,

    /// Events thrown away because the event log's writer was behind.
    pub events_dropped: u64,
    /// DNS questions put off because the queue to the DNS thread was full.
    pub dns_busy: u64,
}

/// A distribution of values, three digits exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub sum: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Distribution {
    /// The distribution recorded in a histogram. The sum is as exact as the histogram's buckets.
    pub fn of(histogram: &hdrhistogram::Histogram<u64>) -> Distribution {
        Distribution {
            count: histogram.len(),
            sum: (histogram.mean() * histogram.len() as f64) as u64,
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl Counters {
    /// Bytes written for each byte that had to be; 1 before anything was.
    pub fn write_amplification(&self) -> f64 {
        if self.recorded_bytes == 0 { 1.0 } else { self.written_bytes as f64 / self.recorded_bytes as f64 }
    }

    /// Adds another worker's numbers. Distributions cannot be added: the caller merges the histograms
    /// behind them and sets `commit_us` and `group_bytes` afterwards.
    pub fn add(&mut self, other: &Counters) {
        macro_rules! sum {
            ($($field:ident)*) => { $(self.$field += other.$field;)* };
        }
        sum!(
            accepted_messages accepted_recipients accepted_bytes rejected_permanently rejected_temporarily
            sessions_total sessions_refused sessions_now early_talkers tls_handshakes tls_resumed tls_failed
            logins logins_failed logins_busy delivered_recipients deferred_attempts
            failed_recipients expired_recipients removed_recipients bounces outbound_total outbound_failed
            outbound_now queued_messages_now queued_recipients_now ready_recipients_now
            deferred_recipients_now in_flight_recipients_now held_deliveries_now failing_messages_now
            destinations_now cached_bytes_now groups_lost
            segments_now live_bytes_now written_bytes recorded_bytes unwritable_logs_now damaged_places
            quarantined_messages events_dropped dns_busy
        );
    }
}

/// The process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    pub version: String,
    /// `disk`, `os` or `memory`.
    pub durability: String,
    pub workers: u64,
    pub uptime_seconds: f64,
    /// CPU of all threads, user and system, the kernel's work on their behalf included.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub rss_bytes: u64,
}

/// The answer of `/api/v1/counters`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub process: ProcessView,
    pub counters: Counters,
    pub write_amplification: f64,
}

impl ProcessView {
    /// Asks the kernel about this process.
    pub fn ask(config: &super::ControlConfig, uptime: Duration) -> ProcessView {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        ProcessView {
            version: env!("CARGO_PKG_VERSION").into(),
            durability: config.durability.as_str().into(),
            workers: config.workers as u64,
            uptime_seconds: uptime.as_secs_f64(),
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            rss_bytes: resident_bytes().unwrap_or_default(),
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every plain number of the counters set to a value of its own.
    pub fn numbered() -> Counters {
        let mut json = serde_json::to_value(Counters::default()).expect("counters are JSON");
        let fields = json.as_object_mut().expect("an object").values_mut().filter(|v| v.is_u64());
        for (number, value) in (1_000_001..).zip(fields) {
            *value = number.into();
        }
        serde_json::from_value(json).expect("counters are JSON")
    }

    #[test]
    fn adding_forgets_no_field() {
        let mut sum = numbered();
        sum.add(&numbered());
        let one = serde_json::to_value(numbered()).expect("JSON");
        let two = serde_json::to_value(sum).expect("JSON");
        for (name, value) in one.as_object().expect("an object").iter().filter(|(_, v)| v.is_u64()) {
            assert_eq!(two[name].as_u64(), value.as_u64().map(|v| 2 * v), "{name}");
        }
    }

    #[test]
    fn a_distribution_is_what_was_recorded() {
        let mut histogram = hdrhistogram::Histogram::<u64>::new(3).expect("three digits are valid");
        (1..=1000).for_each(|value| histogram.record(value).expect("in range"));
        let d = Distribution::of(&histogram);
        assert_eq!(
            (d.count, d.sum, d.p50, d.p90, d.p99, d.p999, d.max),
            (1000, 500_500, 500, 900, 990, 999, 1000)
        );
        assert_eq!(
            Distribution::of(&hdrhistogram::Histogram::new(3).expect("valid")),
            Distribution::default()
        );
    }

    #[test]
    fn amplification_is_a_quotient() {
        let counters =
            |written_bytes, recorded_bytes| Counters { written_bytes, recorded_bytes, ..Counters::default() };
        assert_eq!(counters(0, 0).write_amplification(), 1.0);
        assert_eq!(counters(300, 200).write_amplification(), 1.5);
    }
}
