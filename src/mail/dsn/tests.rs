//! Bounces as their readers see them: the golden text, a foreign parser, and originals made to break
//! out of their part.
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::clock::Rng;

fn addr(text: &str) -> Address {
    Address::parse(text.as_bytes()).unwrap()
}

fn recipient(text: &str) -> Recipient {
    Recipient::new(addr(text))
}

fn reply(code: u16, enhanced: (u8, u16, u16), text: &str) -> Reply {
    Reply::local(code, enhanced, text)
}

/// Owned parts of a report, so that a test changes only what it is about.
struct Case {
    kind: Kind,
    sender: Address,
    failures: Vec<(Recipient, Reply, Option<&'static str>, bool)>,
    headers: Vec<u8>,
    envelope: Envelope,
    form: Form,
}

impl Case {
    fn new(headers: &[u8]) -> Case {
        let no_such_user = reply(550, (5, 1, 1), "No such user here");
        let failures = vec![(recipient("nobody@b.example"), no_such_user, Some("mx.b.example"), false)];
        let start = WallTime::from_secs(1_896_134_399);
        Case {
            kind: Kind::Failed,
            sender: addr("author@a.example"),
            failures,
            headers: headers.to_vec(),
            envelope: Envelope { received_at: start, ..Envelope::default() },
            form: Form { kind: BodyKind::SevenBit, smtp_utf8: false },
        }
    }

    fn bounce(&self) -> Vec<u8> {
        let start = self.envelope.received_at;
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|(recipient, reply, host, expired)| Reported {
                recipient,
                reply,
                host: *host,
                expired: *expired,
                last_attempt: host.map(|_| start.saturating_add(std::time::Duration::from_secs(172_790))),
            })
            .collect();
        let mut out = Vec::new();
        let form = report(
            &mut out,
            &Report {
                kind: self.kind,
                reporting_mta: "mx.a.example",
                id: MessageId(7),
                at: start.saturating_add(std::time::Duration::from_secs(172_800)),
                original: MessageId(0x0123_4567_89ab_cdef),
                envelope: &self.envelope,
                original_sender: &self.sender,
                retry_until: Some(start.saturating_add(std::time::Duration::from_secs(432_000))),
                recipients: &failures,
                original_body: &self.headers,
            },
        );
        assert_eq!(form, self.form);
        check_wire(&out, form.kind == BodyKind::EightBit);
        out
    }
}

/// What the wire demands of any bounce.
fn check_wire(out: &[u8], eight_bit: bool) {
    assert!(out.ends_with(b"\r\n"));
    for line in out[..out.len() - 2].split(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(line.len() <= 998, "{} bytes", line.len());
        assert!(!line.starts_with(b".") || line.starts_with(b".."), "{}", line.escape_ascii());
        let fits = |b: &u8| matches!(b, b'\t' | b' '..=b'~') || (eight_bit && *b >= 0x80);
        assert!(line.iter().all(fits), "{}", line.escape_ascii());
    }
    let bare = out.iter().filter(|&&b| b == b'\n').count();
    assert_eq!(bare, memmem::find_iter(out, b"\r\n").count());
}

/// The third part: its fields and its content.
fn returned(out: &[u8]) -> (String, String) {
    let text = std::str::from_utf8(out).unwrap();
    let part = text.split("\r\n--=_0000000000007").nth(3).unwrap();
    let (fields, content) = part.split_once("\r\n\r\n").unwrap();
    (fields.to_owned(), content.to_owned())
}

const GOLDEN: &str = "\
From: Mail Delivery System <MAILER-DAEMON@mx.a.example>
To: <author@a.example>
Subject: Undelivered mail returned to sender
Date: Sat, 02 Feb 2030 23:59:59 +0000
Message-ID: <0000000000007@mx.a.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary=\"=_0000000000007\"

--=_0000000000007
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at mx.a.example.

Your message of Thu, 31 Jan 2030 23:59:59 +0000 could not be delivered to 3
of its recipients. No further attempt will be made, and the message is no
longer kept here. What went wrong is said below.

