//! Mail through the real binary: in by SMTP, onto the disk, out by SMTP.
mod common;

use std::sync::Mutex;
use std::time::Duration;

use common::{Client, Peer, Server, default_reply, run};

const BODY: &str = "From: a@sender.test\r\nSubject: hi\r\n\r\nfirst\r\n..dotted\r\nlast\r\n";
const SHORT: Duration = Duration::from_secs(20);

fn spool() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

#[test]
fn a_message_goes_through_unchanged_but_for_its_trace() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let mut client = Client::connect(server.addr);
    let reply = client.deliver("a@sender.test", &["b@one.test", "c@one.test", "d@two.test"], BODY);
    assert!(reply.starts_with("250 2.0.0"), "{reply}");
    let mut arrived = peer.wait_for(2, SHORT);
    arrived.sort_by_key(|m| m.to.clone());
    assert_eq!(arrived[0].to, ["b@one.test", "c@one.test"]);
    assert_eq!(arrived[1].to, ["d@two.test"]);
    for message in &arrived {
        assert_eq!(message.from, "a@sender.test");
        let (trace, rest) = message.data.split_at(message.data.find("From: a@sender.test").expect("there"));
        assert!(trace.starts_with("Received: from client.test ([127.0.0.1])"), "{trace}");
        assert!(trace.contains("by mta.test with ESMTP"), "{trace}");
        assert_eq!(rest, BODY.replace("\r\n", "\n").replace("..dotted", ".dotted"));
    }
    assert!(server.stop().success());
}

#[test]
fn both_numbers_of_workers_read_each_other_s_spool() {
    let dir = spool();
    // Nobody listens there: the mail stays.
    let nowhere = ["--route", "*=127.0.0.1:9", "--retry-schedule", "1s"];
    let server = Server::start(dir.path(), &[&nowhere[..], &["--workers", "2"]].concat());
    for n in 0..20 {
        let mut client = Client::connect(server.addr);
        assert!(client.deliver("a@sender.test", &[&format!("b@d{n}.test")], BODY).starts_with("250"));
    }
    assert!(server.stop().success());
    let server = Server::start(dir.path(), &[&nowhere[..], &["--workers", "1"]].concat());
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@last.test"], BODY).starts_with("250"));
    assert!(server.stop().success());
    let peer = Peer::willing();
    let route = peer.route();
    let server = Server::start(dir.path(), &["--workers", "2", "--route", &route, "--retry-schedule", "1s"]);
    let arrived = peer.wait_for(21, SHORT);
    assert_eq!(arrived.len(), 21);
    assert!(server.stop().success());
}

#[test]
fn logs_of_workers_that_are_no_more_go_when_they_are_empty() {
    let (dir, peer) = (spool(), Peer::willing());
    let route = peer.route();
    let logs = || {
        let names = std::fs::read_dir(dir.path()).expect("there").map(|e| e.expect("read").file_name());
        names.filter(|n| n.to_string_lossy().starts_with("log-")).count()
    };
    let server = Server::start(dir.path(), &["--workers", "3", "--route", &route, "--segment-size", "1MiB"]);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    peer.wait_for(1, SHORT);
    assert!(server.stop().success());
    assert_eq!(logs(), 3);
    let server = Server::start(dir.path(), &["--workers", "1", "--route", &route, "--segment-size", "1MiB"]);
    assert!(server.stop().success());
    assert_eq!(logs(), 1);
}

#[test]
fn a_large_message_arrives_whole_and_too_large_a_one_is_refused() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route(), "--max-message-size", "8MiB"]);
    for lines in [600, 1_000, 2_000, 5_000, 100_000] {
        let body: String = (0..lines).map(|n| format!("line {n:060}\r\n")).collect();
        let mut client = Client::connect(server.addr);
        let reply = client.deliver("a@sender.test", &["b@one.test"], &body);
        if body.len() > 8 << 20 {
            assert!(reply.starts_with("552 5.3.4"), "{reply}");
        } else {
            assert!(reply.starts_with("250"), "{reply}");
            let arrived = peer.wait_for(1, SHORT);
            assert!(arrived[0].data.ends_with(&body.replace("\r\n", "\n")), "{lines} lines");
            peer.arrived.lock().expect("not poisoned").clear();
        }
    }
    // The session goes on after a refusal in the middle of a body.
    let body: String = (0..150_000).map(|n| format!("line {n:060}\r\n")).collect();
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], &body).starts_with("552 5.3.4"));
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    assert!(server.stop().success());
}

