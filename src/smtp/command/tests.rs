//! Tables of command lines: what they mean, or why they are refused.
use super::*;

fn address(text: &str) -> Address {
    Address::parse(text.as_bytes()).unwrap()
}

fn mail(from: &str, size_bytes: Option<u64>, body: BodyKind) -> Command<'static> {
    let reverse_path = (!from.is_empty()).then(|| address(from));
    Command::Mail { reverse_path, parameters: MailParameters { size_bytes, body, auth: false } }
}

fn rcpt(to: &str) -> Command<'static> {
    Command::Rcpt(ForwardPath::Mailbox(address(to)))
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
        ("RCPT TO:<PostMaster>", Command::Rcpt(ForwardPath::Postmaster("PostMaster"))),
        ("DATA ", Command::Data),
        ("RSET", Command::Rset),
        ("NOOP anything", Command::Noop),
        ("VRFY a", Command::Vrfy),
        ("HELP MAIL", Command::Help),
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
        ("STARTTLS x", E::ExtraArgument),
        ("AUTH", E::AuthSyntax),
        ("AUTH PLAIN x", E::Base64),
        ("MAIL FROM:<a@b> AUTH", E::BadParameter),
        ("MAIL FROM:<a@b> AUTH=<> AUTH=<>", E::BadParameter),
        ("BDAT 1", E::NotImplemented),
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
        ("RCPT TO:<a@b\u{fc}>", E::NonAscii),
        ("MAIL FROM:<a@b> SIZE", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=-1", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=1 SIZE=1", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=18446744073709551616", E::BadParameter),
        ("MAIL FROM:<a@b> SIZE=000000000000000000001", E::BadParameter),
        ("MAIL FROM:<a@b> BODY=BINARYMIME", E::BadParameter),
        ("MAIL FROM:<a@b> BODY", E::BadParameter),
        ("MAIL FROM:<a@b> BODY=7BIT BODY=7BIT", E::BadParameter),
        ("MAIL FROM:<a@b> SMTPUTF8", E::UnknownParameter),
        ("MAIL FROM:<a@b> =", E::UnknownParameter),
        ("RCPT TO:<a@b> NOTIFY=NEVER", E::UnknownParameter),
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
