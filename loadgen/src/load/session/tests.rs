//! Dialogues with a scripted server.
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::load::LoadArgs;
use crate::load::mix::{Classes, Domains};
use crate::load::plan::{Shared, Supply};
use crate::load::stats::Stats;
use crate::timeline::Timeline;

/// A session, what it works with, and all it has written; a body is written as `[number]`.
struct Client {
    session: Session,
    desk: Desk,
    now_us: u64,
}

impl Client {
    fn new(messages: u64, change: impl Fn(&mut LoadArgs)) -> Client {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), messages);
        (args.from, args.to_domain) = ("a@b".into(), "x".into());
        change(&mut args);
        let domains = args.domains.map_or(Domains::One(args.to_domain.clone()), Domains::Turn);
        let plan = Plan::new(
            &args,
            1,
            1,
            Classes { sizes: vec![args.size], eight_bit: Vec::new(), seed: 1 },
            domains,
        );
        let timeline = Timeline::new(Duration::from_secs(1), Duration::ZERO, None, 0).unwrap();
        let shared = Arc::new(Shared::new(&args, 1, Clock::start(), [None, None], timeline));
        let supply = Supply::new(0, &plan, shared);
        let desk = Desk {
            plan,
            supply,
            stats: Stats::default(),
            acked: Vec::new(),
            keeps_log: true,
            refused: Vec::new(),
            keeps_refused: true,
        };
        let mut session = Session::new();
        session.open(0, false);
        Client { session, desk, now_us: 0 }
    }
    /// Gives the session a server's words; returns what it writes then, and whether it goes on.
    fn hear(&mut self, replies: &str) -> (String, Result<(), Ending>) {
        self.now_us += 10;
        let result = self.session.feed(replies.as_bytes(), self.now_us, &mut self.desk);
        (self.written(), result)
    }
    /// As [`Client::hear`], when the session must go on.
    fn says(&mut self, replies: &str) -> String {
        let (written, result) = self.hear(replies);
        assert_eq!(result, Ok(()), "after {replies:?}");
        written
    }
    fn written(&mut self) -> String {
        let body = self.session.out.body.take().map(|body| format!("[{}]", body.number));
        let commands = String::from_utf8(std::mem::take(&mut self.session.out.commands)).unwrap();
        let before = String::from_utf8(std::mem::take(&mut self.session.out.before)).unwrap();
        before.replace("\r\n", "|") + &body.unwrap_or_default() + &commands.replace("\r\n", "|")
    }
    fn greeted(messages: u64, change: impl Fn(&mut LoadArgs)) -> (Client, String) {
        let mut client = Client::new(messages, change);
        assert_eq!(client.says("220 hello\r\n"), "EHLO load.ringpost.invalid|");
        let first = client.says("250-s\r\n250-PIPELINING\r\n250 SIZE 1000000\r\n");
        (client, first)
    }
    fn counts(&self) -> [u64; 3] {
        [self.desk.stats.accepted, self.desk.stats.rejected, self.desk.stats.unknown]
    }
}

#[test]
fn pipelined_messages_leave_with_the_next_commands() {
    let (mut client, first) = Client::greeted(2, |_| ());
    let envelope = "MAIL FROM:<a@b> SIZE=4096|RCPT TO:<r0@x>|DATA|";
    assert_eq!(first, envelope);
    assert_eq!(client.says("250 m\r\n250 r\r\n354 go\r\n"), format!("[0]{envelope}"));
    assert_eq!(client.says("250 taken\r\n250 m\r\n250 r\r\n354 go\r\n"), "[1]QUIT|");
    assert_eq!(client.hear("250 taken\r\n221 bye\r\n"), (String::new(), Err(Ending::Quit)));
    assert_eq!(client.counts(), [2, 0, 0]);
    let stats = &client.desk.stats;
    assert_eq!(
        [&stats.connect, &stats.mail, &stats.rcpt, &stats.data].map(|l| l.percentiles().count),
        [1, 2, 2, 2]
    );
    assert_eq!((stats.all_whole().percentiles().max_us, stats.last_accept_us), (20, 50));
    assert_eq!(stats.acknowledged.ranges().0, [(0, 1)]);
    assert_eq!(client.desk.acked.split(|&c| c == b'\n').count(), 3);
}

