//! Tables of dialogues for the server session, each also cut at every byte.
//!
//! Owns: what a client may say and what must come of it. Promises: nothing outside tests. Must not:
//! share parsing with the code it tests.
mod client;

use super::*;
use crate::clock::Rng;
use crate::mail::envelope::{Notify, Return};
use crate::mail::id::MessageId;

/// A driver's view of a session, as text: `S:` reply lines, `!` steps, `B:` the body that was kept.
struct Driver {
    session: ServerSession,
    log: String,
    body: Vec<u8>,
    verdict: Verdict,
}

impl Driver {
    fn new(may_relay: bool) -> Driver {
        let config = ServerConfig {
            hostname: "mx.test".into(),
            max_message_bytes: 1000,
            max_recipients: 3,
            ..ServerConfig::default()
        };
        let peer = Peer::new("192.0.2.7".parse().unwrap(), may_relay);
        Driver {
            session: ServerSession::new(Arc::new(config), peer),
            log: String::new(),
            body: Vec::new(),
            verdict: Verdict::Accepted(MessageId(1)),
        }
    }

    /// Gives the session `input` and does what it asks; returns the bytes that are not consumed.
    fn feed<'a>(&mut self, mut input: &'a [u8]) -> &'a [u8] {
        loop {
            let mut replies = Vec::new();
            let (consumed, step) = self.session.step(input, &mut replies);
            for line in String::from_utf8(replies).unwrap().split_inclusive("\r\n") {
                self.log.push_str(&format!(
                    "S:{}\n",
                    line.strip_suffix("\r\n").expect("replies are whole lines")
                ));
            }
            let before = input;
            input = &input[consumed..];
            match step {
                Step::More => return input,
                Step::Body(range) => {
                    assert!(range.end == consumed && !range.is_empty());
                    self.body.extend_from_slice(&before[range]);
                }
                Step::BodyStarts => {
                    assert!(self.session.in_body());
                    let transaction = self.session.transaction();
                    let envelope = &transaction.envelope;
                    let from = envelope.reverse_path.as_ref().map_or("", |a| a.as_str());
                    let to: Vec<&str> = envelope.recipients.iter().map(|r| r.address.as_str()).collect();
                    self.log.push_str(&format!("!starts {from}>{} {:?}\n", to.join(","), envelope.body_kind));
                }
                Step::BodyEnds => {
                    assert!(!self.session.in_body());
                    let mut replies = Vec::new();
                    self.session.take_transaction();
                    self.session.finish(self.verdict.clone(), &mut replies);
                    let body = std::mem::take(&mut self.body).escape_ascii().to_string();
                    let reply = String::from_utf8(replies).unwrap();
                    self.log.push_str(&format!("B:{body}\nS:{}\n", reply.trim_end()));
                }
                Step::BodyRefused => {
                    self.body.clear();
                    self.log.push_str("!refused\n");
                }
                Step::BodyWithdrawn => {
                    self.body.clear();
                    self.log.push_str("!withdrawn\n");
                }
                Step::Close => {
                    self.log.push_str("!close\n");
                    return &[];
                }
                other => panic!("{other:?}: nothing of the kind is offered"),
            }
        }
    }
}

fn run(may_relay: bool, input: &[u8], cuts: &[usize]) -> String {
    let mut driver = Driver::new(may_relay);
    let mut at = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        at = end - driver.feed(&input[at..end]).len();
        if driver.log.ends_with("!close\n") {
            break;
        }
    }
    driver.log
}

/// Runs a dialogue whole, cut once at every place, and byte by byte; all must be the same.
fn check(may_relay: bool, input: &[u8], expected: &str) {
    let expected: String = expected.lines().map(|l| l.trim_start().to_owned() + "\n").collect();
    assert_eq!(run(may_relay, input, &[]), expected, "{}", input.escape_ascii());
    for cut in 0..=input.len() {
        assert_eq!(run(may_relay, input, &[cut]), expected, "cut at {cut} of {}", input.escape_ascii());
    }
    let every: Vec<usize> = (0..input.len()).collect();
    assert_eq!(run(may_relay, input, &every), expected, "byte by byte: {}", input.escape_ascii());
}

