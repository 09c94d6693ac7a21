//! The arguments of XCLIENT: whom a trusted proxy says it speaks for.
//!
//! Owns: the grammar of Postfix's protocol (its XCLIENT_README): `NAME=value` pairs in xtext
//! (RFC 3461 §4). Promises: an attribute that is not known, comes twice or has no valid value makes the
//! whole command an error, so that a client is never taken for another. Must not: decide who may say it.
use std::net::IpAddr;

use crate::mail::text;

/// The attributes that are understood, as EHLO names them.
pub const ATTRIBUTES: &str = "NAME ADDR PORT PROTO HELO";

/// What the proxy says of the client. `None` leaves things as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xclient {
    pub addr: Option<IpAddr>,
    pub port: Option<u16>,
    /// The name that the client gave to the proxy; printable.
    pub helo: Option<String>,
    /// Whether the client said EHLO to the proxy.
    pub esmtp: Option<bool>,
}

/// Reads the argument of XCLIENT.
pub fn parse(argument: &[u8]) -> Option<Xclient> {
    let mut seen = Vec::new();
    let mut said = Xclient::default();
    for pair in argument.split(|b| *b == b' ').filter(|pair| !pair.is_empty()) {
        let equals = memchr::memchr(b'=', pair)?;
        let (name, value) = (pair[..equals].to_ascii_uppercase(), decode_xtext(&pair[equals + 1..])?);
        if seen.contains(&name) {
            return None;
        }
        let value = std::str::from_utf8(&value).ok().filter(|v| !v.is_empty())?;
        let known = !["[UNAVAILABLE]", "[TEMPUNAVAIL]"].iter().any(|u| value.eq_ignore_ascii_case(u));
        match &name[..] {
            // The name of the address in DNS: nothing here depends on it.
            b"NAME" => {}
            b"ADDR" => {
                // The real client must be known: everything that limits it goes by its address.
                let bare = value
                    .get(..5)
                    .filter(|tag| tag.eq_ignore_ascii_case("IPV6:"))
                    .map_or(value, |_| &value[5..]);
                said.addr = Some(bare.parse::<IpAddr>().ok()?.to_canonical());
            }
            b"PORT" if known => said.port = Some(value.parse().ok()?),
            b"PROTO" => match value.to_ascii_uppercase().as_str() {
                "SMTP" => said.esmtp = Some(false),
                "ESMTP" => said.esmtp = Some(true),
                _ => return None,
            },
            b"HELO" if known => said.helo = Some(text::printable(value.as_bytes())),
            b"PORT" | b"HELO" => {}
            _ => return None,
        }
        seen.push(name);
    }
    (!seen.is_empty()).then_some(said)
}

/// RFC 3461 §4: `+XX` stands for a byte, a bare `+` or `=` may not be.
fn decode_xtext(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'+' => {
                let mut nibble = || char::from(*rest.next()?).to_digit(16);
                out.push((nibble()? << 4 | nibble()?) as u8);
            }
            b'!'..=b'~' if byte != b'=' => out.push(byte),
            _ => return None,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let addr = |text: &str| Xclient { addr: Some(text.parse().unwrap()), ..Xclient::default() };
        let table = [
            ("ADDR=192.0.2.1", Some(addr("192.0.2.1"))),
            ("addr=IPv6:2001:db8::1 NAME=[UNAVAILABLE]", Some(addr("2001:db8::1"))),
            ("ADDR=::ffff:192.0.2.1 PORT=[UNAVAILABLE]", Some(addr("192.0.2.1"))),
            ("NAME=spike.test", Some(Xclient::default())),
            (
                "ADDR=192.0.2.1 PORT=25 HELO=a+2Bb PROTO=esmtp",
                Some(Xclient {
                    port: Some(25),
                    helo: Some("a+b".into()),
                    esmtp: Some(true),
                    ..addr("192.0.2.1")
                }),
            ),
            ("HELO=x+0D+0Ay", Some(Xclient { helo: Some("x\\x0d\\x0ay".into()), ..Xclient::default() })),
            ("", None),
            ("ADDR", None),
            ("ADDR=", None),
            ("ADDR=[UNAVAILABLE]", None),
            ("ADDR=192.0.2", None),
            ("ADDR=192.0.2.1 ADDR=192.0.2.2", None),
            ("PORT=65536", None),
            ("PROTO=LMTP", None),
            ("LOGIN=root", None),
            ("HELO=a+", None),
            ("HELO=a+2", None),
            ("HELO=a=b", None),
            ("COLOUR=red", None),
        ];
        for (argument, expected) in table {
            assert_eq!(parse(argument.as_bytes()), expected, "{argument}");
        }
    }
}
