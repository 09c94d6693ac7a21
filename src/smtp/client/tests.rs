//! Tables of dialogues for the client session, each also cut at every byte.
//!
//! Owns: what a peer may say and what must come of it. Promises: nothing outside tests. Must not: share
//! parsing with the code it tests.
use super::*;
use crate::clock::Rng;
use crate::mail::address::Address;
use crate::mail::envelope::{BodyKind, Recipient};

mod extensions;

/// A message of a test: recipients, size, kind.
type Mail = (&'static [&'static str], u64, BodyKind);

const ONE: Mail = (&["r@x"], 10, BodyKind::SevenBit);
const TWO: Mail = (&["r@x", "s@x"], 10, BodyKind::SevenBit);

/// A message from `f@x`, or from the null path to one recipient, and its body: 8-bit if it is so declared.
fn message((recipients, size_bytes, body_kind): Mail, from: &str) -> (Envelope, Vec<u16>, Vec<u8>) {
    let address = |text: &str| Address::parse(text.as_bytes()).unwrap();
    let envelope = Envelope {
        reverse_path: (!from.is_empty()).then(|| address(from)),
        recipients: recipients.iter().map(|r| Recipient::new(address(r))).collect(),
        body_kind,
        ..Envelope::default()
    };
    let byte = if body_kind == BodyKind::SevenBit { b'x' } else { 0 };
    let byte = if body_kind == BodyKind::EightBit { 0xfc } else { byte };
    (envelope, (0..recipients.len() as u16).collect(), vec![byte; size_bytes as usize])
}

/// A driver that sends `mail` in order as early as it may and then says QUIT. Its log holds `C:` lines
/// sent and `!` events.
struct Driver {
    session: ClientSession,
    mail: &'static [Mail],
    started: usize,
    done: usize,
    log: String,
}

impl Driver {
    fn new(starttls: bool, mail: &'static [Mail]) -> Driver {
        let session = ClientSession::new(ClientConfig { ehlo_name: "c.test".into(), starttls });
        Driver { session, mail, started: 0, done: 0, log: String::new() }
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        for line in String::from_utf8(std::mem::take(out)).unwrap().split_inclusive("\r\n") {
            self.log.push_str(&format!("C:{}\n", line.strip_suffix("\r\n").expect("whole lines")));
        }
    }

    /// Starts what may be started; QUIT when all is done.
    fn go_on(&mut self, out: &mut Vec<u8>) {
        while self.started < self.mail.len() && self.session.can_start() {
            let (envelope, recipients, body) = message(self.mail[self.started], "f@x");
            let key = self.started as u64;
            let (envelope, recipients, body) = (&envelope, &recipients[..], &body[..]);
            self.session.start(Outgoing { key, envelope, recipients, body }, out);
            self.started += 1;
        }
        if self.done == self.mail.len() && self.session.can_start() {
            self.session.quit(out);
        }
    }

    /// Gives the session what the peer said, returns the bytes not consumed.
    fn feed<'a>(&mut self, mut input: &'a [u8]) -> &'a [u8] {
        loop {
            let mut out = Vec::new();
            let (consumed, event) = self.session.feed(input, &mut out);
            self.write(&mut out);
            input = &input[consumed..];
            match event {
                ClientEvent::More => return input,
                ClientEvent::StartTls => {
                    self.log.push_str("!tls\n");
                    self.session.tls_established(&mut out);
                }
                ClientEvent::Ready => self.log.push_str("!ready\n"),
                ClientEvent::SendBody { key, transfer } => {
                    assert_eq!(transfer, Transfer::Stored);
                    assert!(!self.session.is_body_sent(key));
                    self.log.push_str(&format!("!body {key}\n"));
                    self.session.body_sent(key);
                    assert!(self.session.is_body_sent(key));
                }
                ClientEvent::Done { key, replies } => {
                    assert_eq!(replies.len(), self.mail[key as usize].0.len());
                    assert!(self.session.refusals(key).is_empty() && !self.session.is_body_sent(key));
                    let replies: Vec<String> = replies.iter().map(ToString::to_string).collect();
                    self.log.push_str(&format!("!done {key} {}\n", replies.join("|")));
                    self.done += 1;
                }
                ClientEvent::Failed(reply) => {
                    self.log.push_str(&format!("!failed {reply}\n"));
                    return &[];
                }
                ClientEvent::Bye => {
                    self.log.push_str("!bye\n");
                    return &[];
                }
            }
            self.go_on(&mut out);
            self.write(&mut out);
        }
    }

    fn is_over(&self) -> bool {
        self.log.lines().last().is_some_and(|l| l.starts_with("!failed") || l == "!bye")
    }
}

