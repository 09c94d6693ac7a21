//! Trace headers (RFC 5321 §4.4, RFC 3848).
//!
//! Owns: the text of the Received header this server adds, the RFC 5322 date in it, and the count of
//! such headers by which a loop is seen (RFC 5321 §6.3). Promises: no foreign byte reaches a header
//! unescaped, every line ends in CRLF and is far below 998 bytes. Must not: change message content.
use std::io::Write;
use std::net::IpAddr;

use super::address::{Address, Domain};
use super::id::MessageId;
use super::text;
use crate::clock::WallTime;
use crate::limits;

/// What a Received header says of how a message came here.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The name the client gave in HELO or EHLO, whatever it is.
    pub helo: &'a str,
    /// The client's address; none for mail made on this host.
    pub client: Option<IpAddr>,
    /// Our own host name: a valid domain.
    pub by: &'a str,
    /// As [`protocol`] names it.
    pub protocol: &'a str,
    /// Version and cipher, where the client came through TLS.
    pub tls: Option<&'a str>,
    /// Whom the client's certificate names, where it gave one that is believed.
    pub certificate: Option<&'a str>,
    pub id: MessageId,
    /// Only where there is exactly one: a list would betray blind copies (RFC 5321 §7.2).
    pub recipient: Option<&'a Address>,
    pub at: WallTime,
}

/// The name of the protocol that a client speaks (RFC 3848, RFC 6531 §4.3).
pub fn protocol(esmtp: bool, utf8: bool, tls: bool, authenticated: bool) -> &'static str {
    match (esmtp || utf8, utf8, tls, authenticated) {
        (false, ..) => "SMTP",
        (true, false, false, false) => "ESMTP",
        (true, false, true, false) => "ESMTPS",
        (true, false, false, true) => "ESMTPA",
        (true, false, true, true) => "ESMTPSA",
        (true, true, false, false) => "UTF8SMTP",
        (true, true, true, false) => "UTF8SMTPS",
        (true, true, false, true) => "UTF8SMTPA",
        (true, true, true, true) => "UTF8SMTPSA",
    }
}

/// Appends the header, folded over several lines.
///
/// The grammar wants a domain or an address literal behind `from` (RFC 5321 §4.4). A HELO name that is
/// neither moves into a comment, and the client's literal takes its place.
pub fn received(out: &mut Vec<u8>, r: &Received<'_>) {
    let literal = r.client.map(Domain::from_ip);
    let literal = literal.as_ref().map_or("unknown", Domain::as_str);
    let is_name = Domain::is_valid(r.helo.as_bytes());
    out.extend_from_slice(b"Received: from ");
    out.extend_from_slice(if is_name { r.helo.as_bytes() } else { literal.as_bytes() });
    if r.client.is_some() {
        push_all(out, &[" (", literal, ")"]);
    }
    if !is_name {
        out.extend_from_slice(b"\r\n\t(HELO ");
        push_comment(out, r.helo);
        out.push(b')');
    }
    if let Some(tls) = r.tls {
        out.extend_from_slice(b"\r\n\t(using ");
        push_comment(out, tls);
        out.push(b')');
    }
    if let Some(certificate) = r.certificate {
        out.extend_from_slice(b"\r\n\t(client certificate ");
        push_comment(out, certificate);
        out.extend_from_slice(b" verified)");
    }
    push_all(out, &["\r\n\tby ", r.by, " with ", r.protocol, " id "]);
    write!(out, "{}", r.id).expect("writing to memory does not fail");
    // RFC 6531 §3.7.3 would let others in; every reader of headers understands their absence.
    if let Some(recipient) = r.recipient.filter(|recipient| recipient.is_ascii()) {
        push_all(out, &["\r\n\tfor <", recipient.as_str(), ">"]);
    }
    out.extend_from_slice(b";\r\n\t");
    push_date(out, r.at);
    out.extend_from_slice(b"\r\n");
}

