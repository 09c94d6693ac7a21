//! One SMTP session of the source: replies in, commands and messages out.
//!
//! Owns: the state of one connection. Promises: with PIPELINING (RFC 2920) the commands of the next
//! message leave in the same write as the body before, so that a message costs one write and one
//! read; without it, nothing is sent before the last command is answered. Whatever a server answers,
//! each message ends as accepted, rejected, unknown or given back. Must not: touch sockets or read
//! clocks.
use std::collections::VecDeque;

use crate::load::desk::{Desk, push_recipient};
use crate::load::plan::{Message, Next, Plan};
use crate::load::replies::{BadReply, Line, Replies};
use crate::load::stats::{Kind, Stage};
use crate::load::tls::TlsMode;
use crate::stamp;

/// A command that was sent and whose reply is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    /// The last step of AUTH.
    Auth,
    /// The steps of AUTH LOGIN before: the server asks for the name, for the password.
    AuthName,
    AuthPassword,
    Mail,
    /// The recipient's number within the message.
    Rcpt(u32),
    Data,
    /// The final reply to a message.
    Body,
    /// The final reply to a message in one chunk (BDAT).
    Chunk,
    /// The final reply to the empty message that closes a transaction without valid recipients.
    Nothing,
    Rset,
    Quit,
}

impl Awaited {
    fn command(self) -> &'static str {
        match self {
            Awaited::Greeting => "greeting",
            Awaited::Ehlo => "ehlo",
            Awaited::Helo => "helo",
            Awaited::StartTls => "starttls",
            Awaited::Auth | Awaited::AuthName | Awaited::AuthPassword => "auth",
            Awaited::Mail => "mail",
            Awaited::Rcpt(_) => "rcpt",
            Awaited::Data => "data",
            Awaited::Chunk => "bdat",
            Awaited::Body | Awaited::Nothing => "end of data",
            Awaited::Rset => "rset",
            Awaited::Quit => "quit",
        }
    }
}

/// Why a session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// QUIT was answered: all is done.
    Quit,
    /// The server closes with 421 (RFC 5321 §3.8).
    Closing,
    /// The server does not want us: greeting, EHLO, STARTTLS or AUTH refused or not offered.
    Unwelcome,
    /// The server speaks something else.
    BadReply,
}

impl From<BadReply> for Ending {
    fn from(_: BadReply) -> Ending {
        Ending::BadReply
    }
}

/// A message on its way.
#[derive(Default)]
struct Transaction {
    message: Option<Message>,
    /// When MAIL was sent, and later when the final dot was, in run time.
    sent_us: u64,
    /// When the message counts as begun.
    begun_us: u64,
    is_refused: bool,
    /// The content was handed out together with the envelope.
    is_chunk: bool,
    /// Recipients the server took.
    taken: Vec<u32>,
}

/// A message's body that is to be written, from `cursor` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub number: u64,
    /// The stamp's time in run time.
    pub stamp_us: u64,
    pub cursor: usize,
    /// Without stuffed dots and final dot line.
    pub is_chunk: bool,
}

/// What is to be written: what stands before a chunk, the body, then the commands.
#[derive(Default)]
pub struct Outgoing {
    pub before: Vec<u8>,
    pub body: Option<Body>,
    pub commands: Vec<u8>,
}

impl Outgoing {
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.body.is_none() && self.commands.is_empty()
    }
    /// Takes note that the next `sent` bytes were written; a body has `body_bytes`.
    pub fn advance(&mut self, mut sent: usize, body_bytes: usize) {
        if !self.before.is_empty() {
            self.before.drain(..sent);
            return;
        }
        if let Some(body) = &mut self.body {
            let of_body = sent.min(body_bytes - body.cursor);
            body.cursor += of_body;
            sent -= of_body;
            if body.cursor == body_bytes {
                self.body = None;
            }
        }
        self.commands.drain(..sent);
    }
}

/// What EHLO was answered with.
#[derive(Clone, Copy, Default)]
struct Offers {
    size: bool,
    eight_bit: bool,
    chunking: bool,
    starttls: bool,
    auth_plain: bool,
    auth_login: bool,
}

