//! Looking into a spool without its server, and what becomes of mail that the disk has damaged.
mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{BINARY, Client, Peer, Server, default_reply};
use serde_json::Value;

/// Nothing listens on the discard port: mail stays queued.
const NOWHERE: &str = "*=127.0.0.1:9";

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// `ringpost spool …`: whether it succeeded, and its output.
fn spool(dir: &Path, args: &[&str]) -> (bool, Vec<u8>) {
    let output =
        Command::new(BINARY).arg("spool").args(args).arg("--spool").arg(dir).output().expect("it runs");
    (output.status.success(), output.stdout)
}

fn json(dir: &Path, args: &[&str]) -> (bool, Value) {
    let (good, out) = spool(dir, &[args, &["--json"]].concat());
    (good, serde_json::from_slice(&out).expect("JSON"))
}

/// `spool dump --json`: one object per message.
fn dump(dir: &Path) -> Vec<Value> {
    let (good, out) = spool(dir, &["dump", "--json", "--header", "Subject"]);
    assert!(good);
    String::from_utf8(out).expect("text").lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
}

fn body(subject: &str, bytes: usize) -> String {
    let mut body = format!("Subject: {subject}\r\n\r\n..a line that begins with a dot\r\n");
    while body.len() < bytes {
        body.push_str(&format!("{subject} and some more of it, line {}\r\n", body.len()));
    }
    body
}

/// Flips a bit of the first byte behind each place where `text` stands in a segment.
fn damage(spool: &Path, text: &str) -> usize {
    let mut places = 0;
    for log in std::fs::read_dir(spool).expect("a spool") {
        let log = log.expect("read").path();
        if !log.file_name().expect("a name").to_string_lossy().starts_with("log-") {
            continue;
        }
        for segment in std::fs::read_dir(log).expect("a log") {
            let path = segment.expect("read").path();
            let bytes = std::fs::read(&path).expect("readable");
            let file = OpenOptions::new().write(true).open(&path).expect("writable");
            for at in memchr::memmem::find_iter(&bytes, text.as_bytes()) {
                let at = at + text.len();
                file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
                places += 1;
            }
            file.sync_all().expect("synced");
        }
    }
    places
}

fn quarantined(spool: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(spool.join("quarantine")).into_iter().flatten();
    let paths = entries.map(|e| e.expect("read").path());
    paths.filter(|p| p.extension().is_some_and(|e| e == "bin")).collect()
}

fn fill(addr: std::net::SocketAddr) {
    let mut client = Client::connect(addr);
    for (subject, to, bytes) in [
        ("small", &["a@one.test"][..], 500),
        ("several", &["b@two.test", "a@one.test", "c@one.test"], 4_000),
        ("large", &["a@one.test", "d@three.test"], 300_000),
        ("largest", &["e@three.test"], 1_200_000),
    ] {
        let reply = client.deliver("s@sender.test", to, &body(subject, bytes));
        assert!(reply.starts_with("250"), "{reply}");
    }
}

#[test]
fn a_spool_is_read_beside_its_server_and_after_it() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--route", NOWHERE, "--retry-schedule", "1h", "--workers", "1"]);
    fill(server.addr);
    for running in [true, false] {
        if !running {
            // Nothing is tidied up behind the reader's back.
            server.signal("KILL");
            std::thread::sleep(Duration::from_millis(300));
        }
        let before = listing(dir.path());
        let messages = dump(dir.path());
        let subjects: Vec<&str> =
            messages.iter().map(|m| m["headers"]["Subject"].as_str().expect("a subject")).collect();
        assert_eq!(subjects, ["small", "several", "large", "largest"], "oldest first");
        let several = &messages[1];
        assert_eq!(several["sender"], "s@sender.test");
        let to: Vec<&str> = several["recipients"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|r| r["address"].as_str().expect("text"))
            .collect();
        assert_eq!(to, ["a@one.test", "c@one.test", "b@two.test"]);
        for (message, (subject, bytes)) in messages.iter().zip([
            ("small", 500),
            ("several", 4_000),
            ("large", 300_000),
            ("largest", 1_200_000),
        ]) {
            let id = message["id"].as_str().expect("text");
            let (good, file) = spool(dir.path(), &["dump", id]);
            assert!(good);
            let file = String::from_utf8(file).expect("text");
            let (trace, text) = file.split_at(file.find("Subject:").expect("a subject"));
            assert!(trace.starts_with("Received: from client.test") && trace.contains(id), "{trace}");
            let wanted = body(subject, bytes).replace("\r\n..a line", "\r\n.a line");
            assert!(text == wanted, "{subject}: {} bytes for {}", text.len(), wanted.len());
            let (good, envelope) = json(dir.path(), &["dump", id]);
            assert!(good);
            assert_eq!((&envelope["id"], &envelope["bytes"]), (&message["id"], &Value::from(file.len())));
        }
        let (good, verified) = json(dir.path(), &["verify"]);
        assert!(good, "{verified}");
        assert_eq!(verified["logs"][0]["messages"], 4);
        let (good, stat) = json(dir.path(), &["stat"]);
        assert!(good);
        assert_eq!(stat["logs"][0]["pending_recipients"], 7);
        if !running {
            assert_eq!(listing(dir.path()), before, "a reader changes nothing");
        }
    }
    assert!(!spool(dir.path(), &["dump", "0000000000001"]).0, "no such message");
    assert!(!spool(&dir.path().join("log-0000"), &["verify"]).0, "no spool");
}

