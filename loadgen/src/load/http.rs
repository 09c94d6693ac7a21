//! One HTTP connection of the source: requests with mail out, answers in (RFC 9112).
//!
//! Owns: the state of one kept connection to `POST /api/v1/messages`. Promises: a request leaves in two
//! writes and its message ends as accepted, rejected, unknown or given back, whatever is answered; one
//! request is under way at a time. Must not: touch sockets or read clocks.
use crate::limits;
use crate::load::desk::{Desk, push_recipient};
use crate::load::plan::{Message, Next, Plan};
use crate::load::session::{Body, Ending, Outgoing};
use crate::load::stats::{Kind, Stage};
use crate::stamp;

/// What ends the JSON behind the message.
const TAIL: &[u8] = b"\"}";

/// The sans-IO state of one connection.
#[derive(Default)]
pub struct HttpSession {
    pub out: Outgoing,
    /// The part of an answer that has come.
    answer: Vec<u8>,
    message: Option<Message>,
    /// When the request was handed out, and when its message counts as begun.
    sent_us: u64,
    begun_us: u64,
    begun: u64,
    is_connected: bool,
    is_over: bool,
    pub was_fruitful: bool,
    opened_us: u64,
}

/// An answer, whole.
#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    status: u16,
    body: &'a [u8],
    closes: bool,
    bytes: usize,
}

impl HttpSession {
    /// Begins a new connection; [`HttpSession::end`] has settled the last one.
    pub fn open(&mut self, now_us: u64) {
        *self = HttpSession { opened_us: now_us, ..HttpSession::default() };
    }
    /// The connection stands: the first request may go.
    pub fn connected(&mut self, now_us: u64, desk: &mut Desk) {
        if !self.is_connected {
            self.is_connected = true;
            desk.stats.timed(Stage::Connect, self.opened_us, now_us);
            self.begin(now_us, desk);
        }
    }
    /// Nothing is due or to be written: it waits for a message.
    pub fn is_idle(&self) -> bool {
        self.is_connected && self.message.is_none() && !self.is_over
    }
    /// Nothing more will be sent: the connection is to be closed.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
    /// Sends the next message if there is one.
    pub fn begin(&mut self, now_us: u64, desk: &mut Desk) {
        if self.message.is_some() || self.is_over {
            return;
        }
        match desk.next(self.begun, now_us) {
            Next::Later(_) => {}
            Next::Done => self.is_over = true,
            Next::Message(message) => {
                self.begun += 1;
                self.message = Some(message);
                self.sent_us = now_us;
                self.begun_us = message.intended_us.unwrap_or(now_us);
                self.request(message, &desk.plan);
            }
        }
    }
    fn request(&mut self, message: Message, plan: &Plan) {
        let Outgoing { before, body, commands } = &mut self.out;
        // The envelope is written first, because its length stands before it.
        commands.extend_from_slice(b"{\"from\":\"");
        commands.extend_from_slice(plan.from.as_bytes());
        commands.extend_from_slice(b"\",\"to\":[");
        for recipient in 0..plan.recipients {
            commands.extend_from_slice(if recipient == 0 { b"\"" } else { b",\"" });
            push_recipient(message.number, recipient, plan, commands);
            commands.push(b'"');
        }
        commands.extend_from_slice(b"],\"message\":\"");
        before.extend_from_slice(plan.http.as_deref().unwrap_or_default().as_bytes());
        let length = commands.len() as u64 + plan.size_of(message.number) + TAIL.len() as u64;
        stamp::push_decimal(length, before);
        before.extend_from_slice(b"\r\n\r\n");
        before.append(commands);
        commands.extend_from_slice(TAIL);
        *body = Some(Body { number: message.number, stamp_us: self.begun_us, cursor: 0, is_chunk: true });
    }
    /// Takes bytes from the server; [`HttpSession::out`] then holds what to write.
    pub fn feed(&mut self, input: &[u8], now_us: u64, desk: &mut Desk) -> Result<(), Ending> {
        self.answer.extend_from_slice(input);
        let bad = |desk: &mut Desk| {
            desk.stats.error(Kind::BadReply, input);
            Ending::BadReply
        };
        loop {
            let Answer { status, body, closes, bytes } = match parse(&self.answer) {
                Ok(Some(answer)) => answer,
                Ok(None) if self.answer.len() > limits::ANSWER_BYTES => return Err(bad(desk)),
                Ok(None) => return Ok(()),
                Err(()) => return Err(bad(desk)),
            };
            // One that comes before its request is out: the rest of that is not wanted.
            let is_early = !self.out.is_empty();
            let Some(message) = self.message.take() else { return Err(bad(desk)) };
            desk.stats.timed(Stage::Data, self.sent_us, now_us);
            if status == 200 && !is_early {
                self.was_fruitful = true;
                desk.accept(message, self.begun_us, 0..desk.plan.recipients, now_us);
            } else {
                desk.stats.error(Kind::Reply { command: "post", code: status }, body);
                // It is this source that is not wanted, not the message.
                match status {
                    401 | 403 => desk.supply.give_back(message),
                    _ => desk.stats.rejected += 1,
                }
            }
            self.answer.drain(..bytes);
            match status {
                401 | 403 => return Err(Ending::Unwelcome),
                _ if closes || is_early => return Err(Ending::Quit),
                _ => self.begin(now_us, desk),
            }
        }
    }
    /// Settles what the connection leaves behind: gives back what was not sent in full, counts as
    /// unknown what was.
    pub fn end(&mut self, now_us: u64, desk: &mut Desk) {
        if let Some(message) = self.message.take() {
            if self.out.is_empty() {
                desk.give_up(message, 0..desk.plan.recipients, now_us);
            } else {
                desk.supply.give_back(message);
            }
        }
        self.out = Outgoing::default();
        self.answer.clear();
    }
}