/// The sans-IO state of one connection.
pub struct Session {
    replies: Replies,
    awaited: VecDeque<Awaited>,
    /// The message whose MAIL, RCPT and DATA are under way.
    envelope: Transaction,
    /// The message whose body was handed out and whose final reply is due.
    body: Transaction,
    pub out: Outgoing,
    pipelines: bool,
    offers: Offers,
    is_encrypted: bool,
    is_known: bool,
    /// The next bytes in either direction are those of a TLS handshake; taken note of by the owner
    /// of the socket, who resets it.
    pub begins_tls: bool,
    begun: u64,
    /// A message of this connection was accepted.
    pub was_fruitful: bool,
    opened_us: u64,
}

impl Session {
    /// A session whose connection is not open.
    pub fn new() -> Session {
        Session {
            replies: Replies::default(),
            awaited: VecDeque::new(),
            envelope: Transaction::default(),
            body: Transaction::default(),
            out: Outgoing::default(),
            pipelines: false,
            offers: Offers::default(),
            is_encrypted: false,
            is_known: false,
            begins_tls: false,
            begun: 0,
            was_fruitful: false,
            opened_us: 0,
        }
    }
    /// Begins a new connection, whose greeting is due; `is_encrypted` when TLS came before it.
    /// [`Session::end`] has settled the last one.
    pub fn open(&mut self, now_us: u64, is_encrypted: bool) {
        self.awaited.push_back(Awaited::Greeting);
        (self.pipelines, self.offers) = (false, Offers::default());
        (self.is_encrypted, self.is_known, self.begins_tls) = (is_encrypted, false, false);
        (self.begun, self.was_fruitful, self.opened_us) = (0, false, now_us);
    }
    /// Nothing is due or to be written: the session waits for a message.
    pub fn is_idle(&self) -> bool {
        self.awaited.is_empty() && self.out.is_empty()
    }
    /// Only the goodbye is missing.
    pub fn is_leaving(&self) -> bool {
        self.awaited.front() == Some(&Awaited::Quit)
    }
    /// Takes bytes from the server; [`Session::out`] then holds what to write.
    pub fn feed(&mut self, input: &[u8], now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        let mut replies = std::mem::take(&mut self.replies);
        let result = replies.feed(input, |line| self.line(line, now_us, desk));
        self.replies = replies;
        if result == Err(Ending::BadReply) {
            desk.stats.error(Kind::BadReply, input);
        }
        result
    }
    /// Begins the next message if there is one and room for it; otherwise says goodbye when there
    /// will be none.
    pub fn begin(&mut self, now_us: u64, desk: &mut Desk) {
        if self.envelope.message.is_some() || self.awaited.contains(&Awaited::Quit) {
            return;
        }
        match desk.next(self.begun, now_us) {
            Next::Later(_) => {}
            Next::Done => self.send(b"QUIT\r\n", Awaited::Quit),
            Next::Message(message) => {
                self.begun += 1;
                self.envelope.message = Some(message);
                self.envelope.sent_us = now_us;
                self.envelope.begun_us = message.intended_us.unwrap_or(now_us);
                self.envelope.is_refused = false;
                self.envelope.is_chunk = false;
                self.envelope.taken.clear();
                self.send_mail(&desk.plan);
                if self.pipelines {
                    for recipient in 0..desk.plan.recipients {
                        self.send_rcpt(recipient, &desk.plan);
                    }
                    self.send_data(now_us, desk);
                }
            }
        }
    }
    /// Settles what the connection leaves behind: gives back what was not sent in full, counts as
    /// unknown what was.
    pub fn end(&mut self, now_us: u64, desk: &mut Desk) {
        if let Some(message) = self.envelope.message.take() {
            if self.envelope.is_chunk && self.out.body.is_none() {
                // The whole message is out; recipients whose reply is missing may have been taken.
                desk.give_up(message, 0..desk.plan.recipients, now_us);
            } else {
                desk.supply.give_back(message);
            }
        }
        if let Some(message) = self.body.message.take() {
            if self.out.body.is_some() {
                desk.supply.give_back(message);
            } else {
                desk.give_up(message, self.body.taken.iter().copied(), now_us);
            }
        }
        self.awaited.clear();
        self.replies.reset();
        self.out.body = None;
        self.out.before.clear();
        self.out.commands.clear();
    }
    fn line(&mut self, line: Line<'_>, now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        if self.begins_tls {
            // Plain text behind the reply to STARTTLS would be taken for encrypted text (RFC 3207 §4.2).
            return Err(Ending::BadReply);
        }
        let Some(&awaited) = self.awaited.front() else {
            desk.stats.error(Kind::Reply { command: "unasked", code: line.code }, line.text);
            return Err(if line.code == 421 { Ending::Closing } else { Ending::BadReply });
        };
        if awaited == Awaited::Ehlo && line.code == 250 {
            self.extension(line.text);
        }
        if !line.is_last {
            return Ok(());
        }
        self.awaited.pop_front();
        let is_good = match awaited {
            Awaited::Data => line.code == 354,
            Awaited::AuthName | Awaited::AuthPassword => line.code == 334,
            _ => line.code / 100 == 2,
        };
        // What follows from an earlier refusal of the same transaction says nothing new.
        let is_consequence = match awaited {
            Awaited::Rcpt(_) => self.envelope.is_refused,
            Awaited::Data | Awaited::Chunk => self.envelope.is_lost(),
            Awaited::Nothing => true,
            _ => false,
        };
        if !is_good && !is_consequence {
            desk.stats.error(Kind::Reply { command: awaited.command(), code: line.code }, line.text);
        }
        if line.code == 421 {
            // This is a reply to the message, and a refusal: it can be sent again.
            let refused = match awaited {
                Awaited::Body => self.body.message.take(),
                Awaited::Chunk => self.envelope.message.take(),
                _ => None,
            };
            refused.into_iter().for_each(|message| desk.supply.give_back(message));
            return Err(Ending::Closing);
        }
        match awaited {
            Awaited::Greeting if is_good => {
                desk.stats.timed(Stage::Connect, self.opened_us, now_us);
                self.send(b"EHLO load.ringpost.invalid\r\n", Awaited::Ehlo);
            }
            Awaited::Ehlo if !is_good => self.send(b"HELO load.ringpost.invalid\r\n", Awaited::Helo),
            Awaited::Quit => return Err(Ending::Quit),
            Awaited::Greeting
            | Awaited::Helo
            | Awaited::StartTls
            | Awaited::Auth
            | Awaited::AuthName
            | Awaited::AuthPassword
                if !is_good =>
            {
                return Err(Ending::Unwelcome);
            }
            Awaited::StartTls => {
                (self.begins_tls, self.is_encrypted) = (true, true);
                (self.pipelines, self.offers) = (false, Offers::default());
                self.send(b"EHLO load.ringpost.invalid\r\n", Awaited::Ehlo);
            }
            Awaited::AuthName | Awaited::AuthPassword => self.prove(awaited, &desk.plan),
            Awaited::Auth => {
                self.is_known = true;
                self.begin(now_us, desk);
            }
            Awaited::Ehlo | Awaited::Helo => return self.prepare(now_us, desk),
            Awaited::Mail | Awaited::Rcpt(_) | Awaited::Data => {
                self.envelope_reply(awaited, is_good, now_us, desk)?;
            }
            Awaited::Body => {
                self.body_reply(is_good, now_us, desk);
                self.begin(now_us, desk);
            }
            Awaited::Chunk => self.chunk_reply(is_good, now_us, desk),
            Awaited::Greeting | Awaited::Nothing | Awaited::Rset => self.begin(now_us, desk),
        }
        Ok(())
    }
    /// After EHLO: what has to come before mail, or else the first message.
    fn prepare(&mut self, now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        self.pipelines &= desk.plan.may_pipeline;
        if desk.plan.tls == TlsMode::Starttls && !self.is_encrypted {
            if !self.offers.starttls {
                desk.stats.error(Kind::NoTls, b"");
                return Err(Ending::Unwelcome);
            }
            self.send(b"STARTTLS\r\n", Awaited::StartTls);
            return Ok(());
        }
        if desk.plan.may_chunk && !self.offers.chunking {
            desk.stats.error(Kind::NoChunking, b"DATA is used instead");
        }
        if !self.offers.eight_bit && desk.plan.classes.eight_bit.contains(&true) {
            desk.stats.error(Kind::NoEightBit, b"messages with 8-bit text are sent all the same");
        }
        match &desk.plan.credentials {
            Some(credentials) if !self.is_known => {
                let commands = &mut self.out.commands;
                if self.offers.auth_plain {
                    commands.extend_from_slice(b"AUTH PLAIN ");
                    commands.extend_from_slice(credentials.plain.as_bytes());
                    self.send(b"\r\n", Awaited::Auth);
                } else if self.offers.auth_login {
                    self.send(b"AUTH LOGIN\r\n", Awaited::AuthName);
                } else {
                    desk.stats.error(Kind::NoAuth, b"");
                    return Err(Ending::Unwelcome);
                }
            }
            _ => self.begin(now_us, desk),
        }
        Ok(())
    }
    /// Answers a question of AUTH LOGIN.
    fn prove(&mut self, asked: Awaited, plan: &Plan) {
        let Some(credentials) = &plan.credentials else { return };
        let (text, next) = match asked {
            Awaited::AuthName => (&credentials.user, Awaited::AuthPassword),
            _ => (&credentials.password, Awaited::Auth),
        };
        self.out.commands.extend_from_slice(text.as_bytes());
        self.send(b"\r\n", next);
    }
    fn extension(&mut self, text: &[u8]) {
        let mut words = text.split(|&c| c == b' ' || c == b'=');
        let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
        match &keyword[..] {
            b"PIPELINING" => self.pipelines = true,
            b"SIZE" => self.offers.size = true,
            b"8BITMIME" => self.offers.eight_bit = true,
            b"CHUNKING" => self.offers.chunking = true,
            b"STARTTLS" => self.offers.starttls = true,
            b"AUTH" => {
                for mechanism in words {
                    self.offers.auth_plain |= mechanism.eq_ignore_ascii_case(b"PLAIN");
                    self.offers.auth_login |= mechanism.eq_ignore_ascii_case(b"LOGIN");
                }
            }
            _ => {}
        }
    }
    fn envelope_reply(
        &mut self,
        awaited: Awaited,
        is_good: bool,
        now_us: u64,
        desk: &mut Desk,
    ) -> Result<(), Ending> {
        let since_us = self.envelope.sent_us;
        match awaited {
            Awaited::Mail => {
                desk.stats.timed(Stage::Mail, since_us, now_us);
                self.envelope.is_refused = !is_good;
            }
            Awaited::Rcpt(recipient) => {
                desk.stats.timed(Stage::Rcpt, since_us, now_us);
                if is_good {
                    self.envelope.taken.push(recipient);
                }
            }
            _ if is_good => return self.send_body(now_us, desk),
            _ => {
                self.refuse(desk);
                return Ok(());
            }
        }
        if self.pipelines {
            return Ok(());
        }
        self.envelope.sent_us = now_us;
        let next = match awaited {
            Awaited::Rcpt(recipient) => recipient + 1,
            _ => 0,
        };
        if self.envelope.is_refused || (next == desk.plan.recipients && self.envelope.taken.is_empty()) {
            self.refuse(desk);
        } else if next < desk.plan.recipients {
            self.send_rcpt(next, &desk.plan);
        } else {
            self.send_data(now_us, desk);
        }
        Ok(())
    }
    /// Asks for the content, or sends it at once where the server takes chunks.
    fn send_data(&mut self, now_us: u64, desk: &Desk) {
        if !(desk.plan.may_chunk && self.offers.chunking) {
            return self.send(b"DATA\r\n", Awaited::Data);
        }
        let Some(message) = self.envelope.message else { return };
        self.out.commands.extend_from_slice(b"BDAT ");
        stamp::push_decimal(desk.plan.size_of(message.number), &mut self.out.commands);
        self.send(b" LAST\r\n", Awaited::Chunk);
        self.out.before.append(&mut self.out.commands);
        let stamp_us = message.intended_us.unwrap_or(now_us);
        self.out.body = Some(Body { number: message.number, stamp_us, cursor: 0, is_chunk: true });
        self.envelope.is_chunk = true;
    }
    fn chunk_reply(&mut self, is_good: bool, now_us: u64, desk: &mut Desk) {
        let is_good = is_good && !self.envelope.is_lost();
        std::mem::swap(&mut self.envelope, &mut self.body);
        self.envelope.message = None;
        self.body_reply(is_good, now_us, desk);
        if is_good {
            self.begin(now_us, desk);
        } else {
            // RFC 3030 §2: after a failed chunk the transaction has to be cleared.
            self.send(b"RSET\r\n", Awaited::Rset);
        }
    }
    /// The message was refused before its body: clear the transaction and go on after that.
    fn refuse(&mut self, desk: &mut Desk) {
        self.envelope.message = None;
        desk.stats.rejected += 1;
        self.send(b"RSET\r\n", Awaited::Rset);
    }
    fn send_body(&mut self, now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        // 354 is an answer to a command that was written, and written after the last body's reply.
        if !self.out.is_empty() || self.body.message.is_some() {
            return Err(Ending::BadReply);
        }
        if self.envelope.is_lost() {
            // RFC 2920 §3.1: a server may accept DATA although it took no recipient; then nothing
            // but the end may be sent.
            self.envelope.message = None;
            desk.stats.rejected += 1;
            self.send(b".\r\n", Awaited::Nothing);
            return Ok(());
        }
        std::mem::swap(&mut self.envelope, &mut self.body);
        self.envelope.message = None;
        let message = self.body.message.expect("DATA is awaited only while a message is under way");
        self.body.sent_us = now_us;
        let stamp_us = message.intended_us.unwrap_or(now_us);
        self.out.body = Some(Body { number: message.number, stamp_us, cursor: 0, is_chunk: false });
        self.awaited.push_back(Awaited::Body);
        if self.pipelines {
            self.begin(now_us, desk);
        }
        Ok(())
    }
    fn body_reply(&mut self, is_good: bool, now_us: u64, desk: &mut Desk) {
        let Some(message) = self.body.message.take() else { return };
        let stats = &mut desk.stats;
        stats.timed(Stage::Data, self.body.sent_us, now_us);
        if !is_good {
            return desk.refuse(message, self.body.taken.iter().copied());
        }
        self.was_fruitful = true;
        desk.accept(message, self.body.begun_us, self.body.taken.iter().copied(), now_us);
    }
    fn send_mail(&mut self, plan: &Plan) {
        let commands = &mut self.out.commands;
        commands.extend_from_slice(b"MAIL FROM:<");
        commands.extend_from_slice(plan.from.as_bytes());
        commands.push(b'>');
        if let (true, Some(message)) = (self.offers.size, self.envelope.message) {
            commands.extend_from_slice(b" SIZE=");
            stamp::push_decimal(plan.size_of(message.number), commands);
        }
        // RFC 6152 §2: what has bytes beyond ASCII is announced.
        if self.offers.eight_bit && self.envelope.message.is_some_and(|m| plan.is_eight_bit(m.number)) {
            commands.extend_from_slice(b" BODY=8BITMIME");
        }
        self.send(b"\r\n", Awaited::Mail);
    }
    fn send_rcpt(&mut self, recipient: u32, plan: &Plan) {
        let number = self.envelope.message.map_or(0, |message| message.number);
        let commands = &mut self.out.commands;
        commands.extend_from_slice(b"RCPT TO:<");
        push_recipient(number, recipient, plan, commands);
        self.send(b">\r\n", Awaited::Rcpt(recipient));
    }
    fn send(&mut self, text: &[u8], awaited: Awaited) {
        self.out.commands.extend_from_slice(text);
        self.awaited.push_back(awaited);
    }
}

impl Transaction {
    /// Nothing can come of it: the sender or every recipient was refused.
    fn is_lost(&self) -> bool {
        self.is_refused || self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests;
