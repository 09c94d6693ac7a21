//! Dialogues over loopback TCP against the real binary.
//!
//! Owns: one server and one sink for each combination of settings, and the client that speaks a dialogue.
//! Promises: what the next hop receives is compared as well, so that a dialogue shows what the whole server
//! does with a message. Must not: use the server's code.
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::check::{self, Seen};
use crate::common::Server;
use crate::dialogue::{Dialogue, End, ExpectedMessage, Settings};
use crate::sink::Sink;

/// Longest wait for bytes of the server.
const WAIT: Duration = Duration::from_secs(30);

/// A server with its next hop, and what is still to arrive there.
struct Site {
    server: Server,
    sink: Sink,
    due: Vec<Due>,
    /// Removed when the server is gone.
    _spool: tempfile::TempDir,
}

struct Due {
    id: String,
    place: String,
    message: ExpectedMessage,
}

/// The sites of all settings that were asked for.
#[derive(Default)]
pub struct Sites(BTreeMap<Settings, Site>);

impl Sites {
    /// Speaks a dialogue. The messages of it are looked at in [`Sites::finish`].
    pub fn run(&mut self, dialogue: &Dialogue) -> Result<(), String> {
        let site = self.0.entry(dialogue.settings.clone()).or_insert_with(|| Site::start(&dialogue.settings));
        let ids = speak(dialogue, site.server.addr)?;
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
        self.0.into_values().flat_map(Site::finish).collect()
    }
}

impl Site {
    fn start(settings: &Settings) -> Site {
        let sink = Sink::start();
        // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
        let spool = tempfile::Builder::new().prefix("conformance-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let spool = spool.expect("a directory");
        let route = format!("*={}", sink.addr);
        let size = settings.max_message_bytes.to_string();
        let recipients = settings.max_recipients.to_string();
        let relay = if settings.may_relay { "127.0.0.0/8" } else { "192.0.2.0/24" };
        let args = ["--route", &route, "--relay-from", relay, "--max-message-size", &size];
        let args = [&args[..], &["--max-recipients", &recipients]].concat();
        let server = Server::start(spool.path(), &args);
        Site { server, sink, due: Vec::new(), _spool: spool }
    }

    fn finish(self) -> Vec<String> {
        let mut wrong = Vec::new();
        for due in &self.due {
            if let Err(why) = compare(&due.message, &due.id, &self.sink) {
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

fn compare(expected: &ExpectedMessage, id: &str, sink: &Sink) -> Result<(), String> {
    // Recipients are grouped by destination, and repeated ones sent to once.
    let mut recipients = expected.recipients();
    recipients.sort();
    recipients.dedup();
    let mut arrived = sink.wait_for(id, recipients.len()).ok_or("the message did not arrive")?;
    arrived.recipients.sort();
    let expected = ExpectedMessage { recipients, ..expected.clone() };
    let seen = Seen {
        sender: &arrived.sender,
        recipients: arrived.recipients,
        kind: Some(arrived.kind.as_deref().unwrap_or("7BIT")),
        mail: arrived.mail,
        rcpt: arrived.rcpt,
        body: &arrived.body,
        is_stuffed: arrived.is_stuffed,
    };
    check::message(&expected, &seen)?;
    match &expected.trace {
        Some(trace) if !trace.fits(arrived.trace.as_bytes()) => {
            Err(format!("Received: `{}` instead of `{trace}`", arrived.trace))
        }
        _ => Ok(()),
    }
}

/// Speaks a dialogue with the server at `addr`. Returns the ids of the messages it took.
fn speak(dialogue: &Dialogue, addr: SocketAddr) -> Result<Vec<String>, String> {
    let mut stream = TcpStream::connect(addr).map_err(|error| error.to_string())?;
    stream.set_nodelay(true).expect("set");
    stream.set_read_timeout(Some(WAIT)).expect("set");
    stream.set_write_timeout(Some(WAIT)).expect("set");
    let mut ids = Vec::new();
    for (at, turn) in dialogue.turns.iter().enumerate() {
        let last = at + 1 == dialogue.turns.len();
        if turn.ends == Some(End::Close) {
            // The server may close while much is still being written.
            let _ = stream.write_all(&turn.client);
        } else {
            stream.write_all(&turn.client).map_err(|error| format!("turn {at}: {error}"))?;
        }
        if last && turn.ends != Some(End::Close) {
            stream.shutdown(Shutdown::Write).map_err(|error| format!("turn {at}: {error}"))?;
        }
        let replies =
            read(&mut stream, turn.replies.len(), last).map_err(|why| format!("turn {at}: {why}"))?;
        check::replies(&turn.replies, &replies).map_err(|why| format!("turn {at}: {why}"))?;
        ids.extend(ids_in(&replies));
    }
    Ok(ids)
}

/// Reads `count` replies, or to the end of the stream.
fn read(stream: &mut TcpStream, count: usize, to_the_end: bool) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
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