#[test]
fn a_log_that_cannot_be_read_does_not_hide_the_others() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--route", NOWHERE, "--retry-schedule", "1h", "--workers", "2"]);
    fill(server.addr);
    server.kill();
    // A segment of another spool: its header says so, and no group in it is this spool's.
    let mut stranger = b"rpSEGM\r\n\x01\0\0\0\x01\0\0\0another!".to_vec();
    stranger.resize(64 * 1024, 0);
    std::fs::write(dir.path().join("log-0000/seg-000999"), stranger).expect("written");
    let (good, verified) = json(dir.path(), &["verify"]);
    assert!(!good);
    let logs: Vec<_> = verified["logs"].as_array().expect("a list").iter().map(|l| &l["log"]).collect();
    assert_eq!(logs, [1], "{verified}");
    let found = &verified["damage"];
    assert!(found[0]["what"].as_str().is_some_and(|what| what.contains("another spool")), "{verified}");
    assert_eq!((&found[0]["log"], &found[0]["segment"]), (&Value::from(0), &Value::from(999)));
}

/// Names, lengths and times of change of everything in a spool.
fn listing(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("read");
        let meta = entry.metadata().expect("there");
        if meta.is_dir() {
            found.extend(listing(&entry.path()));
        }
        found.push((entry.path(), meta.len(), meta.modified().expect("a time")));
    }
    found.sort();
    found
}

#[test]
fn damage_costs_what_is_damaged_and_is_told_saved_and_counted() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--route", NOWHERE, "--retry-schedule", "1h", "--workers", "1"]);
    fill(server.addr);
    server.kill();
    assert!(damage(dir.path(), "several and some more of it, line 2") > 0, "all in one record");
    let (good, verified) = json(dir.path(), &["verify"]);
    assert!(!good);
    let found = verified["damage"].as_array().expect("a list");
    assert_eq!(found.len(), 1, "{verified}");
    assert!(found[0]["segment"].is_u64() && found[0]["offset"].as_u64() > Some(0), "{verified}");
    assert!(quarantined(dir.path()).is_empty(), "a reader changes nothing");

    let server = Server::start(dir.path(), &["--route", NOWHERE, "--retry-schedule", "1h"]);
    let said = server.said.lock().expect("not poisoned").clone();
    assert!(said.contains("ERROR") && said.contains("damage on the disk"), "{said}");
    let pieces = quarantined(dir.path());
    assert_eq!(pieces.len(), 1, "{pieces:?}");
    let log = server.said.clone();
    let bytes = std::fs::read(&pieces[0]).expect("readable");
    assert!(memchr::memmem::find(&bytes, b"Subject: several").is_some(), "the piece is the record");
    assert!(
        std::fs::read_to_string(pieces[0].with_extension("txt")).expect("there").contains("damaged at byte")
    );
    let status = server.stop();
    assert!(status.success(), "{status}: {}", log.lock().expect("not poisoned"));
    let left = dump(dir.path());
    let left: Vec<&str> = left.iter().filter_map(|m| m["headers"]["Subject"].as_str()).collect();
    assert_eq!(left, ["small", "large", "largest"]);
}

