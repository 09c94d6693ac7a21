//! Command lines as values (RFC 5321 §4.1, RFC 1870, 3030, 3207, 3461, 4954, 6152, 6531, 8689).
//!
//! Owns: the grammar of what a client may say outside message data, and the reply to each way of getting
//! it wrong. Promises: a command borrows from its line and only an address allocates; no line makes it
//! panic. Must not: know the state of a session, which decides whether a command is in order.
use super::sasl::{self, Secret};
use crate::mail::address::{Address, AddressError, ReversePath};
use crate::mail::envelope::{BodyKind, Notify, Return};

mod path;

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
        parameters: MailParameters<'a>,
    },
    Rcpt {
        path: ForwardPath<'a>,
        parameters: RcptParameters,
    },
    Data,
    /// A chunk of this many bytes follows (RFC 3030 §2).
    Bdat {
        bytes: u64,
        last: bool,
    },
    Rset,
    Noop,
    Vrfy,
    /// With the command it is about, if there is one.
    Help(&'a [u8]),
    Quit,
    StartTls,
    /// AUTH (RFC 4954): the mechanism's name, and the initial response if there is one.
    Auth(&'a str, Option<Secret>),
    /// XCLIENT with its argument, not looked at.
    Xclient(&'a [u8]),
}

/// The parameters of MAIL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailParameters<'a> {
    /// SIZE= (RFC 1870): what the client says the message will have, in bytes.
    pub size_bytes: Option<u64>,
    /// BODY= (RFC 6152, RFC 3030).
    pub body: BodyKind,
    /// SMTPUTF8 (RFC 6531).
    pub smtp_utf8: bool,
    /// RET= (RFC 3461).
    pub ret: Option<Return>,
    /// ENVID= (RFC 3461), still encoded.
    pub envid: Option<&'a str>,
    /// REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    /// AUTH= (RFC 4954 §5) was given. Whom it names is not believed, as that section allows.
    pub auth: bool,
}

/// The parameters of RCPT, and what its address needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RcptParameters {
    /// NOTIFY= (RFC 3461).
    pub notify: Option<Notify>,
    /// ORCPT= (RFC 3461), in the form of [`xtext::original_recipient`](crate::mail::xtext::original_recipient).
    pub original: Option<Box<str>>,
    /// The line holds bytes beyond ASCII: only with SMTPUTF8.
    pub needs_utf8: bool,
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
    /// The same of a response in an authentication exchange.
    ExchangeTooLong,
    /// A CR, LF or NUL inside the line.
    LineEnd,
    HelloName,
    MailSyntax,
    RcptSyntax,
    VrfySyntax,
    /// How many bytes follow is not known, so nothing that follows can be read.
    BdatSyntax,
    /// An argument where none may be.
    ExtraArgument,
    Sender(AddressError),
    Recipient(AddressError),
    /// Bytes outside ASCII in an address without the parameter SMTPUTF8 (RFC 6531).
    NonAscii,
    /// A known parameter with a malformed value, or twice.
    BadParameter,
    UnknownParameter,
    AuthSyntax,
    /// Not base64 where it must be.
    Base64,
}

