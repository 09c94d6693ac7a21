//! Replies of a server, read line by line (RFC 5321 §4.2).
//!
//! Owns: the part of a line that the last read left. Promises: a reply is given out at its last
//! line, however it was split; garbage and endless replies are refused. Must not: know what was
//! asked.
use crate::limits;

/// A line that is no reply, or a reply without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply;

/// One line of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub code: u16,
    /// What follows the code, without line end.
    pub text: &'a [u8],
    /// The reply ends with this line.
    pub is_last: bool,
}

/// Splits what a server sends into reply lines.
#[derive(Default)]
pub struct Replies {
    partial: Vec<u8>,
    lines: u32,
}

impl Replies {
    /// Takes bytes and gives each complete line to `on_line`, until it returns an error.
    pub fn feed<E: From<BadReply>>(
        &mut self,
        mut input: &[u8],
        mut on_line: impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr::memchr(b'\n', input) {
            let (line, rest) = input.split_at(end + 1);
            input = rest;
            let line = if self.partial.is_empty() {
                parse(line)?
            } else {
                self.partial.extend_from_slice(line);
                parse(&self.partial)?
            };
            self.lines = if line.is_last { 0 } else { self.lines + 1 };
            if self.lines > limits::REPLY_LINES {
                return Err(BadReply.into());
            }
            on_line(line)?;
            self.partial.clear();
        }
        if self.partial.len() + input.len() > limits::LINE_BYTES {
            return Err(BadReply.into());
        }
        self.partial.extend_from_slice(input);
        Ok(())
    }
    /// Forgets what came, for a new connection.
    pub fn reset(&mut self) {
        self.partial.clear();
        self.lines = 0;
    }
}

fn parse(line: &[u8]) -> Result<Line<'_>, BadReply> {
    let line = line.trim_ascii_end();
    let (code, rest) = line.split_at_checked(3).ok_or(BadReply)?;
    if !code.iter().all(u8::is_ascii_digit) || !(b'2'..=b'5').contains(&code[0]) {
        return Err(BadReply);
    }
    let code = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest.split_first() {
        None => Ok(Line { code, text: b"", is_last: true }),
        Some((b' ', text)) => Ok(Line { code, text, is_last: true }),
        Some((b'-', text)) => Ok(Line { code, text, is_last: false }),
        Some(_) => Err(BadReply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Result<Vec<(u16, String, bool)>, BadReply> {
        let (mut replies, mut lines) = (Replies::default(), Vec::new());
        for part in parts {
            replies.feed(part, |line| {
                lines.push((line.code, String::from_utf8_lossy(line.text).into_owned(), line.is_last));
                Ok::<(), BadReply>(())
            })?;
        }
        Ok(lines)
    }

    #[test]
    fn lines_survive_every_split() {
        let input = b"220 hello\r\n250-a\r\n250-b c\r\n250 d\r\n354\r\n";
        let line = |code, text: &str, is_last| (code, text.to_owned(), is_last);
        let want = vec![
            line(220, "hello", true),
            line(250, "a", false),
            line(250, "b c", false),
            line(250, "d", true),
            line(354, "", true),
        ];
        for at in 0..input.len() {
            assert_eq!(read(&[&input[..at], &input[at..]]).unwrap(), want, "at {at}");
        }
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(read(&bytes).unwrap(), want);
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [&b"hello\r\n"[..], b"25\r\n", b"\r\n", b"150 x\r\n", b"600 x\r\n", b"250x\r\n"] {
            assert_eq!(read(&[bad]), Err(BadReply), "{bad:?}");
        }
        assert_eq!(read(&[&[b'2'; limits::LINE_BYTES + 1]]), Err(BadReply));
        assert_eq!(read(&[&b"250-x\r\n".repeat(limits::REPLY_LINES as usize + 1)]), Err(BadReply));
    }
}
