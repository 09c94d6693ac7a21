//! Mail addresses of the envelope (RFC 5321 §4.1.2, §4.1.3, RFC 6531 §3.3).
//!
//! Owns: [`Domain`] and [`Address`], both valid by construction. Promises: domains are lower case A-labels,
//! so equal domains are equal bytes, however they were written; a local part is kept exactly as the
//! client wrote it, quotes included, because only the final host may interpret it (RFC 5321 §2.3.11);
//! neither holds a control character, so both may stand in a command or a header, and where
//! [`Address::is_ascii`] holds, in any. Must not: parse whole commands (that is `smtp::command`) or
//! headers.
use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::short::Short;
use crate::limits;

/// A domain name in A-label form, lower case, or an address literal with its brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Short);

/// A mailbox: local part as written (quoted form kept) and domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// `local@domain`, the domain normalised.
    text: Short,
    /// The part of `text` behind the `@`, once more: callers keep and compare domains by reference.
    domain: Domain,
}

/// MAIL FROM: the null path `<>` or an address.
pub type ReversePath = Option<Address>;

#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum AddressError {
    #[error("the local part is empty, too long or has characters that need quotes")]
    LocalPart,
    #[error("the domain is empty, too long or has characters outside A-Z, 0-9, hyphen and dot")]
    Domain,
    #[error("the address literal is not an IPv4 or IPv6 address in brackets")]
    Literal,
    #[error("an address has the form local@domain")]
    Form,
    #[error("the address is longer than a path may be")]
    TooLong,
}

/// Whether the grammar takes characters beyond ASCII.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    Ascii,
    Unicode,
}

/// Longest label of a domain name (RFC 1035 §2.3.4).
const LABEL_BYTES: usize = 63;
/// The tag of an IPv6 address literal (RFC 5321 §4.1.3); matched without regard to case.
const IPV6_TAG: &[u8] = b"IPv6:";

/// Bit of [`CLASS`]: may stand in an unquoted local part (`atext`, RFC 5322 §3.2.3).
const ATEXT: u8 = 1;
/// Bit of [`CLASS`]: may stand in a label. The underscore is no part of RFC 5321's grammar, but names
/// that carry it receive mail.
const LABEL: u8 = 2;

const CLASS: [u8; 256] = {
    let mut class = [0u8; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'-' || b == b'_' {
            class[byte] = ATEXT | LABEL;
        }
        byte += 1;
    }
    let others = b"!#$%&'*+/=?^`{|}~";
    let mut i = 0;
    while i < others.len() {
        class[others[i] as usize] |= ATEXT;
        i += 1;
    }
    class
};

fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

impl Domain {
    /// Takes a domain name or an address literal with its brackets, and normalises it: names to lower
    /// case, literals to the one text form of their address. Refused are empty labels (so a trailing
    /// dot as well), labels over 63 bytes or with a hyphen at an end, names over
    /// [`limits::DOMAIN_BYTES`], and names whose last label is a number: no such name exists
    /// (RFC 1123 §2.1), and some resolvers would take it for an address.
    pub fn parse(text: &[u8]) -> Result<Domain, AddressError> {
        if text.first() == Some(&b'[') {
            return parse_literal(text).map(Domain::from_ip);
        }
        check_name(text)?;
        let mut name = Short::from(ascii(text));
        name.make_ascii_lowercase();
        Ok(Domain(name))
    }

    /// [`Domain::parse`] for internationalised names as well: U-labels become A-labels (RFC 5890 §2.3.2.1).
    pub fn parse_utf8(text: &[u8]) -> Result<Domain, AddressError> {
        if text.is_ascii() {
            return Domain::parse(text);
        }
        let ascii = idna::domain_to_ascii_cow(text, idna::AsciiDenyList::EMPTY);
        Domain::parse(ascii.map_err(|_| AddressError::Domain)?.as_bytes())
    }

    /// Whether [`Domain::parse`] would take `text`, without keeping anything.
    pub fn is_valid(text: &[u8]) -> bool {
        match text.first() {
            Some(b'[') => parse_literal(text).is_ok(),
            _ => check_name(text).is_ok(),
        }
    }