impl CommandError {
    /// The reply line (RFC 5321 §4.2.4, codes of RFC 3463 and RFC 6531).
    pub fn reply(self) -> &'static str {
        match self {
            CommandError::Unknown => "500 5.5.2 Command not recognised\r\n",
            CommandError::NotImplemented => "502 5.5.1 Command not implemented\r\n",
            CommandError::Http => "421 4.7.0 This is not a web server\r\n",
            CommandError::LineTooLong => "500 5.5.2 Line too long\r\n",
            CommandError::ExchangeTooLong => "500 5.5.6 Authentication exchange line is too long\r\n",
            CommandError::LineEnd => "500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL\r\n",
            CommandError::HelloName => "501 5.5.4 Syntax: EHLO hostname\r\n",
            CommandError::MailSyntax => "501 5.5.4 Syntax: MAIL FROM:<address>\r\n",
            CommandError::RcptSyntax => "501 5.5.4 Syntax: RCPT TO:<address>\r\n",
            CommandError::VrfySyntax => "501 5.5.4 Syntax: VRFY address\r\n",
            CommandError::BdatSyntax => "501 5.5.4 Syntax: BDAT bytes [LAST]\r\n",
            CommandError::ExtraArgument => "501 5.5.4 This command takes no argument\r\n",
            CommandError::Sender(AddressError::TooLong) => "501 5.1.7 Sender address too long\r\n",
            CommandError::Sender(_) => "501 5.1.7 Bad sender address syntax\r\n",
            CommandError::Recipient(AddressError::TooLong) => "501 5.1.3 Recipient address too long\r\n",
            CommandError::Recipient(_) => "501 5.1.3 Bad recipient address syntax\r\n",
            CommandError::NonAscii => "553 5.6.7 An address beyond ASCII needs SMTPUTF8\r\n",
            CommandError::BadParameter => "501 5.5.4 Bad parameter value\r\n",
            CommandError::UnknownParameter => "555 5.5.4 Parameter not recognised\r\n",
            CommandError::AuthSyntax => "501 5.5.4 Syntax: AUTH mechanism [initial-response]\r\n",
            CommandError::Base64 => "501 5.5.2 Cannot decode base64\r\n",
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
        return parse_long_verb(verb, argument);
    };
    let alone = |command| if argument.is_empty() { Ok(command) } else { Err(CommandError::ExtraArgument) };
    match &verb.map(|b| b.to_ascii_uppercase()) {
        b"MAIL" => path::parse_mail(argument),
        b"RCPT" => path::parse_rcpt(argument),
        b"DATA" => alone(Command::Data),
        b"EHLO" => parse_hello(argument, true),
        b"HELO" => parse_hello(argument, false),
        b"RSET" => alone(Command::Rset),
        b"QUIT" => alone(Command::Quit),
        b"NOOP" => Ok(Command::Noop),
        b"HELP" => Ok(Command::Help(argument)),
        b"BDAT" => parse_bdat(argument),
        b"VRFY" if argument.is_empty() => Err(CommandError::VrfySyntax),
        b"VRFY" => Ok(Command::Vrfy),
        b"AUTH" => sasl::parse_auth(argument).map(|(mechanism, initial)| Command::Auth(mechanism, initial)),
        b"EXPN" | b"ETRN" | b"TURN" | b"SEND" | b"SOML" | b"SAML" => Err(CommandError::NotImplemented),
        b"POST" | b"HEAD" => Err(CommandError::Http),
        _ => Err(CommandError::Unknown),
    }
}

/// A verb that has not the four letters of most commands.
fn parse_long_verb<'a>(verb: &[u8], argument: &'a [u8]) -> Result<Command<'a>, CommandError> {
    let is = |name: &&str| verb.eq_ignore_ascii_case(name.as_bytes());
    if is(&"STARTTLS") {
        if argument.is_empty() { Ok(Command::StartTls) } else { Err(CommandError::ExtraArgument) }
    } else if is(&"XCLIENT") {
        Ok(Command::Xclient(argument))
    } else if ["GET", "PUT", "CONNECT", "OPTIONS", "DELETE"].iter().any(is) {
        Err(CommandError::Http)
    } else {
        Err(CommandError::Unknown)
    }
}

fn parse_bdat(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let bytes = words.next().and_then(path::decimal).ok_or(CommandError::BdatSyntax)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => true,
        Some(_) => return Err(CommandError::BdatSyntax),
    };
    if words.next().is_some() {
        return Err(CommandError::BdatSyntax);
    }
    Ok(Command::Bdat { bytes, last })
}

fn parse_hello(name: &[u8], esmtp: bool) -> Result<Command<'_>, CommandError> {
    let printable = !name.is_empty() && name.iter().all(|b| matches!(b, b' '..=b'~'));
    match std::str::from_utf8(name) {
        Ok(name) if printable => Ok(Command::Hello { name, esmtp }),
        _ => Err(CommandError::HelloName),
    }
}

#[cfg(test)]
mod tests;
