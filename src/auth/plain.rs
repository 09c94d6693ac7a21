//! PLAIN (RFC 4616): name and password in one message.
//!
//! Owns: the grammar of that message. Promises: what is taken has a name and a password, within bounds.
//! Must not: check anything against users. (LOGIN, which has no RFC, asks for the same two in turn; it is
//! in `exchange`.)
use crate::limits;

/// What PLAIN says: on whose behalf (empty for its own), who, and the password.
#[derive(Debug, PartialEq, Eq)]
pub struct Plain<'a> {
    pub authzid: &'a str,
    pub name: &'a str,
    pub password: &'a [u8],
}

/// Reads the message.
pub fn parse(message: &[u8]) -> Option<Plain<'_>> {
    let mut parts = message.split(|b| *b == 0);
    let (authzid, name, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !is_password(password) {
        return None;
    }
    Some(Plain { authzid: std::str::from_utf8(authzid).ok()?, name: user_name(name)?, password })
}

/// Bytes that can be a user's name.
pub fn user_name(bytes: &[u8]) -> Option<&str> {
    let fits = !bytes.is_empty() && bytes.len() <= limits::AUTH_NAME_BYTES;
    std::str::from_utf8(bytes).ok().filter(|name| fits && !name.chars().any(char::is_control))
}

/// Bytes that can be a password.
pub fn is_password(bytes: &[u8]) -> bool {
    (1..=limits::AUTH_PASSWORD_BYTES).contains(&bytes.len()) && !bytes.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let plain = |authzid, name, password| Some(Plain { authzid, name, password });
        for (message, expected) in [
            (&b"\0tim\0tanstaaftanstaaf"[..], plain("", "tim", b"tanstaaftanstaaf")),
            (b"Ursel\0Kurt\0xipj3plmq", plain("Ursel", "Kurt", b"xipj3plmq")),
            (b"\0a\0\xff", plain("", "a", b"\xff")),
            (b"", None),
            (b"tim\0pw", None),
            (b"\0tim\0", None),
            (b"\0\0pw", None),
            (b"\0tim\0pw\0", None),
            (b"\0t\x07m\0pw", None),
            (b"\0\xff\0pw", None),
        ] {
            assert_eq!(parse(message), expected, "{}", message.escape_ascii());
        }
        let long = [b"\0a\0".as_slice(), &[b'x'; limits::AUTH_PASSWORD_BYTES + 1]].concat();
        assert_eq!(parse(&long), None);
        let long = [&[0], [b'x'; limits::AUTH_NAME_BYTES + 1].as_slice(), b"\0pw"].concat();
        assert_eq!(parse(&long), None);
    }
}
