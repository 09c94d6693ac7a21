//! Outcomes as typed fields.
//!
//! Owns: the payload of an outcome frame: which recipients of a message stand where
//! (`docs/LOG_FORMAT.md`, section 7). Promises: decoding is bounded and never panics; applying the same
//! record twice changes nothing. Must not: decide outcomes.
use super::envelope::{FIELD_HEADER_BYTES, FieldWriter, fields};
use super::format::{put, u16_at, u64_at};
use super::{End, Outcome, RecipientState, Tries};
use crate::clock::WallTime;
use crate::mail::reply::Reply;

/// When the outcome came about.
const AT: u16 = 1;
/// Where one recipient stands.
const RECIPIENT: u16 = 2 | super::envelope::MUST_UNDERSTAND;

const DELIVERED: u8 = 1;
const DEFERRED: u8 = 2;
const FAILED: u8 = 3;
const REMOVED: u8 = 4;
const QUARANTINED: u8 = 5;

/// Bytes of a recipient's value in front of the reply's text.
const RECIPIENT_FIXED_BYTES: usize = 20;

/// An outcome as it is recorded: what deliveries come to, and what only the log itself can find.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recorded<'a> {
    Outcome(&'a Outcome),
    /// The disk damaged the message: it cannot be delivered.
    Quarantined,
}

impl Recorded<'_> {
    /// Where the recipient stands afterwards.
    pub(super) fn state(&self) -> RecipientState {
        match self {
            Recorded::Outcome(Outcome::Deferred { tries, next, .. }) => {
                RecipientState::Pending { tries: *tries, next: *next }
            }
            Recorded::Outcome(Outcome::Delivered(_)) => RecipientState::Done(End::Delivered),
            Recorded::Outcome(Outcome::Failed(_)) => RecipientState::Done(End::Failed),
            Recorded::Outcome(Outcome::Removed) => RecipientState::Done(End::Removed),
            Recorded::Quarantined => RecipientState::Done(End::Quarantined),
        }
    }
    /// Whether the recipient is as far from its end as before.
    pub(super) fn is_deferral(&self) -> bool {
        matches!(self, Recorded::Outcome(Outcome::Deferred { .. }))
    }
    fn reply(&self) -> Option<&Reply> {
        match self {
            Recorded::Outcome(
                Outcome::Delivered(reply) | Outcome::Failed(reply) | Outcome::Deferred { reply, .. },
            ) => Some(reply),
            _ => None,
        }
    }
}

/// Bytes of the field for one recipient.
pub(super) fn entry_bytes(recorded: &Recorded<'_>) -> usize {
    FIELD_HEADER_BYTES + RECIPIENT_FIXED_BYTES + recorded.reply().map_or(0, |r| r.text.len())
}

/// Bytes of the payload in front of the recipients.
pub(super) const FIXED_BYTES: usize = FIELD_HEADER_BYTES + 8;

/// Writes a payload: `out` is exactly [`FIXED_BYTES`] and the [`entry_bytes`] of each.
pub(super) fn encode<'a>(now: WallTime, entries: impl Iterator<Item = (u16, Recorded<'a>)>, out: &mut [u8]) {
    let mut writer = FieldWriter { out, at: 0 };
    writer.field(AT, &now.0.to_le_bytes());
    for (recipient, recorded) in entries {
        let value = writer.value(RECIPIENT, entry_bytes(&recorded) - FIELD_HEADER_BYTES);
        value[..RECIPIENT_FIXED_BYTES].fill(0);
        put(value, 0, &recipient.to_le_bytes());
        value[2] = match recorded {
            Recorded::Outcome(Outcome::Delivered(_)) => DELIVERED,
            Recorded::Outcome(Outcome::Deferred { .. }) => DEFERRED,
            Recorded::Outcome(Outcome::Failed(_)) => FAILED,
            Recorded::Outcome(Outcome::Removed) => REMOVED,
            Recorded::Quarantined => QUARANTINED,
        };
        if let RecipientState::Pending { tries, next } = recorded.state() {
            value[3] = tries.byte();
            put(value, 4, &next.0.to_le_bytes());
        }
        if let Some(reply) = recorded.reply() {
            put(value, 12, &reply.code.to_le_bytes());
            if let Some(e) = reply.enhanced {
                value[14] = e.class;
                put(value, 16, &e.subject.to_le_bytes());
                put(value, 18, &e.detail.to_le_bytes());
            }
            put(value, RECIPIENT_FIXED_BYTES, reply.text.as_bytes());
        }
    }
}

