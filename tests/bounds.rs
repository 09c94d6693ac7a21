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
