//! Trials: the scheduler against modelled receivers, measured, beside a plain one.
//!
//! Owns: the receivers (connections, rates, latency, trouble, death), a driver in simulated time, and the
//! table in `docs/SCHEDULER.md`. Promises: a receiver decides by what it counts itself; the plain
//! scheduler is the same code without adaptation and streams: as many connections as are configured,
//! first in, first out; one seed, one result. Must not: know of the shard's state.
//!
//! `cargo test --release --lib schedule::trial -- --nocapture` prints the table; `RINGPOST_TRIAL=full`
//! runs it at full length.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::tests::Settings;
use super::*;
use crate::clock::Rng;

const MS: u64 = 1000;
const SECOND: u64 = 1_000_000;
const START: u64 = 1_700_000_000 * SECOND;
const SEED: u64 = 42;

/// How a receiver counts messages.
#[derive(Clone, Copy, Debug)]
enum Quota {
    None,
    /// So many a second, with a bucket of one second.
    PerSecond(u64),
    /// So many in each whole minute; then none.
    PerMinute(u64),
}

#[derive(Clone, Copy, Debug)]
struct Model {
    connections: u32,
    quota: Quota,
    /// Time for a connection, and for a message.
    connect: u64,
    message: u64,
    /// Refuses every first attempt at a message for this long (greylisting).
    greylist: u64,
    /// Nobody answers before.
    dead_until: u64,
    /// Refuses everything with 421 in this span.
    trouble: (u64, u64),
}

const WILLING: Model = Model {
    connections: u32::MAX,
    quota: Quota::None,
    connect: 50 * MS,
    message: 50 * MS,
    greylist: 0,
    dead_until: 0,
    trouble: (0, 0),
};

/// What a receiver has seen.
#[derive(Debug, Default)]
struct Seen {
    open: u32,
    most_open: u32,
    bucket: f64,
    bucket_at: u64,
    minute: (u64, u64),
    /// Times of accepted messages.
    accepted: Vec<u64>,
    /// Times of MAIL, taken or not, and of connections, and which of both were refused.
    mails: Vec<u64>,
    dials: Vec<u64>,
    refused: Vec<u64>,
}

impl Seen {
    fn new(model: &Model) -> Seen {
        let bucket = if let Quota::PerSecond(rate) = model.quota { rate as f64 } else { 0.0 };
        Seen { bucket, ..Seen::default() }
    }

    fn takes(&mut self, model: &Model, now: u64) -> bool {
        if (model.trouble.0..model.trouble.1).contains(&now) {
            return false;
        }
        match model.quota {
            Quota::None => true,
            Quota::PerSecond(rate) => {
                let gained = (now - self.bucket_at.max(START)) as f64 / 1e6 * rate as f64;
                self.bucket = (self.bucket + gained).min(rate as f64);
                self.bucket_at = now;
                let takes = self.bucket >= 1.0;
                self.bucket -= if takes { 1.0 } else { 0.0 };
                takes
            }
            Quota::PerMinute(count) => {
                let minute = now / (60 * SECOND);
                if self.minute.0 != minute {
                    self.minute = (minute, 0);
                }
                let takes = self.minute.1 < count;
                self.minute.1 += u64::from(takes);
                takes
            }
        }
    }

    /// Events of `times` in a span.
    fn count(times: &[u64], from: u64, to: u64) -> usize {
        times.iter().filter(|at| (from..to).contains(*at)).count()
    }

    /// The most in any half-open window of `per`.
    fn most_in(times: &[u64], per: u64) -> usize {
        let (mut first, mut most) = (0, 0);
        for (at, time) in times.iter().enumerate() {
            while times[first] + per <= *time {
                first += 1;
            }
            most = most.max(at - first + 1);
        }
        most
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Dialled(ConnId),
    Answered(ConnId, Entry),
    Gone(ConnId),
    /// Mail for a destination arrives.
    Arrive {
        destination: usize,
        stream: StreamId,
    },
}

#[derive(Clone, Copy, Debug)]
struct Mail {
    stream: StreamId,
    at: u64,
    tried: u64,
}

struct Trial {
    shard: Shard,
    homes: u8,
    now: u64,
    serial: u64,
    rng: Rng,
    happenings: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    names: Vec<Domain>,
    models: Vec<Model>,
    seen: Vec<Seen>,
    mail: Vec<Mail>,
    conns: BTreeMap<ConnId, (usize, VecDeque<Entry>, bool)>,
    /// Microseconds from arrival to acceptance, by stream.
    waits: BTreeMap<StreamId, Vec<u64>>,
    done: BTreeMap<StreamId, Vec<u64>>,
    trace: u64,
}

/// The scheduler under trial, or the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ours,
    Plain,
}

