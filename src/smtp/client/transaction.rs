//! One message on its way to a peer: the commands of a transaction and their answers (RFC 5321 §3.3).
//!
//! Owns: two cursors over the same sequence RSET?, MAIL, RCPT…, DATA, final dot: what was sent and what
//! was answered; and each recipient's refusal. Promises: every recipient ends with exactly one
//! reply, whatever mix of refusals comes. Must not: know of other messages or of the connection.
use std::io::Write;

use smallvec::SmallVec;

use super::{Capabilities, Outgoing, Replies};
use crate::mail::envelope::BodyKind;
use crate::mail::reply::Reply;
use crate::smtp::reply::ReplyReader;

/// A command of the sequence, for the phase and for error texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Rset,
    Mail,
    /// The recipient of this index.
    Rcpt(usize),
    Data,
    /// The final dot.
    Dot,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// More answers are due.
    Waiting,
    SendBody,
    Done(Replies),
    /// A reply that cannot answer its command, such as 250 to DATA.
    Nonsense,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) key: u64,
    recipients: usize,
    /// Whether an RSET goes first, because the last transaction was left open.
    resets: bool,
    /// Commands sent, and of these answered.
    sent: usize,
    answered: usize,
    /// Command lines that wait for the answer to the one before; all were sent at once with PIPELINING.
    unsent: Vec<u8>,
    unsent_from: usize,
    /// Whether the peer accepted MAIL and so has a transaction open until a final dot or RSET.
    opened: bool,
    /// Per recipient: the refusal, or none while it is accepted or not answered.
    refusals: SmallVec<[Option<Reply>; 1]>,
    /// Whether the final dot went out for no recipient at all.
    lone_dot: bool,
}

impl Transaction {
    /// Writes the commands of `message` to `out`: all of them with PIPELINING, else the first.
    pub(super) fn start(
        message: &Outgoing<'_>,
        capabilities: &Capabilities,
        resets: bool,
        out: &mut Vec<u8>,
    ) -> Transaction {
        let mut transaction = Transaction {
            key: message.key,
            recipients: message.recipients.len(),
            resets,
            sent: 0,
            answered: 0,
            unsent: Vec::new(),
            unsent_from: 0,
            opened: false,
            refusals: std::iter::repeat_n(None, message.recipients.len()).collect(),
            lone_dot: false,
        };
        if capabilities.pipelining {
            push_commands(out, message, capabilities, resets);
            transaction.sent = transaction.position_of_dot();
        } else {
            push_commands(&mut transaction.unsent, message, capabilities, resets);
            transaction.send_next(out);
        }
        transaction
    }

    /// The command whose answer is due; none while the body has not been sent.
    pub(super) fn awaited(&self) -> Option<Command> {
        (self.answered < self.sent).then(|| self.command(self.answered))
    }

    /// Whether everything was sent that this transaction sends.
    pub(super) fn is_sent(&self) -> bool {
        self.sent > self.position_of_dot()
    }

    /// Whether the final dot of the body was sent.
    pub(super) fn is_body_sent(&self) -> bool {
        self.is_sent() && !self.lone_dot
    }

    /// Whether any of its commands was answered.
    pub(super) fn is_answered(&self) -> bool {
        self.answered > 0
    }

    /// Whether SendBody was said and the body is not sent yet.
    pub(super) fn is_body_due(&self) -> bool {
        self.answered == self.position_of_dot() && self.sent == self.answered
    }

    /// Whether the peer is left with an open transaction where this one ends now.
    pub(super) fn is_left_open(&self) -> bool {
        self.opened && !self.is_sent()
    }

    pub(super) fn body_sent(&mut self) {
        debug_assert!(self.is_body_due());
        self.sent += 1;
    }

    pub(super) fn refusals(&self) -> &[Option<Reply>] {
        &self.refusals
    }

    /// Gives `reply` to every recipient that has no refusal yet.
    pub(super) fn refuse_rest(&mut self, reply: &Reply) {
        for refusal in self.refusals.iter_mut().filter(|r| r.is_none()) {
            *refusal = Some(reply.clone());
        }
    }

