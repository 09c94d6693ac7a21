//! Delivery status notifications (RFC 3464 in the multipart/report of RFC 6522; RFC 3461 §6, RFC 6533).
//!
//! Owns: the text of a report. Promises: a message that every reader of RFC 3464 understands, with a
//! null reverse-path left to the caller's envelope, bounded in size whatever the original was; lines
//! have at most 998 characters, in wire form (dots doubled); it is 7-bit but for what [`Form`] says; no
//! foreign text in it can begin a header, a part or a command. Must not: decide whether a report is due
//! (the worker does, by RFC 3461 §4.1 and RFC 5321 §4.5.5 and §6.1).
use memchr::memmem;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::address::Address;
use super::envelope::{BodyForm, BodyKind, Envelope, Recipient, Return};
use super::id::MessageId;
use super::reply::{EnhancedCode, Reply};
use super::text::printable;
use super::xtext;
use crate::clock::WallTime;
use crate::limits;

mod quoted;
#[cfg(test)]
mod tests;

/// Column at which words go to the next line (RFC 5322 §2.1.1).
const COLUMNS: usize = 76;

/// What has become of the recipients of a report (`Action:`, RFC 3464 §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Failed,
    /// Not delivered yet, and tried further.
    Delayed,
    /// Passed on to a host that does not report success itself. (This server never delivers in the sense
    /// of RFC 3464: it has no mailboxes.)
    Relayed,
}

impl Kind {
    fn action(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Delayed => "delayed",
            Kind::Relayed => "relayed",
        }
    }
}

/// What a report says.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    pub kind: Kind,
    /// Our own name (`--hostname`).
    pub reporting_mta: &'a str,
    /// The id of the report itself.
    pub id: MessageId,
    /// When it is made.
    pub at: WallTime,
    /// The message that is reported on.
    pub original: MessageId,
    pub envelope: &'a Envelope,
    /// Its reverse-path, to which the report goes.
    pub original_sender: &'a Address,
    /// Until when it will be tried; of a delay.
    pub retry_until: Option<WallTime>,
    /// At least one, at most `limits::DSN_RECIPIENTS`: of more, only their number is told, so the caller
    /// makes one report for each `chunks(limits::DSN_RECIPIENTS)`.
    pub recipients: &'a [Reported<'a>],
    /// The original as it is stored. What is beyond the header, or the limits, is not looked at unless all
    /// of it is asked for.
    pub original_body: &'a [u8],
}

/// One recipient of a report.
#[derive(Clone, Debug)]
pub struct Reported<'a> {
    pub recipient: &'a Recipient,
    /// The reply that decided; for an expired one, that of the last attempt.
    pub reply: &'a Reply,
    /// The server whose words `reply` is; none when it was made here.
    pub host: Option<&'a str>,
    /// Given up because of the message's age, not because of a permanent reply.
    pub expired: bool,
    pub last_attempt: Option<WallTime>,
}

impl Reported<'_> {
    /// The `Status:` field. For expiry RFC 3463 §3.5 wants the code of the actual problem where there
    /// is one, and X.4.7 else.
    fn status(&self) -> EnhancedCode {
        let status = self.reply.status();
        if self.expired && (status.subject, status.detail) == (0, 0) {
            return EnhancedCode { class: 4, subject: 4, detail: 7 };
        }
        status
    }
}

/// What the envelope of a report must say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub kind: BodyKind,
    /// Its header names an international address.
    pub smtp_utf8: bool,
}

