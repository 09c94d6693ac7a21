//! Command lines as values (RFC 5321 §4.1, RFC 1870, RFC 6152).
//!
//! Owns: the grammar of what a client may say outside message data, and the reply to each way of getting
//! it wrong. Promises: a command borrows from its line and only an address allocates; no line makes it
//! panic. Must not: know the state of a session, which decides whether a command is in order.
use crate::mail::address::{self, Address, AddressError, Domain, ReversePath};
use crate::mail::envelope::BodyKind;

/// A well-formed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// HELO or EHLO. `name` is printable ASCII and not empty, otherwise as the client chose: real clients
    /// send names that are no domains, and nothing depends on them.
    Hello {
        name: &'a str,
        esmtp: bool,
    },
    Mail {
        reverse_path: ReversePath,
        parameters: MailParameters,
    },
    Rcpt(ForwardPath<'a>),
    Data,
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
}

/// The parameters of MAIL this server offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// SIZE= (RFC 1870): what the client says the message will have, in bytes.
    pub size_bytes: Option<u64>,
    /// BODY= (RFC 6152).
    pub body: BodyKind,
}

/// Whom RCPT names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardPath<'a> {
    Mailbox(Address),
    /// `<Postmaster>` without a domain (RFC 5321 §4.5.1), spelled as the client did.
    Postmaster(&'a str),
}

/// Why a line is no command that can be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// No verb of SMTP.
    Unknown,
    /// A verb of SMTP that this server does not have.
    NotImplemented,
    /// The first line of a HTTP request: a browser was tricked into speaking to a mail server.
    Http,
    LineTooLong,
    /// A CR, LF or NUL inside the line.
    LineEnd,
    HelloName,
    MailSyntax,
    RcptSyntax,
    VrfySyntax,
    /// An argument where none may be.
    ExtraArgument,
    Sender(AddressError),
    Recipient(AddressError),
    /// Bytes outside ASCII in an address: SMTPUTF8 (RFC 6531) was not offered.
    NonAscii,
    /// A known parameter with a malformed value, or twice.
    BadParameter,
    UnknownParameter,
}

impl CommandError {
    /// The reply line (RFC 5321 §4.2.4, codes of RFC 3463 and RFC 6531).
    pub fn reply(self) -> &'static str {
        match self {
            CommandError::Unknown => "500 5.5.2 Command not recognised\r\n",
            CommandError::NotImplemented => "502 5.5.1 Command not implemented\r\n",
            CommandError::Http => "421 4.7.0 This is not a web server\r\n",
            CommandError::LineTooLong => "500 5.5.2 Line too long\r\n",
            CommandError::LineEnd => "500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL\r\n",
            CommandError::HelloName => "501 5.5.4 Syntax: EHLO hostname\r\n",
            CommandError::MailSyntax => "501 5.5.4 Syntax: MAIL FROM:<address>\r\n",
            CommandError::RcptSyntax => "501 5.5.4 Syntax: RCPT TO:<address>\r\n",
            CommandError::VrfySyntax => "501 5.5.4 Syntax: VRFY address\r\n",
            CommandError::ExtraArgument => "501 5.5.4 This command takes no argument\r\n",
            CommandError::Sender(AddressError::TooLong) => "501 5.1.7 Sender address too long\r\n",
            CommandError::Sender(_) => "501 5.1.7 Bad sender address syntax\r\n",
            CommandError::Recipient(AddressError::TooLong) => "501 5.1.3 Recipient address too long\r\n",
            CommandError::Recipient(_) => "501 5.1.3 Bad recipient address syntax\r\n",
            CommandError::NonAscii => "553 5.6.7 Addresses must be ASCII\r\n",
            CommandError::BadParameter => "501 5.5.4 Bad parameter value\r\n",
            CommandError::UnknownParameter => "555 5.5.4 Parameter not recognised\r\n",
        }
    }
}

