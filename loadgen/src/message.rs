//! The message the source sends: one prepared text, patched for each message.
//!
//! Owns: [`Template`]. Promises: the content has exactly the asked size (dots unstuffed, CRLFs
//! counted, as SIZE of RFC 1870 counts); lines are at most 78 characters; some begin with dots, so
//! that transparency (RFC 5321 §4.5.2) is exercised; the message's name stands in every 4 KiB of
//! the body, so that parts of different messages cannot be exchanged unseen. Patching allocates
//! nothing. Must not: know connections.
use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use crate::clock::Rng;
use crate::limits;
use crate::stamp::{self, NAME_BYTES, Stamp};

/// Longest line of the body, without CRLF (RFC 5322 §2.1.1).
const TEXT_LINE_BYTES: usize = 78;
/// Body bytes between two mentions of the message's name.
const NAME_EVERY_BYTES: usize = 4096;
/// Lines between two that begin with a dot.
const DOT_EVERY_LINES: u64 = 16;
/// The line that carries the name: brackets and CRLF around it.
const NAME_LINE_BYTES: usize = NAME_BYTES + 4;
/// Characters of a date such as `Sun, 23 Nov 2025 19:18:00 +0000`.
const DATE_BYTES: usize = 31;

/// A message in wire form, dots stuffed, with its places to patch.
pub struct Template {
    run: u32,
    recipients: u32,
    wire: Vec<u8>,
    /// Where the name is written.
    names: Vec<usize>,
    date_at: usize,
    date_sec: u64,
    /// What the checksum covers behind the stamp's line: the wire without its stuffed dots.
    unstuffed: Vec<Range<usize>>,
    hash: Xxh3,
    /// Number and time it is patched for now.
    current: Option<(u64, u64)>,
}

impl Template {
    /// Prepares messages of `content_bytes` from `sender`. Fails, saying the least size, where the
    /// headers would not fit.
    pub fn new(
        run: u32,
        recipients: u32,
        sender: &str,
        content_bytes: u64,
        seed: u64,
    ) -> Result<Template, String> {
        if content_bytes > limits::MESSAGE_BYTES {
            return Err(format!("messages have at most {} bytes", limits::MESSAGE_BYTES));
        }
        let mut wire = vec![b' '; stamp::LINE_BYTES];
        let mut names = Vec::new();
        let mut name = |wire: &mut Vec<u8>| {
            names.push(wire.len());
            wire.resize(wire.len() + NAME_BYTES, b' ');
        };
        wire.extend_from_slice(b"\r\nMessage-ID: <");
        name(&mut wire);
        wire.extend_from_slice(b"@load.ringpost.invalid>\r\nDate: ");
        let date_at = wire.len();
        wire.resize(date_at + DATE_BYTES, b' ');
        wire.extend_from_slice(b"\r\nFrom: ");
        wire.extend_from_slice(if sender.is_empty() {
            b"postmaster@load.ringpost.invalid"
        } else {
            sender.as_bytes()
        });
        wire.extend_from_slice(b"\r\nTo: undisclosed-recipients:;\r\nSubject: Load ");
        name(&mut wire);
        wire.extend_from_slice(b"\r\n\r\n");
        let least = (wire.len() + NAME_LINE_BYTES) as u64;
        if content_bytes < least {
            return Err(format!(
                "messages need at least {least} bytes for their headers, not {content_bytes}"
            ));
        }
        let mut stuffed = Vec::new();
        fill(&mut wire, &mut names, &mut stuffed, content_bytes as usize, &mut Rng::new(seed));
        let mut from = stamp::LINE_BYTES + 2;
        let mut unstuffed = Vec::with_capacity(stuffed.len() + 1);
        for dot in stuffed {
            unstuffed.push(from..dot);
            from = dot + 1;
        }
        unstuffed.push(from..wire.len());
        wire.extend_from_slice(b".\r\n");
        Ok(Template {
            run,
            recipients,
            wire,
            names,
            date_at,
            date_sec: u64::MAX,
            unstuffed,
            hash: Xxh3::new(),
            current: None,
        })
    }
    /// Bytes on the wire, the terminating dot line included.
    pub fn wire_bytes(&self) -> usize {
        self.wire.len()
    }
    /// The wire form of message `number`, stamped with `sent_us` (wall time), its terminating dot
    /// line included. The same arguments give the same bytes.
    pub fn patched(&mut self, number: u64, sent_us: u64) -> &mut Vec<u8> {
        if self.current != Some((number, sent_us)) {
            self.patch(number, sent_us);
            self.current = Some((number, sent_us));
        }
        &mut self.wire
    }
    fn patch(&mut self, number: u64, sent_us: u64) {
        for &at in &self.names {
            stamp::write_name(self.run, number, &mut self.wire[at..at + NAME_BYTES]);
        }
        let sec = sent_us / 1_000_000;
        if sec != self.date_sec {
            self.wire[self.date_at..self.date_at + DATE_BYTES].copy_from_slice(date(sec).as_bytes());
            self.date_sec = sec;
        }
        let mut stamp = Stamp { run: self.run, number, sent_us, checksum: 0, recipients: self.recipients };
        stamp.write(&mut self.wire[..stamp::LINE_BYTES]);
        stamp::begin_checksum(&self.wire[..stamp::LINE_BYTES], &mut self.hash);
        for range in &self.unstuffed {
            self.hash.update(&self.wire[range.clone()]);
        }
        stamp.checksum = self.hash.digest();
        stamp.write(&mut self.wire[..stamp::LINE_BYTES]);
    }
}