#[test]
fn without_pipelining_every_command_waits() {
    let change = |args: &mut LoadArgs| (args.no_pipelining, args.recipients_per_message) = (true, 2);
    let (mut client, first) = Client::greeted(1, change);
    let table = [
        ("250 m\r\n", "RCPT TO:<r0@x>|"),
        ("550 no\r\n", "RCPT TO:<r1@x>|"),
        ("250 r\r\n", "DATA|"),
        ("354 go\r\n", "[0]"),
        ("250 taken\r\n", "QUIT|"),
    ];
    assert_eq!(first, "MAIL FROM:<a@b> SIZE=4096|");
    for (reply, want) in table {
        assert_eq!(client.says(reply), want, "{reply}");
    }
    assert_eq!(client.counts(), [1, 0, 0]);
    assert_eq!(client.desk.stats.acknowledged.ranges().0, [(1, 1)]);
}

#[test]
fn a_server_without_extensions_is_not_pipelined_to() {
    let mut client = Client::new(1, |_| ());
    assert_eq!(client.says("220 hello\r\n"), "EHLO load.ringpost.invalid|");
    assert_eq!(client.says("502 what\r\n"), "HELO load.ringpost.invalid|");
    assert_eq!(client.says("250 s\r\n"), "MAIL FROM:<a@b>|");
    assert_eq!(client.says("250 m\r\n"), "RCPT TO:<r0@x>|");
}

#[test]
fn refusals_at_every_step_are_counted_and_the_session_goes_on() {
    let envelope = "MAIL FROM:<a@b> SIZE=4096|RCPT TO:<r0@x>|DATA|";
    let table: [(&str, &str, &[&str]); 4] = [
        ("451 m\r\n503 r\r\n503 d\r\n", "RSET|", &["mail 451"]),
        ("250 m\r\n550 r\r\n554 d\r\n", "RSET|", &["rcpt 550"]),
        ("250 m\r\n250 r\r\n452 d\r\n", "RSET|", &["data 452"]),
        ("250 m\r\n550 r\r\n354 go\r\n", ".|", &["rcpt 550"]),
    ];
    for (replies, want, errors) in table {
        let (mut client, first) = Client::greeted(2, |_| ());
        assert_eq!(first, envelope);
        assert_eq!(client.says(replies), want, "{replies:?}");
        let go_on = if want == "RSET|" { "250 ok\r\n" } else { "554 none\r\n" };
        assert_eq!(client.says(go_on), envelope, "{replies:?}");
        assert_eq!(client.counts(), [0, 1, 0]);
        let kinds: Vec<String> = client.desk.stats.errors.keys().map(Kind::to_string).collect();
        assert_eq!(kinds, errors);
        assert_eq!(client.says("250 m\r\n250 r\r\n354 go\r\n"), "[1]QUIT|");
        assert_eq!(client.says("552 too much\r\n"), "");
        assert_eq!(client.counts(), [0, 2, 0]);
    }
}

#[test]
fn what_a_lost_connection_leaves() {
    // Nothing but the envelope was sent: the message can be sent again.
    let (mut client, _) = Client::greeted(3, |_| ());
    client.session.end(client.now_us, &mut client.desk);
    assert_eq!((client.counts(), client.desk.supply.returned()), ([0, 0, 0], 1));

    // The body was handed to the socket in full, the next envelope was under way.
    let (mut client, _) = Client::greeted(3, |_| ());
    client.says("250 m\r\n250 r\r\n354 go\r\n");
    client.session.end(client.now_us, &mut client.desk);
    assert_eq!((client.counts(), client.desk.supply.returned()), ([0, 0, 1], 1));
    assert_eq!(client.desk.stats.unresolved.ranges().0, [(0, 0)]);

    // The body was written in part: without its final dot it cannot have been accepted.
    let (mut client, _) = Client::greeted(3, |_| ());
    client.session.feed(b"250 m\r\n250 r\r\n354 go\r\n", 100, &mut client.desk).unwrap();
    client.session.out.advance(4000, 4300);
    client.session.end(client.now_us, &mut client.desk);
    assert_eq!((client.counts(), client.desk.supply.returned()), ([0, 0, 0], 2));
    assert!(client.session.is_idle());
}