/// A dialogue, in which the peer says `input` whatever the client does. The bytes come cut at `cuts`.
fn run(starttls: bool, mail: &'static [Mail], input: &[u8], cuts: &[usize]) -> String {
    let mut driver = Driver::new(starttls, mail);
    let mut at = 0;
    for &end in cuts.iter().chain([&input.len()]) {
        at = end - driver.feed(&input[at..end]).len();
        if driver.is_over() {
            break;
        }
    }
    driver.log
}

/// Runs a dialogue whole, cut once at every place, and byte by byte; all must come to the same.
fn check(mail: &'static [Mail], input: &str, expected: &str) {
    let expected: String = expected.lines().map(|l| l.trim_start().to_owned() + "\n").collect();
    let input = input.as_bytes();
    assert_eq!(run(false, mail, input, &[]), expected, "{}", input.escape_ascii());
    for cut in 0..=input.len() {
        assert_eq!(run(false, mail, input, &[cut]), expected, "cut at {cut} of {}", input.escape_ascii());
    }
    let every: Vec<usize> = (0..input.len()).collect();
    assert_eq!(run(false, mail, input, &every), expected, "byte by byte: {}", input.escape_ascii());
}

const PIPELINED: &str = "220 x\r\n250-x\r\n250-SIZE 100\r\n250-8bitmime\r\n250 PIPELINING\r\n";
const LOCKSTEP: &str = "220 x\r\n250 x\r\n";

#[test]
fn pipelined_messages() {
    check(
        &[TWO, (&["r@x"], 100, BodyKind::EightBit)],
        &format!(
            "{PIPELINED}250 a\r\n250 b\r\n250 c\r\n354 d\r\n250 2.0.0 one\r\n250 e\r\n250 f\r\n354 g\r\n250-two\r\n250 II\r\n221 bye\r\n"
        ),
        "C:EHLO c.test
        !ready
        C:MAIL FROM:<f@x> SIZE=10
        C:RCPT TO:<r@x>
        C:RCPT TO:<s@x>
        C:DATA
        !body 0
        C:MAIL FROM:<f@x> SIZE=100 BODY=8BITMIME
        C:RCPT TO:<r@x>
        C:DATA
        !done 0 250 2.0.0 one|250 2.0.0 one
        !body 1
        !done 1 250 two II
        C:QUIT
        !bye",
    );
}

#[test]
fn messages_in_lockstep() {
    check(
        &[TWO, ONE],
        &format!(
            "{LOCKSTEP}250 a\r\n550 b\r\n250 c\r\n354 d\r\n250 one\r\n250 e\r\n250 f\r\n354 g\r\n452 two\r\n221 bye\r\n"
        ),
        "C:EHLO c.test
        !ready
        C:MAIL FROM:<f@x>
        C:RCPT TO:<r@x>
        C:RCPT TO:<s@x>
        C:DATA
        !body 0
        !done 0 550 b|250 one
        C:MAIL FROM:<f@x>
        C:RCPT TO:<r@x>
        C:DATA
        !body 1
        !done 1 452 two
        C:QUIT
        !bye",
    );
}

