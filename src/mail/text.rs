//! Foreign text made safe to show.
//!
//! Owns: the one rule by which bytes from outside become text in headers, DSNs, logs, events and
//! terminals. Promises: the result is printable ASCII without CR, LF or NUL and at most
//! `limits::FOREIGN_TEXT_BYTES` long. Must not: be bypassed; every place that shows foreign bytes
//! calls it.
use crate::limits;

/// Printable ASCII of `bytes`: anything else becomes `\xNN`, and what is too long is cut.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().min(limits::FOREIGN_TEXT_BYTES));
    for &b in bytes {
        if out.len() + 4 > limits::FOREIGN_TEXT_BYTES {
            break;
        }
        match b {
            b'\t' => out.push(' '),
            b' '..=b'~' => out.push(char::from(b)),
            _ => {
                out.push_str("\\x");
                for nibble in [b >> 4, b & 15] {
                    out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_pass() {
        assert_eq!(printable(b"a\r\nb\0\x1b[31m\xff"), "a\\x0d\\x0ab\\x00\\x1b[31m\\xff");
        assert!(printable(&[b'x'; 9999]).len() <= limits::FOREIGN_TEXT_BYTES);
        assert!(printable(&[0; 9999]).len() <= limits::FOREIGN_TEXT_BYTES);
    }
}
