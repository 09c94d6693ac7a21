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

/// Reads what is to be sent, and says how large each message is, and what was left out.
fn content(args: &LoadArgs, seed: u64) -> anyhow::Result<(Content, Classes, Vec<String>)> {
    // With BDAT each message is held in both forms: the server may not offer CHUNKING.
    let most_bytes = limits::STOCK_BYTES / (1 + u64::from(args.bdat));
    let (mut warnings, mut eight_bit) = (Vec::new(), Vec::new());
    let (content, sizes) = match (&args.corpus, &args.sizes) {
        (Some(path), _) => {
            let corpus::Corpus { messages, warnings: left_out, .. } = corpus::read(path, most_bytes)?;
            warnings = left_out;
            eight_bit = messages.iter().map(|message| !message.is_ascii()).collect();
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
    let bytes = sizes.iter().fold(0, |sum: u64, &size| sum.saturating_add(size));
    // The stamps of a corpus are small beside what they stand in front of.
    ensure!(
        bytes <= most_bytes || matches!(content, Content::Corpus(_)),
        "the messages to prepare have {bytes} bytes, more than {most_bytes}"
    );
    Ok((content, Classes { sizes, eight_bit, seed }, warnings))
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
    let mut measured = Watch::new(&args.measure_pid)?;
    let (mut report, _) = run_watched(args, progress, &mut measured)?;
    report.account_for(&measured);
    Ok(report)
}

/// [`run_load`] without what `measured` has to say in the end, and with the clock of the run, so that both
/// may go on.
pub fn run_watched(
    args: &LoadArgs,
    progress: &dyn Progress,
    measured: &mut Watch,
) -> anyhow::Result<(LoadReport, Clock)> {
    args.validate()?;
    let seed = args.seed.unwrap_or_else(wall_us);
    let open = |path: &Option<std::path::PathBuf>| path.as_deref().map(crate::open_log).transpose();
    let logs = [open(&args.ack_log)?, open(&args.refused_log)?];
    let threads = args.threads.min(args.connections.min(256) as u16);
    let (content, classes, left_out) = content(args, seed)?;
    let mut plan = Plan::new(args, seed, threads, classes, domains(args, seed)?);
    plan.http = args.http.then(|| request_head(args)).transpose()?;
    let prepared = (0..threads).map(|_| stocks(args, &plan, &content)).collect::<anyhow::Result<Vec<_>>>()?;
    let timeline = Timeline::new(args.interval, args.warmup, args.hdr.as_deref(), wall_us())?;
    let shared = Arc::new(Shared::new(args, threads, Clock::start(), logs, timeline));
    progress.begun(shared.clock.wall_at(plan.warmup_us));
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
    watch(args, progress, &shared, &finished, measured)?;
    let mut stats = Stats::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?;
        stats.merge(&part.context("a load thread failed")?);
    }
    measured.sample(shared.clock.now_us() as f64 / 1e6);
    progress.update(&shared.snapshot(args.messages));
    let mut report = outcome(args, &plan, &shared, stats)?;
    report.warnings.extend(left_out);
    Ok((report, shared.clock))
}

/// Shows progress, closes intervals and samples the measured process until every thread has finished.
fn watch(
    args: &LoadArgs,
    progress: &dyn Progress,
    shared: &Shared,
    finished: &std::sync::mpsc::Receiver<()>,
    measured: &mut Watch,
) -> anyhow::Result<()> {
    let (mut interval, mut is_warm) = (0, args.warmup.is_zero());
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
        // What was used in the warm-up is told from the rest by a sample at its end.
        let ends_warmup = !is_warm && now_us >= args.warmup.as_micros() as u64;
        if current > interval || ends_warmup {
            interval = current;
            timeline.close_before(current.saturating_sub(limits::OPEN_INTERVALS))?;
            timeline.latest().into_iter().for_each(|point| progress.interval(point));
            measured.sample(now_us as f64 / 1e6);
            is_warm |= ends_warmup;
        }
        drop(timeline);
        if progress.stopped() {
            shared.interrupt();
        }
    }
}

/// How long a run lasted, for its rate: to its last final reply, or to the last time at which a message was
/// due; all of it, where it ended in failure.
fn lasted_us(stats: &Stats, failed: bool, end_us: u64) -> u64 {
    if failed { end_us } else { stats.last_accept_us.max(stats.last_due_us) }
}

fn outcome(args: &LoadArgs, plan: &Plan, shared: &Shared, stats: Stats) -> anyhow::Result<LoadReport> {
    let end_us = shared.clock.now_us();
    let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let lasted_us = lasted_us(&stats, failure.is_some(), end_us);
    let measured = stats.accepted - stats.warmup_accepted;
    let seconds = lasted_us.saturating_sub(plan.warmup_us) as f64 / 1e6;
    let late_share = stats.late_starts as f64 / stats.scheduled.max(1) as f64;
    let was_held = late_share <= limits::LATE_SHARE && stats.not_begun == 0 && failure.is_none();
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
        not_begun: stats.not_begun,
        is_interrupted: shared.is_interrupted() && (stats.is_cut || stats.not_begun > 0),
        connections: stats.connections,
        bytes: stats.bytes,
        warmup_seconds: args.warmup.as_secs_f64(),
        warmup_accepted: stats.warmup_accepted,
        seconds,
        rate: measured as f64 / seconds.max(1e-6),
        bytes_per_second: (stats.bytes - stats.warmup_bytes) as f64 / seconds.max(1e-6),
        due: plan.rate.as_ref().map(|_| stats.due),
        due_rate: plan.rate.as_ref().map(|_| {
            let due_us = stats.last_due_us.saturating_sub(plan.warmup_us);
            stats.scheduled as f64 / (due_us as f64 / 1e6).max(1e-6)
        }),
        cpu_us_per_message: stats.cpu.as_secs_f64() * 1e6 / measured.max(1) as f64,
        busy_share: stats.strain.busy_share,
        starved_share: stats.strain.starved_share,
        worst_busy_share: stats.worst.busy_share,
        worst_starved_share: stats.worst.starved_share,
        rate_held: plan.rate.as_ref().map(|_| was_held),
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