fn push_all(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Foreign text as the inside of a comment (`ctext`, RFC 5322 §3.2.2). Parentheses and backslashes become
/// `?` rather than quoted pairs, which too many readers of headers misunderstand.
fn push_comment(out: &mut Vec<u8>, foreign: &str) {
    let foreign = foreign.as_bytes();
    let safe = text::printable(&foreign[..foreign.len().min(limits::DOMAIN_BYTES)]);
    out.extend(safe.bytes().map(|b| if matches!(b, b'(' | b')' | b'\\') { b'?' } else { b }));
}

/// The latest time the four-digit year of RFC 5322 can say: 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

/// `Thu, 01 Jan 1970 00:00:00 +0000` (RFC 5322 §3.3), always in UTC. Times past the year 9999 are shown
/// as its last second.
pub fn rfc5322_date(at: WallTime) -> String {
    let mut out = Vec::with_capacity(31);
    push_date(&mut out, at);
    String::from_utf8(out).expect("a date is ASCII")
}

fn push_date(out: &mut Vec<u8>, at: WallTime) {
    const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let secs = at.secs().min(LAST_SECOND);
    let (days, second) = (secs / 86_400, secs % 86_400);
    let (year, month, day) = civil(days);
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 +0000";
    // 1970-01-01, day 0, was a Thursday.
    date[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    date[5..7].copy_from_slice(&two_digits(day));
    date[8..11].copy_from_slice(MONTHS[(month - 1) as usize]);
    date[12..14].copy_from_slice(&two_digits(year / 100));
    date[14..16].copy_from_slice(&two_digits(year % 100));
    date[17..19].copy_from_slice(&two_digits(second / 3600));
    date[20..22].copy_from_slice(&two_digits(second / 60 % 60));
    date[23..25].copy_from_slice(&two_digits(second % 60));
    out.extend_from_slice(&date);
}

fn two_digits(n: u64) -> [u8; 2] {
    debug_assert!(n < 100);
    [b'0' + (n / 10) as u8, b'0' + (n % 10) as u8]
}

/// Year, month (1–12) and day (1–31) of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is a year's last (after Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 { months_from_march + 3 } else { months_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Counts the Received fields in the header of a message that comes in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct HopCounter {
    count: usize,
    at: At,
}

/// Where in the header the next byte stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Behind so many bytes of a line that are those of the name.
    Name(usize),
    /// Behind the name: the colon may be set apart by white space (obs-received, RFC 5322 §4.5.7).
    Colon,
    /// Behind a CR that began the line.
    Cr,
    Rest,
    Body,
}

impl Default for At {
    fn default() -> At {
        At::Name(0)
    }
}

impl HopCounter {
    /// Looks through the next piece; of the body nothing is looked at.
    pub fn push(&mut self, piece: &[u8]) {
        const NAME: &[u8] = b"received";
        let mut rest = piece;
        while let Some((&byte, behind)) = rest.split_first() {
            self.at = match self.at {
                At::Body => return,
                At::Rest => {
                    let Some(end) = memchr::memchr(b'\n', rest) else { return };
                    rest = &rest[end + 1..];
                    self.at = At::Name(0);
                    continue;
                }
                At::Name(seen) if byte.eq_ignore_ascii_case(&NAME[seen]) => match seen + 1 {
                    all if all == NAME.len() => At::Colon,
                    seen => At::Name(seen),
                },
                At::Name(0) if byte == b'\r' => At::Cr,
                At::Colon if matches!(byte, b' ' | b'\t') => At::Colon,
                At::Colon if byte == b':' => {
                    self.count += 1;
                    At::Rest
                }
                At::Cr if byte == b'\n' => At::Body,
                At::Name(_) | At::Colon | At::Cr => {
                    self.at = At::Rest;
                    continue;
                }
            };
            rest = behind;
        }
    }

    /// Whether there are so many that the message goes round in circles (RFC 5321 §6.3).
    pub fn is_loop(&self) -> bool {
        self.count > limits::RECEIVED_HOPS
    }
}