#[test]
fn endings() {
    let mut client = Client::new(1, |_| ());
    assert_eq!(client.hear("554 go away\r\n").1, Err(Ending::Unwelcome));
    let mut client = Client::new(1, |_| ());
    assert_eq!(client.hear("421 full\r\n").1, Err(Ending::Closing));
    let mut client = Client::new(1, |_| ());
    assert_eq!(client.hear("HTTP/1.1 400\r\n").1, Err(Ending::BadReply));
    // A reply that nobody asked for.
    let (mut client, _) = Client::greeted(1, |_| ());
    client.says("250 m\r\n250 r\r\n354 go\r\n");
    assert_eq!(client.hear("250 taken\r\n221 bye\r\n250 and more\r\n").1, Err(Ending::Quit));
    // 421 after the body is a refusal: the message is sent again, not in doubt.
    let (mut client, _) = Client::greeted(2, |_| ());
    client.says("250 m\r\n250 r\r\n354 go\r\n");
    assert_eq!(client.hear("421 closing\r\n").1, Err(Ending::Closing));
    client.session.end(client.now_us, &mut client.desk);
    assert_eq!((client.counts(), client.desk.supply.returned()), ([0, 0, 0], 2));
}

#[test]
fn recipients_are_spread_over_domains() {
    let change = |args: &mut LoadArgs| (args.domains, args.recipients_per_message) = (Some(3), 2);
    let (mut client, first) = Client::greeted(2, change);
    assert!(first.contains("RCPT TO:<r0@d0.test>|RCPT TO:<r1@d1.test>|"), "{first}");
    let second = client.says("250 m\r\n250 r\r\n250 r\r\n354 go\r\n");
    assert!(second.contains("RCPT TO:<r0@d2.test>|RCPT TO:<r1@d0.test>|"), "{second}");
}

#[test]
fn a_connection_is_closed_after_its_messages() {
    let (mut client, _) = Client::greeted(5, |args| args.messages_per_connection = Some(1));
    assert_eq!(client.says("250 m\r\n250 r\r\n354 go\r\n"), "[0]QUIT|");
    assert_eq!(client.hear("250 taken\r\n221 bye\r\n").1, Err(Ending::Quit));
    client.session.end(client.now_us, &mut client.desk);
    client.session.open(100, false);
    client.now_us = 100;
    client.says("220 hello\r\n");
    assert_eq!(client.says("250 s\r\n"), "MAIL FROM:<a@b>|");
}

#[test]
fn a_chunk_leaves_with_its_envelope() {
    let mut client = Client::new(3, |args| args.bdat = true);
    client.says("220 hello\r\n");
    let ehlo = "250-s\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE\r\n";
    let message = |n: u32| format!("MAIL FROM:<a@b> SIZE=4096|RCPT TO:<r0@x>|BDAT 4096 LAST|[{n}]");
    assert_eq!(client.says(ehlo), message(0));
    assert_eq!(client.says("250 m\r\n250 r\r\n250 taken\r\n"), message(1));
    assert_eq!(client.says("250 m\r\n550 r\r\n554 d\r\n"), "RSET|");
    assert_eq!(client.says("250 ok\r\n"), message(2));
    assert_eq!(client.counts(), [1, 1, 0]);
    let kinds: Vec<String> = client.desk.stats.errors.keys().map(Kind::to_string).collect();
    assert_eq!(kinds, ["rcpt 550"]);
    // All of it was written, and no final reply came.
    client.session.end(client.now_us, &mut client.desk);
    assert_eq!((client.counts(), client.desk.supply.returned()), ([1, 1, 1], 0));
    assert_eq!(client.desk.stats.unresolved.ranges().0, [(2, 2)]);
}

#[test]
fn a_chunk_without_pipelining_waits_for_its_envelope() {
    let mut client = Client::new(1, |args| (args.bdat, args.no_pipelining) = (true, true));
    client.says("220 hello\r\n");
    assert_eq!(client.says("250-s\r\n250-PIPELINING\r\n250 chunking\r\n"), "MAIL FROM:<a@b>|");
    assert_eq!(client.says("250 m\r\n"), "RCPT TO:<r0@x>|");
    assert_eq!(client.says("250 r\r\n"), "BDAT 4096 LAST|[0]");
    assert_eq!(client.says("250 taken\r\n"), "QUIT|");
    assert_eq!(client.counts(), [1, 0, 0]);
}

