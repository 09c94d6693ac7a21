//! Requests with mail → envelopes, and what is wrong with the others.
use super::*;

const MOST: usize = 3;

fn one(body: &str) -> Injection {
    match read(body.as_bytes(), MOST) {
        Ok(Asked::One(injection)) => injection,
        other => panic!("{body}: {other:?}"),
    }
}

fn address(text: &str) -> Address {
    Address::parse_utf8(text.as_bytes()).expect("an address")
}

#[test]
fn a_plain_request() {
    let got =
        one(r#"{"from":"A@X.Example","to":["b@Y.example","c@y.example"],"message":"Subject: x\n\nhi\n.\n"}"#);
    let envelope = Envelope {
        reverse_path: Some(address("A@x.example")),
        recipients: vec![Recipient::new(address("b@y.example")), Recipient::new(address("c@y.example"))],
        ..Envelope::default()
    };
    assert_eq!(got.envelope, envelope);
    assert_eq!(got.message, b"Subject: x\r\n\r\nhi\r\n.\r\n");
}

#[test]
fn everything_that_can_be_said() {
    let got = one(
        r#"{"from":"","to":[{"address":"b@y.example","notify":["success","delay"],"orcpt":"rfc822;a+2Bb@x.example"},
            {"address":"c@y.example","notify":["never"]},{"address":"d@y.example"}],
            "message_base64":"U3ViamVjdDogeA0KDQpo6Q0K","stream":"news 7","urgent":true,"ret":"hdrs","envid":"a+2Bb"}"#,
    );
    let with = |text: &str, notify, original: Option<&str>| Recipient {
        address: address(text),
        notify,
        original: original.map(Into::into),
    };
    let success = Notify { success: true, failure: false, delay: true };
    let envelope = Envelope {
        recipients: vec![
            with("b@y.example", Some(success), Some("rfc822;a+2Bb@x.example")),
            with("c@y.example", Some(Notify::NEVER), None),
            with("d@y.example", None, None),
        ],
        body_kind: BodyKind::EightBit,
        stream: Some("news 7".into()),
        urgent: true,
        ret: Some(Return::Headers),
        envid: Some("a+2Bb".into()),
        ..Envelope::default()
    };
    assert_eq!(got.envelope, envelope);
    assert_eq!(got.message, b"Subject: x\r\n\r\nh\xe9\r\n");
}

