//! Tables of command lines: what they mean, or why they are refused.
use super::*;

fn address(text: &str) -> Address {
    Address::parse(text.as_bytes()).unwrap()
}

fn mail(from: &str, size_bytes: Option<u64>, body: BodyKind) -> Command<'static> {
    let reverse_path = (!from.is_empty()).then(|| address(from));
    Command::Mail {
        reverse_path,
        parameters: MailParameters { size_bytes, body, ..MailParameters::default() },
    }
}

fn rcpt_with(path: ForwardPath<'_>, parameters: RcptParameters) -> Command<'_> {
    Command::Rcpt { path, parameters }
}

fn rcpt(to: &str) -> Command<'static> {
    rcpt_with(ForwardPath::Mailbox(address(to)), RcptParameters::default())
}

#[test]
fn commands() {
    use BodyKind::{EightBit, SevenBit};
    let table = [
        ("EHLO a.example", Command::Hello { name: "a.example", esmtp: true }),
        ("helo  [1.2.3] junk (x) ", Command::Hello { name: "[1.2.3] junk (x)", esmtp: false }),
        ("MAIL FROM:<>", mail("", None, SevenBit)),
        ("mail from:<a@b>", mail("a@b", None, SevenBit)),
        ("MAIL FROM: <a@b>", mail("a@b", None, SevenBit)),
        ("MAIL FROM:<a@b> ", mail("a@b", None, SevenBit)),
        ("MAIL FROM:<a@b>  SIZE=12  BODY=8bitmime", mail("a@b", Some(12), EightBit)),
        ("MAIL FROM:<a@b> body=7BIT size=18446744073709551615", mail("a@b", Some(u64::MAX), SevenBit)),
        ("MAIL FROM:<@x.y,@[IPv6:::1]:a@b>", mail("a@b", None, SevenBit)),
        ("MAIL FROM:<\"a> b\"@c>", mail("\"a> b\"@c", None, SevenBit)),
        ("RCPT TO:<a@B>", rcpt("a@b")),
        ("RCPT TO:<@r.example:\"x\\\">\"@[IPv6:::1]>", rcpt("\"x\\\">\"@[IPv6:::1]")),
        ("RCPT TO:<PostMaster>", rcpt_with(ForwardPath::Postmaster("PostMaster"), RcptParameters::default())),
        ("DATA ", Command::Data),
        ("RSET", Command::Rset),
        ("NOOP anything", Command::Noop),
        ("VRFY a", Command::Vrfy),
        ("HELP MAIL", Command::Help(b"MAIL")),
        ("qUiT", Command::Quit),
        ("starttls", Command::StartTls),
        ("AUTH LOGIN", Command::Auth("LOGIN", None)),
        ("XCLIENT a b", Command::Xclient(b"a b")),
    ];
    for (line, expected) in table {
        assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
    }
}

#[test]
fn refused_commands() {
    use AddressError as A;
    use CommandError as E;
    let long = format!("MAIL FROM:<{}@{}>", "a".repeat(64), vec!["b".repeat(60); 4].join("."));
    let table = [
        ("", E::Unknown),
        (" ", E::Unknown),
        (" DATA", E::Unknown),
        ("DATAX", E::Unknown),
        ("XXXX", E::Unknown),
        ("MAI", E::Unknown),
        ("EXPN list", E::NotImplemented),
        ("BDAT", E::BdatSyntax),
        ("BDAT x", E::BdatSyntax),
        ("BDAT -1", E::BdatSyntax),
        ("BDAT 1 FIRST", E::BdatSyntax),
        ("BDAT 1 LAST x", E::BdatSyntax),
        ("BDAT 18446744073709551616", E::BdatSyntax),
        ("STARTTLS x", E::ExtraArgument),
        ("AUTH", E::AuthSyntax),
        ("AUTH PLAIN x", E::Base64),
        ("MAIL FROM:<a@b> AUTH", E::BadParameter),
        ("MAIL FROM:<a@b> AUTH=<> AUTH=<>", E::BadParameter),
        ("GET / HTTP/1.1", E::Http),
        ("POST / HTTP/1.1", E::Http),
        ("RSET\rQUIT", E::LineEnd),
        ("RSET\nQUIT", E::LineEnd),
        ("NOOP \0", E::LineEnd),
        ("\r", E::LineEnd),
        ("EHLO", E::HelloName),
        ("HELO ", E::HelloName),
        ("EHLO a\x07", E::HelloName),
        ("EHLO \u{fc}", E::HelloName),
        ("DATA x", E::ExtraArgument),
        ("QUIT now", E::ExtraArgument),
        ("VRFY", E::VrfySyntax),
        ("MAIL", E::MailSyntax),
        ("MAIL FROM", E::MailSyntax),
        ("MAIL FROM:", E::MailSyntax),
        ("MAIL FROM:a@b", E::MailSyntax),
        ("MAIL FROM:<a@b", E::MailSyntax),
        ("MAIL TO:<a@b>", E::MailSyntax),
        ("MAIL FROM:<a@b>SIZE=1", E::MailSyntax),
        ("MAIL FROM:<\"a@b>", E::MailSyntax),
        ("MAIL FROM:<@x,a@b>", E::MailSyntax),
        ("MAIL FROM:<@x a@b>", E::MailSyntax),
        ("MAIL FROM:<@x:>", E::MailSyntax),
        ("MAIL FROM:<@-:a@b>", E::MailSyntax),
        ("MAIL FROM:<a>", E::Sender(A::Form)),
        ("MAIL FROM:< >", E::Sender(A::LocalPart)),
        (&long, E::Sender(A::TooLong)),
        ("MAIL FROM:<j\u{fc}@b>", E::NonAscii),
        ("MAIL FROM:<j\u{fc}@b\u{fc} c> SMTPUTF8", E::Sender(A::Domain)),
        ("RCPT TO:<a@b\u{fc} c>", E::Recipient(A::Domain)),
        ("MAIL FROM:<a@b> SIZE", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=-1", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=1 SIZE=1", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=18446744073709551616", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=000000000000000000001", E::BadParameter),
        ("MAIL FROM:<a@b> SMTPUTF8=1", E::BadParameter),
        ("MAIL FROM:<a@b> SMTPUTF8 SMTPUTF8", E::BadParameter),
        ("MAIL FROM:<a@b> REQUIRETLS=1", E::BadParameter),
        ("MAIL FROM:<a@b> RET=SOME", E::BadParameter),
        ("MAIL FROM:<a@b> RET=FULL RET=FULL", E::BadParameter),
        ("MAIL FROM:<a@b> ENVID=", E::BadParameter),
        ("MAIL FROM:<a@b> ENVID=a+b", E::BadParameter),
        ("MAIL FROM:<a@b> BODY", E::BadParameter),
        ("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", E::BadParameter),
        ("MAIL FROM:<a@b> =", E::UnknownParameter),
        ("RCPT TO:<a@b> SIZE=1", E::UnknownParameter),
        ("RCPT TO:<a@b> NOTIFY=", E::BadParameter),
        ("RCPT TO:<a@b> NOTIFY=NEVER,DELAY", E::BadParameter),
        ("RCPT TO:<a@b> NOTIFY=SUCCESS,", E::BadParameter),
        ("RCPT TO:<a@b> NOTIFY=DELAY NOTIFY=DELAY", E::BadParameter),
        ("RCPT TO:<a@b> ORCPT=a@b", E::BadParameter),
        ("RCPT TO:<a@b> ORCPT=rfc822;a=b", E::BadParameter),
        ("RCPT TO:<>", E::Recipient(A::Form)),
        ("RCPT TO:<a>", E::Recipient(A::Form)),
        ("RCPT FROM:<a@b>", E::RcptSyntax),
    ];
    for (line, expected) in table {
        assert_eq!(parse(line.as_bytes()), Err(expected), "{line:?}");
    }
}

