//! The client session: what is to be sent and what was answered, two cursors (RFC 5321, RFC 2920).
//!
//! Owns: the opening of a connection (greeting, EHLO or HELO, STARTTLS), the order of transactions on it,
//! and which reply answers what. Whether and how a message fits what the peer offers: `fit`. Promises: the same events however the input was split; each message
//! started ends in one Done or is left unanswered by one Failed; CR and LF can never enter a command;
//! at most [`limits::CONNECTION_WINDOW`] messages and one more are in flight. Must not: choose hosts,
//! judge certificates, retry, or touch the body of a message.
use std::collections::VecDeque;

use crate::limits;
use crate::mail::envelope::Envelope;
use crate::mail::reply::Reply;
use crate::smtp::reply::ReplyReader;

mod fit;
mod transaction;
use transaction::{Command, Outcome, Transaction};

#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The name to say in EHLO: a valid domain or address literal.
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
    pub binary_mime: bool,
    pub smtputf8: bool,
    pub dsn: bool,
    pub enhanced_codes: bool,
    /// SIZE: `Some(0)` means no fixed limit (RFC 1870).
    pub size: Option<u64>,
    /// LIMITS RCPTMAX (RFC 9422 §4.2): recipients in one transaction.
    pub recipients: Option<usize>,
    /// LIMITS MAILMAX (RFC 9422 §4.1): transactions in one session.
    pub transactions: Option<u64>,
}

/// One message for one destination. `key` is the driver's, handed back in events.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub key: u64,
    pub envelope: &'a Envelope,
    /// Indices of those it goes to in this transaction.
    pub recipients: &'a [u16],
    /// As it is stored. Its length is told, and where the peer lacks an extension it is looked at.
    pub body: &'a [u8],
}

/// How a body goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// The stored bytes, which are dot-stuffed, then `.CRLF`.
    Stored,
    /// The stored bytes with dots doubled and a CRLF behind the last line if it has none, then `.CRLF`
    /// ([`DotStuffer`](crate::smtp::body::DotStuffer)).
    Stuffed,
    /// The stored bytes and nothing else: BDAT has told how many.
    Chunk,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// Nothing more can be made of the input: write what is in `out`, read, call again.
    More,
    /// 220 to STARTTLS came. The rest of the input was dropped with it (what a peer, or someone between,
    /// sends in the clear behind 220 must not be taken for its words under TLS). The driver does the
    /// handshake, then calls [`ClientSession::tls_established`] (which starts over with EHLO).
    StartTls,
    /// The session may take transactions now (greeting, EHLO and TLS are done).
    Ready,
    /// The peer waits for the body of this message (354, or recipients were accepted and BDAT is in `out`):
    /// the driver appends it to `out` as `transfer` says, then calls [`ClientSession::body_sent`]. After
    /// that the next message may be started.
    SendBody { key: u64, transfer: Transfer },
    /// Every recipient of the message has its final answer, one reply each in the given order. Where
    /// all recipients were refused, or MAIL or DATA was, no SendBody comes before (if the peer says 354
    /// although no recipient was accepted, the session sends the lone dot itself).
    Done { key: u64, replies: Vec<Reply> },
    /// The peer cannot be used: bad greeting (4xx/5xx), EHLO and HELO refused, 421, garbage,
    /// over-long reply. Messages without Done have not been answered: those whose final dot was
    /// sent may have been taken. What single recipients were told stands in
    /// [`ClientSession::refusals`]. The driver closes.
    Failed(Reply),
    /// 221 to QUIT (or any reply to it): the driver closes.
    Bye,
}

/// What the session waits for, for the driver's time-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPhase {
    Greeting,
    Command,
    DataStart,
    DataEnd,
    Idle,
    Quit,
}

/// How far the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    /// Between 220 to STARTTLS and `tls_established`.
    Handshake,
    Open,
    /// QUIT was sent; once the messages in flight are answered, the next reply ends it.
    Quit,
    Over,
    Failed(Reply),
}

/// One connection to a peer, from its greeting to its end.
#[derive(Debug)]
pub struct ClientSession {
    config: ClientConfig,
    stage: Stage,
    secure: bool,
    capabilities: Capabilities,
    reader: ReplyReader,
    /// In the order they were started. Replies belong to the first.
    transactions: VecDeque<Transaction>,
    /// The peer holds a transaction that ended without a final dot: RSET goes before the next MAIL.
    left_open: bool,
    /// Transactions begun, against the peer's MAILMAX.
    begun: u64,
    /// Events that need no input; at most one, because nothing can be started until it is taken.
    pending: VecDeque<ClientEvent>,
}