#[test]
fn refusals_become_bounces_and_bounces_never_do() {
    let bounced = Mutex::new(());
    let peer = Peer::scripted(move |verb, line| {
        let _turn = bounced.lock();
        Some(match verb {
            "RCPT" if line.contains("nobody") => "550 5.1.1 no such user".into(),
            _ => default_reply(verb),
        })
    });
    let dir = spool();
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let mut client = Client::connect(server.addr);
    let reply = client.deliver("a@sender.test", &["nobody@one.test", "b@one.test"], BODY);
    assert!(reply.starts_with("250"), "{reply}");
    let arrived = peer.wait_for(2, SHORT);
    let dsn = arrived.iter().find(|m| m.from.is_empty()).expect("a bounce");
    assert_eq!(dsn.to, ["a@sender.test"]);
    for part in [
        "report-type=delivery-status",
        "Final-Recipient: rfc822; nobody@one.test",
        "Action: failed",
        "Status: 5.1.1",
        "Diagnostic-Code: smtp; 550 5.1.1 no such user",
        "Auto-Submitted: auto-replied",
        "Subject: hi",
    ] {
        assert!(dsn.data.to_lowercase().contains(&part.to_lowercase()), "{part} in {}", dsn.data);
    }
    // A null reverse-path that fails makes no mail.
    assert!(client.deliver("", &["nobody@one.test"], BODY).starts_with("250"));
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    peer.wait_for(3, SHORT);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(peer.arrived.lock().expect("not poisoned").len(), 3);
    assert!(server.stop().success());
}

#[test]
fn what_is_refused_for_now_is_tried_again() {
    let tries = Mutex::new(0);
    let peer = Peer::scripted(move |verb, _| {
        let mut tries = tries.lock().expect("not poisoned");
        Some(match verb {
            "RCPT" if *tries < 2 => {
                *tries += 1;
                "451 4.7.1 greylisted".into()
            }
            _ => default_reply(verb),
        })
    });
    let dir = spool();
    let server = Server::start(dir.path(), &["--route", &peer.route(), "--retry-schedule", "1s"]);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    assert_eq!(peer.wait_for(1, SHORT).len(), 1);
    assert!(server.stop().success());
}

#[test]
fn mail_too_old_is_returned() {
    let peer = Peer::scripted(|verb, line| {
        Some(match verb {
            "RCPT" if line.contains("never") => "451 4.2.2 mailbox full".into(),
            _ => default_reply(verb),
        })
    });
    let dir = spool();
    let args = ["--route", &peer.route(), "--retry-schedule", "1s", "--max-age", "3s"];
    let server = Server::start(dir.path(), &args);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["never@one.test"], BODY).starts_with("250"));
    let arrived = peer.wait_for(1, SHORT);
    assert_eq!((arrived[0].from.as_str(), &arrived[0].to[..]), ("", &["a@sender.test".to_string()][..]));
    assert!(arrived[0].data.contains("never@one.test"), "{}", arrived[0].data);
    assert!(server.stop().success());
}

