//! The grammars of setting values: sizes, durations, networks, addresses, names.
//!
//! Owns: the text forms, both ways where they are also printed. Promises: what `show_…` prints, the
//! matching parser reads back to the same value; an error says what a right value looks like and
//! never repeats control characters. Must not: know which setting a value belongs to.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Cidr, Durability, Source};
use crate::limits;
use crate::mail::address::{Address, Domain};
use crate::mail::text::printable;
use crate::schedule::Rate;

/// The result of reading one value; the error is the end of a sentence that began with the setting.
pub type Parsed<T> = Result<T, String>;

const SIZE_UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

fn shown(text: &str) -> String {
    format!("\"{}\"", printable(text.as_bytes()))
}

/// A number of digits and the unit that follows it.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// Bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.
pub fn size(text: &str) -> Parsed<u64> {
    let wrong = || {
        format!(
            "{} is not a size: write a whole number of bytes, or one with KiB, MiB or GiB, as in 64MiB",
            shown(text)
        )
    };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    if unit.is_empty() {
        return Ok(number);
    }
    let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    number.checked_mul(*factor).ok_or_else(wrong)
}

/// The shortest text that [`size`] reads back as `bytes`.
pub fn show_size(bytes: u64) -> String {
    match SIZE_UNITS.iter().rev().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// A whole number with `ms`, `s`, `m`, `h` or `d`; `0` needs no unit.
pub fn duration(text: &str) -> Parsed<Duration> {
    let wrong = || {
        format!("{} is not a duration: write a whole number with ms, s, m, h or d, as in 90s", shown(text))
    };
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    if number == 0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (_, factor) = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    number.checked_mul(*factor).map(Duration::from_millis).ok_or_else(wrong)
}

/// The shortest text that [`duration`] reads back as `value` (whole milliseconds).
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    match DURATION_UNITS.iter().rev().find(|(_, factor)| ms > 0 && ms.is_multiple_of(u128::from(*factor))) {
        Some((name, factor)) => format!("{}{name}", ms / u128::from(*factor)),
        None => format!("{ms}ms"),
    }
}

/// So many in a time: `100/s`, `5000/h`, `10/30s`.
pub fn rate(text: &str) -> Parsed<Rate> {
    let wrong =
        || format!("{} is not a rate: write a number and a time, as in 100/s, 5000/h or 10/30s", shown(text));
    let (count, per) = text.split_once('/').ok_or_else(wrong)?;
    let count: u32 = count.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?;
    let per = match DURATION_UNITS.iter().find(|(name, _)| *name == per) {
        Some((_, ms)) => Duration::from_millis(*ms),
        None => duration(per).map_err(|_| wrong())?,
    };
    if per < limits::MIN_RATE_PERIOD || per > limits::MAX_RATE_PERIOD {
        return Err(format!(
            "{}: the time of a rate lies between {} and {}",
            shown(text),
            show_duration(limits::MIN_RATE_PERIOD),
            show_duration(limits::MAX_RATE_PERIOD)
        ));
    }
    Ok(Rate::new(count, per))
}

/// The name of a header field (RFC 5322 §2.2): printable ASCII without a colon.
pub fn field_name(name: &str) -> Parsed<String> {
    let fits = |b: u8| (b'!'..=b'~').contains(&b) && b != b':';
    if !name.is_empty() && name.len() <= limits::STREAM_NAME_BYTES && name.bytes().all(fits) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{} is not the name of a header field: write it without its colon, as in X-Stream",
        shown(name)
    ))
}

/// Durations with commas between them, each above zero.
pub fn schedule(text: &str) -> Parsed<Vec<Duration>> {
    let steps: Vec<Duration> = text.split(',').map(|part| duration(part.trim())).collect::<Parsed<_>>()?;
    if steps.len() > limits::RETRY_STEPS {
        return Err(format!("has {} steps: at most {} are allowed", steps.len(), limits::RETRY_STEPS));
    }
    match steps.iter().position(Duration::is_zero) {
        Some(i) => Err(format!("step {} is zero: a retry needs a pause, as in 1m,5m,15m", i + 1)),
        None => Ok(steps),
    }
}

/// A whole number.
pub fn number(text: &str) -> Parsed<u64> {
    text.parse().map_err(|_| format!("{} is not a whole number", shown(text)))
}

/// `true` or `false`.
pub fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| format!("{} is neither true nor false", shown(text)))
}

/// `ADDR:PORT`, IPv6 in brackets.
pub fn socket(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        format!("{} is not ADDR:PORT: write an address, as in 127.0.0.1:2525 or [::1]:2525", shown(text))
    })
}

/// `ADDR:PORT`, or `ADDR` alone for port 53.
pub fn name_server(text: &str) -> Parsed<SocketAddr> {
    text.parse::<IpAddr>().map(|addr| SocketAddr::new(addr, 53)).or_else(|_| socket(text))
}