#[test]
fn every_error_has_a_reply_line() {
    for line in ["", "DATA x", "GET", "RCPT TO:<a>", "MAIL FROM:<a@b> X"] {
        let reply = parse(line.as_bytes()).unwrap_err().reply();
        assert!(reply.ends_with("\r\n") && reply.is_ascii());
    }
}

#[test]
fn extensions() {
    let mail = |parameters| Command::Mail { reverse_path: Some(address("a@b")), parameters };
    let given = MailParameters::default();
    let table = [
        ("MAIL FROM:<a@b> BODY=binarymime", mail(MailParameters { body: BodyKind::Binary, ..given })),
        ("MAIL FROM:<a@b> SMTPUTF8", mail(MailParameters { smtp_utf8: true, ..given })),
        ("MAIL FROM:<a@b> REQUIRETLS", mail(MailParameters { require_tls: true, ..given })),
        (
            "MAIL FROM:<a@b> RET=hdrs ENVID=x+2B1",
            mail(MailParameters { ret: Some(Return::Headers), envid: Some("x+2B1"), ..given }),
        ),
        ("MAIL FROM:<a@b> RET=FULL", mail(MailParameters { ret: Some(Return::Full), ..given })),
        ("BDAT 0 LAST", Command::Bdat { bytes: 0, last: true }),
        ("bdat 86 ", Command::Bdat { bytes: 86, last: false }),
    ];
    for (line, expected) in table {
        assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
    }
    let to = |text: &str| ForwardPath::Mailbox(Address::parse_utf8(text.as_bytes()).unwrap());
    let given = RcptParameters::default();
    let delay = Some(Notify { delay: true, ..Notify::NEVER });
    let both = Some(Notify { success: true, failure: true, delay: false });
    let original = |text: &str| Some(text.into());
    let table = [
        (
            "RCPT TO:<a@b> NOTIFY=never",
            to("a@b"),
            RcptParameters { notify: Some(Notify::NEVER), ..given.clone() },
        ),
        (
            "RCPT TO:<a@b> NOTIFY=FAILURE,SUCCESS ORCPT=rfc822;a+3Dx@b",
            to("a@b"),
            RcptParameters { notify: both, original: original("rfc822;a+3Dx@b"), needs_utf8: false },
        ),
        (
            "RCPT TO:<j\u{fc}@b\u{fc}.c> NOTIFY=DELAY ORCPT=utf-8;\u{fc}@b",
            to("j\u{fc}@b\u{fc}.c"),
            RcptParameters { notify: delay, original: original("utf-8;\\x{FC}@b"), needs_utf8: true },
        ),
    ];
    for (line, path, parameters) in table {
        assert_eq!(parse(line.as_bytes()), Ok(rcpt_with(path, parameters)), "{line}");
    }
    let long = |bytes: usize| format!("MAIL FROM:<a@b> ENVID={}", "x".repeat(bytes));
    assert!(parse(long(crate::limits::ENVID_BYTES).as_bytes()).is_ok());
    assert_eq!(parse(long(crate::limits::ENVID_BYTES + 1).as_bytes()), Err(CommandError::BadParameter));
}
