//! Delivery status notifications (RFC 3464 in the multipart/report of RFC 6522).
//!
//! Owns: the text of a bounce. Promises: a message that every reader of RFC 3464 understands, with a
//! null reverse-path left to the caller's envelope, bounded in size whatever the original was; it is
//! 7-bit with lines of at most 998 characters, in wire form (dots doubled), and no foreign text in
//! it can begin a header, a part or a command. Must not: decide whether a bounce is due (the worker
//! does, by RFC 5321 §4.5.5 and §6.1).
use memchr::memmem;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::address::Address;
use super::envelope::BodyForm;
use super::id::MessageId;
use super::reply::{EnhancedCode, Reply};
use super::text::printable;
use crate::clock::WallTime;
use crate::limits;

mod quoted;
#[cfg(test)]
mod tests;

/// Column at which words go to the next line (RFC 5322 §2.1.1).
const COLUMNS: usize = 76;

/// What a bounce reports.
#[derive(Clone, Debug)]
pub struct Bounce<'a> {
    /// Our own name (`--hostname`).
    pub reporting_mta: &'a str,
    /// The id of the bounce itself.
    pub id: MessageId,
    /// When it is made.
    pub at: WallTime,
    /// The message that failed.
    pub original: MessageId,
    /// Its reverse-path, to which the bounce goes.
    pub original_sender: &'a Address,
    pub received_at: WallTime,
    /// At least one, at most `limits::DSN_RECIPIENTS`: of more, only their number is told, so the caller
    /// makes one bounce for each `failures.chunks(limits::DSN_RECIPIENTS)`.
    pub failures: &'a [Failure<'a>],
    /// The beginning of the original as it is stored: its header, and any part of its body. What is
    /// beyond the first empty line or `limits::DSN_HEADER_BYTES` is not looked at.
    pub original_headers: &'a [u8],
    /// How `original_headers` stands in relation to the wire.
    pub original_form: BodyForm,
}

/// One recipient that the message did not reach.
#[derive(Clone, Debug)]
pub struct Failure<'a> {
    pub recipient: &'a Address,
    /// The reply that failed it; for an expired one, that of the last attempt.
    pub reply: &'a Reply,
    /// The server whose words `reply` is; none when it was made here.
    pub host: Option<&'a str>,
    /// Given up because of the message's age, not because of a permanent reply.
    pub expired: bool,
    pub last_attempt: Option<WallTime>,
}

impl Failure<'_> {
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

/// Appends the bounce to `out`: header and body in wire form, without the terminating dot. Its body
/// is 7-bit.
pub fn bounce(out: &mut Vec<u8>, dsn: &Bounce<'_>) {
    // "=_" cannot come out of quoted-printable (RFC 2045 §6.7), and the id is new.
    let boundary = format!("=_{}", dsn.id);
    let mta = printable(dsn.reporting_mta.as_bytes());
    let listed = &dsn.failures[..dsn.failures.len().min(limits::DSN_RECIPIENTS)];
    let mut wire = Wire(out);

    header(&mut wire, dsn, &mta, &boundary);
    wire.part(&boundary, "Notification", "text/plain; charset=us-ascii");
    explanation(&mut wire, dsn, &mta, listed);
    wire.part(&boundary, "Delivery report", "message/delivery-status");
    report(&mut wire, dsn, &mta, listed);
    wire.part(&boundary, "Header of the undelivered message", "text/rfc822-headers");
    returned_header(&mut wire, dsn, &boundary);
    wire.line("");
    wire.line(&format!("--{boundary}--"));
}

fn header(wire: &mut Wire<'_>, dsn: &Bounce<'_>, mta: &str, boundary: &str) {
    wire.line(&format!("From: Mail Delivery System <MAILER-DAEMON@{mta}>"));
    wire.line(&format!("To: <{}>", address(dsn.original_sender)));
    wire.line("Subject: Undelivered mail returned to sender");
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
fn explanation(wire: &mut Wire<'_>, dsn: &Bounce<'_>, mta: &str, listed: &[Failure<'_>]) {
    let whom = match dsn.failures.len() {
        1 => "its recipient".to_owned(),
        n => format!("{n} of its recipients"),
    };
    wire.wrapped("", "", &format!("This is the mail system at {mta}."));
    wire.line("");
    let what = format!(
        "Your message of {} could not be delivered to {whom}. No further attempt will be made, and \
         the message is no longer kept here. What went wrong is said below.",
        rfc5322_date(dsn.received_at)
    );
    wire.wrapped("", "", &what);
    for failure in listed {
        wire.line("");
        wire.line(&format!("<{}>", address(failure.recipient)));
        let indent = "    ";
        if failure.expired {
            let tried = format!("Not delivered within {}. The last attempt:", age(dsn.received_at, dsn.at));
            wire.wrapped(indent, indent, &tried);
        }
        let said = printable(failure.reply.to_string().as_bytes());
        let said = match failure.host {
            Some(host) => format!("{} said: {said}", printable(host.as_bytes())),
            None => format!("Reason: {said}"),
        };
        wire.wrapped(indent, indent, &said);
        wire.wrapped(indent, indent, advice(failure.status(), failure.expired));
    }
    let more = dsn.failures.len() - listed.len();
    if more > 0 {
        wire.line("");
        wire.wrapped("", "", &format!("{more} more recipients failed and are not listed."));
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
fn report(wire: &mut Wire<'_>, dsn: &Bounce<'_>, mta: &str, listed: &[Failure<'_>]) {
    wire.line(&format!("Reporting-MTA: dns; {mta}"));
    wire.line(&format!("X-Ringpost-Message: {}", dsn.original));
    wire.line(&format!("Arrival-Date: {}", rfc5322_date(dsn.received_at)));
    for failure in listed {
        wire.line("");
        wire.line(&format!("Final-Recipient: rfc822; {}", address(failure.recipient)));
        wire.line("Action: failed");
        wire.line(&format!("Status: {}", failure.status()));
        if let Some(host) = failure.host {
            wire.line(&format!("Remote-MTA: dns; {}", printable(host.as_bytes())));
            let said = printable(failure.reply.to_string().as_bytes());
            wire.wrapped("Diagnostic-Code: ", " ", &format!("smtp; {said}"));
        }
        if let Some(at) = failure.last_attempt {
            wire.line(&format!("Last-Attempt-Date: {}", rfc5322_date(at)));
        }
    }
    wire.line("");
}

/// The header of the original, quoted where it could not travel as it is (RFC 6522 §4).
fn returned_header(wire: &mut Wire<'_>, dsn: &Bounce<'_>, boundary: &str) {
    let header = header_of(dsn.original_headers);
    let lines = || {
        let unstuff = dsn.original_form == BodyForm::DotStuffed;
        lines_of(header).map(move |line| if unstuff { line.strip_prefix(b".").unwrap_or(line) } else { line })
    };
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

/// The lines of `text`, which ends in CRLF or is empty, without their ends.
fn lines_of(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = memmem::find(rest, b"\r\n")?;
        let line = &rest[..end];
        rest = &rest[end + 2..];
        Some(line)
    })
}

/// An address as a header may hold it.
fn address(address: &Address) -> String {
    printable(address.as_str().as_bytes())
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