#[test]
fn refusals_in_lockstep() {
    check(
        &[TWO, TWO, ONE, ONE],
        &format!(
            "{LOCKSTEP}550 a\r\n250 b\r\n550 c\r\n450 d\r\n250 reset\r\n250 e\r\n250 f\r\n554 g\r\n500 reset\r\n250 h\r\n250 i\r\n354 j\r\n250 k\r\n"
        ),
        "C:EHLO c.test
        !ready
        C:MAIL FROM:<f@x>
        !done 0 550 a|550 a
        C:MAIL FROM:<f@x>
        C:RCPT TO:<r@x>
        C:RCPT TO:<s@x>
        !done 1 550 c|450 d
        C:RSET
        C:MAIL FROM:<f@x>
        C:RCPT TO:<r@x>
        C:DATA
        !done 2 554 g
        C:RSET
        C:MAIL FROM:<f@x>
        C:RCPT TO:<r@x>
        C:DATA
        !body 3
        !done 3 250 k
        C:QUIT",
    );
}

#[test]
fn pipelined_refusals() {
    let start = "C:EHLO c.test\n!ready\nC:MAIL FROM:<f@x> SIZE=10\nC:RCPT TO:<r@x>\nC:RCPT TO:<s@x>\nC:DATA";
    let table = [
        // MAIL, RCPT, RCPT, DATA, dot → what comes of it
        ("550 5.7.1 m\r\n503 r\r\n503 s\r\n503 d\r\n", "!done 0 550 5.7.1 m|550 5.7.1 m\nC:QUIT"),
        ("250 m\r\n550 r\r\n451 s\r\n554 d\r\n", "!done 0 550 r|451 s\nC:QUIT"),
        ("250 m\r\n550 r\r\n250 s\r\n451 d\r\n", "!done 0 550 r|451 d\nC:QUIT"),
        ("250 m\r\n550 r\r\n250 s\r\n354 d\r\n250 e\r\n", "!body 0\n!done 0 550 r|250 e\nC:QUIT"),
        // A peer that says 354 for nobody gets the lone dot.
        ("250 m\r\n550 r\r\n551 s\r\n354 d\r\n554 e\r\n", "C:.\n!done 0 550 r|551 s\nC:QUIT"),
        ("450 m\r\n250 r\r\n503 s\r\n354 d\r\n250 e\r\n", "C:.\n!done 0 450 m|450 m\nC:QUIT"),
    ];
    for (replies, expected) in table {
        check(&[TWO], &format!("{PIPELINED}{replies}"), &format!("{start}\n{expected}"));
    }
    // A transaction that the peer still holds open is reset with the next message.
    check(
        &[ONE, ONE],
        &format!("{PIPELINED}250 m\r\n550 r\r\n503 d\r\n250 reset\r\n250 m\r\n250 r\r\n354 d\r\n250 e\r\n"),
        "C:EHLO c.test
        !ready
        C:MAIL FROM:<f@x> SIZE=10
        C:RCPT TO:<r@x>
        C:DATA
        !done 0 550 r
        C:RSET
        C:MAIL FROM:<f@x> SIZE=10
        C:RCPT TO:<r@x>
        C:DATA
        !body 1
        !done 1 250 e
        C:QUIT",
    );
}

#[test]
fn messages_the_peer_cannot_take() {
    check(
        &[
            (&["r@x", "s@x"], 101, BodyKind::SevenBit),
            (&["r@x"], 1, BodyKind::Binary),
            (&[], 1, BodyKind::SevenBit),
        ],
        PIPELINED,
        "C:EHLO c.test
        !ready
        !done 0 552 5.3.4 the message is larger than the receiver takes|552 5.3.4 the message is larger than the receiver takes
        !done 1 554 5.6.1 the message is binary and the receiver does not take BINARYMIME
        !done 2 \nC:QUIT",
    );
    check(
        &[(&["r@x"], 9999, BodyKind::EightBit)],
        LOCKSTEP,
        "C:EHLO c.test
        !ready
        !done 0 554 5.6.3 the message is 8-bit and the receiver does not take 8BITMIME
        C:QUIT",
    );
}

