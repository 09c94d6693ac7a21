//! The carriage of SASL in SMTP (RFC 4954): the AUTH command's argument and the client's responses.
//!
//! Owns: their grammar and base64, both ways; [`Secret`], bytes that may hold a password. Promises: what
//! a client said is wiped from memory when it is dropped and never shown by `Debug`. Must not: know a
//! mechanism beyond its name.
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::command::CommandError;

/// Bytes that must not be shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a client says in an authentication exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthSaid {
    /// It begins with a mechanism that was offered, by the name it was offered under; with the initial
    /// response, if it gave one.
    Begin(&'static str, Option<Secret>),
    Response(Secret),
}

/// Reads the argument of AUTH: the mechanism's name, and the initial response where there is one. `=` is
/// an empty one (RFC 4954 §4).
pub fn parse_auth(argument: &[u8]) -> Result<(&str, Option<Secret>), CommandError> {
    let (mechanism, initial) = match memchr::memchr(b' ', argument) {
        Some(space) => (&argument[..space], Some(argument[space + 1..].trim_ascii_start())),
        None => (argument, None),
    };
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let name =
        std::str::from_utf8(mechanism).ok().filter(|m| !m.is_empty() && m.bytes().all(|b| is_name(&b)));
    let initial = match initial {
        None => None,
        Some(b"=") => Some(Secret::default()),
        Some(text) if !text.is_empty() => Some(decode(text).ok_or(CommandError::Base64)?),
        Some(_) => return Err(CommandError::AuthSyntax),
    };
    name.map(|name| (name, initial)).ok_or(CommandError::AuthSyntax)
}

/// A response line as bytes; none where it is not base64.
pub fn decode(text: &[u8]) -> Option<Secret> {
    STANDARD.decode(text).ok().map(Secret::new)
}

/// Appends `334` with a challenge.
pub fn push_challenge(out: &mut Vec<u8>, challenge: &[u8]) {
    out.extend_from_slice(b"334 ");
    out.extend_from_slice(STANDARD.encode(challenge).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_auth() {
        let secret = |text: &str| Some(Secret::new(text.as_bytes().to_vec()));
        let table = [
            ("PLAIN", Ok(("PLAIN", None))),
            ("plain =", Ok(("plain", secret("")))),
            ("PLAIN AGEAYg==", Ok(("PLAIN", secret("\0a\0b")))),
            ("SCRAM-SHA-256  biws", Ok(("SCRAM-SHA-256", secret("n,,")))),
            ("", Err(CommandError::AuthSyntax)),
            (" =", Err(CommandError::AuthSyntax)),
            ("A!B", Err(CommandError::AuthSyntax)),
            ("PLAIN ", Err(CommandError::AuthSyntax)),
            ("PLAIN AGEAYg", Err(CommandError::Base64)),
            ("PLAIN AGE AYg==", Err(CommandError::Base64)),
            ("PLAIN *", Err(CommandError::Base64)),
        ];
        for (argument, expected) in table {
            assert_eq!(parse_auth(argument.as_bytes()), expected, "{argument}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(
            format!("{:?}", AuthSaid::Response(Secret::new(b"tanstaaftanstaaf".to_vec()))),
            "Response(Secret)"
        );
    }
}
