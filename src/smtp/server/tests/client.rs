//! Tables of what a client may do to protect the channel and to say who it is.
//!
//! Owns: STARTTLS, AUTH, XCLIENT, and the rules of a submission listener. Promises: nothing outside tests.
//! Must not: know TLS or a mechanism.
use super::super::*;
use crate::mail::address::{Address, Domain};
use crate::mail::senders::Senders;
use crate::smtp::sasl::Secret;

/// A listener as these tests have it.
#[derive(Clone, Copy, Default)]
struct Given {
    starttls: bool,
    auth: bool,
    submission: bool,
    may_relay: bool,
    xclient: bool,
    counted: bool,
}

/// What the driver does between two turns of the client.
#[derive(Clone, Copy)]
enum Do {
    Nothing,
    Handshake,
    Challenge,
    LogIn,
    Wrong,
    Malformed,
    Busy,
    TooMany,
    Admit,
    Refuse,
    /// The next client: whether it may relay.
    Rename(bool),
}

fn session(given: Given) -> ServerSession {
    let mechanisms = if given.auth { vec!["SCRAM-SHA-256-PLUS", "PLAIN"] } else { vec![] };
    let access = Access {
        starttls: given.starttls,
        mechanisms,
        submission: given.submission,
        local_domains: [Domain::parse(b"local.test").unwrap()].into(),
        postmaster: None,
    };
    let config = ServerConfig {
        hostname: "mx.test".into(),
        max_message_bytes: 1000,
        max_recipients: 3,
        access,
        ..ServerConfig::default()
    };
    ServerSession::new(Arc::new(config), peer(given))
}

fn peer(given: Given) -> Peer {
    let Given { may_relay, xclient, counted, .. } = given;
    Peer { addr: "192.0.2.7".parse().unwrap(), may_relay, xclient, counted }
}

fn answer(session: &mut ServerSession, given: Given, word: Do, step: &Step, out: &mut Vec<u8>) {
    let answer = match word {
        Do::Nothing => return,
        Do::Handshake => return session.tls_started(true),
        Do::Admit => return session.admit_mail(true, out),
        Do::Refuse => return session.admit_mail(false, out),
        Do::Rename(may_relay) => {
            let Step::Xclient(said) = step else { panic!("{step:?}") };
            return session.set_peer(Peer { may_relay, ..peer(given) }, said, out);
        }
        Do::Challenge => AuthAnswer::Challenge(b"more".to_vec()),
        Do::LogIn => AuthAnswer::Success(Login {
            user: "u".into(),
            senders: Arc::new(Senders::parse("own.test").unwrap()),
            counted: given.counted,
        }),
        Do::Wrong => AuthAnswer::Wrong,
        Do::Malformed => AuthAnswer::Malformed,
        Do::Busy => AuthAnswer::Busy,
        Do::TooMany => AuthAnswer::TooMany,
    };
    session.answer_auth(answer, out);
}

/// Each turn: what the client says, what the driver does then, and the replies to both. The client's bytes
/// come whole, then one by one.
fn check(given: Given, turns: &[(&str, Do, &str)]) {
    for whole in [true, false] {
        let mut session = session(given);
        for (said, word, expected) in turns {
            let (mut out, mut step, mut rest) = (Vec::new(), Step::More, Vec::new());
            let size = if whole { said.len().max(1) } else { 1 };
            for piece in said.as_bytes().chunks(size) {
                rest.extend_from_slice(piece);
                loop {
                    let (consumed, next) = session.step(&rest, &mut out);
                    rest.drain(..consumed);
                    let more = matches!(next, Step::More);
                    if !more {
                        step = next;
                    }
                    if more || !matches!(step, Step::AuthEnds) {
                        break;
                    }
                }
            }
            assert!(rest.is_empty(), "{said:?} leaves {:?}", rest.escape_ascii().to_string());
            answer(&mut session, given, *word, &step, &mut out);
            let replies = String::from_utf8(out).unwrap();
            let replies: Vec<&str> = replies.split_terminator("\r\n").collect();
            let expected: Vec<&str> = expected.lines().map(str::trim).collect();
            assert_eq!(replies, expected, "{said:?}, whole: {whole}");
        }
    }
}

