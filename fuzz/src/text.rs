//! Targets for what is parsed as a whole: command lines, addresses, trace headers.
use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::address::{Address, Domain};
use ringpost::mail::id::MessageId;
use ringpost::mail::text::printable;
use ringpost::mail::trace::{self, Received};
use ringpost::smtp::command::{self, Command, CommandError, ForwardPath};

/// A command line, without its CRLF.
pub fn command(line: &[u8]) {
    let parsed = command::parse(line);
    if line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        assert_eq!(parsed, Err(CommandError::LineEnd));
    }
    match &parsed {
        Ok(Command::Mail { reverse_path: Some(address), .. }) => is_sound(address),
        Ok(Command::Rcpt { path: ForwardPath::Mailbox(address), parameters }) => {
            is_sound(address);
            let original = parameters.original.as_deref().unwrap_or_default();
            assert!(original.bytes().all(|b| matches!(b, b'!'..=b'~')));
            assert!(address.is_ascii() || parameters.needs_utf8);
        }
        Ok(Command::Hello { name, .. }) => assert!(!name.is_empty() && is_printable(name.as_bytes())),
        Ok(_) => {}
        Err(error) => {
            let reply = error.reply();
            assert!(reply.ends_with("\r\n") && is_printable(reply.trim_end().as_bytes()));
            assert!(matches!(reply.as_bytes()[0], b'4' | b'5'));
        }
    }
    // White space before the CRLF means nothing.
    let spaced = [line, b" \t "].concat();
    assert_eq!(command::parse(&spaced), parsed);
    // Nor does the case of the verb.
    let mut turned = line.to_vec();
    let verb = turned.iter().position(|b| *b == b' ').unwrap_or(turned.len());
    turned[..verb].iter_mut().for_each(|b| {
        *b = if b.is_ascii_uppercase() { b.to_ascii_lowercase() } else { b.to_ascii_uppercase() }
    });
    assert_eq!(command::parse(&turned), parsed);
}

/// An address, and the same bytes as a domain.
pub fn address(text: &[u8]) {
    let domain = Domain::parse(text);
    assert_eq!(Domain::is_valid(text), domain.is_ok());
    if let Ok(domain) = &domain {
        assert!(is_printable(domain.as_str().as_bytes()) && domain.as_str().len() <= limits::DOMAIN_BYTES);
        assert_eq!(Domain::parse(domain.as_str().as_bytes()).as_ref(), Ok(domain));
        assert_eq!(domain.is_literal(), domain.literal_ip().is_some());
    }
    if let Ok(domain) = Domain::parse_utf8(text) {
        assert!(is_printable(domain.as_str().as_bytes()) && domain.as_str().len() <= limits::DOMAIN_BYTES);
    }
    let international = Address::parse_utf8(text);
    // Of ASCII both make the same.
    if text.is_ascii() {
        assert_eq!(Address::parse(text), international);
    } else {
        assert!(Address::parse(text).is_err());
    }
    let Ok(address) = international else { return };
    is_sound(&address);
    assert!(text.starts_with(address.local().as_bytes()), "the local part changed");
    // In a command it is the same address.
    let rcpt = [b"RCPT TO:<", text, b">"].concat();
    match command::parse(&rcpt) {
        Ok(Command::Rcpt { path: ForwardPath::Mailbox(recipient), parameters }) => {
            assert_eq!((&recipient, parameters.needs_utf8), (&address, !text.is_ascii()));
        }
        other => panic!("{other:?}"),
    }
    let mail = [b"MAIL FROM:<@a.test,@[IPv6:::1]:", text, b"> SIZE=1 SMTPUTF8"].concat();
    match command::parse(&mail) {
        Ok(Command::Mail { reverse_path: Some(sender), .. }) => assert_eq!(sender, address),
        other => panic!("{other:?}"),
    }
}

/// What every address that was taken promises.
fn is_sound(address: &Address) {
    let text = address.as_str();
    assert!(text.len() <= limits::PATH_BYTES - 2 && !text.chars().any(char::is_control));
    assert!(is_printable(address.domain().as_str().as_bytes()));
    assert!(!address.local().is_empty() && address.local().len() <= limits::LOCAL_PART_BYTES);
    assert_eq!(text, format!("{}@{}", address.local(), address.domain()));
    assert_eq!(Address::parse_utf8(text.as_bytes()).as_ref(), Ok(address));
}

fn is_printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b' '..=b'~'))
}

/// A HELO name as it goes into a Received header, and a message whose hops are counted.
pub fn trace(data: &[u8]) {
    let shown = printable(data);
    assert!(is_printable(shown.as_bytes()) && shown.len() <= limits::FOREIGN_TEXT_BYTES);
    let ip = data.first_chunk::<16>().map_or([192, 0, 2, 1].into(), |bytes| (*bytes).into());
    let helo = String::from_utf8_lossy(data);
    let recipient = Address::parse_utf8(data).ok();
    let received = Received {
        helo: &helo,
        client: Some(ip),
        by: "mta.test",
        protocol: "ESMTP",
        tls: Some(&helo),
        certificate: Some(&helo),
        id: MessageId(1),
        recipient: recipient.as_ref(),
        at: WallTime(data.iter().fold(0, |sum: u64, b| sum.wrapping_mul(257).wrapping_add(u64::from(*b)))),
    };
    let mut header = Vec::new();
    trace::received(&mut header, &received);
    assert!(header.starts_with(b"Received: from ") && header.ends_with(b" +0000\r\n"));
    for (at, line) in header.split_inclusive(|b| *b == b'\n').enumerate() {
        let text = line.strip_suffix(b"\r\n").expect("every line ends in CRLF");
        let text = if at == 0 { text } else { text.strip_prefix(b"\t").expect("a folded line") };
        assert!(is_printable(text) && text.len() < 998);
    }
    assert_eq!(trace::count_received(&header), 1);
    // One more header is one more hop, and the body does not count.
    let below = trace::count_received(data);
    assert!(below <= data.len() / b"received:".len());
    let message = [&header, data].concat();
    assert_eq!(trace::count_received(&message), 1 + below);
    let message = [&header, &b"\r\n"[..], data].concat();
    assert_eq!(trace::count_received(&message), 1);
}
