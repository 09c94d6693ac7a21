//! Mail over HTTP: from the JSON of a request to messages for the workers, and back to an answer.
//!
//! Owns: the form of `POST /api/v1/messages`. Promises: what is not understood is refused whole, with
//! the field that is wrong; an envelope that passes is one that SMTP could have brought; a message is
//! reported accepted only when a worker has said that it is durable, and where one of several is not, the
//! status says so. Must not: judge the message's text (the worker does, as for SMTP) or add to it.
use std::borrow::Cow;
use std::fmt;

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use self::few::Few;

use crate::limits;
use crate::mail::address::Address;
use crate::mail::envelope::{BodyKind, Envelope, Notify, Recipient, Return};
use crate::mail::id::MessageId;
use crate::mail::{lines, xtext};

mod few;

/// A message that is to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Without the client, and what is known only when it is accepted.
    pub envelope: Envelope,
    /// Header and body; lines end in CRLF, but for what is to be refused.
    pub message: Vec<u8>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// It is durable, as a `250` says of mail that came over SMTP.
    Accepted(MessageId),
    /// The text is the reply that SMTP would have had.
    Refused(Refused, Cow<'static, str>),
}

/// Why a message is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room for it now.
    NoRoom,
    /// It cannot be stored now.
    Unavailable,
    TooLarge,
    /// Something in it is never accepted.
    Content,
}