#[test]
fn a_message_damaged_while_it_waits_is_quarantined_and_the_rest_is_delivered() {
    let dir = directory();
    let open = Arc::new(AtomicBool::new(false));
    let gate = open.clone();
    let peer = Peer::scripted(move |verb, _| match verb {
        "connect" if !gate.load(Ordering::Relaxed) => Some("421 4.3.2 not yet".into()),
        _ => Some(default_reply(verb)),
    });
    let route = peer.route();
    let args = ["--route", &route, "--retry-schedule", "2s", "--workers", "2", "--control", "127.0.0.1:0"];
    let server = Server::start(dir.path(), &args);
    fill(server.addr);
    let mut client = Client::connect(server.addr);
    for n in 0..20 {
        let reply = client.deliver("s@sender.test", &["x@four.test"], &body(&format!("filler{n}"), 800));
        assert!(reply.starts_with("250"), "{reply}");
    }
    // What recovery has read lies in no cache.
    server.kill();
    let server = Server::start(dir.path(), &args);
    let damaged = damage(dir.path(), "several and some more of it, line 2")
        + damage(dir.path(), "large and some more of it, line 2001")
        + damage(dir.path(), "filler7 and some more of it, line 2");
    assert!(damaged >= 2, "{damaged} places");
    open.store(true, Ordering::Relaxed);
    // 19 fillers, `small`, `largest`.
    let arrived = peer.wait_for(21, Duration::from_secs(40));
    for gone in ["several", "large", "filler7"] {
        assert!(
            arrived.iter().all(|a| !a.data.contains(&format!("Subject: {gone}\r\n"))),
            "{gone} was delivered"
        );
    }
    let start = std::time::Instant::now();
    let left = loop {
        let (status, out, _) =
            common::run(&["queue", "summary", "--json", "--spool", dir.path().to_str().expect("text")]);
        assert!(status.success());
        let report: Value = serde_json::from_str(&out).expect("JSON");
        let counters = report["report"]["counters"].clone();
        if counters["queued_messages_now"] == 0 || start.elapsed() > Duration::from_secs(20) {
            break counters;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(left["queued_messages_now"], 0, "{left}");
    assert_eq!(left["quarantined_messages"], 3, "{left}");
    assert_eq!(quarantined(dir.path()).len(), 3);
    // The slots of the damaged messages are nobody's: new mail arrives once each.
    let before = arrived.len();
    for n in 0..10 {
        let to = ["a@one.test", "b@two.test", "c@three.test"];
        assert!(
            client_of(&server)
                .deliver("s@sender.test", &to, &body(&format!("new{n}"), 600))
                .starts_with("250")
        );
    }
    peer.wait_for(before + 30, Duration::from_secs(20));
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(peer.arrived.lock().expect("not poisoned").len(), before + 30);
    assert!(server.stop().success());
    assert!(dump(dir.path()).is_empty());
}

fn client_of(server: &Server) -> Client {
    Client::connect(server.addr)
}

/// A reader written from docs/LOG_FORMAT.md alone: what it prints, how many indexes it held against their
/// segments, and how many copies of messages it found; or nothing where it cannot run. It writes each message
/// into `files`.
fn independent(dir: &Path, files: &Path) -> Option<(Vec<u8>, usize, usize)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/read_log.py");
    let output = Command::new("python3").arg(script).arg(dir).arg(files).output();
    match output {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let sum = |before: &str, after: &str| -> usize {
                let number = |l: &str| l.split(before).nth(1)?.split(after).next()?.parse::<usize>().ok();
                said.lines().filter_map(number).sum()
            };
            Some((output.stdout, sum(": ", " indexes"), sum("segments, ", " copies")))
        }
        Ok(output) if output.status.code() != Some(77) => {
            panic!("{}", String::from_utf8_lossy(&output.stderr))
        }
        _ => {
            println!("skipped: needs python3 and `pip install xxhash`");
            None
        }
    }
}

