//! The pure steps of a message's path in instructions, which a busy machine does not change: each is run
//! under callgrind, and more than it may take is a failure.
//!
//! | step | what it is |
//! |---|---|
//! | `receive` | all the server session does for one message: commands, 4 KiB of body, replies |
//! | `trace` | the Received header |
//! | `commit` | record, checksums, a sixteenth of a group's header and directory, the live table; and later its outcome |
//! | `schedule` | enqueue, hand out, finish, ask for more |
//! | `deliver` | all the client session does for one message: commands and replies |
//!
//! `cargo bench --bench instructions`; without valgrind it says so and does nothing. Limits lie a tenth above
//! what was measured with the release profile: a change that needs more raises the limit and says why.
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use ringpost::clock::WallTime;
use ringpost::limits;
use ringpost::mail::address::{Address, Domain};
use ringpost::mail::envelope::{BodyKind, Envelope, Recipient};
use ringpost::mail::id::MessageId;
use ringpost::mail::reply::Reply;
use ringpost::mail::trace::{self, Received};
use ringpost::schedule::{
    Action, Entry, Event, Limits, Policies, Policy, Shard, ShardConfig, StreamId, Verdict,
};
use ringpost::smtp::client::{ClientConfig, ClientEvent, ClientSession, Outgoing};
use ringpost::smtp::server::{Peer, ServerConfig, ServerSession, Step, Verdict};
use ringpost::spool::{Buffer, Intent, Log, LogConfig, NewMessage, Outcome, RecoveredLog, SpoolIdentity};

const NOW: WallTime = WallTime(1_700_000_000_000_000);
const BODY_BYTES: usize = 4096;
const SENDER: &str = "load@example.test";
const RECIPIENT: &str = "recipient.17@d3.test";
/// Messages in the longer of two runs, and in the shorter, whose difference leaves out what starting costs.
const RUNS: [u64; 2] = [480, 1600];