#[test]
fn peers_that_misbehave_hold_up_only_their_own_mail() {
    type Reply = Option<&'static str>;
    let cases: [(&str, &str, Reply); 9] = [
        ("greets with garbage", "connect", Some("\u{1}\u{2}garbage")),
        ("refuses the connection for now", "connect", Some("421 4.3.2 busy")),
        ("closes at EHLO", "EHLO", None),
        ("refuses MAIL", "MAIL", Some("451 4.3.0 not now")),
        ("closes at RCPT", "RCPT", None),
        ("refuses DATA", "DATA", Some("451 4.3.0 not now")),
        ("closes after the dot", ".", None),
        ("answers the dot with garbage", ".", Some("nonsense")),
        ("stalls", "MAIL", Some("")),
    ];
    let good = Peer::willing();
    let mut routes = vec![format!("good.test={}", good.addr)];
    let mut peers = Vec::new();
    for (n, (_, at, reply)) in cases.into_iter().enumerate() {
        let peer =
            Peer::scripted(
                move |verb, _| {
                    if verb == at { reply.map(str::to_string) } else { Some(default_reply(verb)) }
                },
            );
        routes.push(format!("bad{n}.test={}", peer.addr));
        peers.push(peer);
    }
    let dir = spool();
    let mut args = vec!["--retry-schedule", "1h", "--workers", "1"];
    for route in &routes {
        args.extend(["--route", route]);
    }
    let server = Server::start(dir.path(), &args);
    let mut client = Client::connect(server.addr);
    for n in 0..cases.len() {
        let reply = client.deliver("a@sender.test", &[&format!("b@bad{n}.test")], BODY);
        assert!(reply.starts_with("250"), "{reply}");
    }
    assert!(client.deliver("a@sender.test", &["b@good.test"], BODY).starts_with("250"));
    good.wait_for(1, SHORT);
    for (peer, (name, ..)) in peers.iter().zip(cases) {
        assert!(peer.arrived.lock().expect("not poisoned").is_empty(), "{name}");
    }
    let spool = dir.path().to_str().expect("text");
    let (status, out, err) = run(&["queue", "summary", "--spool", spool, "--json"]);
    assert!(status.success(), "{err}");
    for n in 0..cases.len() {
        assert!(out.contains(&format!("bad{n}.test")), "bad{n} is still queued: {out}");
    }
    assert!(!out.contains("good.test"), "{out}");
    assert!(server.stop().success());
}

#[test]
fn replies_may_come_in_pieces_and_by_the_hundred() {
    let peer = Peer::dribbling();
    let dir = spool();
    let whole = ["--recipients-per-message", "300"];
    let server =
        Server::start(dir.path(), &[&["--workers", "1", "--route", &peer.route()], &whole[..]].concat());
    let mut client = Client::connect(server.addr);
    let many: Vec<String> = (0..300).map(|n| format!("user{n}@one.test")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(client.deliver("a@sender.test", &many, BODY).starts_with("250"));
    let arrived = peer.wait_for(1, SHORT);
    assert_eq!(arrived[0].to.len(), 300);
    assert!(server.stop().success());
}

#[test]
fn pipelined_messages_of_every_size_keep_apart() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let mut client = Client::connect(server.addr);
    assert!(client.ask("EHLO client.test").starts_with("250"));
    let sizes = [100, 4_000, 33_000, 8_192, 131_072, 139_000, 32_768, 262_144, 131_200, 5, 170_000, 40_000];
    let body = |n: usize, bytes: usize| -> String {
        let lines = bytes / 72 + 1;
        (0..lines).map(|line| format!("message {n} of {bytes} bytes, line {line:040}\r\n")).collect()
    };
    let mut all = String::new();
    for (n, &bytes) in sizes.iter().enumerate() {
        all += &format!(
            "MAIL FROM:<a@sender.test>\r\nRCPT TO:<b{n}@one.test>\r\nDATA\r\n{}.\r\n",
            body(n, bytes)
        );
    }
    client.send(all.as_bytes());
    for _ in 0..sizes.len() * 4 {
        let reply = client.reply();
        assert!(reply.starts_with("250") || reply.starts_with("354"), "{reply}");
    }
    let arrived = peer.wait_for(sizes.len(), SHORT);
    for (n, &bytes) in sizes.iter().enumerate() {
        let to = format!("b{n}@one.test");
        let message = arrived.iter().find(|m| m.to == [to.clone()]).expect("arrived");
        assert!(
            message.data.ends_with(&body(n, bytes).replace("\r\n", "\n")),
            "message {n} of {bytes} bytes"
        );
    }
    assert!(server.stop().success());
}