/// Counts the Received fields in the header of a message that begins with `message`.
pub fn count_received(message: &[u8]) -> usize {
    let mut hops = HopCounter::default();
    hops.push(message);
    hops.count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    fn header(helo: &str, client: Option<&str>, recipient: Option<&str>) -> String {
        let recipient = recipient.map(|r| Address::parse_utf8(r.as_bytes()).unwrap());
        let mut out = Vec::new();
        received(
            &mut out,
            &Received {
                helo,
                client: client.map(|c| c.parse().unwrap()),
                by: "mx.example.net",
                protocol: "ESMTP",
                tls: None,
                certificate: None,
                id: MessageId(1),
                recipient: recipient.as_ref(),
                at: WallTime::from_secs(1_700_000_000),
            },
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn received_headers() {
        let tail = "\r\n\tby mx.example.net with ESMTP id 0000000000001";
        let date = ";\r\n\tTue, 14 Nov 2023 22:13:20 +0000\r\n";
        let table = [
            (("client.example", Some("192.0.2.1"), None), "client.example ([192.0.2.1])", ""),
            (("[192.0.2.9]", Some("::1"), Some("a@B.c")), "[192.0.2.9] ([IPv6:::1])", "\r\n\tfor <a@b.c>"),
            (("localhost", None, Some("\u{fc}@B.c")), "localhost", ""),
            (("a (b) \\\"c", Some("::1"), None), "[IPv6:::1] ([IPv6:::1])\r\n\t(HELO a ?b? ?\"c)", ""),
            (("x\r\nEvil: 1\0", None, None), "unknown\r\n\t(HELO x?x0d?x0aEvil: 1?x00)", ""),
            (("host.", Some("10.0.0.1"), None), "[10.0.0.1] ([10.0.0.1])\r\n\t(HELO host.)", ""),
            (("", Some("10.0.0.1"), None), "[10.0.0.1] ([10.0.0.1])\r\n\t(HELO )", ""),
        ];
        for ((helo, client, recipient), from, to) in table {
            assert_eq!(header(helo, client, recipient), format!("Received: from {from}{tail}{to}{date}"));
        }
    }

    #[test]
    fn what_tls_says_stands_in_comments() {
        let mut out = Vec::new();
        received(
            &mut out,
            &Received {
                helo: "client.example",
                client: Some("192.0.2.1".parse().unwrap()),
                by: "mx.example.net",
                protocol: protocol(true, false, true, true),
                tls: Some("TLSv1.3 TLS_AES_128_GCM_SHA256"),
                certificate: Some("a)\r\nb"),
                id: MessageId(1),
                recipient: None,
                at: WallTime(0),
            },
        );
        let expected = "Received: from client.example ([192.0.2.1])\r\n\t(using TLSv1.3 TLS_AES_128_GCM_SHA256)\r\n\t\
            (client certificate a??x0d?x0ab verified)\r\n\tby mx.example.net with ESMTPSA id 0000000000001;\r\n\t\
            Thu, 01 Jan 1970 00:00:00 +0000\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn no_helo_breaks_the_header() {
        for helo in ["(".repeat(9999), "\u{fc}".repeat(300), "\r\n".repeat(300), "a.".repeat(4000)] {
            for (at, line) in header(&helo, Some("::1"), None).split_inclusive("\r\n").enumerate() {
                let text = line.strip_suffix("\r\n").unwrap();
                assert!(text.len() < 998 && !text.contains(['\r', '\n']));
                assert_eq!(line.starts_with('\t'), at > 0, "{line:?}");
            }
        }
    }

    #[test]
    fn dates() {
        let table = [
            (0, "Thu, 01 Jan 1970 00:00:00 +0000"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 +0000"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 +0000"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 +0000"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 +0000"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 +0000"),
            (LAST_SECOND, "Fri, 31 Dec 9999 23:59:59 +0000"),
            (u64::MAX / 1_000_000, "Fri, 31 Dec 9999 23:59:59 +0000"),
        ];
        for (secs, expected) in table {
            assert_eq!(rfc5322_date(WallTime::from_secs(secs)), expected);
        }
    }

    #[test]
    fn dates_agree_with_the_time_crate() {
        let format = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] +0000"
        );
        let mut rng = Rng::new(5322);
        for _ in 0..20_000 {
            let secs = rng.below(LAST_SECOND + 1);
            let expected =
                time::OffsetDateTime::from_unix_timestamp(secs as i64).unwrap().format(format).unwrap();
            assert_eq!(rfc5322_date(WallTime::from_secs(secs)), expected, "second {secs}");
        }
    }

    #[test]
    fn counting_hops() {
        let table: [(&[u8], usize); 10] = [
            (b"", 0),
            (b"Received: a\r\nRECEIVED: b\r\n\tfolded Received: x\r\nreceived \t: c\r\n\r\nReceived: body\r\n", 3),
            (b"\r\nReceived: body\r\n", 0),
            (b"Received", 0),
            (b"Received:", 1),
            (b"X-Received: a\r\nReceived-SPF: b\r\n", 0),
            (b" Received: folded\r\n", 0),
            (b"Subject: x\r\nReceived: y", 1),
            (b"Received\r\n: not one\r\n", 0),
            (b"Rec\rReceived: x\r\nR\r\nReceived: y\r\n\rReceived: z\r\nReceived: 2\r\n\r\n", 2),
        ];
        for (message, expected) in table {
            assert_eq!(count_received(message), expected, "{:?}", String::from_utf8_lossy(message));
            let mut hops = HopCounter::default();
            message.chunks(1).for_each(|byte| hops.push(byte));
            assert_eq!(hops.count, expected, "byte by byte: {:?}", String::from_utf8_lossy(message));
        }
    }
}
