//! The envelope as typed fields.
//!
//! Owns: the field numbers of the envelope and their codec (`docs/LOG_FORMAT.md`, section 6). Promises:
//! decoding is bounded and never panics; an unknown field is skipped, and where its must-understand bit
//! is set the message is [`Hold`] rather than delivered without it. Must not: judge addresses (the
//! `mail` types do).
use std::net::IpAddr;

use super::Reports;
use super::change::{self, Change, Standings};
use super::format::{put, u16_at, u32_at, u64_at};
use super::reader::Hold;
use crate::clock::WallTime;
use crate::mail::address::Address;
use crate::mail::envelope::{BodyForm, BodyKind, Envelope, Notify, Recipient, Return};
use crate::mail::id::MessageId;

/// Bit of a field number: who does not know the field must not act on the message.
pub(super) const MUST_UNDERSTAND: u16 = 0x8000;
/// Bytes in front of a field's value: number and length.
pub(super) const FIELD_HEADER_BYTES: usize = 6;

const REVERSE_PATH: u16 = 1 | MUST_UNDERSTAND;
const RECIPIENT: u16 = 2 | MUST_UNDERSTAND;
const BODY_KIND: u16 = 3 | MUST_UNDERSTAND;
const BODY_FORM: u16 = 4 | MUST_UNDERSTAND;
const RECEIVED_AT: u16 = 5;
const CLIENT: u16 = 6;
const REPORTS: u16 = 7 | MUST_UNDERSTAND;
/// Only in copies: what an operator had decided when the copy was made.
const CHANGE: u16 = 28 | MUST_UNDERSTAND;
// A report with less in it than was asked for does no harm; one that must not be sent does.
const RET: u16 = 16;
const ENVID: u16 = 17;
const NOTIFY: u16 = 18 | MUST_UNDERSTAND;
const ORIGINAL_RECIPIENT: u16 = 19;
// Who does not know these would send the message to hosts that must not have it.
const REQUIRE_TLS: u16 = 20 | MUST_UNDERSTAND;
const SMTP_UTF8: u16 = 21 | MUST_UNDERSTAND;
const USER: u16 = 23;
const STREAM: u16 = 24;
const PRIORITY: u16 = 27;

/// Bytes of the fields of `envelope` and `reports`.
pub(super) fn encoded_bytes(envelope: &Envelope, reports: Option<Reports<'_>>) -> usize {
    let field = |value: usize| FIELD_HEADER_BYTES + value;
    let client = match envelope.client {
        Some(IpAddr::V4(_)) => field(4),
        Some(IpAddr::V6(_)) => field(16),
        None => 0,
    };
    let text = |value: &Option<Box<str>>| value.as_ref().map_or(0, |value| field(value.len()));
    let recipient = |r: &Recipient| {
        field(r.address.as_str().len()) + r.notify.map_or(0, |_| field(1)) + text(&r.original)
    };
    field(envelope.reverse_path.as_ref().map_or(0, |a| a.as_str().len()))
        + envelope.recipients.iter().map(recipient).sum::<usize>()
        + envelope.ret.map_or(0, |_| field(1))
        + text(&envelope.envid)
        + if envelope.require_tls { field(0) } else { 0 }
        + if envelope.smtp_utf8 { field(0) } else { 0 }
        + 2 * field(1)
        + field(8)
        + client
        + text(&envelope.user)
        + text(&envelope.stream)
        + if envelope.urgent { field(1) } else { 0 }
        + reports.map_or(0, |r| field(8 + 2 * r.recipients.len()))
}

