//! kill -9 under load, several times over: nothing acknowledged is lost.
mod common;

use std::time::{Duration, Instant};

use common::Server;
use ringpost_loadgen::{LoadArgs, Silent, Sink, SinkArgs, reconcile, run_load};

/// Rounds of load and kill; `RINGPOST_CRASH_ROUNDS` asks for more.
const ROUNDS: u32 = 4;

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let rounds = std::env::var("RINGPOST_CRASH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(ROUNDS);
    let seed = std::env::var("RINGPOST_CRASH_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(ringpost::clock::secret_u64);
    println!("seed {seed} (RINGPOST_CRASH_SEED={seed} repeats the choice of moments)");
    let mut rng = ringpost::clock::Rng::new(seed);
    let dir = tempfile::Builder::new().prefix("crash-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let dir = dir.expect("a directory");
    let sink = Sink::start(&SinkArgs::new("127.0.0.1:0".parse().expect("an address"))).expect("a sink");
    let route = format!("*={}", sink.addr());
    let mut loads = Vec::new();
    for round in 0..rounds {
        // One worker, then two, then one …: a spool is not tied to their number.
        let workers = (1 + round % 2).to_string();
        let args = ["--route", &route, "--retry-schedule", "1s", "--segment-size", "8MiB"];
        let server = Server::start(dir.path(), &[&args[..], &["--workers", &workers]].concat());
        let mut load = LoadArgs::new(server.addr, 0);
        load.messages = None;
        load.duration = Some(Duration::from_millis(2500));
        load.tolerate_errors = true;
        load.domains = Some(5);
        load.size = 1024 + rng.below(60_000);
        load.connections = 32;
        let running = std::thread::spawn(move || run_load(&load, &Silent));
        std::thread::sleep(Duration::from_millis(300 + rng.below(1500)));
        server.kill();
        let report = running.join().expect("no panic").expect("a report");
        println!("round {round}: {} acknowledged, {} unknown", report.accepted, report.unknown);
        loads.push(report);
    }
    let acknowledged: u64 = loads.iter().map(|l| l.accepted).sum();
    assert!(acknowledged > 0, "the rounds must have accepted something");
    let server = Server::start(dir.path(), &["--route", &route, "--retry-schedule", "1s"]);
    let start = Instant::now();
    loop {
        let counters = sink.counters();
        let quiet = sink.quiet_for().is_some_and(|q| q > Duration::from_secs(4));
        if counters.unique >= acknowledged && quiet {
            break;
        }
        if start.elapsed() > Duration::from_secs(90) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.stop().success());
    let seen = sink.stop().expect("a report");
    for (round, load) in loads.iter().enumerate() {
        let verdict = reconcile(load, &seen);
        println!("round {round}: missing {} duplicated {}", verdict.missing, verdict.duplicates);
        assert_eq!(verdict.missing, 0, "round {round}: {:?}", verdict.missing_examples);
        assert_eq!(verdict.corrupt, 0, "round {round}: {:?}", verdict.corrupt_examples);
    }
}