/// Reads one line, without its CRLF.
pub fn parse(line: &[u8]) -> Result<Command<'_>, CommandError> {
    if memchr::memchr3(b'\r', b'\n', 0, line).is_some() {
        return Err(CommandError::LineEnd);
    }
    let line = line.trim_ascii_end();
    let (verb, argument) = match memchr::memchr(b' ', line) {
        Some(space) => (&line[..space], line[space + 1..].trim_ascii_start()),
        None => (line, &line[line.len()..]),
    };
    let Ok(verb) = <[u8; 4]>::try_from(verb) else {
        return Err(refuse_long_verb(verb));
    };
    let alone = |command| if argument.is_empty() { Ok(command) } else { Err(CommandError::ExtraArgument) };
    match &verb.map(|b| b.to_ascii_uppercase()) {
        b"MAIL" => parse_mail(argument),
        b"RCPT" => parse_rcpt(argument),
        b"DATA" => alone(Command::Data),
        b"EHLO" => parse_hello(argument, true),
        b"HELO" => parse_hello(argument, false),
        b"RSET" => alone(Command::Rset),
        b"QUIT" => alone(Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help),
        b"VRFY" if argument.is_empty() => Err(CommandError::VrfySyntax),
        b"VRFY" => Ok(Command::Vrfy),
        b"EXPN" | b"AUTH" | b"BDAT" | b"ETRN" | b"TURN" | b"SEND" | b"SOML" | b"SAML" => {
            Err(CommandError::NotImplemented)
        }
        b"POST" | b"HEAD" => Err(CommandError::Http),
        _ => Err(CommandError::Unknown),
    }
}

/// The error for a verb that has not the four letters of every command here.
fn refuse_long_verb(verb: &[u8]) -> CommandError {
    let is = |name: &&str| verb.eq_ignore_ascii_case(name.as_bytes());
    if ["STARTTLS", "ATRN"].iter().any(is) {
        CommandError::NotImplemented
    } else if ["GET", "PUT", "CONNECT", "OPTIONS", "DELETE"].iter().any(is) {
        CommandError::Http
    } else {
        CommandError::Unknown
    }
}

fn parse_hello(name: &[u8], esmtp: bool) -> Result<Command<'_>, CommandError> {
    let printable = !name.is_empty() && name.iter().all(|b| matches!(b, b' '..=b'~'));
    match std::str::from_utf8(name) {
        Ok(name) if printable => Ok(Command::Hello { name, esmtp }),
        _ => Err(CommandError::HelloName),
    }
}

fn parse_mail(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let (path, rest) = split_path(argument, b"FROM:").ok_or(CommandError::MailSyntax)?;
    let reverse_path = match path {
        b"" => None,
        path => Some(mailbox(path, CommandError::Sender)?),
    };
    let mut parameters = MailParameters::default();
    let mut body = None;
    for parameter in split_parameters(rest) {
        let (keyword, value) = split_value(parameter);
        if keyword.eq_ignore_ascii_case(b"SIZE") {
            let size = value.and_then(decimal).ok_or(CommandError::BadParameter)?;
            if parameters.size_bytes.replace(size).is_some() {
                return Err(CommandError::BadParameter);
            }
        } else if keyword.eq_ignore_ascii_case(b"BODY") {
            let kind = value.and_then(body_kind).ok_or(CommandError::BadParameter)?;
            if body.replace(kind).is_some() {
                return Err(CommandError::BadParameter);
            }
        } else {
            return Err(CommandError::UnknownParameter);
        }
    }
    parameters.body = body.unwrap_or_default();
    Ok(Command::Mail { reverse_path, parameters })
}

fn parse_rcpt(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let (path, rest) = split_path(argument, b"TO:").ok_or(CommandError::RcptSyntax)?;
    if split_parameters(rest).next().is_some() {
        return Err(CommandError::UnknownParameter);
    }
    if path.eq_ignore_ascii_case(b"postmaster") {
        let local = std::str::from_utf8(path).expect("it equals an ASCII word");
        return Ok(Command::Rcpt(ForwardPath::Postmaster(local)));
    }
    mailbox(path, CommandError::Recipient).map(|a| Command::Rcpt(ForwardPath::Mailbox(a)))
}

