//! Mail over HTTP, through the real binary: taken as SMTP's is, refused as SMTP's is, and kept.
mod common;
#[path = "common/http.rs"]
mod http;

use std::path::Path;
use std::time::Duration;

use common::{Peer, Server, run, wait_until};
use http::{TOKEN, post, start};
use ringpost_loadgen::{LoadArgs, Silent, Sink, SinkArgs, reconcile, run_load};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const PATH: &str = "/api/v1/messages";
const BODY: &str = "From: a@sender.test\r\nSubject: hi\r\n\r\nfirst\r\n.second\r\n";

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("inject-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn mail(to: &[&str], message: &str) -> Value {
    json!({"from": "a@sender.test", "to": to, "message": message})
}

fn inject(server: &Server, body: &Value) -> (u16, Value) {
    let (status, answer) = post(server.address_of("control"), PATH, Some(TOKEN), &body.to_string());
    (status, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{status} {answer}: {error}")))
}

fn accepted(server: &Server, body: &Value) -> String {
    let (status, answer) = inject(server, body);
    assert_eq!(status, 200, "{answer}");
    answer["id"].as_str().expect("an id").to_owned()
}

fn queued(spool: &Path) -> usize {
    let (status, out, err) = run(&["queue", "list", "--json", "--spool", spool.to_str().expect("text")]);
    assert!(status.success(), "{err}");
    serde_json::from_str::<Vec<Value>>(&out).expect("JSON").len()
}

#[test]
fn accepted_mail_is_delivered_with_a_trace() {
    let (dir, peer) = (directory(), Peer::willing());
    let (spool, events) = (dir.path().join("spool"), dir.path().join("events"));
    let events_flag = events.to_str().expect("text");
    let server = start(&spool, &["--route", &peer.route(), "--workers", "2", "--event-log", events_flag]);
    let id = accepted(&server, &mail(&["b@one.test"], BODY));
    let got = peer.wait_for(1, LIMIT).remove(0);
    assert_eq!((got.from.as_str(), &got.to[..]), ("a@sender.test", &["b@one.test".to_owned()][..]));
    let (head, text) = got.data.split_once("\n\n").expect("a header");
    assert_eq!(text, "first\n.second\n", "the dot is the message's own");
    assert!(head.starts_with("Received: from [127.0.0.1] ([127.0.0.1])\n"), "{head}");
    assert!(head.contains(&format!("by mta.test with HTTP id {id}\n\tfor <b@one.test>;")), "{head}");
    assert_eq!((head.matches("\nDate: ").count(), head.matches("\nMessage-ID: <").count()), (1, 1), "{head}");
    assert!(head.ends_with("\nFrom: a@sender.test\nSubject: hi"), "{head}");
    let received = |log: &str| log.lines().any(|l| l.contains("\"received\"") && l.contains(&id));
    wait_until("the event is written", || std::fs::read_to_string(&events).is_ok_and(|log| received(&log)));

    // Several at once, some of them not: each has its own answer.
    let long = format!("Subject: x\r\n\r\n{}", "x".repeat(70_000));
    let list =
        json!([mail(&["c@one.test"], BODY), mail(&["c@one.test"], &long), mail(&["d@two.test"], BODY)]);
    let (status, answer) = inject(&server, &list);
    assert_eq!(status, 207, "{answer}");
    assert_eq!(answer[1], json!({"status": 422, "error": "550 5.6.0 Message refused: a line is too long"}));
    assert!(answer[0]["id"].is_string() && answer[2]["id"].is_string(), "{answer}");
    let mut to: Vec<String> = peer.wait_for(3, LIMIT)[1..].iter().map(|m| m.to.concat()).collect();
    to.sort();
    assert_eq!(to, ["c@one.test", "d@two.test"]);
    assert!(server.stop().success());
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = start(&dir.path().join("spool"), &["--route", &peer.route(), "--workers", "1"]);
    // Around the sizes at which a body leaves the copy path and fills fragments.
    for lines in [1, 1_000, 6_550, 6_554, 6_560, 26_000, 26_300, 52_500, 120_000, 500_000] {
        let text: String = (0..lines).map(|n| format!(".{n:07}\n")).collect();
        let id = accepted(&server, &mail(&["b@one.test"], &format!("Subject: {lines}\n\n{text}")));
        let got = peer.wait_for(1, LIMIT).remove(0);
        let (head, data) = got.data.split_once("\n\n").expect("a header");
        assert!(head.contains(&id) && head.ends_with(&format!("Subject: {lines}")), "{head}");
        assert!(data == text, "{lines} lines: {} of {} bytes", data.len(), text.len());
        peer.arrived.lock().expect("not poisoned").clear();
    }
    assert!(server.stop().success());
}

#[test]
fn what_was_accepted_survives_a_kill() {
    let (dir, peer) = (directory(), Peer::willing());
    let spool = dir.path().join("spool");
    let server = start(&spool, &["--route", "*=127.0.0.1:9", "--workers", "2", "--retry-schedule", "1h"]);
    let large = format!("Subject: large\r\n\r\n{}", "0123456789\r\n".repeat(100_000));
    for n in 0..10 {
        accepted(&server, &mail(&[&format!("b{n}@one.test")], BODY));
    }
    accepted(&server, &mail(&["large@one.test"], &large));
    server.kill();
    let server = Server::start(&spool, &["--route", &peer.route()]);
    assert!(run(&["queue", "retry", "--all", "--spool", spool.to_str().expect("text")]).0.success());
    let mut to: Vec<String> = peer.wait_for(11, LIMIT).iter().map(|m| m.to.concat()).collect();
    to.sort();
    to.dedup();
    assert_eq!(to.len(), 11, "{to:?}");
    assert!(server.stop().success());
}

#[test]
fn a_full_spool_refuses_until_there_is_room() {
    let (dir, peer) = (directory(), Peer::willing());
    let spool = dir.path().join("spool");
    let shared =
        ["--workers", "1", "--segment-size", "1MiB", "--spool-limit", "8MiB", "--max-message-size", "4MiB"];
    let server =
        start(&spool, &[&shared[..], &["--route", "*=127.0.0.1:9", "--retry-schedule", "1h"]].concat());
    let message = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(8000));
    let mut taken = 0;
    let (status, answer) = loop {
        let (status, answer) = inject(&server, &mail(&["b@one.test"], &message));
        if status != 200 {
            break (status, answer);
        }
        taken += 1;
        assert!(taken < 200, "eight megabytes hold no more");
    };
    assert_eq!(status, 507);
    assert_eq!(answer["error"], "452 4.3.1 No room for more mail, try again later");
    assert!(taken > 10, "{taken}");
    assert_eq!(queued(&spool), taken, "what was refused is not there");
    assert!(server.stop().success());

    let server =
        start(&spool, &[&shared[..], &["--route", &peer.route(), "--retry-schedule", "1h"]].concat());
    assert!(run(&["queue", "retry", "--all", "--spool", spool.to_str().expect("text")]).0.success());
    peer.wait_for(taken, LIMIT);
    wait_until("there is room again", || inject(&server, &mail(&["b@one.test"], &message)).0 == 200);
    assert!(server.stop().success());
}

