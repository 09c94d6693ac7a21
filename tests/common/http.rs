//! A small HTTP client, and a server that takes mail from it.
#![allow(dead_code, reason = "each test binary uses its part of this")]
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::Server;

pub const TOKEN: &str = "correct-horse-battery";

/// Starts a server with `--control` on a free port.
pub fn start(spool: &Path, args: &[&str]) -> Server {
    let file = spool.with_extension("token");
    std::fs::write(&file, TOKEN).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("its owner may");
    let control = ["--control", "127.0.0.1:0", "--control-token-file", file.to_str().expect("text")];
    Server::start(spool, &[&control[..], args].concat())
}

/// Posts a body to a path; status, head and body of the answer.
pub fn post(addr: SocketAddr, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).expect("connected");
    let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {token}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("sent");
    // One that is refused for its head need not be read to its end.
    let _ = stream.write_all(body.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}