    /// The address literal of `ip`: `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    pub fn from_ip(ip: IpAddr) -> Domain {
        // The longest, of an IPv6 address that ends in an IPv4 one, has 52 bytes.
        let mut text = [0; 64];
        let mut rest = &mut text[..];
        let room = rest.len();
        match ip {
            IpAddr::V4(v4) => write!(rest, "[{v4}]"),
            IpAddr::V6(v6) => write!(rest, "[IPv6:{v6}]"),
        }
        .expect("every literal has room");
        let bytes = room - rest.len();
        Domain(Short::from(ascii(&text[..bytes])))
    }

    /// The name in lower case without a trailing dot, or the literal with its brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is an address literal.
    pub fn is_literal(&self) -> bool {
        self.0.starts_with('[')
    }

    /// The address of a literal; none for a name.
    pub fn literal_ip(&self) -> Option<IpAddr> {
        parse_literal(self.0.as_bytes()).ok()
    }
}

impl Address {
    /// Takes `local@domain` without angle brackets. The local part is a dot-atom or a quoted string
    /// (RFC 5321 §4.1.2), at most [`limits::LOCAL_PART_BYTES`] as written; the whole fits a path of
    /// [`limits::PATH_BYTES`]. Bytes outside ASCII are refused; [`Address::parse_utf8`] takes them.
    pub fn parse(text: &[u8]) -> Result<Address, AddressError> {
        Address::parse_as(text, Script::Ascii)
    }

    /// The same for an internationalised mailbox (RFC 6531 §3.3): the local part may hold UTF-8, in and
    /// out of quotes, the domain U-labels, which are kept as A-labels. Bounds count bytes. Refused are
    /// control characters and what turns the direction of text or hides in it: no mailbox needs them
    /// (RFC 8264 §9), and they would deceive whoever reads a list of addresses.
    pub fn parse_utf8(text: &[u8]) -> Result<Address, AddressError> {
        let script = if text.is_ascii() { Script::Ascii } else { Script::Unicode };
        Address::parse_as(text, script)
    }

    fn parse_as(text: &[u8], script: Script) -> Result<Address, AddressError> {
        // A path is the address and its angle brackets.
        if text.len() > limits::PATH_BYTES - 2 {
            return Err(AddressError::TooLong);
        }
        let at = local_part_bytes(text, script)?;
        if text.get(at) != Some(&b'@') {
            // A dot-atom ends at the first byte it may not hold: that byte is the fault unless there
            // is no `@` at all.
            let has_at = memchr::memchr(b'@', text).is_some();
            return Err(if has_at { AddressError::LocalPart } else { AddressError::Form });
        }
        if at > limits::LOCAL_PART_BYTES {
            return Err(AddressError::LocalPart);
        }
        let local = std::str::from_utf8(&text[..=at]).map_err(|_| AddressError::LocalPart)?;
        if script == Script::Unicode && !local.chars().all(is_harmless) {
            return Err(AddressError::LocalPart);
        }
        let domain = match script {
            Script::Ascii => Domain::parse(&text[at + 1..])?,
            Script::Unicode => Domain::parse_utf8(&text[at + 1..])?,
        };
        // An A-label may be longer than what it was made from.
        if at + 1 + domain.0.as_bytes().len() > limits::PATH_BYTES - 2 {
            return Err(AddressError::TooLong);
        }
        Ok(Address { text: Short::concat(&[local, &domain.0]), domain })
    }

    /// `local@domain`, the domain normalised.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The local part as the client wrote it, with its quotes if it has any.
    pub fn local(&self) -> &str {
        &self.text[..self.text.as_bytes().len() - self.domain.0.as_bytes().len() - 1]
    }

    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether it may stand in a command without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.text.is_ascii()
    }
}

/// Whether a character of a local part can be shown without harm: no control character, none that
/// changes the direction of text, none that is invisible.
fn is_harmless(c: char) -> bool {
    let hidden = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{ffff}');
    !c.is_control() && !hidden
}

/// `text` as a string; its bytes have passed a grammar of printable ASCII.
fn ascii(text: &[u8]) -> &str {
    std::str::from_utf8(text).expect("checked text is ASCII")
}

/// The grammar of a domain name, see [`Domain::parse`].
fn check_name(text: &[u8]) -> Result<(), AddressError> {
    if text.is_empty() || text.len() > limits::DOMAIN_BYTES {
        return Err(AddressError::Domain);
    }
    let mut label_starts = 0;
    for at in 0..=text.len() {
        if at < text.len() && is(text[at], LABEL) {
            continue;
        }
        let label = &text[label_starts..at];
        let ends = at == text.len() || text[at] == b'.';
        let (Some(first), Some(last)) = (label.first(), label.last()) else {
            return Err(AddressError::Domain);
        };
        if !ends || label.len() > LABEL_BYTES || *first == b'-' || *last == b'-' {
            return Err(AddressError::Domain);
        }
        if at < text.len() {
            label_starts = at + 1;
        }
    }
    if text[label_starts..].iter().all(u8::is_ascii_digit) {
        return Err(AddressError::Domain);
    }
    Ok(())
}

