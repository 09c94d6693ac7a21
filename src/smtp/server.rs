//! The server session: what a client says → what the driver must do (RFC 5321 §3, §4).
//!
//! Owns: the order of commands, the transaction that they build, every reply. Promises: the same replies
//! and steps however the input was split; at most [`limits::REPLY_BYTES`] and one reply more are
//! pending; a client that only errs or only talks is sent away; a message ends at CRLF.CRLF only and
//! is answered once. Must not: read clocks, sockets or files, or decide what happens to a message.
use std::io::Write;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::body::{BodyReader, Piece};
use super::command::{self, Command, CommandError, ForwardPath, MailParameters};
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::{Address, ReversePath};
use crate::mail::envelope::{BodyForm, Envelope, Recipient};
use crate::mail::id::MessageId;
use crate::mail::text;

/// What is the same for every session of a listener.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Our own name: a valid domain.
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
    /// unconsumed rest followed by what was read. Where more than [`limits::REPLY_BYTES`] of replies were
    /// pending, commands may be left in the rest although they are complete: call again when the
    /// replies are sent, before reading.
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

/// Why the driver ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    Stopping,
    TimedOut,
    TooManyConnections,
}

/// What the input is read as.
#[derive(Debug)]
enum State {
    Commands,
    /// The rest of a line that was too long, to be dropped up to its CRLF.
    LongLine,
    Body(BodyReader),
    /// Between BodyEnds and `finish`.
    Verdict,
    Closed,
}

/// One client's connection, from the greeting to its end.
#[derive(Debug)]
pub struct ServerSession {
    config: Arc<ServerConfig>,
    peer: Peer,
    state: State,
    /// The HELO or EHLO name; empty before the first.
    helo: String,
    esmtp: bool,
    /// From MAIL to the end of the transaction.
    transaction: Option<Transaction>,
    /// Whether a RCPT of this transaction was refused.
    recipient_refused: bool,
    /// Bytes of the recipients taken, as `limits::RECIPIENTS_BYTES` counts them.
    recipients_bytes: usize,
    /// Since the last accepted message.
    bad_commands: u32,
    /// Since the last accepted recipient or message.
    idle_commands: u32,
}

impl ServerSession {
    pub fn new(config: Arc<ServerConfig>, peer: Peer) -> ServerSession {
        ServerSession {
            config,
            peer,
            state: State::Commands,
            helo: String::new(),
            esmtp: false,
            transaction: None,
            recipient_refused: false,
            recipients_bytes: 0,
            bad_commands: 0,
            idle_commands: 0,
        }
    }

    /// Appends the 220 greeting.
    pub fn greet(&self, replies: &mut Vec<u8>) {
        push(replies, &["220 ", &self.config.hostname, " ESMTP ringpost\r\n"]);
    }

    /// Appends `421 4.3.2` (shutting down), `421 4.4.2` (timeout) or `421 4.7.0` (too many connections);
    /// the driver then closes, and every further `step` says so.
    pub fn say_goodbye(&mut self, why: Goodbye, replies: &mut Vec<u8>) {
        let (code, text) = match why {
            Goodbye::Stopping => ("421 4.3.2 ", " Service shutting down\r\n"),
            Goodbye::TimedOut => ("421 4.4.2 ", " Timeout, closing the connection\r\n"),
            Goodbye::TooManyConnections => ("421 4.7.0 ", " Too many connections\r\n"),
        };
        push(replies, &[code, &self.config.hostname, text]);
        self.state = State::Closed;
    }

