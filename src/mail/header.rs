//! One header field of a message (RFC 5322 §2.2).
//!
//! Owns: finding a field by its name and reading its value. Promises: stops at the end of the headers;
//! the value is unfolded, without the white space around it, printable ASCII and cut to
//! what is asked for. Must not: judge the value, or change the message.
use super::text;

/// The value of the first field called `name` (case ignored), of at most `most` bytes. None if there is
/// no such field or it is empty.
pub fn value(message: &[u8], name: &str, most: usize) -> Option<Box<str>> {
    let mut rest = message;
    while !rest.is_empty() && !rest.starts_with(b"\r\n") {
        let end = field_end(rest);
        if let Some(value) = value_of(&rest[..end], name.as_bytes()) {
            let mut clean = text::printable(value.trim_ascii());
            clean.truncate(most);
            return (!clean.is_empty()).then(|| clean.into());
        }
        rest = &rest[end..];
    }
    None
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

/// What stands behind the name and its colon, folds and all.
fn value_of<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = field.split_at_checked(name.len())?;
    let value = rest.trim_ascii_start().strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then_some(value)
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
}
