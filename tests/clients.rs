//! Who the client is and what it may, over loopback against the real binary. Loopback is exempt from
//! limits, so the clients here come through a proxy that gives them addresses.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use common::{Client, Peer, Server, run};

const LIMIT: Duration = Duration::from_secs(60);
const PROXIED: [&str; 2] = ["--proxy-from", "127.0.0.0/8"];

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("clients-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn start(dir: &tempfile::TempDir, peer: &Peer, args: &[&str]) -> Server {
    let route = peer.route();
    Server::start(&dir.path().join("spool"), &[&["--route", &route, "--workers", "1"], args].concat())
}

fn header(from: &str) -> String {
    let kind = if from.contains(':') { "TCP6" } else { "TCP4" };
    let to = if from.contains(':') { "::1" } else { "127.0.0.1" };
    format!("PROXY {kind} {from} {to} 4711 25\r\n")
}

/// A client that a proxy passes on.
fn proxied(addr: SocketAddr, from: &str) -> Client {
    let mut client = Client::silent(addr);
    client.send(header(from).as_bytes());
    client
}

/// What such a client is greeted with.
fn greeting(addr: SocketAddr, from: &str) -> String {
    proxied(addr, from).reply()
}

/// All that the server says until it closes.
fn all(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let _ = stream.read_to_end(&mut said);
    String::from_utf8(said).expect("text")
}

#[test]
fn the_client_of_a_proxy_is_the_client() {
    let (dir, peer) = (directory(), Peer::willing());
    // The proxy has all rights.
    let rights =
        ["--relay-from", "192.0.2.0/24", "--relay-from", "127.0.0.0/8", "--xclient-from", "127.0.0.1"];
    let server = start(&dir, &peer, &[&PROXIED[..], &rights].concat());
    let v2 = {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
        bytes.extend_from_slice(&[192, 0, 2, 9, 127, 0, 0, 1, 0x12, 0x67, 0, 25]);
        bytes
    };
    for (bytes, literal) in [(header("192.0.2.7").into_bytes(), "[192.0.2.7]"), (v2, "[192.0.2.9]")] {
        for size in [1, bytes.len()] {
            let mut client = Client::silent(server.addr);
            for piece in bytes.chunks(size) {
                client.send(piece);
                std::thread::sleep(Duration::from_millis(u64::from(size == 1)));
            }
            assert!(client.reply().starts_with("220 "));
            assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
            let data = peer.wait_for(1, LIMIT).remove(0).data;
            assert!(data.starts_with(&format!("Received: from client.test ({literal})")), "{data}");
            peer.arrived.lock().expect("not poisoned").clear();
        }
    }
    // The proxy's own address opens no door to its clients.
    let mut client = proxied(server.addr, "198.51.100.1");
    client.reply();
    client.ask("EHLO client.test");
    client.ask("MAIL FROM:<a@sender.test>");
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("550 5.7.1"));
    // What comes right behind the header is the client's.
    let mut client = Client::silent(server.addr);
    client.send(format!("{}EHLO client.test\r\n", header("192.0.2.7")).as_bytes());
    assert!(client.reply().starts_with("220 ") && client.reply().starts_with("250"));
    // A proxy that does not know its client lends it no rights; its own connections have its own.
    let unspecified = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let ways = [(&b"PROXY UNKNOWN\r\n"[..], "550 5.7.1"), (unspecified, "550 5.7.1"), (local, "250 ")];
    for (header, reply) in ways {
        let mut client = Client::silent(server.addr);
        client.send(header);
        assert!(client.reply().starts_with("220 "));
        assert_eq!(client.ask("EHLO client.test").contains("XCLIENT"), reply == "250 ");
        client.ask("MAIL FROM:<a@sender.test>");
        assert!(client.ask("RCPT TO:<b@one.test>").starts_with(reply), "{}", header.escape_ascii());
    }
    for wrong in [&b"EHLO client.test\r\n"[..], b"PROXY TCP4 x\r\n", b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\0"] {
        let mut client = Client::silent(server.addr);
        client.send(wrong);
        assert_eq!(all(client.into_stream()), "", "closed without a word");
    }
    server.wait_for_word("--proxy-from");
    assert!(server.stop().success());
}