    /// Makes what it can of `input`: at most one step. Returns bytes consumed and the step. Commands are
    /// taken until one makes a step or none is complete, so pipelined ones (RFC 2920) are answered together.
    pub fn step(&mut self, input: &[u8], replies: &mut Vec<u8>) -> (usize, Step) {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let before = consumed;
            let step = match &mut self.state {
                State::Commands if replies.len() > limits::REPLY_BYTES => None,
                State::Commands => match next_line(rest) {
                    Line::Whole(line) => {
                        consumed += line.len() + CRLF.len();
                        self.obey(line, replies)
                    }
                    Line::Partial => None,
                    Line::TooLong => {
                        self.state = State::LongLine;
                        continue;
                    }
                },
                State::LongLine => {
                    let (bytes, ended) = skip_line(rest);
                    consumed += bytes;
                    if ended {
                        self.state = State::Commands;
                        self.refuse(CommandError::LineTooLong, replies)
                    } else {
                        None
                    }
                }
                State::Body(_) => self.read_body(rest, &mut consumed, replies),
                State::Verdict => Some(Step::BodyEnds),
                State::Closed => {
                    consumed = input.len();
                    Some(Step::Close)
                }
            };
            match step {
                Some(step) => return (consumed, step),
                None if consumed == before => return (consumed, Step::More),
                None => {}
            }
        }
    }

    /// Valid from BodyStarts until `finish`, `take_transaction` or BodyRefused.
    ///
    /// # Panics
    /// At any other time.
    pub fn transaction(&self) -> &Transaction {
        self.transaction.as_ref().expect("a body belongs to a transaction")
    }

    /// Takes the transaction out (after BodyEnds).
    ///
    /// # Panics
    /// Where [`ServerSession::transaction`] would.
    pub fn take_transaction(&mut self) -> Transaction {
        self.transaction.take().expect("a body belongs to a transaction")
    }

    /// HELO/EHLO name (already printable, bounded) and whether it was EHLO; for the Received header.
    pub fn greeting_of_client(&self) -> (&str, bool) {
        (&self.helo, self.esmtp)
    }

    /// Answers the message whose body ended.
    pub fn finish(&mut self, verdict: Verdict, replies: &mut Vec<u8>) {
        debug_assert!(matches!(self.state, State::Verdict));
        match verdict {
            Verdict::Accepted(id) => {
                write!(replies, "250 2.0.0 {id} queued\r\n").expect("writing to memory does not fail");
                self.bad_commands = 0;
                self.idle_commands = 0;
            }
            Verdict::NoRoom => push(replies, &["452 4.3.1 No room for more mail, try again later\r\n"]),
            Verdict::Failed => push(replies, &["451 4.3.0 The message was not stored, try again later\r\n"]),
            Verdict::Loop => push(replies, &["554 5.4.6 Mail loop: too many Received headers\r\n"]),
        }
        self.reset();
        self.state = State::Commands;
    }

    /// True while between BodyStarts and the end of the body (the driver uses the data time-out and a large
    /// buffer then).
    pub fn in_body(&self) -> bool {
        matches!(self.state, State::Body(_))
    }

    /// Forgets the transaction.
    fn reset(&mut self) {
        self.transaction = None;
        self.recipient_refused = false;
        self.recipients_bytes = 0;
    }

    /// Carries out one line, given without its CRLF.
    fn obey(&mut self, line: &[u8], replies: &mut Vec<u8>) -> Option<Step> {
        let command = match command::parse(line) {
            Ok(command) => command,
            Err(CommandError::Http) => {
                self.state = State::Closed;
                push(replies, &[CommandError::Http.reply()]);
                return Some(Step::Close);
            }
            Err(error) => return self.refuse(error, replies),
        };
        match command {
            Command::Mail { reverse_path, parameters } => self.mail(reverse_path, parameters, replies),
            Command::Rcpt(path) => self.rcpt(path, replies),
            Command::Data => self.data(replies),
            Command::Hello { name, esmtp } => {
                let step = self.idle(replies, "");
                if step.is_none() {
                    self.hello(name, esmtp, replies);
                }
                step
            }
            Command::Rset => {
                self.reset();
                self.idle(replies, "250 2.0.0 Ok\r\n")
            }
            Command::Noop => self.idle(replies, "250 2.0.0 Ok\r\n"),
            Command::Vrfy => self.idle(replies, "252 2.0.0 Cannot verify, but mail for it will be tried\r\n"),
            Command::Help => {
                self.idle(replies, "214 2.0.0 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT\r\n")
            }
            Command::Quit => {
                push(replies, &["221 2.0.0 ", &self.config.hostname, " closing connection\r\n"]);
                self.state = State::Closed;
                Some(Step::Close)
            }
        }
    }

    /// HELO or EHLO, which also ends a transaction (RFC 5321 §4.1.4).
    fn hello(&mut self, name: &str, esmtp: bool, replies: &mut Vec<u8>) {
        self.reset();
        self.helo = text::printable(&name.as_bytes()[..name.len().min(limits::DOMAIN_BYTES)]);
        self.esmtp = esmtp;
        let hostname = &self.config.hostname;
        if esmtp {
            push(replies, &["250-", hostname, "\r\n250-PIPELINING\r\n"]);
            let size = self.config.max_message_bytes;
            write!(replies, "250-SIZE {size}\r\n").expect("writing to memory does not fail");
            push(replies, &["250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 HELP\r\n"]);
        } else {
            push(replies, &["250 ", hostname, "\r\n"]);
        }
    }

    fn mail(
        &mut self,
        reverse_path: ReversePath,
        parameters: MailParameters,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if self.helo.is_empty() {
            return self.bad(out, "503 5.5.1 Say EHLO first\r\n");
        }
        if self.transaction.is_some() {
            return self.bad(out, "503 5.5.1 MAIL was given already\r\n");
        }
        let declared_bytes = parameters.size_bytes.unwrap_or(0);
        if declared_bytes > self.config.max_message_bytes {
            return self.idle(out, "552 5.3.4 The message is larger than the limit\r\n");
        }
        self.recipient_refused = false;
        self.recipients_bytes = 0;
        self.transaction = Some(Transaction {
            envelope: Envelope {
                reverse_path,
                recipients: Vec::new(),
                body_kind: parameters.body,
                body_form: BodyForm::DotStuffed,
                received_at: WallTime(0),
                client: Some(self.peer.addr),
            },
            declared_bytes,
        });
        push(out, &["250 2.1.0 Ok\r\n"]);
        None
    }

    fn rcpt(&mut self, path: ForwardPath<'_>, replies: &mut Vec<u8>) -> Option<Step> {
        let Some(transaction) = &mut self.transaction else {
            return self.bad(replies, "503 5.5.1 MAIL comes before RCPT\r\n");
        };
        // There are no mailboxes here: every recipient is somewhere else.
        if !self.peer.may_relay {
            self.recipient_refused = true;
            return self.bad(replies, "550 5.7.1 Relaying denied\r\n");
        }
        let address = match path {
            ForwardPath::Mailbox(address) => Some(address),
            ForwardPath::Postmaster(local) => {
                Address::parse(format!("{local}@{}", self.config.hostname).as_bytes()).ok()
            }
        };
        let recipients = &mut transaction.envelope.recipients;
        let reply = match address {
            Some(_)
                if recipients.len() >= self.config.max_recipients
                    || self.recipients_bytes >= limits::RECIPIENTS_BYTES =>
            {
                "452 4.5.3 Too many recipients\r\n"
            }
            Some(address) => {
                self.recipients_bytes += address.as_str().len() + limits::RECIPIENT_OVERHEAD_BYTES;
                recipients.push(Recipient { address });
                self.idle_commands = 0;
                push(replies, &["250 2.1.5 Ok\r\n"]);
                return None;
            }
            None => "550 5.1.1 This host has no postmaster: its name is no domain\r\n",
        };
        self.recipient_refused = true;
        push(replies, &[reply]);
        None
    }

    fn data(&mut self, replies: &mut Vec<u8>) -> Option<Step> {
        match &self.transaction {
            None => self.bad(replies, "503 5.5.1 MAIL and RCPT come before DATA\r\n"),
            Some(transaction) if transaction.envelope.recipients.is_empty() => {
                if self.recipient_refused {
                    self.idle(replies, "554 5.5.1 No valid recipients\r\n")
                } else {
                    self.bad(replies, "503 5.5.1 RCPT comes before DATA\r\n")
                }
            }
            Some(_) => {
                push(replies, &["354 End data with <CR><LF>.<CR><LF>\r\n"]);
                self.state = State::Body(BodyReader::new(self.config.max_message_bytes));
                Some(Step::BodyStarts)
            }
        }
    }

    /// Reads message data: what is kept makes a step each time, what is dropped does not.
    fn read_body(&mut self, rest: &[u8], consumed: &mut usize, replies: &mut Vec<u8>) -> Option<Step> {
        let State::Body(reader) = &mut self.state else {
            return None;
        };
        let refused = reader.fault();
        match (reader.next(rest), refused) {
            (Piece::Unclear, _) => None,
            (Piece::Text(bytes), None) => {
                let start = *consumed;
                *consumed += bytes;
                Some(Step::Body(start..*consumed))
            }
            (Piece::Text(bytes), Some(_)) => {
                *consumed += bytes;
                None
            }
            (Piece::Fault(_), _) => {
                self.reset();
                Some(Step::BodyRefused)
            }
            (Piece::End(bytes), None) => {
                *consumed += bytes;
                self.state = State::Verdict;
                Some(Step::BodyEnds)
            }
            (Piece::End(bytes), Some(fault)) => {
                *consumed += bytes;
                self.state = State::Commands;
                push(replies, &[fault.reply()]);
                None
            }
            (Piece::Endless, _) => {
                self.state = State::Closed;
                push(replies, &["421 4.7.0 Too much data behind a refused message\r\n"]);
                Some(Step::Close)
            }
        }
    }

    /// Answers a line that is no command. A bad recipient address of a client that may relay is its
    /// list's fault, not the client's, and does not count as an error of the session.
    fn refuse(&mut self, error: CommandError, replies: &mut Vec<u8>) -> Option<Step> {
        match error {
            CommandError::Recipient(_) | CommandError::NonAscii
                if self.peer.may_relay && self.transaction.is_some() =>
            {
                self.recipient_refused = true;
                push(replies, &[error.reply()]);
                None
            }
            _ => self.bad(replies, error.reply()),
        }
    }

    /// Answers an erroneous command, or ends the session if there were too many.
    fn bad(&mut self, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        self.bad_commands += 1;
        self.push_or_close(self.bad_commands > limits::BAD_COMMANDS, replies, reply)
    }

    /// Answers a command that moves no mail, or ends the session if there were too many.
    fn idle(&mut self, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        self.idle_commands += 1;
        self.push_or_close(self.idle_commands > limits::IDLE_COMMANDS, replies, reply)
    }

    fn push_or_close(&mut self, close: bool, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        if !close {
            push(replies, &[reply]);
            return None;
        }
        push(replies, &["421 4.7.0 ", &self.config.hostname, " Too many errors or idle commands\r\n"]);
        self.state = State::Closed;
        Some(Step::Close)
    }
}

const CRLF: &[u8] = b"\r\n";

/// What the input holds of a command line.
enum Line<'a> {
    /// A line without its CRLF.
    Whole(&'a [u8]),
    Partial,
    /// More than [`limits::COMMAND_LINE_BYTES`] without a CRLF.
    TooLong,
}

/// The line that `input` begins with. Only CRLF ends it: what else may look like a line end belongs to it.
fn next_line(input: &[u8]) -> Line<'_> {
    let window = &input[..input.len().min(limits::COMMAND_LINE_BYTES)];
    match memchr::memchr_iter(b'\n', window).find(|&at| at > 0 && window[at - 1] == b'\r') {
        Some(end) => Line::Whole(&input[..end - 1]),
        None if window.len() == limits::COMMAND_LINE_BYTES => Line::TooLong,
        None => Line::Partial,
    }
}

/// How much of `input` belongs to a line that is dropped, and whether the line ended there. A last CR is
/// left for the next call, which may begin with its LF.
fn skip_line(input: &[u8]) -> (usize, bool) {
    match memchr::memmem::find(input, CRLF) {
        Some(at) => (at + CRLF.len(), true),
        None => (input.len() - usize::from(input.ends_with(b"\r")), false),
    }
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests;