<nobody@b.example>
    mx.b.example said: 550 5.1.1 No such user here
    Check the address for mistakes, and send the message again to the right
    one.

<late@c.example>
    Not delivered within 2 days. The last attempt:
    Reason: 450 4.4.1 connection timed out
    The address may well be right, but its mail server could not be reached
    or put the message off each time. Send it again later, or tell the
    recipient another way.

<x@null.example>
    Reason: 556 5.1.10 the domain accepts no mail (null MX)
    This domain does not receive mail. Look for another address of the
    recipient.

If you need help, give this whole message to your postmaster. The id of your
message here was 028t5cy4tqkff.

--=_0000000000007
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.a.example
X-Ringpost-Message: 028t5cy4tqkff
Arrival-Date: Thu, 31 Jan 2030 23:59:59 +0000

Final-Recipient: rfc822; nobody@b.example
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.b.example
Diagnostic-Code: smtp; 550 5.1.1 No such user here
Last-Attempt-Date: Sat, 02 Feb 2030 23:59:49 +0000

Final-Recipient: rfc822; late@c.example
Action: failed
Status: 4.4.1

Final-Recipient: rfc822; x@null.example
Action: failed
Status: 5.1.10

--=_0000000000007
Content-Description: Header of the undelivered message
Content-Type: text/rfc822-headers

From: author@a.example
Subject: hello

--=_0000000000007--
";

fn golden_case() -> Case {
    let mut case = Case::new(b"From: author@a.example\r\nSubject: hello\r\n\r\n..body\r\n");
    let timed_out = reply(450, (4, 4, 1), "connection timed out");
    case.failures.push((recipient("late@c.example"), timed_out, None, true));
    let null_mx = reply(556, (5, 1, 10), "the domain accepts no mail (null MX)");
    case.failures.push((recipient("x@null.example"), null_mx, None, false));
    case
}

#[test]
fn golden() {
    let out = String::from_utf8(golden_case().bounce()).unwrap();
    assert_eq!(out.replace("\r\n", "\n"), GOLDEN);
}

#[test]
fn header_ends_where_the_body_begins_or_the_limit_is() {
    let line = format!("X-Filler: {}\r\n", "y".repeat(90));
    let huge = line.repeat(1000);
    let kept = line.repeat(limits::DSN_HEADER_BYTES / line.len());
    let one_line = format!("X: {}\r\n", "z".repeat(limits::DSN_HEADER_BYTES));
    let table = [
        ("A: b\r\n\r\nbody\r\n", "A: b\r\n"),
        ("A: b\r\nC: d\r\n", "A: b\r\nC: d\r\n"),
        ("A: b\r\nC: cut", "A: b\r\n"),
        ("\r\nbody\r\n\r\n", ""),
        ("", ""),
        ("cut", ""),
        (&huge, &kept),
        (&one_line, ""),
    ];
    for (original, want) in table {
        let (fields, content) = returned(&Case::new(original.as_bytes()).bounce());
        assert!(!fields.contains("Encoding"), "{fields}");
        assert_eq!(content, want, "{}", original.escape_debug());
    }
}

#[test]
fn header_unfit_for_the_wire_is_quoted() {
    let long = format!("X: {}", "word ".repeat(300));
    let table: [&[u8]; 8] = [
        "Subject: grüße".as_bytes(),
        b"X: \xff\xfe=",
        b"X: a\rb\nc\0d",
        b"X: bare\n.\nlines",
        long.as_bytes(),
        b"--=_0000000000007",
        b"--=_0000000000007--",
        b"X: =_0000000000007 ",
    ];
    for line in table {
        let original = [line, b"\r\n\r\n"].concat();
        let (fields, content) = returned(&Case::new(&original).bounce());
        assert!(fields.contains("Content-Transfer-Encoding: quoted-printable"), "{fields}");
        assert_eq!(unquote(&content), [line, b"\r\n"].concat(), "{}", line.escape_ascii());
    }
}