impl Refused {
    pub fn status(self) -> StatusCode {
        match self {
            Refused::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Refused::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::Content => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

/// One message of a request, as the API takes it and `ringpost send` writes it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail<'a> {
    /// The reverse-path; empty for the null one.
    pub from: Cow<'a, str>,
    pub to: Few<To<'a>, { limits::MAX_RECIPIENTS }>,
    /// The whole message (RFC 5322).
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    pub message: Option<Cow<'a, str>>,
    /// The same in base64, for one that is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    pub message_base64: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<Cow<'a, str>>,
    /// Goes before what is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub urgent: bool,
    /// `full` or `hdrs` (RFC 3461 §4.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<Cow<'a, str>>,
    /// xtext (RFC 3461 §4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<Cow<'a, str>>,
}

impl<'a> Mail<'a> {
    /// Puts a message in, in the field that can hold it.
    pub fn carry(&mut self, message: &'a [u8]) {
        match std::str::from_utf8(message) {
            Ok(text) => self.message = Some(text.into()),
            Err(_) => self.message_base64 = Some(STANDARD.encode(message).into()),
        }
    }
}

/// A recipient.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum To<'a> {
    Address(Cow<'a, str>),
    Full(Wishes<'a>),
}

// By hand: a derived one would keep a copy of whatever stands there, and try both on that.
impl<'de> Deserialize<'de> for To<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = To<'static>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or an object of address, notify and orcpt")
            }

            fn visit_str<E>(self, address: &str) -> Result<To<'static>, E> {
                Ok(To::Address(address.to_owned().into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<To<'static>, A::Error> {
                Wishes::deserialize(MapAccessDeserializer::new(map)).map(To::Full)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A recipient and what its sender wants to be told (RFC 3461 §4.1, §4.2).
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes<'a> {
    pub address: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Few<Cow<'a, str>, 3>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orcpt: Option<Cow<'a, str>>,
}

/// What the API says of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Said {
    Accepted { id: String },
    Refused { status: u16, error: String },
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    One(Injection),
    Many(Vec<Injection>),
}

/// Reads a request: an object, or a list of them. The error names the message, where there are several,
/// and the field.
pub fn read(body: &[u8], max_recipients: usize) -> Result<Asked, String> {
    if body.trim_ascii_start().first() != Some(&b'[') {
        let mail: Mail<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        return injection(mail, max_recipients).map(Asked::One);
    }
    let list: Few<Mail<'_>, { limits::INJECTION_MESSAGES }> =
        serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let Few(mails) = list;
    if mails.is_empty() {
        return Err("the list of messages is empty".into());
    }
    let read = |(at, mail)| injection(mail, max_recipients).map_err(|why| format!("message {at}: {why}"));
    mails.into_iter().enumerate().map(read).collect::<Result<_, _>>().map(Asked::Many)
}

fn injection(mail: Mail<'_>, max_recipients: usize) -> Result<Injection, String> {
    let from = |why| format!("from: {why}");
    let reverse_path = match &*mail.from {
        "" => None,
        path => Some(Address::parse_utf8(path.as_bytes()).map_err(|why| from(why.to_string()))?),
    };
    let recipients = recipients(&mail.to.0, max_recipients)?;
    let text = match (mail.message, mail.message_base64) {
        (Some(Cow::Borrowed(text)), None) => Cow::Borrowed(text.as_bytes()),
        (Some(Cow::Owned(text)), None) => Cow::Owned(text.into_bytes()),
        (None, Some(coded)) => {
            let decoded = STANDARD.decode(coded.as_bytes());
            Cow::Owned(decoded.map_err(|error| format!("message_base64: {error}"))?)
        }
        _ => return Err("give the message in message or in message_base64".into()),
    };
    if text.is_empty() {
        return Err("message: is empty".into());
    }
    let message = lines::with_crlf(text).into_owned();
    let body_kind = if message.is_ascii() { BodyKind::SevenBit } else { BodyKind::EightBit };
    let addresses = reverse_path.iter().chain(recipients.iter().map(|r| &r.address));
    let smtp_utf8 = !addresses.into_iter().all(Address::is_ascii) || has_utf8_header(&message);
    let envelope = Envelope {
        reverse_path,
        recipients,
        body_kind,
        smtp_utf8,
        ret: mail.ret.as_deref().map(content_returned).transpose()?,
        envid: mail.envid.as_deref().map(envelope_id).transpose()?,
        stream: mail.stream.as_deref().map(stream).transpose()?,
        urgent: mail.urgent,
        ..Envelope::default()
    };
    Ok(Injection { envelope, message })
}

fn recipients(given: &[To<'_>], most: usize) -> Result<Vec<Recipient>, String> {
    if given.is_empty() {
        return Err("to: name at least one recipient".into());
    }
    let mut bytes = 0;
    let mut recipients = Vec::with_capacity(given.len().min(most));
    for (at, to) in given.iter().enumerate() {
        let recipient = recipient(to).map_err(|why| format!("to, recipient {at}: {why}"))?;
        if at >= most || bytes >= limits::RECIPIENTS_BYTES {
            return Err(format!("to: too many recipients: {at} are taken, send to the others apart"));
        }
        let original = recipient.original.as_ref().map_or(0, |original| original.len());
        bytes += recipient.address.as_str().len() + original + limits::RECIPIENT_OVERHEAD_BYTES;
        recipients.push(recipient);
    }
    Ok(recipients)
}

fn recipient(to: &To<'_>) -> Result<Recipient, String> {
    let parse = |text: &str| Address::parse_utf8(text.as_bytes()).map_err(|why| why.to_string());
    match to {
        To::Address(text) => parse(text).map(Recipient::new),
        To::Full(wishes) => Ok(Recipient {
            address: parse(&wishes.address)?,
            notify: wishes.notify.as_ref().map(|words| notify(&words.0)).transpose()?,
            original: wishes.orcpt.as_deref().map(original).transpose()?,
        }),
    }
}

fn notify(words: &[Cow<'_, str>]) -> Result<Notify, String> {
    let wrong = || "notify: write never alone, or some of success, failure, delay".to_owned();
    let mut notify = Notify::NEVER;
    match words {
        [] => return Err(wrong()),
        [only] if only == "never" => return Ok(notify),
        _ => {}
    }
    for word in words {
        match &**word {
            "success" => notify.success = true,
            "failure" => notify.failure = true,
            "delay" => notify.delay = true,
            _ => return Err(wrong()),
        }
    }
    Ok(notify)
}

fn original(text: &str) -> Result<Box<str>, String> {
    let fits = text.len() <= limits::ORIGINAL_RECIPIENT_BYTES;
    let parsed = xtext::original_recipient(text).filter(|_| fits);
    parsed.map(Into::into).ok_or_else(|| "orcpt: write TYPE;ADDRESS, the address as xtext".into())
}

fn content_returned(text: &str) -> Result<Return, String> {
    match text {
        "full" => Ok(Return::Full),
        "hdrs" => Ok(Return::Headers),
        _ => Err("ret: write full or hdrs".into()),
    }
}

fn envelope_id(text: &str) -> Result<Box<str>, String> {
    let fits = !text.is_empty() && text.len() <= limits::ENVID_BYTES;
    if fits && xtext::is_valid(text.as_bytes()) {
        return Ok(text.into());
    }
    Err(format!("envid: write 1 to {} characters of xtext", limits::ENVID_BYTES))
}

fn stream(text: &str) -> Result<Box<str>, String> {
    let is_plain = text.bytes().all(|b| matches!(b, b' '..=b'~')) && text.trim() == text;
    if is_plain && !text.is_empty() && text.len() <= limits::STREAM_NAME_BYTES {
        return Ok(text.into());
    }
    Err(format!("stream: write 1 to {} printable ASCII characters", limits::STREAM_NAME_BYTES))
}

/// Whether the header holds UTF-8 beyond ASCII, which only SMTPUTF8 carries (RFC 6532). What is neither
/// is mail of old, passed on as eight-bit data.
fn has_utf8_header(message: &[u8]) -> bool {
    let end = memchr::memmem::find(message, b"\r\n\r\n").unwrap_or(message.len());
    let header = &message[..end];
    !header.is_ascii() && std::str::from_utf8(header).is_ok()
}

impl Said {
    pub fn of(injected: &Injected) -> Said {
        match injected {
            Injected::Accepted(id) => Said::Accepted { id: id.to_string() },
            Injected::Refused(why, text) => {
                Said::Refused { status: why.status().as_u16(), error: text.to_string() }
            }
        }
    }
}

#[cfg(test)]
mod tests;