#[test]
fn openings() {
    check(
        &[],
        "220-x\r\n220 y\r\n500 what\r\n250 ok\r\n221 x\r\n",
        "C:EHLO c.test\nC:HELO c.test\n!ready\nC:QUIT\n!bye",
    );
    check(&[], "220 x\r\n250 y\r\n500 odd\r\n", "C:EHLO c.test\n!ready\nC:QUIT\n!bye");
    check(&[], "220 x\r\n550 a\r\n550 5.7.1 b\r\n", "C:EHLO c.test\nC:HELO c.test\n!failed 550 5.7.1 b");
    check(&[], "554 5.7.1 no\r\n", "!failed 554 5.7.1 no");
    check(&[], "421 4.3.2 later\r\n", "!failed 421 4.3.2 later");
    check(&[], "220 x\r\n450 later\r\n", "C:EHLO c.test\n!failed 450 later");
    check(&[], "354 x\r\n", "!failed 451 4.5.0 the peer does not speak SMTP: a go-ahead before any message");
    check(
        &[],
        "HTTP/1.1\r\n",
        "!failed 451 4.5.0 the peer does not speak SMTP: a line of the peer's reply does not begin with a reply code",
    );
}

#[test]
fn what_ehlo_offers() {
    let offers = |lines: &str| {
        let mut session = Driver::new(false, &[]).session;
        session.feed(b"220 x\r\n", &mut Vec::new());
        session.feed(lines.as_bytes(), &mut Vec::new());
        session.capabilities().clone()
    };
    let none = Capabilities::default();
    assert_eq!(offers("250 PIPELINING\r\n"), none); // the first line is a greeting
    assert_eq!(offers("250-x\r\n250-Size\r\n250 \r\n"), Capabilities { size: Some(0), ..none.clone() });
    assert_eq!(
        offers("250-x\r\n250 SIZE 99999999999999999999\r\n"),
        Capabilities { size: Some(0), ..none.clone() }
    );
    assert_eq!(offers("250-x\r\n250-AUTH=LOGIN\r\n250-XPIPELINING\r\n250 PIPELININGX\r\n"), none);
    assert_eq!(
        offers(
            "250-x\r\n250-pipelining\r\n250-8BITMIME\r\n250-STARTTLS\r\n250-CHUNKING\r\n250-SMTPUTF8\r\n250-DSN\r\n250-SIZE  7 x\r\n250 ENHANCEDSTATUSCODES\r\n"
        ),
        Capabilities {
            pipelining: true,
            eight_bit_mime: true,
            starttls: true,
            chunking: true,
            smtputf8: true,
            dsn: true,
            enhanced_codes: true,
            size: Some(7),
            ..none
        }
    );
}

#[test]
fn starttls() {
    let offer = "220 x\r\n250-x\r\n250-PIPELINING\r\n250 STARTTLS\r\n";
    // Refused: on in the clear.
    assert_eq!(
        run(true, &[], format!("{offer}454 not now\r\n221 x\r\n").as_bytes(), &[]),
        "C:EHLO c.test\nC:STARTTLS\n!ready\nC:QUIT\n!bye\n"
    );
    // What stands behind 220 in the clear is dropped, and what EHLO said before is forgotten.
    let mut driver = Driver::new(true, &[]);
    assert!(driver.feed(format!("{offer}220 go\r\n250-evil\r\n250 SIZE 1\r\n").as_bytes()).is_empty());
    assert_eq!(driver.log, "C:EHLO c.test\nC:STARTTLS\n!tls\nC:EHLO c.test\n");
    assert_eq!(driver.session.capabilities(), &Capabilities::default());
    driver.feed(b"250-x\r\n250 STARTTLS\r\n");
    assert!(driver.log.ends_with("C:EHLO c.test\n!ready\nC:QUIT\n"), "{}", driver.log);
}