#[test]
fn what_needs_which_extension() {
    for (from, message, kind, utf8) in [
        ("a@x.example", "S: x\\n\\nplain", BodyKind::SevenBit, false),
        ("a@x.example", "S: x\\n\\né", BodyKind::EightBit, false),
        ("a@x.example", "S: é\\n\\nx", BodyKind::EightBit, true),
        ("é@x.example", "S: x\\n\\nx", BodyKind::SevenBit, true),
        // The domain alone has an ASCII form.
        ("a@é.example", "S: x\\n\\nx", BodyKind::SevenBit, false),
    ] {
        let envelope =
            one(&format!(r#"{{"from":"{from}","to":["b@y.example"],"message":"{message}"}}"#)).envelope;
        assert_eq!((envelope.body_kind, envelope.smtp_utf8), (kind, utf8), "{from} {message}");
    }
    // A header in Latin-1 is no UTF-8: "S: é", and nothing else.
    let latin = one(r#"{"from":"","to":["b@y.example"],"message_base64":"Uzog6Q0K"}"#).envelope;
    assert_eq!((latin.body_kind, latin.smtp_utf8), (BodyKind::EightBit, false));
}

#[test]
fn what_is_refused_and_why() {
    let mail =
        |fields: &str| format!(r#"{{"from":"a@x.example","to":["b@y.example"],"message":"x"{fields}}}"#);
    let to = |to: &str| format!(r#"{{"from":"a@x.example","to":{to},"message":"x"}}"#);
    let long = |n: usize| "x".repeat(n);
    let many = format!("[{}]", vec![mail(""); limits::INJECTION_MESSAGES + 1].join(","));
    for (body, why) in [
        (String::new(), "EOF"),
        ("nonsense".into(), "expected"),
        ("[]".into(), "the list of messages is empty"),
        (many, "invalid length 101, expected a list of at most 100"),
        (format!("[{},{}]", mail(""), to(r#"["b"]"#)), "message 1: to, recipient 0: an address has the form"),
        (mail("} trailing"), "trailing characters"),
        (mail(r#","subjekt":"x""#), "unknown field `subjekt`"),
        (mail(r#","message_base64":"eA==""#), "give the message in message or in message_base64"),
        (r#"{"from":"a@x.example","to":["b@y.example"]}"#.into(), "give the message in"),
        (r#"{"from":"a@x.example","to":["b@y.example"],"message":""}"#.into(), "message: is empty"),
        (r#"{"from":"","to":["b@y.example"],"message_base64":"e"}"#.into(), "message_base64: "),
        (r#"{"to":["b@y.example"],"message":"x"}"#.into(), "missing field `from`"),
        (r#"{"from":"a@x.example","message":"x"}"#.into(), "missing field `to`"),
        (r#"{"from":"a","to":["b@y.example"],"message":"x"}"#.into(), "from: an address has the form"),
        (r#"{"from":"<a@x.example>","to":["b@y.example"],"message":"x"}"#.into(), "from: "),
        (to("[]"), "to: name at least one recipient"),
        (to(r#""b@y.example""#), "invalid type: string"),
        (to("[7]"), "integer `7`, expected an address, or an object of address, notify and orcpt"),
        (to("[[[[]]]]"), "sequence, expected an address, or an object"),
        (to(&format!("[{}]", vec![r#""""#; 65_536].join(","))), "expected a list of at most 65535"),
        (to(r#"[{"address":"b@y.example","notfy":[]}]"#), "unknown field `notfy`"),
        (to(r#"["b@y.example\r\nDATA"]"#), "to, recipient 0: the domain"),
        (to(r#"["b c@y.example"]"#), "to, recipient 0: the local part"),
        (to(r#"["b@y.example","c"]"#), "to, recipient 1: an address has"),
        (
            to(r#"["a@y.example","b@y.example","c@y.example","d@y.example"]"#),
            "too many recipients: 3 are taken",
        ),
        (to(r#"[{"address":"b@y.example","notify":[]}]"#), "notify: write never alone"),
        (to(r#"[{"address":"b@y.example","notify":["never","delay"]}]"#), "notify: write never alone"),
        (to(r#"[{"address":"b@y.example","notify":["delay","delay","delay","delay"]}]"#), "at most 3"),
        (to(r#"[{"address":"b@y.example","notify":["Success"]}]"#), "notify: write never alone"),
        (to(r#"[{"address":"b@y.example","orcpt":"b@y.example"}]"#), "orcpt: write TYPE;ADDRESS"),
        (to(r#"[{"address":"b@y.example","orcpt":"rfc822;a b"}]"#), "orcpt: write TYPE;ADDRESS"),
        (
            to(&format!(r#"[{{"address":"b@y.example","orcpt":"rfc822;{}"}}]"#, long(500))),
            "orcpt: write TYPE;ADDRESS",
        ),
        (mail(r#","ret":"all""#), "ret: write full or hdrs"),
        (mail(r#","envid":"""#), "envid: write 1 to 100"),
        (mail(r#","envid":"a b""#), "envid: write 1 to 100"),
        (mail(r#","envid":"a\r\nb""#), "envid: write 1 to 100"),
        (mail(&format!(r#","envid":"{}""#, long(101))), "envid: write 1 to 100"),
        (mail(r#","stream":"""#), "stream: write 1 to 64"),
        (mail(r#","stream":"a\nb""#), "stream: write 1 to 64"),
        (mail(r#","stream":" a""#), "stream: write 1 to 64"),
        (mail(&format!(r#","stream":"{}""#, long(65))), "stream: write 1 to 64"),
        (mail(r#","urgent":"yes""#), "invalid type"),
    ] {
        let error = read(body.as_bytes(), MOST).expect_err(&body);
        assert!(error.contains(why), "{body}: {error}");
    }
    assert!(read(b"{\"from\":\"\",\"to\":[\"b@y.example\"],\"message\":\"\xff\"}", MOST).is_err());
}

#[test]
fn the_recipients_of_a_message_fit_a_record() {
    let local = "x".repeat(60);
    let to: Vec<String> = (0..2_000).map(|n| format!("\"{local}{n:04}@y.example\"")).collect();
    let body = format!(r#"{{"from":"","to":[{}],"message":"x"}}"#, to.join(","));
    let error = read(body.as_bytes(), 10_000).expect_err("more than a record holds");
    assert!(error.contains("too many recipients: 1343 are taken"), "{error}");
}

#[test]
fn what_is_written_is_read() {
    for message in ["S: \"x\"\r\n\r\n\u{1f600}\r\n".as_bytes(), b"S: \xe9\r\n\r\n"] {
        let to = Few(vec![To::Address("b@y.example".into())]);
        let mut mail = Mail { from: "a@x.example".into(), to, ..Mail::default() };
        mail.carry(message);
        let text = serde_json::to_string(&mail).expect("JSON");
        assert_eq!(one(&text).message, message);
        assert!(!text.contains("null"), "{text}");
    }
}
