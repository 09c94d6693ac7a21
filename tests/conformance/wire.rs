//! Dialogues over loopback TCP against the real binary.
//!
//! Owns: one server and one sink for each combination of settings, and the client that speaks a dialogue.
//! Promises: what the next hop receives is compared as well, so that a dialogue shows what the whole server
//! does with a message. Must not: use the server's code.
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::check::{self, Seen};
use crate::common::Server;
use crate::dialogue::{Dialogue, End, ExpectedMessage, Settings};
use crate::sink::Sink;
use crate::tls::{self, Authority};

/// `user` with the password `secret`.
const USERS: &str = "user:SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0$UdmKRUjfgm0U6mfMFFn/tGaEoriNY2YlrUES5w+4kaA=:ZH6upP+u0RFc4kNZYflxg+txwr3oIlzDM/JXePM5XCY= from=*\n";
/// Longest wait for bytes of the server.
const WAIT: Duration = Duration::from_secs(30);

/// A server with its next hop, and what is still to arrive there.
struct Site {
    server: Server,
    sink: Sink,
    due: Vec<Due>,
    through_tls: bool,
    /// A client that believes the server's certificate.
    client: Arc<ClientConfig>,
    /// Removed when the server is gone.
    _spool: tempfile::TempDir,
}

struct Due {
    id: String,
    place: String,
    message: ExpectedMessage,
}

/// The sites of all settings that were asked for.
pub struct Sites {
    sites: BTreeMap<Settings, Site>,
    /// Every dialogue is spoken through TLS.
    through_tls: bool,
}

impl Sites {
    pub fn new(through_tls: bool) -> Sites {
        Sites { sites: BTreeMap::new(), through_tls }
    }

    /// Speaks a dialogue. The messages of it are looked at in [`Sites::finish`].
    pub fn run(&mut self, dialogue: &Dialogue) -> Result<(), String> {
        let tls = self.through_tls;
        let site = self.sites.entry(dialogue.settings.clone());
        let site = site.or_insert_with(|| Site::start(&dialogue.settings, tls));
        let ids = site.speak(dialogue, tls)?;
        let expected = dialogue.turns.iter().flat_map(|turn| &turn.messages);
        if ids.len() != expected.clone().count() {
            return Err(format!("messages {ids:?} were taken, {} are described", expected.count()));
        }
        let place = format!("{} {}", dialogue.place, dialogue.name);
        let due = |(id, message): (String, &ExpectedMessage)| Due {
            id,
            place: place.clone(),
            message: message.clone(),
        };
        site.due.extend(ids.into_iter().zip(expected).map(due));
        Ok(())
    }

    /// Compares all that arrived with what should have. Returns what is wrong.
    pub fn finish(self) -> Vec<String> {
        self.sites.into_values().flat_map(Site::finish).collect()
    }
}