impl ClientSession {
    pub fn new(config: ClientConfig) -> ClientSession {
        debug_assert!(is_safe(&config.ehlo_name));
        ClientSession {
            config,
            stage: Stage::Greeting,
            secure: false,
            capabilities: Capabilities::default(),
            reader: ReplyReader::default(),
            transactions: VecDeque::new(),
            left_open: false,
            begun: 0,
            pending: VecDeque::new(),
        }
    }

    /// Makes what it can of `input`: at most one event; may append commands to `out`. What was not
    /// consumed must stand at the start of the next `input`; behind `More` that is less than
    /// [`limits::PEER_REPLY_LINE_BYTES`].
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, ClientEvent) {
        if let Some(event) = self.pending.pop_front() {
            return (0, event);
        }
        match &self.stage {
            Stage::Failed(reply) => return (input.len(), ClientEvent::Failed(reply.clone())),
            Stage::Over => return (input.len(), ClientEvent::Bye),
            Stage::Handshake => return (input.len(), ClientEvent::More),
            _ => {}
        }
        let mut consumed = 0;
        loop {
            match self.reader.read(&input[consumed..]) {
                Err(garbage) => return (input.len(), self.fail_garbage(&garbage.to_string())),
                Ok((bytes, None)) => return (consumed + bytes, ClientEvent::More),
                Ok((bytes, Some(code))) => {
                    consumed += bytes;
                    match self.answer(code, out) {
                        None => {}
                        Some(ClientEvent::StartTls) => return (input.len(), ClientEvent::StartTls),
                        Some(event) => return (consumed, event),
                    }
                }
            }
        }
    }

    /// Whether `feed` has an event that needs no input: the driver must not wait for the peer before it.
    pub fn has_event(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The TLS handshake is done: what was learned in the clear is forgotten, and EHLO is appended
    /// (RFC 3207 §4.2).
    pub fn tls_established(&mut self, out: &mut Vec<u8>) {
        debug_assert_eq!(self.stage, Stage::Handshake);
        self.secure = true;
        self.capabilities = Capabilities::default();
        self.reader = ReplyReader::default();
        self.say_hello("EHLO", Stage::Ehlo, out);
    }

    /// Whether `start` may be called now: ready, the last events taken, room in the window, no earlier
    /// message between its MAIL and its body_sent (with PIPELINING), or no earlier message at all
    /// without its Done (without it), and the peer's MAILMAX not reached.
    pub fn can_start(&self) -> bool {
        self.is_at_rest() && !self.is_spent()
    }

    /// As `can_start`, whatever the peer's MAILMAX: QUIT may be said.
    pub fn is_at_rest(&self) -> bool {
        let in_line = if self.capabilities.pipelining {
            self.transactions.len() <= limits::CONNECTION_WINDOW
                && self.transactions.iter().all(Transaction::is_sent)
        } else {
            self.transactions.is_empty()
        };
        self.stage == Stage::Open && self.pending.is_empty() && in_line
    }

    /// Starts a transaction, which [`ClientSession::can_start`] must allow: appends MAIL, RCPTs and DATA
    /// (pipelined when offered), else MAIL alone; the rest follows from `feed`. Where a peer pipelines, the
    /// driver must read while it writes: a peer may wait with reading until its replies are taken
    /// (RFC 2920 §3.1).
    ///
    /// A message that cannot go this way comes back as Done with local replies from the next `feed`
    /// (which may be called with empty input, see [`ClientSession::has_event`]); `fit` says which.
    pub fn start(&mut self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        debug_assert!(self.can_start());
        let replies = match fit::fit(&message, &self.capabilities) {
            _ if message.recipients.is_empty() => Vec::new(),
            Ok(fit) => {
                let resets = std::mem::take(&mut self.left_open);
                self.begun += 1;
                self.transactions.push_back(Transaction::start(
                    &message,
                    &self.capabilities,
                    &fit,
                    resets,
                    out,
                ));
                return;
            }
            Err(reply) => vec![reply; message.recipients.len()],
        };
        self.pending.push_back(ClientEvent::Done { key: message.key, replies });
    }

    /// Whether the peer takes no further transaction on this connection (RFC 9422 §4.1).
    pub fn is_spent(&self) -> bool {
        self.capabilities.transactions.is_some_and(|most| self.begun >= most)
    }

    /// The body of `key` and its final dot, if it has one, are in `out`. Must follow SendBody.
    pub fn body_sent(&mut self, key: u64) {
        let transaction = self.transactions.iter_mut().find(|t| t.key == key && t.is_body_due());
        debug_assert!(transaction.is_some(), "no body was asked for");
        if let Some(transaction) = transaction {
            transaction.body_sent();
        }
    }

    /// Whether the final dot or chunk of `key` has been sent and is not answered (its fate is unknown if the
    /// connection dies).
    pub fn is_body_sent(&self, key: u64) -> bool {
        self.find(key).is_some_and(Transaction::is_body_sent)
    }

    /// Whether the peer has answered anything about the message.
    pub fn is_answered(&self, key: u64) -> bool {
        self.find(key).is_some_and(Transaction::is_answered)
    }

    /// What the recipients of a message without Done were refused with so far, in the given order: a
    /// refusal holds although the connection failed. Empty for an unknown key.
    pub fn refusals(&self, key: u64) -> &[Option<Reply>] {
        self.find(key).map_or(&[], Transaction::refusals)
    }

    /// Appends QUIT. No message may be between its MAIL and its body_sent; those behind it are still
    /// answered before Bye.
    pub fn quit(&mut self, out: &mut Vec<u8>) {
        if !matches!(self.stage, Stage::Failed(_) | Stage::Over | Stage::Quit) {
            self.stage = Stage::Quit;
            out.extend_from_slice(b"QUIT\r\n");
        }
    }

    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What the session waits for, for the driver's time-out. Idle where it waits for the driver.
    pub fn phase(&self) -> ClientPhase {
        match (&self.stage, self.transactions.front().and_then(Transaction::awaited)) {
            (Stage::Greeting, _) => ClientPhase::Greeting,
            (Stage::Ehlo | Stage::Helo | Stage::StartTls, _) => ClientPhase::Command,
            (Stage::Handshake | Stage::Over | Stage::Failed(_), _) => ClientPhase::Idle,
            (_, Some(Command::Rset | Command::Mail | Command::Rcpt(_))) => ClientPhase::Command,
            (_, Some(Command::Data)) => ClientPhase::DataStart,
            (_, Some(Command::End)) => ClientPhase::DataEnd,
            (Stage::Open, None) => ClientPhase::Idle,
            (Stage::Quit, None) => ClientPhase::Quit,
        }
    }

    fn find(&self, key: u64) -> Option<&Transaction> {
        self.transactions.iter().find(|t| t.key == key)
    }

    /// Takes a whole reply, which stands in the reader.
    fn answer(&mut self, code: u16, out: &mut Vec<u8>) -> Option<ClientEvent> {
        let awaited = self.transactions.front().and_then(Transaction::awaited);
        match (&self.stage, awaited) {
            (Stage::Quit, None) => {
                self.stage = Stage::Over;
                Some(ClientEvent::Bye)
            }
            (Stage::Open | Stage::Quit, Some(command)) => self.answer_transaction(code, command, out),
            (Stage::Open, None) => Some(self.spoken_out_of_turn(code)),
            _ => self.answer_opening(code, out),
        }
    }

    /// Takes a reply before the session is open.
    fn answer_opening(&mut self, code: u16, out: &mut Vec<u8>) -> Option<ClientEvent> {
        match (&self.stage, code) {
            (_, 421) => Some(self.fail(self.reader.reply())),
            (_, 300..400) => Some(self.fail_garbage("a go-ahead before any message")),
            (Stage::Greeting, 200..300) => {
                self.say_hello("EHLO", Stage::Ehlo, out);
                None
            }
            (Stage::Ehlo, 200..300) => {
                self.capabilities = capabilities(&self.reader);
                if !(self.config.starttls && self.capabilities.starttls && !self.secure) {
                    return Some(self.open());
                }
                out.extend_from_slice(b"STARTTLS\r\n");
                self.stage = Stage::StartTls;
                None
            }
            (Stage::Ehlo, 500..) => {
                self.say_hello("HELO", Stage::Helo, out);
                None
            }
            (Stage::Helo, 200..300) => Some(self.open()),
            (Stage::StartTls, 200..300) => {
                self.stage = Stage::Handshake;
                Some(ClientEvent::StartTls)
            }
            // TLS was offered, but is not to be had now: opportunistic TLS goes on without.
            (Stage::StartTls, _) => Some(self.open()),
            _ => Some(self.fail(self.reader.reply())),
        }
    }

    fn answer_transaction(&mut self, code: u16, command: Command, out: &mut Vec<u8>) -> Option<ClientEvent> {
        // 421 ends the connection. To a final dot it is the message's answer as well.
        if code == 421 && command != Command::End {
            return Some(self.fail(self.reader.reply()));
        }
        let transaction = self.transactions.front_mut()?;
        let key = transaction.key;
        match transaction.answer(code, &self.reader, out) {
            Outcome::Waiting => None,
            Outcome::SendBody(transfer) => Some(ClientEvent::SendBody { key, transfer }),
            Outcome::Done(replies) => {
                self.left_open |= transaction.is_left_open();
                self.transactions.pop_front();
                if code == 421 {
                    let failed = self.fail(self.reader.reply());
                    self.pending.push_back(failed);
                }
                Some(ClientEvent::Done { key, replies })
            }
            Outcome::Nonsense => {
                let said = self.reader.reply();
                Some(self.fail_garbage(&format!("a reply that cannot answer {command:?}: {said}")))
            }
        }
    }

    /// A reply that nothing waits for: 421 says that the peer goes away; one to a body that is not sent
    /// yet refuses it early; anything else means that the cursors cannot be trusted any more.
    fn spoken_out_of_turn(&mut self, code: u16) -> ClientEvent {
        let reply = self.reader.reply();
        match self.transactions.front_mut() {
            Some(transaction) if code >= 500 => transaction.refuse_rest(&reply),
            Some(_) if code >= 400 => {}
            None if code == 421 => {}
            _ => return self.fail_garbage(&format!("a reply that nothing asked for: {reply}")),
        }
        self.fail(reply)
    }

    fn say_hello(&mut self, verb: &str, stage: Stage, out: &mut Vec<u8>) {
        self.stage = stage;
        for part in [verb, " ", &self.config.ehlo_name, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    fn open(&mut self) -> ClientEvent {
        self.stage = Stage::Open;
        ClientEvent::Ready
    }

    fn fail(&mut self, reply: Reply) -> ClientEvent {
        self.stage = Stage::Failed(reply.clone());
        ClientEvent::Failed(reply)
    }

    fn fail_garbage(&mut self, why: &str) -> ClientEvent {
        self.fail(Reply::local(451, (4, 5, 0), &format!("the peer does not speak SMTP: {why}")))
    }
}

/// Whether `text` may stand in a command: printable ASCII.
fn is_safe(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b' '..=b'~'))
}

