//! The load source: sends generated mail and measures how it is taken.
//!
//! Owns: [`LoadArgs`] and a run over its threads. Promises: a message counts as accepted only when
//! its final reply was 2xx; one whose reply was never seen counts as unknown, never as accepted. At
//! a fixed rate latency is measured from the time a message was meant to be sent, so that a slow
//! server cannot hide behind a source that waits for it. Must not: share code with the server.
mod args;
mod desk;
mod http;
mod mix;
mod plan;
mod rate;
mod replies;
mod search;
mod session;
mod stats;
mod talk;
#[cfg(test)]
mod tests;
mod tls;
mod worker;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError};

use anyhow::{Context, ensure};

use crate::clock::{Clock, wall_us};
use crate::message::{Stock, Template, least_bytes};
use crate::process::Watch;
use crate::progress::{Progress, Snapshot};
use crate::report::{LoadReport, Percentiles, Stages};
use crate::timeline::Timeline;
use crate::{corpus, limits};
pub use args::{LoadAction, LoadArgs};
pub use mix::SizeMix;
use mix::{Classes, Domains};
use plan::{Plan, Shared};
pub use rate::RateProfile;
pub use search::{SearchReport, Trial, run_search};
use stats::Stats;
pub use tls::TlsMode;

/// What the threads of a run send: the same messages for each of them.
enum Content {
    Generated,
    Corpus(Vec<Vec<u8>>),
}

/// Reads what is to be sent, and says how large each message is.
fn content(args: &LoadArgs, seed: u64) -> anyhow::Result<(Content, Classes)> {
    let (content, sizes) = match (&args.corpus, &args.sizes) {
        (Some(path), _) => {
            let messages = corpus::read(path)?;
            let sizes = messages.iter().map(|m| Template::of_corpus(0, 1, m).content_bytes()).collect();
            (Content::Corpus(messages), sizes)
        }
        (None, Some(mix)) => {
            // Headers need some bytes: smaller messages are as small as they can be.
            let least = least_bytes(&args.from);
            (Content::Generated, mix.quantiles()?.iter().map(|&size| size.max(least)).collect::<Vec<u64>>())
        }
        (None, None) => (Content::Generated, vec![args.size]),
    };
    let bytes: u64 = sizes.iter().sum();
    ensure!(
        bytes <= limits::STOCK_BYTES,
        "the messages to prepare have {bytes} bytes, more than {}",
        limits::STOCK_BYTES
    );
    Ok((content, Classes { sizes, seed }))
}

/// What stands before the length of each request.
fn request_head(args: &LoadArgs) -> anyhow::Result<Arc<str>> {
    let authorization = match &args.token_file {
        None => String::new(),
        Some(path) => {
            let shown = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("--token-file {shown}"))?;
            let token = text.lines().next().unwrap_or_default();
            let is_token = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
            ensure!(is_token, "--token-file {shown}: the first line is no token");
            format!("Authorization: Bearer {token}\r\n")
        }
    };
    Ok(format!(
        "POST /api/v1/messages HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: ",
        args.to
    )
    .into())
}

fn domains(args: &LoadArgs, seed: u64) -> anyhow::Result<Domains> {
    Ok(match (&args.domain_list, args.domains, args.zipf) {
        (Some(path), _, _) => Domains::listed(path, seed)?,
        (None, Some(count), Some(exponent)) => Domains::zipf(count, exponent, seed),
        (None, Some(count), None) => Domains::Turn(count),
        (None, None, _) => Domains::One(args.to_domain.clone()),
    })
}

/// Prepares the messages of one thread: for DATA, and for BDAT or HTTP.
fn stocks(args: &LoadArgs, plan: &Plan, content: &Content) -> anyhow::Result<(Stock, Stock)> {
    let stock = || match content {
        Content::Generated => {
            Stock::of_sizes(plan.run, plan.recipients, &args.from, &plan.classes.sizes, plan.seed)
                .map_err(anyhow::Error::msg)
                .context("--size")
        }
        Content::Corpus(messages) => {
            Ok(Stock(messages.iter().map(|m| Template::of_corpus(plan.run, plan.recipients, m)).collect()))
        }
    };
    let none = || Stock(Vec::new());
    let changed = |change: fn(Template) -> Template| -> anyhow::Result<Stock> {
        Ok(Stock(stock()?.0.into_iter().map(change).collect()))
    };
    Ok(match (plan.http.is_some(), plan.may_chunk) {
        (true, _) => (none(), changed(Template::into_json)?),
        (_, true) => (stock()?, changed(Template::without_dots)?),
        (false, false) => (stock()?, none()),
    })
}

