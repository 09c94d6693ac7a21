//! Clients that mean harm: what they hold ends, and what it costs is bounded. `scripts/abuse.sh` does the
//! same in earnest and measures good mail beside it.
mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Client, Peer, Server, run};
use serde_json::Value;

/// An attack that goes on for longer has not been ended.
const PATIENCE: Duration = Duration::from_secs(60);

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("abuse-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn sessions(spool: &Path) -> u64 {
    let (status, out, err) = run(&["queue", "summary", "--json", "--spool", spool.to_str().expect("text")]);
    assert!(status.success(), "{err}");
    let report = serde_json::from_str::<Value>(&out).expect("JSON")["report"].clone();
    report["counters"]["sessions_now"].as_u64().expect("a number")
}

fn wait_for_sessions(spool: &Path, wanted: impl Fn(u64) -> bool) {
    let begun = Instant::now();
    loop {
        let now = sessions(spool);
        if wanted(now) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{now} sessions");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Memory of the process that is its own, in bytes.
fn anonymous(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("running");
    let line = status.lines().find(|line| line.starts_with("RssAnon")).expect("a line");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
}

/// Good mail goes through, whatever else happens.
fn good_mail_is_taken(server: &Server) {
    let reply = Client::connect(server.addr).deliver("a@good.test", &["b@good.test"], "good\r\n");
    assert!(reply.starts_with("250 "), "{reply}");
}

/// Sends `bytes` again and again, with a pause between, until the server has closed. Gives all it said.
fn send_until_closed(addr: SocketAddr, first: &[u8], bytes: &[u8], pause: Duration) -> String {
    let mut socket = TcpStream::connect(addr).expect("connected");
    socket.write_all(first).expect("sent");
    socket.set_nonblocking(true).expect("set");
    let (begun, mut said, mut buffer) = (Instant::now(), Vec::new(), [0; 65536]);
    let mut sent = 0;
    loop {
        assert!(begun.elapsed() < PATIENCE, "still open: {}", String::from_utf8_lossy(&said));
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        match socket.write(&bytes[sent..]) {
            Ok(written) => sent = (sent + written) % bytes.len(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            // What the server said before it closed can still be read.
            Err(_) => {}
        }
        std::thread::sleep(pause);
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn an_idle_session_costs_little_memory() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--route", "*=127.0.0.1:9", "--workers", "1"]);
    let idle = |count: usize| -> Vec<Client> {
        let clients = (0..count).map(|_| {
            let mut client = Client::connect(server.addr);
            assert!(client.ask("EHLO idle.test").starts_with("250"));
            client
        });
        clients.collect()
    };
    // The first ones pay for tables and for what the allocator takes at once.
    let first = idle(100);
    std::thread::sleep(Duration::from_secs(3));
    let before = anonymous(&server);
    let more = idle(350);
    wait_for_sessions(dir.path(), |now| now == 450);
    // Silence makes them give their buffers back.
    let begun = Instant::now();
    let each = loop {
        let each = anonymous(&server).saturating_sub(before) / more.len() as u64;
        if each <= 16 * 1024 || begun.elapsed() > Duration::from_secs(20) {
            break each;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("{each} bytes for each idle session");
    // A coarse bound: this is a debug build, with an allocator that is one too. What a task may take is tested
    // where it is made (worker/arrival.rs), and `scripts/abuse.sh` measures a release build.
    assert!(each <= 32 * 1024, "{each} bytes for each idle session");
    // They are there all the same.
    for mut client in first.into_iter().chain(more) {
        assert!(client.ask("NOOP").starts_with("250"));
    }
    good_mail_is_taken(&server);
    assert!(server.stop().success());
}

#[test]
fn a_trickle_holds_nothing_for_long() {
    let dir = directory();
    let waits = ["--route", "*=127.0.0.1:9", "--command-wait", "1s", "--data-wait", "1s"];
    let server = Server::start(dir.path(), &waits);
    let pause = Duration::from_millis(100);
    let command = send_until_closed(server.addr, b"", b"N", pause);
    assert!(command.contains("421 4.4.2"), "{command}");
    let start = b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n";
    let body = send_until_closed(server.addr, start, b"y", pause);
    assert!(body.contains("354 ") && body.contains("421 4.4.2"), "{body}");
    // The same once the body has outgrown what is kept in one piece.
    let large = [&start[..], &b"0123456789012345678901234567890123456789\r\n".repeat(3000)].concat();
    let begun = Instant::now();
    let body = send_until_closed(server.addr, &large, b"y", pause);
    assert!(body.contains("421 4.4.2"), "{body}");
    assert!(begun.elapsed() < PATIENCE);
    // A slow body that comes at the least rate is taken.
    let mut client = Client::connect(server.addr);
    assert!(client.ask("EHLO x").starts_with("250"));
    assert!(client.ask("MAIL FROM:<a@b.test>").starts_with("250"));
    assert!(client.ask("RCPT TO:<c@d.test>").starts_with("250"));
    assert!(client.ask("DATA").starts_with("354"));
    for _ in 0..15 {
        client.send(&[&[b'x'; 298][..], b"\r\n"].concat());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(client.ask(".").starts_with("250 "));
    assert!(server.stop().success());
}

#[test]
fn a_million_recipients_and_a_line_without_end_are_sent_away() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    let start = b"EHLO x\r\nMAIL FROM:<a@b.test>\r\n";
    let before = anonymous(&server);
    let batch = b"RCPT TO:<someone@many.test>\r\n".repeat(2000);
    let said = send_until_closed(server.addr, start, &batch, Duration::ZERO);
    assert!(said.ends_with("Too many errors or idle commands\r\n"), "{}", &said[said.len().max(200) - 200..]);
    assert_eq!(said.matches("\r\n250 2.1.5").count(), 1000);
    let refused = said.matches("\r\n452 ").count();
    assert!((65_000..66_000).contains(&refused), "{refused}");
    let said = send_until_closed(server.addr, b"", &[b'x'; 65536], Duration::ZERO);
    assert!(said.ends_with("Too many errors or idle commands\r\n"), "{said}");
    let grown = anonymous(&server).saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB", grown >> 20);
    good_mail_is_taken(&server);
    peer.wait_for(1, PATIENCE);
    assert!(server.stop().success());
}

#[test]
fn floods_leave_nothing_behind() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = Server::start(dir.path(), &["--route", &peer.route()]);
    for n in 0..3000u32 {
        let mut socket = TcpStream::connect(server.addr).expect("connected");
        match n % 4 {
            // Gone at once, in the middle of a command, in the middle of a body; the end is a reset where
            // what the server has said is not read.
            0 => {}
            1 => socket.write_all(b"EHLO x\r\nMAIL FR").expect("sent"),
            2 => socket
                .write_all(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nhalf a")
                .expect("sent"),
            _ => {
                let reset = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
                reset.expect("set");
            }
        }
        if n % 500 == 0 {
            good_mail_is_taken(&server);
        }
    }
    for command in ["NOOP\r\n", "EHLO x\r\n", "nonsense\r\n"] {
        let said = send_until_closed(server.addr, b"", command.repeat(3000).as_bytes(), Duration::ZERO);
        assert!(said.contains("421 4.7.0"), "{command}");
    }
    wait_for_sessions(dir.path(), |now| now == 0);
    let arrived = peer.wait_for(6, PATIENCE);
    assert!(arrived.iter().all(|message| message.data.contains("good")), "half a message was sent on");
    assert!(server.stop().success());
}

#[test]
fn who_does_not_read_replies_is_not_waited_for() {
    let dir = directory();
    let server = Server::start(dir.path(), &["--route", "*=127.0.0.1:9", "--command-wait", "2s"]);
    let mut deaf: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(server.addr).expect("connected")).collect();
    for socket in &mut deaf {
        socket.set_nonblocking(true).expect("set");
        // As much as is taken: five hundred commands that move no mail, and no more, are answered.
        while socket.write(&b"EHLO deaf.test\r\n".repeat(1000)).is_ok() {}
    }
    good_mail_is_taken(&server);
    wait_for_sessions(dir.path(), |now| now == 0);
    assert!(server.stop().success());
}

#[test]
fn the_silent_make_room_in_a_crowd() {
    let dir = directory();
    let server =
        Server::start(dir.path(), &["--route", "*=127.0.0.1:9", "--workers", "1", "--max-connections", "20"]);
    let _silent: Vec<Client> = (0..20).map(|_| Client::connect(server.addr)).collect();
    // Full: whoever comes now is told so, and when the silent have gone there is room.
    let begun = Instant::now();
    loop {
        let mut socket = TcpStream::connect(server.addr).expect("connected");
        let mut greeting = [0; 4];
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        socket.read_exact(&mut greeting).expect("a greeting");
        if &greeting == b"220 " {
            break;
        }
        assert_eq!(&greeting, b"421 ");
        assert!(begun.elapsed() < PATIENCE, "nobody has gone");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(begun.elapsed() > Duration::from_secs(15), "they were given time");
    assert!(server.stop().success());
}