#[test]
fn a_header_from_anyone_else_is_not_believed() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = start(&dir, &peer, &["--proxy-from", "192.0.2.0/24"]);
    let mut client = Client::connect(server.addr);
    assert!(client.ask("PROXY TCP4 198.51.100.1 127.0.0.1 1 2").starts_with("500"));
    assert!(!client.ask("EHLO client.test").contains("XCLIENT"));
    assert!(client.ask("XCLIENT ADDR=192.0.2.1").starts_with("502"));
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn xclient_renames_a_session() {
    let (dir, peer) = (directory(), Peer::willing());
    let server = start(&dir, &peer, &["--xclient-from", "127.0.0.1", "--relay-from", "192.0.2.0/24"]);
    let mut client = Client::connect(server.addr);
    assert!(client.ask("EHLO proxy.test").contains("\n250-XCLIENT "));
    client.ask("MAIL FROM:<a@sender.test>");
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("550"), "the proxy itself may not relay");
    client.ask("RSET");
    assert!(client.ask("XCLIENT ADDR=192.0.2.7 NAME=[UNAVAILABLE]").starts_with("220 mta.test"));
    assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    let data = peer.wait_for(1, LIMIT).remove(0).data;
    assert!(data.starts_with("Received: from client.test ([192.0.2.7])"), "{data}");
    assert!(client.ask("XCLIENT ADDR=IPV6:2001:db8::1").starts_with("220 mta.test"));
    client.ask("EHLO client.test");
    client.ask("MAIL FROM:<a@sender.test>");
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("550"));
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn mail_for_local_domains_is_taken_from_strangers() {
    let (dir, peer) = (directory(), Peer::willing());
    let args =
        ["--local-domain", "own.test", "--postmaster", "pm@elsewhere.test", "--relay-from", "192.0.2.0/24"];
    let server = start(&dir, &peer, &args);
    let mut client = Client::connect(server.addr);
    client.ask("EHLO client.test");
    client.ask("MAIL FROM:<a@sender.test>");
    for stranger in
        ["b@one.test", "b@x.own.test", "b@elsewhere.test", "b@[127.0.0.1]", "@own.test:b@one.test"]
    {
        let reply = client.ask(&format!("RCPT TO:<{stranger}>"));
        assert!(reply.starts_with("550 5.7.1"), "{stranger}: {reply}");
    }
    client.ask("RSET");
    assert!(client.deliver("a@sender.test", &["b@OWN.test", "Postmaster"], "hi\r\n").starts_with("250"));
    let mut to: Vec<String> = peer.wait_for(2, LIMIT).into_iter().flat_map(|m| m.to).collect();
    to.sort();
    assert_eq!(to, ["b@own.test", "pm@elsewhere.test"]);
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn who_speaks_before_the_greeting_is_sent_away() {
    let (dir, peer) = (directory(), Peer::willing());
    let args = ["--greet-pause", "1s", "--relay-from", "192.0.2.0/24"];
    let server = start(&dir, &peer, &[&PROXIED[..], &args].concat());
    let begun = Instant::now();
    assert!(greeting(server.addr, "198.51.100.1").starts_with("220 "));
    assert!(begun.elapsed() >= Duration::from_secs(1), "the greeting waits");
    let mut hasty = proxied(server.addr, "198.51.100.2");
    hasty.send(b"HELO hasty\r\n");
    assert!(all(hasty.into_stream()).starts_with("421 4.7.0 mta.test Wait"));
    // One that thinks better of it has not spoken.
    drop(proxied(server.addr, "198.51.100.3"));
    let count = |name: &str| {
        let spool = dir.path().join("spool");
        let (_, out, err) = run(&["queue", "summary", "--json", "--spool", spool.to_str().expect("text")]);
        let report = serde_json::from_str::<serde_json::Value>(&out).unwrap_or_else(|_| panic!("{err}"));
        report["report"]["counters"][name].as_u64().expect("a number")
    };
    common::wait_until("both have gone", || count("sessions_total") == 3 && count("sessions_now") == 0);
    assert_eq!(count("early_talkers"), 1);
    // Not for those who may relay.
    let mut trusted = proxied(server.addr, "192.0.2.1");
    trusted.send(b"HELO hasty\r\n");
    assert!(trusted.reply().starts_with("220 ") && trusted.reply().starts_with("250 "));
    drop(trusted);
    assert!(server.stop().success());
}

#[test]
fn addresses_and_networks_have_limits() {
    let (dir, peer) = (directory(), Peer::willing());
    let args = [
        "--max-connections-per-ip",
        "2",
        "--max-connections-per-network",
        "3",
        "--connection-rate-per-ip",
        "6/h",
        "--error-rate-per-ip",
        "5/h",
        "--message-rate-per-ip",
        "2/h",
        "--local-domain",
        "own.test",
        "--relay-from",
        "192.0.2.0/24",
    ];
    let server = start(&dir, &peer, &[&PROXIED[..], &args].concat());
    let open = |from: &str| {
        let mut client = proxied(server.addr, from);
        (client.reply(), client)
    };
    let held: Vec<_> = ["198.51.100.1", "198.51.100.1", "198.51.100.2"].map(open).into();
    assert!(held.iter().all(|(greeting, _)| greeting.starts_with("220 ")));
    let crowded = "421 4.7.0 mta.test Too many connections, try again later";
    assert_eq!(greeting(server.addr, "198.51.100.1"), crowded, "two per address");
    assert_eq!(greeting(server.addr, "198.51.100.3"), crowded, "three per network");
    assert!(greeting(server.addr, "198.51.101.1").starts_with("220 "), "another network");
    drop(held);
    // A rate of connections.
    let greetings: Vec<String> = (0..7)
        .map(|_| {
            let mut client = proxied(server.addr, "203.0.113.1");
            let greeting = client.reply();
            // Gone before the next: it is not the number at a time that counts here.
            client.ask("QUIT");
            client.reply();
            greeting
        })
        .collect();
    let refused = greetings
        .iter()
        .filter(|g| g.starts_with("421 4.7.0 mta.test Too many connections in a short"))
        .count();
    assert_eq!(refused, 1, "{greetings:?}");
    // Errors.
    let mut client = proxied(server.addr, "203.0.113.2");
    client.reply();
    (0..6).for_each(|_| assert!(client.ask("NONSENSE").starts_with("500")));
    client.ask("QUIT");
    client.reply();
    common::wait_until("errors shut the door", || {
        greeting(server.addr, "203.0.113.2").starts_with("421 4.7.0 mta.test Too many errors")
    });
    // Messages, over as many connections as it likes; not for who may relay.
    let mut client = proxied(server.addr, "203.0.113.3");
    client.reply();
    for _ in 0..2 {
        assert!(client.deliver("a@sender.test", &["b@own.test"], "hi\r\n").starts_with("250"));
    }
    assert!(client.ask("MAIL FROM:<a@sender.test>").starts_with("450 4.7.1"));
    // Nor for loopback, which is us although it may not relay here.
    let mut client = Client::silent(server.addr);
    client.send(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    client.reply();
    for _ in 0..3 {
        assert!(client.deliver("a@sender.test", &["b@own.test"], "hi\r\n").starts_with("250"));
    }
    let mut client = proxied(server.addr, "192.0.2.1");
    client.reply();
    for _ in 0..4 {
        assert!(client.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    }
    drop(client);
    assert!(server.stop().success());
}

#[test]
fn a_proxy_may_pass_on_tls() {
    let (dir, peer) = (directory(), Peer::willing());
    let authority = tls::Authority::new();
    let pair = authority.sign(dir.path(), "mta", &["mta.test"], false);
    let users = dir.path().join("users");
    std::fs::write(&users, "a@b.test:$2b$04$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu\n")
        .expect("written");
    let own = ["--submissions", "127.0.0.1:0", "--auth-file", users.to_str().expect("UTF-8")];
    let server = start(&dir, &peer, &[&PROXIED[..], &pair.flags(), &own].concat());
    let mut tcp = TcpStream::connect(server.address_of("submissions")).expect("connected");
    tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    tcp.write_all(header("198.51.100.1").as_bytes()).expect("sent");
    let config = authority.client(None, rustls::ALL_VERSIONS);
    let mut client = Client::on(tls::handshake(tcp, &config, "mta.test").expect("a handshake"));
    assert!(client.reply().starts_with("220 "));
    assert!(client.ask("EHLO client.test").contains("\n250-AUTH PLAIN LOGIN\n"));
    drop(client);
    assert!(server.stop().success());
}
