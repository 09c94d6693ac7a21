//! What a submission server adds to a message that lacks it (RFC 6409 §8.2, §8.3).
//!
//! Owns: the look for `Date` and `Message-ID` in a header, and their text. Promises: what the client wrote
//! is not changed, only preceded; a header whose end is not in sight gets nothing, for what seems to be
//! missing may be in the rest. Must not: be used for mail that was relayed here.
use super::id::MessageId;
use super::trace::rfc5322_date;
use crate::clock::WallTime;

/// The fields to put before `message`, which begins with the client's first header line; empty where none
/// is missing.
pub fn missing_header(message: &[u8], id: MessageId, hostname: &str, now: WallTime) -> Vec<u8> {
    let Some(found) = look(message) else { return Vec::new() };
    let mut out = Vec::new();
    if !found.date {
        out.extend_from_slice(format!("Date: {}\r\n", rfc5322_date(now)).as_bytes());
    }
    if !found.message_id {
        // Ids are unique in one spool only: the time makes it one of its own after a spool was lost.
        out.extend_from_slice(format!("Message-ID: <{id}.{:x}@{hostname}>\r\n", now.0).as_bytes());
    }
    out
}

#[derive(Default)]
struct Found {
    date: bool,
    message_id: bool,
}

/// Looks through the header; none if it does not end within `message`.
fn look(message: &[u8]) -> Option<Found> {
    let mut found = Found::default();
    let mut rest = message;
    loop {
        let end = memchr::memchr(b'\n', rest);
        let line = &rest[..end.map_or(rest.len(), |end| end + 1)];
        // An empty line ends the header, and so does one that is no field: such a message has no header
        // of its own, or ends it badly.
        if line == b"\r\n" || !is_field(line) {
            // A line that is cut off may be a field yet.
            return (end.is_some() || rest.is_empty()).then_some(found);
        }
        found.date |= has_name(line, b"date");
        found.message_id |= has_name(line, b"message-id");
        rest = &rest[end? + 1..];
        if rest.is_empty() {
            return Some(found);
        }
    }
}

/// A line `name: value`, or the continuation of one (RFC 5322 §2.2).
fn is_field(line: &[u8]) -> bool {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return true;
    }
    let name = memchr::memchr(b':', line).map(|colon| line[..colon].trim_ascii_end());
    name.is_some_and(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic))
}

fn has_name(line: &[u8], name: &[u8]) -> bool {
    let Some((head, rest)) = line.split_at_checked(name.len()) else { return false };
    head.eq_ignore_ascii_case(name) && rest.trim_ascii_start().first() == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added() {
        let date = "Date: Tue, 14 Nov 2023 22:13:20 +0000\r\n";
        let id = "Message-ID: <0000000000001.60a24181e4000@mta.test>\r\n";
        let both = format!("{date}{id}");
        for (message, expected) in [
            ("", both.as_str()),
            ("\r\nbody\r\n", &both),
            ("Subject: x\r\n\r\nDate: in the body\r\n", &both),
            ("Subject: x\r\n", &both),
            ("no header at all\r\n", &both),
            ("DATE : x\r\n\r\n", id),
            ("Subject: x\r\nmessage-id: <a@b>\r\n\r\n", date),
            ("Subject: x\r\n\tDate: folded\r\nMessage-ID:\r\n <a@b>\r\n\r\n", date),
            ("Date: x\r\nMessage-ID: <a@b>\r\n\r\n", ""),
            ("Resent-Date: x\r\nX-Message-ID: y\r\nDated: z\r\n\r\n", &both),
            // The header goes on beyond what is in memory.
            ("Subject: x\r\nTo", ""),
        ] {
            let added = missing_header(
                message.as_bytes(),
                MessageId(1),
                "mta.test",
                WallTime::from_secs(1_700_000_000),
            );
            assert_eq!(String::from_utf8(added).unwrap(), expected, "{message:?}");
        }
    }
}
