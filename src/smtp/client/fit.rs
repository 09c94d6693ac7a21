//! Whether a message can go to a peer, and how (RFC 1870, 3030, 6152, 6531, 8689).
//!
//! Owns: what is done where a peer lacks an extension that a message was given with. Promises: a message
//! is sent as it is or not at all: nothing in it is converted, so that signatures and content survive;
//! what a client merely declared is held against the peer only if the message really needs it. Must
//! not: know the order of commands.
use super::{Capabilities, Outgoing, Transfer};
use crate::mail::envelope::{BodyForm, BodyKind};
use crate::mail::reply::Reply;
use crate::smtp::body::ChunkReader;

/// How a message goes to a peer that can take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) transfer: Transfer,
    /// What BODY= says.
    pub(super) kind: BodyKind,
    pub(super) smtp_utf8: bool,
}

/// The way of `message` to a peer that offers `offered`, or the local reply that refuses it.
pub(super) fn fit(message: &Outgoing<'_>, offered: &Capabilities) -> Result<Fit, Reply> {
    let envelope = message.envelope;
    if envelope.require_tls {
        // RFC 8689 §4.2.1 wants verified TLS at every hop, and next hops are not verified.
        return Err(refuse((550, 5, 7, 30), "REQUIRETLS: the TLS of the next hop cannot be verified"));
    }
    if offered.size.is_some_and(|max| max > 0 && message.body.len() as u64 > max) {
        return Err(refuse((552, 5, 3, 4), "the message is larger than the receiver takes"));
    }
    if envelope.smtp_utf8 && !offered.smtputf8 {
        do_without_utf8(message)?;
    }
    let kind = fit_kind(message, offered)?;
    let transfer = match envelope.body_form {
        BodyForm::DotStuffed => Transfer::Stored,
        BodyForm::Raw if offered.chunking => Transfer::Chunk,
        BodyForm::Raw => Transfer::Stuffed,
    };
    Ok(Fit { transfer, kind, smtp_utf8: envelope.smtp_utf8 && offered.smtputf8 })
}

fn refuse((code, class, subject, detail): (u16, u8, u16, u16), why: &str) -> Reply {
    Reply::local(code, (class, subject, detail), why)
}

/// Whether a message given with SMTPUTF8 can go without: it can if nothing in it is beyond ASCII where
/// SMTP and RFC 5322 want ASCII (RFC 6531 §3.2).
fn do_without_utf8(message: &Outgoing<'_>) -> Result<(), Reply> {
    let envelope = message.envelope;
    let mut addresses = message.recipients.iter().map(|r| &envelope.recipients[usize::from(*r)].address);
    if !addresses.all(|a| a.is_ascii()) || !envelope.reverse_path.as_ref().is_none_or(|a| a.is_ascii()) {
        let why = "an address is international and the receiver does not take SMTPUTF8";
        return Err(refuse((553, 5, 6, 7), why));
    }
    if !header_of(message.body).is_ascii() {
        let why = "the header is international and the receiver does not take SMTPUTF8";
        return Err(refuse((554, 5, 6, 9), why));
    }
    Ok(())
}

/// The header at the start of a message.
fn header_of(message: &[u8]) -> &[u8] {
    memchr::memmem::find(message, b"\r\n\r\n").map_or(message, |end| &message[..end])
}

