//! The source against the sink, over loopback.
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::check::verify_exactly_once;
use crate::progress::Silent;
use crate::report::SinkReport;
use crate::sink::{Sink, SinkArgs};

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Sends `messages` from a source to a sink and lets `change` adjust both.
fn run(messages: u64, change: impl Fn(&mut LoadArgs, &mut SinkArgs)) -> (LoadReport, SinkReport) {
    let mut load = LoadArgs::new(ANYWHERE, messages);
    let mut sink = SinkArgs::new(ANYWHERE);
    (load.connections, load.size) = (5, 2000);
    change(&mut load, &mut sink);
    let sink = Sink::start(&sink).unwrap();
    load.to = sink.addr();
    let report = run_load(&load, &Silent).unwrap();
    (report, sink.stop().unwrap())
}

fn assert_complete(load: &LoadReport, sink: &SinkReport, messages: u64) {
    assert_eq!(load.failure, None);
    assert_eq!((load.accepted, load.rejected, load.unknown, load.unsent), (messages, 0, 0, 0), "{load}");
    assert_eq!((sink.messages, sink.foreign), (messages, 0));
    assert_eq!((sink.bytes, load.bytes), (load.bytes, sink.bytes));
    let verdict = verify_exactly_once(load, sink).unwrap();
    assert_eq!(verdict.acknowledged, messages * u64::from(load.recipients_per_message));
}

#[test]
fn every_message_arrives_once_in_every_mode() {
    type Change = fn(&mut LoadArgs, &mut SinkArgs);
    let table: [(&str, u64, Change); 9] = [
        ("pipelined", 500, |_, _| ()),
        ("one by one", 500, |load, _| load.no_pipelining = true),
        ("reconnecting", 200, |load, _| load.messages_per_connection = Some(3)),
        ("reconnecting each time", 100, |load, _| {
            (load.messages_per_connection, load.no_pipelining) = (Some(1), true);
        }),
        ("threads", 500, |load, sink| (load.threads, sink.threads) = (3, 2)),
        ("recipients", 100, |load, _| (load.recipients_per_message, load.domains) = (7, Some(3))),
        ("large", 20, |load, _| load.size = 3 << 20),
        ("at a rate", 200, |load, _| load.rate = Some(RateProfile::fixed(5000.0))),
        ("null sender", 5, |load, _| load.from = String::new()),
    ];
    for (name, messages, change) in table {
        println!("{name}");
        let (load, sink) = run(messages, change);
        assert_complete(&load, &sink, messages);
        assert_eq!(load.latency.whole.count, messages);
        assert_eq!(sink.latency.count, messages);
    }
}

#[test]
fn reconnecting_opens_as_many_connections_as_it_takes() {
    let (load, sink) = run(30, |load, _| {
        (load.messages_per_connection, load.connections) = (Some(3), 2);
    });
    assert!((10..=12).contains(&load.connections), "{}", load.connections);
    assert_eq!(sink.connections, load.connections);
}

#[test]
fn a_duration_ends_the_run() {
    let (load, sink) = run(0, |load, _| {
        (load.messages, load.duration) = (None, Some(Duration::from_millis(150)));
    });
    assert!(load.accepted > 0);
    assert_complete(&load, &sink, load.accepted);
}

#[test]
fn refusals_are_counted_on_both_sides() {
    let (load, sink) = run(120, |_, sink| {
        (sink.reject_every, sink.tempfail_every) = (NonZeroU64::new(4), NonZeroU64::new(3));
    });
    // Of twelve, 4, 8 and 12 are rejected and 3, 6 and 9 put off.
    assert_eq!((load.accepted, load.rejected, sink.refused), (60, 60, 60));
    assert_eq!(load.errors, [("rcpt 451".into(), 30), ("rcpt 550".into(), 30)].into());
    assert!(load.error_samples["rcpt 550"].contains("refused"));
    assert!(verify_exactly_once(&load, &sink).is_ok());
}

#[test]
fn both_logs_name_the_same_deliveries() {
    let dir = std::env::temp_dir().join(format!("ringpost-load-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (acked, seen) = (dir.join("acked"), dir.join("seen"));
    let (load, _) = run(300, |load, sink| {
        load.recipients_per_message = 2;
        (load.ack_log, sink.seen_log) = (Some(acked.clone()), Some(seen.clone()));
    });
    let lines = |path| {
        let mut lines: Vec<String> = std::fs::read_to_string(path).unwrap().lines().map(Into::into).collect();
        lines.sort();
        lines
    };
    let (acked, seen) = (lines(acked), lines(seen));
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(acked.len(), 600);
    assert_eq!(acked, seen);
    assert_eq!(acked[1], format!("{}-000000000000/1", load.run));
}

/// A server that takes each connection in turn, answers everything with 2xx or 354, and hangs up
/// behind the final dot of every `hang_up_every`th message, without a reply.
fn fragile_server(hang_up_every: u64) -> SocketAddr {
    let listener = TcpListener::bind(ANYWHERE).unwrap();
    let addr = listener.local_addr().unwrap();
    let messages = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, messages) = (socket.unwrap(), messages.clone());
            std::thread::spawn(move || {
                socket.write_all(b"220 fragile\r\n").ok()?;
                let mut in_data = false;
                for line in BufReader::new(socket.try_clone().ok()?).lines() {
                    let line = line.ok()?;
                    let reply = match (in_data, line.as_str()) {
                        (true, ".") if messages.fetch_add(1, Ordering::Relaxed) % hang_up_every == 0 => {
                            return None;
                        }
                        (true, ".") => "250 taken\r\n",
                        (true, _) => continue,
                        (false, "DATA") => "354 go\r\n",
                        (false, _) => "250 ok\r\n",
                    };
                    in_data = reply.starts_with("354");
                    socket.write_all(reply.as_bytes()).ok()?;
                }
                Some(())
            });
        }
    });
    addr
}