/// What the lines behind the first of an EHLO reply offer (RFC 5321 §4.1.1.1).
fn capabilities(reader: &ReplyReader) -> Capabilities {
    let mut offered = Capabilities::default();
    for line in reader.texts().skip(1) {
        let mut words = line.split(|b| *b == b' ').filter(|w| !w.is_empty());
        match words.next().unwrap_or_default().to_ascii_uppercase().as_slice() {
            b"PIPELINING" => offered.pipelining = true,
            b"8BITMIME" => offered.eight_bit_mime = true,
            b"STARTTLS" => offered.starttls = true,
            b"CHUNKING" => offered.chunking = true,
            b"BINARYMIME" => offered.binary_mime = true,
            b"SMTPUTF8" => offered.smtputf8 = true,
            b"DSN" => offered.dsn = true,
            b"ENHANCEDSTATUSCODES" => offered.enhanced_codes = true,
            // A limit that cannot be read is none; the peer will say so itself.
            b"SIZE" => {
                let limit = words.next().and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
                offered.size = Some(limit.unwrap_or(0));
            }
            b"LIMITS" => words.for_each(|word| take_limit(word, &mut offered)),
            _ => {}
        }
    }
    offered
}

/// One limit of RFC 9422 §3. One that is not known, or is no limit at all, is passed over.
fn take_limit(word: &[u8], offered: &mut Capabilities) {
    let Some((name, value)) = std::str::from_utf8(word).ok().and_then(|word| word.split_once('=')) else {
        return;
    };
    let value = value.parse::<u64>().ok().filter(|value| *value > 0);
    if name.eq_ignore_ascii_case("RCPTMAX") {
        offered.recipients = value.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
    } else if name.eq_ignore_ascii_case("MAILMAX") {
        offered.transactions = value;
    }
}

#[cfg(test)]
mod tests;