/// The kind under which the body can go.
fn fit_kind(message: &Outgoing<'_>, offered: &Capabilities) -> Result<BodyKind, Reply> {
    let kind = message.envelope.body_kind;
    if kind == BodyKind::SevenBit || (kind == BodyKind::EightBit && offered.eight_bit_mime) {
        return Ok(kind);
    }
    if kind == BodyKind::Binary {
        if offered.chunking && offered.binary_mime {
            return Ok(kind);
        }
        let mut reader = ChunkReader::new(u64::MAX, false);
        if reader.take(message.body).and_then(|()| reader.end()).is_err() {
            let why = "the message is binary and the receiver does not take BINARYMIME";
            return Err(refuse((554, 5, 6, 1), why));
        }
    }
    if message.body.is_ascii() {
        return Ok(BodyKind::SevenBit);
    }
    if offered.eight_bit_mime {
        return Ok(BodyKind::EightBit);
    }
    Err(refuse((554, 5, 6, 3), "the message is 8-bit and the receiver does not take 8BITMIME"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::address::Address;
    use crate::mail::envelope::{Envelope, Recipient};

    fn offered(keywords: &str) -> Capabilities {
        let has = |keyword: &str| keywords.split(' ').any(|k| k == keyword);
        Capabilities {
            eight_bit_mime: has("8"),
            binary_mime: has("B"),
            chunking: has("C"),
            smtputf8: has("U"),
            ..Capabilities::default()
        }
    }

    fn envelope(to: &str, kind: BodyKind, form: BodyForm, smtp_utf8: bool) -> Envelope {
        let recipients = vec![Recipient::new(Address::parse_utf8(to.as_bytes()).unwrap())];
        Envelope { recipients, body_kind: kind, body_form: form, smtp_utf8, ..Envelope::default() }
    }

    /// The way as text, or the status of the refusal.
    fn way(envelope: &Envelope, body: &[u8], offers: &str) -> String {
        let message = Outgoing { key: 0, envelope, recipients: &[0], body };
        match fit(&message, &offered(offers)) {
            Ok(Fit { transfer, kind, smtp_utf8 }) => format!("{transfer:?} {kind:?} {smtp_utf8}"),
            Err(reply) => reply.status().to_string(),
        }
    }

    #[test]
    fn bodies() {
        use BodyForm::{DotStuffed, Raw};
        use BodyKind::{Binary, EightBit, SevenBit};
        let (ascii, eight, binary) = (&b"S: x\r\n\r\nb"[..], &b"S: x\r\n\r\n\xfc"[..], &b"\0\r\n\n"[..]);
        let table = [
            (SevenBit, DotStuffed, ascii, "C B 8", "Stored SevenBit false"),
            (SevenBit, Raw, ascii, "C", "Chunk SevenBit false"),
            (SevenBit, Raw, ascii, "", "Stuffed SevenBit false"),
            // 8-bit that was not declared is passed on as it came.
            (SevenBit, DotStuffed, eight, "", "Stored SevenBit false"),
            (EightBit, DotStuffed, eight, "8", "Stored EightBit false"),
            (EightBit, DotStuffed, eight, "", "5.6.3"),
            (EightBit, DotStuffed, ascii, "", "Stored SevenBit false"),
            (EightBit, Raw, eight, "8", "Stuffed EightBit false"),
            (EightBit, Raw, eight, "C", "5.6.3"),
            (Binary, Raw, binary, "C B 8", "Chunk Binary false"),
            (Binary, Raw, binary, "C 8", "5.6.1"),
            (Binary, Raw, binary, "B 8", "5.6.1"),
            (Binary, Raw, ascii, "", "Stuffed SevenBit false"),
            (Binary, Raw, eight, "8", "Stuffed EightBit false"),
            (Binary, Raw, eight, "", "5.6.3"),
        ];
        for (kind, form, body, offers, expected) in table {
            let envelope = envelope("a@b", kind, form, false);
            assert_eq!(way(&envelope, body, offers), expected, "{kind:?} {form:?} to `{offers}`");
        }
    }

    #[test]
    fn international_mail() {
        let (ascii, utf8) = ("Subject: x\r\n\r\n\u{fc}\r\n", "Subject: \u{fc}\r\n\r\nx\r\n");
        let table = [
            ("j\u{fc}@b", ascii, "U 8", "Stored EightBit true"),
            ("j\u{fc}@b", ascii, "8", "5.6.7"),
            ("a@b", ascii, "8", "Stored EightBit false"),
            // The domain of an address is kept as an A-label.
            ("a@b\u{fc}.c", ascii, "8", "Stored EightBit false"),
            ("a@b", utf8, "8", "5.6.9"),
            ("a@b", utf8, "U 8", "Stored EightBit true"),
        ];
        for (to, body, offers, expected) in table {
            let envelope = envelope(to, BodyKind::EightBit, BodyForm::DotStuffed, true);
            assert_eq!(way(&envelope, body.as_bytes(), offers), expected, "{to} to `{offers}`");
        }
        let mut from = envelope("a@b", BodyKind::SevenBit, BodyForm::DotStuffed, true);
        from.reverse_path = Address::parse_utf8("j\u{fc}@b".as_bytes()).ok();
        assert_eq!(way(&from, b"", ""), "5.6.7");
    }

    #[test]
    fn what_no_peer_can_have() {
        let mut envelope = envelope("a@b", BodyKind::SevenBit, BodyForm::DotStuffed, false);
        envelope.require_tls = true;
        assert_eq!(way(&envelope, b"", "8 U C B"), "5.7.30");
    }
}
