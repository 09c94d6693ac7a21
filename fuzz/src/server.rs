//! Targets for what a client sends: message data and whole sessions.
use ringpost::limits;
use ringpost::mail::address::Domain;
use ringpost::mail::envelope::Recipient;
use ringpost::smtp::body::{BodyReader, ChunkReader, DotStuffer, Fault, Piece};
use ringpost::smtp::server::{Access, Verdict};

use super::driver::{self, Driver, Happening, Rules};
use super::{INPUT_BYTES, same_for_all_splits};

/// Largest message in these runs: small enough to be exceeded.
const MAX_MESSAGE_BYTES: u64 = 80_000;

/// What became of message data.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Bytes of data that were taken before the first fault or the end.
    kept: usize,
    fault: Option<Fault>,
    /// Where what follows the final dot begins.
    ended: Option<usize>,
}

/// Message data behind DATA.
pub fn body(data: &[u8]) {
    let data = &data[..data.len().min(INPUT_BYTES)];
    let outcome = same_for_all_splits(data, read_body);
    let expected = define_body(data);
    assert_eq!(outcome.ended, expected.ended);
    // Without an end, the last bytes may still be unclear.
    if outcome.ended.is_some() || outcome.fault.is_some() {
        assert_eq!(outcome.fault, expected.fault);
    }
    if outcome.ended.is_some() && outcome.fault.is_none() {
        assert_eq!(outcome.kept, expected.kept);
    }
}

fn read_body(pieces: &[&[u8]]) -> Outcome {
    let mut reader = BodyReader::new(MAX_MESSAGE_BYTES);
    let mut outcome = Outcome { kept: 0, fault: None, ended: None };
    let (mut rest, mut consumed) = (Vec::new(), 0);
    for piece in pieces {
        rest.extend_from_slice(piece);
        loop {
            let bytes = match reader.next(&rest) {
                Piece::Unclear => break,
                Piece::Text(bytes) if outcome.fault.is_none() => {
                    outcome.kept += bytes;
                    bytes
                }
                Piece::Text(bytes) => bytes,
                Piece::End(bytes) => {
                    outcome.ended = Some(consumed + bytes);
                    // What was kept before a fault depends on where the bytes were cut, and is dropped.
                    if outcome.fault.is_some() {
                        outcome.kept = 0;
                    }
                    return outcome;
                }
                Piece::Fault(fault) => {
                    assert_eq!(outcome.fault.replace(fault), None, "a second fault");
                    assert_eq!(reader.fault(), Some(fault));
                    0
                }
                Piece::Endless => panic!("the input is not that long"),
            };
            consumed += bytes;
            rest.drain(..bytes);
        }
        assert!(rest.len() <= 2, "{} bytes held back", rest.len());
    }
    outcome.kept = 0;
    outcome
}

/// The same by the words of RFC 5321 §4.1.1.4, byte by byte.
fn define_body(data: &[u8]) -> Outcome {
    let at_line = |at: usize| at == 0 || data[..at].ends_with(b"\r\n");
    let end = (0..data.len()).find(|at| data[*at..].starts_with(b".\r\n") && at_line(*at));
    let text = &data[..end.unwrap_or(data.len())];
    let mut fault = None;
    let mut line_bytes = 0;
    for (at, b) in text.iter().enumerate() {
        line_bytes += 1;
        // The CR is at fault, not the byte behind it.
        let bare_cr = at > 0 && text[at - 1] == b'\r' && *b != b'\n';
        let bare_lf = *b == b'\n' && (at == 0 || text[at - 1] != b'\r');
        fault = if bare_cr {
            Some(Fault::BareCr)
        } else if bare_lf {
            Some(Fault::BareLf)
        } else if *b == 0 {
            Some(Fault::Nul)
        } else if line_bytes > limits::TEXT_LINE_BYTES {
            Some(Fault::LongLine)
        } else if at as u64 >= MAX_MESSAGE_BYTES {
            Some(Fault::TooLarge)
        } else {
            None
        };
        if fault.is_some() {
            break;
        }
        if *b == b'\n' {
            line_bytes = 0;
        }
    }
    Outcome { kept: text.len(), fault, ended: end.map(|end| end + 3) }
}

