//! What ends early, late or with other mail about is said as it is: due messages that were never begun,
//! a rate that was not held, mail that is late and not lost.
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringpost_loadgen::{LoadArgs, Progress, RateProfile, Silent, Snapshot, page, run_load, run_pair};

const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A server that answers each message when `wait` returns.
fn server(wait: impl Fn() + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(ANYWHERE).unwrap();
    let addr = listener.local_addr().unwrap();
    let wait = Arc::new(wait);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let wait = wait.clone();
            std::thread::spawn(move || talk(socket.unwrap(), &*wait));
        }
    });
    addr
}

/// A server that answers the first `lively` messages and then nothing any more.
fn freezing_server(lively: u64) -> SocketAddr {
    let messages = AtomicU64::new(0);
    server(move || {
        if messages.fetch_add(1, Ordering::Relaxed) >= lively {
            loop {
                std::thread::park();
            }
        }
    })
}

fn talk(mut socket: TcpStream, wait: &dyn Fn()) -> Option<()> {
    socket.write_all(b"220 server\r\n").ok()?;
    let mut in_data = false;
    for line in BufReader::new(socket.try_clone().ok()?).lines() {
        let line = line.ok()?;
        let reply = match (in_data, line.as_str()) {
            (true, ".") => {
                wait();
                "250 taken\r\n"
            }
            (true, _) => continue,
            (false, "DATA") => "354 go\r\n",
            (false, _) => "250 ok\r\n",
        };
        in_data = reply.starts_with("354");
        socket.write_all(reply.as_bytes()).ok()?;
    }
    Some(())
}

/// The end of a run, asked for after some time.
struct StopAfter(Instant, Duration);

impl Progress for StopAfter {
    fn update(&self, _: &Snapshot) {}
    fn stopped(&self) -> bool {
        self.0.elapsed() >= self.1
    }
}

#[test]
fn a_frozen_server_does_not_hold_a_rate() {
    // Ended by the user, and by the source's own patience.
    for is_stopped in [true, false] {
        let mut args = LoadArgs::new(freezing_server(50), 0);
        (args.messages, args.duration, args.connections) = (None, Some(Duration::from_secs(30)), 8);
        args.rate = Some(RateProfile::fixed(500.0));
        args.reply_timeout = Duration::from_millis(if is_stopped { 500 } else { 100 });
        let report = match is_stopped {
            true => run_load(&args, &StopAfter(Instant::now(), Duration::from_millis(900))).unwrap(),
            false => run_load(&args, &Silent).unwrap(),
        };
        assert_eq!((report.accepted, report.rate_held), (50, Some(false)), "{report}");
        assert_eq!(report.is_interrupted, is_stopped, "{report}");
        assert!(report.failure.as_ref().unwrap().contains("no reply in time"), "{report}");
        // 500/s from about 0.1 s on found nobody: with the time they had waited, they are in every figure.
        assert!(report.not_begun > 200 && report.late_share > 0.8, "{report}");
        let whole = report.latency.whole;
        let never = report.not_begun + report.unknown + report.unsent;
        assert_eq!((whole.count, report.due), (50 + never, Some(50 + never)), "{report}");
        assert!(whole.p50_us > 200_000 && whole.max_us > 600_000, "{report}");
        assert!(report.due_rate.unwrap() > 2.0 * report.rate && !report.is_complete(), "{report}");
        let text = report.to_string();
        assert!(text.contains(&format!("{} not begun", report.not_begun)), "{text}");
        assert_eq!(text.contains("interrupted"), is_stopped, "{text}");
        assert!(page(&report).contains("not begun") && page(&report).contains("not held"));
        assert_eq!(page(&report).contains("Interrupted"), is_stopped);
    }
}

#[test]
fn a_run_that_is_ended_in_good_order_says_only_that() {
    let mut args = LoadArgs::new(freezing_server(u64::MAX), 0);
    (args.messages, args.duration, args.connections) = (None, Some(Duration::from_secs(30)), 8);
    args.rate = Some(RateProfile::fixed(300.0));
    let report = run_load(&args, &StopAfter(Instant::now(), Duration::from_millis(400))).unwrap();
    assert_eq!((report.is_interrupted, report.not_begun, report.unknown), (true, 0, 0), "{report}");
    assert!(report.accepted > 50 && report.due == Some(report.accepted) && !report.is_complete(), "{report}");
    // A closed loop has no times: what is missing of its number is what was asked for.
    let mut args = LoadArgs::new(freezing_server(u64::MAX), 1_000_000);
    args.connections = 2;
    let report = run_load(&args, &StopAfter(Instant::now(), Duration::from_millis(200))).unwrap();
    assert!(report.is_interrupted && report.accepted > 0 && report.due.is_none(), "{report}");
}

