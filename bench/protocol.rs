//! SMTP as bytes: the parts of a message's path that are parsing and writing text, no sockets.
//!
//! | benchmark | step of a message's path |
//! |---|---|
//! | `receive::session` | all the server session does for one message: commands, body, replies |
//! | `receive::command` | one command line as a value, inside the session |
//! | `receive::body_scan` | the search for the end of data with all checks, inside the session |
//! | `receive::trace_header` | the Received header written in front of the body |
//! | `receive::loop_check` | the count of Received headers before the message is stored |
//! | `deliver::session` | all the client session does for one message: commands, replies |
//! | `deliver::reply` | one reply as a value, inside the client session |
//!
//! `cargo bench --bench protocol`
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use ringpost::clock::WallTime;
use ringpost::mail::address::Address;
use ringpost::mail::envelope::{BodyKind, Envelope, Recipient};
use ringpost::mail::id::MessageId;
use ringpost::mail::trace::{self, Received};
use ringpost::smtp::body::{BodyReader, Piece};
use ringpost::smtp::client::{ClientConfig, ClientEvent, ClientSession, Outgoing};
use ringpost::smtp::command;
use ringpost::smtp::reply::ReplyReader;
use ringpost::smtp::server::{Peer, ServerConfig, ServerSession, Step, Verdict};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The size that the documents speak of.
const MESSAGE_BYTES: usize = 4096;
const LARGE_BYTES: usize = 64 * 1024;
const MAIL: &str = "MAIL FROM:<load@example.test> SIZE=4096 BODY=8BITMIME";
const RCPT: &str = "RCPT TO:<recipient.17@d3.test>";

fn main() {
    divan::main();
}

/// A message of `bytes`: a header, then lines of 72 characters.
fn message(bytes: usize) -> Vec<u8> {
    let mut text =
        b"From: load@example.test\r\nTo: recipient.17@d3.test\r\nSubject: measure\r\n\r\n".to_vec();
    while text.len() + 74 < bytes {
        text.extend_from_slice(&[b'a' + (text.len() / 74 % 26) as u8; 72]);
        text.extend_from_slice(b"\r\n");
    }
    text.resize(bytes - 2, b'z');
    text.extend_from_slice(b"\r\n");
    text
}

mod receive {
    use super::*;

    /// A session that has greeted, and one whole transaction as a pipelining client sends it.
    fn session_and_input(bytes: usize) -> (ServerSession, Vec<u8>, Vec<u8>) {
        let config = ServerConfig { hostname: "mta.test".into(), ..ServerConfig::default() };
        let peer = Peer::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true);
        let mut session = ServerSession::new(Arc::new(config), peer);
        let mut replies = Vec::with_capacity(4096);
        session.greet(&mut replies);
        session.step(b"EHLO client.test\r\n", &mut replies);
        let mut input = [MAIL, "\r\n", RCPT, "\r\nDATA\r\n"].concat().into_bytes();
        input.extend_from_slice(&message(bytes));
        input.extend_from_slice(b".\r\n");
        (session, input, replies)
    }

    #[divan::bench(args = [MESSAGE_BYTES, LARGE_BYTES], sample_size = 50)]
    fn session(bencher: Bencher, bytes: usize) {
        let (mut session, input, mut replies) = session_and_input(bytes);
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            replies.clear();
            let mut at = 0;
            loop {
                let (consumed, step) = session.step(black_box(&input[at..]), &mut replies);
                at += consumed;
                match step {
                    Step::BodyStarts | Step::Body(_) => {}
                    Step::BodyEnds => {
                        black_box(session.take_transaction());
                        session.finish(Verdict::Accepted(MessageId(0x0123_4567_89ab)), &mut replies);
                    }
                    Step::More => break,
                    _ => panic!("the message is good"),
                }
            }
            assert_eq!(at, input.len());
            replies.len()
        });
    }

    #[divan::bench(args = ["EHLO client.test", MAIL, RCPT, "DATA", "BDAT 4096 LAST", "AUTH PLAIN AHVzZXIAc2VjcmV0", "NONSENSE"])]
    fn command(line: &str) -> bool {
        command::parse(black_box(line.as_bytes())).is_ok()
    }

    #[divan::bench(args = [MESSAGE_BYTES, LARGE_BYTES], sample_size = 50)]
    fn body_scan(bencher: Bencher, bytes: usize) {
        let mut data = message(bytes);
        data.extend_from_slice(b".\r\n");
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            let mut reader = BodyReader::new(u64::MAX);
            let mut at = 0;
            loop {
                match reader.next(black_box(&data[at..])) {
                    Piece::Text(n) => at += n,
                    Piece::End(n) => return at + n,
                    _ => panic!("the data is whole and good"),
                }
            }
        });
    }

    #[divan::bench(sample_size = 200)]
    fn trace_header(bencher: Bencher) {
        let recipient = Address::parse(b"recipient.17@d3.test").expect("an address");
        let mut out = Vec::with_capacity(1024);
        bencher.bench_local(|| {
            out.clear();
            trace::received(
                &mut out,
                black_box(&Received {
                    tls: None,
                    certificate: None,
                    helo: "client.test",
                    client: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    by: "mta.test",
                    protocol: "ESMTP",
                    id: MessageId(0x0123_4567_89ab),
                    recipient: Some(&recipient),
                    at: WallTime(1_700_000_000_000_000),
                }),
            );
            out.len()
        });
    }

    #[divan::bench(sample_size = 200)]
    fn loop_check(bencher: Bencher) {
        let text = message(MESSAGE_BYTES);
        bencher.bench_local(|| trace::count_received(black_box(&text)));
    }
}

