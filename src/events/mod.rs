//! The delivery record stream: one JSON object per line and event (`--event-log`).
//!
//! Owns: [`Event`], the queue of events and the thread that writes them. Promises: a sender never
//! waits, so a slow disk holds no mail; what does not fit in the queue or cannot be written is
//! counted, never silently lost. Every line is ASCII and free of control characters, whatever the
//! text in it: it can be shown on a terminal. Must not: decide anything from what it records.
use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Serialize, Serializer};

use crate::clock::WallTime;
use crate::limits;
use crate::mail::id::MessageId;

mod json;
#[cfg(test)]
mod tests;

/// What happened to a message. Field names of the JSON are the field names here; `type` is the
/// variant in lower case; `time` is RFC 3339 with microseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// Accepted: the message is in the spool.
    Received {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        /// The reverse-path; empty for the null one.
        from: String,
        recipients: Vec<String>,
        bytes: u64,
        client: Option<IpAddr>,
        /// Who had logged in.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Protocol and cipher of the client's connection.
        #[serde(skip_serializing_if = "Option::is_none")]
        tls: Option<String>,
        /// Whom the client's certificate names.
        #[serde(skip_serializing_if = "Option::is_none")]
        certificate: Option<String>,
    },
    /// A client tried to log in.
    Login { user: String, client: IpAddr, mechanism: &'static str, success: bool },
    /// A receiver took it.
    Delivered {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        queued_ms: u64,
        tls: Option<String>,
        /// Who submitted it.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// An attempt failed for now.
    Deferred {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        #[serde(serialize_with = "json::time")]
        next: WallTime,
        /// Who submitted it.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// It is late, and its sender was told so by `report`.
    Delayed {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        #[serde(serialize_with = "json::time")]
        until: WallTime,
        #[serde(serialize_with = "as_text")]
        report: MessageId,
    },
    /// It failed for good; `bounce` is the notification this caused, if one was due.
    Failed {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        #[serde(serialize_with = "as_optional_text")]
        bounce: Option<MessageId>,
        /// Who submitted it.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// An operator changed what becomes of some of its recipients: `action` is hold, release, retry, fail
    /// or move (then `to` says where).
    Changed {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        action: &'static str,
        destination: String,
        to: Option<String>,
        recipients: u32,
        reason: String,
    },
    /// An operator's order has ended. Counts are of deliveries: a message to one destination.
    Operator {
        action: &'static str,
        selector: String,
        to: Option<String>,
        reason: String,
        matched: u64,
        changed: u64,
        in_flight: u64,
        error: Option<String>,
    },
    /// An operator suspended a destination.
    Suspended {
        destination: String,
        #[serde(serialize_with = "json::optional_time")]
        until: Option<WallTime>,
        reason: String,
    },
    /// An operator ended the suspension of a destination.
    Resumed { destination: String, reason: String },
    /// What is asked of a destination has changed by itself, for what it answered: so many connections and
    /// messages in an hour at most, or nothing until then; neither: back at its limits.
    Adapted {
        destination: String,
        connections: Option<u32>,
        per_hour: Option<u64>,
        #[serde(serialize_with = "json::optional_time")]
        until: Option<WallTime>,
    },
    /// An operator took it out of the queue.
    Removed {
        #[serde(serialize_with = "as_text")]
        id: MessageId,
        recipient: String,
        reason: String,
    },
}

/// One line of the log.
#[derive(Debug, Serialize)]
struct Record {
    #[serde(serialize_with = "json::time")]
    time: WallTime,
    #[serde(flatten)]
    event: Event,
}

/// What became of events that are not in the log.
#[derive(Debug, Default)]
struct Losses {
    queue_full: AtomicU64,
    unwritten: AtomicU64,
}

/// Sending side: never blocks; when the queue is full the event is dropped and counted.
#[derive(Clone, Debug)]
pub struct EventSender {
    queue: Option<Sender<Record>>,
    losses: Arc<Losses>,
}

/// Opens the file for append (`-` is standard output) and starts the writer thread. Dropping every
/// sender ends the thread after it has written all.
///
/// A new file gets mode 0600: it names who writes to whom.
pub fn start(path: &Path) -> anyhow::Result<(EventSender, JoinHandle<()>)> {
    let sink: Box<dyn Write + Send> = if path == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        Box::new(file.with_context(|| format!("cannot open the event log {}", path.display()))?)
    };
    let (sender, queue) = channel(limits::EVENT_QUEUE);
    let losses = Arc::clone(&sender.losses);
    let thread = std::thread::Builder::new()
        .name("events".into())
        .spawn(move || Writer::new(sink, losses).run(&queue))
        .context("cannot start the event log's thread")?;
    Ok((sender, thread))
}

fn channel(depth: usize) -> (EventSender, Receiver<Record>) {
    let (sender, receiver) = bounded(depth);
    (EventSender { queue: Some(sender), losses: Arc::default() }, receiver)
}

impl EventSender {
    /// A sender that throws everything away (no `--event-log`). `is_on` is false for it.
    pub fn off() -> EventSender {
        EventSender { queue: None, losses: Arc::default() }
    }
    /// Whether anyone listens: a caller may save itself the making of an event.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }
    /// Queues `event` as of `at`, or counts it as dropped.
    pub fn send(&self, at: WallTime, event: Event) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Record { time: at, event }).is_err() {
            self.losses.queue_full.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Events dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.losses.queue_full.load(Ordering::Relaxed)
    }
    /// Events lost because the log could not be written.
    pub fn unwritten(&self) -> u64 {
        self.losses.unwritten.load(Ordering::Relaxed)
    }
}

/// The thread's side: collects lines while events wait, writes when none do.
struct Writer {
    sink: Box<dyn Write + Send>,
    losses: Arc<Losses>,
    batch: Vec<u8>,
    events_in_batch: u64,
    /// The last write failed: said once, until one succeeds again.
    failing: bool,
    /// The last write stopped inside a line, which the next must end first.
    mid_line: bool,
}

impl Writer {
    fn new(sink: Box<dyn Write + Send>, losses: Arc<Losses>) -> Writer {
        let batch = Vec::with_capacity(limits::EVENT_BATCH_BYTES + 4096);
        Writer { sink, losses, batch, events_in_batch: 0, failing: false, mid_line: false }
    }

    fn run(&mut self, queue: &Receiver<Record>) {
        while let Ok(first) = queue.recv() {
            self.push(&first);
            while self.batch.len() < limits::EVENT_BATCH_BYTES {
                match queue.try_recv() {
                    Ok(record) => self.push(&record),
                    Err(_) => break,
                }
            }
            self.write();
        }
    }

    fn push(&mut self, record: &Record) {
        json::append_line(&mut self.batch, record);
        self.events_in_batch += 1;
    }

    fn write(&mut self) {
        if self.mid_line {
            self.batch.insert(0, b'\n');
        }
        match write_counted(&mut self.sink, &self.batch) {
            Ok(()) => (self.failing, self.mid_line) = (false, false),
            Err((written, error)) => {
                let done = &self.batch[..written];
                let lines = done.iter().filter(|&&b| b == b'\n').count() as u64
                    - u64::from(self.mid_line && written > 0);
                let lost = self.events_in_batch - lines;
                self.losses.unwritten.fetch_add(lost, Ordering::Relaxed);
                self.mid_line = done.last().map_or(self.mid_line, |&b| b != b'\n');
                if !self.failing {
                    tracing::error!(%error, lost, "the event log cannot be written; events are lost until it can");
                }
                self.failing = true;
            }
        }
        self.batch.clear();
        self.events_in_batch = 0;
    }
}

/// Writes and flushes all of `bytes`; on an error also tells how many went out before it.
fn write_counted(sink: &mut dyn Write, bytes: &[u8]) -> Result<(), (usize, std::io::Error)> {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return Err((written, std::io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err((written, e)),
        }
    }
    sink.flush().map_err(|e| (written, e))
}

fn as_text<S: Serializer>(id: &MessageId, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(id)
}

fn as_optional_text<S: Serializer>(id: &Option<MessageId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.collect_str(id),
        None => s.serialize_none(),
    }
}