impl Trial {
    fn new(kind: Kind, models: Vec<Model>, change: impl FnOnce(&mut Settings)) -> Trial {
        let mut settings = Settings { homes: 2, connections_per_home: 1000, ..Settings::new() };
        settings.policy.limits.connections = 20;
        settings.policy.messages_per_connection = 1000;
        settings.policy.max_age = Duration::from_secs(5 * 86_400);
        settings.jitter_percent = 10;
        settings.policy.adaptive = kind == Kind::Ours;
        change(&mut settings);
        Trial {
            shard: settings.shard(),
            homes: settings.homes,
            now: START,
            serial: 0,
            rng: Rng::new(SEED),
            happenings: BinaryHeap::new(),
            names: (0..models.len())
                .map(|n| Domain::parse(format!("d{n}.test").as_bytes()).expect("valid"))
                .collect(),
            seen: models.iter().map(Seen::new).collect(),
            models,
            mail: Vec::new(),
            conns: BTreeMap::new(),
            waits: BTreeMap::new(),
            done: BTreeMap::new(),
            trace: SEED,
        }
    }

    fn plan(&mut self, after: u64, happening: Happening) {
        self.serial += 1;
        self.happenings.push(Reverse((self.now + after, self.serial, happening)));
    }

    fn send(&mut self, destination: usize, stream: StreamId) {
        let slot = self.mail.len() as u32;
        self.mail.push(Mail { stream, at: self.now, tried: 0 });
        let entry = Entry { home: (slot % u32::from(self.homes)) as u8, slot, part: 0 };
        let (name, at) = (self.names[destination].clone(), WallTime(self.now));
        self.tell(Event::Enqueue {
            destination: &name,
            entry,
            stream,
            recipients: 1,
            attempts: 0,
            told: false,
            received_at: at,
            due: at,
        });
    }

