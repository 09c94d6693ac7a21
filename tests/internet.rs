//! A whole Internet on loopback: the sink stands for a hundred thousand domains and answers DNS for them.
mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::Server;
use ringpost_loadgen::{LoadArgs, Silent, Sink, SinkArgs, reconcile, run_load};

#[test]
fn mail_for_a_hundred_thousand_domains_arrives_once() {
    let anywhere: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut args = SinkArgs::new(anywhere);
    (args.domains, args.dns) = (Some(100_000), Some(anywhere));
    args.hosts_from = "127.61.0.1".parse().expect("an address");
    let sink = Sink::start(&args).expect("a sink");
    let dns = sink.dns_addr().expect("asked for").to_string();
    let port = sink.addr().port().to_string();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let server = Server::start(dir.path(), &["--dns", &dns, "--mx-port", &port, "--allow-private-mx"]);
    let mut load = LoadArgs::new(server.addr, 1500);
    (load.domains, load.zipf, load.mailboxes) = (Some(100_000), Some(0.8), Some(1000));
    (load.recipients_per_message, load.connections) = (2, 8);
    let report = run_load(&load, &Silent).expect("a report");
    assert_eq!((report.accepted, report.accepted_recipients), (1500, 3000), "{report}");
    let begun = Instant::now();
    while sink.counters().unique < report.accepted_recipients && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.stop().success());
    let received = sink.stop().expect("a report");
    let verdict = reconcile(&report, &received);
    assert!(verdict.is_exactly_once(), "{verdict}");
    // Hundreds of domains at least were found, each by a question of its own.
    assert!(received.connections > 200, "{received}");
}
