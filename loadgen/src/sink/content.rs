//! The content of one message while it streams in: finding the stamp, checking the checksum.
//!
//! Owns: the header until the stamp is found, and the running hash behind it. Promises: memory is
//! bounded by the header limit, whatever the message's size; buffers are used again for the next
//! message. Must not: know SMTP.
use memchr::memmem;
use xxhash_rust::xxh3::Xxh3;

use crate::limits;
use crate::stamp::{self, Stamp};

/// What is known of a message at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The load source's stamp; none for other mail.
    pub stamp: Option<Stamp>,
    /// Everything behind the stamp matches its checksum. False without a stamp.
    pub is_intact: bool,
    pub bytes: u64,
}

enum State {
    /// The header is collected until it is complete.
    Header,
    /// The stamp was found; everything behind it is hashed.
    Stamped(Stamp),
    /// The header ended without a stamp.
    Foreign,
}

/// Reads one message after the other.
pub struct Content {
    state: State,
    header: Vec<u8>,
    hash: Xxh3,
    bytes: u64,
}

impl Content {
    pub fn new() -> Content {
        Content { state: State::Header, header: Vec::new(), hash: Xxh3::new(), bytes: 0 }
    }
    /// Takes the next piece of content, dots unstuffed.
    pub fn feed(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        match self.state {
            State::Stamped(_) => self.hash.update(piece),
            State::Foreign => {}
            State::Header if self.header.is_empty() && memmem::find(piece, b"\r\n\r\n").is_some() => {
                self.state = open(piece, &mut self.hash);
            }
            State::Header => {
                let searched = self.header.len().saturating_sub(3);
                self.header.extend_from_slice(piece);
                if memmem::find(&self.header[searched..], b"\r\n\r\n").is_some()
                    || self.header.len() > limits::HEADER_BYTES
                {
                    self.state = open(&self.header, &mut self.hash);
                }
            }
        }
    }
    /// Ends the message and makes ready for the next.
    pub fn finish(&mut self) -> Summary {
        if matches!(self.state, State::Header) {
            self.state = open(&self.header, &mut self.hash);
        }
        let stamp = match self.state {
            State::Stamped(stamp) => Some(stamp),
            _ => None,
        };
        let summary = Summary {
            stamp,
            is_intact: stamp.is_some_and(|stamp| stamp.checksum == self.hash.digest()),
            bytes: self.bytes,
        };
        self.reset();
        summary
    }
    /// Forgets the message.
    pub fn reset(&mut self) {
        self.state = State::Header;
        self.header.clear();
        self.hash.reset();
        self.bytes = 0;
    }
}

/// Looks for the stamp among the header lines of `text`, which holds the whole header and perhaps
/// some of the body, and begins the hash behind it.
fn open(text: &[u8], hash: &mut Xxh3) -> State {
    let mut rest = text;
    // The blank line ends the header: a stamp behind it belongs to a message that was returned.
    while let Some(end) = memmem::find(rest, b"\r\n").filter(|&end| end > 0) {
        if let Some(stamp) = Stamp::parse(&rest[..end]) {
            stamp::begin_checksum(&rest[..end], hash);
            hash.update(&rest[end + 2..]);
            return State::Stamped(stamp);
        }
        rest = &rest[end + 2..];
    }
    State::Foreign
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Template;

    fn content(number: u64) -> Vec<u8> {
        let mut template = Template::new(5, 1, "a@b", 3000, 1).unwrap();
        let wire = template.patched(number, 1_000_000).clone();
        let mut content = Vec::new();
        crate::sink::dots::Dots::new().feed(&wire, |piece| content.extend_from_slice(piece)).unwrap();
        content
    }

    fn read(reader: &mut Content, text: &[u8], piece: usize) -> Summary {
        text.chunks(piece).for_each(|piece| reader.feed(piece));
        reader.finish()
    }

    #[test]
    fn trace_headers_in_front_do_not_matter() {
        let mut reader = Content::new();
        let plain = content(7);
        let traced = [b"Received: from x\r\n\tby y; now\r\n".as_slice(), &plain].concat();
        for text in [&plain, &traced] {
            for piece in [1, 2, 3, 100, 5000] {
                let summary = read(&mut reader, text, piece);
                assert_eq!(summary.stamp.unwrap().number, 7);
                assert!(summary.is_intact, "pieces of {piece}");
                assert_eq!(summary.bytes, text.len() as u64);
            }
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let mut reader = Content::new();
        let text = content(7);
        for at in 0..text.len() {
            let mut bad = text.clone();
            // Not ^ 32: hexadecimal digits of either case are the same number.
            bad[at] ^= 1;
            let summary = read(&mut reader, &bad, 5000);
            assert!(!summary.is_intact, "at {at}");
        }
        assert!(!read(&mut reader, &text[..text.len() - 1], 5000).is_intact);
        assert!(read(&mut reader, &text, 5000).is_intact);
    }

    #[test]
    fn a_stamp_inside_a_body_is_not_its_own() {
        let mut reader = Content::new();
        let returned = [b"Subject: returned\r\n\r\n".as_slice(), &content(1)].concat();
        assert_eq!(read(&mut reader, &returned, 5000).stamp, None);
        assert_eq!(read(&mut reader, b"no header", 3).stamp, None);
        assert_eq!(read(&mut reader, b"", 3).stamp, None);
    }
}
