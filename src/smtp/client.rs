//! The client session: what is to be sent and what was answered, two cursors (RFC 5321, RFC 2920).
//!
//! CONTRACT (to be kept by whoever fills this in; split into files as needed)
use crate::mail::envelope::BodyKind;
use crate::mail::reply::Reply;

#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub ehlo_name: Box<str>,
    /// Use STARTTLS when offered. The driver clears it for the retry after a failed handshake.
    pub starttls: bool,
}

/// What the peer's EHLO offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub pipelining: bool,
    pub eight_bit_mime: bool,
    pub starttls: bool,
    pub chunking: bool,
    pub smtputf8: bool,
    pub dsn: bool,
    pub enhanced_codes: bool,
    /// SIZE: `Some(0)` means no fixed limit (RFC 1870).
    pub size: Option<u64>,
}

/// One message for one destination. `key` is the driver's, handed back in events.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub key: u64,
    /// Without brackets; empty for the null path.
    pub reverse_path: &'a str,
    pub recipients: &'a [&'a str],
    pub size_bytes: u64,
    pub body_kind: BodyKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// Nothing more can be made of the input: write what is in `out`, read, call again.
    More,
    /// 220 to STARTTLS came. The driver drops unconsumed input, does the handshake, then calls
    /// [`ClientSession::tls_established`] (which starts over with EHLO).
    StartTls,
    /// The session may take transactions now (greeting, EHLO and TLS are done).
    Ready,
    /// 354 came for this message: the driver appends the body in wire form and `.CRLF` to `out`,
    /// then calls [`ClientSession::body_sent`]. After that the next message may be started.
    SendBody { key: u64 },
    /// Every recipient of the message has its final answer, one reply each in the given order. Where
    /// all recipients were refused, or MAIL or DATA was, no SendBody comes before (if the peer says 354
    /// although no recipient was accepted, the session sends the lone dot itself).
    Done { key: u64, replies: Vec<Reply> },
    /// The peer cannot be used: bad greeting (4xx/5xx), EHLO and HELO refused, 421, garbage,
    /// over-long reply. Messages without Done have not been answered: those whose final dot was
    /// sent may have been taken. The driver closes.
    Failed(Reply),
    /// 221 to QUIT (or any reply to it): the driver closes.
    Bye,
}

pub struct ClientSession {
    _config: ClientConfig,
}

impl ClientSession {
    pub fn new(config: ClientConfig) -> ClientSession {
        let _ = &config;
        unimplemented!()
    }
    /// Makes what it can of `input`: at most one event; may append commands to `out`.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, ClientEvent) {
        let _ = (input, out);
        unimplemented!()
    }
    pub fn tls_established(&mut self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
    /// Whether `start` may be called now: ready, and no earlier message between its MAIL and its
    /// body_sent (with PIPELINING), or no earlier message at all without its Done (without it).
    pub fn can_start(&self) -> bool {
        unimplemented!()
    }
    /// Starts a transaction: appends MAIL, RCPTs and DATA (pipelined when offered), else MAIL alone;
    /// the rest follows from `feed`. A message the peer's capabilities rule out (SIZE exceeded) comes
    /// back as Done with a local reply (552 5.3.4) from the next `feed` (which may be called with empty input).
    pub fn start(&mut self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        let _ = (message, out);
        unimplemented!()
    }
    pub fn body_sent(&mut self, key: u64) {
        let _ = key;
        unimplemented!()
    }
    /// Whether the final dot of `key` has been sent (its fate is unknown if the connection dies).
    pub fn is_body_sent(&self, key: u64) -> bool {
        let _ = key;
        unimplemented!()
    }
    /// Appends QUIT.
    pub fn quit(&mut self, out: &mut Vec<u8>) {
        let _ = out;
        unimplemented!()
    }
    pub fn capabilities(&self) -> &Capabilities {
        unimplemented!()
    }
    /// What the session waits for, for the driver's time-out.
    pub fn phase(&self) -> ClientPhase {
        unimplemented!()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPhase {
    Greeting,
    Command,
    DataStart,
    DataEnd,
    Idle,
    Quit,
}
