//! What is to be sent, and when.
//!
//! Owns: the plan of a run ([`Plan`]), what its threads share ([`Shared`]), and each thread's
//! [`Supply`] of messages. Promises: numbers are given out once, without gaps; at a fixed rate the
//! number and time of each message come from a Poisson process drawn from the seed, whatever the server
//! does and however many threads send; a message that certainly was not accepted is given out again
//! under its number. Must not: send.
use std::fs::File;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;

use crate::clock::{Clock, Rng, wall_us};
use crate::limits;
use crate::load::LoadArgs;
use crate::load::mix::{Classes, Domains};
use crate::load::rate::{Arrivals, RateProfile};
use crate::load::tls::TlsMode;
use crate::progress::Snapshot;
use crate::timeline::Timeline;

/// What every thread of a run goes by.
#[derive(Clone, Debug)]
pub struct Plan {
    pub run: u32,
    pub to: std::net::SocketAddr,
    /// Addresses to connect from, in turn; without any the kernel chooses.
    pub sources: Vec<IpAddr>,
    pub from: String,
    pub domains: Arc<Domains>,
    /// Different mailboxes in each domain; none where the recipient's number is the mailbox.
    pub mailboxes: Option<u32>,
    pub recipients: u32,
    pub classes: Arc<Classes>,
    pub may_pipeline: bool,
    /// What stands before the length of each request where HTTP is spoken; none for SMTP.
    pub http: Option<Arc<str>>,
    /// Send the content with BDAT where the server offers CHUNKING (RFC 3030).
    pub may_chunk: bool,
    pub tls: TlsMode,
    /// What AUTH PLAIN (RFC 4616) and AUTH LOGIN send, in base64.
    pub credentials: Option<Credentials>,
    pub messages_per_connection: u64,
    /// Connections of one thread; the first threads have one more where it does not divide.
    pub connections: u32,
    pub threads: u16,
    pub rate: Option<RateProfile>,
    pub duration: Option<Duration>,
    pub seed: u64,
    pub tolerate_errors: bool,
    pub reply_timeout_us: u64,
    /// Run time before which nothing is measured.
    pub warmup_us: u64,
}

/// What a client proves itself with, in base64.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub plain: String,
    pub user: String,
    pub password: String,
}

impl Credentials {
    /// From `USER:PASSWORD`.
    fn new(text: &str) -> Credentials {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        Credentials {
            plain: encode(&format!("\0{user}\0{password}")),
            user: encode(user),
            password: encode(password),
        }
    }
}

impl Plan {
    /// The plan of a run that sends messages of the sizes in `classes` to `domains`.
    pub fn new(args: &LoadArgs, seed: u64, threads: u16, classes: Classes, domains: Domains) -> Plan {
        // A seed repeats text and times, not identity: a sink would take a second run for duplicates.
        let run = Rng::new(wall_us() ^ u64::from(std::process::id()).rotate_left(40)).next_u64() as u32;
        Plan {
            run,
            to: args.to,
            sources: args.source.clone(),
            from: args.from.clone(),
            domains: Arc::new(domains),
            mailboxes: args.mailboxes,
            recipients: args.recipients_per_message,
            classes: Arc::new(classes),
            may_pipeline: !args.no_pipelining,
            http: None,
            may_chunk: args.bdat,
            tls: args.tls,
            credentials: args.auth.as_deref().map(Credentials::new),
            messages_per_connection: args.messages_per_connection.unwrap_or(u64::MAX),
            connections: args.connections,
            threads,
            rate: args.rate.clone(),
            duration: args.duration,
            seed,
            tolerate_errors: args.tolerate_errors,
            reply_timeout_us: args.reply_timeout.as_micros() as u64,
            warmup_us: args.warmup.as_micros() as u64,
        }
    }
    /// Content bytes of message `number`.
    pub fn size_of(&self, number: u64) -> u64 {
        self.classes.sizes[self.classes.of(number)]
    }
    /// Whether message `number` has bytes beyond ASCII.
    pub fn is_eight_bit(&self, number: u64) -> bool {
        !self.classes.eight_bit.is_empty() && self.classes.eight_bit[self.classes.of(number)]
    }
    /// How many connections thread `index` keeps.
    pub fn connections_of(&self, index: usize) -> usize {
        let threads = u32::from(self.threads);
        (self.connections / threads + u32::from((index as u32) < self.connections % threads)) as usize
    }
}

