//! Payloads of the frames that are not outcomes: commit, fragment, abort.
//!
//! Owns: the fixed part of a commit record, its fragment list and recipient states, and the lists of
//! abort records (`docs/LOG_FORMAT.md`, section 5). Promises: decoding is bounded and never panics. The
//! checksum of a commit frame is the checksum of the whole message: it covers the envelope, the inline
//! body and the checksum of every fragment. Must not: read what a field of the envelope means.
use super::format::{put, u32_at, u64_at};
use super::{End, FragmentRef, Generation, GroupSeq, Place, RecipientState, Reports, Tries};
use crate::clock::WallTime;
use crate::mail::envelope::Envelope;
use crate::mail::id::MessageId;

/// Fixed bytes in front of a commit record's lists.
const COMMIT_FIXED_BYTES: usize = 24;
const FRAGMENT_REF_BYTES: usize = 32;
const STATE_BYTES: usize = 16;

/// Where a commit record says how much of the body is in it.
const BODY_BYTES_AT: usize = 16;

const STATE_PENDING: u8 = 0;
const STATE_DONE: u8 = 1;

/// The envelope of a message to be written: new, or as an older record had it.
#[derive(Clone, Copy, Debug)]
pub(super) enum EnvelopeSource<'a> {
    New(&'a Envelope, Option<Reports<'a>>),
    /// Fields copied as they are, so that those this code does not know survive.
    Copied(&'a [u8]),
}

/// Everything of a commit record.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewCommit<'a> {
    pub(super) recipients: u32,
    pub(super) fragments: &'a [FragmentRef],
    pub(super) envelope: EnvelopeSource<'a>,
    /// Empty (nothing was tried), or one per recipient.
    pub(super) states: &'a [RecipientState],
    pub(super) parts: &'a [&'a [u8]],
}

impl NewCommit<'_> {
    fn envelope_bytes(&self) -> usize {
        match self.envelope {
            EnvelopeSource::New(envelope, reports) => super::envelope::encoded_bytes(envelope, reports),
            EnvelopeSource::Copied(bytes) => bytes.len(),
        }
    }
    fn body_bytes(&self) -> usize {
        self.parts.iter().map(|p| p.len()).sum()
    }
    /// Bytes of the payload.
    pub(super) fn encoded_bytes(&self) -> usize {
        COMMIT_FIXED_BYTES
            + FRAGMENT_REF_BYTES * self.fragments.len()
            + self.envelope_bytes()
            + STATE_BYTES * self.states.len()
            + self.body_bytes()
    }
    /// Writes the payload; `out` is exactly `encoded_bytes` long.
    pub(super) fn encode(&self, out: &mut [u8]) {
        let envelope_bytes = self.envelope_bytes();
        put(out, 0, &self.recipients.to_le_bytes());
        put(out, 4, &(self.fragments.len() as u32).to_le_bytes());
        put(out, 8, &(envelope_bytes as u32).to_le_bytes());
        put(out, 12, &(self.states.len() as u32).to_le_bytes());
        put(out, BODY_BYTES_AT, &(self.body_bytes() as u32).to_le_bytes());
        put(out, 20, &[0; 4]);
        let mut at = COMMIT_FIXED_BYTES;
        for f in self.fragments {
            put(out, at, &f.place.generation.0.to_le_bytes());
            put(out, at + 4, &f.place.offset.to_le_bytes());
            put(out, at + 8, &f.body_bytes.to_le_bytes());
            put(out, at + 12, &[0; 4]);
            put(out, at + 16, &f.group.0.to_le_bytes());
            put(out, at + 24, &f.checksum.to_le_bytes());
            at += FRAGMENT_REF_BYTES;
        }
        match self.envelope {
            EnvelopeSource::New(envelope, reports) => {
                super::envelope::encode(envelope, reports, &mut out[at..at + envelope_bytes]);
            }
            EnvelopeSource::Copied(bytes) => put(out, at, bytes),
        }
        at += envelope_bytes;
        for state in self.states {
            let (kind, attempts, end, next) = match *state {
                RecipientState::Pending { tries, next } => (STATE_PENDING, tries.byte(), 0, next.0),
                RecipientState::Done(end) => (STATE_DONE, 0, number_of(end), 0),
            };
            put(out, at, &[kind, attempts, end, 0, 0, 0, 0, 0]);
            put(out, at + 8, &next.to_le_bytes());
            at += STATE_BYTES;
        }
        for part in self.parts {
            put(out, at, part);
            at += part.len();
        }
    }
}

/// A commit record as found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit<'a> {
    pub(super) recipients: u32,
    fragments: &'a [u8],
    pub(super) envelope: &'a [u8],
    states: &'a [u8],
    /// The end of the body, behind the fragments.
    pub(super) body: &'a [u8],
}