/// Appends the body until the content has `content_bytes`. Notes where names belong and where a dot
/// was stuffed.
fn fill(
    wire: &mut Vec<u8>,
    names: &mut Vec<usize>,
    stuffed: &mut Vec<usize>,
    content_bytes: usize,
    rng: &mut Rng,
) {
    let mut next_name = wire.len();
    let mut lines = 0u64;
    loop {
        let left = content_bytes - (wire.len() - stuffed.len());
        if left == 0 {
            return;
        }
        if wire.len() >= next_name && (left == NAME_LINE_BYTES || left >= NAME_LINE_BYTES + 2) {
            wire.push(b'[');
            names.push(wire.len());
            wire.resize(wire.len() + NAME_BYTES, b' ');
            wire.extend_from_slice(b"]\r\n");
            next_name += NAME_EVERY_BYTES;
            continue;
        }
        lines += 1;
        // A remainder of one byte could hold no line end.
        let mut line = (60 + rng.below(TEXT_LINE_BYTES as u64 - 60 + 1) as usize + 2).min(left);
        if left - line == 1 {
            line -= 1;
        }
        let mut text = line - 2;
        if lines % DOT_EVERY_LINES == 2 && text > 0 {
            stuffed.push(wire.len());
            wire.extend_from_slice(b"..");
            text -= 1;
            // A line that is nothing but a dot looks most like the end.
            if lines < DOT_EVERY_LINES && left > 5 {
                text = 0;
            }
        }
        for _ in 0..text {
            let letter = rng.below(32) as u8;
            wire.push(if letter < 26 { b'a' + letter } else { b' ' });
        }
        wire.extend_from_slice(b"\r\n");
    }
}

/// The date of RFC 5322 §3.3, in UTC, at `sec` seconds since 1970.
fn date(sec: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = sec / 86_400;
    // Years are counted from 1 March of year 0, so that the leap day is a year's last.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = (era * 400 + year_of_era + u64::from(month < 2)) % 10_000;
    let of_day = sec % 86_400;
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} +0000",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unstuff(wire: &[u8]) -> Vec<u8> {
        let mut lines: Vec<&[u8]> = wire.split_inclusive(|&c| c == b'\n').collect();
        assert_eq!(lines.pop(), Some(&b".\r\n"[..]));
        lines.iter().flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect()
    }

    #[test]
    fn every_size_is_met_exactly() {
        let least = (0..).find(|&size| Template::new(1, 1, "a@b", size, 7).is_ok()).unwrap();
        for size in (least..least + 300).chain([4096, 65_536, 1 << 20]) {
            let mut template = Template::new(1, 1, "a@b", size, size).unwrap();
            let wire = template.patched(3, 1_700_000_000_000_000).clone();
            let content = unstuff(&wire);
            assert_eq!(content.len() as u64, size);
            for line in content.split_inclusive(|&c| c == b'\n') {
                assert!(line.ends_with(b"\r\n") && line.len() <= 80, "{size}: {line:?}");
            }
        }
    }

    #[test]
    fn the_checksum_covers_what_follows_the_stamp() {
        let mut template = Template::new(9, 2, "a@b", 20_000, 1).unwrap();
        let first = unstuff(template.patched(1, 1_700_000_000_000_000));
        let second = unstuff(template.patched(2, 1_700_000_001_000_000));
        assert_eq!(unstuff(template.patched(1, 1_700_000_000_000_000)), first);
        for (content, number) in [(&first, 1), (&second, 2)] {
            let stamp = Stamp::parse(&content[..stamp::LINE_BYTES]).unwrap();
            assert_eq!((stamp.run, stamp.number, stamp.recipients), (9, number, 2));
            let mut hash = Xxh3::new();
            stamp::begin_checksum(&content[..stamp::LINE_BYTES], &mut hash);
            hash.update(&content[stamp::LINE_BYTES + 2..]);
            assert_eq!(stamp.checksum, hash.digest());
        }
        // Any aligned 8 KiB of one message differ from the same place in another.
        for (a, b) in first.chunks(8192).zip(second.chunks(8192)) {
            assert_ne!(a, b);
        }
    }

    #[test]
    fn dots_are_exercised() {
        let mut template = Template::new(1, 1, "a@b", 4096, 1).unwrap();
        let wire = template.patched(0, 0).clone();
        assert!(memchr::memmem::find(&wire, b"\r\n..\r\n").is_some());
        assert!(memchr::memmem::find_iter(&wire, b"\r\n..").count() >= 3);
    }

    #[test]
    fn dates() {
        let table = [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (1_763_925_480, "Sun, 23 Nov 2025 19:18:00 +0000"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 +0000"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
        ];
        for (sec, want) in table {
            assert_eq!(date(sec), want);
        }
    }
}
