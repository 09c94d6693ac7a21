//! What a demonstration has found out, as JSON and as text.
//!
//! Owns: [`DemoReport`] and its two forms. Promises: each figure is defined where it stands. Must not:
//! measure.
use std::fmt;

use ringpost_loadgen::{Percentiles, Verdict};
use serde::Serialize;

use crate::control::Report;

/// The figures of one run.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    pub messages: u64,
    pub size_bytes: u64,
    pub connections: u32,
    /// As the server says: what its 250 was worth.
    pub durability: String,
    pub workers: u64,
    /// Messages per second from the first connection to the last acknowledgement.
    pub accepted_per_second: f64,
    /// Messages per second from the first connection to the last arrival.
    pub delivered_per_second: f64,
    /// From the first connection to the last arrival.
    pub seconds: f64,
    /// CPU of the server, user and system, from ready to an empty queue, for each message.
    pub server_cpu_us_per_message: f64,
    /// The same of the source and of the sink.
    pub source_cpu_us_per_message: f64,
    pub sink_cpu_us_per_message: f64,
    /// Resident memory of the server at the end.
    pub server_rss_bytes: u64,
    /// From MAIL to the 250 after the final dot, as the source saw it.
    pub accept_latency: Percentiles,
    /// From the moment the source wrote the message to the moment the sink had all of it.
    pub end_to_end_latency: Percentiles,
    pub verdict: Verdict,
    /// The server's own counters at the end.
    pub server: Report,
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = crate::config::grammar::show_size(self.size_bytes);
        writeln!(
            f,
            "{} messages of {size} over {} connections, durability {}, workers {}",
            self.messages, self.connections, self.durability, self.workers
        )?;
        writeln!(f, "  accepted    {:>8.0} messages/s", self.accepted_per_second)?;
        writeln!(
            f,
            "  delivered   {:>8.0} messages/s, the last one after {:.2} s",
            self.delivered_per_second, self.seconds
        )?;
        writeln!(
            f,
            "  CPU         {:>8.1} µs per message in the server ({:.1} source, {:.1} sink)",
            self.server_cpu_us_per_message, self.source_cpu_us_per_message, self.sink_cpu_us_per_message
        )?;
        writeln!(f, "  memory      {:>8.1} MB resident in the server", self.server_rss_bytes as f64 / 1e6)?;
        writeln!(f, "  {:<11} {}", "latency", Percentiles::HEAD)?;
        writeln!(f, "  {:<11} {}", "accept", self.accept_latency)?;
        writeln!(f, "  {:<11} {}", "end to end", self.end_to_end_latency)?;
        let commit = &self.server.counters.commit_us;
        if commit.count > 0 {
            let [p50, p90, p99, p999, max] =
                [commit.p50, commit.p90, commit.p99, commit.p999, commit.max].map(|us| us as f64 / 1e3);
            writeln!(
                f,
                "  {:<11} {:>9} {p50:>7.2} ms {p90:>7.2} ms {p99:>7.2} ms {p999:>7.2} ms {max:>7.2} ms",
                "commit", commit.count
            )?;
        }
        if cfg!(debug_assertions) {
            writeln!(f, "  (a debug build: for figures that mean something, cargo run --release)")?;
        }
        writeln!(f, "{}", self.verdict)
    }
}
