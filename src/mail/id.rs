//! Message identity.
//!
//! Owns: [`MessageId`], the one name of a message in the spool, in events, in Received headers and on
//! the command line. Promises: unique in a spool and rising within a log; its text form is 13
//! characters, safe in a shell, a file name and a header. Must not: carry meaning beyond the two
//! fields below.
use std::fmt;
use std::str::FromStr;

use crate::clock::WallTime;

/// Bits of the log number inside an id.
const LOG_BITS: u32 = 12;
/// 2020-01-01T00:00:00Z in microseconds: ids count from here, which lasts until the year 2162.
const EPOCH_US: u64 = 1_577_836_800_000_000;
/// Crockford's base 32 without padding, lower case.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Microseconds since 2020 in the upper 52 bits, the log in the lower 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

impl MessageId {
    /// The id that follows `last` in `log`: the time of `now`, or `last` plus one where the clock has
    /// not moved or went backwards. `log` must be below 4096.
    pub fn next(last: Option<MessageId>, now: WallTime, log: u16) -> MessageId {
        debug_assert!(u32::from(log) < (1 << LOG_BITS));
        let floor = last.map_or(0, |l| (l.0 >> LOG_BITS) + 1);
        let stamp = now.0.saturating_sub(EPOCH_US).max(floor);
        MessageId((stamp << LOG_BITS) | u64::from(log))
    }
    /// When it was accepted, or a moment later where several were at once.
    pub fn received_at(self) -> WallTime {
        WallTime((self.0 >> LOG_BITS) + EPOCH_US)
    }
    /// The log that holds the message.
    pub fn log(self) -> u16 {
        (self.0 & ((1 << LOG_BITS) - 1)) as u16
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        for (i, c) in text.iter_mut().enumerate() {
            *c = ALPHABET[((self.0 >> (5 * (12 - i))) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

/// The text is not 13 characters of the id alphabet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a message id is 13 characters of 0-9 and a-z without i, l, o, u")]
pub struct BadId;

impl FromStr for MessageId {
    type Err = BadId;
    fn from_str(s: &str) -> Result<MessageId, BadId> {
        if s.len() != 13 {
            return Err(BadId);
        }
        let mut value: u128 = 0;
        for b in s.bytes() {
            let digit = ALPHABET.iter().position(|&a| a == b.to_ascii_lowercase()).ok_or(BadId)?;
            value = (value << 5) | digit as u128;
        }
        u64::try_from(value).map(MessageId).map_err(|_| BadId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_refuses_the_rest() {
        for v in [0, 1, 31, 32, u64::MAX, 0x0123_4567_89ab_cdef] {
            let text = MessageId(v).to_string();
            assert_eq!(text.len(), 13);
            assert_eq!(text.parse(), Ok(MessageId(v)));
        }
        for bad in ["", "0", "000000000000u", "zzzzzzzzzzzzz", "00000000000000"] {
            assert_eq!(bad.parse::<MessageId>(), Err(BadId), "{bad}");
        }
    }

    #[test]
    fn ids_rise_even_when_the_clock_falls() {
        let late = MessageId::next(None, WallTime(EPOCH_US + 1_000), 7);
        let after = MessageId::next(Some(late), WallTime(EPOCH_US + 10), 7);
        assert!(after > late);
        assert_eq!((late.log(), after.log()), (7, 7));
    }
}
