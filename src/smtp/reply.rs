//! Replies of a peer, read from the wire (RFC 5321 §4.2, RFC 2034).
//!
//! Owns: the line format of replies and what a reply says. Promises: one reply holds at most
//! [`limits::PEER_REPLY_LINES`] lines and [`limits::PEER_REPLY_BYTES`] bytes, whatever is sent; how the
//! bytes were split makes no difference; what is kept as text has passed [`text::printable`]. Must
//! not: know which command a reply answers.
use crate::limits;
use crate::mail::reply::{EnhancedCode, Reply};
use crate::mail::text;

/// Why the peer's bytes are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbage {
    #[error("a line of the peer's reply is longer than can be a reply")]
    LongLine,
    #[error("the peer's reply has too many lines or bytes")]
    LongReply,
    #[error("a line of the peer's reply does not begin with a reply code")]
    NoCode,
    #[error("the lines of the peer's reply differ in their code")]
    MixedCodes,
}

/// Collects the lines of one reply after the other.
#[derive(Clone, Debug, Default)]
pub struct ReplyReader {
    /// Code of the reply that is being read, or was read last.
    code: u16,
    /// Lines of it so far.
    lines: usize,
    /// Whether its last line came.
    complete: bool,
    /// The texts of its lines, each with an LF behind it.
    texts: Vec<u8>,
}

impl ReplyReader {
    /// Takes lines from `input` until one ends a reply. Returns the bytes consumed and the code of the
    /// reply, if it is whole; [`ReplyReader::texts`] and [`ReplyReader::reply`] speak of it until the
    /// next call.
    pub fn read(&mut self, input: &[u8]) -> Result<(usize, Option<u16>), Garbage> {
        if self.complete {
            self.complete = false;
            self.lines = 0;
            self.texts.clear();
        }
        let mut consumed = 0;
        while !self.complete {
            let rest = &input[consumed..];
            let window = &rest[..rest.len().min(limits::PEER_REPLY_LINE_BYTES)];
            match memchr::memchr(b'\n', window) {
                Some(end) => {
                    // A lone LF ends a line here: nothing follows from it but the end of a line.
                    self.take_line(window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]))?;
                    consumed += end + 1;
                }
                None if window.len() == limits::PEER_REPLY_LINE_BYTES => return Err(Garbage::LongLine),
                None => return Ok((consumed, None)),
            }
        }
        Ok((consumed, Some(self.code)))
    }

    /// The texts of the last reply's lines, without codes.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.texts.split(|b| *b == b'\n').take(self.lines)
    }

    /// The last reply as a value: an enhanced code, which RFC 2034 §4 puts in front of every line, is taken
    /// off, and the lines are joined with spaces.
    pub fn reply(&self) -> Reply {
        if let (1, Some(line)) = (self.lines, self.texts().next()) {
            let (enhanced, words) = split_enhanced(line);
            return Reply { code: self.code, enhanced, text: text::printable(words).into_boxed_str() };
        }
        let mut enhanced = None;
        let mut joined: Vec<u8> = Vec::new();
        for line in self.texts() {
            // Past this the text is cut anyway.
            if joined.len() > limits::FOREIGN_TEXT_BYTES {
                break;
            }
            let (code, words) = split_enhanced(line);
            // Another code than the first line's is text like any other.
            let words = if code.is_none() || enhanced.is_none() || code == enhanced { words } else { line };
            enhanced = enhanced.or(code);
            if !joined.is_empty() && !words.is_empty() {
                joined.push(b' ');
            }
            joined.extend_from_slice(words);
        }
        Reply { code: self.code, enhanced, text: text::printable(&joined).into_boxed_str() }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), Garbage> {
        let (code, last, text) = split_line(line).ok_or(Garbage::NoCode)?;
        if self.lines == 0 {
            self.code = code;
        } else if code != self.code {
            return Err(Garbage::MixedCodes);
        }
        self.lines += 1;
        if self.lines > limits::PEER_REPLY_LINES || self.texts.len() + text.len() >= limits::PEER_REPLY_BYTES
        {
            return Err(Garbage::LongReply);
        }
        self.texts.extend_from_slice(text);
        self.texts.push(b'\n');
        self.complete = last;
        Ok(())
    }
}

/// Splits `250-text`, `250 text` or `250` into code, whether it is a reply's last line, and text.
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (digits, rest) = line.split_at_checked(3)?;
    if !(b'2'..=b'5').contains(&digits[0]) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    match rest {
        [] => Some((code, true, rest)),
        [b' ', text @ ..] => Some((code, true, text)),
        [b'-', text @ ..] => Some((code, false, text)),
        _ => None,
    }
}