#[test]
fn a_peer_that_goes_away() {
    let hello = "C:EHLO c.test\n!ready\nC:MAIL FROM:<f@x> SIZE=10\nC:RCPT TO:<r@x>\nC:RCPT TO:<s@x>\nC:DATA";
    let table = [
        ("421 4.3.2 m\r\n", "!failed 421 4.3.2 m"),
        ("250 m\r\n421 r\r\n", "!failed 421 r"),
        ("250 m\r\n250 r\r\n250 s\r\n421 d\r\n", "!failed 421 d"),
        // To the final dot it is the answer as well: the message is known not to have been taken.
        ("250 m\r\n550 r\r\n250 s\r\n354 d\r\n421 e\r\n", "!body 0\n!done 0 550 r|421 e\nC:\n!failed 421 e"),
        (
            "354 m\r\n",
            "!failed 451 4.5.0 the peer does not speak SMTP: a reply that cannot answer Mail: 354 m",
        ),
        (
            "250 m\r\n250 r\r\n250 s\r\n250 d\r\n",
            "!failed 451 4.5.0 the peer does not speak SMTP: a reply that cannot answer Data: 250 d",
        ),
    ];
    for (replies, expected) in table {
        let expected = expected.replace("C:\n", "");
        check(&[TWO], &format!("{PIPELINED}{replies}"), &format!("{hello}\n{expected}"));
    }
}

#[test]
fn refusals_outlive_the_connection() {
    let mut driver = Driver::new(false, &[TWO]);
    driver.feed(format!("{PIPELINED}250 m\r\n550 5.1.1 r\r\n421 s\r\n").as_bytes());
    let refusals: Vec<Option<u16>> =
        driver.session.refusals(0).iter().map(|r| r.as_ref().map(|r| r.code)).collect();
    assert_eq!(refusals, [Some(550), None]);
    assert!(!driver.session.is_body_sent(0));
    assert_eq!(driver.session.refusals(7), []);
}

#[test]
fn replies_that_nothing_asked_for() {
    let ready = |input: &[u8], start: bool| {
        let mut session = Driver::new(false, &[]).session;
        let mut out = Vec::new();
        assert_eq!(session.feed(b"220 x\r\n250 x\r\n", &mut out), (14, ClientEvent::Ready));
        if start {
            let (envelope, recipients, body) = message((&["r@x"], 1, BodyKind::SevenBit), "");
            let (envelope, recipients, body) = (&envelope, &recipients[..], &body[..]);
            session.start(Outgoing { key: 1, envelope, recipients, body }, &mut out);
            let (_, event) = session.feed(b"250 m\r\n250 r\r\n354 d\r\n", &mut out);
            assert_eq!(event, ClientEvent::SendBody { key: 1, transfer: Transfer::Stored });
        }
        let (consumed, event) = session.feed(input, &mut out);
        assert_eq!(consumed, input.len());
        let ClientEvent::Failed(reply) = event else { panic!("{event:?}") };
        assert_eq!(session.feed(b"250 more\r\n", &mut out), (10, ClientEvent::Failed(reply.clone())));
        (reply.code, session.refusals(1).iter().flatten().count())
    };
    assert_eq!(ready(b"250 x\r\n", false), (451, 0));
    assert_eq!(ready(b"550 x\r\n", false), (451, 0));
    assert_eq!(ready(b"421 x\r\n", false), (421, 0));
    // While a body is due: it is refused early.
    assert_eq!(ready(b"250 x\r\n", true), (451, 0));
    assert_eq!(ready(b"452 x\r\n", true), (452, 0));
    assert_eq!(ready(b"552 x\r\n", true), (552, 1));
}

