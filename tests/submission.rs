//! Submission and logins, over loopback against the real binary.
mod common;
#[path = "common/tls.rs"]
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{BINARY, Client, Peer, Server, run, wait_until};
use rustls::{ALL_VERSIONS, ClientConfig};
use tls::{Authority, Pair, TlsStream};

const LIMIT: Duration = Duration::from_secs(60);

struct Site {
    dir: tempfile::TempDir,
    pair: Pair,
    config: Arc<ClientConfig>,
    peer: Peer,
    users: PathBuf,
    events: PathBuf,
}

/// What `ringpost passwd hash` prints.
fn user_line(password: &str, args: &[&str]) -> String {
    let mut child = Command::new(BINARY)
        .args(["passwd", "hash"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    writeln!(child.stdin.take().expect("piped"), "{password}").expect("it reads");
    let output = child.wait_with_output().expect("waited");
    assert!(output.status.success());
    let line = String::from_utf8(output.stdout).expect("text");
    assert!(!line.contains(password));
    line
}

impl Site {
    fn new(users: &str) -> Site {
        let parent = env!("CARGO_TARGET_TMPDIR");
        let dir = tempfile::Builder::new().prefix("submission-").tempdir_in(parent).expect("a directory");
        let authority = Authority::new();
        let pair = authority.sign(dir.path(), "mta", &["mta.test"], false);
        let (file, events) = (dir.path().join("users"), dir.path().join("events"));
        std::fs::write(&file, users).expect("written");
        let config = authority.client(None, ALL_VERSIONS);
        Site { dir, pair, config, peer: Peer::willing(), users: file, events }
    }

    fn start(&self, args: &[&str]) -> Server {
        let (route, users) = (self.peer.route(), self.users.to_str().expect("UTF-8"));
        let events = self.events.to_str().expect("UTF-8");
        let own = ["--route", &route, "--workers", "1", "--auth-file", users, "--event-log", events];
        let own = [&self.pair.flags()[..], &own, args].concat();
        Server::start(&self.dir.path().join("spool"), &own)
    }

    fn submissions(&self, server: &Server) -> Client<TlsStream> {
        let mut client = tls::connect(server.address_of("submissions"), &self.config, "mta.test");
        assert!(client.ask("EHLO client.test").starts_with("250"));
        client
    }
}

const BOTH: [&str; 4] = ["--submission", "127.0.0.1:0", "--submissions", "127.0.0.1:0"];

fn plain(name: &str, password: &str) -> String {
    format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{name}\0{password}")))
}

fn scram_users() -> String {
    let scheme = ["--scheme", "scram-sha-256"];
    let anything = [&scheme[..], &["--from", "*", "robot"]].concat();
    let alice = [&scheme[..], &["alice@example.test"]].concat();
    user_line("pencil", &alice) + &user_line("paper", &anything)
}

#[test]
fn mail_is_submitted_by_those_who_may_and_completed() {
    let site = Site::new(&scram_users());
    let server = site.start(&BOTH);
    for implicit in [false, true] {
        let mut client = if implicit {
            site.submissions(&server)
        } else {
            let addr = server.address_of("submission");
            let mut clear = Client::connect(addr);
            assert!(!clear.ask("EHLO client.test").contains("AUTH"));
            assert!(clear.ask("MAIL FROM:<alice@example.test>").starts_with("530 5.7.0"));
            assert!(clear.ask(&plain("alice@example.test", "pencil")).starts_with("538"));
            tls::starttls(addr, &site.config, "mta.test")
        };
        let offered = client.ask("EHLO client.test");
        assert!(offered.contains("\n250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN\n"), "{offered}");
        assert!(client.ask("MAIL FROM:<alice@example.test>").starts_with("530 5.7.0"));
        assert!(client.ask(&plain("Alice@example.test", "pencil")).starts_with("235"));
        assert!(client.ask("MAIL FROM:<bob@example.test>").starts_with("553 5.7.1"));
        let reply = client.deliver("alice@example.test", &["b@one.test"], "Subject: x\r\n\r\nhi\r\n");
        assert!(reply.starts_with("250"), "{reply}");
        let data = site.peer.wait_for(1, LIMIT).remove(0).data;
        let head = data.split_once("\n\n").expect("a header").0;
        assert!(head.contains("with ESMTPSA id") && !head.contains("pencil"), "{head}");
        assert_eq!(
            (head.matches("\nDate: ").count(), head.matches("\nMessage-ID: <").count()),
            (1, 1),
            "{head}"
        );
        site.peer.arrived.lock().expect("not poisoned").clear();
        // What the client wrote itself stays, in a message of any size.
        let large = format!("Date: mine\r\nMessage-ID: <mine@x>\r\n\r\n{}", "line\r\n".repeat(50_000));
        assert!(client.deliver("alice@example.test", &["b@one.test"], &large).starts_with("250"));
        let large = format!("Subject: x\r\n\r\n{}", "line\r\n".repeat(50_000));
        assert!(client.deliver("alice@example.test", &["b@one.test"], &large).starts_with("250"));
        let mut dates: Vec<bool> =
            site.peer.wait_for(2, LIMIT).iter().map(|m| m.data.contains("\nDate: mine\n")).collect();
        dates.sort();
        assert_eq!(dates, [false, true]);
        let arrived = site.peer.wait_for(2, LIMIT);
        assert!(arrived.iter().all(|m| m.data.matches("\nDate: ").count() == 1), "one each");
        site.peer.arrived.lock().expect("not poisoned").clear();
    }
    assert!(server.stop().success());
    let events = std::fs::read_to_string(&site.events).expect("events");
    assert!(events.contains(r#""type":"login","user":"Alice@example.test","client":"127.0.0.1","mechanism":"PLAIN","success":true"#));
    assert!(events.contains(r#""user":"alice@example.test","tls":"TLSv1.3 "#), "{events}");
    let delivered = events.lines().filter(|line| line.contains(r#""type":"delivered""#));
    assert_eq!(
        delivered.filter(|line| line.ends_with(r#","user":"alice@example.test"}"#)).count(),
        6,
        "{events}"
    );
}

#[test]
fn a_login_on_the_open_port_may_relay_and_is_not_completed() {
    let site = Site::new(&scram_users());
    let server = site.start(&["--relay-from", "192.0.2.0/24"]);
    let mut client = tls::starttls(server.addr, &site.config, "mta.test");
    client.ask("EHLO client.test");
    client.ask("MAIL FROM:<robot@x.test>");
    assert!(client.ask("RCPT TO:<b@one.test>").starts_with("550 5.7.1"));
    client.ask("RSET");
    // LOGIN, in turns.
    assert_eq!(client.ask("AUTH LOGIN"), format!("334 {}", STANDARD.encode("Username:")));
    assert_eq!(client.ask(&STANDARD.encode("robot")), format!("334 {}", STANDARD.encode("Password:")));
    assert!(client.ask(&STANDARD.encode("paper")).starts_with("235"));
    assert!(client.deliver("anybody@x.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    let data = site.peer.wait_for(1, LIMIT).remove(0).data;
    assert!(data.contains("with ESMTPSA id") && !data.contains("Message-ID"), "{data}");
    assert!(server.stop().success());
}

/// What a client of SCRAM binds to.
#[derive(Clone, Copy, Debug)]
enum Bound<'a> {
    Nothing,
    /// RFC 9266.
    Exporter,
    /// RFC 5929 §4: the certificate, signed with SHA-256.
    EndPoint(&'a [u8]),
}

/// The client's side of SCRAM-SHA-256, written anew here.
fn scram(client: &mut Client<TlsStream>, name: &str, password: &str, bound: Bound<'_>) -> String {
    use aws_lc_rs::{digest, hmac, pbkdf2};
    let mac = |key: &[u8], message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let (mechanism, header) = match bound {
        Bound::Nothing => ("SCRAM-SHA-256", "n,,"),
        Bound::Exporter => ("SCRAM-SHA-256-PLUS", "p=tls-exporter,,"),
        Bound::EndPoint(_) => ("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"),
    };
    let bare = format!("n={name},r=clientnonce");
    let challenge = client.ask(&format!("AUTH {mechanism} {}", STANDARD.encode(format!("{header}{bare}"))));
    let Some(challenge) = challenge.strip_prefix("334 ") else { return challenge };
    let first = String::from_utf8(STANDARD.decode(challenge).expect("base64")).expect("text");
    let value = |key: &str| first.split(',').find_map(|a| a.strip_prefix(key)).expect("there").to_owned();
    let salt = STANDARD.decode(value("s=")).expect("base64");
    let rounds = value("i=").parse().expect("a number");
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut salted);
    let client_key = mac(&salted, b"Client Key");
    let mut binding = header.as_bytes().to_vec();
    match bound {
        Bound::Nothing => {}
        Bound::Exporter => {
            let label = b"EXPORTER-Channel-Binding";
            let connection = &client.stream().conn;
            let data = connection.export_keying_material([0; 32], label, Some(&[])).expect("exported");
            binding.extend_from_slice(&data);
        }
        Bound::EndPoint(certificate) => {
            binding.extend_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        }
    }
    let without = format!("c={},r={}", STANDARD.encode(binding), value("r="));
    let signed = format!("{bare},{first},{without}");
    let stored = digest::digest(&digest::SHA256, client_key.as_ref());
    let signature = mac(stored.as_ref(), signed.as_bytes());
    let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
    let reply = client.ask(&STANDARD.encode(format!("{without},p={}", STANDARD.encode(proof))));
    let Some(last) = reply.strip_prefix("334 ") else { return reply };
    let expected = mac(mac(&salted, b"Server Key").as_ref(), signed.as_bytes());
    let expected = format!("v={}", STANDARD.encode(expected));
    assert_eq!(STANDARD.decode(last).expect("base64"), expected.as_bytes(), "the server proves itself");
    client.ask("")
}

#[test]
fn scram_with_and_without_a_bound_channel() {
    let site = Site::new(&scram_users());
    let server = site.start(&BOTH);
    for bound in [Bound::Nothing, Bound::Exporter, Bound::EndPoint(&site.pair.der)] {
        let mut client = site.submissions(&server);
        assert!(scram(&mut client, "alice@example.test", "pencil", bound).starts_with("235"), "{bound:?}");
        let mut client = site.submissions(&server);
        assert!(scram(&mut client, "alice@example.test", "pencil2", bound).starts_with("535"), "{bound:?}");
        assert!(scram(&mut client, "nobody@example.test", "pencil", bound).starts_with("535"), "{bound:?}");
    }
    // Someone between the two has a certificate of his own.
    let other = Authority::new().sign(site.dir.path(), "other", &["mta.test"], false);
    let mut client = site.submissions(&server);
    let reply = scram(&mut client, "alice@example.test", "pencil", Bound::EndPoint(&other.der));
    assert!(reply.starts_with("535"), "{reply}");
    assert!(server.stop().success());
}

#[test]
fn a_password_beyond_ascii_fits_however_it_is_typed() {
    let (composed, apart) = ("p\u{fc}ncil", "pu\u{308}ncil");
    let scram_line = ["--scheme", "scram-sha-256", "--from", "*", "j\u{fc}rgen"];
    let site = Site::new(&user_line(apart, &scram_line));
    let server = site.start(&BOTH);
    // A client of SCRAM prepares what is typed (RFC 5802 §2.2); the name may come as it was typed.
    for name in ["j\u{fc}rgen", "ju\u{308}rgen"] {
        let mut client = site.submissions(&server);
        assert!(scram(&mut client, name, composed, Bound::Exporter).starts_with("235"), "{name}");
        for password in [composed, apart] {
            let mut client = site.submissions(&server);
            assert!(client.ask(&plain(name, password)).starts_with("235"), "{name} {password}");
        }
        let mut client = site.submissions(&server);
        assert!(client.ask(&plain(name, "puncil")).starts_with("535"), "{name}");
    }
    assert!(server.stop().success());
}

#[test]
fn who_submitted_a_message_is_kept() {
    let mut site = Site::new(&scram_users());
    // Nothing is delivered meanwhile.
    site.peer = Peer::scripted(|verb, _| match verb {
        "RCPT" => Some("450 4.2.1 later".into()),
        _ => Some(common::default_reply(verb)),
    });
    let shown = |id: &str, json: bool| {
        let spool = site.dir.path().join("spool");
        let spool = ["--spool", spool.to_str().expect("UTF-8")];
        let (status, out, err) =
            run(&[&["queue", "show", id][..], &spool, if json { &["--json"][..] } else { &[] }].concat());
        assert!(status.success(), "{err}");
        let (status, list, err) = run(&[&["queue", "list"][..], &spool].concat());
        assert!(status.success(), "{err}");
        (out, list)
    };
    let mut server = site.start(&[&BOTH[..], &["--retry-schedule", "1h"]].concat());
    let mut client = site.submissions(&server);
    assert!(client.ask(&plain("Robot", "paper")).starts_with("235"));
    let reply = client.deliver("a@x.test", &["b@one.test"], "Subject: x\r\n\r\nhi\r\n");
    let id = reply.split_whitespace().nth(2).expect("an id").to_owned();
    let reply = Client::connect(server.addr).deliver("a@x.test", &["b@one.test"], "hi\r\n");
    let other = reply.split_whitespace().nth(2).expect("an id").to_owned();
    for round in 0..2 {
        let (text, list) = shown(&id, false);
        let user = text.lines().find(|line| line.starts_with("user ")).expect("a line").split_whitespace();
        assert_eq!(user.last(), Some("robot"), "{round}: {text}");
        let line_of = |id: &str| list.lines().find(|line| line.starts_with(id)).expect("listed").to_owned();
        assert!(line_of(&id).ends_with(" robot") && line_of(&other).ends_with(" -"), "{list}");
        let json = |id: &str| serde_json::from_str::<serde_json::Value>(&shown(id, true).0).expect("JSON");
        assert_eq!(json(&id)["user"], "robot");
        assert!(json(&other)["user"].is_null());
        assert!(server.stop().success());
        server = site.start(&[&BOTH[..], &["--retry-schedule", "1h"]].concat());
    }
    assert!(server.stop().success());
    // Both readers of the format that need no server say the same.
    let spool = site.dir.path().join("spool");
    let (status, ours, err) = run(&["spool", "dump", "--json", "--spool", spool.to_str().expect("UTF-8")]);
    assert!(status.success(), "{err}");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/read_log.py");
    let theirs = Command::new("python3").arg(script).arg(&spool).output();
    let users = |text: &str| -> Vec<(String, serde_json::Value)> {
        let messages =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        messages.map(|m| (m["id"].as_str().expect("an id").to_owned(), m["user"].clone())).collect()
    };
    let mut expected = vec![(id, "robot".into()), (other, serde_json::Value::Null)];
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(users(&ours), expected);
    match theirs {
        Ok(output) if output.status.success() => {
            assert_eq!(users(&String::from_utf8_lossy(&output.stdout)), expected);
        }
        _ => println!("skipped: needs python3 and `pip install xxhash`"),
    }
}

#[test]
fn failed_logins_are_slow_counted_and_kept_secret() {
    let site = Site::new(&(user_line("pencil", &["alice@example.test"])));
    let server = site.start(&BOTH);
    let mut client = site.submissions(&server);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(client.ask(&plain("alice@example.test", "tanstaaf")).starts_with("535 5.7.8"));
    }
    assert!(start.elapsed() >= Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(client.ask(&plain("stranger", "tanstaaf")).starts_with("421 4.7.0"));
    assert_eq!(client.reply(), "");
    // Others go on meanwhile: a few clients that fail, and mail on the open port beside them.
    let failing: Vec<_> = (0..17)
        .map(|_| {
            let (addr, config) = (server.address_of("submissions"), site.config.clone());
            std::thread::spawn(move || {
                let mut client = tls::connect(addr, &config, "mta.test");
                client.ask("EHLO client.test");
                client.ask(&plain("alice@example.test", "tanstaaf"))
            })
        })
        .collect();
    let mut open = Client::connect(server.addr);
    assert!(open.deliver("a@sender.test", &["b@one.test"], "hi\r\n").starts_with("250"));
    for thread in failing {
        assert!(thread.join().expect("no panic").starts_with("535"));
    }
    // Twenty from one address are enough, whatever the password.
    let mut client = site.submissions(&server);
    assert!(client.ask(&plain("alice@example.test", "pencil")).starts_with("421 4.7.0"));
    server.wait_for_word("too many have failed");
    let said = server.said.lock().expect("not poisoned").clone();
    assert!(said.contains("a login failed") && said.contains("stranger"), "{said}");
    assert!(server.stop().success());
    let events = std::fs::read_to_string(&site.events).expect("events");
    let secret = STANDARD.encode("\0alice@example.test\0tanstaaf");
    for text in [said, events] {
        assert!(!text.contains("tanstaaf") && !text.contains(&secret), "{text}");
    }
}

#[test]
fn a_user_keeps_to_its_rate() {
    let site = Site::new(&user_line("pencil", &["--rate", "4/h", "alice@example.test"]));
    let server = site.start(&BOTH);
    let mut client = site.submissions(&server);
    assert!(client.ask(&plain("alice@example.test", "pencil")).starts_with("235"));
    let to = ["a@one.test", "b@one.test", "c@one.test"];
    assert!(client.deliver("alice@example.test", &to, "hi\r\n").starts_with("250"));
    assert!(client.deliver("alice@example.test", &to[..1], "hi\r\n").starts_with("250"));
    // Another session of the same user is the same user.
    let mut client = site.submissions(&server);
    assert!(client.ask(&plain("alice@example.test", "pencil")).starts_with("235"));
    client.ask("EHLO client.test");
    assert!(client.ask("MAIL FROM:<alice@example.test>").starts_with("450 4.7.1"));
    assert!(server.stop().success());
}

#[test]
fn a_users_mail_is_of_its_stream_whatever_its_header_says() {
    let users = user_line("one", &["--stream", "letters", "alice@example.test"])
        + &user_line("two", &["Bob@example.test"]);
    let site = Site::new(&users);
    let args = ["--stream-header", "X-Stream", "--stream-by-user", "--route", "late.test=127.0.0.1:9"];
    let server = site.start(&[&BOTH[..], &args].concat());
    for (name, password) in [("alice@example.test", "one"), ("Bob@example.test", "two")] {
        let mut client = site.submissions(&server);
        assert!(client.ask(&plain(name, password)).starts_with("235"));
        client.deliver(name, &["x@late.test"], "X-Stream: bulk\r\nSubject: x\r\n\r\nbody\r\n");
    }
    let spool = site.dir.path().join("spool").display().to_string();
    let list =
        |stream: &str| common::run(&["queue", "list", "--json", "--spool", &spool, "--stream", stream]).1;
    assert!(list("letters").contains("alice@example.test"), "{}", list("letters"));
    assert!(list("bob@example.test").contains("Bob@example.test"), "{}", list("bob@example.test"));
    assert!(!list("bulk").contains("example.test"), "{}", list("bulk"));
}

#[test]
fn users_change_without_a_restart() {
    let site = Site::new(&user_line("pencil", &["alice@example.test"]));
    let server = site.start(&BOTH);
    std::fs::write(&site.users, "alice@example.test:plain").expect("written");
    server.signal("HUP");
    server.wait_for_word("stay what they were");
    let mut client = site.submissions(&server);
    assert!(client.ask(&plain("alice@example.test", "pencil")).starts_with("235"));
    std::fs::write(&site.users, user_line("eraser", &["bob@example.test"])).expect("written");
    server.signal("HUP");
    server.wait_for_word("were read again");
    wait_until("bob logs in", || {
        site.submissions(&server).ask(&plain("bob@example.test", "eraser")).starts_with("235")
    });
    assert!(site.submissions(&server).ask(&plain("alice@example.test", "pencil")).starts_with("535"));
    assert!(server.stop().success());
}

#[test]
fn check_knows_what_is_wrong() {
    let site = Site::new("alice:tanstaaf\n");
    let other = Authority::new().sign(site.dir.path(), "other", &["other.test"], false);
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let spool = text(&site.dir.path().join("spool"));
    let (cert, key, users) = (text(&site.pair.cert), text(&other.key), text(&site.users));
    let missing = text(&site.dir.path().join("none.pem"));
    for (args, complaint) in [
        (vec!["--submission", "127.0.0.1:0"], "--submission: needs TLS"),
        (vec!["--tls-cert", &cert], "there are 1 --tls-cert and 0 --tls-key"),
        (vec!["--tls-cert", &cert, "--tls-key", &key], "cannot be used"),
        (vec!["--tls-cert", &missing, "--tls-key", &key], "none.pem: No such file"),
        (
            [&site.pair.flags()[..], &["--auth-file", &users]].concat(),
            "users: line 1: alice: the credential is no hash that is known",
        ),
    ] {
        let (status, _, said) = run(&[&["check", "--spool", &spool], &args[..]].concat());
        assert!(
            !status.success() && said.contains(complaint) && !said.contains("tanstaaf"),
            "{args:?}: {said}"
        );
        let (status, _, said) = run(&[&["serve", "--spool", &spool], &args[..]].concat());
        assert!(!status.success() && said.contains(complaint), "{args:?}: {said}");
    }
    let (status, _, said) = run(&["passwd", "hash", "no-address"]);
    assert!(!status.success() && said.contains("say what it may send as"), "{said}");
}