const HELLO: &str = "S:250-mx.test\nS:250-PIPELINING\nS:250-SIZE 1000\nS:250-8BITMIME\nS:250-SMTPUTF8\nS:250-CHUNKING\nS:250-BINARYMIME\nS:250-DSN\nS:250-ENHANCEDSTATUSCODES\nS:250-LIMITS RCPTMAX=3\nS:250 HELP";

#[test]
fn a_whole_session() {
    check(
        true,
        b"EHLO c.test\r\nMAIL FROM:<a@A.test> SIZE=20 BODY=8BITMIME\r\nRCPT TO:<b@b.test>\r\nRCPT TO:<b@b.test>\r\n\
          DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<postMaster>\r\nDATA\r\n.\r\nQUIT\r\n",
        &format!(
            "{HELLO}
            S:250 2.1.0 Ok
            S:250 2.1.5 Ok
            S:250 2.1.5 Ok
            S:354 End data with <CR><LF>.<CR><LF>
            !starts a@a.test>b@b.test,b@b.test EightBit
            B:Subject: x\\r\\n\\r\\n..dot\\r\\n
            S:250 2.0.0 0000000000001 queued
            S:250 2.1.0 Ok
            S:250 2.1.5 Ok
            S:354 End data with <CR><LF>.<CR><LF>
            !starts >postMaster@mx.test SevenBit
            B:
            S:250 2.0.0 0000000000001 queued
            S:221 2.0.0 mx.test closing connection
            !close"
        ),
    );
}

#[test]
fn order_of_commands() {
    check(
        true,
        b"MAIL FROM:<a@b>\r\nHELO c\r\nRCPT TO:<a@b>\r\nDATA\r\nMAIL FROM:<a@b>\r\nDATA\r\nMAIL FROM:<c@d>\r\nRSET\r\n\
          RCPT TO:<a@b>\r\nMAIL FROM:<a@b>\r\nEHLO c\r\nRCPT TO:<a@b>\r\nNOOP x\r\nVRFY a\r\nHELP\r\nEXPN a\r\nFOO\r\n\
          STARTTLS\r\nDATA x\r\n",
        &format!(
            "S:503 5.5.1 Say EHLO first
            S:250 mx.test
            S:503 5.5.1 MAIL comes before RCPT
            S:503 5.5.1 MAIL and RCPT come before DATA
            S:250 2.1.0 Ok
            S:503 5.5.1 RCPT comes before DATA
            S:503 5.5.1 MAIL was given already
            S:250 2.0.0 Ok
            S:503 5.5.1 MAIL comes before RCPT
            S:250 2.1.0 Ok
            {HELLO}
            S:503 5.5.1 MAIL comes before RCPT
            S:250 2.0.0 Ok
            S:252 2.0.0 Cannot verify, but mail for it will be tried
            S:214 2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT
            S:502 5.5.1 Command not implemented
            S:500 5.5.2 Command not recognised
            S:502 5.5.1 Command not implemented
            S:501 5.5.4 This command takes no argument"
        ),
    );
}

#[test]
fn what_mail_and_rcpt_refuse() {
    check(
        true,
        b"HELO c\r\nMAIL FROM:<a@b> SIZE=1001\r\nMAIL FROM:<a@b> SIZE=x\r\nMAIL FROM:<a@b> X\r\nMAIL FROM:<a@b> SIZE=1000\r\n\
          RCPT TO:<bad>\r\nDATA\r\nRCPT TO:<1@x>\r\nRCPT TO:<2@x>\r\nRCPT TO:<3@x>\r\nRCPT TO:<4@x>\r\nDATA\r\n.\r\n",
        "S:250 mx.test
        S:552 5.3.4 The message is larger than the limit
        S:501 5.5.4 Bad parameter value
        S:555 5.5.4 Parameter not recognised
        S:250 2.1.0 Ok
        S:501 5.1.3 Bad recipient address syntax
        S:554 5.5.1 No valid recipients
        S:250 2.1.5 Ok
        S:250 2.1.5 Ok
        S:250 2.1.5 Ok
        S:452 4.5.3 Too many recipients
        S:354 End data with <CR><LF>.<CR><LF>
        !starts a@b>1@x,2@x,3@x SevenBit
        B:
        S:250 2.0.0 0000000000001 queued",
    );
}