/// The address in `[1.2.3.4]` or `[IPv6:…]`.
fn parse_literal(text: &[u8]) -> Result<IpAddr, AddressError> {
    let inner =
        text.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]")).ok_or(AddressError::Literal)?;
    let as_text = |bytes| std::str::from_utf8(bytes).map_err(|_| AddressError::Literal);
    if inner.len() > IPV6_TAG.len() && inner[..IPV6_TAG.len()].eq_ignore_ascii_case(IPV6_TAG) {
        let v6 = as_text(&inner[IPV6_TAG.len()..])?.parse::<Ipv6Addr>();
        return v6.map(IpAddr::V6).map_err(|_| AddressError::Literal);
    }
    as_text(inner)?.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| AddressError::Literal)
}

/// Length of the local part that `text` begins with: everything before the `@` that ends it.
fn local_part_bytes(text: &[u8], script: Script) -> Result<usize, AddressError> {
    if text.first() == Some(&b'"') {
        let bytes = quoted_string_bytes(text).ok_or(AddressError::LocalPart)?;
        let fits = script == Script::Unicode || text[..bytes].is_ascii();
        return if fits { Ok(bytes) } else { Err(AddressError::LocalPart) };
    }
    let mut after_dot = true;
    for (at, &b) in text.iter().enumerate() {
        if is(b, ATEXT) || (script == Script::Unicode && b >= 0x80) {
            after_dot = false;
        } else if b == b'.' && !after_dot {
            after_dot = true;
        } else {
            return if after_dot { Err(AddressError::LocalPart) } else { Ok(at) };
        }
    }
    Ok(text.len())
}

