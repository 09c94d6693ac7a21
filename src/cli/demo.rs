//! `ringpost demo`: source, server and sink on loopback, measured and verified.
//!
//! Owns: the run. Promises: exit code 0 means that every message was accepted and arrived exactly once;
//! on any other end it says what went wrong; the server process and the temporary spool never outlive
//! it. Must not: take a short cut: the server is an ordinary `serve` in a process of its own.
mod report;
mod server;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use clap::builder::FalseyValueParser;
use ringpost_loadgen::{
    Console, LoadArgs, LoadReport, Progress, Sink, SinkArgs, SinkHandle, SinkReport, Snapshot, reconcile,
    run_load,
};

use self::report::DemoReport;
use self::server::{Server, ServerPlan};
use super::{client, output, signals};
use crate::config::{Durability, grammar};
use crate::control::Report;

/// Without an arrival for this long the demonstration has failed.
const QUIET_WAIT: Duration = Duration::from_secs(60);
/// Wait for the server's queue to be empty once everything has arrived.
const SETTLE_WAIT: Duration = Duration::from_secs(20);
/// Pause between two looks at the sink: it bounds the error of the rate.
const POLL: Duration = Duration::from_millis(2);

#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Messages to send
    #[arg(long, value_name = "N", env = "RINGPOST_DEMO_MESSAGES", default_value_t = 20_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: u64,
    /// Size of each
    #[arg(long, value_name = "SIZE", env = "RINGPOST_DEMO_SIZE", default_value = "4KiB", value_parser = grammar::size)]
    size: u64,
    /// Connections of the source, and most connections to the sink
    #[arg(long, value_name = "N", env = "RINGPOST_DEMO_CONNECTIONS", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// What a message must survive before it is acknowledged
    #[arg(long, value_name = "disk|os|memory", env = "RINGPOST_DEMO_DURABILITY", default_value = "disk",
        value_parser = grammar::durability)]
    durability: Durability,
    /// Worker threads of the server [default: cores available]
    #[arg(long, value_name = "N", env = "RINGPOST_DEMO_WORKERS")]
    workers: Option<u32>,
    /// Print the figures as JSON
    #[arg(long, env = "RINGPOST_DEMO_JSON", value_parser = FalseyValueParser::new())]
    json: bool,
    /// Leave the temporary spool behind
    #[arg(long, env = "RINGPOST_DEMO_KEEP", value_parser = FalseyValueParser::new())]
    keep: bool,
}

/// Runs the demonstration and prints its figures.
pub fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let stop = signals::stop_flag()?;
    let directory = TemporaryDirectory::make(args.keep)?;
    if args.keep {
        eprintln!("spool in {}", directory.0.display());
    }
    let report = measure(args, &directory.0.join("spool"), &stop)?;
    if args.json {
        output::json(&report)?
    } else {
        output::text(&report.to_string())?
    }
    Ok(if report.verdict.is_exactly_once() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(args: &DemoArgs, spool: &std::path::Path, stop: &Arc<AtomicBool>) -> anyhow::Result<DemoReport> {
    let sink = Sink::start(&SinkArgs::new(SocketAddr::from(([127, 0, 0, 1], 0))))?;
    let plan = ServerPlan {
        spool,
        sink: sink.addr(),
        durability: args.durability.as_str(),
        workers: args.workers,
        connections: args.connections,
    };
    let server = Server::start(&plan, &|| stop.load(Ordering::Relaxed))?;
    let address = server.address();
    let run = Run {
        args,
        sink,
        server: Mutex::new(server),
        console: Console::new(stop.clone()),
        begun: Instant::now(),
    };
    let cpu_before = run.server().cpu();
    let load = run_load(&load_args(args, address), &run);
    let arrived = load.and_then(|load| {
        run.wait_for_arrivals(&load)?;
        Ok((load, run.begun.elapsed()))
    });
    run.console.finish();
    let (load, seconds) = arrived?;
    let counters = run.wait_for_empty_queue(spool)?;
    let cpu = run.server().cpu().saturating_sub(cpu_before);
    let Run { sink, server, .. } = run;
    server.into_inner().unwrap_or_else(PoisonError::into_inner).stop()?;
    Ok(figures(args, load, sink.stop()?, counters, seconds, cpu))
}

fn load_args(args: &DemoArgs, address: SocketAddr) -> LoadArgs {
    LoadArgs { connections: args.connections, size: args.size, ..LoadArgs::new(address, args.messages) }
}

/// What runs while mail flows. As the source's progress it shows the sink's count: what has come out at
/// the other end is what counts.
struct Run<'a> {
    args: &'a DemoArgs,
    sink: SinkHandle,
    server: Mutex<Server>,
    console: Console,
    begun: Instant,
}

