//! Source and sink as commands: progress on standard error, the report on standard output, signals.
//!
//! Owns: what `ringpost load` and `ringpost sink` print and how they end. Promises: a first SIGINT or
//! SIGTERM ends the run in order, with its report; a second one ends the process. Must not: measure.
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use serde::Serialize;

use crate::check::Verdict;
use crate::compare::{compare, read_reports};
use crate::html::page;
use crate::load::{LoadAction, LoadArgs, run_load, run_search};
use crate::pair::run_pair;
use crate::progress::Console;
use crate::sink::{SinkArgs, run_sink, shipped_models};

/// Exit status of a process that SIGINT ended, as shells count it.
const INTERRUPTED: i32 = 130;

/// `ringpost load`: runs the source and prints its report. The status is a failure when not all was sent
/// that was asked for, by an error, an interruption or a server that took no more, or when nothing was
/// accepted; with `--sink`, when not all of it arrived exactly once; with `--search`, when no rate kept the
/// bound or the search was interrupted.
/// `ringpost load compare` prints a comparison of reports instead.
pub fn load_command(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    if let Some(LoadAction::Compare(args)) = &args.action {
        print(args.json, &compare(&read_reports(&args.a)?, &read_reports(&args.b)?))?;
        return Ok(ExitCode::SUCCESS);
    }
    // A path that cannot be written is found out before the run and not behind it.
    let page_file = args.report.as_ref().map(|path| {
        let file = File::options().create(true).append(true).open(path);
        file.with_context(|| format!("cannot write to {}", path.display()))
    });
    let page_file = page_file.transpose()?;
    for caution in args.cautions() {
        eprintln!("warning: {caution}");
    }
    raise_descriptor_limit();
    let console = Console::new(stop_on_signals()?);
    if args.search.is_some() {
        let report = run_search(args, &console);
        console.finish();
        let report = report?;
        print(args.json, &report)?;
        let is_good = report.best_rate.is_some() && !report.is_interrupted;
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let report = match args.sink {
        Some(listen) => run_pair(args, listen, &console),
        None => run_load(args, &console),
    };
    console.finish();
    let report = report?;
    print(args.json, &report)?;
    if let Some(mut file) = page_file {
        file.set_len(0).and_then(|()| file.write_all(page(&report).as_bytes())).context("--report")?;
    }
    let has_arrived = report.verdict.as_ref().is_none_or(Verdict::is_exactly_once);
    let is_good = report.is_complete() && (report.accepted > 0 || args.messages == Some(0)) && has_arrived;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `ringpost sink`: runs the sink until it is told to stop and prints its report. The status is a
/// failure when mail arrived twice or damaged.
pub fn sink_command(args: &SinkArgs) -> anyhow::Result<ExitCode> {
    if args.print_models {
        std::io::stdout().write_all(shipped_models().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    raise_descriptor_limit();
    let console = Console::new(stop_on_signals()?);
    let listening = |addrs: &[SocketAddr]| match addrs {
        [first, .., last] => eprintln!("sink listening on {first} to {last}, {} addresses", addrs.len()),
        addrs => addrs.iter().for_each(|addr| eprintln!("sink listening on {addr}")),
    };
    let report = run_sink(args, &console, listening);
    console.finish();
    let report = report?;
    print(args.json, &report)?;
    let is_good = report.duplicates == 0 && report.corrupt == 0;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print<R: Serialize + std::fmt::Display>(json: bool, report: &R) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string(report)? + "\n" } else { report.to_string() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the report")
}

/// Allows as many connections as the hard limit does. Where that fails the soft limit stays, and
/// running into it is reported when it happens.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// A flag that the first SIGINT or SIGTERM sets.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if flag.swap(true, Ordering::Relaxed) {
                    std::process::exit(INTERRUPTED);
                }
            }
        });
    })?;
    Ok(stop)
}