/// Sends what `args` ask for and waits for it. Blocks; `progress` is told how it goes and may end
/// the run early. Fails when the run could not begin; trouble on the way is in the report.
pub fn run_load(args: &LoadArgs, progress: &dyn Progress) -> anyhow::Result<LoadReport> {
    args.validate()?;
    let seed = args.seed.unwrap_or_else(wall_us);
    let ack_log = args.ack_log.as_ref().map(|path| crate::open_log(path)).transpose()?;
    let threads = args.threads.min(args.connections.min(256) as u16);
    let (content, classes) = content(args, seed)?;
    let mut plan = Plan::new(args, seed, threads, classes, domains(args, seed)?);
    plan.http = args.http.then(|| request_head(args)).transpose()?;
    let prepared = (0..threads).map(|_| stocks(args, &plan, &content)).collect::<anyhow::Result<Vec<_>>>()?;
    let timeline = Timeline::new(args.interval, args.hdr.as_deref(), wall_us())?;
    let shared = Arc::new(Shared::new(args, threads, Clock::start(), ack_log, timeline));
    let mut measured = Watch::new(&args.measure_pid);
    measured.sample(0.0);
    let (done, finished) = channel();
    let mut workers = Vec::new();
    for (index, (stock, chunks)) in prepared.into_iter().enumerate() {
        let worker = worker::Worker::new(index, plan.clone(), shared.clone(), stock, chunks)?;
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
    watch(args, progress, &shared, &finished, &mut measured)?;
    let mut stats = Stats::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?;
        stats.merge(&part.context("a load thread failed")?);
    }
    measured.sample(shared.clock.now_us() as f64 / 1e6);
    progress.update(&shared.snapshot(args.messages));
    let mut report = report(args, &plan, &shared, stats)?;
    report.process = measured.report(report.accepted);
    Ok(report)
}

/// Shows progress, closes intervals and samples the measured process until every thread has finished.
fn watch(
    args: &LoadArgs,
    progress: &dyn Progress,
    shared: &Shared,
    finished: &std::sync::mpsc::Receiver<()>,
    measured: &mut Watch,
) -> anyhow::Result<()> {
    let mut interval = 0;
    loop {
        match finished.recv_timeout(limits::PUBLISH_EVERY) {
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(()) => continue,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let snapshot: Snapshot = shared.snapshot(args.messages);
        progress.update(&snapshot);
        let now_us = shared.clock.now_us();
        let mut timeline = shared.timeline();
        let current = now_us / timeline.interval_us();
        if current > interval {
            interval = current;
            timeline.close_before(current.saturating_sub(limits::OPEN_INTERVALS))?;
            timeline.latest().into_iter().for_each(|point| progress.interval(point));
            measured.sample(now_us as f64 / 1e6);
        }
        drop(timeline);
        if progress.stopped() {
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn report(args: &LoadArgs, plan: &Plan, shared: &Shared, stats: Stats) -> anyhow::Result<LoadReport> {
    let end_us = shared.clock.now_us();
    let seconds = stats.last_accept_us as f64 / 1e6;
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let late_share = stats.late_starts as f64 / stats.scheduled.max(1) as f64;
    let mut report = LoadReport {
        run: format!("{:08x}", plan.run),
        target: args.to.to_string(),
        seed: plan.seed,
        workload: args.workload(),
        recipients_per_message: plan.recipients,
        accepted: stats.accepted,
        accepted_recipients: stats.acknowledged.count(),
        rejected: stats.rejected,
        unknown: stats.unknown,
        unsent: stats.unsent,
        connections: stats.connections,
        bytes: stats.bytes,
        seconds,
        rate: stats.accepted as f64 / seconds.max(1e-6),
        cpu_us_per_message: shared.cpu().as_secs_f64() * 1e6 / stats.accepted.max(1) as f64,
        busy_share: shared.busiest().as_secs_f64() / (end_us as f64 / 1e6).max(1e-6),
        starved_share: stats.starved_us as f64 / end_us.max(1) as f64,
        rate_held: plan.rate.as_ref().map(|_| late_share <= limits::LATE_SHARE),
        late_share,
        late: stats.late.percentiles(),
        latency: Stages {
            connect: stats.connect.percentiles(),
            tls: stats.tls.percentiles(),
            mail: stats.mail.percentiles(),
            rcpt: stats.rcpt.percentiles(),
            data: stats.data.percentiles(),
            whole: stats.all_whole().percentiles(),
            end_to_end: Percentiles::default(),
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
        timeline: shared.timeline().finish(end_us)?,
        process: None,
        sink: None,
        verdict: None,
        warnings: Vec::new(),
    };
    report.warnings = report.doubts();
    Ok(report)
}