    fn run_to(&mut self, end: u64) {
        loop {
            let happening = self.happenings.peek().map(|Reverse((at, _, _))| *at);
            let timer = self.shard.next_timer().map(|at| at.0.max(self.now));
            let Some(at) = happening.into_iter().chain(timer).min().filter(|at| *at < end) else { break };
            self.now = at.max(self.now);
            if happening == Some(at) {
                let Reverse((_, _, happening)) = self.happenings.pop().expect("it was there");
                self.happen(happening);
            } else {
                self.tell(Event::Timer);
            }
        }
        self.now = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive { destination, stream } => self.send(destination, stream),
            Happening::Dialled(conn) => self.dialled(conn),
            Happening::Answered(conn, entry) => self.answered(conn, entry),
            Happening::Gone(conn) => {
                let (destination, _, _) = self.conns.remove(&conn).expect("it was open");
                self.seen[destination].open -= 1;
                self.tell(Event::Closed { conn });
            }
        }
    }

    fn dialled(&mut self, conn: ConnId) {
        let destination = self.conns[&conn].0;
        let model = self.models[destination];
        let seen = &mut self.seen[destination];
        seen.dials.push(self.now);
        let dead = self.now < model.dead_until;
        let trouble = (model.trouble.0..model.trouble.1).contains(&self.now);
        if dead || trouble || seen.open >= model.connections {
            seen.refused.push(self.now);
            self.conns.remove(&conn);
            let verdict = match (dead, trouble) {
                (true, _) => Verdict::Nothing,
                (_, true) => Verdict::BackOff,
                _ => Verdict::FewerConnections,
            };
            return self.tell(Event::ConnectFailed { conn, permanent: false, verdict });
        }
        seen.open += 1;
        seen.most_open = seen.most_open.max(seen.open);
        self.conns.get_mut(&conn).expect("it was opened").2 = true;
        self.tell(Event::Want { conn, room: 2 });
    }

    /// MAIL goes out for the first message that the connection holds.
    fn go_on(&mut self, conn: ConnId) {
        let Some((destination, held, _)) = self.conns.get(&conn) else { return };
        let (Some(entry), destination) = (held.front().copied(), *destination) else { return };
        self.seen[destination].mails.push(self.now);
        let message = self.models[destination].message;
        let after = message / 2 + self.rng.below(message);
        self.plan(after, Happening::Answered(conn, entry));
    }

    fn answered(&mut self, conn: ConnId, entry: Entry) {
        let Some((destination, held, _)) = self.conns.get_mut(&conn) else { return };
        let destination = *destination;
        held.pop_front();
        let (model, mail) = (self.models[destination], self.mail[entry.slot as usize]);
        let greylisted = model.greylist > 0 && (mail.tried == 0 || self.now < mail.tried + model.greylist);
        if mail.tried == 0 {
            self.mail[entry.slot as usize].tried = self.now;
        }
        let seen = &mut self.seen[destination];
        let trouble = (model.trouble.0..model.trouble.1).contains(&self.now);
        let takes = !greylisted && seen.takes(&model, self.now);
        if takes {
            seen.accepted.push(self.now);
            self.waits.entry(mail.stream).or_default().push(self.now - mail.at);
            self.done.entry(mail.stream).or_default().push(self.now);
            self.tell(Event::Finished { conn, entry, verdict: Verdict::Nothing });
        } else {
            seen.refused.push(self.now);
            let verdict = match (greylisted, trouble) {
                (true, _) => Verdict::Nothing,
                (_, true) => Verdict::BackOff,
                _ => Verdict::Slower,
            };
            self.tell(Event::Deferred { conn, entry, recipients_left: 1, verdict });
        }
        let held = self.conns[&conn].1.len();
        self.tell(Event::Want { conn, room: 2 - held as u8 });
        if held > 0 {
            self.go_on(conn);
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        let mut actions = Vec::new();
        self.shard.handle(WallTime(self.now), event, &mut actions);
        for action in actions {
            let line = format!("{} {action:?}", self.now);
            self.trace = xxh3_64_with_seed(line.as_bytes(), self.trace);
            match action {
                Action::Connect { conn, destination, .. } => {
                    let destination = self.names.iter().position(|n| *n == destination).expect("known");
                    self.conns.insert(conn, (destination, VecDeque::new(), false));
                    self.plan(self.models[destination].connect, Happening::Dialled(conn));
                }
                Action::Deliver { conn, entry, .. } => {
                    let held = &mut self.conns.get_mut(&conn).expect("open").1;
                    held.push_back(entry);
                    if held.len() == 1 {
                        self.go_on(conn);
                    }
                }
                Action::Close { conn, .. } => {
                    let (_, held, _) = &self.conns[&conn];
                    let after = 20 * MS + 200 * MS * held.len() as u64;
                    self.plan(after, Happening::Gone(conn));
                }
                _ => {}
            }
        }
    }

    /// Accepted per second, and refused of a hundred attempts, in a span of seconds from the start.
    fn rate(&self, destination: usize, from: u64, to: u64) -> (f64, f64) {
        let (seen, from, to) = (&self.seen[destination], START + from * SECOND, START + to * SECOND);
        let accepted = Seen::count(&seen.accepted, from, to) as f64;
        let refused = Seen::count(&seen.refused, from, to) as f64;
        (accepted / ((to - from) as f64 / 1e6), 100.0 * refused / (accepted + refused).max(1.0))
    }
}

fn quantile(values: &[u64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * q) as usize] as f64 / 1e6
}

/// Jain's index of how evenly `shares` are distributed: 1 is even.
fn jain(shares: &[f64]) -> f64 {
    let (sum, squares): (f64, f64) = (shares.iter().sum(), shares.iter().map(|x| x * x).sum());
    sum * sum / (shares.len() as f64 * squares)
}

/// Full length, or one that suits a run of all tests.
fn scale(full: u64, short: u64) -> u64 {
    if std::env::var("RINGPOST_TRIAL").is_ok_and(|v| v == "full") { full } else { short }
}

#[test]
fn configured_limits_hold_and_are_used() {
    let seconds = scale(600, 60);
    println!("| configured | most seen | throughput of the limit |");
    for (count, per) in [(10, 1), (100, 1), (1000, 1), (600, 60)] {
        let rate = Rate::new(count, Duration::from_secs(per));
        let mut trial = Trial::new(Kind::Ours, vec![WILLING], |s| {
            s.policy.limits.message_rate = Some(rate);
            s.policy.limits.connections = 200;
        });
        for _ in 0..u64::from(count) * seconds / per * 2 {
            trial.send(0, StreamId::default());
        }
        trial.run_to(START + seconds * SECOND);
        let mails = &trial.seen[0].mails;
        let most = Seen::most_in(mails, per * SECOND);
        let share = 100.0 * mails.len() as f64 / (f64::from(count) * seconds as f64 / per as f64);
        println!("| {rate} | {most} in {per} s | {share:.1} % |");
        assert!(most <= count as usize, "{rate}: {most}");
        assert!(share >= 95.0, "{rate}: {share}");
    }
    let mut trial = Trial::new(Kind::Ours, vec![WILLING], |s| s.policy.limits.connections = 5);
    for _ in 0..seconds * 200 {
        trial.send(0, StreamId::default());
    }
    trial.run_to(START + seconds * SECOND);
    let (rate, _) = trial.rate(0, 0, seconds);
    let oracle = 5.0 / 0.05;
    println!("| 5 connections | {} | {:.1} % |", trial.seen[0].most_open, 100.0 * rate / oracle);
    assert!(trial.seen[0].most_open <= 5 && rate >= 0.95 * oracle);
}

