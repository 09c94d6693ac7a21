//! The server at its bounds: full channels, little memory, a predecessor that still writes.
mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{BINARY, Client, Peer, Server, run};
use ringpost_loadgen::{LoadArgs, Silent, Sink, SinkArgs, reconcile, run_load};
use serde_json::Value;

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bounds-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn counters(spool: &Path) -> Value {
    let (status, out, err) = run(&["queue", "summary", "--json", "--spool", spool.to_str().expect("text")]);
    assert!(status.success(), "{err}");
    serde_json::from_str::<Value>(&out).expect("JSON")["report"].clone()
}

#[test]
fn with_every_channel_full_all_mail_still_arrives() {
    let dir = directory();
    let sink = Sink::start(&SinkArgs::new("127.0.0.1:0".parse().expect("an address"))).expect("a sink");
    let route = format!("*={}", sink.addr());
    let server = Server::from_command(
        Command::new(BINARY)
            .env("RINGPOST_TEST_CHANNEL_DEPTH", "1")
            .args(["serve", "--listen", "127.0.0.1:0", "--hostname", "mta.test", "--workers", "4"])
            .args(["--route", &route, "--retry-schedule", "1s", "--spool"])
            .arg(dir.path()),
    );
    let mut load = LoadArgs::new(server.addr, 3000);
    (load.domains, load.connections, load.recipients_per_message) = (Some(40), 32, 3);
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!(report.accepted, 3000, "{:?}", report.errors);
    let start = Instant::now();
    while counters(dir.path())["counters"]["queued_recipients_now"] != 0
        && start.elapsed() < Duration::from_secs(60)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    // An operator's question goes the same way.
    let left = counters(dir.path());
    assert_eq!(left["counters"]["queued_recipients_now"], 0, "{left}");
    assert!(server.stop().success());
    let verdict = reconcile(&report, &sink.stop().expect("a report"));
    assert_eq!((verdict.missing, verdict.duplicates, verdict.corrupt), (0, 0, 0));
}

#[test]
fn bodies_in_memory_go_before_anything_is_refused() {
    let dir = directory();
    let args =
        ["--route", "*=127.0.0.1:9", "--retry-schedule", "1h", "--workers", "1", "--memory-limit", "64MiB"];
    let server = Server::start(dir.path(), &args);
    // Three times the limit, all of it kept: nobody takes it.
    let mut load = LoadArgs::new(server.addr, 12_000);
    (load.size, load.connections) = (16 * 1024, 8);
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!(report.accepted, 12_000, "{:?}", report.errors);
    let mut load = LoadArgs::new(server.addr, 60);
    (load.size, load.connections) = (1024 * 1024, 20);
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!(report.accepted, 60, "{:?}", report.errors);
    // Three times the limit was kept at no time, and what is above it is given back.
    let start = Instant::now();
    loop {
        let report = counters(dir.path());
        let resident = report["process"]["rss_bytes"].as_u64().expect("a number");
        assert!(resident < 2 * (64 << 20), "{} MiB for {}", resident >> 20, report["counters"]);
        // The allocator keeps some pages of what was freed.
        if resident < 72 << 20 {
            break;
        }
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(30), "{} MiB for {}", resident >> 20, report["counters"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(server.stop().success());
}

#[test]
fn large_bodies_are_read_back_a_few_at_a_time() {
    const LIMIT: u64 = 64 << 20;
    let dir = directory();
    let spool = dir.path().to_str().expect("text");
    let shared = ["--retry-schedule", "1h", "--workers", "1", "--memory-limit", "64MiB"];
    let server = Server::start(dir.path(), &[&shared[..], &["--route", "*=127.0.0.1:9"]].concat());
    let mut load = LoadArgs::new(server.addr, 60);
    (load.size, load.connections) = (4 << 20, 4);
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!(report.accepted, 60, "{:?}", report.errors);
    assert!(server.stop().success());

    // Each of sixty connections wants four megabytes at once: four times the limit.
    let sink = Sink::start(&SinkArgs::new("127.0.0.1:0".parse().expect("an address"))).expect("a sink");
    let route = format!("*={}", sink.addr());
    let flags = ["--route", &route, "--destination-connections", "60", "--messages-per-connection", "1"];
    let server = Server::start(dir.path(), &[&shared[..], &flags[..]].concat());
    let (status, _, err) = run(&["queue", "retry", "--all", "--spool", spool]);
    assert!(status.success(), "{err}");
    let (start, mut highest) = (Instant::now(), 0);
    loop {
        let report = counters(dir.path());
        highest = highest.max(report["process"]["rss_bytes"].as_u64().expect("a number"));
        if report["counters"]["queued_recipients_now"] == 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{report}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(highest < 2 * LIMIT, "{} MiB", highest >> 20);
    assert!(server.stop().success());
    let verdict = reconcile(&report, &sink.stop().expect("a report"));
    assert_eq!((verdict.missing, verdict.corrupt), (0, 0));
}

#[test]
fn a_spool_short_of_room_says_so_at_mail() {
    let (dir, peer) = (directory(), Peer::willing());
    // Nobody takes the mail until the operator says so.
    let route = peer.route();
    let shared =
        ["--workers", "1", "--segment-size", "1MiB", "--spool-limit", "8MiB", "--max-message-size", "4MiB"];
    let shared = [&shared[..], &["--retry-schedule", "1h"]].concat();
    let server = Server::start(dir.path(), &[&shared[..], &["--route", "*=127.0.0.1:9"]].concat());
    let mut client = Client::connect(server.addr);
    let body = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(8000));
    let mut taken = 0;
    client.ask("EHLO client.test");
    let said = loop {
        let said = client.ask("MAIL FROM:<a@sender.test>");
        if !said.starts_with("250") {
            break said;
        }
        client.ask("RSET");
        assert!(client.deliver("a@sender.test", &["b@one.test"], &body).starts_with("250"));
        taken += 1;
        assert!(taken < 200, "eight megabytes hold no more");
    };
    assert!(said.starts_with("452 4.3.1 "), "{said}");
    assert!(taken > 10, "{taken}");
    assert!(server.stop().success());

    let server = Server::start(dir.path(), &[&shared[..], &["--route", &route]].concat());
    let mut client = Client::connect(server.addr);
    client.ask("EHLO client.test");
    let said = client.ask("MAIL FROM:<a@sender.test> SIZE=4000000");
    assert!(said.starts_with("452 4.3.1 "), "declared, and too much for what is left: {said}");
    let spool = dir.path().to_str().expect("text");
    assert!(run(&["queue", "retry", "--all", "--spool", spool]).0.success());
    peer.wait_for(taken, Duration::from_secs(60));
    let start = Instant::now();
    while !client.ask("MAIL FROM:<a@sender.test>").starts_with("250") {
        assert!(start.elapsed() < Duration::from_secs(60), "there is room again, without a restart");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(server.stop().success());
}

/// The lock of a segment belongs to the open file, and requests in flight keep that open after their
/// process was killed. The lock held here stands for such a request.
#[test]
fn a_successor_waits_for_the_last_write_of_a_killed_process() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", "*=127.0.0.1:9", "--workers", "1"]);
    let mut client = Client::connect(server.addr);
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    server.kill();
    let segment = std::fs::read_dir(dir.path().join("log-0000")).expect("a log").next().expect("a segment");
    let held = File::open(segment.expect("read").path()).expect("there");
    held.try_lock().expect("nobody holds it");
    let begun = Instant::now();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        drop(held);
    });
    let server = Server::start(dir.path(), &["--route", &peer.route(), "--retry-schedule", "1s"]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "it did not wait");
    release.join().expect("no panic");
    peer.wait_for(1, Duration::from_secs(90));
    assert!(server.stop().success());
}