/// Appends the report to `out`: header and body in wire form, without the terminating dot.
pub fn report(out: &mut Vec<u8>, dsn: &Report<'_>) -> Form {
    // "=_" cannot come out of quoted-printable (RFC 2045 §6.7), and the id is new.
    let boundary = format!("=_{}", dsn.id);
    let mta = printable(dsn.reporting_mta.as_bytes());
    let listed = &dsn.recipients[..dsn.recipients.len().min(limits::DSN_RECIPIENTS)];
    // RFC 3461 §6.3: RET is about failures; other reports never return the content.
    let full_wanted = dsn.kind == Kind::Failed && dsn.envelope.ret == Some(Return::Full);
    let full = full_wanted && may_return(dsn, &boundary);
    let mut wire = Wire(out);

    header(&mut wire, dsn, &mta, &boundary);
    wire.part(&boundary, "Notification", "text/plain; charset=us-ascii");
    explanation(&mut wire, dsn, &mta, listed);
    if full_wanted && !full {
        wire.wrapped(
            "",
            "",
            "Only the header of your message is returned: it is too large, or not plain ASCII text.",
        );
        wire.line("");
    }
    wire.part(&boundary, "Delivery report", "message/delivery-status");
    fields(&mut wire, dsn, &mta, listed);
    if full {
        wire.part(&boundary, "Undelivered message", "message/rfc822");
        original_lines(dsn.original_body, dsn.envelope.body_form).for_each(|line| wire.bytes_line(line));
    } else {
        let what = match dsn.kind {
            Kind::Failed => "Header of the undelivered message",
            Kind::Delayed | Kind::Relayed => "Header of the message",
        };
        wire.part(&boundary, what, "text/rfc822-headers");
        returned_header(&mut wire, dsn, &boundary);
    }
    wire.line("");
    wire.line(&format!("--{boundary}--"));
    let smtp_utf8 = !dsn.original_sender.is_ascii();
    Form { kind: if smtp_utf8 { BodyKind::EightBit } else { BodyKind::SevenBit }, smtp_utf8 }
}

/// Whether all of the original may stand in a report: small enough, and fit for the wire to every host. An
/// 8-bit one is not: a report that a host without 8BITMIME does not take is lost, for nobody is told, and
/// message/rfc822 must not be encoded (RFC 2046 §5.2.1).
fn may_return(dsn: &Report<'_>, boundary: &str) -> bool {
    let body = dsn.original_body;
    let fits_line = |line: &[u8]| line.len() <= 998 && !line.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
    body.len() <= limits::DSN_FULL_BYTES
        && body.is_ascii()
        && memmem::find(body, boundary.as_bytes()).is_none()
        && original_lines(body, dsn.envelope.body_form).all(fits_line)
}

/// The lines of a stored message as its author wrote them, without their ends.
fn original_lines(body: &[u8], form: BodyForm) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (line, behind) = match memmem::find(rest, b"\r\n") {
            Some(end) => (&rest[..end], &rest[end + 2..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = behind;
        Some(match form {
            BodyForm::DotStuffed => line.strip_prefix(b".").unwrap_or(line),
            BodyForm::Raw => line,
        })
    })
}

fn header(wire: &mut Wire<'_>, dsn: &Report<'_>, mta: &str, boundary: &str) {
    wire.line(&format!("From: Mail Delivery System <MAILER-DAEMON@{mta}>"));
    // As it is: an international one makes this an international message.
    wire.line(&format!("To: <{}>", dsn.original_sender));
    wire.line(match dsn.kind {
        Kind::Failed => "Subject: Undelivered mail returned to sender",
        Kind::Delayed => "Subject: Delayed mail, still being tried",
        Kind::Relayed => "Subject: Mail passed on",
    });
    wire.line(&format!("Date: {}", rfc5322_date(dsn.at)));
    wire.line(&format!("Message-ID: <{}@{mta}>", dsn.id));
    // RFC 3834 §5: no vacation notice may answer this.
    wire.line("Auto-Submitted: auto-replied");
    wire.line("MIME-Version: 1.0");
    wire.line("Content-Type: multipart/report; report-type=delivery-status;");
    wire.line(&format!(" boundary=\"{boundary}\""));
    wire.line("");
}

