//! The arguments of MAIL and RCPT: a path and parameters (RFC 5321 §4.1.2, §4.1.2.11).
//!
//! Owns: their grammar and the parameters of each extension. Promises: as its parent's. Must not: know
//! whether what a parameter asks for can be had.
use super::{Command, CommandError, ForwardPath, MailParameters};
use crate::mail::address::{self, Address, AddressError, Domain};
use crate::mail::envelope::BodyKind;

pub(super) fn parse_mail(argument: &[u8]) -> Result<Command<'_>, CommandError> {
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
        } else if keyword.eq_ignore_ascii_case(b"AUTH") {
            if value.is_none_or(|v| v.is_empty()) || std::mem::replace(&mut parameters.auth, true) {
                return Err(CommandError::BadParameter);
            }
        } else {
            return Err(CommandError::UnknownParameter);
        }
    }
    parameters.body = body.unwrap_or_default();
    Ok(Command::Mail { reverse_path, parameters })
}

pub(super) fn parse_rcpt(argument: &[u8]) -> Result<Command<'_>, CommandError> {
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