#[test]
fn only_who_has_the_token_may_send_and_only_what_smtp_would_take() {
    let (dir, peer) = (directory(), Peer::willing());
    let spool = dir.path().join("spool");
    let server = start(
        &spool,
        &["--route", &peer.route(), "--workers", "1", "--max-message-size", "64KiB", "--max-recipients", "2"],
    );
    let addr = server.address_of("control");
    let good = mail(&["b@one.test"], BODY).to_string();
    for token in [None, Some("wrong-horse-battery"), Some("")] {
        assert_eq!(post(addr, PATH, token, &good).0, 401, "{token:?}");
    }
    let hops = "Received: from a by b; x\r\n".repeat(101);
    for (message, status, error) in [
        ("x\r\n".repeat(30_000), 413, "552 5.3.4 Message refused: it is larger than the limit"),
        ("a: b\rBcc: c@d.test\r\n\r\n".into(), 422, "550 5.6.11 Message refused: a CR without LF"),
        ("a: \0\r\n".into(), 422, "550 5.6.0 Message refused: it holds a NUL"),
        (format!("{hops}\r\nx\r\n"), 422, "554 5.4.6 Mail loop: too many Received headers"),
    ] {
        let (got, answer) = inject(&server, &mail(&["b@one.test"], &message));
        assert_eq!(got, status, "{answer}");
        assert!(answer["error"].as_str().expect("text").starts_with(error), "{answer}");
    }
    let (status, answer) = inject(&server, &mail(&["b@one.test", "c@one.test", "d@one.test"], BODY));
    assert!(
        status == 400 && answer["error"].as_str().expect("text").contains("too many recipients"),
        "{answer}"
    );
    let (status, answer) = inject(&server, &mail(&["b@one.test>\r\nDATA"], BODY));
    assert_eq!(status, 400, "{answer}");
    // Larger than any request: refused by its head.
    let huge = "x".repeat(140 << 20);
    assert_eq!(post(addr, PATH, Some(TOKEN), &huge).0, 413);
    assert_eq!(queued(&spool), 0);
    accepted(&server, &mail(&["b@one.test"], BODY));
    assert_eq!(peer.wait_for(1, LIMIT).len(), 1, "and nothing else came");
    assert!(server.stop().success());
}