#[test]
fn a_warm_up_is_in_no_figure() {
    // A server that takes 30 ms for each message of the first 300 ms.
    let since = Instant::now();
    let slow_at_first = move || {
        if since.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(30));
        }
    };
    let mut args = LoadArgs::new(server(slow_at_first), 0);
    (args.messages, args.duration, args.warmup) =
        (None, Some(Duration::from_millis(1000)), Duration::from_millis(500));
    (args.rate, args.interval) = (Some(RateProfile::fixed(200.0)), Duration::from_millis(100));
    args.measure_pid = vec![std::process::id()];
    let report = run_load(&args, &Silent).unwrap();
    assert!(report.warmup_accepted > 0 && report.accepted > report.warmup_accepted, "{report}");
    // Every message that was due behind it is in the latencies, and no other.
    let (whole, late) = (report.latency.whole, report.late);
    assert!(whole.count == late.count && (40..170).contains(&whole.count), "{report}");
    assert!(whole.min_us < 30_000 && report.latency.data.count < report.accepted, "{report}");
    assert!(report.seconds >= 0.4 && report.rate > 0.0, "{report}");
    let (warm, hot): (Vec<_>, Vec<_>) = report.timeline.iter().partition(|point| point.is_warmup);
    assert!(warm.len() == 5 && hot.len() >= 4, "{:?}", report.timeline);
    assert!(warm.iter().any(|point| point.p50_us >= 30_000), "{warm:?}");
    assert_eq!(report.timeline.iter().map(|point| point.accepted).sum::<u64>(), report.accepted);
    assert!(report.to_string().contains("in a warm-up of 0.5 s"), "{report}");
}

#[test]
fn due_messages_go_to_connections_that_have_nothing_to_do() {
    // With as many connections as messages there is always one that has nothing to do.
    let busy = Arc::new(AtomicU64::new(0));
    let pipelined = busy.clone();
    let listener = TcpListener::bind(ANYWHERE).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let pipelined = pipelined.clone();
            std::thread::spawn(move || slow_talk(socket.unwrap(), &pipelined));
        }
    });
    let mut args = LoadArgs::new(addr, 150);
    (args.connections, args.size) = (150, 600);
    args.rate = Some("0.01/s@300ms,600/s@1s".parse().unwrap());
    let report = run_load(&args, &Silent).unwrap();
    assert_eq!((report.accepted, report.failure.clone()), (150, None), "{report}");
    assert_eq!(busy.load(Ordering::Relaxed), 0, "messages waited behind another one");
}

/// Takes 20 ms for each message, and counts those whose MAIL came with the end of another.
fn slow_talk(mut socket: TcpStream, pipelined: &AtomicU64) -> Option<()> {
    use std::io::Read;
    socket.write_all(b"220 server\r\n").ok()?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = socket.read(&mut buffer).ok().filter(|&read| read > 0)?;
        seen.extend_from_slice(&buffer[..read]);
        if let Some(end) = seen.windows(5).position(|text| text == b"\r\n.\r\n") {
            std::thread::sleep(Duration::from_millis(20));
            socket.set_nonblocking(true).ok()?;
            if let Ok(read) = socket.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..read]);
            }
            socket.set_nonblocking(false).ok()?;
            seen.drain(..end + 5);
            pipelined.fetch_add(u64::from(seen.starts_with(b"MAIL")), Ordering::Relaxed);
            socket.write_all(b"250 taken\r\n").ok()?;
        }
        while let Some(end) = seen.iter().position(|&c| c == b'\n') {
            let line = &seen[..end];
            let reply: &[u8] = match line.get(..4) {
                Some(b"EHLO") => b"250-server\r\n250 PIPELINING\r\n",
                Some(b"MAIL" | b"RCPT") => b"250 ok\r\n",
                Some(b"DATA") => b"354 go\r\n",
                Some(b"QUIT") => b"221 bye\r\n",
                // Content, whose end has not come.
                _ => break,
            };
            socket.write_all(reply).ok()?;
            seen.drain(..=end);
        }
    }
}

