//! Operator changes as typed fields.
//!
//! Owns: the payload of an operator-change frame, which is also the value of the field of a copy that
//! carries it on (`docs/LOG_FORMAT.md`, section 5). Promises: a change states the whole standing of the
//! recipients it names, so that applying one twice changes nothing and only the latest counts; decoding
//! is bounded and never panics. Must not: judge what an operator may do.
use std::sync::Arc;

use super::envelope::{FIELD_HEADER_BYTES, FieldWriter, MUST_UNDERSTAND, fields};
use super::format::{u16_at, u64_at};
use super::{Mark, Standing};
use crate::clock::WallTime;
use crate::limits;
use crate::mail::address::Domain;

const AT: u16 = 1;
const RECIPIENTS: u16 = 2 | MUST_UNDERSTAND;
const MARK: u16 = 3 | MUST_UNDERSTAND;
const DESTINATION: u16 = 4 | MUST_UNDERSTAND;
const REASON: u16 = 5;

/// What an operator has decided of some recipients of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) recipients: Vec<u16>,
    pub(super) standing: Standing,
}

/// Bytes of the payload for `recipients` recipients.
pub(super) fn encoded_bytes(recipients: usize, standing: &Standing) -> usize {
    let field = |bytes: usize| FIELD_HEADER_BYTES + bytes;
    field(8)
        + field(2 * recipients)
        + field(1)
        + standing.destination.as_ref().map_or(0, |d| field(d.as_str().len()))
        + field(standing.reason.len())
}

/// Writes the payload: `out` is exactly [`encoded_bytes`] long.
pub(super) fn encode(recipients: impl Iterator<Item = u16> + Clone, standing: &Standing, out: &mut [u8]) {
    let mut writer = FieldWriter { out, at: 0 };
    writer.field(AT, &standing.at.0.to_le_bytes());
    let list = writer.value(RECIPIENTS, 2 * recipients.clone().count());
    for (place, recipient) in list.chunks_exact_mut(2).zip(recipients) {
        place.copy_from_slice(&recipient.to_le_bytes());
    }
    let mark = match standing.mark {
        Mark::None => 0,
        Mark::Held => 1,
        Mark::Failing => 2,
    };
    writer.field(MARK, &[mark]);
    if let Some(destination) = &standing.destination {
        writer.field(DESTINATION, destination.as_str().as_bytes());
    }
    writer.field(REASON, standing.reason.as_bytes());
}

/// The change in a payload; none where it cannot be read.
pub(super) fn decode(payload: &[u8]) -> Option<Change> {
    let mut change = Change { recipients: Vec::new(), standing: Standing::default() };
    for field in fields(payload) {
        match field? {
            (AT, value) if value.len() == 8 => change.standing.at = WallTime(u64_at(value, 0)),
            (RECIPIENTS, value) => change.recipients = value.chunks_exact(2).map(|c| u16_at(c, 0)).collect(),
            (MARK, [0]) => change.standing.mark = Mark::None,
            (MARK, [1]) => change.standing.mark = Mark::Held,
            (MARK, [2]) => change.standing.mark = Mark::Failing,
            (DESTINATION, value) => change.standing.destination = Some(Domain::parse(value).ok()?),
            (REASON, value) => {
                let value = &value[..value.len().min(limits::FOREIGN_TEXT_BYTES)];
                change.standing.reason = String::from_utf8_lossy(value).into();
            }
            (number, _) if number & MUST_UNDERSTAND != 0 => return None,
            _ => {}
        }
    }
    Some(change)
}

/// The standings of the recipients of one message: those that have one, by recipient.
pub(super) type Standings = Box<[(u16, Arc<Standing>)]>;

/// Sets the standing of some recipients. `now` is later than what is known, or is not taken.
pub(super) fn apply(known: &mut Standings, recipients: &[u16], standing: &Arc<Standing>) {
    let mut list = std::mem::take(known).into_vec();
    for &recipient in recipients {
        match list.binary_search_by_key(&recipient, |(r, _)| *r) {
            // A change that was written again after a failure may stand behind a later one.
            Ok(at) if list[at].1.at > standing.at => {}
            Ok(at) => list[at].1 = standing.clone(),
            Err(at) => list.insert(at, (recipient, standing.clone())),
        }
    }
    *known = list.into_boxed_slice();
}

/// The standings as few changes, each for all recipients that share one.
pub(super) fn grouped(standings: &Standings) -> Vec<(&Arc<Standing>, Vec<u16>)> {
    let mut groups: Vec<(&Arc<Standing>, Vec<u16>)> = Vec::new();
    for (recipient, standing) in standings {
        match groups.iter_mut().find(|(known, _)| *known == standing) {
            Some((_, recipients)) => recipients.push(*recipient),
            None => groups.push((standing, vec![*recipient])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standing(mark: Mark, destination: Option<&str>, at: u64) -> Standing {
        Standing {
            mark,
            destination: destination.map(|d| Domain::parse(d.as_bytes()).expect("a domain")),
            at: WallTime(at),
            reason: "complaints from the list owner".into(),
        }
    }

    #[test]
    fn changes_round_trip_and_are_refused_when_cut() {
        for (recipients, standing) in [
            (vec![0], standing(Mark::Held, None, 7)),
            (vec![3, 700, 65_535], standing(Mark::Failing, None, u64::MAX)),
            (vec![1, 2], standing(Mark::None, Some("other.example"), 0)),
            (vec![1], standing(Mark::Held, Some("[192.0.2.1]"), 1)),
            (vec![], Standing::default()),
        ] {
            let mut payload = vec![0xAA; encoded_bytes(recipients.len(), &standing)];
            encode(recipients.iter().copied(), &standing, &mut payload);
            assert_eq!(decode(&payload), Some(Change { recipients, standing }));
            assert!(decode(&payload[..payload.len() - 1]).is_none());
        }
    }

    #[test]
    fn an_unknown_field_that_matters_is_not_passed_over() {
        for (number, wanted) in [(99, true), (99 | MUST_UNDERSTAND, false)] {
            let mut payload = vec![0; FIELD_HEADER_BYTES + 3];
            FieldWriter { out: &mut payload, at: 0 }.field(number, b"xyz");
            assert_eq!(decode(&payload).is_some(), wanted, "{number}");
        }
    }

    #[test]
    fn the_latest_change_counts_in_whatever_order_they_are_met() {
        let changes = [
            (vec![0, 2], Arc::new(standing(Mark::Held, None, 10))),
            (vec![2], Arc::new(standing(Mark::None, None, 20))),
            (vec![1], Arc::new(standing(Mark::Failing, None, 30))),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
            let mut known = Standings::default();
            for (recipients, standing) in order.map(|n| &changes[n]) {
                apply(&mut known, recipients, standing);
            }
            let marks: Vec<_> = known.iter().map(|(r, s)| (*r, s.mark)).collect();
            assert_eq!(marks, [(0, Mark::Held), (1, Mark::Failing), (2, Mark::None)], "{order:?}");
        }
    }

    #[test]
    fn recipients_that_share_a_standing_share_a_change() {
        let mut known = Standings::default();
        apply(&mut known, &[1, 5, 9], &Arc::new(standing(Mark::Held, None, 1)));
        apply(&mut known, &[5], &Arc::new(standing(Mark::None, Some("x.example"), 2)));
        let groups: Vec<_> = grouped(&known).into_iter().map(|(s, r)| (s.mark, r)).collect();
        assert_eq!(groups, [(Mark::Held, vec![1, 9]), (Mark::None, vec![5])]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes);
        }
    }
}
