//! Line ends of text that did not come over SMTP.
//!
//! Owns: the one change made to such text: an LF without a CR before it becomes CRLF (RFC 5322 §2.1).
//! Promises: text whose lines end in CRLF is not touched, and nothing but CRs is added. Must not: mend
//! anything else: a CR without LF stays what it is, for whoever takes the message to refuse; in a
//! header it may be an attempt to smuggle a field in.
use std::borrow::Cow;

/// `text` with CRLF for every line end.
pub fn with_crlf(text: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let is_bare = |at: &usize| *at == 0 || text[*at - 1] != b'\r';
    let Some(first) = memchr::memchr_iter(b'\n', &text).find(is_bare) else { return text };
    let bare = memchr::memchr_iter(b'\n', &text[first..]).filter(|at| is_bare(&(first + at))).count();
    let mut out = Vec::with_capacity(text.len() + bare);
    let mut from = 0;
    for at in memchr::memchr_iter(b'\n', &text).filter(is_bare) {
        out.extend_from_slice(&text[from..at]);
        out.push(b'\r');
        from = at;
    }
    out.extend_from_slice(&text[from..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_lfs_become_crlf() {
        for (text, expected) in [
            ("", ""),
            ("a", "a"),
            ("a\r\nb\r\n", "a\r\nb\r\n"),
            ("a\nb\n", "a\r\nb\r\n"),
            ("\n\n", "\r\n\r\n"),
            ("a\r\nb\nc\r\n", "a\r\nb\r\nc\r\n"),
            // Not mended.
            ("a\rb\n", "a\rb\r\n"),
            ("a\r\r\n", "a\r\r\n"),
            ("\r", "\r"),
        ] {
            let out = with_crlf(Cow::Borrowed(text.as_bytes()));
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected, "{text:?}");
        }
        assert!(matches!(with_crlf(Cow::Borrowed(b"a\r\n")), Cow::Borrowed(_)));
    }
}