/// Length of the quoted string that `text` begins with, both quotes included (RFC 5321 §4.1.2:
/// printable ASCII, with a backslash before any quote or backslash inside; RFC 6531 §3.3: or bytes
/// beyond ASCII). None if it does not end.
pub fn quoted_string_bytes(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if matches!(text.get(at + 1), Some(b' '..=b'~')) => at += 2,
            b'\\' => return None,
            b' '..=b'~' | 0x80.. => at += 1,
            _ => return None,
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains() {
        let label63 = "a".repeat(63);
        let longest = format!("{label63}.{label63}.{label63}.{label63}");
        assert_eq!(longest.len(), limits::DOMAIN_BYTES);
        let good = [
            ("example.org", "example.org"),
            ("EXAMPLE.Org", "example.org"),
            ("localhost", "localhost"),
            ("a_b.example", "a_b.example"),
            ("_dmarc.example", "_dmarc.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.example", "1.example"),
            ("3com.com", "3com.com"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            ("[ipv6:2001:DB8:0:0::1]", "[IPv6:2001:db8::1]"),
            ("[IPv6:::1]", "[IPv6:::1]"),
            (&longest, &longest),
        ];
        for (text, expected) in good {
            let domain = Domain::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(domain.as_str(), expected);
            assert!(Domain::is_valid(text.as_bytes()));
            assert_eq!(domain.is_literal(), text.starts_with('['));
            assert_eq!(domain.literal_ip().is_some(), domain.is_literal());
        }
    }

    #[test]
    fn refused_domains() {
        let label64 = format!("{}.example", "a".repeat(64));
        let too_long = format!("a.{longest}", longest = vec!["a".repeat(63); 4].join("."));
        let names = [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a.b",
            "a-.b",
            "a.b-",
            "a b",
            "a@b",
            "a/b",
            "1.2.3.4",
            "a.5",
            "7",
            "b\u{fc}cher.example",
            "a\0b",
            "a\r\n",
            "a:25",
            &label64,
            &too_long,
        ];
        for text in names {
            assert_eq!(Domain::parse(text.as_bytes()), Err(AddressError::Domain), "{text:?}");
            assert!(!Domain::is_valid(text.as_bytes()));
        }
        let literals = [
            "[",
            "[]",
            "[1.2.3]",
            "[1.2.3.256]",
            "[01.2.3.4]",
            "[1.2.3.4",
            "[1.2.3.4]x",
            "[::1]",
            "[IPv6:]",
            "[IPv6:1.2.3.4]",
            "[IPv6:::g]",
            "[x400:y]",
            "[ 1.2.3.4]",
            "[IPv6:fe80::1%eth0]",
        ];
        for text in literals {
            assert_eq!(Domain::parse(text.as_bytes()), Err(AddressError::Literal), "{text:?}");
            assert!(!Domain::is_valid(text.as_bytes()));
        }
    }

    #[test]
    fn literals_round_trip() {
        for ip in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let domain = Domain::from_ip(ip);
            assert_eq!(domain.literal_ip(), Some(ip));
            assert_eq!(Domain::parse(domain.as_str().as_bytes()), Ok(domain));
        }
        assert_eq!(Domain::parse(b"example.org").unwrap().literal_ip(), None);
    }

    #[test]
    fn addresses() {
        let good = [
            ("user@example.org", "user", "example.org"),
            ("User+Tag@EXAMPLE.org", "User+Tag", "example.org"),
            ("a.b.c@d", "a.b.c", "d"),
            ("!#$%&'*+-/=?^_`{|}~@d", "!#$%&'*+-/=?^_`{|}~", "d"),
            ("\"a b\"@d", "\"a b\"", "d"),
            ("\"a@b>\"@d", "\"a@b>\"", "d"),
            ("\"\"@d", "\"\"", "d"),
            (r#""a\"b\\"@d"#, r#""a\"b\\""#, "d"),
            ("x@[192.0.2.1]", "x", "[192.0.2.1]"),
            ("x@[ipv6:::1]", "x", "[IPv6:::1]"),
        ];
        for (text, local, domain) in good {
            let address = Address::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((address.local(), address.domain().as_str()), (local, domain));
            assert_eq!(address.as_str(), format!("{local}@{domain}"));
            assert_eq!(Address::parse(address.as_str().as_bytes()), Ok(address));
        }
    }

    #[test]
    fn refused_addresses() {
        use AddressError as E;
        let local65 = format!("{}@d", "a".repeat(65));
        let long = format!("{}@{}", "a".repeat(64), vec!["b".repeat(60); 4].join("."));
        let table = [
            ("", E::Form),
            ("user", E::Form),
            ("@d", E::LocalPart),
            ("a@", E::Domain),
            ("a@b@c", E::Domain),
            (".a@d", E::LocalPart),
            ("a.@d", E::LocalPart),
            ("a..b@d", E::LocalPart),
            ("a b@d", E::LocalPart),
            ("\"a@d", E::LocalPart),
            ("\"a\"b@d", E::LocalPart),
            ("a\"b\"@d", E::LocalPart),
            ("\"a\\\"@d", E::LocalPart),
            ("\"a\tb\"@d", E::LocalPart),
            ("\"a\r\nb\"@d", E::LocalPart),
            ("\"a\\\0\"@d", E::LocalPart),
            ("<a@d>", E::LocalPart),
            ("j\u{fc}rgen@d", E::LocalPart),
            ("\"\u{fc}\"@d", E::LocalPart),
            ("a@d.", E::Domain),
            ("a@[1.2.3]", E::Literal),
            ("a@d\r\nRCPT TO:<x>", E::Domain),
            (&local65, E::LocalPart),
            (&long, E::TooLong),
        ];
        for (text, error) in table {
            assert_eq!(Address::parse(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn internationalised_addresses() {
        let good = [
            ("j\u{fc}rgen@example.org", "j\u{fc}rgen", "example.org", false),
            ("a@b\u{fc}cher.example", "a", "xn--bcher-kva.example", true),
            ("a@B\u{dc}CHER.Example", "a", "xn--bcher-kva.example", true),
            ("a@xn--bcher-kva.example", "a", "xn--bcher-kva.example", true),
            ("\"\u{fc} x\"@d", "\"\u{fc} x\"", "d", false),
            ("\u{7528}\u{6237}@\u{4f8b}\u{3048}.test", "\u{7528}\u{6237}", "xn--r8jz45g.test", false),
        ];
        for (text, local, domain, ascii) in good {
            let address = Address::parse_utf8(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((address.local(), address.domain().as_str()), (local, domain));
            assert_eq!(address.is_ascii(), ascii);
            assert_eq!(Address::parse_utf8(address.as_str().as_bytes()), Ok(address));
            assert!(text.is_ascii() || Address::parse(text.as_bytes()).is_err());
        }
        let refused = [
            "j\u{fc}@",
            "\u{fc}.@d",
            "a@\u{fc} b",
            "a@\u{fc}/b",
            "a@\u{fc}..b",
            "\u{85}@d",
            "\u{202e}x@d",
            "\u{200b}@d",
        ];
        for text in refused {
            assert!(Address::parse_utf8(text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(Address::parse_utf8(b"\xff@d"), Err(AddressError::LocalPart));
        assert_eq!(Address::parse_utf8(b"a@\xff\xfe"), Err(AddressError::Domain));
        let long = format!("a@{}.example", "\u{fc}".repeat(100));
        assert!(Address::parse_utf8(long.as_bytes()).is_err());
    }
}
