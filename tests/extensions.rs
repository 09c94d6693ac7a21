//! Extensions through the real binary: what a next hop with or without each of them is given.
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Server};

const LIMIT: Duration = Duration::from_secs(30);

/// What a hop was told on all its connections, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Connected,
    Line(String),
    /// As it came over the wire, without the final dot line.
    Data(Vec<u8>),
    Chunk(Vec<u8>),
}

/// A next hop that offers what it is told to. It refuses recipients that begin with `no`.
struct Hop {
    addr: SocketAddr,
    said: Arc<Mutex<Vec<Said>>>,
}

impl Hop {
    fn offering(keywords: &'static [&'static str]) -> Hop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = said.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || serve(stream, keywords, &kept));
            }
        });
        Hop { addr, said }
    }

    fn server(&self, dir: &std::path::Path, args: &[&str]) -> Server {
        let route = format!("*={}", self.addr);
        Server::start(dir, &[&["--route", &route, "--retry-schedule", "1s"], args].concat())
    }

    /// Waits until `enough` holds for what was said.
    fn wait(&self, enough: impl Fn(&[Said]) -> bool) -> Vec<Said> {
        let start = Instant::now();
        loop {
            let said = self.said.lock().expect("not poisoned").clone();
            if enough(&said) {
                return said;
            }
            assert!(start.elapsed() < LIMIT, "{said:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_bodies(&self, count: usize) -> Vec<Said> {
        self.wait(|said| bodies(said).len() >= count)
    }
}

fn bodies(said: &[Said]) -> Vec<&[u8]> {
    let body = |said: &'_ Said| matches!(said, Said::Data(_) | Said::Chunk(_));
    said.iter()
        .filter(|said| body(said))
        .map(|said| match said {
            Said::Data(bytes) | Said::Chunk(bytes) => &bytes[..],
            _ => &[],
        })
        .collect()
}

/// The lines that begin with `verb`.
fn lines<'a>(said: &'a [Said], verb: &str) -> Vec<&'a str> {
    said.iter()
        .filter_map(|said| match said {
            Said::Line(line) if line.starts_with(verb) => Some(&line[..]),
            _ => None,
        })
        .collect()
}

fn serve(stream: TcpStream, keywords: &[&str], said: &Mutex<Vec<Said>>) -> Option<()> {
    let keep = |what: Said| said.lock().expect("not poisoned").push(what);
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes()).ok();
    let mut taken = 0;
    keep(Said::Connected);
    say("220 hop.test ESMTP")?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        keep(Said::Line(line.to_string()));
        match line.get(..4)? {
            "EHLO" => {
                let offers: String = keywords.iter().map(|keyword| format!("250-{keyword}\r\n")).collect();
                say(&format!("250-hop.test\r\n{offers}250 ENHANCEDSTATUSCODES"))?;
            }
            "RCPT" if line.contains("<no") => say("550 5.1.1 nobody of that name")?,
            "RCPT" => {
                taken += 1;
                say("250 2.1.5 ok")?;
            }
            "DATA" if taken == 0 => say("554 5.5.1 for nobody")?,
            "DATA" => {
                taken = 0;
                say("354 go on")?;
                let mut data = Vec::new();
                loop {
                    let from = data.len();
                    if reader.read_until(b'\n', &mut data).ok()? == 0 {
                        return None;
                    }
                    if &data[from..] == b".\r\n" {
                        data.truncate(from);
                        break;
                    }
                }
                keep(Said::Data(data));
                say("250 2.0.0 taken")?;
            }
            "BDAT" => {
                let bytes = line.strip_prefix("BDAT ")?.strip_suffix(" LAST")?.parse().ok()?;
                let mut chunk = vec![0; bytes];
                reader.read_exact(&mut chunk).ok()?;
                keep(Said::Chunk(chunk));
                say("250 2.0.0 taken")?;
            }
            "QUIT" => return say("221 2.0.0 bye"),
            _ => say("250 2.0.0 ok")?,
        }
    }
}