#[test]
fn phases() {
    static MAIL: [Mail; 4] = [ONE; 4];
    let mut driver = Driver::new(false, &MAIL);
    assert_eq!(driver.session.phase(), ClientPhase::Greeting);
    driver.feed(b"220 x\r\n");
    assert_eq!(driver.session.phase(), ClientPhase::Command);
    driver.feed(b"250-x\r\n250 PIPELINING\r\n");
    for message in 0..MAIL.len() {
        assert_eq!(driver.started, message + 1);
        assert_eq!(driver.session.phase(), ClientPhase::Command);
        driver.feed(b"250 m\r\n250 r\r\n");
        assert_eq!(driver.session.phase(), ClientPhase::DataStart);
        driver.feed(b"354 d\r\n");
        assert_eq!(driver.session.phase(), ClientPhase::DataEnd);
        driver.feed(b"250 done\r\n");
    }
    assert_eq!(driver.session.phase(), ClientPhase::Quit);
}

#[test]
fn when_a_message_may_be_started() {
    let mut session = Driver::new(false, &[]).session;
    let mut out = Vec::new();
    session.feed(PIPELINED.as_bytes(), &mut out);
    let (envelope, recipients, body) = message((&["r@x"], 101, BodyKind::SevenBit), "");
    let (envelope, recipients) = (&envelope, &recipients[..]);
    let message = |key| Outgoing { key, envelope, recipients, body: &body[..1] };
    session.start(Outgoing { body: &body, ..message(9) }, &mut out);
    assert!(session.has_event() && !session.can_start());
    assert!(matches!(session.feed(b"", &mut out), (0, ClientEvent::Done { key: 9, .. })));
    session.start(message(0), &mut out);
    assert!(!session.has_event() && !session.can_start());
    session.feed(b"250 m\r\n250 r\r\n354 d\r\n", &mut out);
    assert!(!session.can_start());
    session.body_sent(0);
    assert!(session.can_start());
    session.start(message(1), &mut out);
    assert!(!session.can_start() && session.is_body_sent(0) && !session.is_body_sent(1));
    session.quit(&mut out);
    assert_eq!(session.phase(), ClientPhase::DataEnd);
    assert!(!session.can_start());
}

#[test]
fn random_peers() {
    let words: [&[u8]; 20] = [
        b"220 x\r\n",
        b"250 ok\r\n",
        b"250 ok\r\n",
        b"250 ok\r\n",
        b"250 2.1.0 ok\r\n",
        b"250-x\r\n",
        b"354 go\r\n",
        b"354 go\r\n",
        b"550 5.1.1 no\r\n",
        b"450 later\r\n",
        b"421 bye\r\n",
        b"503 order\r\n",
        b"221 bye\r\n",
        b"250 PIPELINING\r\n",
        b"250-8BITMIME\r\n",
        b"250-SIZE ",
        b"\r",
        b"\n",
        b"\0\xff",
        b"2",
    ];
    static MAIL: [Mail; 6] = [ONE, TWO, (&["r@x"], 10, BodyKind::EightBit), ONE, TWO, TWO];
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..10_000 {
        let mut input = Vec::new();
        match rng.below(3) {
            0 => input.extend_from_slice(PIPELINED.as_bytes()),
            1 => input.extend_from_slice(LOCKSTEP.as_bytes()),
            _ => {}
        }
        // Bytes that are no reply at all end a session at once, so they are rare.
        for _ in 0..rng.below(50) {
            let choices = if rng.below(30) == 0 { words.len() } else { 14 };
            input.extend_from_slice(words[rng.below(choices as u64) as usize]);
        }
        let whole = run(false, &MAIL, &input, &[]);
        assert!(whole.len() < 20_000, "a few commands per reply");
        let mut cuts: Vec<usize> =
            (0..rng.below(12)).map(|_| rng.below(input.len() as u64 + 1) as usize).collect();
        cuts.sort_unstable();
        assert_eq!(run(false, &MAIL, &input, &cuts), whole, "cut at {cuts:?}: {}", input.escape_ascii());
    }
}
