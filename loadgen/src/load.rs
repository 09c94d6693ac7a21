//! The load source: sends generated mail and measures how it is taken.
//!
//! Owns: [`LoadArgs`] and a run over its threads. Promises: a message counts as accepted only when
//! its final reply was 2xx; one whose reply was never seen counts as unknown, never as accepted. At
//! a fixed rate latency is measured from the time a message was meant to be sent, so that a slow
//! server cannot hide behind a source that waits for it. Must not: share code with the server.
mod plan;
mod replies;
mod session;
mod stats;
#[cfg(test)]
mod tests;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::FalseyValueParser;

use crate::clock::{Clock, wall_us};
use crate::limits;
use crate::message::Template;
use crate::progress::{Progress, Snapshot};
use crate::report::{LoadReport, Stages};
use crate::size::{parse_duration, parse_rate, parse_size};
use plan::{Plan, Shared};
use stats::Stats;

/// Size of a message by default.
const DEFAULT_SIZE: u64 = 4096;

/// Send generated mail to a server and measure how it is taken
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Server to send to
    #[arg(long, value_name = "ADDR:PORT", env = "RINGPOST_LOAD_TO")]
    pub to: SocketAddr,
    /// How many messages to send
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_MESSAGES")]
    pub messages: Option<u64>,
    /// How long to send; with --messages whichever ends first
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_DURATION", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Connections at the same time
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_CONNECTIONS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=65_535))]
    pub connections: u32,
    /// Messages after which a connection is closed and opened anew; without it, none
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_MESSAGES_PER_CONNECTION",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub messages_per_connection: Option<u64>,
    /// Size of each message
    #[arg(long, value_name = "SIZE", env = "RINGPOST_LOAD_SIZE", default_value = "4KiB", value_parser = parse_size)]
    pub size: u64,
    /// Messages per second, at times fixed in advance; without it, as fast as the server answers
    #[arg(long, value_name = "N/s", env = "RINGPOST_LOAD_RATE", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Recipients of each message
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_RECIPIENTS_PER_MESSAGE", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::RECIPIENTS)))]
    pub recipients_per_message: u32,
    /// Sender of the messages; empty for the null reverse-path
    #[arg(long, value_name = "ADDRESS", env = "RINGPOST_LOAD_FROM", default_value = "load@example.test")]
    pub from: String,
    /// Domain of the recipients
    #[arg(long, value_name = "DOMAIN", env = "RINGPOST_LOAD_TO_DOMAIN", default_value = "example.test")]
    pub to_domain: String,
    /// Spread the recipients over this many domains, d0.test, d1.test and so on, instead
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_DOMAINS", conflicts_with = "to_domain",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub domains: Option<u32>,
    /// Wait for the reply to each command
    #[arg(long, env = "RINGPOST_LOAD_NO_PIPELINING", value_parser = FalseyValueParser::new())]
    pub no_pipelining: bool,
    /// Print the report as JSON on standard output
    #[arg(long, env = "RINGPOST_LOAD_JSON", value_parser = FalseyValueParser::new())]
    pub json: bool,
    /// Seed of the text and, with --rate, of the arrival times; without it, a new one
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_SEED")]
    pub seed: Option<u64>,
    /// Threads that send
    #[arg(long, value_name = "N", env = "RINGPOST_LOAD_THREADS", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
    /// Append the name of each accepted delivery to this file as soon as it is acknowledged
    #[arg(long, value_name = "FILE", env = "RINGPOST_LOAD_ACK_LOG")]
    pub ack_log: Option<PathBuf>,
    /// Go on when connections fail, until all is sent: connect again, count what is in doubt as unknown
    #[arg(long, env = "RINGPOST_LOAD_TOLERATE_ERRORS", value_parser = FalseyValueParser::new())]
    pub tolerate_errors: bool,
    /// Give a connection up when it has brought no reply for this long
    #[arg(long, value_name = "TIME", env = "RINGPOST_LOAD_REPLY_TIMEOUT", default_value = "60s",
        value_parser = parse_duration)]
    pub reply_timeout: Duration,
    /// Send to an address that is not on the loopback interface
    #[arg(long, env = "RINGPOST_LOAD_I_OWN_THE_TARGET", value_parser = FalseyValueParser::new())]
    pub i_own_the_target: bool,
}