#[test]
fn strangers_cannot_relay() {
    check(
        false,
        b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nRCPT TO:<Postmaster>\r\nRCPT TO:<@mx.test:a@b>\r\nDATA\r\n",
        "S:250 mx.test
        S:250 2.1.0 Ok
        S:550 5.7.1 Relaying denied
        S:550 5.7.1 Relaying denied
        S:550 5.7.1 Relaying denied
        S:554 5.5.1 No valid recipients",
    );
}

#[test]
fn line_ends_in_commands() {
    let long = format!("HELO c\r\nNOOP {}\r\nNOOP {}\r\nRSET\r\n", "x".repeat(4089), "x\n\ry".repeat(1022));
    assert_eq!(
        run(true, long.as_bytes(), &[]),
        "S:250 mx.test\nS:250 2.0.0 Ok\nS:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL\nS:250 2.0.0 Ok\n"
    );
    check(
        true,
        b"HELO c\nMAIL FROM:<a@b>\r\nHELO c\rx\r\n\n\r\nNOOP\0\r\n\r\nHELO c\r\r\nHELO ok\r\n",
        "S:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL
        S:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL
        S:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL
        S:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL
        S:500 5.5.2 Command not recognised
        S:500 5.5.2 A line ends in CRLF and holds no CR, LF or NUL
        S:250 mx.test",
    );
}

#[test]
fn long_command_lines_are_swallowed() {
    let limit = limits::COMMAND_LINE_BYTES;
    for (bytes, expected) in [(limit, "S:250 2.0.0 Ok\n"), (limit + 1, "S:500 5.5.2 Line too long\n")] {
        let line = format!("NOOP {}\r\n", "x".repeat(bytes - 7));
        assert_eq!(line.len(), bytes);
        let input = format!("{line}RSET\r\n");
        let expected = format!("{expected}S:250 2.0.0 Ok\n");
        for cut in [0, 1, limit - 2, limit - 1, limit, limit + 1, limit + 2] {
            assert_eq!(run(true, input.as_bytes(), &[cut]), expected, "{bytes} bytes cut at {cut}");
        }
    }
    // A line of this length fits the driver's buffer: it is consumed but for a last CR.
    let mut driver = Driver::new(true);
    for _ in 1..limits::DROPPED_LINE_BYTES / limits::SESSION_BUFFER_BYTES {
        assert!(driver.feed(&[b'x'; limits::SESSION_BUFFER_BYTES]).is_empty());
    }
    assert_eq!(driver.feed(b"\n\r"), b"\r");
    assert_eq!(driver.feed(b"\r\n"), b"");
    assert_eq!(driver.log, "S:500 5.5.2 Line too long\n");
}

#[test]
fn refused_bodies() {
    let start = "HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n";
    let big = "x\r\n".repeat(400);
    let table = [
        ("a\n.\r\nb", "550 5.6.11 Message refused: an LF without CR (lines must end in CRLF)"),
        ("a\r.\rMAIL FROM:<x@y>", "550 5.6.11 Message refused: a CR without LF (lines must end in CRLF)"),
        ("a\0b", "550 5.6.0 Message refused: it holds a NUL"),
        (&big, "552 5.3.4 Message refused: it is larger than the limit"),
    ];
    for (body, reply) in table {
        check(
            true,
            format!("{start}{body}\r\n.\r\nMAIL FROM:<a@b>\r\n").as_bytes(),
            &format!(
                "S:250 mx.test
                S:250 2.1.0 Ok
                S:250 2.1.5 Ok
                S:354 End data with <CR><LF>.<CR><LF>
                !starts a@b>c@d SevenBit
                !refused
                S:{reply}
                S:250 2.1.0 Ok"
            ),
        );
    }
}