#[test]
fn dots_arrive_as_they_were_sent() {
    // (stored, form, what stands in the bounce)
    let table: [(&[u8], BodyForm, &str); 6] = [
        (b"..\r\n", BodyForm::DotStuffed, "..\r\n"),
        (b"..x: y\r\n", BodyForm::DotStuffed, "..x: y\r\n"),
        (b".\r\n", BodyForm::Raw, "..\r\n"),
        (b".x: y\r\n", BodyForm::Raw, "..x: y\r\n"),
        (b"A: \xff\r\n.\r\n", BodyForm::Raw, "A: =FF\r\n=2E\r\n"),
        (b"A: \xff\r\n...\r\n", BodyForm::DotStuffed, "A: =FF\r\n=2E.\r\n"),
    ];
    for (stored, form, want) in table {
        let mut case = Case::new(stored);
        case.envelope.body_form = form;
        assert_eq!(returned(&case.bounce()).1, want);
    }
}

#[test]
fn quoted_lines_are_bounded_and_come_back() {
    let seed = crate::clock::secret_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..2000 {
        let palette = b"a.= \t\xff\0";
        let line: Vec<u8> = (0..rng.below(300)).map(|_| palette[rng.below(7) as usize]).collect();
        let mut out = Vec::new();
        quoted::append_line(&mut out, &line);
        let text = String::from_utf8(out).unwrap();
        for piece in text.strip_suffix("\r\n").unwrap().split("\r\n") {
            let fit = piece.len() <= 76 && !piece.starts_with('.') && !piece.ends_with([' ', '\t']);
            assert!(fit, "{piece:?}");
        }
        assert_eq!(unquote(&text), [&line, &b"\r\n"[..]].concat());
    }
}

/// A decoder for what the encoder may write.
fn unquote(text: &str) -> Vec<u8> {
    let joined = text.replace("=\r\n", "");
    let mut bytes = joined.bytes();
    let mut out = Vec::new();
    while let Some(b) = bytes.next() {
        let hex: Vec<u8> = if b == b'=' { bytes.by_ref().take(2).collect() } else { vec![] };
        match std::str::from_utf8(&hex).unwrap() {
            "" => out.push(b),
            hex => out.push(u8::from_str_radix(hex, 16).unwrap()),
        }
    }
    out
}

#[test]
fn foreign_text_cannot_begin_a_field_a_part_or_a_line() {
    let evil = "x\r\nStatus: 2.0.0\r\n\r\n--=_0000000000007\r\n.\r\nMAIL FROM:<>";
    let mut case = Case::new(b"A: b\r\n\r\n");
    let raw = Reply { code: 550, enhanced: None, text: evil.into() };
    case.failures = vec![(recipient("a@b.example"), raw, Some("host\r\n.\r\nX: y"), false)];
    let out = String::from_utf8(case.bounce()).unwrap();
    let fields = |name: &str| out.lines().filter(|l| l.starts_with(name)).count();
    assert_eq!((fields("Status:"), fields("--=_"), fields("MAIL"), fields("X:")), (1, 4, 0, 0), "{out}");
}

#[test]
fn long_words_stay_within_a_line() {
    let mut case = Case::new(b"A: b\r\n\r\n");
    let text = "w".repeat(limits::FOREIGN_TEXT_BYTES * 2);
    let far = format!("{}@{}.{1}.example", "l".repeat(64), "d".repeat(63));
    case.sender = addr(&far);
    case.failures = vec![(recipient(&far), reply(550, (5, 0, 0), &text), Some("mx.b.example"), false)];
    case.bounce();
}

#[test]
fn status_follows_the_reply_and_the_expiry() {
    let table = [
        (reply(550, (5, 1, 1), ""), false, "5.1.1"),
        (Reply { code: 554, enhanced: None, text: "".into() }, false, "5.0.0"),
        (reply(450, (4, 4, 1), ""), true, "4.4.1"),
        (Reply { code: 421, enhanced: None, text: "".into() }, true, "4.4.7"),
    ];
    for (reply, expired, want) in table {
        let recipient = recipient("a@b.example");
        let failure =
            Reported { recipient: &recipient, reply: &reply, host: None, expired, last_attempt: None };
        assert_eq!(failure.status().to_string(), want);
    }
}

