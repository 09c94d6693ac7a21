//! The server session: what a client says → what the driver must do (RFC 5321 §3, §4).
//!
//! CONTRACT (to be kept by whoever fills this in; split into files command.rs, body.rs, … as needed)
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;

/// What is the same for every session of a listener.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub hostname: Box<str>,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
}

/// Who is on the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub addr: IpAddr,
    /// Whether RCPT for foreign domains is accepted from this address (`--relay-from`).
    pub may_relay: bool,
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be made of the input: send the replies, read more, call again with the
    /// unconsumed rest followed by what was read.
    More,
    /// `354` stands in the replies. [`ServerSession::transaction`] is complete: the driver takes an id
    /// and writes the trace header. Then call again.
    BodyStarts,
    /// These bytes of the input (inside what was consumed) are body in wire form: dot-stuffed, up
    /// to and including the CRLF before the final dot.
    Body(Range<usize>),
    /// The final dot was seen. The driver stores the message and calls [`ServerSession::finish`]
    /// before the next `step`.
    BodyEnds,
    /// The message cannot be accepted (too large, bare LF, …). Drop what is held of it; the session
    /// swallows the rest and replies itself. Comes at most once per body, and no Body/BodyEnds after.
    BodyRefused,
    /// Send the replies, then close the connection.
    Close,
}

/// How a stored (or not stored) message is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `250 2.0.0 <id> queued`
    Accepted(MessageId),
    /// `452 4.3.1` no room in the spool.
    NoRoom,
    /// `451 4.3.0` the write failed or the server is stopping.
    Failed,
    /// `554 5.4.6` too many Received headers (RFC 5321 §6.3): the driver's scan found a loop.
    Loop,
}

/// The transaction whose body is being received.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// `received_at` is left 0 and `client` set; recipients are in RCPT order.
    pub envelope: Envelope,
    /// SIZE= the client declared (RFC 1870), 0 if none.
    pub declared_bytes: u64,
}

pub struct ServerSession {
    _config: Arc<ServerConfig>,
}

impl ServerSession {
    pub fn new(config: Arc<ServerConfig>, peer: Peer) -> ServerSession {
        let _ = (config, peer);
        unimplemented!()
    }
    /// Appends the 220 greeting.
    pub fn greet(&self, replies: &mut Vec<u8>) {
        let _ = replies;
        unimplemented!()
    }
    /// Appends `421 4.3.2` (shutting down) or `421 4.4.2` (timeout); the driver then closes.
    pub fn say_goodbye(&mut self, why: Goodbye, replies: &mut Vec<u8>) {
        let _ = (why, replies);
        unimplemented!()
    }
    /// Makes what it can of `input`: at most one step. Returns bytes consumed and the step.
    pub fn step(&mut self, input: &[u8], replies: &mut Vec<u8>) -> (usize, Step) {
        let _ = (input, replies);
        unimplemented!()
    }
    /// Valid from BodyStarts until `finish`/BodyRefused.
    pub fn transaction(&self) -> &Transaction {
        unimplemented!()
    }
    /// Takes the transaction out (after BodyEnds).
    pub fn take_transaction(&mut self) -> Transaction {
        unimplemented!()
    }
    /// HELO/EHLO name (already printable, bounded) and whether it was EHLO; for the Received header.
    pub fn greeting_of_client(&self) -> (&str, bool) {
        unimplemented!()
    }
    /// Answers the message whose body ended.
    pub fn finish(&mut self, verdict: Verdict, replies: &mut Vec<u8>) {
        let _ = (verdict, replies);
        unimplemented!()
    }
    /// True while between BodyStarts and the end of the body (the driver uses the data time-out and a large
    /// buffer then).
    pub fn in_body(&self) -> bool {
        unimplemented!()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    Stopping,
    TimedOut,
    TooManyConnections,
}
