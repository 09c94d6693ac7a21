//! The transaction: MAIL, RCPT, DATA and the answer to a message (RFC 5321 §3.3). BDAT is in `chunk`.
//!
//! Owns: what may follow what from MAIL to the end of the data, and the envelope that comes of it.
//! Promises: a message is answered once; a refused command leaves the transaction as it was. Must not:
//! decide what becomes of a message (the driver's [`Verdict`] says).
use std::io::Write;

use super::{ServerSession, State, Step, push};
use crate::limits;
use crate::mail::address::{Address, ReversePath};
use crate::mail::envelope::{BodyKind, Envelope, Recipient};
use crate::mail::id::MessageId;
use crate::smtp::body::{BodyReader, Piece};
use crate::smtp::command::{CommandError, ForwardPath, MailParameters, RcptParameters};

/// Before a transaction, or instead of storing its message.
const NO_ROOM: &str = "452 4.3.1 No room for more mail, try again later\r\n";

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
    /// `451 4.3.2` other large messages took all the memory there is for them.
    Busy,
}

/// What there is for a transaction that begins now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A message may have so many bytes.
    Bytes(u64),
    /// There is too little for any: MAIL gets `452 4.3.1`.
    Short,
    /// Nothing can be stored: MAIL gets `451 4.3.0`.
    Unwritable,
}

/// The transaction whose body is being received.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// `received_at` is left 0 and `client` set; recipients are in RCPT order.
    pub envelope: Envelope,
    /// SIZE= the client declared (RFC 1870), 0 if none.
    pub declared_bytes: u64,
}

impl Verdict {
    /// The reply line that says no; none if the message was accepted.
    pub fn refusal(&self) -> Option<&'static str> {
        match self {
            Verdict::Accepted(_) => None,
            Verdict::NoRoom => Some(NO_ROOM),
            Verdict::Failed => Some("451 4.3.0 The message was not stored, try again later\r\n"),
            Verdict::Loop => Some("554 5.4.6 Mail loop: too many Received headers\r\n"),
            Verdict::Busy => Some("451 4.3.2 Too many large messages at a time, try again later\r\n"),
        }
    }
}

impl ServerSession {
    /// Answers the message whose body ended.
    pub fn finish(&mut self, verdict: Verdict, replies: &mut Vec<u8>) {
        debug_assert!(matches!(self.state, State::Verdict));
        if let Verdict::Accepted(id) = &verdict {
            write!(replies, "250 2.0.0 {id} queued\r\n").expect("writing to memory does not fail");
            self.bad_commands = 0;
            self.refused_recipients = 0;
            self.idle_commands = 0;
            self.dropped_bytes = 0;
        }
        self.reset();
        self.state = State::Commands;
        if let Some(refusal) = verdict.refusal() {
            let _closes = self.idle(replies, refusal);
        }
    }

    /// Forgets the transaction.
    pub(super) fn reset(&mut self) {
        self.transaction = None;
        self.recipient_refused = false;
        self.recipients_bytes = 0;
        self.chunks = None;
        self.chunks_refused = false;
    }

