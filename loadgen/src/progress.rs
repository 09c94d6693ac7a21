//! Live progress of a source or a sink.
//!
//! Owns: the [`Progress`] callback, and [`Console`], which shows it on standard error: a moving line
//! on a terminal, one plain line per second elsewhere. Promises: standard output stays free for the
//! report. Must not: be called per message.
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::limits;
use crate::report::in_words;
use crate::timeline::Point;

/// How far a source or a sink has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    pub elapsed: Duration,
    /// Messages accepted (source) or taken (sink).
    pub messages: u64,
    /// Messages there will be, where that is known.
    pub total: Option<u64>,
    /// How long it will take, where that is known.
    pub lasts: Option<Duration>,
    /// Content bytes of these messages.
    pub bytes: u64,
    /// What went wrong: rejected and unknown (source); duplicate and corrupt (sink).
    pub troubled: u64,
    /// Connections open now.
    pub connections: u64,
    /// CPU of the threads that do the work.
    pub cpu: Duration,
}

/// Told how a run goes, about ten times a second, and asked whether it should end.
pub trait Progress: Sync {
    fn update(&self, snapshot: &Snapshot);
    /// Told of each interval that has passed, once all threads have accounted for it.
    fn interval(&self, _: &Point) {}
    /// Told when sending begins: the wall time from which on messages are measured.
    fn begun(&self, _measured_from_us: u64) {}
    /// Told that something else begins, for which nothing that was shown counts.
    fn phase(&self, _what: &str) {}
    /// Told that what was stopped has come to its end, and something follows that is stopped by asking again.
    fn resume(&self) {}
    /// True ends the run: no new message is begun, what is in flight is finished.
    fn stopped(&self) -> bool {
        false
    }
}

/// Shows nothing and never stops.
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _: &Snapshot) {}
}

/// Shows progress on standard error.
pub struct Console {
    bar: Option<ProgressBar>,
    plain: Mutex<Plain>,
    stop: Arc<AtomicBool>,
}

struct Plain {
    printed_at: Instant,
    last: Snapshot,
    /// Percentiles of the last interval.
    latency: String,
    /// What is done now, where a run has several parts.
    phase: String,
}

impl Console {
    /// A display that ends the run when `stop` becomes true.
    pub fn new(stop: Arc<AtomicBool>) -> Console {
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::no_length().with_style(style(false)));
        let plain = Mutex::new(Plain {
            printed_at: Instant::now(),
            last: Snapshot::default(),
            latency: String::new(),
            phase: String::new(),
        });
        Console { bar, plain, stop }
    }
    /// Removes the moving line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Console {
    fn update(&self, now: &Snapshot) {
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let every = if self.bar.is_some() { limits::PUBLISH_EVERY * 2 } else { Duration::from_secs(1) };
        if plain.printed_at.elapsed() < every {
            return;
        }
        let text = plain.phase.clone() + &line(&plain.last, now) + &plain.latency;
        (plain.printed_at, plain.last) = (Instant::now(), *now);
        match &self.bar {
            Some(bar) => {
                let (position, length) = done(now);
                bar.set_style(style(length.is_some()));
                bar.set_length(length.unwrap_or_default());
                bar.set_position(position);
                bar.set_message(text);
                bar.tick();
            }
            // Progress that cannot be written is no reason to end a run.
            None => drop(writeln!(std::io::stderr(), "{:5.0} s  {text}", now.elapsed.as_secs_f64())),
        }
    }
    fn interval(&self, point: &Point) {
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let [p50, p99, max] = [point.p50_us, point.p99_us, point.max_us].map(in_words);
        plain.latency = format!("  p50 {p50} p99 {p99} max {max}");
    }
    fn phase(&self, what: &str) {
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        (plain.last, plain.phase) = (Snapshot::default(), format!("{what}: "));
        plain.latency.clear();
    }
    fn resume(&self) {
        self.stop.store(false, Ordering::Relaxed);
    }
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// How much is done, and of how much where that is known: of the messages, or of the time.
fn done(now: &Snapshot) -> (u64, Option<u64>) {
    match (now.total, now.lasts) {
        (Some(total), _) => (now.messages, Some(total)),
        (None, Some(lasts)) => (now.elapsed.as_millis() as u64, Some(lasts.as_millis() as u64)),
        (None, None) => (now.messages, None),
    }
}

/// A bar where it is known how much there is to do.
fn style(has_length: bool) -> ProgressStyle {
    let template = if has_length {
        "{spinner} {elapsed_precise} {wide_bar} {percent:>3} %\n  {msg}"
    } else {
        "{spinner} {elapsed_precise} {msg}"
    };
    ProgressStyle::with_template(template).expect("the template is valid")
}

fn line(last: &Snapshot, now: &Snapshot) -> String {
    let seconds = now.elapsed.saturating_sub(last.elapsed).as_secs_f64().max(1e-3);
    let rate = now.messages.saturating_sub(last.messages) as f64 / seconds;
    let total = now.total.map(|total| format!(" of {total}")).unwrap_or_default();
    let cpu = now.cpu.as_secs_f64() * 1e6 / now.messages.max(1) as f64;
    format!(
        "{}{total} messages  {rate:.0}/s  {:.1} MB  {} connections  {} troubled  {cpu:.1} µs CPU each",
        now.messages,
        now.bytes as f64 / 1e6,
        now.connections,
        now.troubled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_knows_what_there_is_to_do() {
        let second = Duration::from_secs(1);
        let now =
            |total, lasts| Snapshot { elapsed: second, messages: 7, total, lasts, ..Snapshot::default() };
        for (total, lasts, want) in [
            (None, None, (7, None)),
            (Some(10), None, (7, Some(10))),
            (None, Some(second * 4), (1000, Some(4000))),
            (Some(10), Some(second * 4), (7, Some(10))),
        ] {
            assert_eq!(done(&now(total, lasts)), want);
        }
    }

    #[test]
    fn a_new_phase_counts_anew_and_is_stopped_anew() {
        let stop = Arc::new(AtomicBool::new(true));
        let console = Console::new(stop.clone());
        console.plain.lock().unwrap().last.messages = 1000;
        console.phase("arrivals");
        console.resume();
        assert!(!console.stopped() && !stop.load(Ordering::Relaxed));
        let last = console.plain.lock().unwrap().last;
        let now = Snapshot { elapsed: Duration::from_secs(2), messages: 100, ..Snapshot::default() };
        assert!(line(&last, &now).contains("50/s"), "{}", line(&last, &now));
    }
}
