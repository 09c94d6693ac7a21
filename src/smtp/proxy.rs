//! The PROXY protocol's header, versions 1 and 2: whose connection a proxy passes on.
//!
//! Owns: [`read`], from the first bytes of a connection to the client's address (HAProxy's
//! `proxy-protocol.txt`, sections 2.1 and 2.2). Promises: the verdict does not depend on how the bytes
//! were split; at most [`limits::PROXY_HEADER_BYTES`] are looked at; what is malformed is never taken
//! for a header without an address. Must not: decide who may send one.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::limits;

/// Why the bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the PROXY header is too long")]
    TooLong,
    #[error("the PROXY header is of a version, command or transport that is not known")]
    Unknown,
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length; what follows it is the client's.
    pub bytes: usize,
    pub origin: Origin,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Client(SocketAddr),
    /// The proxy's own (`LOCAL`: health checks).
    Proxy,
    /// A client that the proxy knows no address of (`UNKNOWN`, `AF_UNSPEC`).
    Unknown,
}

const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;
/// Longest header of version 1, CRLF included.
const V1_BYTES: usize = 107;

/// Reads the header that `input` begins with; none where more bytes are needed.
pub fn read(input: &[u8]) -> Result<Option<Header>, ProxyError> {
    let begins = |with: &[u8]| {
        let len = input.len().min(with.len());
        input[..len] == with[..len]
    };
    if begins(V2_SIGNATURE) {
        read_v2(input)
    } else if begins(b"PROXY ") {
        read_v1(input)
    } else {
        Err(ProxyError::Missing)
    }
}

fn read_v1(input: &[u8]) -> Result<Option<Header>, ProxyError> {
    let window = &input[..input.len().min(V1_BYTES)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() == V1_BYTES { Err(ProxyError::TooLong) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(ProxyError::Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| ProxyError::Malformed)?;
    let header = |origin| Ok(Some(Header { bytes: end + 1, origin }));
    let mut words = line.split(' ').skip(1);
    let mut next = || words.next().ok_or(ProxyError::Malformed);
    let is_v4 = match next()? {
        "UNKNOWN" => return header(Origin::Unknown),
        "TCP4" => true,
        "TCP6" => false,
        _ => return Err(ProxyError::Malformed),
    };
    let mut address = || {
        let ip: IpAddr = next()?.parse().map_err(|_| ProxyError::Malformed)?;
        if ip.is_ipv4() == is_v4 { Ok(ip) } else { Err(ProxyError::Malformed) }
    };
    let (from, _to) = (address()?, address()?);
    let port = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if plain {
            text.parse::<u16>().map_err(|_| ProxyError::Malformed)
        } else {
            Err(ProxyError::Malformed)
        }
    };
    let (from_port, _to_port) = (port(next()?)?, port(next()?)?);
    if words.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    header(Origin::Client(SocketAddr::new(from.to_canonical(), from_port)))
}

fn read_v2(input: &[u8]) -> Result<Option<Header>, ProxyError> {
    let Some(fixed) = input.first_chunk::<V2_FIXED_BYTES>() else { return Ok(None) };
    let (version_command, transport) = (fixed[12], fixed[13]);
    let payload = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let bytes = V2_FIXED_BYTES + payload;
    let is_local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Unknown),
    };
    if bytes > limits::PROXY_HEADER_BYTES {
        return Err(ProxyError::TooLong);
    }
    let address_bytes = match transport {
        0x11 => 12,
        0x21 => 36,
        _ if is_local => 0,
        0x00 => 0,
        _ => return Err(ProxyError::Unknown),
    };
    if !is_local && payload < address_bytes {
        return Err(ProxyError::Malformed);
    }
    let Some(payload) = input.get(V2_FIXED_BYTES..bytes) else { return Ok(None) };
    let origin = match address_bytes {
        _ if is_local => Origin::Proxy,
        12 => {
            let ip: [u8; 4] = payload[..4].try_into().expect("four bytes");
            Origin::Client(SocketAddr::new(Ipv4Addr::from(ip).into(), port_at(payload, 8)))
        }
        36 => {
            let ip: [u8; 16] = payload[..16].try_into().expect("sixteen bytes");
            let ip = IpAddr::from(Ipv6Addr::from(ip)).to_canonical();
            Origin::Client(SocketAddr::new(ip, port_at(payload, 32)))
        }
        _ => Origin::Unknown,
    };
    Ok(Some(Header { bytes, origin }))
}

