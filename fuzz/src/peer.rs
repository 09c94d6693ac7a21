//! Targets for what a peer says: replies and whole sessions of the client.
use ringpost::limits;
use ringpost::mail::address::Address;
use ringpost::mail::envelope::{BodyForm, BodyKind, Envelope, Notify, Recipient};
use ringpost::mail::reply::Reply;
use ringpost::smtp::client::{ClientConfig, ClientEvent, ClientSession, Outgoing};
use ringpost::smtp::reply::{Garbage, ReplyReader};

use super::{INPUT_BYTES, same_for_all_splits};

/// Replies of a peer.
pub fn reply(data: &[u8]) {
    let data = &data[..data.len().min(INPUT_BYTES)];
    for reply in same_for_all_splits(data, read_replies).0 {
        assert!((200..600).contains(&reply.code));
        assert!(reply.text.len() <= limits::FOREIGN_TEXT_BYTES);
        assert!(reply.text.bytes().all(|b| matches!(b, b' '..=b'~')), "{:?}", reply.text);
        let class = reply.status().class;
        assert_eq!((class == 2, class == 5), (reply.code < 300, reply.code >= 500), "{reply:?}");
    }
}

fn read_replies(pieces: &[&[u8]]) -> (Vec<Reply>, Option<Garbage>) {
    let mut reader = ReplyReader::default();
    let (mut rest, mut replies) = (Vec::new(), Vec::new());
    for piece in pieces {
        rest.extend_from_slice(piece);
        loop {
            let (consumed, code) = match reader.read(&rest) {
                Ok(read) => read,
                Err(garbage) => return (replies, Some(garbage)),
            };
            rest.drain(..consumed);
            match code {
                None => break,
                Some(code) => {
                    let reply = reader.reply();
                    assert_eq!(reply.code, code);
                    let text: usize = reader.texts().map(<[u8]>::len).sum();
                    assert!(
                        text <= limits::PEER_REPLY_BYTES
                            && reader.texts().count() <= limits::PEER_REPLY_LINES
                    );
                    replies.push(reply);
                }
            }
        }
        assert!(rest.len() < limits::PEER_REPLY_LINE_BYTES, "{} bytes left", rest.len());
    }
    (replies, None)
}

/// A message to be sent: its recipients, body, kind and form.
type Mail = (&'static [&'static str], &'static [u8], BodyKind, BodyForm);

const MAIL: [Mail; 6] = [
    (&["r@x.test"], b"a: b\r\n\r\nc\r\n", BodyKind::SevenBit, BodyForm::DotStuffed),
    (&["r@x.test", "\"s t\"@x.test", "u@x.test"], b"\xff\r\n", BodyKind::EightBit, BodyForm::DotStuffed),
    (&["j\u{fc}@x.test", "r@x.test"], b"a: \xc3\xbc\r\n.", BodyKind::EightBit, BodyForm::Raw),
    (&[], b"", BodyKind::SevenBit, BodyForm::DotStuffed),
    (&["r@x.test", "s@x.test"], b"\0\n", BodyKind::Binary, BodyForm::Raw),
    (&["r@x.test"], b"a\r\n", BodyKind::SevenBit, BodyForm::Raw),
];

/// The envelope of a message that asks for all there is, and the indices of its recipients.
fn envelope((recipients, _, body_kind, body_form): Mail) -> (Envelope, Vec<u16>) {
    let recipient = |text: &&str| Recipient {
        notify: Some(Notify { success: true, ..Notify::NEVER }),
        original: Some("rfc822;o@x.test".into()),
        ..Recipient::new(Address::parse_utf8(text.as_bytes()).expect("an address"))
    };
    let envelope = Envelope {
        recipients: recipients.iter().map(recipient).collect(),
        body_kind,
        body_form,
        envid: Some("id".into()),
        smtp_utf8: true,
        ..Envelope::default()
    };
    (envelope, (0..recipients.len() as u16).collect())
}

/// All that a peer says while messages are sent to it. The first byte says whether STARTTLS is wanted.
pub fn client(data: &[u8]) {
    let Some((flags, peer)) = data.split_first() else { return };
    let peer = &peer[..peer.len().min(INPUT_BYTES)];
    if flags & 1 == 0 {
        same_for_all_splits(peer, |pieces| Talk::run(false, pieces));
    } else {
        // What stands behind 220 to STARTTLS is dropped with it, so that here the split matters.
        Talk::run(true, &[peer]);
        Talk::run(true, &peer.chunks(1).collect::<Vec<_>>());
    }
}