/// Splits `FROM:<path> parameters` into what stands in the brackets and what follows them. White space
/// before the bracket is against the grammar, but common, and every large server lets it pass.
fn split_path<'a>(argument: &'a [u8], keyword: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    let path = rest.trim_ascii_start().strip_prefix(b"<")?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    let path = skip_source_route(path)?;
    // A quoted local part may hold a bracket.
    let quoted = if path.first() == Some(&b'"') { address::quoted_string_bytes(path)? } else { 0 };
    let end = quoted + memchr::memchr(b'>', &path[quoted..])?;
    let rest = &path[end + 1..];
    let apart = rest.is_empty() || rest[0] == b' ';
    apart.then_some((&path[..end], rest))
}

/// `path` without `@a,@b:` before the mailbox, which servers take and ignore (RFC 5321 §4.1.1.3,
/// appendix C).
fn skip_source_route(path: &[u8]) -> Option<&[u8]> {
    let mut rest = path;
    while let Some(hop) = rest.strip_prefix(b"@") {
        // An address literal may hold a colon.
        let literal = if hop.first() == Some(&b'[') { memchr::memchr(b']', hop)? } else { 0 };
        let end = literal + memchr::memchr2(b',', b':', &hop[literal..])?;
        if !Domain::is_valid(&hop[..end]) {
            return None;
        }
        rest = &hop[end + 1..];
        if hop[end] == b':' {
            // A route to nowhere is not the null path.
            return (rest.first() != Some(&b'>')).then_some(rest);
        }
    }
    // A comma must be followed by another hop.
    (rest.len() == path.len()).then_some(path)
}

fn mailbox(path: &[u8], error: fn(AddressError) -> CommandError) -> Result<Address, CommandError> {
    Address::parse(path).map_err(|why| if path.is_ascii() { error(why) } else { CommandError::NonAscii })
}

fn split_parameters(rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    rest.split(|b| *b == b' ').filter(|parameter| !parameter.is_empty())
}

fn split_value(parameter: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'=', parameter) {
        Some(at) => (&parameter[..at], Some(&parameter[at + 1..])),
        None => (parameter, None),
    }
}

fn body_kind(value: &[u8]) -> Option<BodyKind> {
    if value.eq_ignore_ascii_case(b"7BIT") {
        Some(BodyKind::SevenBit)
    } else if value.eq_ignore_ascii_case(b"8BITMIME") {
        Some(BodyKind::EightBit)
    } else {
        None
    }
}

