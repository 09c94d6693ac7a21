//! The message the source sends: one prepared text, patched for each message.
//!
//! Owns: [`Template`] and [`Stock`]. Promises: the content has exactly the asked size (dots unstuffed, CRLFs
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
    /// Where the date is written; a message from a corpus keeps its own.
    date_at: Option<usize>,
    date_sec: u64,
    content_bytes: u64,
    /// What the checksum covers behind the stamp's line: the wire without its stuffed dots.
    unstuffed: Vec<Range<usize>>,
    hash: Xxh3,
    /// Number and time it is patched for now.
    current: Option<(u64, u64)>,
    /// The content as the inside of a JSON string, where that is what is sent.
    json: Option<Vec<u8>>,
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
        let Headers { mut text, mut names, date_at } = headers(sender);
        let least = least_bytes(sender);
        if content_bytes < least {
            return Err(format!(
                "messages need at least {least} bytes for their headers, not {content_bytes}"
            ));
        }
        fill(&mut text, &mut names, content_bytes as usize, &mut Rng::new(seed));
        Ok(Template::build(run, recipients, text, names, Some(date_at)))
    }
    /// Prepares a message of a corpus: the stamp stands in front of it, the rest stays as it is.
    pub fn of_corpus(run: u32, recipients: u32, message: &[u8]) -> Template {
        let mut text = vec![b' '; stamp::LINE_BYTES];
        text.extend_from_slice(b"\r\n");
        text.extend_from_slice(message);
        Template::build(run, recipients, text, Vec::new(), None)
    }
    /// The same message as BDAT carries it (RFC 3030): nothing stuffed, no terminating dot.
    pub fn without_dots(mut self) -> Template {
        let mut wire = Vec::with_capacity(self.wire.len());
        wire.extend_from_slice(&self.wire[..stamp::LINE_BYTES + 2]);
        let mut from = stamp::LINE_BYTES + 2;
        let mut removed = Vec::with_capacity(self.unstuffed.len());
        for range in &self.unstuffed {
            removed.push((from, range.start - from));
            wire.extend_from_slice(&self.wire[range.clone()]);
            from = range.end;
        }
        let moved = |at: usize| {
            at - removed.iter().take_while(|(dot, _)| *dot <= at).map(|(_, count)| count).sum::<usize>()
        };
        self.names.iter_mut().for_each(|at| *at = moved(*at));
        self.date_at = self.date_at.map(moved);
        self.unstuffed = vec![stamp::LINE_BYTES + 2..wire.len(); 1];
        self.wire = wire;
        self
    }
    /// Stuffs the dots of a content and ends it. `names` and `date_at` are places in the content.
    fn build(
        run: u32,
        recipients: u32,
        content: Vec<u8>,
        mut names: Vec<usize>,
        mut date_at: Option<usize>,
    ) -> Template {
        let stuffed: Vec<usize> = memchr::memmem::find_iter(&content, b"\r\n.").map(|at| at + 2).collect();
        let content_bytes = content.len() as u64;
        let mut wire = content;
        let mut from = stamp::LINE_BYTES + 2;
        let mut unstuffed = Vec::with_capacity(stuffed.len() + 1);
        if !stuffed.is_empty() {
            let content = std::mem::take(&mut wire);
            wire.reserve(content.len() + stuffed.len() + 3);
            let mut copied = 0;
            for &dot in &stuffed {
                wire.extend_from_slice(&content[copied..dot]);
                unstuffed.push(from..wire.len());
                wire.push(b'.');
                (copied, from) = (dot, wire.len());
            }
            wire.extend_from_slice(&content[copied..]);
            let moved = |at: usize| at + stuffed.partition_point(|&dot| dot <= at);
            names.iter_mut().for_each(|at| *at = moved(*at));
            date_at = date_at.map(moved);
        }
        unstuffed.push(from..wire.len());
        wire.extend_from_slice(b".\r\n");
        Template {
            run,
            recipients,
            wire,
            names,
            date_at,
            date_sec: u64::MAX,
            content_bytes,
            unstuffed,
            hash: Xxh3::new(),
            current: None,
            json: None,
        }
    }
    /// The same message as the inside of a JSON string, for mail over HTTP: nothing stuffed, and `\n` for
    /// each line end, which has as many bytes.
    pub fn into_json(self) -> Template {
        let mut template = self.without_dots();
        let mut json = template.wire.clone();
        for at in memchr::memmem::find_iter(&template.wire, b"\r\n") {
            json[at..at + 2].copy_from_slice(b"\\n");
        }
        template.json = Some(json);
        template
    }
    /// Bytes of the content, as SIZE counts (RFC 1870).
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
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
        self.json.as_mut().unwrap_or(&mut self.wire)
    }
    fn patch(&mut self, number: u64, sent_us: u64) {
        for &at in &self.names {
            stamp::write_name(self.run, number, &mut self.wire[at..at + NAME_BYTES]);
        }
        let sec = sent_us / 1_000_000;
        if let (Some(at), true) = (self.date_at, sec != self.date_sec) {
            self.wire[at..at + DATE_BYTES].copy_from_slice(date(sec).as_bytes());
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
        if let Some(json) = &mut self.json {
            // No line ends in what was patched.
            let names = self.names.iter().map(|&at| at..at + NAME_BYTES);
            let date = self.date_at.map(|at| at..at + DATE_BYTES);
            for range in names.chain(date).chain(std::iter::once(0..stamp::LINE_BYTES)) {
                json[range.clone()].copy_from_slice(&self.wire[range]);
            }
        }
    }
}

