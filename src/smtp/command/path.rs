//! The arguments of MAIL and RCPT: a path and parameters (RFC 5321 §4.1.2, §4.1.2.11).
//!
//! Owns: their grammar and the parameters of each extension. Promises: as its parent's. Must not: know
//! whether what a parameter asks for can be had.
use super::{Command, CommandError, ForwardPath, MailParameters, RcptParameters};
use crate::limits;
use crate::mail::address::{self, Address, Domain};
use crate::mail::envelope::{BodyKind, Notify, Return};
use crate::mail::xtext;

pub(super) fn parse_mail(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let (path, rest) = split_path(argument, b"FROM:").ok_or(CommandError::MailSyntax)?;
    let mut given = MailParameters::default();
    let mut body = None;
    let mut unknown = false;
    let mut bad = false;
    for parameter in split_parameters(rest) {
        let (keyword, value) = split_value(parameter);
        let is = |name: &[u8]| keyword.eq_ignore_ascii_case(name);
        bad |= if is(b"SIZE") {
            !set(&mut given.size_bytes, value.and_then(decimal))
        } else if is(b"BODY") {
            !set(&mut body, value.and_then(body_kind))
        } else if is(b"RET") {
            !set(&mut given.ret, value.and_then(content_returned))
        } else if is(b"ENVID") {
            !set(&mut given.envid, value.and_then(envelope_id))
        } else if is(b"SMTPUTF8") {
            value.is_some() || std::mem::replace(&mut given.smtp_utf8, true)
        } else if is(b"REQUIRETLS") {
            value.is_some() || std::mem::replace(&mut given.require_tls, true)
        } else if is(b"AUTH") {
            value.is_none_or(|v| v.is_empty()) || std::mem::replace(&mut given.auth, true)
        } else {
            unknown = true;
            false
        };
    }
    // The address comes first, as it does in the line.
    let reverse_path = match path {
        b"" => None,
        path if given.smtp_utf8 => Some(Address::parse_utf8(path).map_err(CommandError::Sender)?),
        path if !path.is_ascii() => return Err(CommandError::NonAscii),
        path => Some(Address::parse(path).map_err(CommandError::Sender)?),
    };
    if bad {
        return Err(CommandError::BadParameter);
    }
    if unknown {
        return Err(CommandError::UnknownParameter);
    }
    given.body = body.unwrap_or_default();
    Ok(Command::Mail { reverse_path, parameters: given })
}

pub(super) fn parse_rcpt(argument: &[u8]) -> Result<Command<'_>, CommandError> {
    let (path, rest) = split_path(argument, b"TO:").ok_or(CommandError::RcptSyntax)?;
    let mut given = RcptParameters { needs_utf8: !argument.is_ascii(), ..RcptParameters::default() };
    let mut unknown = false;
    let mut bad = false;
    for parameter in split_parameters(rest) {
        let (keyword, value) = split_value(parameter);
        bad |= if keyword.eq_ignore_ascii_case(b"NOTIFY") {
            !set(&mut given.notify, value.and_then(notify))
        } else if keyword.eq_ignore_ascii_case(b"ORCPT") {
            !set(&mut given.original, value.and_then(original))
        } else {
            unknown = true;
            false
        };
    }
    let path = if path.eq_ignore_ascii_case(b"postmaster") {
        ForwardPath::Postmaster(std::str::from_utf8(path).expect("it equals an ASCII word"))
    } else {
        ForwardPath::Mailbox(Address::parse_utf8(path).map_err(CommandError::Recipient)?)
    };
    if bad {
        return Err(CommandError::BadParameter);
    }
    if unknown {
        return Err(CommandError::UnknownParameter);
    }
    Ok(Command::Rcpt { path, parameters: given })
}

/// Sets what was not set before; false where there is no value or was one already.
fn set<T>(to: &mut Option<T>, value: Option<T>) -> bool {
    let once = to.is_none() && value.is_some();
    *to = value;
    once
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
    } else if value.eq_ignore_ascii_case(b"BINARYMIME") {
        Some(BodyKind::Binary)
    } else {
        None
    }
}

fn content_returned(value: &[u8]) -> Option<Return> {
    if value.eq_ignore_ascii_case(b"FULL") {
        Some(Return::Full)
    } else if value.eq_ignore_ascii_case(b"HDRS") {
        Some(Return::Headers)
    } else {
        None
    }
}

fn envelope_id(value: &[u8]) -> Option<&str> {
    let fits = (1..=limits::ENVID_BYTES).contains(&value.len()) && xtext::is_valid(value);
    std::str::from_utf8(value).ok().filter(|_| fits)
}

/// `NEVER`, or some of the others in any order (RFC 3461 §4.1).
fn notify(value: &[u8]) -> Option<Notify> {
    if value.eq_ignore_ascii_case(b"NEVER") {
        return Some(Notify::NEVER);
    }
    let mut notify = Notify::NEVER;
    for word in value.split(|b| *b == b',') {
        match word.to_ascii_uppercase().as_slice() {
            b"SUCCESS" => notify.success = true,
            b"FAILURE" => notify.failure = true,
            b"DELAY" => notify.delay = true,
            _ => return None,
        }
    }
    Some(notify)
}

fn original(value: &[u8]) -> Option<Box<str>> {
    let value = std::str::from_utf8(value).ok()?;
    let kept = xtext::original_recipient(value)?;
    (kept.len() <= limits::ORIGINAL_RECIPIENT_BYTES).then(|| kept.into_boxed_str())
}

/// A number of bytes: 1 to 20 digits (RFC 1870 §3, RFC 3030 §2) that fit 64 bits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}