/// The part for people.
fn explanation(wire: &mut Wire<'_>, dsn: &Report<'_>, mta: &str, listed: &[Reported<'_>]) {
    wire.wrapped("", "", &format!("This is the mail system at {mta}."));
    wire.line("");
    wire.wrapped("", "", &summary(dsn));
    for reported in listed {
        wire.line("");
        wire.line(&format!("<{}>", address(&reported.recipient.address)));
        let indent = "    ";
        if reported.expired {
            let after = age(dsn.envelope.received_at, dsn.at);
            wire.wrapped(indent, indent, &format!("Not delivered within {after}. The last attempt:"));
        }
        let said = printable(reported.reply.to_string().as_bytes());
        let said = match reported.host {
            Some(host) => format!("{} said: {said}", printable(host.as_bytes())),
            None => format!("Reason: {said}"),
        };
        wire.wrapped(indent, indent, &said);
        if dsn.kind == Kind::Failed {
            wire.wrapped(indent, indent, advice(reported.status(), reported.expired));
        }
    }
    let more = dsn.recipients.len() - listed.len();
    if more > 0 {
        wire.line("");
        let what = if dsn.kind == Kind::Failed { "failed and are not" } else { "are not" };
        wire.wrapped("", "", &format!("{more} more recipients {what} listed."));
    }
    wire.line("");
    let help = format!(
        "If you need help, give this whole message to your postmaster. The id of your message here \
         was {}.",
        dsn.original
    );
    wire.wrapped("", "", &help);
    wire.line("");
}

/// What has happened, in a sentence or two.
fn summary(dsn: &Report<'_>) -> String {
    let sent = rfc5322_date(dsn.envelope.received_at);
    let whom = match dsn.recipients.len() {
        1 => "its recipient".to_owned(),
        n => format!("{n} of its recipients"),
    };
    match dsn.kind {
        Kind::Failed => format!(
            "Your message of {sent} could not be delivered to {whom}. No further attempt will be made, \
             and the message is no longer kept here. What went wrong is said below."
        ),
        Kind::Delayed => {
            let until = dsn.retry_until.map_or(String::new(), |at| format!(" until {}", rfc5322_date(at)));
            format!(
                "Your message of {sent} could not be delivered to {whom} so far. It is kept here and will \
                 be tried again{until}. There is no need to send it once more."
            )
        }
        Kind::Relayed => format!(
            "Your message of {sent} was passed on for {whom} to the hosts below. They do not tell when \
             mail has reached a mailbox, so this is the last that can be said of it if all goes well."
        ),
    }
}

/// What the sender can do, by the subject of the status (RFC 3463 §3).
fn advice(status: EnhancedCode, expired: bool) -> &'static str {
    match (status.subject, status.detail) {
        (2, 2) => "The mailbox is full. Send the message again later, or tell the recipient another way.",
        (2, 3) | (3, 4) => "The message is too large for the receiver. Send it again with less attached.",
        _ if expired => {
            "The address may well be right, but its mail server could not be reached or put the \
             message off each time. Send it again later, or tell the recipient another way."
        }
        (1, 10) => "This domain does not receive mail. Look for another address of the recipient.",
        (1, _) => "Check the address for mistakes, and send the message again to the right one.",
        (4, _) => {
            "The recipient's domain is not set up to receive mail. Check how it is spelled, or tell \
             its administrator."
        }
        (6, _) => "The receiver cannot handle the form of this message. Send it in a simpler form.",
        (7, _) => {
            "The receiver's rules do not allow this message. If its words do not explain why, its \
             administrator can."
        }
        _ => "If this does not explain the problem, the recipient's mail administrator can.",
    }
}

