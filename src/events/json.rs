//! The text of one event line.
//!
//! Owns: the RFC 3339 time and the escaping of strings. Promises: a line is ASCII without control
//! characters and ends in the only line feed it has; a JSON parser gets every string back as it was.
//! Must not: write anywhere but to the buffer it is given.
use std::io::{self, Write};

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use time::OffsetDateTime;

use crate::clock::WallTime;

/// Appends `value` as one line.
pub(super) fn append_line(out: &mut Vec<u8>, value: &impl Serialize) {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, AsciiFormatter);
    value.serialize(&mut serializer).expect("events have string keys and a Vec takes every byte");
    out.push(b'\n');
}

/// `2030-01-31T23:59:59.000001Z` (RFC 3339 §5.6).
pub(super) fn time<S: Serializer>(at: &WallTime, s: S) -> Result<S::Ok, S::Error> {
    let t = i64::try_from(at.secs())
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .unwrap_or(time::UtcDateTime::MAX.into());
    s.collect_str(&format_args!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        at.0 % 1_000_000
    ))
}

/// [`time`], or null.
pub(super) fn optional_time<S: Serializer>(at: &Option<WallTime>, s: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => time(at, s),
        None => s.serialize_none(),
    }
}

/// serde_json's compact form, with everything outside printable ASCII escaped. JSON itself only
/// demands it of U+0000 to U+001F, but DEL, the C1 controls and the direction marks can also deceive
/// a terminal.
struct AsciiFormatter;

impl Formatter for AsciiFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|b| matches!(b, b' '..=b'~')) {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