/// The first answer in `bytes`; none if it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<Answer<'_>>, ()> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(drop)?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or(())?;
    let status = status.split(' ').next().unwrap_or_default().parse().map_err(drop)?;
    let (mut length, mut closes) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().map_err(drop)?);
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    // Without a length only the end of the connection would end it.
    let length = length.ok_or(())?;
    let start = end + 4;
    let Some(body) = start.checked_add(length).and_then(|end| bytes.get(start..end)) else { return Ok(None) };
    Ok(Some(Answer { status, body, closes, bytes: start + length }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::load::LoadArgs;
    use crate::load::mix::{Classes, Domains};
    use crate::load::plan::{Shared, Supply};
    use crate::load::stats::Stats;
    use crate::timeline::Timeline;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

    /// A connection that stands, and what it works with.
    fn connected(messages: u64, change: impl Fn(&mut LoadArgs)) -> (HttpSession, Desk) {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), messages);
        (args.from, args.to_domain, args.recipients_per_message) = ("a@b".into(), "x".into(), 2);
        change(&mut args);
        let classes = Classes { sizes: vec![args.size], eight_bit: Vec::new(), seed: 1 };
        let mut plan = Plan::new(&args, 1, 1, classes, Domains::One(args.to_domain.clone()));
        plan.http = Some("HEAD ".into());
        let timeline = Timeline::new(Duration::from_secs(1), Duration::ZERO, None, 0).unwrap();
        let shared = Arc::new(Shared::new(&args, 1, Clock::start(), [None, None], timeline));
        let supply = Supply::new(0, &plan, shared);
        let mut desk = Desk {
            plan,
            supply,
            stats: Stats::default(),
            acked: Vec::new(),
            keeps_log: true,
            refused: Vec::new(),
            keeps_refused: true,
        };
        let mut session = HttpSession::default();
        session.open(0);
        assert!(!session.is_idle());
        session.connected(5, &mut desk);
        (session, desk)
    }

    /// All of the request is written; its text, the message as its number.
    fn written(session: &mut HttpSession) -> String {
        let Outgoing { before, body, commands } = std::mem::take(&mut session.out);
        let body = body.map_or(String::new(), |body| format!("[{}]", body.number));
        String::from_utf8([before, body.into_bytes(), commands].concat()).unwrap()
    }

    #[test]
    fn one_request_after_the_other() {
        let (mut session, mut desk) = connected(3, |_| ());
        let json = |n: u64| format!("{{\"from\":\"a@b\",\"to\":[\"r0@x\",\"r1@x\"],\"message\":\"[{n}]\"}}");
        let request = |n: u64| format!("HEAD {}\r\n\r\n{}", json(n).len() - 3 + 4096, json(n));
        assert_eq!(written(&mut session), request(0));
        assert_eq!(session.feed(OK.as_bytes(), 15, &mut desk), Ok(()));
        assert_eq!(written(&mut session), request(1));
        let busy = "HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy";
        let (first, rest) = busy.split_at(30);
        assert_eq!(session.feed(first.as_bytes(), 20, &mut desk), Ok(()));
        assert!(session.out.is_empty() && !session.is_idle());
        assert_eq!(session.feed(rest.as_bytes(), 30, &mut desk), Ok(()));
        assert_eq!(written(&mut session), request(2));
        assert_eq!(session.feed(OK.as_bytes(), 50, &mut desk), Ok(()));
        assert!(session.is_over() && session.was_fruitful && session.out.is_empty());
        session.end(50, &mut desk);
        let stats = &desk.stats;
        assert_eq!([stats.accepted, stats.rejected, stats.unknown, stats.bytes], [2, 1, 0, 2 * 4096]);
        assert_eq!(
            [&stats.connect, &stats.data, &stats.all_whole()].map(|l| l.percentiles().count),
            [1, 3, 2]
        );
        assert_eq!((stats.connect.percentiles().max_us, stats.data.percentiles().max_us), (5, 20));
        assert_eq!(stats.acknowledged.ranges().0, [(0, 1), (4, 5)]);
        assert_eq!(stats.errors[&Kind::Reply { command: "post", code: 503 }].sample, "busy");
        assert_eq!(desk.acked.split(|&c| c == b'\n').count(), 5);
    }

    #[test]
    fn a_connection_carries_so_many() {
        let (mut session, mut desk) = connected(3, |args| args.messages_per_connection = Some(1));
        written(&mut session);
        assert_eq!(session.feed(OK.as_bytes(), 15, &mut desk), Ok(()));
        assert!(session.is_over() && !desk.supply.is_done(15));
    }

    #[test]
    fn every_answer_has_its_end() {
        let answer =
            |status: &str, more: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n");
        let late = true;
        // What is answered, whether the whole request is out, and what comes of it: accepted, rejected,
        // unknown, given back.
        for (text, is_out, ending, counts) in [
            (answer("200 OK", ""), late, Ok(()), [1, 0, 0, 0]),
            (answer("200 OK", "Connection: close\r\n"), late, Err(Ending::Quit), [1, 0, 0, 0]),
            (answer("422 No", ""), late, Ok(()), [0, 1, 0, 0]),
            (answer("207 Some", ""), late, Ok(()), [0, 1, 0, 0]),
            (answer("401 No", ""), late, Err(Ending::Unwelcome), [0, 0, 0, 1]),
            (answer("413 No", ""), false, Err(Ending::Quit), [0, 1, 0, 0]),
            (answer("200 OK", ""), false, Err(Ending::Quit), [0, 1, 0, 0]),
            ("220 mail\r\n\r\n".into(), late, Err(Ending::BadReply), [0, 0, 1, 0]),
            ("220 mail\r\n\r\n".into(), false, Err(Ending::BadReply), [0, 0, 0, 1]),
            ("x".repeat(limits::ANSWER_BYTES + 1), late, Err(Ending::BadReply), [0, 0, 1, 0]),
            ("HTTP/1.1 200 OK\r\n".into(), late, Ok(()), [0, 0, 1, 0]),
            (OK.repeat(2), late, Err(Ending::BadReply), [1, 0, 0, 0]),
        ] {
            let (mut session, mut desk) = connected(1, |_| ());
            if is_out {
                written(&mut session);
            }
            assert_eq!(session.feed(text.as_bytes(), 9, &mut desk), ending, "{text}");
            session.end(50, &mut desk);
            let stats = &desk.stats;
            let got = [stats.accepted, stats.rejected, stats.unknown, desk.supply.returned()];
            assert_eq!(got, counts, "{text}");
            assert_eq!(stats.unresolved.count(), 2 * counts[2], "{text}");
        }
    }

    #[test]
    fn answers_at_every_split() {
        let text: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: x\r\ncontent-length: 3\r\n\
            Connection: close\r\n\r\nabcHTTP/1.1 200 OK\r\n";
        let whole = text.len() - b"HTTP/1.1 200 OK\r\n".len();
        for cut in 0..=text.len() {
            let answer = Answer { status: 503, body: b"abc", closes: true, bytes: whole };
            assert_eq!(parse(&text[..cut]), Ok((cut >= whole).then_some(answer)), "{cut}");
        }
        for bad in [
            "220 mail ESMTP\r\n\r\n",
            "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(()), "{bad}");
        }
    }
}
