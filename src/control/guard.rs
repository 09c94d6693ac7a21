//! Who may ask what over TCP: the Host header and the token.
//!
//! Owns: both checks, as pure functions of the request. Promises: a web page cannot reach the API
//! through a name that it makes resolve to this machine (DNS rebinding), and comparing a token takes
//! the same time wherever it differs. Must not: apply to the local socket, which the kernel guards.
use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::{Request, StatusCode};

/// Paths that need no token.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// Why a request is not answered.
pub type Refusal = (StatusCode, &'static str);

/// Whether a request that came over TCP may be answered.
pub fn check<B>(request: &Request<B>, token: Option<&str>) -> Result<(), Refusal> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_plain_host) {
        return Err((StatusCode::FORBIDDEN, "the Host header must be an IP address or localhost"));
    }
    if PROBES.contains(&request.uri().path()) {
        return Ok(());
    }
    let Some(token) = token else {
        return Err((
            StatusCode::FORBIDDEN,
            "only health probes are served here: start with --control-token-file",
        ));
    };
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(bearer) {
        Some(given) if is_equal(given.as_bytes(), token.as_bytes()) => Ok(()),
        _ => Err((StatusCode::UNAUTHORIZED, "needs Authorization: Bearer TOKEN, as in --control-token-file")),
    }
}

/// The token of `Bearer TOKEN`; the scheme's name in any case (RFC 9110 §11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

/// `localhost` or an IP literal, with or without a port.
fn is_plain_host(host: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port_is_right = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_is_right && address.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6());
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let name_is_plain = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    name_is_plain && port.is_none_or(is_port)
}

/// Equality in a time that depends on the lengths only.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1", "10.1.2.3:8025", "[::1]", "[2001:db8::1]:8025"]
        {
            assert!(is_plain_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:80:80",
            "[::1",
            "[127.0.0.1]",
            "[::1]x",
            "::1",
            "localhost:",
            "localhost:99999",
            "user@127.0.0.1",
        ] {
            assert!(!is_plain_host(host), "{host}");
        }
    }

    #[test]
    fn requests() {
        const TOKEN: &str = "0123456789abcdef";
        const OK: Option<u16> = None;
        for (path, host, authorization, token, refused) in [
            ("/healthz", Some("127.0.0.1"), None, Some(TOKEN), OK),
            ("/readyz", Some("127.0.0.1"), None, None, OK),
            ("/healthz", Some("evil.example"), None, Some(TOKEN), Some(403)),
            ("/healthz", None, None, Some(TOKEN), Some(403)),
            ("/metrics", Some("127.0.0.1"), None, Some(TOKEN), Some(401)),
            ("/metrics", Some("127.0.0.1"), None, None, Some(403)),
            ("/metrics", Some("127.0.0.1"), Some("Bearer 0123456789abcdef"), None, Some(403)),
            ("/metrics", Some("127.0.0.1"), Some("Bearer 0123456789abcdef"), Some(TOKEN), OK),
            ("/metrics", Some("127.0.0.1"), Some("bearer  0123456789abcdef"), Some(TOKEN), OK),
            ("/metrics", Some("evil.example"), Some("Bearer 0123456789abcdef"), Some(TOKEN), Some(403)),
            ("/metrics", Some("127.0.0.1"), Some("Bearer 0123456789abcdeF"), Some(TOKEN), Some(401)),
            ("/metrics", Some("127.0.0.1"), Some("Bearer 0123456789abcde"), Some(TOKEN), Some(401)),
            ("/metrics", Some("127.0.0.1"), Some("Bearer "), Some(TOKEN), Some(401)),
            ("/metrics", Some("127.0.0.1"), Some("Basic 0123456789abcdef"), Some(TOKEN), Some(401)),
            ("/healthz/../metrics", Some("127.0.0.1"), None, Some(TOKEN), Some(401)),
        ] {
            let mut request = Request::builder().uri(path);
            if let Some(host) = host {
                request = request.header(HOST, host);
            }
            if let Some(authorization) = authorization {
                request = request.header(AUTHORIZATION, authorization);
            }
            let answer = check(&request.body(()).expect("a request"), token);
            assert_eq!(
                answer.err().map(|(status, _)| status.as_u16()),
                refused,
                "{path} {host:?} {authorization:?}"
            );
        }
    }
}