impl Progress for Run<'_> {
    fn update(&self, source: &Snapshot) {
        let counters = self.sink.counters();
        self.console.update(&Snapshot {
            elapsed: self.begun.elapsed(),
            messages: counters.unique,
            total: Some(self.args.messages),
            lasts: None,
            bytes: counters.bytes,
            troubled: source.troubled + counters.duplicates + counters.corrupt,
            connections: source.connections,
            cpu: self.server().cpu(),
        });
    }

    fn stopped(&self) -> bool {
        self.console.stopped() || !self.server().is_running()
    }
}

impl Run<'_> {
    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when the demonstration cannot go on.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.console.stopped(), "interrupted");
        ensure!(self.sink.is_running(), "the sink has ended by itself");
        let mut server = self.server();
        if !server.is_running() {
            return Err(server.failure("the server has ended by itself"));
        }
        Ok(())
    }

    /// Waits until every acknowledged message has arrived.
    fn wait_for_arrivals(&self, load: &LoadReport) -> anyhow::Result<()> {
        self.check()?;
        if let Some(failure) = &load.failure {
            return Err(self.server().failure(&format!("the source gave up: {failure}")));
        }
        if load.accepted < self.args.messages {
            let what = format!(
                "only {} of {} messages were accepted ({} refused, {} without an answer)",
                load.accepted, self.args.messages, load.rejected, load.unknown
            );
            return Err(self.server().failure(&what));
        }
        let mut last = (0, Instant::now());
        loop {
            let unique = self.sink.counters().unique;
            if unique >= load.accepted_recipients {
                return Ok(());
            }
            self.check()?;
            if unique > last.0 {
                last = (unique, Instant::now());
            } else if last.1.elapsed() > QUIET_WAIT {
                let missing = load.accepted_recipients - unique;
                let what = format!(
                    "{missing} acknowledged messages have not arrived, and nothing has moved for {} s",
                    QUIET_WAIT.as_secs()
                );
                return Err(self.server().failure(&what));
            }
            self.update(&Snapshot::default());
            thread::sleep(POLL);
        }
    }

    /// Waits until the server, too, knows that everything is delivered.
    fn wait_for_empty_queue(&self, spool: &std::path::Path) -> anyhow::Result<Report> {
        let until = Instant::now() + SETTLE_WAIT;
        loop {
            self.check()?;
            let report: Report = client::request(spool, "GET", "/api/v1/counters")?;
            let queued = report.counters.queued_recipients_now;
            if queued == 0 {
                return Ok(report);
            }
            if Instant::now() > until {
                bail!("everything has arrived, but the server still counts {queued} recipients as queued");
            }
            thread::sleep(POLL * 10);
        }
    }
}

fn figures(
    args: &DemoArgs,
    load: LoadReport,
    sink: SinkReport,
    server: Report,
    seconds: Duration,
    cpu: Duration,
) -> DemoReport {
    let messages = args.messages as f64;
    DemoReport {
        messages: args.messages,
        size_bytes: args.size,
        connections: args.connections,
        durability: server.process.durability.clone(),
        workers: server.process.workers,
        accepted_per_second: load.rate,
        delivered_per_second: messages / seconds.as_secs_f64(),
        seconds: seconds.as_secs_f64(),
        server_cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages,
        source_cpu_us_per_message: load.cpu_us_per_message,
        sink_cpu_us_per_message: sink.cpu_us_per_message,
        server_rss_bytes: server.process.rss_bytes,
        accept_latency: load.latency.whole,
        end_to_end_latency: sink.latency,
        verdict: reconcile(&load, &sink),
        server,
    }
}

/// A directory of our own in the current one, so that the spool lies on a real disk: `/tmp` is often
/// memory, which proves nothing about durability.
struct TemporaryDirectory(PathBuf, bool);

impl TemporaryDirectory {
    fn make(keep: bool) -> anyhow::Result<TemporaryDirectory> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::current_dir()?.join(format!("ringpost-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| {
            format!("cannot make {}: run this in a directory that you may write to", path.display())
        })?;
        Ok(TemporaryDirectory(path, keep))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if self.1 {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("ringpost: cannot remove {}: {error}", self.0.display());
        }
    }
}