mod deliver {
    use super::*;

    const GREETING: &[u8] =
        b"220 peer.test ESMTP\r\n250-peer.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n";
    const START: &[u8] = b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go on\r\n";
    const END: &[u8] = b"250 2.0.0 0123456789ab queued\r\n";

    /// Feeds `input` until nothing more can be made of it; the number of messages done.
    fn feed(session: &mut ClientSession, mut input: &[u8], out: &mut Vec<u8>) -> usize {
        let mut done = 0;
        loop {
            let (consumed, event) = session.feed(input, out);
            input = &input[consumed..];
            match event {
                ClientEvent::SendBody { key, .. } => {
                    out.extend_from_slice(b".\r\n");
                    session.body_sent(key);
                }
                ClientEvent::Done { replies, .. } => done += black_box(replies).len(),
                ClientEvent::Ready => {}
                ClientEvent::More => return done,
                other => panic!("the peer is willing: {other:?}"),
            }
        }
    }

    #[divan::bench(sample_size = 200)]
    fn session(bencher: Bencher) {
        let mut session = ClientSession::new(ClientConfig { ehlo_name: "mta.test".into(), starttls: false });
        let mut out = Vec::with_capacity(4096);
        feed(&mut session, GREETING, &mut out);
        let address = |text: &str| Address::parse(text.as_bytes()).expect("an address");
        let envelope = Envelope {
            reverse_path: Some(address("load@example.test")),
            recipients: vec![Recipient::new(address("recipient.17@d3.test"))],
            body_kind: BodyKind::EightBit,
            ..Envelope::default()
        };
        let body = message(MESSAGE_BYTES);
        bencher.bench_local(|| {
            out.clear();
            let outgoing = Outgoing { key: 1, envelope: &envelope, recipients: &[0], body: &body };
            session.start(black_box(outgoing), &mut out);
            assert_eq!(feed(&mut session, black_box(START), &mut out), 0);
            assert_eq!(feed(&mut session, black_box(END), &mut out), 1);
        });
    }

    #[divan::bench(sample_size = 200)]
    fn reply(bencher: Bencher) {
        let mut reader = ReplyReader::default();
        bencher.bench_local(|| {
            let (consumed, code) = reader.read(black_box(END)).expect("a reply");
            assert_eq!((consumed, code), (END.len(), Some(250)));
            reader.reply()
        });
    }
}