/// Writes the fields to the start of `out`; [`encoded_bytes`] says how many bytes they take.
pub(super) fn encode(envelope: &Envelope, reports: Option<Reports<'_>>, out: &mut [u8]) {
    let mut writer = FieldWriter { out, at: 0 };
    writer.field(REVERSE_PATH, envelope.reverse_path.as_ref().map_or(&[], |a| a.as_str().as_bytes()));
    for recipient in &envelope.recipients {
        writer.field(RECIPIENT, recipient.address.as_str().as_bytes());
        if let Some(notify) = recipient.notify {
            writer.field(NOTIFY, &[notify.bits()]);
        }
        if let Some(original) = &recipient.original {
            writer.field(ORIGINAL_RECIPIENT, original.as_bytes());
        }
    }
    let kind = match envelope.body_kind {
        BodyKind::SevenBit => 0,
        BodyKind::EightBit => 1,
        BodyKind::Binary => 2,
    };
    let form = match envelope.body_form {
        BodyForm::DotStuffed => 0,
        BodyForm::Raw => 1,
    };
    writer.field(BODY_KIND, &[kind]);
    writer.field(BODY_FORM, &[form]);
    writer.field(RECEIVED_AT, &envelope.received_at.0.to_le_bytes());
    match envelope.client {
        Some(IpAddr::V4(ip)) => writer.field(CLIENT, &ip.octets()),
        Some(IpAddr::V6(ip)) => writer.field(CLIENT, &ip.octets()),
        None => {}
    }
    encode_wishes(envelope, &mut writer);
    if let Some(user) = &envelope.user {
        writer.field(USER, user.as_bytes());
    }
    if let Some(stream) = &envelope.stream {
        writer.field(STREAM, stream.as_bytes());
    }
    if envelope.urgent {
        writer.field(PRIORITY, &[1]);
    }
    if let Some(reports) = reports {
        let value = writer.value(REPORTS, 8 + 2 * reports.recipients.len());
        put(value, 0, &reports.id.0.to_le_bytes());
        for (i, recipient) in reports.recipients.iter().enumerate() {
            put(value, 8 + 2 * i, &recipient.to_le_bytes());
        }
    }
}

/// What the client asked for beyond delivery.
fn encode_wishes(envelope: &Envelope, writer: &mut FieldWriter<'_>) {
    match envelope.ret {
        Some(Return::Full) => writer.field(RET, &[0]),
        Some(Return::Headers) => writer.field(RET, &[1]),
        None => {}
    }
    if let Some(envid) = &envelope.envid {
        writer.field(ENVID, envid.as_bytes());
    }
    if envelope.require_tls {
        writer.field(REQUIRE_TLS, &[]);
    }
    if envelope.smtp_utf8 {
        writer.field(SMTP_UTF8, &[]);
    }
}

/// Writes fields one behind the other.
pub(super) struct FieldWriter<'a> {
    pub(super) out: &'a mut [u8],
    pub(super) at: usize,
}

impl FieldWriter<'_> {
    /// A field whose value of `bytes` bytes the caller fills in.
    pub(super) fn value(&mut self, number: u16, bytes: usize) -> &mut [u8] {
        put(self.out, self.at, &number.to_le_bytes());
        put(self.out, self.at + 2, &(bytes as u32).to_le_bytes());
        let start = self.at + FIELD_HEADER_BYTES;
        self.at = start + bytes;
        &mut self.out[start..self.at]
    }
    pub(super) fn field(&mut self, number: u16, value: &[u8]) {
        self.value(number, value.len()).copy_from_slice(value);
    }
}

/// The fields in `bytes`: (number with its bit, value). Ends with `None` in place of a field that runs
/// past the end.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> + Clone {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let whole = bytes.len() >= FIELD_HEADER_BYTES
            && (u32_at(bytes, 2) as usize) <= bytes.len() - FIELD_HEADER_BYTES;
        if !whole {
            bytes = &[];
            return Some(None);
        }
        let number = u16_at(bytes, 0);
        let (value, rest) = bytes[FIELD_HEADER_BYTES..].split_at(u32_at(bytes, 2) as usize);
        bytes = rest;
        Some(Some((number, value)))
    })
}

/// The fields of a copy: those of the older record, with what operators have decided since.
pub(super) fn with_standings(older: &[u8], standings: Option<&Standings>) -> Vec<u8> {
    let kept = fields(older).flatten().filter(|(number, _)| *number != CHANGE);
    let groups = standings.map(change::grouped).unwrap_or_default();
    let sizes: Vec<usize> = groups.iter().map(|(s, r)| change::encoded_bytes(r.len(), s)).collect();
    let bytes = kept.clone().map(|(_, value)| value.len()).chain(sizes.iter().copied());
    let mut out = vec![0; bytes.map(|bytes| FIELD_HEADER_BYTES + bytes).sum()];
    let mut writer = FieldWriter { out: &mut out, at: 0 };
    kept.for_each(|(number, value)| writer.field(number, value));
    for ((standing, recipients), bytes) in groups.iter().zip(sizes) {
        change::encode(recipients.iter().copied(), standing, writer.value(CHANGE, bytes));
    }
    out
}

/// Whether a copy needs other fields than its original.
pub(super) fn has_standings(bytes: &[u8]) -> bool {
    fields(bytes).flatten().any(|(number, _)| number == CHANGE)
}

/// What a commit record says about its message.
#[derive(Clone, Debug)]
pub(super) struct Decoded {
    /// As much of it as could be read.
    pub(super) envelope: Envelope,
    pub(super) reports: Option<(MessageId, Vec<u16>)>,
    pub(super) changes: Vec<Change>,
    /// Why the message must not be delivered.
    pub(super) hold: Option<Hold>,
}