fn spool() -> tempfile::TempDir {
    // Not /tmp, which may be a tmpfs that the server refuses for durable mail.
    tempfile::Builder::new().prefix("spool-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// Sends a message with these commands; by BDAT in chunks of `chunk` bytes, or by DATA if that is 0.
fn submit(server: &Server, mail: &str, rcpts: &[&str], body: &[u8], chunk: usize) {
    let mut client = Client::connect(server.addr);
    let mut ask = |line: &str| {
        let reply = client.ask(line);
        assert!(reply.starts_with(['2', '3']), "{line}: {reply}");
    };
    ask("EHLO client.test");
    ask(&format!("MAIL FROM:{mail}"));
    rcpts.iter().for_each(|rcpt| ask(&format!("RCPT TO:{rcpt}")));
    if chunk == 0 {
        ask("DATA");
        client.send(body);
        client.send(b".\r\n");
    } else {
        let chunks: Vec<&[u8]> = body.chunks(chunk).collect();
        for (at, chunk) in chunks.iter().enumerate() {
            let last = if at + 1 == chunks.len() { " LAST" } else { "" };
            client.send(format!("BDAT {}{last}\r\n", chunk.len()).as_bytes());
            client.send(chunk);
            if !last.is_empty() {
                break;
            }
            assert!(client.reply().starts_with("250 2.0.0"), "chunk {at}");
        }
    }
    let reply = client.reply();
    assert!(reply.starts_with("250 2.0.0") && reply.ends_with("queued"), "{reply}");
}

/// What follows the trace header.
fn content(body: &[u8]) -> &[u8] {
    let date = memchr::memmem::find(body, b" +0000\r\n").expect("a Received header");
    &body[date + 8..]
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

#[test]
fn chunks_go_on_as_a_chunk_or_with_dots_doubled() {
    let mut large = b"Subject: large\r\n\r\n".to_vec();
    while large.len() < 700_000 {
        large.extend_from_slice(b".one\r\n..two\r\nthree.\r\n.\r\n");
    }
    large.extend_from_slice(b"end");
    let bodies_sent: [(&[u8], usize); 4] =
        [(b"Subject: x\r\n\r\n.dot\r\nend", 7), (b".x: y\r\n", 3), (&large, 50_000), (&large, 1 << 20)];
    for keywords in [&["CHUNKING", "PIPELINING"][..], &["CHUNKING"], &["PIPELINING"], &[]] {
        let hop = Hop::offering(Box::leak(keywords.to_vec().into_boxed_slice()));
        let dir = spool();
        let server = hop.server(dir.path(), &[]);
        for (at, (body, chunk)) in bodies_sent.iter().enumerate() {
            submit(&server, "<a@sender.test>", &["<b@rcpt.test>"], body, *chunk);
            let said = hop.wait_for_bodies(at + 1);
            let arrived = content(bodies(&said)[at]);
            if keywords.contains(&"CHUNKING") {
                assert!(arrived == *body, "{keywords:?} {at}");
            } else {
                let mut stuffed = Vec::new();
                for line in body.split_inclusive(|b| *b == b'\n') {
                    if line[0] == b'.' {
                        stuffed.push(b'.');
                    }
                    stuffed.extend_from_slice(line);
                }
                if !stuffed.ends_with(b"\r\n") {
                    stuffed.extend_from_slice(b"\r\n");
                }
                assert!(arrived == stuffed, "{keywords:?} {at}: {}", text(&arrived[..40.min(arrived.len())]));
            }
        }
        assert!(server.stop().success());
    }
}

#[test]
fn binary_mail_goes_where_it_can() {
    let binary = b"Subject: x\r\n\r\n\0\r\xff\n.\n";
    let hop = Hop::offering(&["CHUNKING", "BINARYMIME", "SIZE", "PIPELINING"]);
    let dir = spool();
    let server = hop.server(dir.path(), &[]);
    submit(&server, "<a@sender.test> BODY=BINARYMIME", &["<b@rcpt.test>"], binary, 5);
    let said = hop.wait_for_bodies(1);
    assert_eq!(content(bodies(&said)[0]), binary);
    let size = bodies(&said)[0].len();
    assert_eq!(lines(&said, "MAIL"), [format!("MAIL FROM:<a@sender.test> SIZE={size} BODY=BINARYMIME")]);
    assert!(server.stop().success());

    // Without BINARYMIME it is returned, but for text that was only called binary.
    let hop = Hop::offering(&["CHUNKING", "PIPELINING"]);
    let dir = spool();
    let server = hop.server(dir.path(), &[]);
    submit(&server, "<a@sender.test> BODY=BINARYMIME", &["<b@rcpt.test>"], binary, 50);
    let said = hop.wait_for_bodies(1);
    let report = text(bodies(&said)[0]);
    assert!(report.contains("Status: 5.6.1\r\n") && report.contains("BINARYMIME"), "{report}");
    submit(&server, "<a@sender.test> BODY=BINARYMIME", &["<b@rcpt.test>"], b"a: b\r\n\r\nplain\r\n", 50);
    let said = hop.wait_for_bodies(2);
    assert_eq!(content(bodies(&said)[1]), b"a: b\r\n\r\nplain\r\n");
    assert!(server.stop().success());
}

#[test]
fn international_mail_goes_where_it_can() {
    let hop = Hop::offering(&["8BITMIME"]);
    let dir = spool();
    let server = hop.server(dir.path(), &[]);
    let ascii = "Subject: x\r\n\r\n\u{fc}\r\n".as_bytes();
    let international = "Subject: \u{fc}\r\n\r\nx\r\n".as_bytes();
    // Nothing in it needs SMTPUTF8, not even the domain.
    let mail = "<a@sender.test> SMTPUTF8 BODY=8BITMIME";
    submit(&server, mail, &["<b@b\u{fc}cher.test>"], ascii, 0);
    let said = hop.wait_for_bodies(1);
    assert_eq!(lines(&said, "MAIL"), ["MAIL FROM:<a@sender.test> BODY=8BITMIME"]);
    assert_eq!(lines(&said, "RCPT"), ["RCPT TO:<b@xn--bcher-kva.test>"]);
    // Recipients of one domain: only the one that needs it is returned.
    submit(&server, mail, &["<b@rcpt.test>", "<j\u{fc}@rcpt.test>"], ascii, 0);
    let said = hop.wait_for_bodies(3);
    assert!(lines(&said, "RCPT").contains(&"RCPT TO:<b@rcpt.test>"));
    let both = text(bodies(&said)[1]) + &text(bodies(&said)[2]);
    assert!(
        both.contains("Final-Recipient: utf-8; j\\x{FC}@rcpt.test\r\nAction: failed\r\nStatus: 5.6.7\r\n"),
        "{both}"
    );
    submit(&server, mail, &["<b@rcpt.test>"], international, 0);
    let said = hop.wait_for_bodies(4);
    assert!(text(bodies(&said)[3]).contains("Status: 5.6.9\r\n"));
    assert!(server.stop().success());
}

#[test]
fn eight_bit_mail_goes_where_it_can() {
    let hop = Hop::offering(&["PIPELINING"]);
    let dir = spool();
    let server = hop.server(dir.path(), &[]);
    submit(&server, "<a@sender.test> BODY=8BITMIME", &["<b@rcpt.test>"], b"a: b\r\n\r\nascii\r\n", 0);
    let said = hop.wait_for_bodies(1);
    assert_eq!(lines(&said, "MAIL"), ["MAIL FROM:<a@sender.test>"]);
    submit(&server, "<a@sender.test> BODY=8BITMIME", &["<b@rcpt.test>"], b"a: b\r\n\r\n\xfc\r\n", 0);
    assert!(text(bodies(&hop.wait_for_bodies(2))[1]).contains("Status: 5.6.3\r\n"));
    assert!(server.stop().success());
}

#[test]
fn reports_are_made_as_they_were_asked_for() {
    let hop = Hop::offering(&["PIPELINING", "8BITMIME"]);
    let dir = spool();
    let server = hop.server(dir.path(), &[]);
    let body = b"Subject: x\r\n\r\nthe text\r\n";
    // Success towards a host that does not tell: it was relayed.
    submit(
        &server,
        "<a@sender.test> ENVID=my+2Bid RET=FULL",
        &["<b@rcpt.test> NOTIFY=SUCCESS ORCPT=rfc822;old@rcpt.test", "<c@rcpt.test>"],
        body,
        0,
    );
    let said = hop.wait_for_bodies(2);
    assert_eq!(lines(&said, "MAIL"), ["MAIL FROM:<a@sender.test>", "MAIL FROM:<>"]);
    let report = text(bodies(&said)[1]);
    for expected in [
        "Original-Envelope-Id: my+id\r\n",
        "Original-Recipient: rfc822; old@rcpt.test\r\nFinal-Recipient: rfc822; b@rcpt.test\r\nAction: relayed\r\n\
         Status: 2.0.0\r\n",
        "Content-Type: text/rfc822-headers",
    ] {
        assert!(report.contains(expected), "{report}");
    }
    assert!(!report.contains("c@rcpt.test") && !report.contains("the text"), "{report}");
    // Failures: NEVER and SUCCESS keep them quiet, RET=FULL returns all.
    let quiet = ["<no1@rcpt.test> NOTIFY=NEVER", "<no2@rcpt.test> NOTIFY=SUCCESS"];
    submit(&server, "<a@sender.test>", &quiet, body, 0);
    let loud = ["<no3@rcpt.test> NOTIFY=FAILURE", "<no4@rcpt.test>", "<no5@rcpt.test> NOTIFY=DELAY"];
    submit(&server, "<a@sender.test> RET=FULL", &loud, body, 0);
    let said = hop.wait_for_bodies(3);
    let report = text(bodies(&said)[2]);
    let whole = report.contains("Content-Type: message/rfc822\r\n\r\nReceived: ");
    assert!(whole && report.contains("the text"), "{report}");
    let named: Vec<bool> = (1..=5).map(|n| report.contains(&format!("; no{n}@rcpt.test"))).collect();
    assert_eq!(named, [false, false, true, true, false], "{report}");
    // Nothing of the quiet ones is left to be reported later.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(bodies(&hop.wait_for_bodies(3)).len(), 3);
    assert!(server.stop().success());
}

#[test]
fn a_host_that_reports_itself_is_asked_to_and_the_wishes_survive_a_crash() {
    let dir = spool();
    let nowhere = ["--route", "*=127.0.0.1:9", "--retry-schedule", "1s"];
    let server = Server::start(dir.path(), &nowhere);
    let to = "<j\u{fc}@rcpt.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;old@rcpt.test";
    submit(&server, "<\u{fc}@sender.test> SMTPUTF8 ENVID=x RET=HDRS", &[to], b"a: b\r\n\r\nc", 20);
    server.kill();
    let hop = Hop::offering(&["DSN", "SMTPUTF8", "8BITMIME", "CHUNKING"]);
    let server = hop.server(dir.path(), &[]);
    let said = hop.wait_for_bodies(1);
    assert_eq!(lines(&said, "MAIL"), ["MAIL FROM:<\u{fc}@sender.test> SMTPUTF8 RET=HDRS ENVID=x"]);
    assert_eq!(lines(&said, "RCPT"), [format!("RCPT TO:{to}")]);
    assert_eq!(content(bodies(&said)[0]), b"a: b\r\n\r\nc");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(bodies(&hop.wait_for_bodies(1)).len(), 1, "the report is the next hop's business");
    assert!(server.stop().success());
}

#[test]
fn limits_of_a_hop_are_kept() {
    let hop = Hop::offering(&["PIPELINING", "LIMITS RCPTMAX=2 MAILMAX=3"]);
    let dir = spool();
    let server = hop.server(dir.path(), &["--destination-connections", "1"]);
    let to: Vec<String> = (0..5).map(|n| format!("<r{n}@rcpt.test>")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for _ in 0..3 {
        submit(&server, "<a@sender.test>", &to, b"a: b\r\n", 0);
    }
    let said = hop.wait(|said| lines(said, "RCPT").len() >= 15 && bodies(said).len() >= 9);
    let (mut mails, mut rcpts) = (0, 0);
    for what in &said {
        match what {
            Said::Connected => mails = 0,
            Said::Line(line) if line.starts_with("MAIL") => (mails, rcpts) = (mails + 1, 0),
            Said::Line(line) if line.starts_with("RCPT") => rcpts += 1,
            _ => {}
        }
        assert!(mails <= 3 && rcpts <= 2, "{said:#?}");
    }
    let mut all = lines(&said, "RCPT");
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), lines(&said, "RCPT").len()), (5, 15));
    assert!(server.stop().success());
}