#[test]
fn ages_are_told_in_their_largest_unit() {
    let table =
        [(0, "1 minute"), (61, "2 minutes"), (3600, "1 hour"), (86_399, "23 hours"), (432_000, "5 days")];
    for (secs, want) in table {
        assert_eq!(age(WallTime(0), WallTime::from_secs(secs)), want);
    }
    assert_eq!(rfc5322_date(WallTime(u64::MAX)), "Fri, 31 Dec 9999 23:59:59 +0000");
}

#[test]
fn more_failures_than_listed_are_counted() {
    let mut case = Case::new(b"A: b\r\n\r\n");
    case.failures = vec![case.failures[0].clone(); limits::DSN_RECIPIENTS + 3];
    let out = String::from_utf8(case.bounce()).unwrap();
    assert_eq!(out.matches("Final-Recipient:").count(), limits::DSN_RECIPIENTS);
    assert!(out.contains("\r\n3 more recipients failed and are not listed.\r\n"));
}

/// Prints what a foreign parser makes of a message in wire form on standard input.
const PARSER: &str = r#"
import email, email.policy, re, sys
wire = sys.stdin.buffer.read()
message = email.message_from_bytes(re.sub(rb"(?m)^\.", b"", wire), policy=email.policy.default)
parts = list(message.iter_parts())
print(message.get_content_type(), message.get_param("report-type"), message["auto-submitted"])
print([p.get_content_type() for p in parts])
for block in parts[1].get_payload():
    print("; ".join(f"{k}={v}" for k, v in block.items() if not k.endswith("Date")))
print(parts[2].get_payload(decode=True))
print([d for p in message.walk() for d in p.defects])
"#;