/// `ADDR/BITS`, or an address alone.
pub fn cidr(text: &str) -> Parsed<Cidr> {
    let wrong =
        || format!("{} is not a network: write ADDR/BITS, as in 10.0.0.0/8 or 2001:db8::/32", shown(text));
    let (addr, bits) = match text.split_once('/') {
        Some((addr, bits)) => (addr, Some(bits)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => width,
        Some(bits) if bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) => {
            bits.parse::<u8>().ok().filter(|bits| *bits <= width).ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let network = masked(addr, bits);
    if network != addr {
        return Err(format!("{} has address bits beyond /{bits}: write {network}/{bits}", shown(text)));
    }
    match addr.to_canonical() {
        IpAddr::V4(v4) if addr.is_ipv6() && bits >= 96 => Ok(Cidr { addr: v4.into(), bits: bits - 96 }),
        _ => Ok(Cidr { addr, bits }),
    }
}

fn masked(addr: IpAddr, bits: u8) -> IpAddr {
    match addr {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((a.to_bits() & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((a.to_bits() & mask).into())
        }
    }
}

/// A host name to be shown to the world (RFC 1123 §2.1): labels of letters, digits and inner hyphens.
/// The result is lower case and has no final dot.
pub fn host_name(text: &str) -> Parsed<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label_is_valid = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > limits::DOMAIN_BYTES || !name.split('.').all(label_is_valid) || numeric_end {
        return Err(format!("{} is not a host name: write a full name, as in mail.example.com", shown(text)));
    }
    Ok(name.to_ascii_lowercase())
}

/// `ADDR,EHLO-NAME`.
pub fn source(text: &str) -> Parsed<Source> {
    let wrong =
        || format!("{} is not ADDR,EHLO-NAME: write it as in 192.0.2.1,out1.example.com", shown(text));
    let (address, name) = text.split_once(',').ok_or_else(wrong)?;
    let address: IpAddr = address.trim().parse().map_err(|_| wrong())?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!(
            "{address} cannot be the source of a connection: write an address of this machine"
        ));
    }
    Ok(Source { address, ehlo_name: host_name(name.trim())? })
}

/// A domain of mail addresses.
pub fn domain(text: &str) -> Parsed<Domain> {
    Domain::parse(text.as_bytes()).map_err(|why| format!("{} is not a domain: {why}", shown(text)))
}

/// A mail address.
pub fn address(text: &str) -> Parsed<Address> {
    Address::parse(text.as_bytes()).map_err(|why| format!("{} is not an address: {why}", shown(text)))
}

/// A rate, or `none`.
pub fn rate_or_none(text: &str) -> Parsed<Option<Rate>> {
    if text == "none" { Ok(None) } else { rate(text).map(Some) }
}

/// `disk`, `os` or `memory`.
pub fn durability(text: &str) -> Parsed<Durability> {
    [Durability::Disk, Durability::Os, Durability::Memory]
        .into_iter()
        .find(|d| d.as_str() == text)
        .ok_or_else(|| format!("{} is not a durability: write disk, os or memory", shown(text)))
}