#[test]
fn lost_connections_are_tolerated_when_asked() {
    let mut args = LoadArgs::new(fragile_server(10), 100);
    (args.connections, args.tolerate_errors) = (4, true);
    let report = run_load(&args, &Silent).unwrap();
    assert_eq!((report.accepted, report.unknown, report.unsent), (90, 10, 0), "{report}");
    assert_eq!((report.acknowledged.len(), report.unresolved.len()), (90, 10));
    assert_eq!(report.failure, None);
}

#[test]
fn lost_connections_end_the_run_otherwise() {
    let mut args = LoadArgs::new(fragile_server(10), 10_000);
    args.connections = 1;
    let report = run_load(&args, &Silent).unwrap();
    assert_eq!((report.accepted, report.unknown), (0, 1));
    assert!(report.failure.unwrap().contains("connection lost"));
}

#[test]
fn a_closed_port_ends_the_run() {
    let addr = TcpListener::bind(ANYWHERE).unwrap().local_addr().unwrap();
    let report = run_load(&LoadArgs::new(addr, 10), &Silent).unwrap();
    assert_eq!(report.accepted, 0);
    assert!(report.failure.unwrap().contains("connect failed"));
}

#[test]
fn silence_is_given_up() {
    let listener = TcpListener::bind(ANYWHERE).unwrap();
    let mut args = LoadArgs::new(listener.local_addr().unwrap(), 10);
    args.reply_timeout = Duration::from_millis(1);
    let report = run_load(&args, &Silent).unwrap();
    assert!(report.failure.unwrap().contains("no reply in time"));
}

#[test]
fn progress_may_stop_a_run() {
    struct Stop;
    impl Progress for Stop {
        fn update(&self, _: &Snapshot) {}
        fn stopped(&self) -> bool {
            true
        }
    }
    let sink = Sink::start(&SinkArgs::new(ANYWHERE)).unwrap();
    let mut args = LoadArgs::new(sink.addr(), 1_000_000);
    args.rate = Some(RateProfile::fixed(1000.0));
    let load = run_load(&args, &Stop).unwrap();
    assert!(load.accepted < 1_000_000);
    assert_eq!((load.failure.clone(), load.unknown), (None, 0));
    assert!(verify_exactly_once(&load, &sink.stop().unwrap()).is_ok());
}

#[test]
fn bad_arguments_are_explained() {
    type Change = fn(&mut LoadArgs);
    let table: [(Change, &str); 9] = [
        (|args| args.messages = None, "--messages"),
        (|args| args.to = "192.0.2.1:25".parse().unwrap(), "--i-own-the-target"),
        (|args| args.size = 10, "at least"),
        (|args| args.from = "a\r\nb".into(), "do not belong"),
        (|args| args.messages = Some(u64::MAX), "at most"),
        (
            |args| (args.duration, args.warmup) = (Some(Duration::from_secs(1)), Duration::from_secs(1)),
            "--warmup",
        ),
        (|args| args.search = Some(Duration::ZERO), "--search 0ms"),
        (
            |args| {
                (args.search, args.duration) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(9)));
                args.rate = Some("1..100/s".parse().unwrap());
            },
            "--search begins at one rate",
        ),
        (|args| args.measure_pid = vec![0x3fff_ffff], "no such process"),
    ];
    for (change, want) in table {
        let mut args = LoadArgs::new("127.0.0.1:9".parse().unwrap(), 1);
        change(&mut args);
        let error = format!("{:#}", run_load(&args, &Silent).unwrap_err());
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn domains_of_somebody_are_cautioned_of() {
    let path = std::env::temp_dir().join(format!("ringpost-cautions-{}", std::process::id()));
    let caution = |change: &dyn Fn(&mut LoadArgs)| {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 1);
        change(&mut args);
        args.cautions().join(" ")
    };
    assert_eq!(caution(&|_| ()), "");
    assert_eq!(caution(&|args| args.domains = Some(10)), "");
    assert!(caution(&|args| args.to_domain = "ringpost.org".into()).contains("ringpost.org"));
    for (text, want) in
        [("# list\na.test 2\nmail.example.com\n", ""), ("a.test\nringpost.org 3\n", "ringpost.org")]
    {
        std::fs::write(&path, text).unwrap();
        let said = caution(&|args| args.domain_list = Some(path.clone()));
        assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{said}");
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_workload_names_all_that_makes_it() {
    type Change = fn(&mut LoadArgs);
    let changes: [Change; 9] = [
        |args| args.messages_per_connection = Some(7),
        |args| args.domains = Some(5),
        |args| (args.domains, args.zipf) = (Some(5), Some(1.1)),
        |args| args.domain_list = Some("list".into()),
        |args| args.mailboxes = Some(3),
        |args| args.source = vec!["127.0.0.7".parse().unwrap()],
        |args| args.threads = 2,
        |args| args.warmup = Duration::from_secs(2),
        |args| args.bdat = true,
    ];
    let mut seen = std::collections::BTreeSet::from([LoadArgs::new(ANYWHERE, 1).workload()]);
    for change in changes {
        let mut args = LoadArgs::new(ANYWHERE, 1);
        change(&mut args);
        assert!(seen.insert(args.workload()), "{}", args.workload());
    }
}

#[test]
fn the_command_line_has_the_defaults_of_new() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }
    let line = <Line as clap::Parser>::try_parse_from(["load", "--to", "127.0.0.1:25", "--messages", "7"]);
    let args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 7);
    assert_eq!(format!("{:?}", line.unwrap().load), format!("{args:?}"));
}
