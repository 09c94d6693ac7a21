//! What a peer that offers an extension is given, and one that does not.
use super::*;
use crate::mail::envelope::{BodyForm, Notify, Return};

/// One message to a peer that offers `offers` and takes everything; what is said after EHLO.
fn said_to(offers: &[&str], envelope: &Envelope, body: &[u8]) -> (String, ClientEvent) {
    let mut session = Driver::new(false, &[]).session;
    let mut out = Vec::new();
    let hello: String = offers.iter().map(|keyword| format!("250-{keyword}\r\n")).collect();
    session.feed(format!("220 x\r\n250-x\r\n{hello}250 PIPELINING\r\n").as_bytes(), &mut out);
    out.clear();
    let recipients: Vec<u16> = (0..envelope.recipients.len() as u16).collect();
    session.start(Outgoing { key: 0, envelope, recipients: &recipients, body }, &mut out);
    let replies = "250 ok\r\n".repeat(1 + recipients.len());
    let (consumed, mut event) = session.feed(replies.as_bytes(), &mut out);
    if event == ClientEvent::More {
        event = session.feed(b"354 go\r\n", &mut out).1;
    }
    assert!(consumed == replies.len() || matches!(event, ClientEvent::Done { .. }));
    (String::from_utf8(out).unwrap(), event)
}

#[test]
fn parameters_go_where_they_are_offered() {
    let (mut envelope, _, _) = message((&["r@x", "s@x", "t@x"], 0, BodyKind::EightBit), "f@x");
    envelope.ret = Some(Return::Headers);
    envelope.envid = Some("QQ+2B1".into());
    envelope.smtp_utf8 = true;
    envelope.recipients[0].notify = Some(Notify::NEVER);
    envelope.recipients[1].notify = Some(Notify { success: true, failure: true, delay: true });
    envelope.recipients[1].original = Some("rfc822;o+3D@x".into());
    let body = b"a: b\r\n\r\n\xfc\r\n";
    let (said, _) = said_to(&["DSN", "8BITMIME", "SMTPUTF8", "SIZE"], &envelope, body);
    assert_eq!(
        said,
        "MAIL FROM:<f@x> SIZE=11 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=QQ+2B1\r\n\
         RCPT TO:<r@x> NOTIFY=NEVER\r\nRCPT TO:<s@x> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;o+3D@x\r\n\
         RCPT TO:<t@x>\r\nDATA\r\n"
    );
    let (said, _) = said_to(&["8BITMIME"], &envelope, body);
    assert_eq!(
        said,
        "MAIL FROM:<f@x> BODY=8BITMIME\r\nRCPT TO:<r@x>\r\nRCPT TO:<s@x>\r\nRCPT TO:<t@x>\r\nDATA\r\n"
    );
    // What could break out of a command stays behind, whatever the store gives back.
    envelope.envid = Some("a\r\nb".into());
    let (said, _) = said_to(&["DSN", "8BITMIME", "SMTPUTF8"], &envelope, body);
    assert!(said.starts_with("MAIL FROM:<f@x> BODY=8BITMIME SMTPUTF8 RET=HDRS\r\n"), "{said}");
}

#[test]
fn a_raw_body_goes_in_one_chunk() {
    let (mut envelope, _, _) = message((&["r@x", "s@x"], 0, BodyKind::Binary), "f@x");
    envelope.body_form = BodyForm::Raw;
    let (said, event) = said_to(&["CHUNKING", "BINARYMIME"], &envelope, b"\0\n");
    assert_eq!(said, "MAIL FROM:<f@x> BODY=BINARYMIME\r\nRCPT TO:<r@x>\r\nRCPT TO:<s@x>\r\nBDAT 2 LAST\r\n");
    assert_eq!(event, ClientEvent::SendBody { key: 0, transfer: Transfer::Chunk });
    let (_, event) = said_to(&[], &envelope, b"a\r\n");
    assert_eq!(event, ClientEvent::SendBody { key: 0, transfer: Transfer::Stuffed });
    let (said, event) = said_to(&["CHUNKING"], &envelope, b"\0\n");
    let ClientEvent::Done { replies, .. } = event else { panic!("{event:?}") };
    assert_eq!((said.as_str(), replies.len(), replies[0].code), ("", 2, 554));
}