    pub(super) fn mail(
        &mut self,
        reverse_path: ReversePath,
        parameters: MailParameters<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Step> {
        if self.helo.is_empty() {
            return self.bad(out, "503 5.5.1 Say EHLO first\r\n");
        }
        if self.transaction.is_some() {
            return self.bad(out, "503 5.5.1 MAIL was given already\r\n");
        }
        if let Some(refusal) = self.refuse_sender(&reverse_path, parameters) {
            return self.bad(out, refusal);
        }
        let declared_bytes = parameters.size_bytes.unwrap_or(0);
        if declared_bytes > self.config.max_message_bytes {
            return self.idle(out, "552 5.3.4 The message is larger than the limit\r\n");
        }
        if parameters.require_tls && !self.offers_require_tls() {
            let reply = "555 5.5.4 REQUIRETLS is not offered: the TLS of next hops is not verified here\r\n";
            return self.bad(out, reply);
        }
        match self.room {
            Room::Bytes(most) if declared_bytes <= most => {}
            Room::Bytes(_) | Room::Short => return self.idle(out, NO_ROOM),
            Room::Unwritable => {
                return self.idle(out, "451 4.3.0 Mail cannot be stored now, try again later\r\n");
            }
        }
        self.reset();
        self.transaction = Some(Transaction {
            envelope: Envelope {
                reverse_path,
                body_kind: parameters.body,
                client: Some(self.peer.addr),
                ret: parameters.ret,
                envid: parameters.envid.map(Into::into),
                smtp_utf8: parameters.smtp_utf8,
                require_tls: parameters.require_tls,
                ..Envelope::default()
            },
            declared_bytes,
        });
        if self.is_counted() {
            self.state = State::Asked;
            return Some(Step::MayMail);
        }
        push(out, &["250 2.1.0 Ok\r\n"]);
        None
    }

    pub(super) fn rcpt(
        &mut self,
        path: ForwardPath<'_>,
        parameters: RcptParameters,
        replies: &mut Vec<u8>,
    ) -> Option<Step> {
        if self.chunks.is_some() {
            return self.bad(replies, "503 5.5.1 RCPT comes before BDAT\r\n");
        }
        let Some(transaction) = &mut self.transaction else {
            return self.bad(replies, "503 5.5.1 MAIL comes before RCPT\r\n");
        };
        if parameters.needs_utf8 && !transaction.envelope.smtp_utf8 {
            return self.refuse(CommandError::NonAscii, replies);
        }
        let access = &self.config.access;
        let address = match path {
            ForwardPath::Mailbox(address) => Some(address),
            ForwardPath::Postmaster(local) => access
                .postmaster
                .clone()
                .or_else(|| Address::parse(format!("{local}@{}", self.config.hostname).as_bytes()).ok()),
        };
        // There are no mailboxes here: every recipient is somewhere else.
        let may = self.login.is_some()
            || (self.peer.may_relay && !access.submission)
            || address.as_ref().is_some_and(|address| access.is_for_everyone(address));
        if !may {
            self.recipient_refused = true;
            return self.bad(replies, "550 5.7.1 Relaying denied\r\n");
        }
        let recipients = &mut transaction.envelope.recipients;
        let reply = match address {
            Some(_)
                if recipients.len() >= self.config.max_recipients
                    || self.recipients_bytes >= limits::RECIPIENTS_BYTES =>
            {
                "452 4.5.3 Too many recipients\r\n"
            }
            Some(address) => {
                let RcptParameters { notify, original, .. } = parameters;
                let bytes = address.as_str().len() + original.as_ref().map_or(0, |o| o.len());
                self.recipients_bytes += bytes + limits::RECIPIENT_OVERHEAD_BYTES;
                recipients.push(Recipient { address, notify, original });
                push(replies, &["250 2.1.5 Ok\r\n"]);
                return None;
            }
            None => "550 5.1.1 This host has no postmaster: its name is no domain\r\n",
        };
        self.refuse_recipient(replies, reply)
    }

    pub(super) fn data(&mut self, replies: &mut Vec<u8>) -> Option<Step> {
        match &self.transaction {
            None => self.bad(replies, "503 5.5.1 MAIL and RCPT come before DATA\r\n"),
            Some(_) if self.chunks.is_some() => {
                self.bad(replies, "503 5.5.1 The message comes in chunks: go on with BDAT\r\n")
            }
            Some(transaction) if transaction.envelope.body_kind == BodyKind::Binary => {
                self.bad(replies, "503 5.5.1 BINARYMIME needs BDAT\r\n")
            }
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
    pub(super) fn read_body(
        &mut self,
        rest: &[u8],
        consumed: &mut usize,
        replies: &mut Vec<u8>,
    ) -> Option<Step> {
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
                self.idle(replies, fault.reply())
            }
            (Piece::Endless, _) => self.close_for_data(replies),
        }
    }
}