/// A path or a name that is not empty and holds no control character.
pub fn text(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return Err("is empty: give a value or leave it out".into());
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{} holds a control character", shown(text)));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks every good text against its value, and that every bad one is refused in one line that
    /// holds no control character.
    fn table<T: PartialEq + std::fmt::Debug>(parse: fn(&str) -> Parsed<T>, good: &[(&str, T)], bad: &[&str]) {
        for (text, value) in good {
            assert_eq!(parse(text).as_ref(), Ok(value), "{text:?}");
        }
        for text in bad {
            let error = parse(text).expect_err(text);
            assert!(!error.is_empty() && !error.chars().any(char::is_control), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn sizes() {
        let good =
            [("0", 0), ("1", 1), ("4096", 4096), ("4KiB", 4096), ("64MiB", 64 << 20), ("1GiB", 1 << 30)];
        let bad = [
            "",
            "KiB",
            "-1",
            "1.5MiB",
            "4KB",
            "4kib",
            "4 KiB",
            "4k",
            "99999999999GiB",
            "1\r\n",
            "184467440737095516160",
        ];
        table(size, &good, &bad);
        for (bytes, text) in
            [(0, "0"), (1, "1"), (1536, "1536"), (4096, "4KiB"), (3 << 20, "3MiB"), (1 << 40, "1024GiB")]
        {
            assert_eq!(show_size(bytes), text);
            assert_eq!(size(text), Ok(bytes));
        }
    }

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        let good = [
            ("0", ms(0)),
            ("250ms", ms(250)),
            ("0s", ms(0)),
            ("90s", ms(90_000)),
            ("5m", ms(300_000)),
            ("2h", ms(7_200_000)),
            ("5d", ms(432_000_000)),
        ];
        let bad = [
            "",
            "5",
            "s",
            "1h30m",
            "1.5h",
            "-1s",
            "5 s",
            "5S",
            "1w",
            "99999999999999999999d",
            "18446744073709551615d",
        ];
        table(duration, &good, &bad);
        for (value, text) in
            [(ms(0), "0ms"), (ms(1), "1ms"), (ms(1500), "1500ms"), (ms(60_000), "1m"), (ms(86_400_000), "1d")]
        {
            assert_eq!(show_duration(value), text);
            assert_eq!(duration(text), Ok(value));
        }
    }

    #[test]
    fn schedules() {
        let s = Duration::from_secs;
        table(
            schedule,
            &[("1m", vec![s(60)]), ("1m,5m, 1h", vec![s(60), s(300), s(3600)])],
            &["", ",", "1m,", "1m,,5m", "1m;5m", "0s", "1m,0"],
        );
        assert!(schedule(&vec!["1m"; limits::RETRY_STEPS].join(",")).is_ok());
        assert!(schedule(&vec!["1m"; limits::RETRY_STEPS + 1].join(",")).is_err());
    }

    #[test]
    fn sockets_and_name_servers() {
        let a = |text: &str| text.parse::<SocketAddr>().expect("written in this test");
        let good = [("127.0.0.1:25", a("127.0.0.1:25")), ("[::1]:0", a("[::1]:0"))];
        table(socket, &good, &["", "25", ":25", "127.0.0.1", "localhost:25", "::1:25", "1.2.3.4:65536"]);
        let good = [("9.9.9.9", a("9.9.9.9:53")), ("::1", a("[::1]:53")), ("[::1]:5353", a("[::1]:5353"))];
        table(name_server, &good, &["", "dns.example", "9.9.9.9:"]);
    }

    #[test]
    fn networks() {
        let net = |addr: &str, bits| Cidr { addr: addr.parse().expect("written in this test"), bits };
        table(
            cidr,
            &[
                ("10.0.0.0/8", net("10.0.0.0", 8)),
                ("192.0.2.7", net("192.0.2.7", 32)),
                ("0.0.0.0/0", net("0.0.0.0", 0)),
                ("::/0", net("::", 0)),
                ("::1", net("::1", 128)),
                ("2001:db8::/32", net("2001:db8::", 32)),
                ("::ffff:10.0.0.0/104", net("10.0.0.0", 8)),
            ],
            &[
                "",
                "/8",
                "10.0.0.0/",
                "10.0.0.0/33",
                "10.0.0.0/+8",
                "10.0.0.1/8",
                "::1/129",
                "::1/64",
                "example.com/8",
            ],
        );
        assert!(cidr("10.1.2.3/8").is_err_and(|e| e.ends_with("write 10.0.0.0/8")));
    }

    #[test]
    fn membership() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("127.0.0.0/8", "::ffff:127.0.0.1", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("::/0", "::1", "203.0.113.9"),
        ] {
            let network = cidr(network).expect("written in this test");
            assert!(network.contains(inside.parse().expect("written in this test")), "{network:?} {inside}");
            assert!(
                !network.contains(outside.parse().expect("written in this test")),
                "{network:?} {outside}"
            );
        }
    }

    #[test]
    fn names_and_sources() {
        let long = "a".repeat(64);
        table(
            host_name,
            &[
                ("mail.example.com", "mail.example.com".into()),
                ("MX1.Example.", "mx1.example".into()),
                ("vm-7", "vm-7".into()),
            ],
            &[
                "",
                ".",
                "a..b",
                "-a.example",
                "a-.example",
                "a_b.example",
                "1.2.3.4",
                "ex ample",
                "é.example",
                &long,
                "a\nb",
            ],
        );
        let source_of = |addr: &str| Source {
            address: addr.parse().expect("written in this test"),
            ehlo_name: "out.example".into(),
        };
        table(
            source,
            &[
                ("192.0.2.1,out.example", source_of("192.0.2.1")),
                ("2001:db8::1, OUT.example", source_of("2001:db8::1")),
            ],
            &[
                "",
                "192.0.2.1",
                "192.0.2.1,",
                "out.example,192.0.2.1",
                "0.0.0.0,out.example",
                "224.0.0.1,out.example",
            ],
        );
    }

    #[test]
    fn words() {
        table(
            durability,
            &[("disk", Durability::Disk), ("os", Durability::Os), ("memory", Durability::Memory)],
            &["", "Disk", "none", "ram"],
        );
        table(switch, &[("true", true), ("false", false)], &["", "yes", "1"]);
        table(number, &[("0", 0), ("25", 25)], &["", "-1", "1e3", "1_000", "2.0"]);
        table(text, &[("./spool", "./spool".into())], &["", "a\0b", "a\nb"]);
    }
}
