//! The delivery record stream: one JSON object per event (`--event-log`).
//!
//! CONTRACT (to be kept by whoever fills this in)
use std::net::IpAddr;
use std::path::Path;

use crate::clock::WallTime;
use crate::mail::id::MessageId;

/// What happened to a message. Field names of the JSON are the field names here; `type` is the
/// variant in lower case; `time` is RFC 3339 with microseconds.
#[derive(Clone, Debug)]
pub enum Event {
    Received {
        id: MessageId,
        from: String,
        recipients: Vec<String>,
        bytes: u64,
        client: Option<IpAddr>,
    },
    Delivered {
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        queued_ms: u64,
        tls: Option<String>,
    },
    Deferred {
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        next: WallTime,
    },
    Failed {
        id: MessageId,
        recipient: String,
        host: String,
        reply: String,
        attempts: u8,
        bounce: Option<MessageId>,
    },
    Removed {
        id: MessageId,
        recipient: String,
        reason: String,
    },
}

/// Sending side: never blocks; when the queue is full the event is dropped and counted.
#[derive(Clone)]
pub struct EventSender {
    _private: (),
}

/// Opens the file for append (`-` is standard output) and starts the writer thread. Dropping every
/// sender ends the thread after it has written all.
pub fn start(path: &Path) -> anyhow::Result<(EventSender, std::thread::JoinHandle<()>)> {
    let _ = path;
    unimplemented!()
}

impl EventSender {
    /// A sender that throws everything away (no `--event-log`). `is_on` is false for it.
    pub fn off() -> EventSender {
        unimplemented!()
    }
    pub fn is_on(&self) -> bool {
        unimplemented!()
    }
    pub fn send(&self, at: WallTime, event: Event) {
        let _ = (at, event);
        unimplemented!()
    }
    pub fn dropped(&self) -> u64 {
        unimplemented!()
    }
}
