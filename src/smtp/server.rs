//! The server session: what a client says → what the driver must do (RFC 5321 §3, §4).
//!
//! Owns: the order of commands, the transaction that they build, every reply. Promises: the same replies
//! and steps however the input was split; at most [`limits::REPLY_BYTES`] and one reply more are
//! pending; a client that only errs or only talks is sent away; a message ends at CRLF.CRLF only and
//! is answered once. Must not: read clocks, sockets or files, or decide what happens to a message.
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use super::body::{BodyReader, ChunkReader};
use super::command::{self, Command, CommandError};
use super::sasl::AuthSaid;
use super::xclient::Xclient;
use crate::limits;

mod access;
mod auth;
mod chunk;
mod hello;
mod help;
mod line;
mod renaming;
mod starttls;
mod transaction;

pub use access::{Access, Login};
pub use auth::AuthAnswer;
use line::{CRLF, Line, next_line, skip_line};
pub use transaction::{Room, Transaction, Verdict};

/// What is the same for every session of a listener.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Our own name: a valid domain.
    pub hostname: Box<str>,
    pub max_message_bytes: u64,
    pub max_recipients: usize,
    /// Whether REQUIRETLS is offered (RFC 8689 §3): only where the TLS of next hops is verified.
    pub require_tls: bool,
    pub access: Access,
}

impl Default for ServerConfig {
    /// The default of each setting; the name is `localhost`.
    fn default() -> ServerConfig {
        ServerConfig {
            hostname: "localhost".into(),
            max_message_bytes: limits::DEFAULT_MAX_MESSAGE_BYTES,
            max_recipients: limits::DEFAULT_MAX_RECIPIENTS,
            require_tls: false,
            access: Access::default(),
        }
    }
}

/// Who is on the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub addr: IpAddr,
    /// Whether RCPT for foreign domains is accepted from this address (`--relay-from`).
    pub may_relay: bool,
    /// Whether it is believed when it says for whom it speaks (`--xclient-from`).
    pub xclient: bool,
    /// Whether the driver wants to be asked before each of its messages.
    pub counted: bool,
}

impl Peer {
    /// A client that is not believed and not counted.
    pub fn new(addr: IpAddr, may_relay: bool) -> Peer {
        Peer { addr, may_relay, xclient: false, counted: false }
    }
}

/// What the driver must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing more can be made of the input: send the replies, read more, call again with the
    /// unconsumed rest followed by what was read. Where more than [`limits::REPLY_BYTES`] of replies were
    /// pending, commands may be left in the rest although they are complete: call again when the
    /// replies are sent, before reading.
    More,
    /// `354` stands in the replies, or the first chunk follows. [`ServerSession::transaction`] is complete:
    /// the driver takes an id and writes the trace header. Then call again.
    BodyStarts,
    /// These bytes of the input (inside what was consumed) are body in the envelope's form: dot-stuffed,
    /// up to and including the CRLF before the final dot, or raw. Between two chunks other steps may
    /// come, and commands before the range.
    Body(Range<usize>),
    /// The final dot was seen, or the last chunk. The driver stores the message and calls [`ServerSession::finish`]
    /// before the next `step`.
    BodyEnds,
    /// The message cannot be accepted (too large, bare LF, …). Drop what is held of it; the session
    /// swallows the rest and replies itself. Comes at most once per body, and no Body/BodyEnds after.
    BodyRefused,
    /// The client took back what it had sent in chunks (RFC 3030 §2: RSET, or a new greeting). Drop it.
    BodyWithdrawn,
    /// `220` stands in the replies. Send them, throw away the rest of the input, do the handshake and
    /// call [`ServerSession::tls_started`]; close the connection if the handshake fails.
    StartTls,
    /// Find out what to say to that and call [`ServerSession::answer_auth`] before the next `step`.
    Auth(AuthSaid),
    /// The exchange is over without an answer: forget it.
    AuthEnds,
    /// Call [`ServerSession::set_peer`] before the next `step`.
    Xclient(Xclient),
    /// May this client send one more message now? Call [`ServerSession::admit_mail`] before the next
    /// `step`. Only where [`Peer::counted`] or [`Login::counted`] asks for it.
    MayMail,
    /// Send the replies, then close the connection.
    Close,
}

/// Why the driver ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    Stopping,
    TimedOut,
}