#[test]
fn hidden_limits_are_found() {
    // Whole minutes of the receiver's clock, which the start is 20 s into.
    let (settle, seconds) = (160, scale(3640, 640));
    println!("| hidden limit | scheduler | of an oracle's throughput | refused once converged |");
    let cases = [
        ("5 connections", Model { connections: 5, ..WILLING }, 5.0 / 0.05),
        ("20 messages/s", Model { quota: Quota::PerSecond(20), ..WILLING }, 20.0),
        ("100 messages/s", Model { quota: Quota::PerSecond(100), ..WILLING }, 100.0),
        ("600 messages in each minute", Model { quota: Quota::PerMinute(600), ..WILLING }, 10.0),
    ];
    for (name, model, oracle) in cases {
        for kind in [Kind::Ours, Kind::Plain] {
            let mut trial = Trial::new(kind, vec![model], |_| ());
            for _ in 0..(oracle * seconds as f64 * 1.2) as u64 {
                trial.send(0, StreamId::default());
            }
            trial.run_to(START + seconds * SECOND);
            let (rate, refused) = trial.rate(0, settle, seconds);
            println!("| {name} | {kind:?} | {:.1} % | {refused:.2} % |", 100.0 * rate / oracle);
            if kind == Kind::Ours {
                assert!(rate >= 0.9 * oracle, "{name}: {rate} of {oracle}");
                assert!(refused <= 1.0, "{name}: {refused} %");
            }
        }
    }
}

#[test]
fn a_changed_limit_is_followed() {
    println!("| hidden limit | from → to | settled after | refused meanwhile |");
    for (from, to) in [(40, 10), (10, 40)] {
        let model = |rate| Model { quota: Quota::PerSecond(rate), ..WILLING };
        let mut trial = Trial::new(Kind::Ours, vec![model(from)], |_| ());
        (0..60_000).for_each(|_| trial.send(0, StreamId::default()));
        let change = 300;
        trial.run_to(START + change * SECOND);
        trial.models[0] = model(to);
        trial.run_to(START + (change + 600) * SECOND);
        // Settled: from here on every span of a minute reaches 90 % of what there is to have.
        let good = |second| trial.rate(0, second, second + 60).0 >= 0.9 * to as f64;
        let end = change + 540;
        let bad = (change..end).rev().find(|second| !good(*second));
        let settled = bad.map_or(0, |second| second + 1 - change);
        let (_, refused) = trial.rate(0, change, change + settled.max(60));
        println!("| messages/s | {from} → {to} | {settled} s | {refused:.2} % |");
        assert!(settled <= 300, "{from} to {to}: {settled} s");
    }
}

#[test]
fn streams_share_evenly_or_by_weight() {
    let seconds = scale(600, 60);
    let streams: Vec<StreamId> = (0..10).map(StreamId::new).collect();
    println!("| streams | scheduler | Jain's index |");
    for (name, weight) in [("10 of weight 1", 0u16), ("10 of weights 1 to 10", 1)] {
        for kind in [Kind::Ours, Kind::Plain] {
            let mut trial = Trial::new(kind, vec![WILLING], |_| ());
            let weights: Vec<u16> = (0..10).map(|n| if weight == 0 { 1 } else { n + 1 }).collect();
            let settings = Settings::new();
            let mut policies = Policies::one(Policy {
                limits: Limits { connections: 20, ..Limits::NONE },
                messages_per_connection: 1000,
                ..settings.policy
            });
            policies.streams =
                weights.iter().map(|w| StreamPolicy { weight: *w, ..StreamPolicy::default() }).collect();
            trial.tell(Event::Policies(std::sync::Arc::new(policies)));
            // One sender after the other, the first with ten times as much as the last.
            for (at, stream) in streams.iter().enumerate() {
                let count = seconds * 400 / (at as u64 + 1) + 100 * seconds;
                let known = if kind == Kind::Ours { *stream } else { StreamId::default() };
                let first = trial.mail.len();
                (0..count).for_each(|_| trial.send(0, known));
                trial.mail[first..].iter_mut().for_each(|mail| mail.stream = *stream);
            }
            trial.run_to(START + seconds * SECOND);
            let shares: Vec<f64> = (0..10)
                .map(|n| trial.done.get(&streams[n]).map_or(0, Vec::len) as f64 / f64::from(weights[n]))
                .collect();
            let index = jain(&shares);
            println!("| {name} | {kind:?} | {index:.3} |");
            assert!(kind == Kind::Plain || index >= 0.98, "{shares:?}");
        }
    }
}

