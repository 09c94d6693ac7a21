//! The header fields of a message (RFC 5322 §2.2).
//!
//! Owns: taking a header apart, finding a field by its name and reading its value. Promises: stops at
//! the end of the headers; a value that is read is unfolded, without the white space around it,
//! printable ASCII and cut to what is asked for. Must not: judge a value, or change the message.
use std::ops::Range;

use super::text;

/// A field, folds and all, or a line where one should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Where it stands in the message, its line end included.
    pub range: Range<usize>,
    /// Empty if this is no field.
    pub name: &'a [u8],
    /// What is behind the colon.
    pub value: &'a [u8],
}

/// The fields of a message in order, up to the empty line or the end.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Field<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &message[at..];
        if rest.is_empty() || rest.starts_with(b"\r\n") {
            return None;
        }
        let start = at;
        at += field_end(rest);
        let line = &message[start..at];
        let colon = memchr::memchr(b':', line).unwrap_or_default();
        let name = line[..colon].trim_ascii_end();
        let is_name = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        let (name, value) = if is_name { (name, &line[colon + 1..]) } else { (&[][..], line) };
        Some(Field { range: start..at, name, value })
    })
}

/// The value of the first field called `name` (case ignored), of at most `most` bytes. None if there is
/// no such field or it is empty.
pub fn value(message: &[u8], name: &str, most: usize) -> Option<Box<str>> {
    let field = fields(message).find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))?;
    let mut clean = text::printable(field.value.trim_ascii());
    clean.truncate(most);
    (!clean.is_empty()).then(|| clean.into())
}

/// Whether an empty line has to go before `message` where header fields stand in front of it: it begins with
/// neither a field nor the end of a header, and would be read as a continuation of the last field or as a
/// mistake in that header.
pub fn needs_separator(message: &[u8]) -> bool {
    let line = &message[..memchr::memchr(b'\n', message).map_or(message.len(), |end| end + 1)];
    let colon = memchr::memchr(b':', line).unwrap_or_default();
    let name = line[..colon].trim_ascii_end();
    let is_field = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
    !is_field && !line.is_empty() && line != b"\r\n"
}

/// Where the field at the start of `text` ends: at a line end that no white space follows.
fn field_end(text: &[u8]) -> usize {
    let mut at = 0;
    loop {
        match memchr::memchr(b'\n', &text[at..]) {
            None => return text.len(),
            Some(end) => at += end + 1,
        }
        if !matches!(text.get(at), Some(b' ' | b'\t')) {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_of_that_name() {
        let table = [
            ("X-Stream: news\r\n\r\nbody", Some("news")),
            ("From: a\r\nx-stream : news \r\nX-Stream: late\r\n\r\n", Some("news")),
            ("X-Streams: no\r\n\r\nX-Stream: in the body\r\n", None),
            ("X-Stream:\r\n folded\r\nTo: b\r\n\r\n", Some("folded")),
            ("X-Stream:  \r\n\r\n", None),
            ("X-Stream: cut here and there\r\n\r\n", Some("cut here")),
            ("Subject: x\r\n X-Stream: inside a fold\r\n\r\n", None),
            ("X-Stream", None),
            ("", None),
        ];
        for (message, expected) in table {
            assert_eq!(value(message.as_bytes(), "X-Stream", 8).as_deref(), expected, "{message:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_kept_from_ours() {
        for (message, separated) in [
            ("", false),
            ("\r\nbody\r\n", false),
            ("Subject: x\r\n", false),
            ("X-a_b \t: x\r\n", false),
            (" for <victim@far.test>; x\r\n", true),
            ("\tfolded: x\r\n", true),
            (" \r\n", true),
            ("hello\r\nSubject: x\r\n", true),
            ("hello", true),
            ("two words: x\r\n", true),
            (": x\r\n", true),
            ("..: dots\r\n", false),
            ("From a@b.test Thu Jan  1 00:00:00 1970\r\n", true),
            ("gr\u{fc}n: x\r\n", true),
        ] {
            assert_eq!(needs_separator(message.as_bytes()), separated, "{message:?}");
        }
    }

    #[test]
    fn a_header_taken_apart() {
        let message = b"A: 1\r\n\tmore\r\nno field\r\nB : 2\r\nc d: 3\r\n\r\nE: 5\r\n";
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let found: Vec<_> = fields(message).map(|f| (f.range, text(f.name), text(f.value))).collect();
        let expected = [
            (0..13, "A", " 1\r\n\tmore\r\n"),
            (13..23, "", "no field\r\n"),
            (23..30, "B", " 2\r\n"),
            (30..38, "", "c d: 3\r\n"),
        ];
        assert_eq!(found, expected.map(|(range, name, value)| (range, name.to_owned(), value.to_owned())));
    }
}
