//! Mail that comes over HTTP: accepted as what comes over SMTP is.
//!
//! Owns: the way of such a message through the checks that SMTP's end of data has, into
//! [`Incoming`]. Promises: nothing is accepted that an SMTP client that may relay could not have sent, and
//! an id is given only when the message is durable. Must not: know JSON or HTTP.
use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;

use super::Worker;
use super::incoming::{self, Credentials, Incoming, Opening, Stored};
use crate::control::{Injected, Injection, Refused};
use crate::mail::address::Domain;
use crate::mail::envelope::Envelope;
use crate::smtp::body::{BodyReader, DotStuffer, Fault, Piece};
use crate::smtp::server::{Room, Verdict};

/// As the trace header names the way it came.
const PROTOCOL: &str = "HTTP";

/// Stores a message, and says when it is durable.
pub async fn accept(worker: &Rc<Worker>, injection: Injection, client: IpAddr) -> Injected {
    let counters = &worker.counters;
    if worker.draining.get() {
        return Injected::Refused(Refused::Unavailable, "421 4.3.2 Service shutting down".into());
    }
    let Injection { envelope, message } = injection;
    let body = match wire_form(&message, worker.shared.config.max_message_bytes) {
        Ok(body) => body,
        Err(fault) => {
            counters.rejected_permanently.add(1);
            let why = if fault == Fault::TooLarge { Refused::TooLarge } else { Refused::Content };
            return Injected::Refused(why, text_of(fault.reply()));
        }
    };
    drop(message);
    // As MAIL with its SIZE is answered.
    let verdict = match worker.room_for_mail() {
        Room::Bytes(most) if body.len() as u64 <= most => store(worker, envelope, body, client).await,
        Room::Bytes(_) | Room::Short => Verdict::NoRoom,
        Room::Unwritable => Verdict::Failed,
    };
    let (why, counter) = match verdict {
        Verdict::Accepted(id) => return Injected::Accepted(id),
        Verdict::NoRoom => (Refused::NoRoom, &counters.rejected_temporarily),
        Verdict::Failed | Verdict::Busy => (Refused::Unavailable, &counters.rejected_temporarily),
        Verdict::Loop => (Refused::Content, &counters.rejected_permanently),
    };
    counter.add(1);
    Injected::Refused(why, text_of(verdict.refusal().unwrap_or_default()))
}

async fn store(worker: &Rc<Worker>, envelope: Envelope, body: Vec<u8>, client: IpAddr) -> Verdict {
    let literal = Domain::from_ip(client.to_canonical());
    let opening = Opening {
        client,
        tls: None,
        user: None,
        names_stream: true,
        helo: literal.as_str(),
        protocol: PROTOCOL,
        envelope: &envelope,
        declared_bytes: body.len() as u64,
        is_submission: true,
    };
    let mut incoming = Incoming::begin(worker, &opening);
    incoming.take_whole(worker, &body).await;
    drop(body);
    match incoming.store(worker, envelope).await {
        Stored::Durable { slot, message, bytes } => {
            incoming::accept(worker, slot, &message, bytes, Credentials::default);
            Verdict::Accepted(message.id)
        }
        Stored::NoRoom => Verdict::NoRoom,
        Stored::Failed => Verdict::Failed,
        Stored::Loop => Verdict::Loop,
        Stored::Busy => Verdict::Busy,
    }
}

/// A reply without its line end.
fn text_of(reply: &'static str) -> Cow<'static, str> {
    reply.trim_end().into()
}

/// The message as DATA carries it, without the final dot, if it is one that DATA may carry.
fn wire_form(message: &[u8], max_bytes: u64) -> Result<Vec<u8>, Fault> {
    let mut data = Vec::with_capacity(message.len() + message.len() / 64 + 8);
    let mut stuffer = DotStuffer::default();
    stuffer.push(message, &mut data);
    stuffer.end(&mut data);
    let mut reader = BodyReader::new(max_bytes);
    let mut bytes = 0;
    loop {
        match reader.next(&data[bytes..]) {
            Piece::Text(more) => bytes += more,
            Piece::Fault(fault) => return Err(fault),
            Piece::End(_) => break,
            Piece::Unclear | Piece::Endless => {
                unreachable!("stuffed data ends in a dot line, and nothing is read behind a fault")
            }
        }
    }
    data.truncate(bytes);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_as_data_carries_them() {
        for (message, expected) in [
            ("Subject: a\r\n\r\nb\r\n", Ok("Subject: a\r\n\r\nb\r\n")),
            ("a", Ok("a\r\n")),
            (".\r\n", Ok("..\r\n")),
            ("a\r\n.\r\nMAIL FROM:<>\r\n", Ok("a\r\n..\r\nMAIL FROM:<>\r\n")),
            ("a\r\n.", Ok("a\r\n..\r\n")),
            ("a\rb\r\n", Err(Fault::BareCr)),
            ("a\r", Err(Fault::BareCr)),
            ("a\nb", Err(Fault::BareLf)),
            ("a\0\r\n", Err(Fault::Nul)),
            ("0123456789012345678901234567890123456789\r\n", Err(Fault::TooLarge)),
            ("a\r.\r\nb\r\n", Err(Fault::BareCr)),
        ] {
            let expected = expected.map(|text: &str| text.as_bytes().to_vec());
            assert_eq!(wire_form(message.as_bytes(), 40), expected, "{message:?}");
        }
        let long = format!("{}\r\n", "x".repeat(crate::limits::TEXT_LINE_BYTES));
        assert_eq!(wire_form(long.as_bytes(), 1 << 20), Err(Fault::LongLine));
    }
}