/// Decodes the fields in `bytes`. Never fails: what cannot be read becomes a hold.
pub(super) fn decode(bytes: &[u8]) -> Decoded {
    let mut decoded =
        Decoded { envelope: Envelope::default(), reports: None, changes: Vec::new(), hold: None };
    let mut sender_seen = false;
    for field in fields(bytes) {
        let hold = match field {
            Some((REVERSE_PATH, value)) => {
                sender_seen = true;
                decode_sender(value, &mut decoded.envelope)
            }
            Some((number, value)) => decode_field(number, value, &mut decoded),
            None => Some(Hold::Unreadable),
        };
        decoded.hold = decoded.hold.or(hold);
    }
    // A message to nobody from nobody was not written by any version: the fields are not what they seem.
    if !sender_seen || decoded.envelope.recipients.is_empty() {
        decoded.hold = decoded.hold.or(Some(Hold::Unreadable));
    }
    decoded
}

fn decode_sender(value: &[u8], envelope: &mut Envelope) -> Option<Hold> {
    if value.is_empty() {
        return None;
    }
    envelope.reverse_path = Address::parse_utf8(value).ok();
    envelope.reverse_path.is_none().then_some(Hold::Unreadable)
}

fn decode_field(number: u16, value: &[u8], decoded: &mut Decoded) -> Option<Hold> {
    let envelope = &mut decoded.envelope;
    match (number, value) {
        (RECIPIENT, _) => match Address::parse_utf8(value) {
            Ok(address) => envelope.recipients.push(Recipient::new(address)),
            Err(_) => return Some(Hold::Unreadable),
        },
        (BODY_KIND, [0]) => envelope.body_kind = BodyKind::SevenBit,
        (BODY_KIND, [1]) => envelope.body_kind = BodyKind::EightBit,
        (BODY_KIND, [2]) => envelope.body_kind = BodyKind::Binary,
        (BODY_FORM, [0]) => envelope.body_form = BodyForm::DotStuffed,
        (BODY_FORM, [1]) => envelope.body_form = BodyForm::Raw,
        (RECEIVED_AT, _) if value.len() == 8 => envelope.received_at = WallTime(u64_at(value, 0)),
        (CLIENT, _) => {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            envelope.client = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
        }
        (USER, _) => envelope.user = std::str::from_utf8(value).ok().map(Box::from),
        (STREAM, _) => envelope.stream = std::str::from_utf8(value).ok().map(Box::from),
        (PRIORITY, _) => envelope.urgent = value == [1],
        (REPORTS, _) if value.len() >= 8 && value.len().is_multiple_of(2) => {
            let recipients = value[8..].chunks_exact(2).map(|c| u16_at(c, 0)).collect();
            decoded.reports = Some((MessageId(u64_at(value, 0)), recipients));
        }
        (CHANGE, _) => match change::decode(value) {
            Some(change) => decoded.changes.push(change),
            None => return Some(Hold::Unreadable),
        },
        (RET, [0]) => envelope.ret = Some(Return::Full),
        (RET, [1]) => envelope.ret = Some(Return::Headers),
        (ENVID, _) => envelope.envid = printable(value),
        (NOTIFY, [bits]) => {
            let (Some(notify), Some(recipient)) = (Notify::from_bits(*bits), envelope.recipients.last_mut())
            else {
                return Some(Hold::Unreadable);
            };
            recipient.notify = Some(notify);
        }
        (ORIGINAL_RECIPIENT, _) => {
            if let Some(recipient) = envelope.recipients.last_mut() {
                recipient.original = printable(value);
            }
        }
        (REQUIRE_TLS, []) => envelope.require_tls = true,
        (SMTP_UTF8, []) => envelope.smtp_utf8 = true,
        (BODY_KIND | BODY_FORM | REPORTS | NOTIFY | REQUIRE_TLS | SMTP_UTF8, _) => {
            return Some(Hold::Unreadable);
        }
        _ if number & MUST_UNDERSTAND != 0 => {
            return Some(Hold::UnknownField(number & !MUST_UNDERSTAND));
        }
        _ => {}
    }
    None
}