impl Site {
    fn start(settings: &Settings, tls: bool) -> Site {
        let sink = Sink::start();
        // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
        let spool = tempfile::Builder::new().prefix("conformance-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let spool = spool.expect("a directory");
        let route = format!("*={}", sink.addr);
        let size = settings.max_message_bytes.to_string();
        let recipients = settings.max_recipients.to_string();
        let relay = if settings.may_relay { "127.0.0.0/8" } else { "192.0.2.0/24" };
        let args = ["--route", &route, "--relay-from", relay, "--max-message-size", &size];
        let mut args = [&args[..], &["--max-recipients", &recipients]].concat();
        let authority = Authority::new();
        let pair = authority.sign(spool.path(), "mta", &["mta.test"], false);
        let users = spool.path().join("users");
        std::fs::write(&users, USERS).expect("written");
        let users = users.to_str().expect("UTF-8").to_owned();
        if settings.tls || tls {
            args.extend(pair.flags());
        }
        if settings.users {
            args.extend(["--auth-file", &users]);
        }
        if let Some(domain) = &settings.local_domain {
            args.extend(["--local-domain", domain]);
        }
        if settings.submission {
            args.extend(["--submission", "127.0.0.1:0"]);
        }
        let server = Server::start(&spool.path().join("spool"), &args);
        let client = authority.client(None, rustls::ALL_VERSIONS);
        Site { server, sink, due: Vec::new(), through_tls: tls, client, _spool: spool }
    }

    fn finish(self) -> Vec<String> {
        let mut wrong = Vec::new();
        for due in &self.due {
            if let Err(why) = compare(&due.message, &due.id, &self.sink, self.through_tls) {
                wrong.push(format!("{}: {why}", due.place));
            }
        }
        for id in self.sink.ids() {
            if !self.due.iter().any(|due| due.id == id) {
                wrong.push(format!("the sink got {id}, which no client was told of"));
            }
        }
        if !self.server.stop().success() {
            wrong.push("the server did not end well".into());
        }
        wrong
    }
}

fn compare(expected: &ExpectedMessage, id: &str, sink: &Sink, through_tls: bool) -> Result<(), String> {
    // Recipients are grouped by destination, and repeated ones sent to once.
    let mut recipients = expected.recipients();
    recipients.sort();
    recipients.dedup();
    let mut arrived = sink.wait_for(id, recipients.len()).ok_or("the message did not arrive")?;
    arrived.recipients.sort();
    let expected = ExpectedMessage { recipients, ..expected.clone() };
    let body = match &expected.body {
        // What is no header must not become a part of the server's.
        Some(body) if !begins_with_header(body) => {
            let separated = arrived.body.strip_prefix(b"\r\n");
            separated.ok_or("no empty line before a message without a header")?
        }
        _ => &arrived.body,
    };
    let seen = Seen {
        sender: &arrived.sender,
        recipients: arrived.recipients,
        kind: Some(arrived.kind.as_deref().unwrap_or("7BIT")),
        mail: arrived.mail,
        rcpt: arrived.rcpt,
        body,
        is_stuffed: arrived.is_stuffed,
    };
    check::message(&expected, &seen)?;
    let trace = if through_tls { without_tls(&arrived.trace)? } else { arrived.trace.clone() };
    match &expected.trace {
        Some(expected) if !expected.fits(trace.as_bytes()) => {
            Err(format!("Received: `{}` instead of `{expected}`", arrived.trace))
        }
        _ => Ok(()),
    }
}

/// Whether a message begins with a header field, or with the end of a header.
fn begins_with_header(body: &[u8]) -> bool {
    let line = body.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(colon) = line.iter().position(|b| *b == b':') else { return body.is_empty() || line == b"\r" };
    let name = line[..colon].trim_ascii_end();
    !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

/// The trace that the same message would have had without TLS. What says that there was TLS must be there: the
/// comment, and the S of the protocol's name, which plain SMTP has not (RFC 3848).
fn without_tls(trace: &str) -> Result<String, String> {
    let wrong = || format!("Received through TLS: `{trace}`");
    let (before, behind) = trace.split_once(" (using TLSv1.").ok_or_else(wrong)?;
    let (_, behind) = behind.split_once(')').ok_or_else(wrong)?;
    let (by, rest) = behind.split_once(" with ").ok_or_else(wrong)?;
    let (protocol, rest) = rest.split_once(' ').ok_or_else(wrong)?;
    let protocol = match protocol {
        "SMTP" => "SMTP",
        "ESMTPS" => "ESMTP",
        "ESMTPSA" => "ESMTPA",
        "UTF8SMTPS" => "UTF8SMTP",
        "UTF8SMTPSA" => "UTF8SMTPA",
        _ => return Err(wrong()),
    };
    Ok(format!("{before}{by} with {protocol} {rest}"))
}

impl Site {
    /// Speaks a dialogue. Returns the ids of the messages that the server took.
    fn speak(&self, dialogue: &Dialogue, through_tls: bool) -> Result<Vec<String>, String> {
        let addr = match dialogue.settings.submission {
            true => self.server.address_of("submission"),
            false => self.server.addr,
        };
        let mut line = Line::connect(addr).map_err(|error| error.to_string())?;
        if through_tls {
            line = self.behind_starttls(line)?;
        }
        let mut ids = Vec::new();
        for (at, turn) in dialogue.turns.iter().enumerate() {
            let wrong = |why: String| format!("turn {at}: {why}");
            let last = at + 1 == dialogue.turns.len();
            let written = line.write(&turn.client);
            // The server may close while much is still being written.
            if turn.ends != Some(End::Close) {
                written.map_err(|error| wrong(error.to_string()))?;
            }
            if last && turn.ends != Some(End::Close) {
                line.hang_up().map_err(|error| wrong(error.to_string()))?;
            }
            let replies = line.read(turn.replies.len(), last).map_err(wrong)?;
            check::replies(&turn.replies, &replies).map_err(wrong)?;
            ids.extend(ids_in(&replies));
            if turn.handshake {
                line = self.handshake(line).map_err(wrong)?;
            }
        }
        Ok(ids)
    }

    fn handshake(&self, line: Line) -> Result<Line, String> {
        let Stream::Plain(tcp) = line.stream else { return Err("TLS is there already".into()) };
        let stream = tls::handshake(tcp, &self.client, "mta.test").map_err(|error| error.to_string())?;
        Ok(Line { stream: Stream::Tls(Box::new(stream)), ahead: line.ahead })
    }

    /// Begins TLS before the dialogue does; the greeting that came in the clear stays for its first turn.
    fn behind_starttls(&self, mut line: Line) -> Result<Line, String> {
        let greeting = line.read(1, false)?;
        line.write(b"EHLO client.test\r\nSTARTTLS\r\n").map_err(|error| error.to_string())?;
        line.read(2, false)?;
        line.ahead = greeting;
        self.handshake(line)
    }
}

/// A client's connection.
struct Line {
    stream: Stream,
    /// Bytes that were read already.
    ahead: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tls::TlsStream>),
}

impl Line {
    fn connect(addr: SocketAddr) -> std::io::Result<Line> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_write_timeout(Some(WAIT))?;
        Ok(Line { stream: Stream::Plain(stream), ahead: Vec::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// Nothing more will be said.
    fn hang_up(&mut self) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()
            }
        }
    }