#[test]
fn a_foreign_parser_understands_it() {
    let mut case = golden_case();
    case.headers = "Subject: grüße\r\n...: dots\r\n\r\n".as_bytes().to_vec();
    let child =
        Command::new("python3").args(["-c", PARSER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        println!("skipped: there is no python3 to parse with");
        return;
    };
    child.stdin.take().unwrap().write_all(&case.bounce()).unwrap();
    let output = child.wait_with_output().unwrap();
    let want = r#"multipart/report delivery-status auto-replied
['text/plain', 'message/delivery-status', 'text/rfc822-headers']
Reporting-MTA=dns; mx.a.example; X-Ringpost-Message=028t5cy4tqkff
Final-Recipient=rfc822; nobody@b.example; Action=failed; Status=5.1.1; Remote-MTA=dns; mx.b.example; Diagnostic-Code=smtp; 550 5.1.1 No such user here
Final-Recipient=rfc822; late@c.example; Action=failed; Status=4.4.1
Final-Recipient=rfc822; x@null.example; Action=failed; Status=5.1.10
b'Subject: gr\xc3\xbc\xc3\x9fe\r\n..: dots\r\n'
[]
"#;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), want);
}

/// What a report of each kind says to machines about one recipient with all that a client may ask for.
#[test]
fn requests_of_the_client_are_answered() {
    let table = [
        (Kind::Failed, reply(550, (5, 1, 1), "no"), "failed", "5.1.1", ""),
        (
            Kind::Delayed,
            reply(450, (4, 2, 1), "later"),
            "delayed",
            "4.2.1",
            "\r\nWill-Retry-Until: Tue, 05 Feb 2030 23:59:59 +0000",
        ),
        (Kind::Relayed, reply(250, (2, 0, 0), "ok"), "relayed", "2.0.0", ""),
    ];
    for (kind, said, action, status, until) in table {
        let mut case = Case::new(b"A: b\r\n\r\nbody\r\n");
        case.kind = kind;
        case.envelope.envid = Some("QQ+2B1+0Ax".into());
        let original = Some("rfc822;old+2Btag@c.example".into());
        let to = Recipient { original, ..recipient("new@b.example") };
        case.failures = vec![(to, said.clone(), Some("mx.b.example"), false)];
        let out = String::from_utf8(case.bounce()).unwrap();
        assert!(
            out.contains("\r\nOriginal-Envelope-Id: QQ+1\\x0ax\r\nReporting-MTA: dns; mx.a.example\r\n"),
            "{out}"
        );
        let fields = format!(
            "\r\n\r\nOriginal-Recipient: rfc822; old+tag@c.example\r\nFinal-Recipient: rfc822; new@b.example\r\n\
             Action: {action}\r\nStatus: {status}\r\nRemote-MTA: dns; mx.b.example\r\n\
             Diagnostic-Code: smtp; {said}\r\nLast-Attempt-Date: Sat, 02 Feb 2030 23:59:49 +0000{until}\r\n\r\n"
        );
        assert!(out.contains(&fields), "{out}");
        assert_eq!(returned(out.as_bytes()).1, "A: b\r\n");
    }
}

/// A stored message, its form, and what is returned of it if it is returned whole.
type Original<'a> = (&'a [u8], BodyForm, Option<&'a [u8]>);

#[test]
fn the_message_is_returned_whole_if_that_is_asked_for_and_can_be() {
    let large = format!("A: b\r\n\r\n{}", "x\r\n".repeat(limits::DSN_FULL_BYTES / 3));
    let long = format!("A: b\r\n\r\n{}\r\n", "x".repeat(999));
    let table: [Original<'_>; 8] = [
        (b"A: b\r\n\r\n..c\r\n", BodyForm::DotStuffed, Some(b"A: b\r\n\r\n..c\r\n")),
        (b"A: b\r\n\r\n.c", BodyForm::Raw, Some(b"A: b\r\n\r\n..c\r\n")),
        (b"A: b\r\n\r\n\xfc\r\n", BodyForm::Raw, None),
        (b"A: \xfc\r\n\r\nc\r\n", BodyForm::Raw, None),
        (b"A: b\r\n\r\n\0\r\n", BodyForm::Raw, None),
        (b"A: b\r\n\r\n--=_0000000000007--\r\n", BodyForm::Raw, None),
        (large.as_bytes(), BodyForm::Raw, None),
        (long.as_bytes(), BodyForm::Raw, None),
    ];
    for (stored, body_form, returned) in table {
        let mut case = Case::new(stored);
        case.envelope = Envelope { ret: Some(Return::Full), body_form, ..case.envelope };
        let out = case.bounce();
        let begin = b"\r\nContent-Type: message/rfc822\r\n\r\n";
        let part = memmem::find(&out, begin).map(|at| at + begin.len());
        let end = memmem::rfind(&out, b"\r\n--=_0000000000007--\r\n").unwrap();
        assert_eq!(
            part.map(|at| &out[at..end]),
            returned,
            "{}",
            stored[..20.min(stored.len())].escape_ascii()
        );
        let told = memmem::find(&out, b"Only the header of your message is returned").is_some();
        assert_eq!(told, returned.is_none());
        // Nobody asked for it, or nothing has failed.
        for (ret, kind) in [(Some(Return::Headers), Kind::Failed), (Some(Return::Full), Kind::Relayed)] {
            (case.envelope.ret, case.kind) = (ret, kind);
            assert!(memmem::find(&case.bounce(), b"message/rfc822").is_none());
        }
    }
}

#[test]
fn international_addresses() {
    let utf8 = |text: &str| Address::parse_utf8(text.as_bytes()).unwrap();
    let mut case = Case::new("Subject: gr\u{fc}\u{df}e\r\n\r\n".as_bytes());
    case.failures[0].0 = Recipient {
        original: Some("utf-8;\\x{FC}@b".into()),
        ..Recipient::new(utf8("j\u{fc}@b\u{fc}cher.example"))
    };
    let out = String::from_utf8(case.bounce()).unwrap();
    let fields =
        "Original-Recipient: utf-8; \\x{FC}@b\r\nFinal-Recipient: utf-8; j\\x{FC}@xn--bcher-kva.example\r\n";
    assert!(out.contains(fields), "{out}");
    // The sender is in the header, which makes the report international.
    case.sender = utf8("\u{fc}@a.example");
    case.form = Form { kind: BodyKind::EightBit, smtp_utf8: true };
    let out = String::from_utf8(case.bounce()).unwrap();
    assert!(out.contains("\r\nTo: <\u{fc}@a.example>\r\n"), "{out}");
}