impl LoadArgs {
    /// The defaults, sending `messages` to `to`.
    pub fn new(to: SocketAddr, messages: u64) -> LoadArgs {
        LoadArgs {
            to,
            messages: Some(messages),
            duration: None,
            connections: 64,
            messages_per_connection: None,
            size: DEFAULT_SIZE,
            rate: None,
            recipients_per_message: 1,
            from: "load@example.test".into(),
            to_domain: "example.test".into(),
            domains: None,
            no_pipelining: false,
            json: false,
            seed: None,
            threads: 1,
            ack_log: None,
            tolerate_errors: false,
            reply_timeout: Duration::from_secs(60),
            i_own_the_target: false,
        }
    }
    fn validate(&self) -> anyhow::Result<()> {
        if self.messages.is_none() && self.duration.is_none() {
            bail!("say how much to send: --messages N or --duration TIME");
        }
        let is_loopback = self.to.ip().to_canonical().is_loopback();
        if !is_loopback && !self.i_own_the_target {
            bail!(
                "{} is not on the loopback interface; load on a server that is not yours is an attack. \
                 If it is yours, say so: --i-own-the-target",
                self.to
            );
        }
        for text in [&self.from, &self.to_domain] {
            let is_plain = text.bytes().all(|c| c.is_ascii_graphic() && c != b'<' && c != b'>');
            ensure!(is_plain, "'{text}' has characters that do not belong in an address");
        }
        let slots = self.messages.unwrap_or(0).saturating_mul(u64::from(self.recipients_per_message));
        ensure!(slots <= limits::SLOTS, "a run has at most {} deliveries", limits::SLOTS);
        Ok(())
    }
}

/// Sends what `args` ask for and waits for it. Blocks; `progress` is told how it goes and may end
/// the run early. Fails when the run could not begin; trouble on the way is in the report.
pub fn run_load(args: &LoadArgs, progress: &dyn Progress) -> anyhow::Result<LoadReport> {
    args.validate()?;
    let seed = args.seed.unwrap_or_else(wall_us);
    let ack_log = args.ack_log.as_ref().map(|path| crate::open_log(path)).transpose()?;
    let threads = args.threads.min(args.connections.min(256) as u16);
    let plan = Plan::new(args, seed, threads);
    let shared = Arc::new(Shared::new(args, threads, Clock::start(), ack_log));
    let (done, finished) = channel();
    let mut workers = Vec::new();
    for index in 0..usize::from(threads) {
        let template = Template::new(plan.run, plan.recipients, &args.from, args.size, seed)
            .map_err(anyhow::Error::msg)
            .context("--size")?;
        let worker = worker::Worker::new(index, plan.clone(), shared.clone(), template)?;
        let done = done.clone();
        let builder = std::thread::Builder::new().name(format!("load-{index}"));
        workers.push(builder.spawn(move || {
            let stats = worker.run();
            // The receiver outlives all threads.
            let _ = done.send(());
            stats
        })?);
    }
    drop(done);
    watch(args, progress, &shared, &finished);
    let mut stats = Stats::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?;
        stats.merge(&part.context("a load thread failed")?);
    }
    progress.update(&shared.snapshot(args.messages));
    Ok(report(args, &plan, seed, &shared, stats))
}

/// Shows progress until every thread has finished.
fn watch(
    args: &LoadArgs,
    progress: &dyn Progress,
    shared: &Shared,
    finished: &std::sync::mpsc::Receiver<()>,
) {
    loop {
        match finished.recv_timeout(limits::PUBLISH_EVERY) {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) => continue,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let snapshot: Snapshot = shared.snapshot(args.messages);
        progress.update(&snapshot);
        if progress.stopped() {
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn report(args: &LoadArgs, plan: &Plan, seed: u64, shared: &Shared, stats: Stats) -> LoadReport {
    let seconds = stats.last_accept_us as f64 / 1e6;
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
    LoadReport {
        run: format!("{:08x}", plan.run),
        target: args.to.to_string(),
        seed,
        recipients_per_message: plan.recipients,
        accepted: stats.accepted,
        accepted_recipients: stats.acknowledged.count(),
        rejected: stats.rejected,
        unknown: stats.unknown,
        unsent: stats.unsent,
        connections: stats.connections,
        bytes: stats.accepted * args.size,
        seconds,
        rate: stats.accepted as f64 / seconds.max(1e-6),
        cpu_us_per_message: shared.cpu().as_secs_f64() * 1e6 / stats.accepted.max(1) as f64,
        latency: Stages {
            connect: stats.connect.percentiles(),
            mail: stats.mail.percentiles(),
            rcpt: stats.rcpt.percentiles(),
            data: stats.data.percentiles(),
            whole: stats.whole.percentiles(),
        },
        errors: stats.errors.iter().map(|(kind, error)| (kind.to_string(), error.count)).collect(),
        error_samples: stats
            .errors
            .iter()
            .map(|(kind, error)| (kind.to_string(), error.sample.clone()))
            .collect(),
        failure,
        acknowledged: stats.acknowledged.ranges(),
        unresolved: stats.unresolved.ranges(),
    }
}