    /// Reads `count` replies, or to the end of the stream.
    fn read(&mut self, count: usize, to_the_end: bool) -> Result<Vec<u8>, String> {
        let all = std::mem::take(&mut self.ahead);
        match &mut self.stream {
            Stream::Plain(stream) => read(stream, all, count, to_the_end),
            Stream::Tls(stream) => read(&mut **stream, all, count, to_the_end),
        }
    }
}

fn read(stream: &mut impl Read, mut all: Vec<u8>, count: usize, to_the_end: bool) -> Result<Vec<u8>, String> {
    let mut buffer = [0; 4096];
    while to_the_end || whole_replies(&all) < count {
        match stream.read(&mut buffer) {
            Ok(0) if to_the_end => break,
            Ok(0) => return Err(format!("the server closed after `{}`", all.escape_ascii())),
            Ok(bytes) => all.extend_from_slice(&buffer[..bytes]),
            Err(error) => return Err(format!("{error} after `{}`", all.escape_ascii())),
        }
    }
    Ok(all)
}

fn whole_replies(bytes: &[u8]) -> usize {
    bytes
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.ends_with(b"\n") && line.get(3) != Some(&b'-'))
        .count()
}

/// The ids in `250 2.0.0 ID queued`.
fn ids_in(replies: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(replies);
    let id = |line: &str| Some(line.strip_prefix("250 2.0.0 ")?.strip_suffix(" queued")?.to_string());
    text.split("\r\n").filter_map(id).collect()
}