#[test]
fn the_durability_in_force_is_shown() {
    for durability in ["disk", "os", "memory"] {
        let dir = directory();
        let server = Server::start(
            dir.path(),
            &["--durability", durability, "--route", "*=127.0.0.1:9", "--workers", "1"],
        );
        let said = server.said.lock().expect("not poisoned").clone();
        assert!(said.contains(&format!("durability {durability}")), "{said}");
        assert_eq!(said.contains("is lost"), durability == "memory", "only memory is warned of: {said}");
        assert_eq!(counters(dir.path())["process"]["durability"], durability);
        assert!(server.stop().success());
    }
}

/// So many lines of 64 bytes.
fn lines(of: &str, count: usize) -> String {
    format!("{}\r\n", of.repeat(62)).repeat(count)
}

#[test]
fn slow_senders_of_large_bodies_do_not_keep_out_others() {
    let dir = directory();
    let peer = Peer::willing();
    let server = Server::start(
        dir.path(),
        &["--route", &peer.route(), "--workers", "1", "--memory-limit", "64MiB", "--data-wait", "60s"],
    );
    // More of them than there are buffers for large bodies, each far enough to need one.
    let begin = |n: usize| {
        let mut client = Client::connect(server.addr);
        client.send(b"EHLO slow.test\r\nMAIL FROM:<a@slow.test>\r\nRCPT TO:<b@slow.test>\r\nDATA\r\n");
        (0..4).for_each(|_| assert_ne!(client.reply().as_bytes()[0], b'5'));
        client.send(format!("Subject: {n}\r\n\r\n{}", lines("x", 600)).as_bytes());
        client
    };
    let mut slow: Vec<Client> = (0..120).map(begin).collect();
    for size in [64, 300] {
        let body = lines("y", size * 16);
        let reply = Client::connect(server.addr).deliver("a@good.test", &["b@good.test"], &body);
        assert!(reply.starts_with("250 "), "{size} KiB: {reply:?}");
        // From now on half of them bring a byte now and then.
        slow.iter_mut().step_by(2).for_each(|client| client.send(b"z"));
    }
    // What was received in pieces is whole all the same.
    for client in &mut slow {
        client.send(lines("w", 3000).as_bytes());
        let reply = client.ask(".");
        assert!(reply.starts_with("250 "), "{reply:?}");
    }
    let arrived = peer.wait_for(122, Duration::from_secs(60));
    for message in arrived.iter().filter(|message| message.from == "a@slow.test") {
        let got: Vec<&str> = message.data.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
        let (x, w) = ("x".repeat(62), "w".repeat(62));
        assert_eq!(got.len(), 3600);
        assert!(got[..600].iter().all(|line| *line == x) && got[601..].iter().all(|line| *line == w));
        assert_eq!(got[600].trim_start_matches('z'), w);
    }
    assert!(server.stop().success());
}
