//! The transparency procedure for data that is stored raw (RFC 5321 §4.5.2).
//!
//! Owns: the doubling of dots. Promises: memory in proportion to the piece that is given, whatever the size
//! of the message; the result is the same however the data was split; behind it `.CRLF` ends it.
//! Must not: judge the data, which has passed [`ChunkReader`](super::ChunkReader).

/// Turns raw data into what DATA carries.
#[derive(Clone, Debug)]
pub struct DotStuffer {
    /// The last two bytes, which say whether a line begins. A message begins with one.
    last: [u8; 2],
}

impl Default for DotStuffer {
    fn default() -> DotStuffer {
        DotStuffer { last: *b"\r\n" }
    }
}

impl DotStuffer {
    /// Appends `data` to `out`.
    pub fn push(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let mut from = 0;
        for dot in memchr::memchr_iter(b'.', data) {
            let begins_line = match dot {
                0 => self.last == *b"\r\n",
                1 => [self.last[1], data[0]] == *b"\r\n",
                _ => data[dot - 2..dot] == *b"\r\n",
            };
            if begins_line {
                out.extend_from_slice(&data[from..dot]);
                out.push(b'.');
                from = dot;
            }
        }
        out.extend_from_slice(&data[from..]);
        self.last = match data {
            [] => self.last,
            [one] => [self.last[1], *one],
            [.., a, b] => [*a, *b],
        };
    }

    /// Appends what ends the data: a CRLF where the last line has none (RFC 5321 §4.1.1.4), and the dot.
    pub fn end(self, out: &mut Vec<u8>) {
        if self.last != *b"\r\n" {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_doubled_at_every_split() {
        let table = [
            ("", ".\r\n"),
            ("a", "a\r\n.\r\n"),
            (".", "..\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("a.\r\n..b\r\n", "a.\r\n...b\r\n.\r\n"),
            ("a\r\n.\r\n.", "a\r\n..\r\n..\r\n.\r\n"),
            ("\r\n\r\n.", "\r\n\r\n..\r\n.\r\n"),
        ];
        for (data, expected) in table {
            for cut in 0..=data.len() {
                for second in cut..=data.len() {
                    let (mut stuffer, mut out) = (DotStuffer::default(), Vec::new());
                    for piece in [&data[..cut], &data[cut..second], &data[second..]] {
                        stuffer.push(piece.as_bytes(), &mut out);
                    }
                    stuffer.end(&mut out);
                    assert_eq!(String::from_utf8(out).unwrap(), expected, "{data:?} cut at {cut}, {second}");
                }
            }
        }
    }
}
