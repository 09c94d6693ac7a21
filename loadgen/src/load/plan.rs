//! What is to be sent, and when.
//!
//! Owns: the plan of a run ([`Plan`]), what its threads share ([`Shared`]), and each thread's
//! [`Supply`] of messages. Promises: numbers are given out once, without gaps; at a fixed rate the
//! times are those of a Poisson process drawn from the seed, whatever the server does; a message
//! that certainly was not accepted is given out again under its number. Must not: send.
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Rng, wall_us};
use crate::limits;
use crate::load::LoadArgs;
use crate::progress::Snapshot;

/// What every thread of a run goes by.
#[derive(Clone, Debug)]
pub struct Plan {
    pub run: u32,
    pub to: std::net::SocketAddr,
    pub from: String,
    pub to_domain: String,
    pub domains: Option<u32>,
    pub recipients: u32,
    pub size: u64,
    pub may_pipeline: bool,
    pub messages_per_connection: u64,
    /// Connections of one thread; the first threads have one more where it does not divide.
    pub connections: u32,
    pub threads: u16,
    pub rate_per_thread: Option<f64>,
    pub seed: u64,
    pub tolerate_errors: bool,
    pub reply_timeout_us: u64,
}

impl Plan {
    pub fn new(args: &LoadArgs, seed: u64, threads: u16) -> Plan {
        // A seed repeats text and times, not identity: a sink would take a second run for duplicates.
        let run = Rng::new(wall_us() ^ u64::from(std::process::id()).rotate_left(40)).next_u64() as u32;
        Plan {
            run,
            to: args.to,
            from: args.from.clone(),
            to_domain: args.to_domain.clone(),
            domains: args.domains,
            recipients: args.recipients_per_message,
            size: args.size,
            may_pipeline: !args.no_pipelining,
            messages_per_connection: args.messages_per_connection.unwrap_or(u64::MAX),
            connections: args.connections,
            threads,
            rate_per_thread: args.rate.map(|rate| rate / f64::from(threads)),
            seed,
            tolerate_errors: args.tolerate_errors,
            reply_timeout_us: args.reply_timeout.as_micros() as u64,
        }
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
    pub cpu_ns: AtomicU64,
}

/// What the threads of a run share.
pub struct Shared {
    pub clock: Clock,
    /// No new message is begun any more.
    pub stop: AtomicBool,
    /// Why the run ends early.
    pub failure: Mutex<Option<String>>,
    pub published: Vec<Published>,
    pub ack_log: Option<File>,
    next_number: AtomicU64,
    end_number: u64,
    deadline_us: u64,
    size: u64,
}

impl Shared {
    pub fn new(args: &LoadArgs, threads: u16, clock: Clock, ack_log: Option<File>) -> Shared {
        Shared {
            clock,
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            published: (0..threads).map(|_| Published::default()).collect(),
            ack_log,
            next_number: AtomicU64::new(0),
            end_number: args.messages.unwrap_or(limits::SLOTS / u64::from(args.recipients_per_message)),
            deadline_us: args.duration.map_or(u64::MAX, |d| d.as_micros() as u64),
            size: args.size,
        }
    }
    /// Ends the run because of `reason`; the first one counts.
    pub fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stop.store(true, Ordering::Relaxed);
    }
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    /// CPU of all threads.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.sum(|thread| &thread.cpu_ns))
    }
    pub fn snapshot(&self, total: Option<u64>) -> Snapshot {
        let messages = self.sum(|thread| &thread.accepted);
        Snapshot {
            elapsed: Duration::from_micros(self.clock.now_us()),
            messages,
            total,
            bytes: messages * self.size,
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
    arrivals: Option<Arrivals>,
}

/// Times of a Poisson process.
struct Arrivals {
    rng: Rng,
    mean_us: f64,
    next_us: f64,
}

impl Arrivals {
    fn advance(&mut self) {
        self.next_us -= self.rng.unit().ln() * self.mean_us;
    }
}

impl Supply {
    pub fn new(index: usize, plan: &Plan, shared: Arc<Shared>) -> Supply {
        let arrivals = plan.rate_per_thread.map(|rate| {
            let rng = Rng::new(plan.seed.wrapping_add(index as u64));
            let mut arrivals = Arrivals { rng, mean_us: 1e6 / rate, next_us: 0.0 };
            arrivals.advance();
            arrivals
        });
        Supply { shared, returned: Vec::new(), arrivals }
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
        let number = self.shared.next_number.fetch_add(1, Ordering::Relaxed);
        if number >= self.shared.end_number {
            return Next::Done;
        }
        let intended_us = self.due_us();
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.advance();
        }
        Next::Message(Message { number, intended_us })
    }
    /// Nothing will be given out any more, unless a message is given back.
    pub fn is_done(&self, now_us: u64) -> bool {
        if self.shared.is_stopped() {
            return true;
        }
        // Arrivals that were due before the deadline belong to the run even when they are late. A
        // message given back does not: a server that stays away would hold the run for ever.
        let begins_us = self.due_us().unwrap_or(now_us);
        let is_exhausted = self.shared.next_number.load(Ordering::Relaxed) >= self.shared.end_number;
        let has_returned = !self.returned.is_empty() && now_us < self.shared.deadline_us;
        !has_returned && (is_exhausted || begins_us >= self.shared.deadline_us)
    }
    /// When the next message is due, if that is after `now_us`.
    pub fn wait_until(&self, now_us: u64) -> Option<u64> {
        self.due_us().filter(|&due_us| due_us > now_us && self.returned.is_empty() && !self.is_done(now_us))
    }
    fn due_us(&self) -> Option<u64> {
        self.arrivals.as_ref().map(|arrivals| arrivals.next_us as u64)
    }
    /// Takes back a message that the server certainly has not accepted.
    pub fn give_back(&mut self, message: Message) {
        self.returned.push(message);
    }
    /// Messages given back and not sent again.
    pub fn returned(&self) -> u64 {
        self.returned.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(change: impl Fn(&mut LoadArgs)) -> Supply {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 3);
        change(&mut args);
        let shared = Arc::new(Shared::new(&args, 1, Clock::start(), None));
        Supply::new(0, &Plan::new(&args, 1, 1), shared)
    }

    #[test]
    fn numbers_are_given_once_and_again_when_given_back() {
        let mut supply = supply(|_| ());
        let message = |number| Next::Message(Message { number, intended_us: None });
        assert_eq!([supply.next(0), supply.next(0), supply.next(0)], [0, 1, 2].map(message));
        assert_eq!(supply.next(0), Next::Done);
        supply.give_back(Message { number: 1, intended_us: None });
        assert_eq!((supply.next(0), supply.next(0)), (message(1), Next::Done));
        supply.give_back(Message { number: 2, intended_us: None });
        supply.shared.fail("why".into());
        assert_eq!((supply.next(0), supply.returned()), (Next::Done, 1));
    }

    #[test]
    fn arrivals_keep_the_rate_whatever_is_asked_when() {
        let mut supply = supply(|args| (args.rate, args.messages) = (Some(1000.0), Some(10_000)));
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
        closed.give_back(Message { number: 0, intended_us: None });
        assert_eq!((closed.next(1_000_000), closed.returned()), (Next::Done, 1));
        let mut open = supply(|args| {
            args.rate = Some(1.0);
            args.duration = Some(Duration::from_micros(1));
        });
        assert_eq!(open.next(5), Next::Done);
    }

    #[test]
    fn connections_are_shared_out() {
        let mut args = LoadArgs::new("127.0.0.1:25".parse().unwrap(), 3);
        args.connections = 7;
        let plan = Plan::new(&args, 1, 3);
        assert_eq!([0, 1, 2].map(|index| plan.connections_of(index)), [3, 2, 2]);
    }
}