/// Message data behind BDAT: the same verdict however it is split, and what passes can go by DATA.
pub fn chunk(data: &[u8]) {
    let data = &data[..data.len().min(INPUT_BYTES).min(MAX_MESSAGE_BYTES as usize)];
    let verdict = same_for_all_splits(data, |pieces| {
        let mut reader = ChunkReader::new(MAX_MESSAGE_BYTES, false);
        pieces.iter().try_for_each(|piece| reader.take(piece)).and_then(|()| reader.end())
    });
    let stuffed = same_for_all_splits(data, |pieces| {
        let (mut stuffer, mut out) = (DotStuffer::default(), Vec::new());
        pieces.iter().for_each(|piece| stuffer.push(piece, &mut out));
        stuffer.end(&mut out);
        out
    });
    if verdict.is_err() {
        return;
    }
    // Another server finds the same end, no fault, and the same text.
    let mut line_end = 0;
    if !data.ends_with(b"\r\n") && !data.is_empty() {
        line_end = 2;
    }
    if data.len() as u64 + 2 <= MAX_MESSAGE_BYTES && stuffed.len() as u64 <= MAX_MESSAGE_BYTES {
        let outcome = define_body(&stuffed);
        // A last line that had no end has one now, which may be what makes it too long.
        assert!(outcome.fault.is_none() || (outcome.fault == Some(Fault::LongLine) && line_end > 0));
        assert_eq!(outcome.ended, Some(stuffed.len()));
        let text = stuffed[..outcome.kept].split_inclusive(|b| *b == b'\n');
        let plain: Vec<u8> = text.flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect();
        assert_eq!(&plain[..plain.len() - line_end], data);
    }
}

/// All that a client sends in a session. The first byte says what the server is told.
pub fn session(data: &[u8]) {
    let Some((flags, client)) = data.split_first() else { return };
    let client = &client[..client.len().min(INPUT_BYTES)];
    let rules = Rules {
        hostname: "mta.test",
        may_relay: flags & 1 == 0,
        max_message_bytes: if flags & 2 == 0 { MAX_MESSAGE_BYTES } else { 100 },
        max_recipients: if flags & 2 == 0 { 100 } else { 2 },
        access: Access {
            mechanisms: if flags & 16 == 0 { vec![] } else { vec!["PLAIN"] },
            submission: flags & 64 != 0,
            local_domains: (flags & 128 != 0).then(local_domain).into_iter().collect(),
            ..Access::default()
        },
        secure: flags & 16 != 0,
        xclient: flags & 32 != 0,
        verdict: match flags >> 2 & 3 {
            0 | 1 => driver::accepting(),
            2 => Verdict::NoRoom,
            _ => Verdict::Failed,
        },
    };
    // A client that gets to log in may relay, and a submission port takes nobody else.
    let may_relay = flags & 16 != 0 || (rules.may_relay && flags & 64 == 0);
    let happened = same_for_all_splits(client, |pieces| {
        let mut driver = Driver::new(rules.clone());
        pieces.iter().for_each(|piece| driver.feed(piece));
        driver.take()
    });
    check_session(&happened, may_relay, flags & 128 != 0);
}

/// The domain whose mail is taken from strangers, where there is one.
fn local_domain() -> Domain {
    Domain::parse(b"own.test").expect("a domain")
}

/// What holds for every session.
fn check_session(happened: &[Happening], may_relay: bool, has_local_domain: bool) {
    for (at, happening) in happened.iter().enumerate() {
        match happening {
            Happening::Replies(bytes) => check_replies(bytes),
            Happening::BodyStarts => {
                assert!(may_relay || has_local_domain, "a stranger relays");
                // Behind 354, or with a chunk behind what RCPT was told.
                let Some(Happening::Replies(_)) = at.checked_sub(1).and_then(|at| happened.get(at)) else {
                    panic!("a body that nothing was said before");
                };
            }
            Happening::Message(message, accepted) => {
                let is_local = |recipient: &Recipient| {
                    let (local, domain) = (recipient.address.local(), recipient.address.domain());
                    *domain == local_domain() && !local.contains(['%', '!', '@'])
                };
                assert!(may_relay || message.envelope.recipients.iter().all(is_local), "a stranger relays");
                let Some(Happening::Replies(after)) = happened.get(at + 1) else { panic!("no answer") };
                assert_eq!(*accepted, after.starts_with(b"250 "));
            }
            Happening::BodyRefused => {
                if let Some(Happening::Replies(after)) = happened.get(at + 1) {
                    assert!(matches!(after[0], b'4' | b'5'));
                }
            }
            Happening::BodyWithdrawn => {
                let Some(Happening::Replies(before)) = at.checked_sub(1).and_then(|at| happened.get(at))
                else {
                    panic!("a body was withdrawn without a word");
                };
                assert!(last_line(before).starts_with(b"250 "));
            }
            Happening::StartTls => panic!("nothing of the kind is offered"),
            Happening::Closed => assert_eq!(at + 1, happened.len(), "more after the end"),
        }
    }
}

fn last_line(bytes: &[u8]) -> &[u8] {
    bytes.split_inclusive(|b| *b == b'\n').next_back().unwrap_or_default()
}

/// Whole lines of printable text behind a code, at most 512 bytes each (RFC 5321 §4.2).
fn check_replies(bytes: &[u8]) {
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let text = line.strip_suffix(b"\r\n").expect("replies are whole lines");
        assert!((text.len() > 4 || text == b"334 ") && line.len() <= 512, "{}", line.escape_ascii());
        assert!(text.iter().all(|b| matches!(b, b' '..=b'~')), "{}", line.escape_ascii());
        assert!(matches!(text[0], b'2'..=b'5') && text[1..3].iter().all(u8::is_ascii_digit));
        assert!(matches!(text[3], b' ' | b'-'));
    }
}