#[test]
fn mail_of_other_runs_has_no_part_in_a_pair() {
    // A relay: it takes mail and hands it on, 300 ms late, with a message of another run before it, which
    // was stamped an hour ago, and each message once more 300 ms after that.
    let sink = free();
    let relay = relay(sink);
    let mut args = LoadArgs::new(relay, 20);
    (args.connections, args.arrival_wait) = (1, Duration::from_secs(20));
    args.measure_pid = vec![std::process::id()];
    let report = run_pair(&args, sink, &Silent).unwrap();
    let verdict = report.verdict.as_ref().unwrap();
    // The 40 of the other run do not make up for those that are late, and the second copies are seen.
    assert_eq!((verdict.acknowledged, verdict.arrived, verdict.missing), (20, 20, 0), "{report}");
    assert_eq!(verdict.duplicates, 20, "{report}");
    let end_to_end = report.latency.end_to_end;
    assert_eq!(end_to_end.count, 20, "{report}");
    assert!((250_000..60_000_000).contains(&end_to_end.max_us), "{report}");
    assert_eq!(report.sink.as_ref().unwrap().runs.len(), 2);
    // The server is watched until the last message has come, not until it was acknowledged.
    let samples = &report.process.as_ref().unwrap().samples;
    assert!(samples.last().unwrap().at_sec > report.seconds + 0.25, "{samples:?}");
}

#[test]
fn an_interrupted_source_still_waits_for_what_it_has_sent() {
    /// Stops the source at once, and the wait for arrivals after a while.
    struct Impatient(Mutex<Option<Instant>>);
    impl Progress for Impatient {
        fn update(&self, _: &Snapshot) {}
        fn resume(&self) {
            *self.0.lock().unwrap() = Some(Instant::now());
        }
        fn stopped(&self) -> bool {
            self.0.lock().unwrap().is_none_or(|since| since.elapsed() > Duration::from_millis(300))
        }
    }
    let impatient = || Impatient(Mutex::new(None));
    let sink = free();
    let mut args = LoadArgs::new(sink, 1_000_000);
    args.connections = 2;
    let report = run_pair(&args, sink, &impatient()).unwrap();
    let verdict = report.verdict.as_ref().unwrap();
    assert!(report.is_interrupted && verdict.is_exactly_once() && verdict.acknowledged > 0, "{report}");
    // What has not come when the wait is ended may come yet.
    let mut args = LoadArgs::new(freezing_server(u64::MAX), 1_000_000);
    args.connections = 2;
    let report = run_pair(&args, free(), &impatient()).unwrap();
    let text = report.verdict.as_ref().unwrap().to_string();
    assert!(text.contains("not arrived yet") && text.contains("interrupted"), "{text}");
}

fn free() -> SocketAddr {
    TcpListener::bind(ANYWHERE).unwrap().local_addr().unwrap()
}

/// A server that hands on what it takes, late and twice, behind mail of another run.
fn relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(ANYWHERE).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.write_all(b"220 server\r\n").ok()?;
        let (mut in_data, mut content, mut messages) = (false, String::new(), Vec::new());
        for line in BufReader::new(socket.try_clone().ok()?).lines() {
            let line = line.ok()?;
            let reply = match (in_data, line.as_str()) {
                (true, ".") => {
                    messages.push(std::mem::take(&mut content));
                    "250 taken\r\n"
                }
                (true, _) => {
                    content += &line;
                    content += "\r\n";
                    continue;
                }
                (false, "DATA") => "354 go\r\n",
                (false, "QUIT") => break,
                (false, _) => "250 ok\r\n",
            };
            in_data = reply.starts_with("354");
            socket.write_all(reply.as_bytes()).ok()?;
        }
        let others = (0..40).map(|n| {
            let stamp = format!("X-Ringpost-Load: 00000001-{n:012} 1000000000000000 0000000000000000 00001");
            format!("{stamp}\r\n\r\nold\r\n")
        });
        deliver(to, others)?;
        std::thread::sleep(Duration::from_millis(300));
        deliver(to, messages.iter().cloned())?;
        std::thread::sleep(Duration::from_millis(300));
        deliver(to, messages.into_iter())
    });
    addr
}

fn deliver(to: SocketAddr, messages: impl Iterator<Item = String>) -> Option<()> {
    let mut socket = TcpStream::connect(to).ok()?;
    let mut replies = BufReader::new(socket.try_clone().ok()?).lines();
    let mut say = |text: &str| {
        socket.write_all(text.as_bytes()).ok()?;
        replies.next()?.ok()
    };
    say("")?;
    say("HELO relay\r\n")?;
    for content in messages {
        say("MAIL FROM:<a@b>\r\n")?;
        say("RCPT TO:<c@d>\r\n")?;
        say("DATA\r\n")?;
        say(&(content + ".\r\n"))?;
    }
    Some(())
}