#[test]
fn eight_bit_text_is_announced() {
    for (offer, want, errors) in [
        ("250-8BITMIME\r\n250 SIZE\r\n", "MAIL FROM:<a@b> SIZE=4096 BODY=8BITMIME|", 0),
        ("250 SIZE\r\n", "MAIL FROM:<a@b> SIZE=4096|", 1),
    ] {
        for is_eight_bit in [true, false] {
            let mut client = Client::new(1, |_| ());
            Arc::make_mut(&mut client.desk.plan.classes).eight_bit = vec![is_eight_bit];
            client.says("220 hello\r\n");
            let mail = client.says(&format!("250-s\r\n{offer}"));
            let want = if is_eight_bit { want } else { "MAIL FROM:<a@b> SIZE=4096|" };
            assert_eq!(
                (mail.as_str(), client.desk.stats.errors.len()),
                (want, errors * usize::from(is_eight_bit))
            );
        }
    }
}

#[test]
fn tls_and_auth_come_before_mail() {
    let change = |args: &mut LoadArgs| (args.tls, args.auth) = (TlsMode::Starttls, Some("u:p".into()));
    let mut client = Client::new(1, change);
    client.says("220 hello\r\n");
    assert_eq!(client.says("250-s\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n"), "STARTTLS|");
    assert_eq!(client.says("220 go\r\n"), "EHLO load.ringpost.invalid|");
    assert!(std::mem::take(&mut client.session.begins_tls));
    assert_eq!(client.says("250-s\r\n250 AUTH=LOGIN\r\n"), "AUTH LOGIN|");
    assert_eq!(client.says("334 VXNlcm5hbWU6\r\n"), "dQ==|");
    assert_eq!(client.says("334 UGFzc3dvcmQ6\r\n"), "cA==|");
    assert_eq!(client.says("235 ok\r\n"), "MAIL FROM:<a@b>|");

    let mut client = Client::new(1, |args| args.auth = Some("u:p".into()));
    client.says("220 hello\r\n");
    assert_eq!(client.says("250 AUTH LOGIN PLAIN\r\n"), "AUTH PLAIN AHUAcA==|");
    assert_eq!(client.hear("535 no\r\n").1, Err(Ending::Unwelcome));

    // A server that offers no TLS, and one that puts plain text behind its go-ahead.
    let mut client = Client::new(1, change);
    client.says("220 hello\r\n");
    assert_eq!(client.hear("250 s\r\n").1, Err(Ending::Unwelcome));
    let mut client = Client::new(1, change);
    client.says("220 hello\r\n250 STARTTLS\r\n");
    assert_eq!(client.hear("220 go\r\n250 injected\r\n").1, Err(Ending::BadReply));
}

#[test]
fn mailboxes_follow_the_recipients_number() {
    let (_, first) = Client::greeted(1, |args| args.mailboxes = Some(1));
    assert!(first.contains("RCPT TO:<r0-0@x>|"), "{first}");
}

/// What nobody may deliver is named: a message refused when all of it was there. One refused before was never a
/// message, and of one without an answer nothing is known.
#[test]
fn only_what_was_refused_whole_is_named_as_refused() {
    let named = |client: &Client| client.desk.refused.iter().filter(|&&c| c == b'\n').count();
    let (mut client, _) = Client::greeted(3, |load| load.no_pipelining = true);
    client.says("250 ok\r\n");
    client.says("250 ok\r\n");
    client.says("354 go\r\n");
    client.says("451 later\r\n");
    assert_eq!((client.counts(), named(&client)), ([0, 1, 0], 1));
    client.says("452 full\r\n");
    assert_eq!((client.counts(), named(&client)), ([0, 2, 0], 1));
    client.says("250 reset\r\n");
    client.says("250 ok\r\n");
    client.says("250 ok\r\n");
    client.says("354 go\r\n");
    client.says("250 taken\r\n");
    assert_eq!((client.counts(), named(&client)), ([1, 2, 0], 1));
    assert!(!client.desk.acked.is_empty() && client.desk.acked != client.desk.refused);
}