/// A chunked message over a connection; what the session says and makes of each reply.
fn chunked(hello: &str, replies: &str) -> String {
    let mut session = Driver::new(false, &[]).session;
    let (mut out, mut log) = (Vec::new(), String::new());
    session.feed(format!("220 x\r\n250-x\r\n{hello}250 CHUNKING\r\n").as_bytes(), &mut out);
    out.clear();
    let (mut envelope, recipients, body) = message(TWO, "f@x");
    envelope.body_form = BodyForm::Raw;
    let outgoing = |key| Outgoing { key, envelope: &envelope, recipients: &recipients, body: &body };
    session.start(outgoing(0), &mut out);
    for line in replies.split_inclusive("\r\n") {
        let (_, event) = session.feed(line.as_bytes(), &mut out);
        match event {
            ClientEvent::More => {}
            ClientEvent::SendBody { key, .. } => {
                session.body_sent(key);
                assert!(session.is_body_sent(key) && session.phase() == ClientPhase::DataEnd);
            }
            ClientEvent::Done { replies, .. } => {
                let replies: Vec<String> = replies.iter().map(|r| r.code.to_string()).collect();
                log.push_str(&format!("{} ", replies.join(",")));
                session.start(outgoing(1), &mut out);
            }
            other => panic!("{other:?}"),
        }
    }
    log + &String::from_utf8(out).unwrap().replace("\r\n", "|")
}

#[test]
fn chunks_and_refusals() {
    let pipelining = "250-PIPELINING\r\n";
    let mail = "MAIL FROM:<f@x>|RCPT TO:<r@x>|RCPT TO:<s@x>|";
    let table = [
        (pipelining, "250 m\r\n250 r\r\n550 s\r\n250 got\r\n", format!("250,550 {mail}BDAT 10 LAST|{mail}")),
        // Nobody is left: no chunk is sent, and the next message begins with RSET.
        (pipelining, "250 m\r\n550 r\r\n450 s\r\n", format!("550,450 {mail}RSET|{mail}")),
        (pipelining, "450 m\r\n503 r\r\n503 s\r\n", format!("450,450 {mail}{mail}")),
        (pipelining, "250 m\r\n250 r\r\n250 s\r\n552 no\r\n", format!("552,552 {mail}BDAT 10 LAST|{mail}")),
        (
            "",
            "250 m\r\n250 r\r\n250 s\r\n250 got\r\n",
            format!("250,250 {mail}BDAT 10 LAST|MAIL FROM:<f@x>|"),
        ),
        ("", "250 m\r\n550 r\r\n550 s\r\n", format!("550,550 {mail}RSET|")),
    ];
    for (hello, replies, expected) in table {
        assert_eq!(chunked(hello, replies), expected, "{replies}");
    }
}

#[test]
fn limits_of_the_peer() {
    let limits = |line: &str| {
        let mut session = Driver::new(false, &[]).session;
        let mut out = Vec::new();
        session.feed(format!("220 x\r\n250-x\r\n250 {line}\r\n").as_bytes(), &mut out);
        (session.capabilities().recipients, session.capabilities().transactions)
    };
    assert_eq!(limits("LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1"), (Some(20), Some(5)));
    assert_eq!(limits("limits mailmax=1"), (None, Some(1)));
    assert_eq!(limits("LIMITS RCPTMAX=0 MAILMAX=x RCPTMAX"), (None, None));
    assert_eq!(limits("LIMITS"), (None, None));

    let mut session = Driver::new(false, &[]).session;
    let mut out = Vec::new();
    session.feed(b"220 x\r\n250-x\r\n250 LIMITS MAILMAX=1\r\n", &mut out);
    let (envelope, recipients, body) = message(ONE, "f@x");
    assert!(session.can_start() && !session.is_spent());
    let outgoing = Outgoing { key: 0, envelope: &envelope, recipients: &recipients, body: &body };
    session.start(outgoing, &mut out);
    assert!(session.is_spent() && !session.is_at_rest());
    session.feed(b"250 m\r\n550 r\r\n", &mut out);
    assert!(session.is_at_rest() && !session.can_start());
}