/// The messages of a run, prepared: one for each size or message of a corpus. Belongs to one thread.
pub struct Stock(pub Vec<Template>);

impl Stock {
    /// Prepares messages of `sizes` (each at least what the headers need), whose texts differ.
    pub fn of_sizes(
        run: u32,
        recipients: u32,
        sender: &str,
        sizes: &[u64],
        seed: u64,
    ) -> Result<Stock, String> {
        let template =
            |(index, &size)| Template::new(run, recipients, sender, size, seed ^ (index as u64) << 48);
        sizes.iter().enumerate().map(template).collect::<Result<_, _>>().map(Stock)
    }
}

/// The headers of a generated message, with its places to patch.
struct Headers {
    text: Vec<u8>,
    names: Vec<usize>,
    date_at: usize,
}

fn headers(sender: &str) -> Headers {
    let mut text = vec![b' '; stamp::LINE_BYTES];
    let mut names = Vec::new();
    let mut name = |text: &mut Vec<u8>| {
        names.push(text.len());
        text.resize(text.len() + NAME_BYTES, b' ');
    };
    text.extend_from_slice(b"\r\nMessage-ID: <");
    name(&mut text);
    text.extend_from_slice(b"@load.ringpost.invalid>\r\nDate: ");
    let date_at = text.len();
    text.resize(date_at + DATE_BYTES, b' ');
    text.extend_from_slice(b"\r\nFrom: ");
    text.extend_from_slice(if sender.is_empty() {
        b"postmaster@load.ringpost.invalid"
    } else {
        sender.as_bytes()
    });
    text.extend_from_slice(b"\r\nTo: undisclosed-recipients:;\r\nSubject: Load ");
    name(&mut text);
    text.extend_from_slice(b"\r\n\r\n");
    Headers { text, names, date_at }
}

/// The smallest content a generated message can have.
pub fn least_bytes(sender: &str) -> u64 {
    (headers(sender).text.len() + NAME_LINE_BYTES) as u64
}

/// Appends the body until the content has `content_bytes`. Notes where names belong.
fn fill(text: &mut Vec<u8>, names: &mut Vec<usize>, content_bytes: usize, rng: &mut Rng) {
    let mut next_name = text.len();
    let mut lines = 0u64;
    loop {
        let left = content_bytes - text.len();
        if left == 0 {
            return;
        }
        if text.len() >= next_name && (left == NAME_LINE_BYTES || left >= NAME_LINE_BYTES + 2) {
            text.push(b'[');
            names.push(text.len());
            text.resize(text.len() + NAME_BYTES, b' ');
            text.extend_from_slice(b"]\r\n");
            next_name += NAME_EVERY_BYTES;
            continue;
        }
        lines += 1;
        // A remainder of one byte could hold no line end.
        let mut line = (60 + rng.below(TEXT_LINE_BYTES as u64 - 60 + 1) as usize + 2).min(left);
        if left - line == 1 {
            line -= 1;
        }
        let mut letters = line - 2;
        if lines % DOT_EVERY_LINES == 2 && letters > 0 {
            text.push(b'.');
            letters -= 1;
            // A line that is nothing but a dot looks most like the end.
            if lines < DOT_EVERY_LINES && left > 5 {
                letters = 0;
            }
        }
        for _ in 0..letters {
            let letter = rng.below(32) as u8;
            text.push(if letter < 26 { b'a' + letter } else { b' ' });
        }
        text.extend_from_slice(b"\r\n");
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
    fn without_dots_the_content_is_the_same() {
        let mail = b"Subject: x\r\n\r\n.\r\n..two\r\nend\r\n";
        let templates = || [Template::new(9, 2, "a@b", 20_000, 1).unwrap(), Template::of_corpus(9, 2, mail)];
        for (mut dotted, plain) in templates().into_iter().zip(templates()) {
            let mut plain = plain.without_dots();
            for number in [3, 4] {
                let content = unstuff(dotted.patched(number, 5_000_000));
                assert_eq!(&content, plain.patched(number, 5_000_000));
                assert_eq!(content.len() as u64, dotted.content_bytes());
            }
        }
    }

    #[test]
    fn as_json_the_content_is_the_same() {
        let templates = || Template::new(9, 2, "a@b", 20_000, 1).unwrap();
        let (mut dotted, mut json) = (templates(), templates().into_json());
        for number in [3, 4] {
            let content = unstuff(dotted.patched(number, 5_000_000));
            let text = format!("\"{}\"", std::str::from_utf8(json.patched(number, 5_000_000)).unwrap());
            let read: String = serde_json::from_str(&text).unwrap();
            assert_eq!(read.replace('\n', "\r\n").as_bytes(), content);
            assert_eq!(json.wire_bytes(), text.len() - 2);
            assert_eq!(content.len() as u64, json.content_bytes());
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