/// A driver that sends all of [`MAIL`] as early as it may.
struct Talk {
    session: ClientSession,
    started: usize,
    in_flight: Vec<u64>,
    quit: bool,
    events: Vec<ClientEvent>,
    said: Vec<u8>,
}

impl Talk {
    /// The events but More, and what the client said.
    fn run(starttls: bool, pieces: &[&[u8]]) -> (Vec<ClientEvent>, Vec<u8>) {
        let session = ClientSession::new(ClientConfig { ehlo_name: "c.test".into(), starttls });
        let mut talk = Talk {
            session,
            started: 0,
            in_flight: Vec::new(),
            quit: false,
            events: Vec::new(),
            said: Vec::new(),
        };
        let mut rest = Vec::new();
        for piece in pieces {
            rest.extend_from_slice(piece);
            if talk.feed(&mut rest) {
                break;
            }
            assert!(rest.len() < limits::PEER_REPLY_LINE_BYTES, "{} bytes left", rest.len());
        }
        (talk.events, talk.said)
    }

    /// Whether the connection is over.
    fn feed(&mut self, rest: &mut Vec<u8>) -> bool {
        loop {
            let mut out = Vec::new();
            let (consumed, event) = self.session.feed(rest, &mut out);
            rest.drain(..consumed);
            let over = self.take(&event, &mut out);
            // When More comes depends on how the bytes are split, so nothing is begun then.
            if event != ClientEvent::More {
                self.events.push(event.clone());
                self.go_on(&mut out);
            }
            self.say(&out);
            if over {
                return true;
            }
            if event == ClientEvent::More && !self.session.has_event() {
                return false;
            }
        }
    }

    fn take(&mut self, event: &ClientEvent, out: &mut Vec<u8>) -> bool {
        match event {
            ClientEvent::More | ClientEvent::Ready => {}
            ClientEvent::StartTls => self.session.tls_established(out),
            ClientEvent::SendBody { key, .. } => {
                assert!(self.in_flight.contains(key) && !self.session.is_body_sent(*key));
                self.session.body_sent(*key);
                assert!(self.session.is_body_sent(*key));
            }
            ClientEvent::Done { key, replies } => {
                let at = self.in_flight.iter().position(|k| k == key).expect("Done comes once per message");
                self.in_flight.remove(at);
                assert_eq!(replies.len(), MAIL[*key as usize].0.len());
            }
            ClientEvent::Failed(reply) => {
                assert!(reply.text.bytes().all(|b| matches!(b, b' '..=b'~')));
                return true;
            }
            ClientEvent::Bye => {
                assert!(self.quit && self.in_flight.is_empty(), "{:?} are not answered", self.in_flight);
                return true;
            }
        }
        false
    }

    fn go_on(&mut self, out: &mut Vec<u8>) {
        while self.started < MAIL.len() && self.session.can_start() {
            let (envelope, recipients) = envelope(MAIL[self.started]);
            let (key, body) = (self.started as u64, MAIL[self.started].1);
            self.session.start(Outgoing { key, envelope: &envelope, recipients: &recipients, body }, out);
            self.in_flight.push(key);
            self.started += 1;
            assert!(self.in_flight.len() <= limits::CONNECTION_WINDOW + 1);
        }
        if self.started == MAIL.len() && self.in_flight.is_empty() && self.session.is_at_rest() {
            self.session.quit(out);
            self.quit = true;
        }
    }

    /// Commands are whole lines of text; an address beyond ASCII stands only behind SMTPUTF8.
    fn say(&mut self, out: &[u8]) {
        for line in out.split_inclusive(|b| *b == b'\n') {
            let text = line.strip_suffix(b"\r\n").expect("commands are whole lines");
            let utf8 = self.session.capabilities().smtputf8;
            let fits = |b: &u8| matches!(b, b' '..=b'~') || (utf8 && *b >= 0x80);
            assert!(text.iter().all(fits), "{}", line.escape_ascii());
        }
        self.said.extend_from_slice(out);
    }
}
