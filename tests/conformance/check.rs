//! Whether what happened is what a dialogue expects.
//!
//! Owns: the comparison of replies and messages with their descriptions, and the rules that every reply
//! has to keep whatever the dialogue is about (RFC 5321 §4.2, RFC 2034 §4). Promises: a message names the
//! dialogue's place. Must not: know how a dialogue was run.
use crate::dialogue::{ExpectedMessage, ExpectedReply};

/// Splits reply bytes into replies of whole lines without CRLF.
pub fn split_replies(bytes: &[u8]) -> Result<Vec<Vec<&[u8]>>, String> {
    let mut replies = vec![Vec::new()];
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == b"\r\n");
        let end = end.ok_or_else(|| format!("half a line: {}", rest.escape_ascii()))?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        check_line(line)?;
        let reply = replies.last_mut().expect("there is always one");
        if reply.first().is_some_and(|first: &&[u8]| first[..3] != line[..3]) {
            return Err(format!("a reply of two codes: {}", line.escape_ascii()));
        }
        reply.push(line);
        if line.get(3) != Some(&b'-') {
            replies.push(Vec::new());
        }
    }
    if replies.pop().is_some_and(|unfinished| !unfinished.is_empty()) {
        return Err("a reply without a last line".into());
    }
    Ok(replies)
}

/// Codes of RFC 4954 §6 and RFC 3207 §4, then those of RFC 5321 §4.2.3; the server sends no others.
const CODES: [&[u8; 3]; 31] = [
    b"235", b"334", b"454", b"530", b"534", b"535", b"538", b"211", b"214", b"220", b"221", b"250", b"251",
    b"252", b"354", b"421", b"450", b"451", b"452", b"455", b"500", b"501", b"502", b"503", b"504", b"550",
    b"551", b"552", b"553", b"554", b"555",
];

/// What every line of a reply must be: a code of the list, a space or hyphen, printable text, at most 512
/// bytes with its CRLF; and behind 2yz, 4yz and 5yz an enhanced code of the same class, but for the
/// greeting and the answer to a greeting.
fn check_line(line: &[u8]) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{why}: {}", line.escape_ascii()));
    if !line.first_chunk().is_some_and(|code| CODES.contains(&code)) {
        return wrong("a code that no RFC has");
    }
    if !matches!(line.get(3), Some(b' ' | b'-')) || (line.len() < 5 && line != b"334 ") {
        return wrong("a reply line without text");
    }
    if line.len() + 2 > 512 || !line.iter().all(|b| matches!(b, b' '..=b'~')) {
        return wrong("a reply line too long or with bytes that are no text");
    }
    let class = [line[0], b'.'];
    let greets = matches!(&line[..3], b"220" | b"250" | b"334" | b"354");
    if !line[4..].starts_with(&class) && !greets {
        return wrong("a reply without an enhanced code");
    }
    Ok(())
}

/// Compares the replies to one turn.
pub fn replies(expected: &[ExpectedReply], bytes: &[u8]) -> Result<(), String> {
    let got = split_replies(bytes)?;
    for (at, expected) in expected.iter().enumerate() {
        match got.get(at) {
            None => return Err(format!("no reply where `{expected}` was expected")),
            Some(reply) if expected.fits(reply) => {}
            Some(reply) => return Err(format!("expected `{expected}`, got `{}`", show(reply))),
        }
    }
    match got.get(expected.len()) {
        Some(reply) => Err(format!("a reply too many: `{}`", show(reply))),
        None => Ok(()),
    }
}

fn show(reply: &[&[u8]]) -> String {
    reply.iter().map(|line| line.escape_ascii().to_string()).collect::<Vec<_>>().join(" / ")
}

/// A message as it was seen, in the terms of its description.
pub struct Seen<'a> {
    pub sender: &'a str,
    pub recipients: Vec<String>,
    /// None where it cannot be seen.
    pub kind: Option<&'a str>,
    /// Parameters of MAIL beside SIZE and BODY.
    pub mail: String,
    /// Parameters of each RCPT, in any order of the recipients.
    pub rcpt: Vec<String>,
    pub body: &'a [u8],
    /// Whether dots in it are doubled for the wire.
    pub is_stuffed: bool,
}

pub fn message(expected: &ExpectedMessage, seen: &Seen<'_>) -> Result<(), String> {
    if expected.sender != seen.sender {
        return Err(format!("sender <{}> instead of <{}>", seen.sender, expected.sender));
    }
    if expected.recipients() != seen.recipients {
        return Err(format!("recipients {:?} instead of {:?}", seen.recipients, expected.recipients()));
    }
    if seen.kind.is_some_and(|kind| kind != expected.kind) {
        return Err(format!("body kind {:?} instead of {}", seen.kind, expected.kind));
    }
    if expected.mail.as_ref().is_some_and(|mail| *mail != seen.mail) {
        return Err(format!("MAIL with `{}` instead of {:?}", seen.mail, expected.mail));
    }
    let (mut wanted, mut rcpt) = (expected.rcpt.clone(), seen.rcpt.clone());
    wanted.sort();
    rcpt.sort();
    if !wanted.is_empty() && wanted != rcpt {
        return Err(format!("RCPT with {rcpt:?} instead of {wanted:?}"));
    }
    let body = if seen.is_stuffed { without_stuffing(seen.body) } else { seen.body.to_vec() };
    match &expected.body {
        Some(expected) if *expected != body => {
            Err(format!("body `{}` instead of `{}`", body.escape_ascii(), expected.escape_ascii()))
        }
        _ => Ok(()),
    }
}

/// The text behind the transparency procedure of RFC 5321 §4.5.2.
fn without_stuffing(wire: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(wire.len());
    for line in wire.split_inclusive(|b| *b == b'\n') {
        text.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    text
}