/// Takes the enhanced code off the front of a line's text (RFC 2034 §4): class 2, 4 or 5, subject and
/// detail of one to three digits, then a space or the end.
fn split_enhanced(text: &[u8]) -> (Option<EnhancedCode>, &[u8]) {
    let word = &text[..memchr::memchr(b' ', text).unwrap_or(text.len())];
    let mut parts = word.split(|b| *b == b'.');
    let mut part = || {
        let digits = parts.next()?;
        let fits = matches!(digits.len(), 1..=3) && digits.iter().all(u8::is_ascii_digit);
        fits.then(|| digits.iter().fold(0u16, |n, digit| n * 10 + u16::from(digit - b'0')))
    };
    let code = match (part(), part(), part()) {
        (Some(class @ (2 | 4 | 5)), Some(subject), Some(detail)) => {
            EnhancedCode { class: class as u8, subject, detail }
        }
        _ => return (None, text),
    };
    if parts.next().is_some() {
        return (None, text);
    }
    (Some(code), text[word.len()..].trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All replies in `input`, shown, and the error that ended them or the bytes left.
    fn read(input: &[u8], cuts: &[usize]) -> (Vec<String>, Result<usize, Garbage>) {
        let mut reader = ReplyReader::default();
        let (mut replies, mut at) = (Vec::new(), 0);
        for &end in cuts.iter().chain([&input.len()]) {
            loop {
                match reader.read(&input[at..end]) {
                    Ok((bytes, code)) => {
                        at += bytes;
                        if code.is_none() {
                            break;
                        }
                        replies.push(reader.reply().to_string());
                    }
                    Err(garbage) => return (replies, Err(garbage)),
                }
            }
        }
        (replies, Ok(input.len() - at))
    }

    fn check(input: &[u8], replies: &[&str], end: Result<usize, Garbage>) {
        let expected = (replies.iter().map(ToString::to_string).collect(), end);
        assert_eq!(read(input, &[]), expected, "{}", input.escape_ascii());
        for cut in 0..=input.len() {
            assert_eq!(read(input, &[cut]), expected, "cut at {cut}: {}", input.escape_ascii());
        }
        let every: Vec<usize> = (0..input.len()).collect();
        assert_eq!(read(input, &every), expected, "byte by byte: {}", input.escape_ascii());
    }

    #[test]
    fn replies() {
        check(b"", &[], Ok(0));
        check(b"250 ok\r\n", &["250 ok"], Ok(0));
        check(b"250\r\n354 \r\n", &["250 ", "354 "], Ok(0));
        check(b"250 ok\n25", &["250 ok"], Ok(2));
        check(b"250-one\r\n250-two\r\n250 three\r\n221 x\r\n", &["250 one two three", "221 x"], Ok(0));
        check(b"550-5.1.1 no\r\n550 5.1.1 such user\r\n", &["550 5.1.1 no such user"], Ok(0));
        check(b"550-5.1.1 no\r\n550-\r\n550 5.2.1 user\r\n", &["550 5.1.1 no 5.2.1 user"], Ok(0));
        check(b"250 2.0.0\r\n", &["250 2.0.0 "], Ok(0));
        check(
            b"250 10.0.0 x\r\n250 2.0 x\r\n250 2.0.0.0 x\r\n",
            &["250 10.0.0 x", "250 2.0 x", "250 2.0.0.0 x"],
            Ok(0),
        );
        check(
            b"250 2.0.1234 x\r\n250 3.0.0 x\r\n250 2.1.999x\r\n",
            &["250 2.0.1234 x", "250 3.0.0 x", "250 2.1.999x"],
            Ok(0),
        );
        check(b"250 a\0\x1b[m\xff\r\r\n", &["250 a\\x00\\x1b[m\\xff\\x0d"], Ok(0));
    }

    #[test]
    fn garbage() {
        check(b"\r\n", &[], Err(Garbage::NoCode));
        check(b"25\r\n", &[], Err(Garbage::NoCode));
        check(b"150 x\r\n", &[], Err(Garbage::NoCode));
        check(b"650 x\r\n", &[], Err(Garbage::NoCode));
        check(b"2x0 x\r\n", &[], Err(Garbage::NoCode));
        check(b"250x\r\n", &[], Err(Garbage::NoCode));
        check(b"HTTP/1.1 400 Bad Request\r\n", &[], Err(Garbage::NoCode));
        check(b"250 ok\r\n250-a\r\n251 b\r\n", &["250 ok"], Err(Garbage::MixedCodes));
    }

    #[test]
    fn bounds() {
        let longest = limits::PEER_REPLY_LINE_BYTES;
        let line = |bytes: usize| format!("250 {}\r\n", "x".repeat(bytes - 6));
        for cuts in [&[][..], &[1], &[longest - 1], &[longest]] {
            assert_eq!(read(line(longest).as_bytes(), cuts).1, Ok(0));
            assert_eq!(read(line(longest + 1).as_bytes(), cuts).1, Err(Garbage::LongLine));
        }
        assert_eq!(read(&vec![b'2'; longest], &[]).1, Err(Garbage::LongLine));
        let many = |lines: usize| "250-x\r\n".repeat(lines - 1) + "250 x\r\n";
        assert_eq!(read(many(limits::PEER_REPLY_LINES).as_bytes(), &[]).1, Ok(0));
        assert_eq!(read(many(limits::PEER_REPLY_LINES + 1).as_bytes(), &[]).1, Err(Garbage::LongReply));
        let fat = format!("250-{}\r\n", "x".repeat(1000)).repeat(17);
        assert_eq!(read(fat.as_bytes(), &[]).1, Err(Garbage::LongReply));
        let (replies, _) = read(format!("250 {}\r\n", "\u{fc}".repeat(1000)).as_bytes(), &[]);
        assert!(replies[0].len() <= limits::FOREIGN_TEXT_BYTES + 4);
    }
}