/// What one thread has published about itself.
#[derive(Default)]
pub struct Published {
    pub accepted: AtomicU64,
    pub troubled: AtomicU64,
    pub open: AtomicU64,
    pub bytes: AtomicU64,
    pub cpu_ns: AtomicU64,
}

/// What the threads of a run share.
pub struct Shared {
    pub clock: Clock,
    /// When the run was ended, in run time: no new message is begun any more.
    stopped_us: AtomicU64,
    /// It was the user who ended it.
    is_interrupted: AtomicBool,
    /// Why the run ends early.
    pub failure: Mutex<Option<String>>,
    pub published: Vec<Published>,
    pub ack_log: Option<File>,
    pub refused_log: Option<File>,
    pub timeline: Mutex<Timeline>,
    next_number: AtomicU64,
    end_number: u64,
    deadline_us: u64,
}

impl Shared {
    pub fn new(
        args: &LoadArgs,
        threads: u16,
        clock: Clock,
        [ack_log, refused_log]: [Option<File>; 2],
        timeline: Timeline,
    ) -> Shared {
        Shared {
            clock,
            stopped_us: AtomicU64::new(u64::MAX),
            is_interrupted: AtomicBool::new(false),
            failure: Mutex::new(None),
            published: (0..threads).map(|_| Published::default()).collect(),
            ack_log,
            refused_log,
            timeline: Mutex::new(timeline),
            next_number: AtomicU64::new(0),
            end_number: args.messages.unwrap_or(limits::SLOTS / u64::from(args.recipients_per_message)),
            deadline_us: args.lasts().map_or(u64::MAX, |d| d.as_micros() as u64),
        }
    }
    /// Ends the run because of `reason`; the first one counts.
    pub fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stop();
    }
    /// Ends the run because the user says so.
    pub fn interrupt(&self) {
        if !self.is_stopped() {
            self.is_interrupted.store(true, Ordering::Relaxed);
            self.stop();
        }
    }
    fn stop(&self) {
        self.stopped_us.fetch_min(self.clock.now_us(), Ordering::Relaxed);
    }
    pub fn is_stopped(&self) -> bool {
        self.stopped_us.load(Ordering::Relaxed) != u64::MAX
    }
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted.load(Ordering::Relaxed)
    }
    pub fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// CPU of all threads.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.sum(|thread| &thread.cpu_ns))
    }
    pub fn snapshot(&self, total: Option<u64>) -> Snapshot {
        Snapshot {
            elapsed: Duration::from_micros(self.clock.now_us()),
            messages: self.sum(|thread| &thread.accepted),
            total,
            lasts: (self.deadline_us < u64::MAX).then(|| Duration::from_micros(self.deadline_us)),
            bytes: self.sum(|thread| &thread.bytes),
            troubled: self.sum(|thread| &thread.troubled),
            connections: self.sum(|thread| &thread.open),
            cpu: self.cpu(),
        }
    }
    fn sum(&self, field: impl Fn(&Published) -> &AtomicU64) -> u64 {
        self.published.iter().map(|thread| field(thread).load(Ordering::Relaxed)).sum()
    }
}

/// One message to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub number: u64,
    /// When it was meant to be sent, in run time; none where that is whenever there is room.
    pub intended_us: Option<u64>,
    /// It was begun before, and given back.
    pub is_again: bool,
}

/// What a connection with room for a message gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Message(Message),
    /// Nothing before this time.
    Later(u64),
    /// Nothing any more, unless a message is given back.
    Done,
}

/// One thread's share of the messages.
pub struct Supply {
    shared: Arc<Shared>,
    returned: Vec<Message>,
    schedule: Option<Schedule>,
}