/// A text that will stand in a command.
fn printable(value: &[u8]) -> Option<Box<str>> {
    let safe = value.iter().all(|b| matches!(b, b'!'..=b'~'));
    std::str::from_utf8(value).ok().filter(|_| safe).map(Into::into)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes()).expect("valid")
    }

    fn bytes_of(envelope: &Envelope, reports: Option<Reports<'_>>) -> Vec<u8> {
        let mut out = vec![0; encoded_bytes(envelope, reports)];
        encode(envelope, reports, &mut out);
        out
    }

    fn example() -> Envelope {
        Envelope {
            reverse_path: Some(address("a@example.org")),
            recipients: vec![
                Recipient::new(address("b@example.com")),
                Recipient::new(address("c@example.net")),
            ],
            body_kind: BodyKind::EightBit,
            body_form: BodyForm::Raw,
            received_at: WallTime(123_456_789),
            client: Some(IpAddr::from([192, 0, 2, 1])),
            user: Some("j\u{fc}rgen@example.org".into()),
            stream: Some("campaign 7".into()),
            urgent: true,
            ..Envelope::default()
        }
    }

    #[test]
    fn envelopes_round_trip() {
        let bounce = Envelope {
            reverse_path: None,
            client: None,
            body_kind: BodyKind::Binary,
            body_form: BodyForm::DotStuffed,
            ..example()
        };
        let mut wishes = Envelope {
            ret: Some(Return::Full),
            envid: Some("QQ+2B314".into()),
            smtp_utf8: true,
            require_tls: true,
            reverse_path: Address::parse_utf8("j\u{fc}@example.org".as_bytes()).ok(),
            ..example()
        };
        wishes.recipients[0].notify = Some(Notify::NEVER);
        wishes.recipients[1].notify = Notify::from_bits(5);
        wishes.recipients[1].original = Some("rfc822;c@example.net".into());
        let headers = Envelope { ret: Some(Return::Headers), ..example() };
        let v6 = Envelope { client: Some("2001:db8::1".parse().expect("valid")), ..example() };
        for envelope in [example(), bounce, v6, wishes, headers] {
            let decoded = decode(&bytes_of(&envelope, None));
            assert_eq!(decoded.envelope, envelope);
            assert_eq!((decoded.reports, decoded.hold), (None, None));
        }
        let reports = Reports { id: MessageId(7), recipients: &[0, 65535] };
        let decoded = decode(&bytes_of(&example(), Some(reports)));
        assert_eq!(decoded.reports, Some((MessageId(7), vec![0, 65535])));
    }

    #[test]
    fn unknown_fields_are_skipped_or_hold() {
        let mut bytes = bytes_of(&example(), None);
        bytes.extend([0x1f, 0x00, 2, 0, 0, 0, 9, 9]);
        assert_eq!(decode(&bytes).hold, None);
        bytes.extend([0x1f, 0x80, 0, 0, 0, 0]);
        let decoded = decode(&bytes);
        assert_eq!(decoded.hold, Some(Hold::UnknownField(0x1f)));
        assert_eq!(decoded.envelope, example());
    }

    #[test]
    fn what_cannot_be_read_holds() {
        let bytes = bytes_of(&example(), None);
        for cut in 0..bytes.len() {
            let decoded = decode(&bytes[..cut]);
            assert!(
                decoded.hold.is_some() || decoded.envelope != example() || cut + 10 == bytes.len(),
                "{cut}"
            );
        }
        assert_eq!(decode(&[]).hold, Some(Hold::Unreadable));
    }

    #[test]
    fn wishes_that_cannot_be_read() {
        let field = |number: u16, value: &[u8]| {
            let mut bytes = bytes_of(&example(), None);
            bytes.extend(number.to_le_bytes());
            bytes.extend((value.len() as u32).to_le_bytes());
            bytes.extend(value);
            decode(&bytes)
        };
        let table = [(NOTIFY, &[8][..]), (NOTIFY, &[]), (REQUIRE_TLS, &[1]), (SMTP_UTF8, &[1])];
        for (number, value) in table {
            assert_eq!(field(number, value).hold, Some(Hold::Unreadable), "{number:x}");
        }
        // What only a report would have shown is left out.
        for (number, value) in [(ENVID, &b"a\r\nb"[..]), (ORIGINAL_RECIPIENT, b"a b"), (RET, &[9])] {
            let decoded = field(number, value);
            assert_eq!((decoded.hold, decoded.envelope), (None, example()), "{number:x}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
        #[test]
        fn arbitrary_fields_never_panic(
            list in prop::collection::vec((0u16..24, any::<bool>(), prop::collection::vec(any::<u8>(), 0..20)), 0..8)
        ) {
            let mut bytes = Vec::new();
            for (number, must, value) in list {
                bytes.extend((number | if must { MUST_UNDERSTAND } else { 0 }).to_le_bytes());
                bytes.extend((value.len() as u32).to_le_bytes());
                bytes.extend(value);
            }
            let _ = decode(&bytes);
        }
    }
}