/// The part for machines (RFC 3464 §2).
fn fields(wire: &mut Wire<'_>, dsn: &Report<'_>, mta: &str, listed: &[Reported<'_>]) {
    if let Some(envid) = &dsn.envelope.envid {
        wire.line(&format!("Original-Envelope-Id: {}", printable(&xtext::decode(envid))));
    }
    wire.line(&format!("Reporting-MTA: dns; {mta}"));
    wire.line(&format!("X-Ringpost-Message: {}", dsn.original));
    wire.line(&format!("Arrival-Date: {}", rfc5322_date(dsn.envelope.received_at)));
    for reported in listed {
        wire.line("");
        if let Some((kind, encoded)) = reported.recipient.original.as_deref().and_then(|o| o.split_once(';'))
        {
            // The type utf-8 has an encoding of its own, which stays (RFC 6533 §3).
            let decoded = match kind.eq_ignore_ascii_case("utf-8") {
                true => encoded.as_bytes().to_vec(),
                false => xtext::decode(encoded),
            };
            let kind = printable(kind.as_bytes());
            wire.line(&format!("Original-Recipient: {kind}; {}", printable(&decoded)));
        }
        let recipient = &reported.recipient.address;
        let kind = if recipient.is_ascii() { "rfc822" } else { "utf-8" };
        wire.line(&format!("Final-Recipient: {kind}; {}", address(recipient)));
        wire.line(&format!("Action: {}", dsn.kind.action()));
        wire.line(&format!("Status: {}", reported.status()));
        if let Some(host) = reported.host {
            wire.line(&format!("Remote-MTA: dns; {}", printable(host.as_bytes())));
            let said = printable(reported.reply.to_string().as_bytes());
            wire.wrapped("Diagnostic-Code: ", " ", &format!("smtp; {said}"));
        }
        if let Some(at) = reported.last_attempt {
            wire.line(&format!("Last-Attempt-Date: {}", rfc5322_date(at)));
        }
        if let Some(at) = dsn.retry_until.filter(|_| dsn.kind == Kind::Delayed) {
            wire.line(&format!("Will-Retry-Until: {}", rfc5322_date(at)));
        }
    }
    wire.line("");
}

/// The header of the original, quoted where it could not travel as it is (RFC 6522 §4).
fn returned_header(wire: &mut Wire<'_>, dsn: &Report<'_>, boundary: &str) {
    let header = header_of(dsn.original_body);
    let lines = || original_lines(header, dsn.envelope.body_form);
    let plain = memmem::find(header, boundary.as_bytes()).is_none()
        && lines().all(|l| l.len() < 998 && l.iter().all(|b| matches!(b, b'\t' | b' '..=b'~')));
    if plain {
        wire.line("");
        lines().for_each(|line| wire.bytes_line(line));
    } else {
        wire.line("Content-Transfer-Encoding: quoted-printable");
        wire.line("");
        lines().for_each(|line| quoted::append_line(wire.0, line));
    }
}

/// The header lines at the start of `message`, as many as are whole within the limit.
fn header_of(message: &[u8]) -> &[u8] {
    if message.starts_with(b"\r\n") {
        return &[];
    }
    let seen = &message[..message.len().min(limits::DSN_HEADER_BYTES)];
    let end = memmem::find(seen, b"\r\n\r\n").or_else(|| memmem::rfind(seen, b"\r\n"));
    end.map_or(&[], |end| &seen[..end + 2])
}

/// An address as a 7-bit part may hold it: one beyond ASCII in the encoding of RFC 6533 §3.
fn address(address: &Address) -> String {
    match address.is_ascii() {
        true => printable(address.as_str().as_bytes()),
        false => xtext::escape_address(address.as_str()),
    }
}

/// `3 days`, `1 hour`, …: the largest unit that fills.
fn age(from: WallTime, to: WallTime) -> String {
    let secs = to.since(from).as_secs();
    let (n, unit) = match secs {
        86_400.. => (secs / 86_400, "day"),
        3600.. => (secs / 3600, "hour"),
        _ => (secs.div_ceil(60).max(1), "minute"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

/// A date as RFC 5322 §3.3 writes it, in UTC.
fn rfc5322_date(at: WallTime) -> String {
    i64::try_from(at.secs())
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .unwrap_or(time::UtcDateTime::MAX.into())
        .format(&Rfc2822)
        .expect("every year from 1900 to 9999 can be written")
}

/// Lines in wire form: CRLF at the end, dots at the beginning doubled.
struct Wire<'a>(&'a mut Vec<u8>);

impl Wire<'_> {
    fn line(&mut self, text: &str) {
        self.bytes_line(text.as_bytes());
    }

    fn bytes_line(&mut self, text: &[u8]) {
        if text.first() == Some(&b'.') {
            self.0.push(b'.');
        }
        self.0.extend_from_slice(text);
        self.0.extend_from_slice(b"\r\n");
    }

    /// The words of `text` on lines of at most [`COLUMNS`], the first behind `first`, the others
    /// behind `rest`. A longer word stands alone.
    fn wrapped(&mut self, first: &str, rest: &str, text: &str) {
        let mut line = first.to_owned();
        let mut empty = true;
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            if !empty && line.len() + 1 + word.len() > COLUMNS {
                self.line(&line);
                line = rest.to_owned();
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
            empty = false;
        }
        self.line(&line);
    }

    /// The delimiter and the first fields of a part; the caller adds more fields or an empty line.
    fn part(&mut self, boundary: &str, description: &str, content_type: &str) {
        self.line(&format!("--{boundary}"));
        self.line(&format!("Content-Description: {description}"));
        self.line(&format!("Content-Type: {content_type}"));
        if !content_type.starts_with("text/rfc822") {
            self.line("");
        }
    }
}