const EHLO: &str = "250-mx.test
    250-PIPELINING
    250-SIZE 1000
    250-8BITMIME
    250-SMTPUTF8
    250-CHUNKING
    250-BINARYMIME
    250-DSN
    250-ENHANCEDSTATUSCODES
    250-LIMITS RCPTMAX=3";

fn hello(offers: &str) -> String {
    format!("{EHLO}\n{offers}250 HELP")
}

#[test]
fn a_protected_channel_is_a_new_beginning() {
    let given = Given { starttls: true, auth: true, may_relay: true, ..Given::default() };
    check(
        given,
        &[
            ("EHLO c\r\n", Do::Nothing, &hello("250-STARTTLS\n")),
            ("AUTH PLAIN\r\n", Do::Nothing, "538 5.7.11 Encryption required: say STARTTLS first"),
            ("MAIL FROM:<a@b> AUTH=<>\r\n", Do::Nothing, "555 5.5.4 Parameter not recognised"),
            ("MAIL FROM:<a@b>\r\n", Do::Nothing, "250 2.1.0 Ok"),
            ("STARTTLS x\r\n", Do::Nothing, "501 5.5.4 This command takes no argument"),
            ("STARTTLS\r\n", Do::Handshake, "220 2.0.0 Ready to start TLS"),
            ("RCPT TO:<a@b>\r\n", Do::Nothing, "503 5.5.1 MAIL comes before RCPT"),
            ("MAIL FROM:<a@b>\r\n", Do::Nothing, "503 5.5.1 Say EHLO first"),
            ("EHLO c\r\n", Do::Nothing, &hello("250-AUTH SCRAM-SHA-256-PLUS PLAIN\n")),
            ("STARTTLS\r\n", Do::Nothing, "503 5.5.1 The channel is protected already"),
            ("MAIL FROM:<a@b> AUTH=<>\r\n", Do::Nothing, "250 2.1.0 Ok"),
        ],
    );
}

#[test]
fn nothing_is_offered_that_is_not_there() {
    check(
        Given::default(),
        &[
            ("EHLO c\r\n", Do::Nothing, &hello("")),
            ("STARTTLS\r\n", Do::Nothing, "502 5.5.1 Command not implemented"),
            ("AUTH PLAIN\r\n", Do::Nothing, "502 5.5.1 Command not implemented"),
            ("XCLIENT ADDR=192.0.2.1\r\n", Do::Nothing, "502 5.5.1 Command not implemented"),
        ],
    );
    // A channel with nothing to bind to.
    let given = Given { auth: true, ..Given::default() };
    let mut session = session(given);
    session.tls_started(false);
    let mut out = Vec::new();
    session.step(b"EHLO c\r\nAUTH SCRAM-SHA-256-PLUS\r\n", &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("250-AUTH PLAIN\r\n") && text.ends_with("504 5.5.4 Mechanism not known here\r\n"),
        "{text}"
    );
}