#[test]
fn a_reader_written_from_the_document_finds_the_same() {
    let dir = directory();
    // Delivers to one.test, defers two.test, refuses c@: states of every kind. Few and small segments, so
    // that survivors are copied forward; what is delivered at once has the log go round.
    let peer = Peer::scripted(|verb, line| match verb {
        "RCPT" if line.contains("two.test>") || line.contains("@three.test") => {
            Some("450 4.2.1 later".into())
        }
        "RCPT" if line.contains("<c@") => Some("550 5.1.1 never".into()),
        _ => Some(default_reply(verb)),
    });
    let route = peer.route();
    let args = [
        ["--route", &route, "--retry-schedule", "1s,1h", "--workers", "1"],
        ["--segment-size", "1MiB", "--spool-limit", "12MiB", "--max-message-size", "1MiB"],
    ]
    .concat();
    let (mut indexes, mut copies) = (0, 0);
    for round in 0..3 {
        let server = Server::start(dir.path(), &args);
        for n in 0..8 {
            let mut client = client_of(&server);
            let to = [
                "<a@one.test>",
                "<b@two.test> NOTIFY=DELAY,FAILURE ORCPT=rfc822;old+2Bb@two.test",
                "<j\u{fc}@b\u{fc}cher.two.test> NOTIFY=NEVER",
                "<c@one.test>",
            ];
            let from = ["<s@sender.test> SMTPUTF8 ENVID=a+2Bb RET=HDRS", "<s@sender.test> SMTPUTF8 RET=FULL"];
            let body = body(&format!("several{round}-{n}"), 3_000);
            let reply = client.deliver_with(from[n % 2], &to, &body);
            assert!(reply.starts_with("250"), "{reply}");
        }
        for n in 0..4 {
            let to = ["a@one.test", "e@three.test"];
            let reply = client_of(&server).deliver("", &to, &body(&format!("large{round}-{n}"), 150_000));
            assert!(reply.starts_with("250"), "{reply}");
        }
        for n in 0..40 {
            let body = body(&format!("passing{round}-{n}"), 100_000);
            let reply = client_of(&server).deliver("s@sender.test", &["a@one.test"], &body);
            assert!(reply.starts_with("250"), "{reply}");
        }
        std::thread::sleep(Duration::from_millis(2500));
        let decide = |args: &[&str]| {
            let args = [&["queue"], args, &["--spool", dir.path().to_str().expect("text")]].concat();
            let (status, said, errors) = common::run(&args);
            assert!(status.success(), "{said}{errors}");
        };
        match round {
            0 => decide(&["hold", "--recipient", "b@two.test", "--reason", "looked at"]),
            1 => decide(&["release", "--recipient", "b@two.test"]),
            _ => decide(&["hold", "--recipient", "b@two.test", "--reason", "once more"]),
        }
        decide(&["move", "--recipient", "e@three.test", "--to", "other.two.test"]);
        server.kill();
        let files = directory();
        let Some((listed, indexed, copied)) = independent(dir.path(), files.path()) else { return };
        (indexes, copies) = (indexes + indexed, copies + copied);
        let theirs: Vec<Value> = String::from_utf8(listed)
            .expect("text")
            .lines()
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect();
        let ours = dump(dir.path());
        let ids = |all: &[Value]| -> Vec<String> { all.iter().map(|m| m["id"].to_string()).collect() };
        assert_eq!(ids(&theirs), ids(&ours), "round {round}");
        assert!(ours.len() >= 12 * (round + 1), "{} messages", ours.len());
        let mut decided = 0;
        for (theirs, ours) in theirs.iter().zip(&ours) {
            for field in [
                "log",
                "sender",
                "client",
                "user",
                "body_kind",
                "bytes",
                "smtputf8",
                "requiretls",
                "ret",
                "envid",
            ] {
                assert_eq!(theirs[field], ours[field], "{field} of {ours}");
            }
            let states = |m: &Value| -> Vec<(Value, Value, Value)> {
                let all = m["recipients"].as_array().expect("a list");
                all.iter()
                    .map(|r| (r["address"].clone(), r["state"].clone(), r["attempts"].clone()))
                    .collect()
            };
            assert_eq!(states(theirs), states(ours), "{}", ours["id"]);
            for (theirs, ours) in theirs["recipients"]
                .as_array()
                .into_iter()
                .flatten()
                .zip(ours["recipients"].as_array().expect("a list"))
            {
                assert_eq!(theirs["next_attempt_secs"].is_null(), ours["next_attempt"].is_null(), "{ours}");
                for field in ["notify", "original", "decided"] {
                    assert_eq!(theirs[field], ours[field], "{field} of {ours}");
                }
                decided += usize::from(!ours["decided"].is_null());
            }
        }
        let held = if round == 1 { 0 } else { 8 * (round + 1) };
        assert_eq!(decided, held + 4 * (round + 1), "held and moved in round {round}");
        for message in ours.iter().step_by(5) {
            let id = message["id"].as_str().expect("text");
            let (good, file) = spool(dir.path(), &["dump", id]);
            assert!(good && std::fs::read(files.path().join(id)).expect("written") == file, "{id}");
        }
    }
    assert!(indexes > 0, "full segments are sealed");
    assert!(copies > 0, "survivors are copied forward");
}