/// What the input is read as.
#[derive(Debug)]
enum State {
    Commands,
    /// The rest of a line that was too long, to be dropped up to its CRLF, of which so many bytes were dropped.
    LongLine(usize, CommandError),
    Body(BodyReader),
    Chunk(chunk::Chunk),
    /// Between BodyEnds and `finish`.
    Verdict,
    /// Between StartTls and `tls_started`.
    Handshake,
    /// In an authentication exchange: the next line is a response, once the last one is answered.
    Auth,
    /// Between Xclient and `set_peer`.
    Renamed,
    /// Between MayMail and `admit_mail`.
    Asked,
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
    /// The channel is protected.
    secure: bool,
    /// The channel has something to bind to.
    bound: bool,
    login: Option<Login>,
    failed_logins: u32,
    /// From MAIL to the end of the transaction.
    transaction: Option<Transaction>,
    /// Whether a RCPT of this transaction was refused.
    recipient_refused: bool,
    /// Bytes of the recipients taken, as `limits::RECIPIENTS_BYTES` counts them.
    recipients_bytes: usize,
    /// What has been received in chunks, from the first BDAT to the end of the last.
    chunks: Option<ChunkReader>,
    /// The message was refused before its last chunk; those that are on their way get the same.
    chunks_refused: bool,
    /// Bytes of chunks dropped since the last accepted message.
    dropped_bytes: u64,
    room: Room,
    /// Errors of the client, refused recipients included, that nobody has asked for yet.
    errors: u32,
    /// Since the last accepted message.
    bad_commands: u32,
    refused_recipients: u32,
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
            secure: false,
            bound: false,
            login: None,
            failed_logins: 0,
            transaction: None,
            recipient_refused: false,
            recipients_bytes: 0,
            chunks: None,
            chunks_refused: false,
            dropped_bytes: 0,
            room: Room::Bytes(u64::MAX),
            errors: 0,
            bad_commands: 0,
            refused_recipients: 0,
            idle_commands: 0,
        }
    }

    /// Says what a transaction that begins now may expect. Until then there is room for everything.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Appends the 220 greeting.
    pub fn greet(&self, replies: &mut Vec<u8>) {
        push(replies, &["220 ", &self.config.hostname, " ESMTP ringpost\r\n"]);
    }

    /// Appends `421 4.3.2` (shutting down) or `421 4.4.2` (timeout); the driver then closes, and every further
    /// `step` says so.
    pub fn say_goodbye(&mut self, why: Goodbye, replies: &mut Vec<u8>) {
        let (code, text) = match why {
            Goodbye::Stopping => ("421 4.3.2 ", " Service shutting down\r\n"),
            Goodbye::TimedOut => ("421 4.4.2 ", " Timeout, closing the connection\r\n"),
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
                State::Commands | State::Auth => match next_line(rest) {
                    Line::Whole(line) => {
                        consumed += line.len() + CRLF.len();
                        match self.state {
                            State::Auth => self.auth_response(line, replies),
                            _ => self.obey(line, replies),
                        }
                    }
                    Line::Partial => None,
                    Line::TooLong if matches!(self.state, State::Auth) => {
                        self.state = State::LongLine(0, CommandError::ExchangeTooLong);
                        Some(Step::AuthEnds)
                    }
                    Line::TooLong => {
                        self.state = State::LongLine(0, CommandError::LineTooLong);
                        continue;
                    }
                },
                State::LongLine(dropped, error) => {
                    let (error, (bytes, ended)) = (*error, skip_line(rest));
                    consumed += bytes;
                    *dropped += bytes;
                    if *dropped > limits::DROPPED_LINE_BYTES {
                        self.give_up(replies)
                    } else if ended {
                        self.state = State::Commands;
                        self.refuse(error, replies)
                    } else {
                        None
                    }
                }
                State::Body(_) => self.read_body(rest, &mut consumed, replies),
                State::Chunk(chunk) if chunk.is_whole() => match self.end_chunk(replies) {
                    None => continue,
                    step => step,
                },
                State::Chunk(_) => self.read_chunk(rest, &mut consumed, replies),
                State::Verdict => Some(Step::BodyEnds),
                State::Handshake | State::Renamed | State::Asked => {
                    debug_assert!(false, "the driver owes the session an answer");
                    None
                }
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

    /// Commands of the client that were in error since the last call.
    pub fn take_errors(&mut self) -> u32 {
        std::mem::take(&mut self.errors)
    }

    /// True while between BodyStarts and the end of the body, pauses between chunks included (the driver
    /// uses the data time-out then).
    pub fn in_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::Chunk(_)) || self.chunks.is_some()
    }

    /// Carries out one line, given without its CRLF.
    fn obey(&mut self, line: &[u8], replies: &mut Vec<u8>) -> Option<Step> {
        let command = match command::parse(line) {
            Ok(command) => command,
            // A web browser, or bytes of a message that would be taken for commands.
            Err(error @ (CommandError::Http | CommandError::BdatSyntax)) => {
                self.state = State::Closed;
                match error.reply().strip_prefix("421 4.7.0 ") {
                    // RFC 5321 §4.3.1: a 421 begins with our name.
                    Some(text) => push(replies, &["421 4.7.0 ", &self.config.hostname, " ", text]),
                    None => push(replies, &[error.reply()]),
                }
                return Some(Step::Close);
            }
            Err(error) => return self.refuse(error, replies),
        };
        match command {
            Command::Mail { reverse_path, parameters } => self.mail(reverse_path, parameters, replies),
            Command::Rcpt { path, parameters } => self.rcpt(path, parameters, replies),
            Command::Data => self.data(replies),
            Command::Bdat { bytes, last } => self.bdat(bytes, last),
            Command::Hello { name, esmtp } => {
                let withdrawn = self.withdraw_chunks();
                let step = self.idle(replies, "");
                if step.is_none() {
                    self.hello(name, esmtp, replies);
                }
                step.or(withdrawn)
            }
            Command::Rset => {
                let withdrawn = self.withdraw_chunks();
                self.reset();
                self.idle(replies, "250 2.0.0 Ok\r\n").or(withdrawn)
            }
            Command::Noop => self.idle(replies, "250 2.0.0 Ok\r\n"),
            Command::StartTls => self.starttls(replies),
            Command::Auth(mechanism, initial) => self.auth(mechanism, initial, replies),
            Command::Xclient(argument) => self.xclient(argument, replies),
            Command::Vrfy => self.idle(replies, "252 2.0.0 Cannot verify, but mail for it will be tried\r\n"),
            Command::Help(topic) => {
                let text = self.help(topic);
                self.idle(replies, &text)
            }
            Command::Quit => {
                push(replies, &["221 2.0.0 ", &self.config.hostname, " closing connection\r\n"]);
                self.state = State::Closed;
                Some(Step::Close)
            }
        }
    }

    /// Answers a line that is no command. A bad recipient address of a client that may relay is its
    /// list's fault, not the client's, and does not count as an error of the session.
    fn refuse(&mut self, error: CommandError, replies: &mut Vec<u8>) -> Option<Step> {
        match error {
            CommandError::Recipient(_) | CommandError::NonAscii
                if (self.peer.may_relay || self.login.is_some()) && self.transaction.is_some() =>
            {
                self.refuse_recipient(replies, error.reply())
            }
            _ => self.bad(replies, error.reply()),
        }
    }

    /// Answers an erroneous command, or ends the session if there were too many.
    fn bad(&mut self, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        self.bad_commands += 1;
        self.errors += 1;
        self.push_or_close(self.bad_commands > limits::BAD_COMMANDS, replies, reply)
    }

    /// Answers a command that moves no mail, or ends the session if there were too many.
    fn idle(&mut self, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        self.idle_commands += 1;
        self.push_or_close(self.idle_commands > limits::IDLE_COMMANDS, replies, reply)
    }

    /// Answers a recipient that is not taken and is no error of the session, or ends it if there were too
    /// many.
    fn refuse_recipient(&mut self, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        self.recipient_refused = true;
        self.refused_recipients += 1;
        self.push_or_close(self.refused_recipients > limits::REFUSED_RECIPIENTS, replies, reply)
    }

    fn push_or_close(&mut self, close: bool, replies: &mut Vec<u8>, reply: &str) -> Option<Step> {
        if !close {
            push(replies, &[reply]);
            return None;
        }
        self.give_up(replies)
    }

    /// Ends a session that sends far more of a refused message than any mistake is long.
    fn close_for_data(&mut self, replies: &mut Vec<u8>) -> Option<Step> {
        push(replies, &["421 4.7.0 ", &self.config.hostname, " Too much data behind a refused message\r\n"]);
        self.state = State::Closed;
        Some(Step::Close)
    }

    fn give_up(&mut self, replies: &mut Vec<u8>) -> Option<Step> {
        push(replies, &["421 4.7.0 ", &self.config.hostname, " Too many errors or idle commands\r\n"]);
        self.state = State::Closed;
        Some(Step::Close)
    }
}

fn push(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests;