#[test]
fn turns_of_an_authentication() {
    let given = Given { starttls: true, auth: true, ..Given::default() };
    check(
        given,
        &[
            (
                "EHLO c\r\nSTARTTLS\r\n",
                Do::Handshake,
                &format!("{}\n220 2.0.0 Ready to start TLS", hello("250-STARTTLS\n")),
            ),
            ("AUTH PLAIN\r\n", Do::Nothing, "503 5.5.1 AUTH comes once, after EHLO and before MAIL"),
            ("EHLO c\r\n", Do::Nothing, &hello("250-AUTH SCRAM-SHA-256-PLUS PLAIN\n")),
            ("AUTH\r\n", Do::Nothing, "501 5.5.4 Syntax: AUTH mechanism [initial-response]"),
            ("AUTH CRAM-MD5\r\n", Do::Nothing, "504 5.5.4 Mechanism not known here"),
            ("AUTH PLAIN ?\r\n", Do::Nothing, "501 5.5.2 Cannot decode base64"),
            ("AUTH PLAIN\r\n", Do::Challenge, "334 bW9yZQ=="),
            ("*\r\n", Do::Nothing, "501 5.7.0 Authentication cancelled"),
            ("AUTH PLAIN\r\n", Do::Challenge, "334 bW9yZQ=="),
            ("not base64\r\n", Do::Nothing, "501 5.5.2 Cannot decode base64"),
            ("AUTH plain =\r\n", Do::Busy, "454 4.7.0 Logins are slow now, try again later"),
            ("AUTH plain =\r\n", Do::Malformed, "501 5.5.2 That is not how the mechanism goes"),
            ("AUTH PLAIN\r\n", Do::Challenge, "334 bW9yZQ=="),
            ("AGEAYg==\r\n", Do::Wrong, "535 5.7.8 Authentication credentials invalid"),
            ("AUTH PLAIN AGEAYg==\r\n", Do::LogIn, "235 2.7.0 Authentication successful"),
            ("AUTH PLAIN\r\n", Do::Nothing, "503 5.5.1 AUTH comes once, after EHLO and before MAIL"),
            ("EHLO c\r\n", Do::Nothing, &hello("")),
            (
                "MAIL FROM:<a@foreign.test>\r\n",
                Do::Nothing,
                "553 5.7.1 This login may not send as that address",
            ),
            (
                "MAIL FROM:<a@own.test>\r\nRCPT TO:<a@foreign.test>\r\n",
                Do::Nothing,
                "250 2.1.0 Ok\n250 2.1.5 Ok",
            ),
        ],
    );
}

#[test]
fn the_responses_reach_the_driver_as_bytes() {
    let given = Given { auth: true, ..Given::default() };
    let mut session = session(given);
    session.tls_started(true);
    let mut out = Vec::new();
    let (_, step) = session.step(b"EHLO c\r\nAUTH plain AGEAYg==\r\n", &mut out);
    assert_eq!(step, Step::Auth(AuthSaid::Begin("PLAIN", Some(Secret::new(b"\0a\0b".to_vec())))));
    session.answer_auth(AuthAnswer::Challenge(vec![]), &mut out);
    let (_, step) = session.step(b"\r\n", &mut out);
    assert_eq!(step, Step::Auth(AuthSaid::Response(Secret::default())));
}

#[test]
fn who_fails_too_often_is_sent_away() {
    let given = Given { starttls: true, auth: true, ..Given::default() };
    let start = (
        "EHLO c\r\nSTARTTLS\r\n",
        Do::Handshake,
        format!("{}\n220 2.0.0 Ready to start TLS", hello("250-STARTTLS\n")),
    );
    let again = hello("250-AUTH SCRAM-SHA-256-PLUS PLAIN\n");
    let wrong = ("AUTH PLAIN =\r\n", Do::Wrong, "535 5.7.8 Authentication credentials invalid");
    let last = "421 4.7.0 mx.test Too many failed logins";
    let start = (start.0, start.1, start.2.as_str());
    check(
        given,
        &[start, ("EHLO c\r\n", Do::Nothing, &again), wrong, wrong, ("AUTH PLAIN =\r\n", Do::Wrong, last)],
    );
    check(given, &[start, ("EHLO c\r\n", Do::Nothing, &again), ("AUTH PLAIN =\r\n", Do::TooMany, last)]);
}

#[test]
fn submission_wants_protection_and_a_name() {
    // Not even who may relay elsewhere is exempt.
    let given = Given { starttls: true, auth: true, submission: true, may_relay: true, ..Given::default() };
    check(
        given,
        &[
            ("EHLO c\r\n", Do::Nothing, &hello("250-STARTTLS\n")),
            ("MAIL FROM:<a@own.test>\r\n", Do::Nothing, "530 5.7.0 Say STARTTLS first"),
            ("STARTTLS\r\n", Do::Handshake, "220 2.0.0 Ready to start TLS"),
            ("EHLO c\r\n", Do::Nothing, &hello("250-AUTH SCRAM-SHA-256-PLUS PLAIN\n")),
            ("MAIL FROM:<a@own.test>\r\n", Do::Nothing, "530 5.7.0 Authentication required"),
            ("AUTH PLAIN =\r\n", Do::LogIn, "235 2.7.0 Authentication successful"),
            ("MAIL FROM:<a@own.test>\r\n", Do::Nothing, "250 2.1.0 Ok"),
            ("RCPT TO:<a@foreign.test>\r\n", Do::Nothing, "250 2.1.5 Ok"),
        ],
    );
}

