//! BDAT (RFC 3030).
//!
//! Owns: the order of chunks, what is kept of them and what is dropped. Promises: the bytes that BDAT
//! announced are read as data whatever becomes of them, so that no part of a message can pass for a
//! command; each chunk has one reply; the last one is answered like the end of DATA. Must not: look
//! for the end of data in data.
use std::io::Write;

use super::{ServerSession, State, Step};
use crate::limits;
use crate::mail::envelope::{BodyForm, BodyKind};
use crate::smtp::body::ChunkReader;

/// A chunk that is being received.
#[derive(Debug)]
pub(super) struct Chunk {
    /// What BDAT said.
    bytes: u64,
    last: bool,
    /// Bytes still to come.
    left: u64,
    refusal: Option<Refusal>,
}

/// Why a chunk is dropped.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    reply: &'static str,
    /// Whether the client should have known.
    is_error: bool,
}

impl Refusal {
    fn error(reply: &'static str) -> Option<Refusal> {
        Some(Refusal { reply, is_error: true })
    }
    fn of_message(reply: &'static str) -> Option<Refusal> {
        Some(Refusal { reply, is_error: false })
    }
}

impl Chunk {
    /// Whether all of it has been read.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }
}

const TOO_LARGE: &str = "552 5.3.4 Message refused: it is larger than the limit\r\n";

impl ServerSession {
    pub(super) fn bdat(&mut self, bytes: u64, last: bool) -> Option<Step> {
        let mut refusal = self.refuse_chunk();
        let mut step = None;
        if refusal.is_none() {
            let begun = self.begin_chunks();
            if self.chunks.as_ref().is_some_and(|chunks| chunks.exceeds(bytes)) {
                refusal = Refusal::of_message(TOO_LARGE);
                // Of a message that has not begun nothing is held.
                step = self.drop_message(last).filter(|_| !begun);
            } else {
                step = begun.then_some(Step::BodyStarts);
            }
        }
        self.state = State::Chunk(Chunk { bytes, last, left: bytes, refusal });
        step
    }

    /// Why a chunk cannot be taken now.
    fn refuse_chunk(&self) -> Option<Refusal> {
        match &self.transaction {
            _ if self.chunks_refused => Refusal::of_message("503 5.5.1 The message was refused already\r\n"),
            None => Refusal::error("503 5.5.1 MAIL and RCPT come before BDAT\r\n"),
            Some(transaction) if !transaction.envelope.recipients.is_empty() => None,
            Some(_) if self.recipient_refused => Refusal::of_message("554 5.5.1 No valid recipients\r\n"),
            Some(_) => Refusal::error("503 5.5.1 RCPT comes before BDAT\r\n"),
        }
    }

    /// Sees to it that chunks can be taken. True if this is the first.
    fn begin_chunks(&mut self) -> bool {
        let Some(transaction) = self.transaction.as_mut().filter(|_| self.chunks.is_none()) else {
            return false;
        };
        let envelope = &mut transaction.envelope;
        envelope.body_form = BodyForm::Raw;
        let binary = envelope.body_kind == BodyKind::Binary;
        self.chunks = Some(ChunkReader::new(self.config.max_message_bytes, binary));
        true
    }

    /// The message is refused at a chunk. What is held of it must go.
    fn drop_message(&mut self, last: bool) -> Option<Step> {
        self.reset();
        self.chunks_refused = !last;
        Some(Step::BodyRefused)
    }

    /// Takes back what was sent in chunks, if anything was.
    pub(super) fn withdraw_chunks(&mut self) -> Option<Step> {
        self.chunks_refused = false;
        self.chunks.take().map(|_| Step::BodyWithdrawn)
    }

    /// Reads data of a chunk that is not whole yet.
    pub(super) fn read_chunk(
        &mut self,
        rest: &[u8],
        consumed: &mut usize,
        replies: &mut Vec<u8>,
    ) -> Option<Step> {
        let State::Chunk(chunk) = &mut self.state else {
            return None;
        };
        let bytes = usize::try_from(chunk.left).unwrap_or(usize::MAX).min(rest.len());
        if bytes == 0 {
            return None;
        }
        if chunk.refusal.is_some() {
            chunk.left -= bytes as u64;
            *consumed += bytes;
            self.dropped_bytes += bytes as u64;
            if self.dropped_bytes <= limits::REFUSED_BODY_BYTES {
                return None;
            }
            return self.close_for_data(replies);
        }
        let checked = self.chunks.as_mut().map_or(Ok(()), |chunks| chunks.take(&rest[..bytes]));
        if let Err(fault) = checked {
            chunk.refusal = Refusal::of_message(fault.reply());
            let last = chunk.last;
            return self.drop_message(last);
        }
        chunk.left -= bytes as u64;
        let start = *consumed;
        *consumed += bytes;
        Some(Step::Body(start..*consumed))
    }

    /// Answers a chunk that has been read.
    pub(super) fn end_chunk(&mut self, replies: &mut Vec<u8>) -> Option<Step> {
        let State::Chunk(chunk) = &mut self.state else {
            return None;
        };
        let (bytes, last, refusal) = (chunk.bytes, chunk.last, chunk.refusal);
        if let Some(refusal) = refusal {
            self.state = State::Commands;
            self.chunks_refused &= !last;
            return match refusal.is_error {
                true => self.bad(replies, refusal.reply),
                false => self.idle(replies, refusal.reply),
            };
        }
        if !last {
            self.state = State::Commands;
            write!(replies, "250 2.0.0 {bytes} bytes received\r\n").expect("writing to memory does not fail");
            // Chunks of next to nothing are talk.
            return if bytes < limits::SMALL_CHUNK_BYTES { self.idle(replies, "") } else { None };
        }
        match self.chunks.take().map_or(Ok(()), |chunks| chunks.end()) {
            Ok(()) => {
                self.state = State::Verdict;
                Some(Step::BodyEnds)
            }
            Err(fault) => {
                chunk.refusal = Refusal::of_message(fault.reply());
                self.drop_message(last)
            }
        }
    }
}