fn port_at(payload: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([payload[at], payload[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(version_command: u8, transport: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        [V2_SIGNATURE, &[version_command, transport], &len, payload].concat()
    }

    /// Reads `header` whole and then cut at every place: the verdict comes with the last byte it needs and
    /// is the same from there on, whatever follows.
    fn check(header: &[u8], expected: Result<Origin, ProxyError>) {
        let shown = header.escape_ascii();
        match expected {
            Ok(origin) => {
                for cut in 0..header.len() {
                    assert_eq!(read(&header[..cut]), Ok(None), "{shown} cut at {cut}");
                }
                let header_of = Header { bytes: header.len(), origin };
                assert_eq!(read(header), Ok(Some(header_of)), "{shown}");
                assert_eq!(read(&[header, b"EHLO a\r\n"].concat()), Ok(Some(header_of)), "{shown}");
            }
            Err(error) => {
                assert_eq!(read(header), Err(error), "{shown}");
                for cut in 0..header.len() {
                    let early = read(&header[..cut]);
                    assert!(early == Ok(None) || early == Err(error), "{shown} cut at {cut}: {early:?}");
                }
            }
        }
    }

    #[test]
    fn version_1() {
        let at = |text: &str| Ok(Origin::Client(text.parse().unwrap()));
        let malformed = || Err(ProxyError::Malformed);
        for (header, expected) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25\r\n", at("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", at("[2001:db8::1]:1")),
            ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", at("192.0.2.1:1")),
            ("PROXY UNKNOWN\r\n", Ok(Origin::Unknown)),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(Origin::Unknown)),
            ("PROXY TCP4 2001:db8::1 ::1 1 2\r\n", malformed()),
            ("PROXY TCP6 192.0.2.1 ::1 1 2\r\n", malformed()),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n", malformed()),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 25 x\r\n", malformed()),
            ("PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n", malformed()),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 65536 25\r\n", malformed()),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 +1 25\r\n", malformed()),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n", malformed()),
            ("PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n", malformed()),
            ("PROXY \r\n", malformed()),
            ("EHLO proxy.test\r\n", Err(ProxyError::Missing)),
            ("PROXX", Err(ProxyError::Missing)),
        ] {
            check(header.as_bytes(), expected);
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        check(endless.as_bytes(), Err(ProxyError::TooLong));
    }

    #[test]
    fn version_2() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 0, 25];
        let v6 = {
            let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
            [&ip("2001:db8::1")[..], &ip("::1"), &[0, 1, 0, 2]].concat()
        };
        let with_tlv = [&v4[..], &[4, 0, 3, 1, 2, 3]].concat();
        let at = |text: &str| Ok(Origin::Client(text.parse().unwrap()));
        check(&v2(0x21, 0x11, &v4), at("192.0.2.1:56324"));
        check(&v2(0x21, 0x21, &v6), at("[2001:db8::1]:1"));
        check(&v2(0x21, 0x11, &with_tlv), at("192.0.2.1:56324"));
        check(&v2(0x20, 0x00, &[]), Ok(Origin::Proxy));
        check(&v2(0x20, 0x11, &v4), Ok(Origin::Proxy));
        check(&v2(0x21, 0x00, &[]), Ok(Origin::Unknown));
        check(&v2(0x21, 0x11, &v4[..11]), Err(ProxyError::Malformed));
        check(&v2(0x21, 0x21, &v4), Err(ProxyError::Malformed));
        check(&v2(0x21, 0x31, &v4), Err(ProxyError::Unknown));
        check(&v2(0x22, 0x11, &v4), Err(ProxyError::Unknown));
        check(&v2(0x11, 0x11, &v4), Err(ProxyError::Unknown));
        check(&v2(0x21, 0x11, &vec![0; limits::PROXY_HEADER_BYTES]), Err(ProxyError::TooLong));
    }
}