#[test]
fn a_message_removed_in_flight_harms_no_other() {
    // The peer answers the dot of the first message only after a while, and refuses it for good.
    let peer = Peer::scripted(|verb, line| {
        if verb == "RCPT" && line.contains("slow.test") {
            std::thread::sleep(Duration::from_millis(1500));
            return Some("550 5.1.1 no such user".into());
        }
        Some(default_reply(verb))
    });
    let dir = spool();
    let server = Server::start(dir.path(), &["--workers", "1", "--route", &peer.route()]);
    let mut client = Client::connect(server.addr);
    let reply = client.deliver("a@sender.test", &["x@slow.test"], BODY);
    let id = reply.split_whitespace().nth(2).expect("an id").to_string();
    std::thread::sleep(Duration::from_millis(300));
    let path = dir.path().to_str().expect("text");
    let remover = {
        let (id, path) = (id.clone(), path.to_string());
        std::thread::spawn(move || run(&["queue", "remove", "--id", &id, "--spool", &path]))
    };
    for n in 0..20 {
        let reply = client.deliver("a@sender.test", &[&format!("v{n}@other.test")], BODY);
        assert!(reply.starts_with("250"), "{reply}");
    }
    let _ = remover.join().expect("the command ends");
    peer.wait_for(20, SHORT);
    std::thread::sleep(Duration::from_millis(500));
    let arrived = peer.arrived.lock().expect("not poisoned").clone();
    let others = arrived.iter().filter(|m| m.to.iter().any(|t| t.ends_with("@other.test"))).count();
    let bounces: Vec<_> = arrived.iter().filter(|m| m.from.is_empty()).collect();
    assert_eq!(others, 20, "{arrived:?}");
    // It was refused, or removed: either way nobody else hears of it.
    assert!(bounces.iter().all(|b| b.data.contains("x@slow.test")), "{bounces:?}");
    assert!(bounces.len() <= 1, "{bounces:?}");
    assert!(server.stop().success());
}

#[test]
fn a_stop_ends_clients_that_never_pause() {
    let dir = spool();
    let server = Server::start(
        dir.path(),
        &["--route", "*=127.0.0.1:9", "--retry-schedule", "1h", "--shutdown-grace", "1h"],
    );
    let addr = server.addr;
    let load = std::thread::spawn(move || {
        let mut load = ringpost_loadgen::LoadArgs::new(addr, 0);
        load.messages = None;
        load.duration = Some(Duration::from_secs(8));
        load.connections = 8;
        ringpost_loadgen::run_load(&load, &ringpost_loadgen::Silent)
    });
    std::thread::sleep(Duration::from_secs(1));
    // `stop` allows far less than the grace.
    assert!(server.stop().success());
    let _ = load.join().expect("no panic");
}

#[test]
fn the_size_of_segments_may_change() {
    let (dir, peer) = (spool(), Peer::willing());
    for size in ["1MiB", "2MiB", "1MiB"] {
        let server = Server::start(dir.path(), &["--route", &peer.route(), "--segment-size", size]);
        let body: String = (0..4_000).map(|n| format!("line {n:060}\r\n")).collect();
        for _ in 0..20 {
            let mut client = Client::connect(server.addr);
            let reply = client.deliver("a@sender.test", &["b@one.test"], &body);
            assert!(reply.starts_with("250"), "{size}: {reply}");
        }
        assert!(server.stop().success());
    }
}

#[test]
fn a_killed_server_may_be_started_again_at_once() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let listen = server.addr.to_string();
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    server.kill();
    let server = Server::start(dir.path(), &["--listen", &listen, "--route", &peer.route()]);
    assert!(server.stop().success());
}

#[test]
fn strangers_may_not_relay() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route(), "--relay-from", "192.0.2.0/24"]);
    let mut client = Client::connect(server.addr);
    assert!(client.ask("EHLO client.test").starts_with("250"));
    assert!(client.ask("MAIL FROM:<a@sender.test>").starts_with("250"));
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("550 5.7.1"));
    assert!(client.ask("DATA").starts_with("5"));
    assert!(server.stop().success());
}