/// A size: 1 to 20 digits (RFC 1870 §3) that fit 64 bits.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text.as_bytes()).unwrap()
    }

    fn mail(from: &str, size_bytes: Option<u64>, body: BodyKind) -> Command<'static> {
        let reverse_path = (!from.is_empty()).then(|| address(from));
        Command::Mail { reverse_path, parameters: MailParameters { size_bytes, body } }
    }

    fn rcpt(to: &str) -> Command<'static> {
        Command::Rcpt(ForwardPath::Mailbox(address(to)))
    }

    #[test]
    fn commands() {
        use BodyKind::{EightBit, SevenBit};
        let table = [
            ("EHLO a.example", Command::Hello { name: "a.example", esmtp: true }),
            ("helo  [1.2.3] junk (x) ", Command::Hello { name: "[1.2.3] junk (x)", esmtp: false }),
            ("MAIL FROM:<>", mail("", None, SevenBit)),
            ("mail from:<a@b>", mail("a@b", None, SevenBit)),
            ("MAIL FROM: <a@b>", mail("a@b", None, SevenBit)),
            ("MAIL FROM:<a@b> ", mail("a@b", None, SevenBit)),
            ("MAIL FROM:<a@b>  SIZE=12  BODY=8bitmime", mail("a@b", Some(12), EightBit)),
            ("MAIL FROM:<a@b> body=7BIT size=18446744073709551615", mail("a@b", Some(u64::MAX), SevenBit)),
            ("MAIL FROM:<@x.y,@[IPv6:::1]:a@b>", mail("a@b", None, SevenBit)),
            ("MAIL FROM:<\"a> b\"@c>", mail("\"a> b\"@c", None, SevenBit)),
            ("RCPT TO:<a@B>", rcpt("a@b")),
            ("RCPT TO:<@r.example:\"x\\\">\"@[IPv6:::1]>", rcpt("\"x\\\">\"@[IPv6:::1]")),
            ("RCPT TO:<PostMaster>", Command::Rcpt(ForwardPath::Postmaster("PostMaster"))),
            ("DATA ", Command::Data),
            ("RSET", Command::Rset),
            ("NOOP anything", Command::Noop),
            ("VRFY a", Command::Vrfy),
            ("HELP MAIL", Command::Help),
            ("qUiT", Command::Quit),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
        }
    }

    #[test]
    fn refused_commands() {
        use AddressError as A;
        use CommandError as E;
        let long = format!("MAIL FROM:<{}@{}>", "a".repeat(64), vec!["b".repeat(60); 4].join("."));
        let table = [
            ("", E::Unknown),
            (" ", E::Unknown),
            (" DATA", E::Unknown),
            ("DATAX", E::Unknown),
            ("XXXX", E::Unknown),
            ("MAI", E::Unknown),
            ("EXPN list", E::NotImplemented),
            ("STARTTLS", E::NotImplemented),
            ("BDAT 1", E::NotImplemented),
            ("GET / HTTP/1.1", E::Http),
            ("POST / HTTP/1.1", E::Http),
            ("RSET\rQUIT", E::LineEnd),
            ("RSET\nQUIT", E::LineEnd),
            ("NOOP \0", E::LineEnd),
            ("\r", E::LineEnd),
            ("EHLO", E::HelloName),
            ("HELO ", E::HelloName),
            ("EHLO a\x07", E::HelloName),
            ("EHLO \u{fc}", E::HelloName),
            ("DATA x", E::ExtraArgument),
            ("QUIT now", E::ExtraArgument),
            ("VRFY", E::VrfySyntax),
            ("MAIL", E::MailSyntax),
            ("MAIL FROM", E::MailSyntax),
            ("MAIL FROM:", E::MailSyntax),
            ("MAIL FROM:a@b", E::MailSyntax),
            ("MAIL FROM:<a@b", E::MailSyntax),
            ("MAIL TO:<a@b>", E::MailSyntax),
            ("MAIL FROM:<a@b>SIZE=1", E::MailSyntax),
            ("MAIL FROM:<\"a@b>", E::MailSyntax),
            ("MAIL FROM:<@x,a@b>", E::MailSyntax),
            ("MAIL FROM:<@x a@b>", E::MailSyntax),
            ("MAIL FROM:<@x:>", E::MailSyntax),
            ("MAIL FROM:<@-:a@b>", E::MailSyntax),
            ("MAIL FROM:<a>", E::Sender(A::Form)),
            ("MAIL FROM:< >", E::Sender(A::LocalPart)),
            (&long, E::Sender(A::TooLong)),
            ("MAIL FROM:<j\u{fc}@b>", E::NonAscii),
            ("RCPT TO:<a@b\u{fc}>", E::NonAscii),
            ("MAIL FROM:<a@b> SIZE", E::BadParameter),
            ("MAIL FROM:<a@b> SIZE=", E::BadParameter),
            ("MAIL FROM:<a@b> SIZE=-1", E::BadParameter),
            ("MAIL FROM:<a@b> SIZE=1 SIZE=1", E::BadParameter),
            ("MAIL FROM:<a@b> SIZE=18446744073709551616", E::BadParameter),
            ("MAIL FROM:<a@b> SIZE=000000000000000000001", E::BadParameter),
            ("MAIL FROM:<a@b> BODY=BINARYMIME", E::BadParameter),
            ("MAIL FROM:<a@b> BODY", E::BadParameter),
            ("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", E::BadParameter),
            ("MAIL FROM:<a@b> SMTPUTF8", E::UnknownParameter),
            ("MAIL FROM:<a@b> =", E::UnknownParameter),
            ("RCPT TO:<a@b> NOTIFY=NEVER", E::UnknownParameter),
            ("RCPT TO:<>", E::Recipient(A::Form)),
            ("RCPT TO:<a>", E::Recipient(A::Form)),
            ("RCPT FROM:<a@b>", E::RcptSyntax),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()), Err(expected), "{line:?}");
        }
    }

    #[test]
    fn every_error_has_a_reply_line() {
        for line in ["", "DATA x", "GET", "RCPT TO:<a>", "MAIL FROM:<a@b> X"] {
            let reply = parse(line.as_bytes()).unwrap_err().reply();
            assert!(reply.ends_with("\r\n") && reply.is_ascii());
        }
    }
}
