//! Streams by name.
//!
//! Owns: the numbers that the scheduler knows streams by. Promises: a name keeps its number while the
//! server runs; the table is bounded (`limits::STREAMS`). Must not: outlive the process: names, not
//! numbers, are written to disk.
use std::collections::HashMap;
use std::sync::Mutex;

use crate::limits;
use crate::mail::envelope::Envelope;
use crate::schedule::StreamId;

/// The number of mail without a stream.
const NONE: u16 = 0;
/// The number of the notifications made here.
const NOTIFICATIONS: u16 = 1;

/// The numbers given so far. Shared by all workers; asked once for a message that names a stream.
#[derive(Default)]
pub struct Streams {
    numbers: Mutex<HashMap<Box<str>, u16>>,
}

impl Streams {
    /// The stream of a message. Notifications made here are a stream of their own.
    pub fn of(&self, envelope: &Envelope) -> StreamId {
        let number = match &envelope.stream {
            Some(name) => self.number(name).unwrap_or(NONE),
            None if envelope.reverse_path.is_none() && envelope.client.is_none() => NOTIFICATIONS,
            None => NONE,
        };
        if envelope.urgent { StreamId::urgent(number) } else { StreamId::new(number) }
    }

    /// The number of a stream that has had mail since the server started.
    pub fn known(&self, name: &str) -> Option<u16> {
        let numbers = self.numbers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        numbers.get(name).copied()
    }

    /// The number of a stream; none if it is new and there are too many.
    pub fn number(&self, name: &str) -> Option<u16> {
        // A panic elsewhere ends the process, so the lock cannot be poisoned.
        let mut numbers = self.numbers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(number) = numbers.get(name) {
            return Some(*number);
        }
        if numbers.len() >= limits::STREAMS {
            return None;
        }
        let number = NOTIFICATIONS + 1 + numbers.len() as u16;
        numbers.insert(name.into(), number);
        Some(number)
    }
}

const _: () = assert!(limits::STREAMS + 2 <= StreamId::NUMBERS as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::address::Address;

    #[test]
    fn a_name_keeps_its_number() {
        let streams = Streams::default();
        let from = Address::parse(b"a@x.test").ok();
        let named = |name: &str, urgent| {
            let envelope = Envelope {
                reverse_path: from.clone(),
                stream: Some(name.into()),
                urgent,
                ..Envelope::default()
            };
            streams.of(&envelope)
        };
        assert_eq!(named("a", false), named("a", false));
        assert_ne!(named("a", false), named("b", false));
        assert_eq!(named("b", true).number(), named("b", false).number());
        assert!(named("b", true).is_urgent());
        assert_eq!(
            streams.of(&Envelope { reverse_path: from.clone(), ..Envelope::default() }).number(),
            NONE
        );
        assert_eq!(streams.of(&Envelope::default()).number(), NOTIFICATIONS);
    }
}
