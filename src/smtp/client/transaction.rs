//! One message on its way to a peer: the commands of a transaction and their answers (RFC 5321 §3.3).
//!
//! Owns: two cursors over the same sequence RSET?, MAIL, RCPT…, DATA, final dot (or BDAT with its only
//! chunk in place of both): what was sent and what was answered; and each recipient's refusal. Promises: every recipient ends with exactly one
//! reply, whatever mix of refusals comes. Must not: know of other messages or of the connection.
use std::io::Write;

use super::fit::Fit;
use super::{Capabilities, Outgoing, Transfer, is_safe};
use crate::mail::envelope::{BodyKind, Notify, Recipient, Return};
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
    /// The final dot, or the chunk.
    End,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// More answers are due.
    Waiting,
    SendBody(Transfer),
    Done(Vec<Reply>),
    /// A reply that cannot answer its command, such as 250 to DATA.
    Nonsense,
}

#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) key: u64,
    recipients: usize,
    transfer: Transfer,
    body_bytes: usize,
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
    refusals: Vec<Option<Reply>>,
    /// Whether the final dot went out for no recipient at all.
    lone_dot: bool,
}

impl Transaction {
    /// Writes the commands of `message` to `out`: all of them with PIPELINING, else the first.
    pub(super) fn start(
        message: &Outgoing<'_>,
        capabilities: &Capabilities,
        fit: &Fit,
        resets: bool,
        out: &mut Vec<u8>,
    ) -> Transaction {
        let mut transaction = Transaction {
            key: message.key,
            recipients: message.recipients.len(),
            transfer: fit.transfer,
            body_bytes: message.body.len(),
            resets,
            sent: 0,
            answered: 0,
            unsent: Vec::new(),
            unsent_from: 0,
            opened: false,
            refusals: vec![None; message.recipients.len()],
            lone_dot: false,
        };
        if capabilities.pipelining {
            push_commands(out, message, capabilities, fit, resets);
            transaction.sent = transaction.position_of_end();
        } else {
            push_commands(&mut transaction.unsent, message, capabilities, fit, resets);
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
        self.sent > self.position_of_end()
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
        self.answered == self.position_of_end() && self.sent == self.answered
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
                    return self.done(&reader.reply());
                }
            }
            Command::Rcpt(index) => {
                // Behind a refused MAIL every recipient has its reply.
                if !taken && self.refusals[index].is_none() {
                    self.refusals[index] = Some(reader.reply());
                }
                let is_last = index + 1 == self.recipients;
                let chunk = self.transfer == Transfer::Chunk;
                if is_last && self.accepts_none() && (chunk || !self.is_pipelined()) {
                    return self.done(&reader.reply());
                }
                if is_last && chunk {
                    write!(out, "BDAT {} LAST\r\n", self.body_bytes)
                        .expect("writing to memory does not fail");
                    return Outcome::SendBody(self.transfer);
                }
            }
            Command::Data if !go_ahead => return self.done(&reader.reply()),
            Command::Data if self.accepts_none() => {
                // The peer waits for data that nobody would get (RFC 2920 §3.1).
                out.extend_from_slice(b".\r\n");
                self.sent += 1;
                self.lone_dot = true;
            }
            Command::Data => return Outcome::SendBody(self.transfer),
            Command::End => return self.done(&reader.reply()),
        }
        self.send_next(out);
        Outcome::Waiting
    }

    fn done(&mut self, last: &Reply) -> Outcome {
        let refusals = std::mem::take(&mut self.refusals);
        Outcome::Done(refusals.into_iter().map(|r| r.unwrap_or_else(|| last.clone())).collect())
    }

    fn accepts_none(&self) -> bool {
        self.refusals.iter().all(Option::is_some)
    }

    fn is_pipelined(&self) -> bool {
        self.unsent.is_empty()
    }

    /// The index of the final dot, or of the chunk, in the sequence of commands.
    fn position_of_end(&self) -> usize {
        usize::from(self.resets) + 1 + self.recipients + usize::from(self.transfer != Transfer::Chunk)
    }

    fn command(&self, position: usize) -> Command {
        let Some(position) = position.checked_sub(usize::from(self.resets)) else {
            return Command::Rset;
        };
        match position {
            0 => Command::Mail,
            n if n <= self.recipients => Command::Rcpt(n - 1),
            n if n == self.recipients + 1 && self.transfer != Transfer::Chunk => Command::Data,
            _ => Command::End,
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

/// Writes all commands of a transaction up to DATA; BDAT goes with its chunk.
fn push_commands(
    out: &mut Vec<u8>,
    message: &Outgoing<'_>,
    capabilities: &Capabilities,
    fit: &Fit,
    resets: bool,
) {
    if resets {
        out.extend_from_slice(b"RSET\r\n");
    }
    push_mail(out, message, capabilities, fit);
    for recipient in message.recipients {
        push_rcpt(out, &message.envelope.recipients[usize::from(*recipient)], capabilities);
    }
    if fit.transfer != Transfer::Chunk {
        out.extend_from_slice(b"DATA\r\n");
    }
}

fn push_mail(out: &mut Vec<u8>, message: &Outgoing<'_>, capabilities: &Capabilities, fit: &Fit) {
    let envelope = message.envelope;
    out.extend_from_slice(b"MAIL FROM:<");
    out.extend_from_slice(envelope.reverse_path.as_ref().map_or("", |a| a.as_str()).as_bytes());
    out.push(b'>');
    if capabilities.size.is_some() {
        write!(out, " SIZE={}", message.body.len()).expect("writing to memory does not fail");
    }
    match fit.kind {
        BodyKind::SevenBit => {}
        BodyKind::EightBit => out.extend_from_slice(b" BODY=8BITMIME"),
        BodyKind::Binary => out.extend_from_slice(b" BODY=BINARYMIME"),
    }
    if fit.smtp_utf8 {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if capabilities.dsn {
        match envelope.ret {
            Some(Return::Full) => out.extend_from_slice(b" RET=FULL"),
            Some(Return::Headers) => out.extend_from_slice(b" RET=HDRS"),
            None => {}
        }
        if let Some(envid) = envelope.envid.as_deref().filter(|envid| is_safe(envid)) {
            out.extend_from_slice(b" ENVID=");
            out.extend_from_slice(envid.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn push_rcpt(out: &mut Vec<u8>, recipient: &Recipient, capabilities: &Capabilities) {
    out.extend_from_slice(b"RCPT TO:<");
    out.extend_from_slice(recipient.address.as_str().as_bytes());
    out.push(b'>');
    if capabilities.dsn {
        if let Some(notify) = recipient.notify {
            out.extend_from_slice(b" NOTIFY=");
            push_notify(out, notify);
        }
        if let Some(original) = recipient.original.as_deref().filter(|original| is_safe(original)) {
            out.extend_from_slice(b" ORCPT=");
            out.extend_from_slice(original.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn push_notify(out: &mut Vec<u8>, notify: Notify) {
    if notify == Notify::NEVER {
        return out.extend_from_slice(b"NEVER");
    }
    let words = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")];
    for (at, (_, word)) in words.iter().filter(|(on, _)| *on).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(word.as_bytes());
    }
}
