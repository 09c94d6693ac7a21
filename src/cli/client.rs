//! A local command's connection to its server: blocking HTTP/1.1 over `SPOOL/control.sock`.
//!
//! Owns: one request and its answer. Promises: it ends, whatever the other side does (time and size
//! are bounded), and every error says what to do. Must not: be a general HTTP client: it asks for
//! `Connection: close` and reads to the end or to Content-Length.
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::control::socket;
use crate::limits;

/// Wait for more of an answer: longer than the server itself waits for its workers.
const ANSWER_WAIT: Duration = Duration::from_secs(2 * limits::CONTROL_REPLY_WAIT.as_secs());

/// Wait for the answer to mail: longer than the server itself waits until it is stored.
const MAIL_ANSWER_WAIT: Duration = Duration::from_secs(limits::INJECTION_REPLY_WAIT.as_secs() + 10);

/// `method` is GET, POST or DELETE; `path` holds the query. The answer must be 200 with JSON.
pub fn request<T: DeserializeOwned>(spool: &Path, method: &str, path: &str) -> anyhow::Result<T> {
    exchange(spool, &format!("{method} {path} HTTP/1.1\r\n"), b"", ANSWER_WAIT)
}

/// Posts JSON, which is mail. The answer must be 200 with JSON.
pub fn post<T: DeserializeOwned>(spool: &Path, path: &str, body: &[u8]) -> anyhow::Result<T> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
    exchange(spool, &head, body, MAIL_ANSWER_WAIT)
}

fn exchange<T: DeserializeOwned>(spool: &Path, head: &str, body: &[u8], wait: Duration) -> anyhow::Result<T> {
    let mut stream = socket::connect(spool).map_err(|error| no_server(spool, &error))?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let head = format!("{head}Host: localhost\r\nConnection: close\r\n\r\n");
    let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    let read = stream.take(limits::CONTROL_ANSWER_BYTES).read_to_end(&mut answer);
    // A server that does not want all of it has said why before it closed.
    if answer.is_empty() {
        written.context("the server does not take the request")?;
        read.context("the server does not answer: is it stopped or overloaded?")?;
    }
    let (status, body) = parse(&answer)?;
    if status != 200 {
        let error = serde_json::from_slice::<serde_json::Value>(body).ok();
        let text = error.as_ref().and_then(|e| e["error"].as_str()).unwrap_or("no reason given");
        bail!("{}", crate::mail::text::printable(text.as_bytes()));
    }
    serde_json::from_slice(body).context("the server's answer is not understood: is it another version?")
}

fn no_server(spool: &Path, error: &io::Error) -> anyhow::Error {
    let shown = spool.display();
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("no permission for spool {shown}: run this as the server's user or as root")
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory => anyhow::anyhow!(
            "no server is running on spool {shown}; start it with: ringpost serve --spool {shown}"
        ),
        _ => anyhow::anyhow!("cannot reach the server of spool {shown}: {error}"),
    }
}

/// Status and body of a whole answer (RFC 9112 §4, §6.3).
fn parse(answer: &[u8]) -> anyhow::Result<(u16, &[u8])> {
    let end =
        memchr::memmem::find(answer, b"\r\n\r\n").context("the server's answer is cut off: try again")?;
    let head = std::str::from_utf8(&answer[..end]).context("the server's answer is not HTTP")?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let mut status_line = lines.next().unwrap_or_default().split(' ');
    let is_http = status_line.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = status_line.next().and_then(|code| code.parse().ok()).filter(|_| is_http);
    let status = status.context("the server's answer is not HTTP")?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("the server's answer is encoded in a way not known here");
        }
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse().context("the server's answer is not HTTP")?;
            return match body.get(..length) {
                Some(body) => Ok((status, body)),
                None => bail!("the server's answer is cut off: try again"),
            };
        }
    }
    Ok((status, body))
}

/// A path with its query: `pairs` without a value are left out.
pub fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let mut separator = '?';
    for (name, value) in pairs.iter().filter_map(|(name, value)| value.as_ref().map(|v| (name, v))) {
        out.push(separator);
        separator = '&';
        out.push_str(name);
        out.push('=');
        out.push_str(&path_part(value));
    }
    out
}

/// A text as one part of a path or query, percent-encoded (RFC 3986 §2.1).
pub fn path_part(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        for (answer, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}"),
            ("HTTP/1.1 200 OK\r\ncontent-length:2\r\n\r\n{}more", 200, "{}"),
            ("HTTP/1.1 404 Not Found\r\n\r\nto the end", 404, "to the end"),
            ("HTTP/1.0 204\r\n\r\n", 204, ""),
        ] {
            assert_eq!(parse(answer.as_bytes()).expect("understood"), (status, body.as_bytes()));
        }
        let bad: [&[u8]; 7] = [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 OK\r\n\r\n",
            b"220 mail ESMTP\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ];
        for answer in bad {
            assert!(parse(answer).is_err(), "{}", answer.escape_ascii());
        }
    }

    #[test]
    fn queries() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with_query("/q", &[("a", None)]), "/q");
        assert_eq!(with_query("/q", &[("a", None), ("b", some("x")), ("c", some(""))]), "/q?b=x&c=");
        assert_eq!(with_query("/q", &[("s", some("a+b&c@d e/é"))]), "/q?s=a%2Bb%26c%40d%20e%2F%C3%A9");
    }

    #[test]
    fn without_a_server_the_remedy_is_said() {
        let spool = tempfile::tempdir().expect("a temporary directory");
        for path in [spool.path().to_owned(), spool.path().join("none")] {
            let error = request::<serde_json::Value>(&path, "GET", "/").expect_err("nobody listens");
            let expected = format!(
                "no server is running on spool {0}; start it with: ringpost serve --spool {0}",
                path.display()
            );
            assert_eq!(error.to_string(), expected);
        }
        // A socket without a server, as kill -9 leaves it.
        drop(socket::bind(spool.path()).expect("bound"));
        let error = request::<serde_json::Value>(spool.path(), "GET", "/").expect_err("nobody listens");
        assert!(error.to_string().starts_with("no server is running"), "{error}");
    }

    #[test]
    fn a_server_that_says_no_is_quoted() {
        let spool = tempfile::tempdir().expect("a temporary directory");
        let listener = socket::bind(spool.path()).expect("bound");
        listener.set_nonblocking(false).expect("a socket option");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 256];
            let read = stream.read(&mut request).expect("a request");
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\n\r\n{\"error\":\"no \\u001b such\"}")
                .expect("written");
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let error = request::<serde_json::Value>(spool.path(), "DELETE", "/x").expect_err("404");
        assert_eq!(error.to_string(), "no \\x1b such");
        assert!(server.join().expect("the server ends").starts_with("DELETE /x HTTP/1.1\r\n"));
    }
}
