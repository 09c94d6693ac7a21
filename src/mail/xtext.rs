//! xtext: how ENVID and ORCPT carry any character (RFC 3461 §4, RFC 6533 §3).
//!
//! Owns: the check and the decoding of both forms. Promises: what passed a check is printable ASCII
//! without spaces, so it may stand in a command as it is. Must not: know commands or reports.

/// Whether `text` is xtext: printable ASCII, where `+` begins two hexadecimal digits and `=` does not
/// occur.
pub fn is_valid(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = match byte {
            b'+' if behind.len() >= 2 && behind[..2].iter().all(u8::is_ascii_hexdigit) => &behind[2..],
            b'+' | b'=' => return false,
            b'!'..=b'~' => behind,
            _ => return false,
        };
    }
    true
}

/// The bytes that xtext stands for; what is no xtext stands for itself.
pub fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'+');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// An original recipient, `type;encoded address`, in the form in which it may stand in any command; none
/// if it is malformed. In an address of the type `utf-8` characters beyond ASCII become `\x{…}`, the form
/// that needs no SMTPUTF8 (RFC 6533 §3).
pub fn original_recipient(value: &str) -> Option<String> {
    let (kind, address) = value.split_once(';')?;
    let atom = |b: u8| matches!(b, b'!'..=b'~') && !b"()<>[]:;@\\,.\"=+".contains(&b);
    if kind.is_empty() || !kind.bytes().all(atom) || address.is_empty() {
        return None;
    }
    if !kind.eq_ignore_ascii_case("utf-8") {
        return is_valid(address.as_bytes()).then(|| value.to_string());
    }
    let mut out = format!("{kind};");
    for c in address.chars() {
        match c {
            '+' | '=' => return None,
            '!'..='~' => out.push(c),
            c if c.is_ascii() || c.is_control() => return None,
            c => out.push_str(&escape(c)),
        }
    }
    Some(out)
}

/// An address in the 7-bit form of the type `utf-8` (RFC 6533 §3).
pub fn escape_address(address: &str) -> String {
    let one = |c: char| match c {
        '\\' | '+' | '=' | ' ' => escape(c),
        '!'..='~' => c.to_string(),
        c => escape(c),
    };
    address.chars().map(one).collect()
}

fn escape(c: char) -> String {
    format!("\\x{{{:X}}}", u32::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext() {
        let table = [
            ("", Some("")),
            ("abc", Some("abc")),
            ("a+2Bb+3D", Some("a+b=")),
            ("a+2b", Some("a+")),
            ("+", None),
            ("+4", None),
            ("+4g", None),
            ("a=b", None),
            ("a b", None),
            ("\u{fc}", None),
        ];
        for (text, decoded) in table {
            assert_eq!(is_valid(text.as_bytes()), decoded.is_some(), "{text}");
            if let Some(decoded) = decoded {
                assert_eq!(decode(text), decoded.as_bytes());
            }
        }
        assert_eq!(decode("+4\u{fc}"), "+4\u{fc}".as_bytes());
    }

    #[test]
    fn original_recipients() {
        let table = [
            ("rfc822;a+2Bb@c", Some("rfc822;a+2Bb@c")),
            ("X-other;123", Some("X-other;123")),
            ("utf-8;j\u{fc}@b", Some("utf-8;j\\x{FC}@b")),
            ("utf-8;j\\x{FC}@b", Some("utf-8;j\\x{FC}@b")),
            ("rfc822;j\u{fc}@b", None),
            ("rfc822;", None),
            (";a@b", None),
            ("a@b", None),
            ("rfc 822;a", None),
            ("rfc822;a=b", None),
            ("utf-8;a b", None),
            ("utf-8;a\u{85}b", None),
        ];
        for (text, expected) in table {
            assert_eq!(original_recipient(text).as_deref(), expected, "{text}");
        }
        assert_eq!(escape_address("j\u{fc}+x@b"), "j\\x{FC}\\x{2B}x@b");
    }
}