#[test]
fn verdicts() {
    let table = [
        (Verdict::NoRoom, "S:452 4.3.1 No room for more mail, try again later\n"),
        (Verdict::Failed, "S:451 4.3.0 The message was not stored, try again later\n"),
        (Verdict::Loop, "S:554 5.4.6 Mail loop: too many Received headers\n"),
        (Verdict::Busy, "S:451 4.3.2 Too many large messages at a time, try again later\n"),
    ];
    for (verdict, expected) in table {
        let mut driver = Driver::new(true);
        driver.verdict = verdict;
        driver.feed(b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n");
        assert!(driver.log.ends_with(expected), "{}", driver.log);
        // The next transaction starts from nothing.
        driver.feed(b"DATA\r\n");
        assert!(driver.log.ends_with("S:503 5.5.1 MAIL and RCPT come before DATA\n"), "{}", driver.log);
    }
}

#[test]
fn mail_is_refused_before_its_body_comes() {
    let mail = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRSET\r\nMAIL FROM:<a@b> SIZE=400\r\nRSET\r\nMAIL FROM:<a@b> SIZE=401\r\n";
    let (fine, short) = ("S:250 2.1.0 Ok", "S:452 4.3.1 No room for more mail, try again later");
    let broken = "S:451 4.3.0 Mail cannot be stored now, try again later";
    for (room, replies) in [
        (Room::Bytes(u64::MAX), [fine, fine, fine]),
        (Room::Bytes(400), [fine, fine, short]),
        (Room::Bytes(0), [fine, short, short]),
        (Room::Short, [short; 3]),
        (Room::Unwritable, [broken; 3]),
    ] {
        let mut driver = Driver::new(true);
        driver.session.set_room(room);
        driver.feed(mail);
        let said: Vec<&str> = driver
            .log
            .lines()
            .skip_while(|l| !l.starts_with("S:250 "))
            .filter(|l| !l.contains(" 2.0.0 "))
            .collect();
        assert_eq!(said[1..], replies, "{room:?}");
        // Nothing of a refused transaction is left.
        driver.feed(b"RSET\r\nRCPT TO:<c@d>\r\n");
        assert!(driver.log.ends_with("S:503 5.5.1 MAIL comes before RCPT\n"), "{}", driver.log);
    }
}

/// The recipients of one message take a bounded part of a commit buffer, whatever their number.
#[test]
fn the_bytes_of_an_envelope_are_bounded() {
    let config = ServerConfig {
        hostname: "mx.test".into(),
        max_message_bytes: 1000,
        max_recipients: limits::MAX_RECIPIENTS,
        ..ServerConfig::default()
    };
    let peer = Peer::new("192.0.2.7".parse().unwrap(), true);
    let mut session = ServerSession::new(Arc::new(config), peer);
    let mut replies = Vec::new();
    session.step(b"EHLO c\r\n", &mut replies);
    session.step(b"MAIL FROM:<a@b>\r\n", &mut replies);
    let mut bytes = 0;
    let refused = (0..limits::MAX_RECIPIENTS).find(|n| {
        let address = format!("{n:060}@{}.test", "x".repeat(60));
        replies.clear();
        session.step(format!("RCPT TO:<{address}>\r\n").as_bytes(), &mut replies);
        bytes += address.len();
        replies.starts_with(b"452 4.5.3 ")
    });
    assert!(refused.is_some() && bytes <= limits::RECIPIENTS_BYTES, "{refused:?} at {bytes} bytes");
    assert!(bytes > limits::RECIPIENTS_BYTES / 2, "{bytes} bytes are many recipients still");
    let held: usize = session
        .transaction
        .iter()
        .flat_map(|t| &t.envelope.recipients)
        .map(|r| r.address.as_str().len())
        .sum();
    assert!(held <= limits::RECIPIENTS_BYTES);
}

#[test]
fn clients_that_only_err_or_only_talk_are_sent_away() {
    let away = "S:421 4.7.0 mx.test Too many errors or idle commands\n!close\n";
    for (line, limit) in [("FOO\r\n", limits::BAD_COMMANDS), ("NOOP\r\n", limits::IDLE_COMMANDS)] {
        let log = run(true, line.repeat(limit as usize).as_bytes(), &[]);
        assert!(!log.contains("421"), "{log}");
        let log = run(true, line.repeat(limit as usize + 1).as_bytes(), &[]);
        assert_eq!(log.lines().count(), limit as usize + 2);
        assert!(log.ends_with(away), "{log}");
    }
    // Accepted mail wipes the slate; a relay client's list may hold bad addresses.
    let message = "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n";
    let errors = "FOO\r\n".repeat(limits::BAD_COMMANDS as usize - 1);
    let log = run(true, format!("HELO c\r\n{}", format!("{errors}{message}").repeat(5)).as_bytes(), &[]);
    assert!(!log.contains("421"), "{log}");
    let input = format!(
        "HELO c\r\nMAIL FROM:<a@b>\r\n{}RCPT TO:<c@d>\r\nDATA\r\n.\r\n",
        "RCPT TO:<bad>\r\n".repeat(100)
    );
    assert!(run(true, input.as_bytes(), &[]).ends_with("queued\n"));
    assert!(run(false, input.as_bytes(), &[]).ends_with(away));
}

#[test]
fn recipients_without_end_are_given_up() {
    let taken = "HELO c\r\nMAIL FROM:<a@b>\r\n".to_owned() + &"RCPT TO:<c@d>\r\n".repeat(3);
    let limit = limits::REFUSED_RECIPIENTS as usize;
    // In pieces, as a driver has it: a batch that makes too many replies waits until these are sent.
    let run = |input: String| {
        let cuts: Vec<usize> = (4096..input.len()).step_by(4096).collect();
        run(true, input.as_bytes(), &cuts)
    };
    for line in ["RCPT TO:<c@d>\r\n", "RCPT TO:<bad>\r\n"] {
        let log = run(taken.clone() + &line.repeat(limit));
        assert_eq!((log.contains("S:421"), log.lines().count()), (false, limit + 5), "{line}");
        let log = run(taken.clone() + &line.repeat(limit + 1));
        assert!(log.ends_with("Too many errors or idle commands\n!close\n"), "{line}");
    }
    // A list of that length that is sent all at once, again and again, loses nothing.
    let round = format!("MAIL FROM:<a@b>\r\n{}DATA\r\n.\r\n", "RCPT TO:<c@d>\r\n".repeat(limit / 2));
    let log = run("HELO c\r\n".to_owned() + &round.repeat(4));
    assert_eq!((log.matches("queued").count(), log.contains("S:421")), (4, false));
}

#[test]
fn a_line_without_end_is_given_up() {
    let most = limits::COMMAND_LINE_BYTES + limits::DROPPED_LINE_BYTES;
    for (bytes, is_closed) in [(most / 2, false), (most + 1, true)] {
        let line = vec![b'x'; bytes];
        for piece in [4096, 100_000] {
            let cuts: Vec<usize> = (piece..bytes).step_by(piece).collect();
            let log = run(true, &[&line[..], b"\r\nNOOP\r\n"].concat(), &cuts);
            assert_eq!(log.ends_with("!close\n"), is_closed, "{bytes} in pieces of {piece}");
            assert_eq!(log.contains("S:500"), !is_closed);
        }
    }
}

#[test]
fn browsers_are_sent_away() {
    check(
        true,
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\nHELO x\r\n",
        "S:421 4.7.0 mx.test This is not a web server\n!close",
    );
}

#[test]
fn replies_are_bounded() {
    let mut session = Driver::new(true).session;
    let mut replies = vec![b'x'; limits::REPLY_BYTES + 1];
    assert_eq!(session.step(b"HELO c\r\n", &mut replies), (0, Step::More));
    replies.clear();
    assert_eq!(session.step(b"HELO c\r\n", &mut replies), (8, Step::More));
}

#[test]
fn goodbyes() {
    let table = [
        (Goodbye::Stopping, "421 4.3.2 mx.test Service shutting down\r\n"),
        (Goodbye::TimedOut, "421 4.4.2 mx.test Timeout, closing the connection\r\n"),
    ];
    for (why, expected) in table {
        let mut session = Driver::new(true).session;
        let mut replies = Vec::new();
        session.say_goodbye(why, &mut replies);
        assert_eq!(String::from_utf8_lossy(&replies), expected);
        assert_eq!(session.step(b"NOOP\r\n", &mut replies), (6, Step::Close));
        assert_eq!(replies.len(), expected.len());
    }
    let mut replies = Vec::new();
    Driver::new(true).session.greet(&mut replies);
    assert_eq!(replies, b"220 mx.test ESMTP ringpost\r\n");
}

#[test]
fn the_name_of_the_client_is_bounded() {
    let mut driver = Driver::new(true);
    assert_eq!(driver.session.greeting_of_client(), ("", false));
    driver.feed(format!("EHLO {}\r\n", "x".repeat(4000)).as_bytes());
    assert_eq!(driver.session.greeting_of_client(), (&*"x".repeat(limits::DOMAIN_BYTES), true));
    driver.feed(b"HELO [junk] (y)\r\n");
    assert_eq!(driver.session.greeting_of_client(), ("[junk] (y)", false));
}

#[test]
fn random_sessions() {
    let words: [&[u8]; 29] = [
        b"EHLO c\r\n",
        b"HELO ",
        b"MAIL FROM:<a@b>\r\n",
        b"MAIL FROM:<> SIZE=",
        b"RCPT TO:<c@d>\r\n",
        b"RCPT TO:<\"",
        b"DATA\r\n",
        b"DATA\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"\r\n",
        b"\r\n.\r\n",
        b".\r\n",
        b".",
        b"\r",
        b"\n",
        b"\0",
        b"\xff\x80",
        b">",
        b"<@[:",
        b"99999999999999999999",
        b"text",
        b"\\\"@[IPv6:::1]>\r\n",
        b" BODY=8BITMIME\r\n",
        b" BODY=BINARYMIME\r\n",
        b"BDAT 3\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 9 LAST\r\n",
        b"BDAT 2000\r\n",
    ];
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..4_000 {
        let mut input = Vec::new();
        if rng.below(2) == 0 {
            input.extend_from_slice(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n");
        }
        for _ in 0..rng.below(60) {
            match rng.below(20) {
                0 => input.push(rng.next_u64() as u8),
                1 => input.extend(std::iter::repeat_n(b'y', rng.below(6000) as usize)),
                _ => input.extend_from_slice(words[rng.below(words.len() as u64) as usize]),
            }
        }
        let may_relay = rng.below(8) > 0;
        let whole = run(may_relay, &input, &[]);
        let mut cuts: Vec<usize> =
            (0..rng.below(20)).map(|_| rng.below(input.len() as u64 + 1) as usize).collect();
        cuts.sort_unstable();
        assert_eq!(run(may_relay, &input, &cuts), whole, "cut at {cuts:?}: {}", input.escape_ascii());
    }
}

#[test]
fn chunks() {
    let ok = "S:250 2.1.0 Ok\nS:250 2.1.5 Ok\n";
    let begin = "HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n";
    let table = [
        // Chunks may be cut anywhere, be empty, and hold what would end DATA.
        (
            "BDAT 7\r\na\r\n.\r\n\rBDAT 0\r\nBDAT 5 LAST\r\n\nb.\r\nNOOP\r\n",
            "!starts a@b>c@d SevenBit\nS:250 2.0.0 7 bytes received\nS:250 2.0.0 0 bytes received\n\
             B:a\\r\\n.\\r\\n\\r\\nb.\\r\\n\nS:250 2.0.0 0000000000001 queued\nS:250 2.0.0 Ok\n",
        ),
        ("BDAT 0 LAST\r\n", "!starts a@b>c@d SevenBit\nB:\nS:250 2.0.0 0000000000001 queued\n"),
        // A refused message: what is left of its chunks is dropped.
        (
            "BDAT 3\r\na\nbBDAT 9\r\nQUIT\r\nabcBDAT 3 LAST\r\nxyzRSET\r\n",
            "!starts a@b>c@d SevenBit\n!refused\n\
             S:550 5.6.11 Message refused: an LF without CR (lines must end in CRLF)\n\
             S:503 5.5.1 The message was refused already\nS:503 5.5.1 The message was refused already\n\
             S:250 2.0.0 Ok\n",
        ),
        (
            "BDAT 2 LAST\r\na\rNOOP\r\n",
            "!starts a@b>c@d SevenBit\n!refused\n\
             S:550 5.6.11 Message refused: a CR without LF (lines must end in CRLF)\nS:250 2.0.0 Ok\n",
        ),
        ("BDAT 2\r\nabBDAT 999\r\n", "!starts a@b>c@d SevenBit\nS:250 2.0.0 2 bytes received\n!refused\n"),
        // Taken back.
        (
            "BDAT 2\r\nabRSET\r\nDATA\r\n",
            "!starts a@b>c@d SevenBit\nS:250 2.0.0 2 bytes received\nS:250 2.0.0 Ok\n!withdrawn\n\
             S:503 5.5.1 MAIL and RCPT come before DATA\n",
        ),
        (
            "BDAT 2\r\nabDATA\r\nRCPT TO:<e@f>\r\nMAIL FROM:<>\r\nBDAT 0 LAST\r\n",
            "!starts a@b>c@d SevenBit\nS:250 2.0.0 2 bytes received\n\
             S:503 5.5.1 The message comes in chunks: go on with BDAT\n\
             S:503 5.5.1 RCPT comes before BDAT\nS:503 5.5.1 MAIL was given already\n\
             B:ab\nS:250 2.0.0 0000000000001 queued\n",
        ),
        ("BDAT two\r\nQUIT\r\n", "S:501 5.5.4 Syntax: BDAT bytes [LAST]\n!close\n"),
    ];
    for (input, expected) in table {
        let expected = format!("S:250 mx.test\n{ok}{expected}");
        check(true, format!("{begin}{input}").as_bytes(), &expected);
    }
    check(
        true,
        b"HELO c\r\nBDAT 6 LAST\r\nQUIT\r\nMAIL FROM:<a@b>\r\nBDAT 1\r\nxRSET\r\n",
        "S:250 mx.test
        S:503 5.5.1 MAIL and RCPT come before BDAT
        S:250 2.1.0 Ok
        S:503 5.5.1 RCPT comes before BDAT
        S:250 2.0.0 Ok",
    );
    check(
        true,
        b"HELO c\r\nMAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\nDATA\r\nBDAT 4 LAST\r\n\r\0\nx",
        "S:250 mx.test
        S:250 2.1.0 Ok
        S:250 2.1.5 Ok
        S:503 5.5.1 BINARYMIME needs BDAT
        !starts a@b>c@d Binary
        B:\\r\\x00\\nx
        S:250 2.0.0 0000000000001 queued",
    );
}

#[test]
fn dropped_chunks_are_bounded() {
    let mut driver = Driver::new(true);
    driver.feed(b"HELO c\r\nBDAT 18446744073709551615\r\n");
    let junk = vec![b'x'; 1 << 20];
    for _ in 0..=limits::REFUSED_BODY_BYTES >> 20 {
        driver.feed(&junk);
    }
    assert!(
        driver.log.ends_with("S:421 4.7.0 mx.test Too much data behind a refused message\n!close\n"),
        "{}",
        driver.log
    );
}

#[test]
fn what_is_asked_for_is_kept() {
    let config = ServerConfig { require_tls: true, ..ServerConfig::default() };
    let peer = Peer::new("192.0.2.7".parse().unwrap(), true);
    let mut session = ServerSession::new(Arc::new(config), peer);
    session.tls_started(false);
    let mut replies = Vec::new();
    let commands = "EHLO c\r\nMAIL FROM:<j\u{fc}@b> SMTPUTF8 REQUIRETLS RET=FULL ENVID=x\r\n\
        RCPT TO:<c@b\u{fc}cher.example> NOTIFY=NEVER ORCPT=rfc822;o@d\r\nDATA\r\n";
    assert_eq!(session.step(commands.as_bytes(), &mut replies), (commands.len(), Step::BodyStarts));
    assert!(String::from_utf8(replies).unwrap().contains("\r\n250-REQUIRETLS\r\n"));
    let envelope = &session.transaction().envelope;
    assert!(envelope.smtp_utf8 && envelope.require_tls);
    assert_eq!((envelope.ret, envelope.envid.as_deref()), (Some(Return::Full), Some("x")));
    let recipient = &envelope.recipients[0];
    assert_eq!(recipient.address.as_str(), "c@xn--bcher-kva.example");
    assert_eq!((recipient.notify, recipient.original.as_deref()), (Some(Notify::NEVER), Some("rfc822;o@d")));
}

#[test]
fn what_is_left_always_fits_the_buffer() {
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut driver = Driver::new(true);
    let mut buffer = Vec::new();
    for _ in 0..20_000 {
        buffer.extend((0..rng.below(64)).map(|_| b"\r\n.\rax"[rng.below(6) as usize]));
        let rest = driver.feed(&buffer).to_vec();
        assert!(rest.len() < limits::COMMAND_LINE_BYTES);
        buffer = rest;
        if driver.log.ends_with("!close\n") {
            driver = Driver::new(true);
            driver.feed(b"HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n");
            buffer.clear();
        }
    }
}