#[test]
fn transactional_mail_passes_a_campaign() {
    let campaign = scale(1_000_000, 50_000);
    println!("| beside a campaign of {campaign} | p50 | p99 | longest |");
    let urgent = StreamId::urgent(1);
    for kind in [Kind::Ours, Kind::Plain] {
        let mut trial = Trial::new(kind, vec![WILLING, WILLING], |_| ());
        (0..campaign).for_each(|_| trial.send(0, StreamId::new(2)));
        let mut at = 0;
        while at < 60 * SECOND {
            at += trial.rng.below(400 * MS);
            let stream = if kind == Kind::Ours { urgent } else { StreamId::new(2) };
            trial.plan(at, Happening::Arrive { destination: 0, stream });
        }
        let first = trial.mail.len();
        // Until the last of them is delivered: the plain scheduler has to get through the campaign.
        let mut end = START + 60 * SECOND;
        loop {
            trial.run_to(end);
            let mail = &trial.mail;
            let waits = trial.waits.values().map(Vec::len).sum::<usize>();
            let urgent_done = trial.waits.get(&urgent).map_or(0, Vec::len);
            let left = if kind == Kind::Ours { mail.len() - first - urgent_done } else { mail.len() - waits };
            if left == 0 {
                break;
            }
            end += 10 * SECOND;
        }
        let waits = match kind {
            Kind::Ours => trial.waits[&urgent].clone(),
            // Those that came last were answered last.
            Kind::Plain => {
                let all = &trial.waits[&StreamId::new(2)];
                all[campaign as usize..].to_vec()
            }
        };
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|q| quantile(&waits, q));
        println!("| {kind:?} | {p50:.2} s | {p99:.2} s | {most:.2} s |");
        assert!(kind == Kind::Plain || most <= 0.5, "{most}");
    }
}

#[test]
fn trouble_death_and_greylisting_pass() {
    println!("| receiver | scheduler | refused | all delivered after |");
    let minute = 60 * SECOND;
    let cases = [
        ("dead for 30 minutes", Model { dead_until: START + 30 * minute, ..WILLING }),
        (
            "421 to everything for 10 minutes",
            Model { trouble: (START + minute, START + 11 * minute), ..WILLING },
        ),
        ("greylisting, 5 minutes", Model { greylist: 5 * minute, ..WILLING }),
        ("slow, 5 s a message", Model { message: 5 * SECOND, ..WILLING }),
    ];
    for (name, model) in cases {
        for kind in [Kind::Ours, Kind::Plain] {
            let mut trial = Trial::new(kind, vec![model], |s| {
                s.policy.retry_schedule = [60, 300, 900, 1800, 3600].map(Duration::from_secs).into();
            });
            // Twenty a second for five minutes.
            for n in 0..6000 {
                trial.plan(n * 50 * MS, Happening::Arrive { destination: 0, stream: StreamId::default() });
            }
            trial.run_to(START + 6 * 3600 * SECOND);
            let seen = &trial.seen[0];
            let last = seen.accepted.last().map_or(0, |at| (at - START) / SECOND);
            println!("| {name} | {kind:?} | {} | {last} s |", seen.refused.len());
            assert_eq!(seen.accepted.len(), 6000, "{name}");
        }
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |rate| {
        let model = Model { quota: Quota::PerSecond(rate), connections: 7, ..WILLING };
        let mut trial = Trial::new(Kind::Ours, vec![model], |_| ());
        (0..3000).for_each(|_| trial.send(0, StreamId::default()));
        trial.run_to(START + 60 * SECOND);
        trial.trace
    };
    println!("seed {SEED}: trace {:016x}", trace(20));
    assert_eq!(trace(20), trace(20));
    assert_ne!(trace(20), trace(200));
}
