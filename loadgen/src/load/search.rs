//! The highest rate that keeps a bound on latency.
//!
//! Owns: [`run_search`]: doubling until a rate fails, then halving the gap. Promises: every rate
//! tried is in the report with what was measured; a rate counts only when it was held, 99 % of its
//! messages were done in time, and none was refused or lost. Must not: measure by itself.
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::load::{LoadArgs, RateProfile, run_load};
use crate::progress::Progress;
use crate::report::in_words;

/// One rate that was tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Messages per second asked for.
    pub rate: f64,
    pub accepted: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub late_share: f64,
    pub is_good: bool,
    /// Why it is not.
    pub reason: String,
}

/// What a search has found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SearchReport {
    pub target: String,
    pub workload: String,
    /// The bound on the 99th percentile.
    pub bound_us: u64,
    /// The highest rate that kept it; none if the first rate did not.
    pub best_rate: Option<f64>,
    pub trials: Vec<Trial>,
}

/// Tries rates from `--rate` on (100/s without it). Blocks; `progress` may end it between trials
/// and in them.
pub fn run_search(args: &LoadArgs, progress: &dyn Progress) -> anyhow::Result<SearchReport> {
    let bound = args.search.unwrap_or(limits::SEARCH_BOUND);
    let start = args.rate.as_ref().map_or(limits::SEARCH_START_RATE, RateProfile::peak);
    let mut report = SearchReport {
        target: args.to.to_string(),
        workload: LoadArgs { rate: None, ..args.clone() }.workload(),
        bound_us: bound.as_micros() as u64,
        ..SearchReport::default()
    };
    let mut steps = Steps { good: 0.0, bad: f64::INFINITY, next: start };
    while !progress.stopped() && report.trials.len() < limits::SEARCH_TRIALS {
        let trial = attempt(args, steps.next, bound, progress)?;
        if progress.stopped() {
            break;
        }
        let is_good = trial.is_good;
        report.trials.push(trial);
        if !steps.learn(is_good) {
            break;
        }
    }
    report.best_rate = (steps.good > 0.0).then_some(steps.good);
    Ok(report)
}

fn attempt(args: &LoadArgs, rate: f64, bound: Duration, progress: &dyn Progress) -> anyhow::Result<Trial> {
    let args = LoadArgs {
        rate: Some(RateProfile::fixed(rate)),
        messages: None,
        duration: Some(args.search_trial),
        hdr: None,
        ..args.clone()
    };
    let load = run_load(&args, progress)?;
    let p = load.latency.whole;
    let failed = load.rejected + load.unknown + load.unsent;
    let reason = match () {
        () if load.failure.is_some() => load.failure.clone().unwrap_or_default(),
        () if load.accepted == 0 => "nothing was accepted".into(),
        () if failed > 0 => format!("{failed} messages were refused or lost"),
        () if p.p99_us > bound.as_micros() as u64 => format!("p99 {}", in_words(p.p99_us)),
        () if load.rate_held == Some(false) => {
            format!("{:.1} % of the messages were begun late", load.late_share * 100.0)
        }
        () => String::new(),
    };
    Ok(Trial {
        rate,
        accepted: load.accepted,
        p50_us: p.p50_us,
        p99_us: p.p99_us,
        late_share: load.late_share,
        is_good: reason.is_empty(),
        reason,
    })
}

/// What is known of the limit: it lies between `good` and `bad`.
struct Steps {
    good: f64,
    bad: f64,
    next: f64,
}

impl Steps {
    /// Takes note of the result at `next` and chooses another; false when the gap is small enough,
    /// or the rate too small to be one.
    fn learn(&mut self, is_good: bool) -> bool {
        if is_good {
            self.good = self.next;
        } else {
            self.bad = self.next;
        }
        self.next = match (self.good > 0.0, self.bad.is_finite()) {
            (true, false) => self.good * 2.0,
            (false, _) => self.bad / 4.0,
            (true, true) => (self.good * self.bad).sqrt(),
        };
        self.bad / self.good > 1.0 + limits::SEARCH_PRECISION && self.next >= 0.1
    }
}

impl fmt::Display for SearchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>10} {:>10} {:>10}  p99 within {}?", "rate", "p50", "p99", in_words(self.bound_us))?;
        for trial in &self.trials {
            let verdict = if trial.is_good { "yes".into() } else { format!("no: {}", trial.reason) };
            let (p50, p99) = (in_words(trial.p50_us), in_words(trial.p99_us));
            writeln!(f, "{:>8.1}/s {p50:>10} {p99:>10}  {verdict}", trial.rate)?;
        }
        match self.best_rate {
            Some(rate) => writeln!(f, "highest rate that keeps the bound: {rate:.0}/s"),
            None => writeln!(f, "no rate that was tried keeps the bound"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_close_in_on_the_limit() {
        for (start, limit) in [(100.0, 1.5), (100.0, 3217.0), (100.0, 250_000.0), (1e6, 40.0)] {
            let mut steps = Steps { good: 0.0, bad: f64::INFINITY, next: start };
            let mut trials = 1;
            while steps.learn(steps.next <= limit) {
                trials += 1;
            }
            assert!(steps.good <= limit && limit < steps.bad, "{limit}");
            assert!(
                steps.bad / steps.good < 1.0 + limits::SEARCH_PRECISION * 1.01 && trials < 32,
                "{trials}"
            );
        }
    }
}