#[test]
fn wishes_reach_the_queue() {
    let dir = directory();
    let spool = dir.path().join("spool");
    let server = start(&spool, &["--route", "*=127.0.0.1:9", "--workers", "1", "--retry-schedule", "1h"]);
    let mut one = mail(&[], BODY);
    one["to"] = json!([{"address": "b@one.test", "notify": ["never"], "orcpt": "rfc822;x@y.test"}]);
    one["stream"] = "news".into();
    one["envid"] = "e1".into();
    one["ret"] = "hdrs".into();
    let id = accepted(&server, &one);
    let held =
        run(&["queue", "hold", "--stream", "news", "--json", "--spool", spool.to_str().expect("text")]);
    assert!(held.0.success() && held.1.contains("\"changed\": 1"), "{held:?}");
    assert!(server.stop().success());
    let (_, out, _) = run(&["spool", "dump", "--json", "--spool", spool.to_str().expect("text")]);
    let shown: Value = serde_json::from_str(out.trim()).expect("one message");
    assert_eq!(shown["id"], id.as_str());
    assert_eq!((&shown["envid"], &shown["ret"]), (&json!("e1"), &json!("hdrs")));
    let recipient = &shown["recipients"][0];
    assert_eq!(
        (&recipient["notify"], &recipient["original"]),
        (&json!(["never"]), &json!("rfc822;x@y.test"))
    );
}

#[test]
fn load_over_http_arrives_exactly_once() {
    let dir = directory();
    let spool = dir.path().join("spool");
    let sink = Sink::start(&SinkArgs::new("127.0.0.1:0".parse().expect("an address"))).expect("a sink");
    let server = start(&spool, &["--route", &format!("*={}", sink.addr()), "--workers", "2"]);
    let mut load = LoadArgs::new(server.address_of("control"), 1000);
    (load.http, load.token_file) = (true, Some(spool.with_extension("token")));
    (load.connections, load.domains, load.recipients_per_message) = (16, Some(40), 2);
    load.messages_per_connection = Some(100);
    load.sizes = Some("uniform:1KiB-60KiB".parse().expect("sizes"));
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!((report.accepted, report.rejected, report.unknown), (1000, 0, 0), "{:?}", report.errors);
    assert!(report.connections >= 10, "{}", report.connections);
    assert_eq!((report.latency.connect.count, report.latency.data.count), (report.connections, 1000));
    let summary = || run(&["queue", "summary", "--json", "--spool", spool.to_str().expect("text")]).1;
    wait_until("all is delivered", || summary().contains("\"queued_recipients_now\": 0"));
    assert!(server.stop().success());
    let verdict = reconcile(&report, &sink.stop().expect("a report"));
    assert_eq!((verdict.acknowledged, verdict.missing, verdict.duplicates, verdict.corrupt), (2000, 0, 0, 0));
}

#[test]
fn load_over_http_needs_the_token_too() {
    let dir = directory();
    let server = start(&dir.path().join("spool"), &["--route", "*=127.0.0.1:9", "--workers", "1"]);
    let to = server.address_of("control").to_string();
    let (status, out, err) = run(&["load", "--http", "--to", &to, "--messages", "10", "--json"]);
    assert!(!status.success(), "{out}");
    assert!(
        out.contains("post 401") && (out.clone() + &err).contains("does not want this session"),
        "{out} {err}"
    );
    assert!(server.stop().success());
}
