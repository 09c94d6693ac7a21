//! The end of mail data and the removal of stuffed dots (RFC 5321 §4.1.1.4, §4.5.2).
//!
//! Owns: the few bytes of state between two reads. Promises: the content comes out in pieces, the
//! same bytes however the input was split; only `CRLF . CRLF` ends it. Must not: copy or keep
//! content.
use memchr::memmem::Finder;

/// Where in a line the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Behind CRLF, or at the very start.
    LineStart,
    /// Inside a line.
    Text,
    /// Behind a CR.
    Cr,
    /// Behind a dot that began a line; it is not content.
    Dot,
    /// Behind such a dot and a CR, which is content only if no LF follows.
    DotCr,
}

/// Finds the end of data in a stream of reads.
pub struct Dots {
    at: At,
    finder: Finder<'static>,
}

impl Dots {
    pub fn new() -> Dots {
        Dots { at: At::LineStart, finder: Finder::new(b"\r\n.") }
    }
    /// Takes bytes behind DATA and gives their content to `content`. Returns how many bytes were
    /// used when the end of data lies within them; it is then ready for the next message.
    pub fn feed(&mut self, input: &[u8], mut content: impl FnMut(&[u8])) -> Option<usize> {
        let mut pos = 0;
        while pos < input.len() {
            let byte = input[pos];
            match (self.at, byte) {
                (At::LineStart, b'.') => (self.at, pos) = (At::Dot, pos + 1),
                (At::Dot, b'\r') => (self.at, pos) = (At::DotCr, pos + 1),
                (At::DotCr, b'\n') => {
                    self.at = At::LineStart;
                    return Some(pos + 1);
                }
                (At::DotCr, _) => {
                    content(b"\r");
                    self.at = At::Cr;
                }
                (At::Cr, b'\n') => {
                    content(b"\n");
                    (self.at, pos) = (At::LineStart, pos + 1);
                }
                (At::LineStart | At::Text | At::Cr | At::Dot, _) => {
                    let rest = &input[pos..];
                    let len = match self.finder.find(rest) {
                        Some(found) => {
                            self.at = At::LineStart;
                            found + 2
                        }
                        None => {
                            self.at = match rest {
                                [.., b'\r', b'\n'] => At::LineStart,
                                [.., b'\r'] => At::Cr,
                                _ => At::Text,
                            };
                            rest.len()
                        }
                    };
                    content(&rest[..len]);
                    pos += len;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> (Vec<u8>, Option<usize>) {
        let (mut dots, mut content) = (Dots::new(), Vec::new());
        let mut before = 0;
        for part in parts {
            if let Some(used) = dots.feed(part, |piece| content.extend_from_slice(piece)) {
                return (content, Some(before + used));
            }
            before += part.len();
        }
        (content, None)
    }

    #[test]
    fn every_split_gives_the_same() {
        let table: [(&[u8], &[u8], Option<usize>); 12] = [
            (b".\r\n", b"", Some(3)),
            (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", Some(6)),
            (b"..\r\n.\r\n", b".\r\n", Some(7)),
            (b"...a\r\n.\r\n", b"..a\r\n", Some(9)),
            (b".a\r\n.\r\n", b"a\r\n", Some(7)),
            (b"a\r\n\r\n.\r\n", b"a\r\n\r\n", Some(8)),
            (b"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n", Some(11)),
            (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\nb\r\n", Some(11)),
            (b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n", Some(10)),
            (b"a\r.\r\n.\r\n", b"a\r.\r\n", Some(8)),
            (b"\r\r\n.\r\n", b"\r\r\n", Some(6)),
            (b"a\r\n.\r", b"a\r\n", None),
        ];
        for (wire, content, end) in table {
            let want = (content.to_vec(), end);
            assert_eq!(read(&[wire]), want, "{wire:?}");
            for i in 0..wire.len() {
                for j in i..wire.len() {
                    assert_eq!(read(&[&wire[..i], &wire[i..j], &wire[j..]]), want, "{wire:?} at {i}, {j}");
                }
            }
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            assert_eq!(read(&bytes), want, "{wire:?}");
        }
    }
}
