//! What one thread of the source has measured.
//!
//! Owns: counts, latencies, acknowledged deliveries, errors by kind. Promises: threads' parts add
//! up; what began in the warm-up is in no latency. Must not: decide anything.
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::cpu::Strain;
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
    NoEightBit,
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
            Kind::NoEightBit => f.write_str("8BITMIME not offered"),
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

/// A part of a message's way that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Connect,
    Tls,
    Mail,
    Rcpt,
    Data,
}

/// The measurements of one thread; the counts mean what [`crate::LoadReport`] says.
#[derive(Default)]
pub struct Stats {
    /// Run time before which nothing is measured.
    pub warmup_us: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub unknown: u64,
    pub unsent: u64,
    pub connections: u64,
    /// Content bytes of accepted messages.
    pub bytes: u64,
    /// Of `accepted` and `bytes`, what was accepted in the warm-up.
    pub warmup_accepted: u64,
    pub warmup_bytes: u64,
    /// Messages whose time came, at a fixed rate; those of them behind the warm-up; and those of these
    /// begun later than [`limits::LATE`] after their time, or not at all.
    pub due: u64,
    pub scheduled: u64,
    pub late_starts: u64,
    /// Messages whose time came more than [`limits::LATE`] before the run was ended, and never begun.
    pub not_begun: u64,
    /// When the last message was due.
    pub last_due_us: u64,
    /// There was more to send when the run was ended.
    pub is_cut: bool,
    /// Run time of the last final reply.
    pub last_accept_us: u64,
    pub connect: Latency,
    pub tls: Latency,
    pub mail: Latency,
    pub rcpt: Latency,
    pub data: Latency,
    /// Of messages since the last [`Stats::take_share`]; earlier ones are in `whole_before`.
    whole: Latency,
    whole_before: Latency,
    /// Of messages of the warm-up since the last share, for the picture only.
    warmup: Latency,
    /// From the intended time of a message to its MAIL.
    pub late: Latency,
    /// CPU of the threads behind the warm-up.
    pub cpu: Duration,
    /// What the hardest pressed thread had of its time behind the warm-up, and in its worst stretch.
    pub strain: Strain,
    pub worst: Strain,
    pub errors: BTreeMap<Kind, ErrorCount>,
    pub acknowledged: SlotSet,
    pub unresolved: SlotSet,
    /// Errors, and accepted messages, that shares have accounted for.
    told: BTreeMap<Kind, u64>,
    told_accepted: u64,
}

impl Stats {
    /// Of a run in which nothing before `warmup_us` is measured.
    pub fn new(warmup_us: u64) -> Stats {
        Stats { warmup_us, ..Stats::default() }
    }
    /// Counts an error; `text` is kept for the first of its kind.
    pub fn error(&mut self, kind: Kind, text: &[u8]) {
        let error = self.errors.entry(kind).or_default();
        if error.count == 0 {
            let text = &text[..text.len().min(limits::QUOTED_REPLY_BYTES)];
            error.sample = text.escape_ascii().to_string();
        }
        error.count += 1;
    }
    /// Notes how long a stage took that ends now.
    pub fn timed(&mut self, stage: Stage, since_us: u64, now_us: u64) {
        if since_us < self.warmup_us {
            return;
        }
        let latency = match stage {
            Stage::Connect => &mut self.connect,
            Stage::Tls => &mut self.tls,
            Stage::Mail => &mut self.mail,
            Stage::Rcpt => &mut self.rcpt,
            Stage::Data => &mut self.data,
        };
        latency.record(now_us.saturating_sub(since_us));
    }
    /// Notes how long a message took from its beginning until now: to its final reply, or, where none came
    /// to one that was due, at least.
    pub fn took(&mut self, begun_us: u64, now_us: u64) {
        let is_warmup = begun_us < self.warmup_us;
        let latency = if is_warmup { &mut self.warmup } else { &mut self.whole };
        latency.record(now_us.saturating_sub(begun_us));
    }
    /// Notes that a message due at `intended_us` is begun now, or is given up.
    pub fn begun(&mut self, intended_us: u64, now_us: u64) {
        self.due += 1;
        self.last_due_us = self.last_due_us.max(intended_us);
        if intended_us < self.warmup_us {
            return;
        }
        let late_us = now_us.saturating_sub(intended_us);
        self.late.record(late_us);
        self.scheduled += 1;
        self.late_starts += u64::from(late_us > limits::LATE.as_micros() as u64);
    }
    /// What has come since the last share, for the timeline.
    pub fn take_share(&mut self) -> Share {
        self.whole_before.merge(&self.whole);
        let mut share = Share {
            accepted: self.accepted - self.told_accepted,
            latency: std::mem::take(&mut self.whole),
            warmup: std::mem::take(&mut self.warmup),
            errors: BTreeMap::new(),
        };
        self.told_accepted = self.accepted;
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
        self.warmup_accepted += other.warmup_accepted;
        self.warmup_bytes += other.warmup_bytes;
        self.cpu += other.cpu;
        self.due += other.due;
        self.scheduled += other.scheduled;
        self.late_starts += other.late_starts;
        self.not_begun += other.not_begun;
        self.is_cut |= other.is_cut;
        self.strain = self.strain.or(other.strain);
        self.worst = self.worst.or(other.worst);
        self.last_due_us = self.last_due_us.max(other.last_due_us);
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