#[test]
fn strangers_reach_local_domains_only() {
    check(
        Given::default(),
        &[
            ("EHLO c\r\n", Do::Nothing, &hello("")),
            ("MAIL FROM:<a@foreign.test>\r\n", Do::Nothing, "250 2.1.0 Ok"),
            ("RCPT TO:<b@LOCAL.test>\r\n", Do::Nothing, "250 2.1.5 Ok"),
            ("RCPT TO:<b@x.local.test>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<postmaster>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<\"b@local.test\"@x.test>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<b%x.test@local.test>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<x.test!b@local.test>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<\"b@x.test\"@local.test>\r\n", Do::Nothing, "550 5.7.1 Relaying denied"),
            ("RCPT TO:<\"b\"@local.test>\r\n", Do::Nothing, "250 2.1.5 Ok"),
        ],
    );
}

#[test]
fn the_postmaster_is_reached_by_everyone_where_there_is_one() {
    let mut config = ServerConfig {
        hostname: "mx.test".into(),
        max_message_bytes: 1000,
        max_recipients: 3,
        ..ServerConfig::default()
    };
    config.access.postmaster = Some(Address::parse(b"pm@far.test").unwrap());
    let mut session = ServerSession::new(Arc::new(config), peer(Given::default()));
    let mut out = Vec::new();
    let said = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nRCPT TO:<x@far.test>\r\nDATA\r\n";
    let (_, step) = session.step(said, &mut out);
    assert_eq!(step, Step::BodyStarts);
    let to: Vec<&str> =
        session.transaction().envelope.recipients.iter().map(|r| r.address.as_str()).collect();
    assert_eq!(to, ["pm@far.test"]);
}

#[test]
fn messages_are_counted_where_that_is_asked_for() {
    let given = Given { may_relay: true, counted: true, ..Given::default() };
    let late = "450 4.7.1 Too much mail in too short a time, try again later";
    check(
        given,
        &[
            ("EHLO c\r\n", Do::Nothing, &hello("")),
            ("MAIL FROM:<a@b>\r\n", Do::Refuse, late),
            ("RCPT TO:<a@b>\r\n", Do::Nothing, "503 5.5.1 MAIL comes before RCPT"),
            ("MAIL FROM:<a@b>\r\n", Do::Admit, "250 2.1.0 Ok"),
            ("RCPT TO:<a@b>\r\n", Do::Nothing, "250 2.1.5 Ok"),
            ("MAIL FROM:<a@b>\r\n", Do::Nothing, "503 5.5.1 MAIL was given already"),
        ],
    );
}

/// Says `command` over and over, with `word` as the driver's answer, until the session ends; how often.
fn floods(given: Given, command: &str, word: Do) -> u32 {
    let mut session = session(given);
    session.tls_started(true);
    let mut out = Vec::new();
    session.step(b"EHLO c\r\n", &mut out);
    for said in 1..=2 * limits::IDLE_COMMANDS {
        out.clear();
        let (_, step) = session.step(command.as_bytes(), &mut out);
        if !matches!(step, Step::More) {
            answer(&mut session, given, word, &step, &mut out);
        }
        if out.starts_with(b"421 4.7.0 mx.test Too many errors or idle commands\r\n") {
            assert_eq!(session.step(b"NOOP\r\n", &mut out).1, Step::Close);
            return said;
        }
    }
    panic!("{command} may be said for ever");
}

#[test]
fn nothing_may_be_asked_for_ever() {
    let given = Given { auth: true, counted: true, may_relay: true, ..Given::default() };
    // EHLO was the first.
    let most = limits::IDLE_COMMANDS;
    assert_eq!(floods(given, "MAIL FROM:<a@b>\r\n", Do::Refuse), most);
    assert_eq!(floods(given, "AUTH PLAIN AGEAYg==\r\n", Do::Busy), most);
}