/// The payload without what was said: only where recipients stand, which [`decode`] reads.
pub(super) fn without_replies(payload: &[u8], out: &mut Vec<u8>) {
    for (number, value) in fields(payload).flatten() {
        let bytes = if number == RECIPIENT { value.len().min(RECIPIENT_FIXED_BYTES) } else { value.len() };
        if number == RECIPIENT || number & super::envelope::MUST_UNDERSTAND != 0 {
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&(bytes as u32).to_le_bytes());
            out.extend_from_slice(&value[..bytes]);
        }
    }
}

/// The states a payload records, in order; an entry that cannot be read is `None`.
pub(super) fn decode(payload: &[u8]) -> impl Iterator<Item = Option<(u16, RecipientState)>> {
    fields(payload).filter_map(|field| {
        let Some((number, value)) = field else { return Some(None) };
        if number != RECIPIENT {
            return (number & super::envelope::MUST_UNDERSTAND != 0).then_some(None);
        }
        if value.len() < RECIPIENT_FIXED_BYTES {
            return Some(None);
        }
        let state = match value[2] {
            DELIVERED => RecipientState::Done(End::Delivered),
            FAILED => RecipientState::Done(End::Failed),
            REMOVED => RecipientState::Done(End::Removed),
            QUARANTINED => RecipientState::Done(End::Quarantined),
            DEFERRED => RecipientState::Pending {
                tries: Tries::from_byte(value[3]),
                next: WallTime(u64_at(value, 4)),
            },
            _ => return Some(None),
        };
        Some(Some((u16_at(value, 0), state)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn outcomes_round_trip_to_states() {
        let reply = Reply::local(450, (4, 2, 1), "later");
        let next = WallTime(1_800_000_000_000_123);
        let tries = Tries::new(3, true);
        let deferred = RecipientState::Pending { tries, next };
        let table: [(Recorded<'_>, RecipientState); 5] = [
            (Recorded::Outcome(&Outcome::Delivered(reply.clone())), RecipientState::Done(End::Delivered)),
            (Recorded::Outcome(&Outcome::Deferred { tries, next, reply: reply.clone() }), deferred),
            (Recorded::Outcome(&Outcome::Failed(reply.clone())), RecipientState::Done(End::Failed)),
            (Recorded::Outcome(&Outcome::Removed), RecipientState::Done(End::Removed)),
            (Recorded::Quarantined, RecipientState::Done(End::Quarantined)),
        ];
        let entries = || table.iter().enumerate().map(|(i, (recorded, _))| (i as u16, *recorded));
        let mut payload = vec![0xAA; FIXED_BYTES + entries().map(|(_, r)| entry_bytes(&r)).sum::<usize>()];
        encode(WallTime(9), entries(), &mut payload);
        let states: Vec<_> = decode(&payload).collect();
        let wanted: Vec<_> = table.iter().enumerate().map(|(i, (_, s))| Some((i as u16, *s))).collect();
        assert_eq!(states, wanted);
        let mut short = Vec::new();
        without_replies(&payload, &mut short);
        assert_eq!(decode(&short).collect::<Vec<_>>(), wanted);
        assert_eq!(short.len(), table.len() * (FIELD_HEADER_BYTES + RECIPIENT_FIXED_BYTES));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes).count();
            if bytes.len() > 6 {
                bytes[..6].copy_from_slice(&[2, 0x80, 20, 0, 0, 0]);
                let _ = decode(&bytes).count();
            }
        }
    }
}
