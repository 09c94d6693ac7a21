//! What one thread of the source has measured.
//!
//! Owns: counts, latencies, acknowledged deliveries, errors by kind. Promises: threads' parts add
//! up. Must not: decide anything.
use std::collections::BTreeMap;
use std::fmt;

use crate::limits;
use crate::report::Latency;
use crate::slots::SlotSet;
use crate::timeline::Share;

/// A kind of error; a server's reply makes one for each command and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Reply { command: &'static str, code: u16 },
    ConnectFailed,
    ConnectionLost,
    ReplyTimeout,
    BadReply,
    TlsFailed,
    NoTls,
    NoAuth,
    NoChunking,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Reply { command, code } => write!(f, "{command} {code}"),
            Kind::ConnectFailed => f.write_str("connect failed"),
            Kind::ConnectionLost => f.write_str("connection lost"),
            Kind::ReplyTimeout => f.write_str("no reply in time"),
            Kind::BadReply => f.write_str("reply not understood"),
            Kind::TlsFailed => f.write_str("TLS failed"),
            Kind::NoTls => f.write_str("STARTTLS not offered"),
            Kind::NoChunking => f.write_str("CHUNKING not offered"),
            Kind::NoAuth => f.write_str("AUTH not offered"),
        }
    }
}

/// How often an error was met, and the first text that came with it.
#[derive(Clone, Debug, Default)]
pub struct ErrorCount {
    pub count: u64,
    pub sample: String,
}

/// The measurements of one thread; the counts mean what [`crate::LoadReport`] says.
#[derive(Default)]
pub struct Stats {
    pub accepted: u64,
    pub rejected: u64,
    pub unknown: u64,
    pub unsent: u64,
    pub connections: u64,
    /// Content bytes of accepted messages.
    pub bytes: u64,
    /// Messages begun at a fixed rate, and those of them begun later than
    /// [`limits::LATE`] after their time.
    pub scheduled: u64,
    pub late_starts: u64,
    /// Run time of the last final reply.
    pub last_accept_us: u64,
    pub connect: Latency,
    pub tls: Latency,
    pub mail: Latency,
    pub rcpt: Latency,
    pub data: Latency,
    /// Of messages since the last [`Stats::take_share`]; earlier ones are in `whole_before`.
    pub whole: Latency,
    whole_before: Latency,
    /// From the intended time of a message to its MAIL.
    pub late: Latency,
    /// Time the thread was ready to run and had no processor.
    pub starved_us: u64,
    pub errors: BTreeMap<Kind, ErrorCount>,
    pub acknowledged: SlotSet,
    pub unresolved: SlotSet,
    /// Errors that shares have accounted for.
    told: BTreeMap<Kind, u64>,
}

impl Stats {
    /// Counts an error; `text` is kept for the first of its kind.
    pub fn error(&mut self, kind: Kind, text: &[u8]) {
        let error = self.errors.entry(kind).or_default();
        if error.count == 0 {
            let text = &text[..text.len().min(limits::QUOTED_REPLY_BYTES)];
            error.sample = text.escape_ascii().to_string();
        }
        error.count += 1;
    }
    /// What has come since the last share, for the timeline.
    pub fn take_share(&mut self) -> Share {
        self.whole_before.merge(&self.whole);
        let mut share = Share { latency: std::mem::take(&mut self.whole), errors: BTreeMap::new() };
        for (&kind, error) in &self.errors {
            let told = self.told.entry(kind).or_default();
            if error.count > *told {
                share.errors.insert(kind.to_string(), error.count - *told);
                *told = error.count;
            }
        }
        share
    }
    /// Latencies of all messages.
    pub fn all_whole(&self) -> Latency {
        let mut all = self.whole_before.clone();
        all.merge(&self.whole);
        all
    }
    pub fn merge(&mut self, other: &Stats) {
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.unknown += other.unknown;
        self.unsent += other.unsent;
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.scheduled += other.scheduled;
        self.late_starts += other.late_starts;
        self.starved_us = self.starved_us.max(other.starved_us);
        self.last_accept_us = self.last_accept_us.max(other.last_accept_us);
        self.connect.merge(&other.connect);
        self.tls.merge(&other.tls);
        self.mail.merge(&other.mail);
        self.rcpt.merge(&other.rcpt);
        self.data.merge(&other.data);
        self.whole.merge(&other.whole);
        self.whole_before.merge(&other.whole_before);
        self.late.merge(&other.late);
        for (&kind, error) in &other.errors {
            let mine = self.errors.entry(kind).or_default();
            if mine.count == 0 {
                mine.sample.clone_from(&error.sample);
            }
            mine.count += error.count;
        }
        self.acknowledged.merge(&other.acknowledged);
        self.unresolved.merge(&other.unresolved);
    }
}