#[test]
fn a_response_too_long_ends_its_exchange() {
    let given = Given { auth: true, ..Given::default() };
    let mut session = session(given);
    session.tls_started(true);
    let mut out = Vec::new();
    session.step(b"EHLO c\r\nAUTH PLAIN\r\n", &mut out);
    session.answer_auth(AuthAnswer::Challenge(vec![]), &mut out);
    out.clear();
    let long = format!("{}\r\nNOOP\r\n", "A".repeat(2 * limits::COMMAND_LINE_BYTES));
    assert_eq!(session.step(long.as_bytes(), &mut out), (0, Step::AuthEnds));
    assert_eq!(session.step(long.as_bytes(), &mut out), (long.len(), Step::More));
    let replies = String::from_utf8(out).unwrap();
    assert_eq!(replies, "500 5.5.6 Authentication exchange line is too long\r\n250 2.0.0 Ok\r\n");
}

#[test]
fn a_proxy_says_for_whom_it_speaks() {
    let given = Given { xclient: true, may_relay: true, ..Given::default() };
    let hello = hello("250-XCLIENT NAME ADDR PORT PROTO HELO\n");
    check(
        given,
        &[
            ("EHLO proxy\r\n", Do::Nothing, &hello),
            ("XCLIENT ADDR=x\r\n", Do::Nothing, "501 5.5.4 Attributes not understood"),
            (
                "MAIL FROM:<a@b>\r\nXCLIENT ADDR=192.0.2.1\r\n",
                Do::Nothing,
                "250 2.1.0 Ok\n503 5.5.1 XCLIENT comes before MAIL",
            ),
            ("RSET\r\n", Do::Nothing, "250 2.0.0 Ok"),
            ("XCLIENT ADDR=192.0.2.1\r\n", Do::Rename(false), "220 mx.test ESMTP ringpost"),
            ("MAIL FROM:<a@b>\r\n", Do::Nothing, "503 5.5.1 Say EHLO first"),
            ("EHLO c\r\nMAIL FROM:<a@b>\r\n", Do::Nothing, &format!("{hello}\n250 2.1.0 Ok")),
            ("RCPT TO:<a@b>\r\nRSET\r\n", Do::Nothing, "550 5.7.1 Relaying denied\n250 2.0.0 Ok"),
            ("XCLIENT ADDR=192.0.2.2 HELO=c PROTO=ESMTP\r\n", Do::Rename(true), "220 mx.test ESMTP ringpost"),
            ("MAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\n", Do::Nothing, "250 2.1.0 Ok\n250 2.1.5 Ok"),
        ],
    );
}

#[test]
fn a_new_client_begins_with_a_clean_slate() {
    let given = Given { xclient: true, ..Given::default() };
    let errors = "?\r\n".repeat(limits::BAD_COMMANDS as usize);
    let replies = "500 5.5.2 Command not recognised\n".repeat(limits::BAD_COMMANDS as usize);
    let turn = (errors.as_str(), Do::Nothing, replies.as_str());
    let rename = ("XCLIENT ADDR=192.0.2.1\r\n", Do::Rename(false), "220 mx.test ESMTP ringpost");
    check(given, &[turn, rename, turn, rename, turn]);
    let mut session = session(given);
    session.step(b"?\r\nXCLIENT ADDR=192.0.2.1\r\n", &mut Vec::new());
    session.set_peer(peer(given), &Default::default(), &mut Vec::new());
    assert_eq!(session.take_errors(), 0);
    session.step(b"?\r\n", &mut Vec::new());
    assert_eq!((session.take_errors(), session.take_errors()), (1, 0));
}

#[test]
fn nothing_comes_between_chunks() {
    let given = Given { starttls: true, may_relay: true, ..Given::default() };
    let mut session = session(given);
    let mut out = Vec::new();
    let said = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1\r\nx";
    let (at, step) = session.step(said, &mut out);
    assert_eq!(step, Step::BodyStarts);
    assert_eq!(session.step(&said[at..], &mut out), (1, Step::Body(0..1)));
    out.clear();
    assert_eq!(session.step(b"STARTTLS\r\n", &mut out), (10, Step::More));
    let replies = String::from_utf8(out).unwrap();
    assert!(replies.starts_with("250 2.0.0 1 ") && replies.contains("\r\n503 5.5.1 "), "{replies}");
}