/// Name, the step for so many messages, most instructions per message.
type Row = (&'static str, fn(u64), u64);
const STEPS: [Row; 5] = [
    ("receive", receive, 0),
    ("trace", write_trace, 0),
    ("commit", commit, 0),
    ("schedule", schedule, 0),
    ("deliver", deliver, 0),
];

fn address(text: &str) -> Address {
    Address::parse(text.as_bytes()).expect("an address")
}

fn receive(messages: u64) {
    let config =
        ServerConfig { hostname: "mta.test".into(), max_message_bytes: 50 << 20, max_recipients: 1000 };
    let peer = Peer { addr: IpAddr::V4(Ipv4Addr::LOCALHOST), may_relay: true };
    let mut session = ServerSession::new(Arc::new(config), peer);
    let mut replies = Vec::with_capacity(4096);
    session.step(b"EHLO client.test\r\n", &mut replies);
    let mut input =
        format!("MAIL FROM:<{SENDER}> SIZE=4096\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n").into_bytes();
    while input.len() < BODY_BYTES {
        input.extend_from_slice(&[b'x'; 72]);
        input.extend_from_slice(b"\r\n");
    }
    input.extend_from_slice(b".\r\n");
    for _ in 0..messages {
        replies.clear();
        let mut at = 0;
        loop {
            let (consumed, step) = session.step(black_box(&input[at..]), &mut replies);
            at += consumed;
            match step {
                Step::BodyEnds => {
                    black_box(session.take_transaction());
                    session.finish(Verdict::Accepted(MessageId(0x0123_4567_89ab)), &mut replies);
                }
                Step::More => break,
                _ => {}
            }
        }
        assert_eq!(at, input.len());
    }
}

fn write_trace(messages: u64) {
    let recipient = address(RECIPIENT);
    let mut out = Vec::with_capacity(1024);
    for n in 0..messages {
        out.clear();
        let received = Received {
            helo: "client.test",
            client: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            by: "mta.test",
            protocol: "ESMTP",
            id: MessageId(n),
            recipient: Some(&recipient),
            at: NOW,
        };
        trace::received(&mut out, black_box(&received));
        black_box(&out);
    }
}

struct Memory(Vec<u8>);

impl Buffer for Memory {
    fn memory(&self) -> &[u8] {
        &self.0
    }
    fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// Carries out at once what the log wants.
fn turn(log: &mut Log<Memory>) {
    log.end_turn();
    while let Some(intent) = log.next_intent() {
        match intent {
            Intent::Write { seq, buffer, .. } => drop(log.on_written(seq, buffer, true)),
            Intent::Prepare { file, generation, .. } => log.on_prepared(file, generation, true),
            Intent::Copy { .. } | Intent::Delete { .. } => {}
        }
    }
    log.take_results(&mut Vec::new());
}

fn commit(messages: u64) {
    let config = LogConfig {
        identity: SpoolIdentity { id: 1, secret: 2 },
        log: 0,
        segment_bytes: limits::DEFAULT_SEGMENT_BYTES as u32,
        block_bytes: limits::BLOCK_BYTES as u32,
        max_segments: 64,
        commits_in_flight: limits::COMMITS_IN_FLIGHT,
    };
    let mut log = Log::new(config, RecoveredLog::default());
    for _ in 0..limits::COMMIT_BUFFERS {
        log.lend(Memory(vec![0; limits::COMMIT_BUFFER_BYTES]));
    }
    turn(&mut log);
    let envelope = Envelope {
        reverse_path: Some(address(SENDER)),
        recipients: vec![Recipient { address: address(RECIPIENT) }],
        received_at: NOW,
        ..Envelope::default()
    };
    let body = vec![b'x'; BODY_BYTES];
    let reply = Reply { code: 250, enhanced: None, text: "0123456789ab queued".into() };
    let outcome = [(0, Outcome::Delivered(reply))];
    const GROUP: u64 = 16;
    for _ in 0..messages / GROUP {
        let mut slots = Vec::new();
        for _ in 0..GROUP {
            let id = log.next_id(NOW);
            let new = NewMessage { id, envelope: &envelope, fragments: &[], parts: &[&body], reports: None };
            slots.push(log.append_message(black_box(&new)).expect("there is room").0);
        }
        turn(&mut log);
        for slot in slots {
            log.append_outcomes(slot, black_box(&outcome), NOW).expect("there is room");
        }
        turn(&mut log);
    }
}

fn shard_config() -> ShardConfig {
    let policy = Policy {
        limits: Limits { connections: limits::DEFAULT_DESTINATION_CONNECTIONS, ..Limits::NONE },
        messages_per_connection: limits::DEFAULT_MESSAGES_PER_CONNECTION,
        recipients_per_message: u16::MAX,
        retry_schedule: vec![Duration::from_secs(900)],
        max_age: limits::DEFAULT_MAX_AGE,
        delay_warning: None,
        adaptive: true,
    };
    ShardConfig {
        seed: 1,
        homes: 1,
        jitter_percent: limits::RETRY_JITTER_PERCENT,
        policies: Arc::new(Policies::one(policy)),
        window: limits::CONNECTION_WINDOW,
        connections_per_home: limits::OUTBOUND_CONNECTIONS_PER_WORKER,
        connection_idle: limits::OUTBOUND_IDLE_WAIT,
    }
}

fn schedule(messages: u64) {
    let mut shard = Shard::new(shard_config());
    let domain = Domain::parse(b"d3.test").expect("a domain");
    let mut actions = Vec::new();
    let mut batch = Vec::new();
    for slot in 0..messages as u32 {
        let entry = Entry { home: 0, slot, part: 0 };
        let enqueue = Event::Enqueue {
            destination: &domain,
            entry,
            stream: StreamId::default(),
            recipients: 1,
            attempts: 0,
            received_at: NOW,
            due: NOW,
        };
        shard.handle(NOW, enqueue, &mut actions);
        while !actions.is_empty() {
            std::mem::swap(&mut batch, &mut actions);
            for action in batch.drain(..) {
                let event = match action {
                    Action::Connect { conn, .. } => Event::Want { conn, room: 1 },
                    Action::Deliver { conn, entry, .. } => {
                        shard.handle(
                            NOW,
                            Event::Finished { conn, entry, verdict: Verdict::Nothing },
                            &mut actions,
                        );
                        Event::Want { conn, room: 1 }
                    }
                    Action::Close { conn, .. } => Event::Closed { conn },
                    _ => continue,
                };
                shard.handle(NOW, event, &mut actions);
            }
        }
    }
}

fn deliver(messages: u64) {
    let mut session = ClientSession::new(ClientConfig { ehlo_name: "mta.test".into(), starttls: false });
    let mut out = Vec::with_capacity(4096);
    let feed = |session: &mut ClientSession, mut input: &[u8], out: &mut Vec<u8>| loop {
        let (consumed, event) = session.feed(input, out);
        input = &input[consumed..];
        match event {
            ClientEvent::SendBody { key } => session.body_sent(key),
            ClientEvent::Done { replies, .. } => drop(black_box(replies)),
            ClientEvent::Ready => {}
            ClientEvent::More => return,
            other => panic!("the peer is willing: {other:?}"),
        }
    };
    let hello = b"220 peer.test ESMTP\r\n250-peer.test\r\n250-PIPELINING\r\n250 SIZE 0\r\n";
    feed(&mut session, hello, &mut out);
    for key in 0..messages {
        out.clear();
        let recipients = &[RECIPIENT];
        let size_bytes = BODY_BYTES as u64;
        let outgoing =
            Outgoing { key, reverse_path: SENDER, recipients, size_bytes, body_kind: BodyKind::SevenBit };
        session.start(black_box(outgoing), &mut out);
        feed(&mut session, black_box(b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go on\r\n"), &mut out);
        feed(&mut session, black_box(b"250 2.0.0 0123456789ab queued\r\n"), &mut out);
    }
}

/// Instructions of this program running a step for so many messages.
fn count(step: &str, messages: u64) -> Option<u64> {
    let own = std::env::current_exe().expect("a program knows its path");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args(["step", step, &messages.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step} failed under valgrind: {said}");
    said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, step, messages] = &arguments[..]
        && word == "step"
    {
        let (_, run, _) = STEPS.iter().find(|(name, ..)| name == step).expect("a step of this program");
        run(messages.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|a| a == "--list" || a == "--test") {
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed (Debian: apt-get install valgrind)");
        return ExitCode::SUCCESS;
    }
    println!("| step | instructions per message | at most |\n|---|---:|---:|");
    let mut good = true;
    for (name, _, most) in STEPS {
        let counted: Vec<u64> = RUNS.iter().map(|&n| count(name, n).expect("callgrind tells")).collect();
        let each = (counted[1] - counted[0]) / (RUNS[1] - RUNS[0]);
        let verdict = if each > most { " **too many**" } else { "" };
        println!("| `{name}` | {each}{verdict} | {most} |");
        good &= each <= most;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