    /// Takes the answer with `code`, whose words `reader` holds, to the command that waits for one.
    pub(super) fn answer(&mut self, code: u16, reader: &ReplyReader, out: &mut Vec<u8>) -> Outcome {
        let command = self.command(self.answered);
        self.answered += 1;
        let (taken, go_ahead) = (code < 300, (300..400).contains(&code));
        if go_ahead != (command == Command::Data) && code < 400 {
            return Outcome::Nonsense;
        }
        match command {
            // A peer that cannot reset will refuse MAIL.
            Command::Rset => {}
            Command::Mail if taken => self.opened = true,
            Command::Mail => {
                self.refuse_rest(&reader.reply());
                if !self.is_pipelined() {
                    return self.done(reader.reply());
                }
            }
            Command::Rcpt(index) => {
                // Behind a refused MAIL every recipient has its reply.
                if !taken && self.refusals[index].is_none() {
                    self.refusals[index] = Some(reader.reply());
                }
                let is_last = index + 1 == self.recipients;
                if is_last && !self.is_pipelined() && self.accepts_none() {
                    return self.done(reader.reply());
                }
            }
            Command::Data if !go_ahead => return self.done(reader.reply()),
            Command::Data if self.accepts_none() => {
                // The peer waits for data that nobody would get (RFC 2920 §3.1).
                out.extend_from_slice(b".\r\n");
                self.sent += 1;
                self.lone_dot = true;
            }
            Command::Data => return Outcome::SendBody,
            Command::Dot => return self.done(reader.reply()),
        }
        self.send_next(out);
        Outcome::Waiting
    }

    /// `last` answers everyone who was not refused before.
    fn done(&mut self, last: Reply) -> Outcome {
        let refusals = std::mem::take(&mut self.refusals);
        let mut left = refusals.iter().filter(|r| r.is_none()).count();
        let mut last = Some(last);
        let replies = refusals.into_iter().filter_map(|refusal| {
            refusal.or_else(|| {
                left -= 1;
                if left == 0 { last.take() } else { last.clone() }
            })
        });
        Outcome::Done(replies.collect())
    }

    fn accepts_none(&self) -> bool {
        self.refusals.iter().all(Option::is_some)
    }

    fn is_pipelined(&self) -> bool {
        self.unsent.is_empty()
    }

    /// The index of the final dot in the sequence of commands.
    fn position_of_dot(&self) -> usize {
        usize::from(self.resets) + 1 + self.recipients + 1
    }

    fn command(&self, position: usize) -> Command {
        let Some(position) = position.checked_sub(usize::from(self.resets)) else {
            return Command::Rset;
        };
        match position {
            0 => Command::Mail,
            n if n <= self.recipients => Command::Rcpt(n - 1),
            n if n == self.recipients + 1 => Command::Data,
            _ => Command::Dot,
        }
    }

    /// Sends the next waiting command line, if one waits.
    fn send_next(&mut self, out: &mut Vec<u8>) {
        let waiting = &self.unsent[self.unsent_from..];
        if let Some(end) = memchr::memchr(b'\n', waiting) {
            out.extend_from_slice(&waiting[..=end]);
            self.unsent_from += end + 1;
            self.sent += 1;
        }
    }
}

/// Writes all commands of a transaction up to DATA.
fn push_commands(out: &mut Vec<u8>, message: &Outgoing<'_>, capabilities: &Capabilities, resets: bool) {
    if resets {
        out.extend_from_slice(b"RSET\r\n");
    }
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(message.reverse_path.as_bytes());
    out.push(b'>');
    if capabilities.size.is_some() {
        write!(out, " SIZE={}", message.size_bytes).expect("writing to memory does not fail");
    }
    if message.body_kind == BodyKind::EightBit {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    out.extend_from_slice(b"\r\n");
    for recipient in message.recipients {
        out.extend_from_slice(b"RCPT TO:<");
        out.extend_from_slice(recipient.as_bytes());
        out.extend_from_slice(b">\r\n");
    }
    out.extend_from_slice(b"DATA\r\n");
}