#[test]
fn an_idle_server_sleeps() {
    let (dir, peer) = (spool(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    peer.wait_for(1, SHORT);
    std::thread::sleep(Duration::from_millis(500));
    let before = server.cpu_ticks();
    std::thread::sleep(Duration::from_secs(3));
    // One tick is 10 ms: a loop that spins would use hundreds.
    assert!(server.cpu_ticks() - before < 15, "{} ticks in 3 s", server.cpu_ticks() - before);
    assert!(server.stop().success());
}

#[test]
fn a_second_signal_stops_at_once_and_nothing_is_lost() {
    let stalled =
        Peer::scripted(|verb, _| Some(if verb == "." { String::new() } else { default_reply(verb) }));
    let dir = spool();
    let mut server = Server::start(dir.path(), &["--route", &stalled.route(), "--shutdown-grace", "1h"]);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], BODY).starts_with("250"));
    std::thread::sleep(Duration::from_millis(300));
    server.signal("TERM");
    // Signals that come too close together are one.
    std::thread::sleep(Duration::from_secs(1));
    server.signal("TERM");
    server.wait(SHORT);
    let peer = Peer::willing();
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    assert_eq!(peer.wait_for(1, SHORT).len(), 1);
    assert!(server.stop().success());
}

#[test]
fn operators_see_what_happens() {
    let peer = Peer::scripted(|verb, line| {
        Some(match verb {
            "RCPT" if line.contains("nobody") => "550 5.1.1 no such user".into(),
            "RCPT" if line.contains("later") => "451 4.2.2 mailbox full".into(),
            _ => default_reply(verb),
        })
    });
    let dir = spool();
    let events = dir
        .path()
        .join("../")
        .join(format!("{}.events", dir.path().file_name().and_then(|n| n.to_str()).expect("a name")));
    let events_path = events.to_str().expect("text").to_string();
    let route = peer.route();
    let server = Server::start(
        dir.path(),
        &["--route", &route, "--event-log", &events_path, "--retry-schedule", "1h"],
    );
    let mut client = Client::connect(server.addr);
    let reply = client.deliver("a@sender.test", &["b@one.test", "nobody@one.test", "later@one.test"], BODY);
    let id = reply.split_whitespace().nth(2).expect("an id in the reply").to_string();
    peer.wait_for(2, SHORT);
    let path = dir.path().to_str().expect("text");
    let ask = |command: &[&str]| {
        let (status, out, err) = run(&[command, &["--spool", path]].concat());
        assert!(status.success(), "{command:?}: {err}");
        out
    };
    // The bounce and the deferral are recorded a moment after the peer has answered.
    let start = std::time::Instant::now();
    let shown = loop {
        let shown = ask(&["queue", "show", &id, "--json"]);
        if shown.contains("\"deferred\"") && shown.contains("mailbox full") {
            break shown;
        }
        assert!(start.elapsed() < SHORT, "{shown}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(shown.contains("later@one.test"), "{shown}");
    assert!(ask(&["queue", "list"]).contains(&id));
    assert!(ask(&["queue", "summary"]).contains("one.test"));
    assert!(ask(&["why", &id]).contains("mailbox full"));
    assert!(ask(&["why", "one.test"]).contains("one.test"));
    for (recipient, end) in [("b@one.test", "delivered"), ("nobody@one.test", "failed")] {
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        let list = shown["recipient_list"].as_array().expect("a list");
        let own = list.iter().find(|r| r["address"] == recipient).expect("listed");
        assert_eq!(own["state"], end, "{shown}");
    }
    assert!(ask(&["queue", "remove", "--id", &id]).contains("1 delivery is removed"));
    assert!(!ask(&["queue", "list"]).contains(&id));
    assert!(server.stop().success());
    let log = std::fs::read_to_string(&events).expect("an event log");
    std::fs::remove_file(&events).expect("removed");
    let of = |kind: &str, who: &str| {
        let is = |l: &&str| l.contains(&format!("\"type\":\"{kind}\"")) && l.contains(who);
        log.lines().filter(is).count()
    };
    assert_eq!(of("received", &id), 1, "{log}");
    assert_eq!(of("delivered", "b@one.test"), 1, "{log}");
    assert_eq!(of("failed", "nobody@one.test"), 1, "{log}");
    assert_eq!(of("deferred", "later@one.test"), 1, "{log}");
    assert_eq!(of("removed", "later@one.test"), 1, "{log}");
    // What was removed does not come back.
    let server = Server::start(dir.path(), &["--route", &route]);
    assert!(!ask(&["queue", "list"]).contains(&id));
    assert!(server.stop().success());
}