/// A thread's part of the arrivals at a fixed rate: every `stride`th message.
struct Schedule {
    arrivals: Arrivals,
    /// Number of the next message.
    number: u64,
    stride: u64,
}

impl Schedule {
    /// Goes on by `messages` of all threads.
    fn advance(&mut self, messages: u64) {
        self.number += messages;
        (0..messages).for_each(|_| self.arrivals.advance());
    }
}

impl Supply {
    pub fn new(index: usize, plan: &Plan, shared: Arc<Shared>) -> Supply {
        let schedule = plan.rate.as_ref().map(|rate| {
            let arrivals = Arrivals::new(rate, plan.duration, plan.seed);
            let mut schedule = Schedule { arrivals, number: 0, stride: u64::from(plan.threads) };
            schedule.advance(index as u64);
            schedule
        });
        Supply { shared, returned: Vec::new(), schedule }
    }
    /// The next message at run time `now_us`.
    pub fn next(&mut self, now_us: u64) -> Next {
        if self.is_done(now_us) {
            return Next::Done;
        }
        if let Some(message) = self.returned.pop() {
            return Next::Message(message);
        }
        if let Some(due_us) = self.wait_until(now_us) {
            return Next::Later(due_us);
        }
        if let Some(schedule) = &mut self.schedule {
            let intended_us = Some(schedule.arrivals.next_us());
            let message = Message { number: schedule.number, intended_us, is_again: false };
            schedule.advance(schedule.stride);
            return Next::Message(message);
        }
        let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
        if number >= self.shared.end_number {
            return Next::Done;
        }
        Next::Message(Message { number, intended_us: None, is_again: false })
    }
    /// Nothing will be given out any more, unless a message is given back.
    pub fn is_done(&self, now_us: u64) -> bool {
        self.shared.is_stopped() || !self.has_more(now_us)
    }
    /// There is more to give out at `now_us`, as far as the run was planned.
    pub fn has_more(&self, now_us: u64) -> bool {
        // Arrivals that were due before the deadline belong to the run even when they are late. A
        // message given back does not: a server that stays away would hold the run for ever.
        let begins_us = self.due_us().unwrap_or(now_us);
        let next = match &self.schedule {
            Some(schedule) => schedule.number,
            None => self.shared.next_number.load(Ordering::Relaxed),
        };
        let is_exhausted = next >= self.shared.end_number;
        let has_returned = !self.returned.is_empty() && now_us < self.shared.deadline_us;
        has_returned || !(is_exhausted || begins_us >= self.shared.deadline_us)
    }
    /// When the run was stopped; now, if it was not.
    pub fn end_us(&self, now_us: u64) -> u64 {
        now_us.min(self.shared.stopped_us.load(Ordering::Relaxed))
    }
    /// Takes the next message off the schedule that was due before `until_us` and belongs to the run;
    /// gives its intended time.
    pub fn skip_due(&mut self, until_us: u64) -> Option<u64> {
        let schedule = self.schedule.as_mut()?;
        let due_us = schedule.arrivals.next_us();
        if schedule.number >= self.shared.end_number || due_us >= until_us.min(self.shared.deadline_us) {
            return None;
        }
        schedule.advance(schedule.stride);
        Some(due_us)
    }
    /// When the next message is due, if that is after `now_us`.
    pub fn wait_until(&self, now_us: u64) -> Option<u64> {
        self.due_us().filter(|&due_us| due_us > now_us && self.returned.is_empty() && !self.is_done(now_us))
    }
    fn due_us(&self) -> Option<u64> {
        self.schedule.as_ref().map(|schedule| schedule.arrivals.next_us())
    }
    /// Takes back a message that the server certainly has not accepted.
    pub fn give_back(&mut self, message: Message) {
        self.returned.push(Message { is_again: true, ..message });
    }
    /// Takes the messages that were given back and not sent again.
    pub fn take_returned(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.returned)
    }
    /// How many there are.
    #[cfg(test)]
    pub fn returned(&self) -> u64 {
        self.returned.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &LoadArgs, threads: u16) -> Plan {
        let classes = Classes { sizes: vec![args.size], eight_bit: Vec::new(), seed: 1 };
        Plan::new(args, 1, threads, classes, Domains::One("x".into()))
    }

    fn supply(change: impl Fn(&mut LoadArgs)) -> Supply {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 3);
        change(&mut args);
        let timeline = Timeline::new(Duration::from_secs(1), Duration::ZERO, None, 0).unwrap();
        let shared = Arc::new(Shared::new(&args, 1, Clock::start(), [None, None], timeline));
        Supply::new(0, &plan(&args, 1), shared)
    }

    #[test]
    fn a_schedule_does_not_depend_on_the_number_of_threads() {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 1000);
        args.rate = Some("500..5000/s@100ms,2000/s@1s".parse().unwrap());
        let all = |threads: u16| {
            let timeline = Timeline::new(Duration::from_secs(1), Duration::ZERO, None, 0).unwrap();
            let shared = Arc::new(Shared::new(&args, threads, Clock::start(), [None, None], timeline));
            let mut messages = Vec::new();
            for index in 0..usize::from(threads) {
                let mut supply = Supply::new(index, &plan(&args, threads), shared.clone());
                while let Next::Message(message) = supply.next(u64::MAX - 1) {
                    messages.push((message.number, message.intended_us));
                }
            }
            messages.sort();
            messages
        };
        let alone = all(1);
        assert_eq!(
            alone.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            (0..1000).collect::<Vec<_>>()
        );
        assert!(alone.is_sorted_by_key(|(_, intended_us)| *intended_us));
        for threads in [2, 3, 7] {
            assert_eq!(all(threads), alone, "{threads} threads");
        }
    }

    #[test]
    fn numbers_are_given_once_and_again_when_given_back() {
        let mut supply = supply(|_| ());
        let again = |number| Message { number, intended_us: None, is_again: true };
        let message = |number| Next::Message(Message { is_again: false, ..again(number) });
        assert_eq!([supply.next(0), supply.next(0), supply.next(0)], [0, 1, 2].map(message));
        assert_eq!(supply.next(0), Next::Done);
        supply.give_back(again(1));
        assert_eq!((supply.next(0), supply.next(0)), (Next::Message(again(1)), Next::Done));
        supply.give_back(again(2));
        supply.shared.fail("why".into());
        assert_eq!((supply.next(0), supply.returned()), (Next::Done, 1));
    }

    #[test]
    fn arrivals_keep_the_rate_whatever_is_asked_when() {
        let mut supply =
            supply(|args| (args.rate, args.messages) = (Some(RateProfile::fixed(1000.0)), Some(10_000)));
        // Asked only at the end, when all are long overdue: the intended times are spread all the same.
        let mut times = Vec::new();
        while let Next::Message(message) = supply.next(u64::MAX - 1) {
            times.push(message.intended_us.unwrap());
        }
        assert_eq!(times.len(), 10_000);
        assert!(times.is_sorted());
        let seconds = *times.last().unwrap() as f64 / 1e6;
        assert!((9.5..10.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_deadline_ends_the_supply() {
        let mut closed = supply(|args| args.duration = Some(Duration::from_secs(1)));
        assert!(matches!(closed.next(999_999), Next::Message(_)));
        closed.give_back(Message { number: 0, intended_us: None, is_again: false });
        assert_eq!((closed.next(1_000_000), closed.returned()), (Next::Done, 1));
        let mut open = supply(|args| {
            args.rate = Some(RateProfile::fixed(1.0));
            args.duration = Some(Duration::from_micros(1));
        });
        assert_eq!(open.next(5), Next::Done);
    }

    #[test]
    fn connections_are_shared_out() {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 3);
        args.connections = 7;
        let plan = plan(&args, 3);
        assert_eq!([0, 1, 2].map(|index| plan.connections_of(index)), [3, 2, 2]);
    }
}