impl<'a> Commit<'a> {
    /// `None` where the lengths do not add up to the payload.
    pub(super) fn decode(payload: &'a [u8]) -> Option<Commit<'a>> {
        let commit = Commit::parse(payload)?;
        (commit.body.len() == u32_at(payload, BODY_BYTES_AT) as usize).then_some(commit)
    }
    /// The same for a payload that was cut by [`without_body`].
    pub(super) fn decode_without_body(payload: &'a [u8]) -> Option<Commit<'a>> {
        Commit::parse(payload).filter(|commit| commit.body.is_empty())
    }
    fn parse(payload: &'a [u8]) -> Option<Commit<'a>> {
        if payload.len() < COMMIT_FIXED_BYTES {
            return None;
        }
        let (fixed, rest) = payload.split_at(COMMIT_FIXED_BYTES);
        let fragments = (u32_at(fixed, 4) as usize).checked_mul(FRAGMENT_REF_BYTES)?;
        let states = u32_at(fixed, 12);
        let recipients = u32_at(fixed, 0);
        if states != 0 && states != recipients {
            return None;
        }
        let (fragments, rest) = rest.split_at_checked(fragments)?;
        let (envelope, rest) = rest.split_at_checked(u32_at(fixed, 8) as usize)?;
        let (states, body) = rest.split_at_checked((states as usize).checked_mul(STATE_BYTES)?)?;
        Some(Commit { recipients, fragments, envelope, states, body })
    }
    pub(super) fn fragments(&self) -> impl Iterator<Item = FragmentRef> + '_ {
        self.fragments.chunks_exact(FRAGMENT_REF_BYTES).map(|b| FragmentRef {
            place: Place { generation: Generation(u32_at(b, 0)), offset: u32_at(b, 4) },
            body_bytes: u32_at(b, 8),
            group: GroupSeq(u64_at(b, 16)),
            checksum: u64_at(b, 24),
        })
    }
    /// The recorded states; none where nothing was tried. A kind this code does not know is read as
    /// pending: a second delivery is better than none.
    pub(super) fn states(&self) -> impl Iterator<Item = RecipientState> + '_ {
        self.states.chunks_exact(STATE_BYTES).map(|b| match b[0] {
            STATE_DONE => RecipientState::Done(end_of(b[2])),
            _ => RecipientState::Pending { tries: Tries::from_byte(b[1]), next: WallTime(u64_at(b, 8)) },
        })
    }
}

/// A commit record's payload up to the body, which stands at its end.
pub(super) fn without_body(payload: &[u8]) -> &[u8] {
    let body = if payload.len() < COMMIT_FIXED_BYTES { 0 } else { u32_at(payload, BODY_BYTES_AT) as usize };
    &payload[..payload.len().saturating_sub(body)]
}

/// The number of a way to end, as in outcome records.
pub(super) fn number_of(end: End) -> u8 {
    match end {
        End::Unknown => 0,
        End::Delivered => 1,
        End::Failed => 3,
        End::Removed => 4,
        End::Quarantined => 5,
    }
}

/// The way to end that has this number.
pub(super) fn end_of(number: u8) -> End {
    match number {
        1 => End::Delivered,
        3 => End::Failed,
        4 => End::Removed,
        5 => End::Quarantined,
        _ => End::Unknown,
    }
}

/// Payload of an abort frame: ids of messages whose commit records are void.
pub(super) fn abort_payload(ids: &[MessageId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.0.to_le_bytes()).collect()
}

/// The ids in an abort frame.
pub(super) fn aborted(payload: &[u8]) -> impl Iterator<Item = MessageId> + '_ {
    payload.chunks_exact(8).map(|b| MessageId(u64_at(b, 0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commits_round_trip() {
        let fragments = [FragmentRef {
            place: Place { generation: Generation(4), offset: 8192 },
            body_bytes: 77,
            checksum: 5,
            group: GroupSeq(6),
        }];
        let states = [
            RecipientState::Done(End::Unknown),
            RecipientState::Done(End::Delivered),
            RecipientState::Done(End::Failed),
            RecipientState::Done(End::Removed),
            RecipientState::Done(End::Quarantined),
            RecipientState::Pending { tries: Tries::new(100, true), next: WallTime(1 << 50) },
        ];
        let new = NewCommit {
            recipients: 6,
            fragments: &fragments,
            envelope: EnvelopeSource::Copied(b"fields"),
            states: &states,
            parts: &[b"Received: x\r\n", b"\r\nbody"],
        };
        let mut payload = vec![0xEE; new.encoded_bytes()];
        new.encode(&mut payload);
        let commit = Commit::decode(&payload).expect("whole");
        assert_eq!(commit.fragments().collect::<Vec<_>>(), fragments);
        assert_eq!(commit.states().collect::<Vec<_>>(), states);
        assert_eq!((commit.recipients, commit.envelope), (6, &b"fields"[..]));
        assert_eq!(commit.body, b"Received: x\r\n\r\nbody");
        for cut in 0..payload.len() {
            assert!(Commit::decode(&payload[..cut]).is_none(), "{cut}");
        }
        let cut = without_body(&payload);
        let bodiless = Commit::decode_without_body(cut).expect("whole but for the body");
        assert_eq!(bodiless.fragments().collect::<Vec<_>>(), fragments);
        assert_eq!(bodiless.states().collect::<Vec<_>>(), states);
        assert_eq!((bodiless.envelope, cut.len() + commit.body.len()), (&b"fields"[..], payload.len()));
        assert!(Commit::decode_without_body(&payload).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(commit) = Commit::decode(&bytes) {
                let _ = (commit.fragments().count(), commit.states().count());
            }
            let _ = Commit::decode_without_body(without_body(&bytes));
            let _ = aborted(&bytes).count();
        }
    }
}
